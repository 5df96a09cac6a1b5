"""The servers that are measured with: a private PostgreSQL, and a RabbitMQ that is new for each measurement."""

import json
import os
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import pika

from bench.helper import MeasurementFailed
from bench.wire import Client, FrameError
from relay.broker.properties import EVENTS
from relay.broker.topology import EXCHANGES
from relay.demo.servers.host import find_program
from relay.demo.servers.postgres import PrivatePostgres
from relay.demo.servers.rabbitmq import PrivateRabbitMQ

IMAGE: Final = "rabbitmq:4-management"

DOCKER_S: Final = 120.0
"""How long one Docker command may take, the download of the image being the longest."""

START_S: Final = 90.0
"""How long RabbitMQ may take until it lets a client in."""

POLL_S: Final = 0.1

QUEUE: Final = "bench"

POSTGRES: Final = {
    "max_wal_size": "16GB",
    "checkpoint_timeout": "1h",
    "autovacuum": "off",
}
"""fsync, full_page_writes and synchronous_commit are on, as in production. What would begin by itself in the middle of
a measurement is put off: checkpoints, which we ask for between them, and autovacuum."""


@dataclass(frozen=True, slots=True)
class Broker:
    """A RabbitMQ that nobody has used yet."""

    url: str
    version: str
    place: str
    """Where it runs, in a word."""
    pid: int
    """Of its first process, which has started all others."""


def programs(server: PrivatePostgres) -> Path:
    """Where the programs of a PostgreSQL that runs are: its clients beside the server itself."""
    command = server.process.args
    if not isinstance(command, tuple):
        raise TypeError("the server was started by a list of words")
    return Path(os.fsdecode(command[0])).parent


BrokerMaker = Callable[[], AbstractContextManager[Broker]]


def postgres() -> PrivatePostgres:
    """A durable PostgreSQL, not yet started."""
    return PrivatePostgres(durable=True, settings=POSTGRES)


def broker_maker(image: str) -> BrokerMaker:
    """Containers where a Docker engine on this machine answers and has the image, else the RabbitMQ of the PATH."""
    if find_program("docker") is None or _docker("info", "--format", "{{.ServerVersion}}").returncode != 0:
        return private_broker
    if _docker("image", "inspect", image).returncode != 0 and _docker("pull", "--quiet", image).returncode != 0:
        return private_broker
    return partial(container, image)


@contextmanager
def private_broker() -> Iterator[Broker]:
    """The RabbitMQ of the PATH, with its data in a directory of its own."""
    with PrivateRabbitMQ() as server:
        yield _ready(server.amqp_url(), "private", server.pid)


@contextmanager
def container(image: str) -> Iterator[Broker]:
    """RabbitMQ in a container, reached by the container's own address: Docker's port proxy would cost CPU time."""
    password = secrets.token_urlsafe(18)
    login = ("--env", "RABBITMQ_DEFAULT_USER=bench", "--env", f"RABBITMQ_DEFAULT_PASS={password}")
    started = _docker("run", "--detach", "--rm", *login, image)
    if started.returncode != 0:
        raise MeasurementFailed(f"docker run {image}: {started.stderr.strip()}")
    name = started.stdout.strip()
    try:
        (found,) = json.loads(_docker("inspect", name).stdout)
        host = next(network["IPAddress"] for network in found["NetworkSettings"]["Networks"].values())
        yield _ready(f"amqp://bench:{password}@{host}:5672/%2F", "container", found["State"]["Pid"])
    finally:
        _docker("rm", "--force", "--volumes", name)


def declare(url: str, queue_type: str) -> None:
    """The exchanges of the relay and one durable queue of that type, to which every event goes."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    for name, kind in EXCHANGES.items():
        channel.exchange_declare(name, exchange_type=kind, durable=True)
    channel.queue_declare(QUEUE, durable=True, arguments={"x-queue-type": queue_type})
    channel.queue_bind(QUEUE, EVENTS, routing_key="#")
    connection.close()


def _ready(url: str, place: str, pid: int) -> Broker:
    deadline = time.monotonic() + START_S
    while True:
        try:
            with Client(url) as client:
                return Broker(url, client.version, place, pid)
        except (FrameError, OSError):
            if time.monotonic() > deadline:
                raise MeasurementFailed(f"RabbitMQ let nobody in within {START_S:g} s") from None
            time.sleep(POLL_S)


def _docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(("docker", *arguments), capture_output=True, text=True, timeout=DOCKER_S)
