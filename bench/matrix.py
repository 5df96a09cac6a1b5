"""What is measured: the short run, and the whole matrix. Pure."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

REPEATS: Final = 3
TABLE_REPEATS: Final = 2
"""The same, of the capture of a table. One less: the short run has its 15 minutes."""

ROWS: Final = 100_000
"""Messages of a measurement: several seconds of the fastest line that ends in RabbitMQ."""
LARGE_ROWS: Final = 50_000
"""The same, of the large payload."""

SMALL_BYTES: Final = 200
LARGE_BYTES: Final = 2_000

LATENCY_RATES: Final = (100, 1000)
"""Commits a second, of one message each."""

SAGAS: Final = 1_000
"""Sagas that are started as fast as their service takes them: several seconds of work."""

SAGA_RATES: Final = (50, 100)
"""Sagas started a second, where it is asked how long one takes."""

SAGA_PHASE_S: Final = 4.0
"""How long each of these rates is kept."""


class Kind(StrEnum):
    """What is run. The words are those of the tables."""

    WAL = "pg_recvlogical to /dev/null"
    SINK = "relay into the sink"
    BARE = "bare publisher"
    RELAY = "relay"
    DEBEZIUM = "Debezium"


class Queue(StrEnum):
    """The types of RabbitMQ's queues."""

    CLASSIC = "classic"
    QUORUM = "quorum"


class Capture(StrEnum):
    """Where the messages come from."""

    OUTBOX = "outbox"
    TABLE = "table"
    """Changes of a plain table, in Debezium's envelope."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Rows of an outbox, or changes of the rows of a plain table: a message each."""

    payload_bytes: int
    """Of a message's payload; of the values of a row, as text, where it is a table's."""
    per_transaction: int
    rows: int
    capture: Capture = Capture.OUTBOX

    @property
    def one_transaction(self) -> bool:
        """Whether it is all of one transaction."""
        return self.per_transaction == self.rows


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the throughput table. Without a queue where RabbitMQ has no part in it."""

    kind: Kind
    shape: Shape
    queue: Queue | None = None

    @property
    def line(self) -> str:
        """What the tables call it."""
        return f"{self.kind}, table capture" if self.shape.capture is Capture.TABLE else self.kind

    def __str__(self) -> str:
        rows = "one transaction" if self.shape.one_transaction else f"{self.shape.per_transaction:,} per transaction"
        queue = f", {self.queue} queue" if self.queue else ""
        return f"{self.line}{queue}: {self.shape.rows:,} messages of {self.shape.payload_bytes} B, {rows}"


@dataclass(frozen=True, slots=True)
class LatencyCase:
    """One line of the latency table."""

    queue: Queue
    rate: int

    def __str__(self) -> str:
        return f"latency, {self.queue} queue: {self.rate:,} messages/s"


@dataclass(frozen=True, slots=True)
class Stage:
    """Cases whose databases exist at the same time. Each round measures all of them once."""

    cases: tuple[Case, ...]
    latencies: tuple[Queue, ...] = ()
    rounds: int = REPEATS

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The databases, the largest first: what is written later is read past by the slots before it."""
        return tuple(sorted({case.shape for case in self.cases}, key=lambda shape: -shape.rows))


@dataclass(frozen=True, slots=True)
class SagaCase:
    """One line of the table of sagas. Without a rate, orders are placed as fast as they are taken."""

    orders: int
    rate: int | None = None

    def __str__(self) -> str:
        pace = "as fast as they are taken" if self.rate is None else f"{self.rate:,} a second"
        return f"CreateOrder: {self.orders:,} orders, {pace}"


@dataclass(frozen=True, slots=True)
class SagaStage:
    """Cases that are measured in one shop, in turn: it takes longer to start than any of them."""

    cases: tuple[SagaCase, ...]
    rounds: int = REPEATS


SAGA_STAGE: Final = SagaStage(
    (SagaCase(SAGAS), *(SagaCase(round(rate * SAGA_PHASE_S), rate) for rate in SAGA_RATES)),
)
"""Throughput, then latency."""

STANDARD: Final = Shape(SMALL_BYTES, 10, ROWS)
"""The shape that the targets are about."""

STANDARD_TABLE: Final = Shape(SMALL_BYTES, 10, ROWS, Capture.TABLE)
"""The same of a plain table."""

SMALL_TRANSACTION: Final = Shape(SMALL_BYTES, 10_000, 10_000)
LARGE_TRANSACTION: Final = Shape(SMALL_BYTES, 1_000_000, 1_000_000)
HUGE_TRANSACTION: Final = Shape(SMALL_BYTES, 10_000_000, 10_000_000)

HUGE_DISK_GB: Final = 25.0
"""What the huge transaction takes for a while: its rows, their WAL, and the copy that PostgreSQL decodes from."""


def short_run(debezium: bool, tables: bool, sagas: bool) -> tuple[Stage | SagaStage, ...]:
    """One payload size, 10 messages a transaction, and the large transaction; before them, sagas and a plain table.

    `debezium`, `tables` and `sagas` say whether there is a peer, and whether the relay that is measured captures
    tables, and has a demo with sagas. What has few measurements comes first: when time runs short, one of many repeats
    of an outbox's is left out, and no line. The large transaction, which takes longest, is measured once.
    """
    return _stages(debezium, tables, sagas, large_rounds=1)


def whole_matrix(debezium: bool, tables: bool, sagas: bool) -> tuple[Stage | SagaStage, ...]:
    """The short run with all its repeats, every other shape, and ten million rows once."""
    others = [
        Shape(payload, per_transaction, ROWS if payload == SMALL_BYTES else LARGE_ROWS)
        for payload in (SMALL_BYTES, LARGE_BYTES)
        for per_transaction in (1, 10, 1000)
    ]
    others.remove(STANDARD)
    stages = [Stage(_throughput(shape, debezium and shape.per_transaction == 10)) for shape in others]
    huge = Stage((Case(Kind.SINK, HUGE_TRANSACTION),), rounds=1)
    return (*_stages(debezium, tables, sagas, large_rounds=REPEATS), *stages, huge)


def _stages(debezium: bool, tables: bool, sagas: bool, large_rounds: int) -> tuple[Stage | SagaStage, ...]:
    large = Stage((Case(Kind.RELAY, LARGE_TRANSACTION, Queue.CLASSIC),), rounds=large_rounds)
    small = Case(Kind.RELAY, SMALL_TRANSACTION, Queue.CLASSIC)
    outbox = Stage((*_throughput(STANDARD, debezium), small), tuple(Queue))
    return (*[SAGA_STAGE] * sagas, *[_table(debezium)] * tables, large, outbox)


def _throughput(shape: Shape, debezium: bool) -> tuple[Case, ...]:
    through_broker = [Kind.BARE, Kind.RELAY] + [Kind.DEBEZIUM] * debezium
    return (
        Case(Kind.WAL, shape),
        Case(Kind.SINK, shape),
        *(Case(kind, shape, queue) for queue in Queue for kind in through_broker),
    )


def _table(debezium: bool) -> Stage:
    kinds = [Kind.RELAY] + [Kind.DEBEZIUM] * debezium
    return Stage(tuple(Case(kind, STANDARD_TABLE, Queue.CLASSIC) for kind in kinds), rounds=TABLE_REPEATS)
