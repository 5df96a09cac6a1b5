"""Servers of our own, as processes or in containers: real, alone, and gone without a trace."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pika
import pika.exceptions
import psycopg
import pytest
from docker.errors import NotFound
from testcontainers.core.config import ConnectionMode, testcontainers_config

from relay.demo.servers import server as server_module
from relay.demo.servers.container import engine
from relay.demo.servers.definitions import BrokerUser
from relay.demo.servers.host import ServerFailed, bound_socket, free_ports
from relay.demo.servers.images import ContainerPostgres, ContainerRabbitMQ
from relay.demo.servers.postgres import Postgres, PrivatePostgres
from relay.demo.servers.rabbitmq import PrivateRabbitMQ, RabbitMQ
from relay.demo.servers.server import PrivateServer, Server

READER = BrokerUser("reader", "r/e:a@d%er", configure="^reader", read=".*")

LISTENING = "0A"
"""A state in /proc/net/tcp. Source: the kernel's include/net/tcp_states.h."""

ENDS_S = 10.0

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

each_postgres = [
    pytest.param(PrivatePostgres, id="private"),
    pytest.param(ContainerPostgres, id="container", marks=pytest.mark.containers),
]
each_rabbitmq = [
    pytest.param(PrivateRabbitMQ, id="private"),
    pytest.param(ContainerRabbitMQ, id="container", marks=pytest.mark.containers),
]


@pytest.fixture(scope="module", params=each_postgres)
def own_postgres(request: pytest.FixtureRequest) -> Iterator[Postgres]:
    with request.param(durable=False) as server:
        yield server


@pytest.fixture(scope="module", params=each_rabbitmq)
def own_rabbitmq(request: pytest.FixtureRequest) -> Iterator[RabbitMQ]:
    with request.param([READER]) as server:
        yield server


@pytest.fixture(scope="module")
def private_postgres() -> Iterator[PrivatePostgres]:
    with PrivatePostgres(durable=False) as server:
        yield server


@pytest.fixture(scope="module")
def private_rabbitmq() -> Iterator[PrivateRabbitMQ]:
    with PrivateRabbitMQ() as server:
        yield server


# PostgreSQL


def test_postgres_is_ready_for_logical_replication(own_postgres: Postgres) -> None:
    with psycopg.connect(own_postgres.dsn("postgres"), autocommit=True) as connection:
        connection.execute("SELECT pg_create_logical_replication_slot('s', 'pgoutput', temporary => true)")
        assert connection.info.server_version >= 150000
        assert connection.info.parameter_status("server_encoding") == "UTF8"


def test_postgres_wants_the_password(own_postgres: Postgres) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(own_postgres.dsn("postgres", password="wrong"))


def test_postgres_keeps_its_port_and_data_over_a_restart(own_postgres: Postgres) -> None:
    dsn, since = own_postgres.dsn("postgres"), running_since(own_postgres)
    execute(dsn, "CREATE TABLE before_restart AS SELECT 7 AS n")
    own_postgres.restart()
    assert running_since(own_postgres) != since
    assert own_postgres.dsn("postgres") == dsn
    assert execute(dsn, "SELECT n FROM before_restart") == 7


def test_postgres_comes_back_after_somebody_killed_it(own_postgres: Postgres) -> None:
    dsn = own_postgres.dsn("postgres")
    execute(dsn, "CREATE TABLE before_kill AS SELECT 8 AS n")
    with psycopg.connect(dsn):  # a backend that has to notice first
        somebody_kills(own_postgres)
        assert own_postgres.ending == "was killed by SIGKILL"
        own_postgres.start()
    assert execute(dsn, "SELECT n FROM before_kill") == 8


@needs_proc
def test_postgres_comes_back_although_a_backend_of_the_killed_one_is_busy(own_postgres: Postgres) -> None:
    connection = psycopg.connect(own_postgres.dsn("postgres"))
    connection.pgconn.send_query(b"DO 'BEGIN LOOP END LOOP; END'")  # never asks whether its server still lives
    own_postgres.kill()
    own_postgres.start()
    connection.close()
    assert execute(own_postgres.dsn("postgres"), "SELECT 1") == 1


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_postgres_that_was_stopped_comes_back_with_its_data(own_postgres: Postgres, mode: Any) -> None:
    execute(own_postgres.dsn("postgres"), f"CREATE TABLE stopped_{mode} AS SELECT 9 AS n")
    own_postgres.stop(mode)
    assert not own_postgres.running
    own_postgres.start()
    assert execute(own_postgres.dsn("postgres"), f"SELECT n FROM stopped_{mode}") == 9


def test_starting_a_running_server_does_nothing(own_postgres: Postgres) -> None:
    since = running_since(own_postgres)
    own_postgres.start()
    assert running_since(own_postgres) == since


@pytest.mark.parametrize("kind", each_postgres)
def test_settings_are_heeded(kind: type[Postgres]) -> None:
    with kind(durable=False, settings={"max_wal_senders": "7", "log_line_prefix": "it's %p "}) as server:
        shown = [
            execute(server.dsn("postgres"), f"SHOW {name}") for name in ("max_wal_senders", "log_line_prefix", "fsync")
        ]
    assert shown == ["7", "it's %p ", "off"]


@pytest.mark.parametrize("kind", each_postgres)
def test_a_port_that_somebody_took_is_given_up(kind: type[Postgres], monkeypatch: pytest.MonkeyPatch) -> None:
    with bound_socket(0) as occupied:
        occupied.listen()
        taken = [occupied.getsockname()[1]]
        offers = iter([taken, free_ports(1)])
        monkeypatch.setattr(server_module, "free_ports", lambda _: next(offers))
        with kind(durable=False) as server:
            assert server.port not in taken
            assert execute(server.dsn("postgres"), "SELECT 1") == 1


def test_a_failed_start_tells_why_and_leaves_nothing() -> None:
    server = PrivatePostgres(settings={"no_such_setting": "1"})
    with pytest.raises(ServerFailed, match="no_such_setting") as failure:
        server.start()
    assert server.password not in str(failure.value)
    with pytest.raises(RuntimeError):
        _ = server.directory


@pytest.mark.containers
def test_a_failed_start_of_a_container_tells_why_and_leaves_nothing() -> None:
    server = ContainerPostgres(settings={"no_such_setting": "1"})
    with pytest.raises(ServerFailed, match="no_such_setting") as failure:
        server.start()
    assert server.password not in str(failure.value)
    assert not container_exists(server)


# RabbitMQ


def test_a_user_without_write_permission_cannot_publish(own_rabbitmq: RabbitMQ) -> None:
    with pika.BlockingConnection(pika.URLParameters(own_rabbitmq.amqp_url(READER.name))) as connection:
        channel = connection.channel()
        channel.queue_declare("reader.inbox", durable=True)
        assert channel.basic_get("reader.inbox") == (None, None, None)
        channel.confirm_delivery()
        with pytest.raises(pika.exceptions.ChannelClosedByBroker) as refused:
            channel.basic_publish("", "reader.inbox", b"never")
    assert refused.value.reply_code == 403


def test_rabbitmq_has_the_exchange_that_spreads_by_hash(own_rabbitmq: RabbitMQ) -> None:
    with pika.BlockingConnection(pika.URLParameters(own_rabbitmq.amqp_url())) as connection:
        connection.channel().exchange_declare("spread", "x-consistent-hash")


def test_rabbitmq_keeps_its_ports_and_messages_over_a_restart_and_a_kill(own_rabbitmq: RabbitMQ) -> None:
    # In this order: RabbitMQ 3.10 loses a quorum queue when it is killed within a second of the declaration.
    places = own_rabbitmq.amqp_url(), own_rabbitmq.management_url
    publish(own_rabbitmq, "kept", b"over a restart")
    own_rabbitmq.stop()
    assert own_rabbitmq.ending == "ended with status 0"
    own_rabbitmq.start()
    assert (own_rabbitmq.amqp_url(), own_rabbitmq.management_url) == places
    assert get(own_rabbitmq, "kept") == b"over a restart"

    publish(own_rabbitmq, "kept", b"over a kill")
    somebody_kills(own_rabbitmq)
    own_rabbitmq.start()
    assert get(own_rabbitmq, "kept") == b"over a kill"


# Both


@needs_proc
def test_everything_listens_on_127_0_0_1_only(
    private_postgres: PrivatePostgres, private_rabbitmq: PrivateRabbitMQ
) -> None:
    assert listening(private_postgres) == {("127.0.0.1", private_postgres.port)}
    sockets = listening(private_rabbitmq)
    assert {("127.0.0.1", private_rabbitmq.port), ("127.0.0.1", private_rabbitmq.management_port)} < sockets
    assert len(sockets) == 4  # and distribution, and epmd
    assert {address for address, _ in sockets} == {"127.0.0.1"}


@pytest.mark.containers
def test_ports_of_a_container_are_those_of_127_0_0_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testcontainers_config, "connection_mode_override", ConnectionMode.docker_host)
    with ContainerPostgres(durable=False) as server:
        assert published(server) == {("127.0.0.1", server.port)}
        assert server.host == "127.0.0.1"
        assert execute(server.dsn("postgres"), "SELECT 1") == 1


@pytest.mark.containers
@pytest.mark.parametrize("way", [ConnectionMode.gateway_ip, ConnectionMode.bridge_ip])
def test_whoever_is_in_a_container_too_reaches_a_server_by_the_engines_network(
    way: ConnectionMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(testcontainers_config, "connection_mode_override", way)
    with ContainerPostgres(durable=False) as server:
        assert server.host != "127.0.0.1"
        assert execute(server.dsn("postgres"), "SELECT 1") == 1
        server.restart()
        assert execute(server.dsn("postgres"), "SELECT 1") == 1


@needs_proc
def test_two_of_each_run_at_once_and_closing_leaves_nothing(
    private_postgres: PrivatePostgres, private_rabbitmq: PrivateRabbitMQ
) -> None:
    with PrivatePostgres(durable=False) as other_postgres, PrivateRabbitMQ() as other_rabbitmq:
        others = (other_postgres, other_rabbitmq)
        assert execute(other_postgres.dsn("postgres"), "SELECT 1") == 1
        publish(other_rabbitmq, "elsewhere", b"here")
        traces = [(other.directory, processes(other)) for other in others]
        assert all(other.pid in pids for other, (_, pids) in zip(others, traces, strict=True))
    for directory, pids in traces:
        assert not directory.exists()
        assert not [pid for pid in pids if alive(pid)]
    assert execute(private_postgres.dsn("postgres"), "SELECT 1") == 1
    publish(private_rabbitmq, "still-here", b"here")


@pytest.mark.containers
def test_two_containers_of_each_run_at_once_and_closing_leaves_nothing() -> None:
    with ContainerPostgres(durable=False) as postgres, ContainerRabbitMQ() as rabbitmq:
        with ContainerPostgres(durable=False) as other_postgres, ContainerRabbitMQ() as other_rabbitmq:
            assert execute(other_postgres.dsn("postgres"), "SELECT 1") == 1
            publish(other_rabbitmq, "elsewhere", b"here")
            volumes = volumes_of(other_postgres) | volumes_of(other_rabbitmq)
        assert not container_exists(other_postgres)
        assert not container_exists(other_rabbitmq)
        assert volumes.isdisjoint(all_volumes())
        assert execute(postgres.dsn("postgres"), "SELECT 1") == 1
        publish(rabbitmq, "still-here", b"here")


@pytest.mark.containers
def test_a_container_that_somebody_removed_is_closed_without_complaint() -> None:
    with ContainerPostgres(durable=False) as server:
        with container_of(server) as container:
            container.remove(force=True, v=True)
        assert not server.running


def execute(dsn: str, statement: str) -> object:
    """The first value of the result, if it has one."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        row = cursor.fetchone() if cursor.description else None
        return row and row[0]


def running_since(server: Postgres) -> object:
    return execute(server.dsn("postgres"), "SELECT pg_postmaster_start_time()")


def publish(server: RabbitMQ, queue: str, body: bytes) -> None:
    """Into a durable quorum queue, confirmed."""
    with pika.BlockingConnection(pika.URLParameters(server.amqp_url())) as connection:
        channel = connection.channel()
        channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})
        channel.confirm_delivery()
        channel.basic_publish("", queue, body, pika.BasicProperties(delivery_mode=2), mandatory=True)


def get(server: RabbitMQ, queue: str) -> bytes | None:
    with pika.BlockingConnection(pika.URLParameters(server.amqp_url())) as connection:
        _, _, body = connection.channel().basic_get(queue, auto_ack=True)
        return body


def somebody_kills(server: Server) -> None:
    """SIGKILL, of which the server is not told."""
    if isinstance(server, PrivateServer):
        os.kill(server.pid, signal.SIGKILL)
        server.process.wait(ENDS_S)
        return
    with container_of(server) as container:
        container.kill()
        container.wait(timeout=ENDS_S)


@contextmanager
def container_of(server: Server) -> Iterator[Any]:
    """Its container, as anybody who asks the engine sees it."""
    with engine() as client:
        yield client.containers.get(str(server.container))


def container_exists(server: Server) -> bool:
    try:
        with container_of(server):
            return True
    except NotFound:
        return False


def published(server: Server) -> set[tuple[str, int]]:
    """Addresses and ports of the engine's machine that lead into the container."""
    with container_of(server) as container:
        ports = container.attrs["NetworkSettings"]["Ports"].values()
    return {(place["HostIp"], int(place["HostPort"])) for places in ports if places for place in places}


def volumes_of(server: Server) -> set[str]:
    with container_of(server) as container:
        return {mount["Name"] for mount in container.attrs["Mounts"] if mount["Type"] == "volume"}


def all_volumes() -> set[str]:
    with engine() as client:
        return {volume.name for volume in client.volumes.list()}


def processes(server: PrivateServer) -> set[int]:
    """Every process that works in the server's directory: itself and all its helpers."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink().is_relative_to(server.directory):
                found.add(int(process.name))
        except OSError:
            continue
    return found


def alive(pid: int) -> bool:
    """A zombie, whose parent has not asked for its status, is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def listening(server: PrivateServer) -> set[tuple[str, int]]:
    """Address and port of every socket that takes connections; an IPv6 address as the kernel's hexadecimal digits."""
    handles = [handle for pid in processes(server) for handle in Path(f"/proc/{pid}/fd").iterdir()]
    ours = {str(handle.readlink()) for handle in handles}
    sockets = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, _, state, *_ = fields = line.split()
            if state == LISTENING and f"socket:[{fields[9]}]" in ours:
                address, _, port = local.partition(":")
                sockets.add(("127.0.0.1" if address == "0100007F" else address, int(port, 16)))
    return sockets
