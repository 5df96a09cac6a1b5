"""The private servers of the demo and the tests: real, alone, on 127.0.0.1, and gone without a trace."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pika
import pika.exceptions
import psycopg
import pytest

from relay.demo import server as server_module
from relay.demo.host import ServerFailed, bound_socket, free_ports
from relay.demo.postgres import PrivatePostgres
from relay.demo.rabbitmq import BrokerUser, PrivateRabbitMQ
from relay.demo.server import PrivateServer

READER = BrokerUser("reader", "r/e:a@d%er", configure="^reader", read=".*")

LISTENING = "0A"
"""A state in /proc/net/tcp. Source: the kernel's include/net/tcp_states.h."""

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture(scope="module")
def postgres() -> Iterator[PrivatePostgres]:
    with PrivatePostgres(durable=False) as server:
        yield server


@pytest.fixture(scope="module")
def rabbitmq() -> Iterator[PrivateRabbitMQ]:
    with PrivateRabbitMQ([READER]) as server:
        yield server


# PostgreSQL


def test_postgres_is_ready_for_logical_replication(postgres: PrivatePostgres) -> None:
    with psycopg.connect(postgres.dsn("postgres"), autocommit=True) as connection:
        connection.execute("SELECT pg_create_logical_replication_slot('s', 'pgoutput', temporary => true)")
        assert connection.info.server_version >= 150000
        assert connection.info.parameter_status("server_encoding") == "UTF8"


def test_postgres_wants_the_password(postgres: PrivatePostgres) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(postgres.dsn("postgres", password="wrong"))


def test_postgres_keeps_its_port_and_data_over_a_restart(postgres: PrivatePostgres) -> None:
    dsn, pid = postgres.dsn("postgres"), postgres.pid
    execute(dsn, "CREATE TABLE before_restart AS SELECT 7 AS n")
    postgres.restart()
    assert postgres.pid != pid
    assert postgres.dsn("postgres") == dsn
    assert execute(dsn, "SELECT n FROM before_restart") == 7


def test_postgres_comes_back_after_somebody_killed_it(postgres: PrivatePostgres) -> None:
    dsn = postgres.dsn("postgres")
    execute(dsn, "CREATE TABLE before_kill AS SELECT 8 AS n")
    with psycopg.connect(dsn):  # a backend that has to notice first
        os.kill(postgres.pid, signal.SIGKILL)
        postgres.process.wait(10)
        postgres.start()
    assert execute(dsn, "SELECT n FROM before_kill") == 8


@needs_proc
def test_postgres_comes_back_although_a_backend_of_the_killed_one_is_busy(postgres: PrivatePostgres) -> None:
    connection = psycopg.connect(postgres.dsn("postgres"))
    connection.pgconn.send_query(b"DO 'BEGIN LOOP END LOOP; END'")  # never asks whether its server still lives
    postgres.kill()
    postgres.start()
    connection.close()
    assert execute(postgres.dsn("postgres"), "SELECT 1") == 1


def test_starting_a_running_server_does_nothing(postgres: PrivatePostgres) -> None:
    pid = postgres.pid
    postgres.start()
    assert postgres.pid == pid


def test_a_port_that_somebody_took_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with bound_socket(0) as occupied:
        occupied.listen()
        taken = [occupied.getsockname()[1]]
        offers = iter([taken, free_ports(1)])
        monkeypatch.setattr(server_module, "free_ports", lambda _: next(offers))
        with PrivatePostgres(durable=False) as server:
            assert server.port not in taken
            assert execute(server.dsn("postgres"), "SELECT 1") == 1


def test_a_failed_start_tells_why_and_leaves_nothing() -> None:
    server = PrivatePostgres(settings={"no_such_setting": "1"})
    with pytest.raises(ServerFailed, match="no_such_setting") as failure:
        server.start()
    assert server.password not in str(failure.value)
    with pytest.raises(RuntimeError):
        _ = server.directory


# RabbitMQ


def test_a_user_without_write_permission_cannot_publish(rabbitmq: PrivateRabbitMQ) -> None:
    with pika.BlockingConnection(pika.URLParameters(rabbitmq.amqp_url(READER.name))) as connection:
        channel = connection.channel()
        channel.queue_declare("reader.inbox", durable=True)
        assert channel.basic_get("reader.inbox") == (None, None, None)
        channel.confirm_delivery()
        with pytest.raises(pika.exceptions.ChannelClosedByBroker) as refused:
            channel.basic_publish("", "reader.inbox", b"never")
    assert refused.value.reply_code == 403


def test_rabbitmq_keeps_its_ports_and_messages_over_a_restart_and_a_kill(rabbitmq: PrivateRabbitMQ) -> None:
    # In this order: RabbitMQ 3.10 loses a quorum queue when it is killed within a second of the declaration.
    places = rabbitmq.amqp_url(), rabbitmq.management_url
    publish(rabbitmq, "kept", b"over a restart")
    rabbitmq.restart()
    assert (rabbitmq.amqp_url(), rabbitmq.management_url) == places
    assert get(rabbitmq, "kept") == b"over a restart"

    publish(rabbitmq, "kept", b"over a kill")
    os.kill(rabbitmq.pid, signal.SIGKILL)
    rabbitmq.process.wait(10)
    rabbitmq.start()
    assert get(rabbitmq, "kept") == b"over a kill"


# Both


@needs_proc
def test_everything_listens_on_127_0_0_1_only(postgres: PrivatePostgres, rabbitmq: PrivateRabbitMQ) -> None:
    assert listening(postgres) == {("127.0.0.1", postgres.port)}
    sockets = listening(rabbitmq)
    assert {("127.0.0.1", rabbitmq.port), ("127.0.0.1", rabbitmq.management_port)} < sockets
    assert len(sockets) == 4  # and distribution, and epmd
    assert {address for address, _ in sockets} == {"127.0.0.1"}


@needs_proc
def test_two_of_each_run_at_once_and_closing_leaves_nothing(
    postgres: PrivatePostgres, rabbitmq: PrivateRabbitMQ
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
    assert execute(postgres.dsn("postgres"), "SELECT 1") == 1
    publish(rabbitmq, "still-here", b"here")


def execute(dsn: str, statement: str) -> object:
    """The first value of the result, if it has one."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        row = cursor.fetchone() if cursor.description else None
        return row and row[0]


def publish(server: PrivateRabbitMQ, queue: str, body: bytes) -> None:
    """Into a durable quorum queue, confirmed."""
    with pika.BlockingConnection(pika.URLParameters(server.amqp_url())) as connection:
        channel = connection.channel()
        channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})
        channel.confirm_delivery()
        channel.basic_publish("", queue, body, pika.BasicProperties(delivery_mode=2), mandatory=True)


def get(server: PrivateRabbitMQ, queue: str) -> bytes | None:
    with pika.BlockingConnection(pika.URLParameters(server.amqp_url())) as connection:
        _, _, body = connection.channel().basic_get(queue, auto_ack=True)
        return body


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
