"""One source's pump, between a stream and an outlet that do as they are told."""

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from relay.capture.captures import OUTBOX_TABLE, Captures
from relay.capture.message import Message
from relay.capture.outbox import COLUMNS, CaptureError, OutboxCapture
from relay.daemon import pump as pump_module
from relay.daemon.progress import Progress, StreamGap, Transaction
from relay.daemon.pump import LongTransaction, Pump
from relay.errors import SourceAway
from relay.log import SourceLog
from relay.wal.description import Descriptions
from relay.wal.lsn import Lsn
from relay.wal.protocol import Keepalive, ProtocolError, XLogData

OUTBOX, ORDERS = 4001, 5001

CONFIRMED = Lsn(100)
"""Where the slot was confirmed when the pump began."""

NEVER_S = 3600.0


# What PostgreSQL sends.


def begin(commit_lsn: int = 0) -> XLogData:
    return _data(b"B" + struct.pack(">QqI", commit_lsn, 0, 42))


def commit(end: int) -> XLogData:
    return _data(b"C" + struct.pack(">BQQq", 0, end - 1, end, 0))


def relation(oid: int, name: str, columns: Sequence[str]) -> XLogData:
    described = b"".join(b"\0" + _text(column) + struct.pack(">Ii", 25, -1) for column in columns)
    return _data(b"R" + struct.pack(">I", oid) + _text(name.partition(".")[0]) + _text(name.partition(".")[2])
                 + b"d" + struct.pack(">H", len(columns)) + described)  # fmt: skip


def insert(oid: int, *values: str | None) -> XLogData:
    cells = b"".join(b"n" if v is None else b"t" + struct.pack(">I", len(v)) + v.encode() for v in values)
    return _data(b"I" + struct.pack(">I", oid) + b"N" + struct.pack(">H", len(values)) + cells)


def event(message_id: str, columns: Sequence[str] = COLUMNS) -> XLogData:
    row = {
        "id": message_id,
        "kind": "event",
        "aggregate_type": "order",
        "aggregate_id": "7",
        "type": "OrderCreated",
        "headers": "{}",
        "payload": f'{{"of": "{message_id}"}}',
        "created_at": "2025-06-01 12:00:00+00",
    }
    return insert(OUTBOX, *(row.get(column) for column in columns))


def outbox(columns: Sequence[str] = COLUMNS) -> XLogData:
    return relation(OUTBOX, "relay.outbox", columns)


def keepalive(wal_end: int, *, asks: bool = False) -> Keepalive:
    return Keepalive(Lsn(wal_end), asks)


def _data(message: bytes) -> XLogData:
    return XLogData(Lsn(0), Lsn(0), message)


def _text(value: str) -> bytes:
    return value.encode() + b"\0"


@dataclass
class FakeStream:
    """Gives what was put in, batch by batch, then nothing more; notes what is reported."""

    batches: "asyncio.Queue[list[XLogData | Keepalive]]" = field(default_factory=asyncio.Queue)
    reported: list[int] = field(default_factory=list)
    fails: Exception | None = None

    async def read(self) -> list[XLogData | Keepalive]:
        if self.fails is not None and self.batches.empty():
            raise self.fails
        return await self.batches.get()

    async def report(self, flush: Lsn) -> None:
        self.reported.append(flush)


@dataclass
class FakeOutlet:
    """Takes messages when there is room; settles them when it is told to."""

    published: list[Message] = field(default_factory=list)
    positions: list[tuple[int, int]] = field(default_factory=list)
    settled: list[Callable[[], None]] = field(default_factory=list)
    passed_by: list[Lsn] = field(default_factory=list)
    opened: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def has_room(self) -> bool:
        return self.opened.is_set()

    async def room(self) -> None:
        await self.opened.wait()

    def passed(self, lsn: Lsn) -> None:
        self.passed_by.append(lsn)

    def publish(self, message: Message, transaction: Transaction, ordinal: int) -> None:
        assert self.has_room
        self.published.append(message)
        self.positions.append((transaction.commit_lsn, ordinal))
        self.settled.append(transaction.settle)

    @property
    def ids(self) -> list[str]:
        return [message.id for message in self.published]


@dataclass
class Stage:
    """A pump that reads, and reports in a moment when there is something to say."""

    stream: FakeStream
    outlet: FakeOutlet
    pump: Pump
    reading: "asyncio.Task[None]"

    async def receives(self, *frames: XLogData | Keepalive) -> None:
        """PostgreSQL sends these at once; the pump has all the time it needs."""
        self.stream.batches.put_nowait(list(frames))
        await self.settles_down()

    async def settles(self, *numbers: int) -> None:
        """The broker confirms messages, by the order of publishing from 0."""
        for number in numbers:
            self.outlet.settled[number]()
        await self.settles_down()

    async def settles_down(self) -> None:
        """Turns of the loop, and no time: a slow machine makes no difference."""
        for _ in range(100):
            await asyncio.sleep(0)


@asynccontextmanager
async def pumping(*, every_s: float = NEVER_S) -> AsyncIterator[Stage]:
    stream: Any = FakeStream()
    outlet: Any = FakeOutlet()
    outlet.opened.set()
    captures = Captures("7", {OUTBOX_TABLE: OutboxCapture()})
    pump = Pump(stream, outlet, CONFIRMED, captures, Descriptions("", ""), SourceLog("shop", "relay_shop"))
    reading = asyncio.create_task(pump.read())
    reporting = asyncio.create_task(pump.report(every_s))
    try:
        yield Stage(stream, outlet, pump, reading)
    finally:
        for task in (reading, reporting):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


@pytest.fixture
async def stage(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    monkeypatch.setattr(pump_module, "REPORT_PAUSE_S", 0)
    async with pumping() as stage:
        yield stage


async def test_a_committed_row_is_published_byte_for_byte(stage: Stage) -> None:
    await stage.receives(begin(), outbox(), event("a"), commit(200))
    (message,) = stage.outlet.published
    assert (message.id, message.type, message.payload) == ("a", "OrderCreated", b'{"of": "a"}')


async def test_a_message_is_known_by_its_commit_and_its_number_in_the_transaction(stage: Stage) -> None:
    """The same whenever it is read again: rows of other tables do not count."""
    await stage.receives(begin(190), outbox(), event("a"), relation(ORDERS, "public.orders", ["id"]))
    await stage.receives(insert(ORDERS, "7"), event("b"), commit(200), begin(290), event("c"), commit(300))
    assert stage.outlet.positions == [(190, 0), (190, 1), (290, 0)]


async def test_the_position_is_reported_only_after_the_message_is_settled(stage: Stage) -> None:
    await stage.receives(begin(), outbox(), event("a"), commit(200))
    assert stage.outlet.ids == ["a"]
    assert stage.stream.reported == []
    await stage.settles(0)
    assert stage.stream.reported == [200]


async def test_a_settled_transaction_waits_for_the_one_before_it(stage: Stage) -> None:
    await stage.receives(begin(), outbox(), event("a"), commit(200), begin(), event("b"), commit(300))
    await stage.settles(1)
    assert stage.stream.reported == []
    await stage.settles(0)
    assert stage.stream.reported == [300]


async def test_a_message_settled_before_its_commit_is_read_is_reported_with_the_commit(stage: Stage) -> None:
    await stage.receives(begin(), outbox(), event("a"))
    await stage.settles(0)
    assert stage.stream.reported == []
    await stage.receives(commit(200))
    assert stage.stream.reported == [200]


async def test_the_rows_of_a_transaction_are_published_while_it_is_still_being_read(stage: Stage) -> None:
    await stage.receives(begin(), outbox(), event("a"))
    assert stage.outlet.ids == ["a"]


async def test_a_rolled_back_transaction_is_never_sent_and_nothing_of_it_is_published(stage: Stage) -> None:
    """PostgreSQL sends what is committed and nothing else: between two transactions there is only the log moving on."""
    await stage.receives(begin(), outbox(), event("a"), commit(200), keepalive(250), begin(), event("c"), commit(300))
    await stage.settles(0, 1)
    assert stage.outlet.ids == ["a", "c"]
    assert stage.stream.reported == [300]


async def test_an_insert_into_another_table_is_ignored_and_its_transaction_passed(stage: Stage) -> None:
    await stage.receives(begin(), relation(ORDERS, "public.orders", ["id", "total"]), insert(ORDERS, "7", "12.50"))
    await stage.receives(commit(200))
    assert stage.outlet.ids == []
    assert stage.stream.reported == [200]


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(b"Y" + struct.pack(">I", 7) + b"public\0mood\0", id="type"),
        pytest.param(b"O" + struct.pack(">Q", 7) + b"upstream\0", id="origin"),
        pytest.param(b"T" + struct.pack(">IBI", 1, 0, OUTBOX), id="truncate"),
        pytest.param(b"D" + struct.pack(">I", OUTBOX) + b"K" + struct.pack(">H", 1) + b"n", id="delete"),
        pytest.param(b"U" + struct.pack(">I", OUTBOX) + b"N" + struct.pack(">H", 1) + b"n", id="update"),
        pytest.param(b"M" + struct.pack(">BQ", 1, 7) + b"heartbeat\0" + struct.pack(">I", 0), id="logical message"),
    ],
)
async def test_other_changes_are_no_messages(stage: Stage, other: bytes) -> None:
    await stage.receives(begin(), outbox(), _data(other), event("a"), commit(200))
    await stage.settles(0)
    assert stage.outlet.ids == ["a"]
    assert stage.stream.reported == [200]


async def test_a_new_order_of_the_columns_is_followed_in_mid_stream(stage: Stage) -> None:
    backwards = ["priority", *reversed(COLUMNS)]
    await stage.receives(begin(), outbox(), event("a"), commit(200))
    await stage.receives(begin(), outbox(backwards), event("b", backwards), commit(300))
    first, second = stage.outlet.published
    assert (second.id, second.payload) == ("b", b'{"of": "b"}')
    assert (first.type, first.kind, first.created_at) == (second.type, second.kind, second.created_at)


async def test_an_outbox_that_loses_a_column_stops_the_source_before_it_makes_anything_up(stage: Stage) -> None:
    await stage.receives(begin(), outbox([column for column in COLUMNS if column != "payload"]))
    with pytest.raises(CaptureError, match="payload"):
        await stage.reading


async def test_a_keepalive_that_asks_is_answered_at_once_and_with_what_is_safe(stage: Stage) -> None:
    await stage.receives(keepalive(50, asks=True))
    assert stage.stream.reported == [CONFIRMED]
    await stage.receives(begin(), outbox(), event("a"), commit(200), keepalive(250, asks=True))
    assert stage.stream.reported == [CONFIRMED, CONFIRMED]


async def test_a_keepalive_that_asks_in_a_transaction_is_answered_and_means_nothing_else(stage: Stage) -> None:
    await stage.receives(begin(), keepalive(5000, asks=True))
    assert stage.stream.reported == [CONFIRMED]


async def test_an_idle_source_follows_the_log(stage: Stage) -> None:
    await stage.receives(keepalive(500))
    assert stage.stream.reported == [500]


async def test_a_keepalive_tells_what_the_stream_is_past_but_not_in_a_transaction(stage: Stage) -> None:
    await stage.receives(keepalive(500), begin(), keepalive(600))
    assert stage.outlet.passed_by == [500]


async def test_a_keepalive_with_no_news_is_not_answered(stage: Stage) -> None:
    await stage.receives(keepalive(CONFIRMED), keepalive(60))
    assert stage.stream.reported == []


async def test_status_updates_go_out_on_a_timer_while_the_broker_blocks() -> None:
    """In the middle of a transaction, with no room to publish: PostgreSQL must not take us for dead."""
    async with pumping(every_s=0.001) as stage:
        stage.outlet.opened.clear()
        await stage.receives(begin(), outbox(), event("a"))
        await asyncio.sleep(0.01)
        assert stage.outlet.ids == []
        assert set(stage.stream.reported) == {CONFIRMED}


async def test_many_confirms_make_few_status_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pump_module, "REPORT_PAUSE_S", NEVER_S)
    async with pumping() as stage:
        await stage.receives(begin(), outbox(), event("0"), commit(1000))
        for number in range(1, 100):
            await stage.stream.batches.put([begin(), event(str(number)), commit(1000 + number)])
        await stage.settles_down()
        for settled in stage.outlet.settled:
            settled()
            await asyncio.sleep(0)
        await stage.settles_down()
        assert len(stage.outlet.settled) == 100
        assert len(stage.stream.reported) == 1


async def test_a_stop_between_transactions_ends_the_reading_before_the_next(stage: Stage) -> None:
    await stage.receives(begin(), outbox(), event("a"), commit(200))
    stage.pump.stop()
    assert stage.pump.at_rest
    stage.reading.cancel()
    stage.stream.batches.put_nowait([begin(), event("b"), commit(300)])
    await asyncio.wait_for(stage.pump.read(), 1)
    assert stage.outlet.ids == ["a"]
    assert not stage.stream.batches.empty()


async def test_a_stop_in_mid_transaction_reads_on_to_its_commit_and_no_further(stage: Stage) -> None:
    await stage.receives(begin(), outbox(), event("a"))
    stage.pump.stop()
    assert not stage.pump.at_rest
    await stage.receives(event("b"), commit(200), begin(), event("c"), commit(300))
    await asyncio.wait_for(stage.reading, 1)
    assert stage.outlet.ids == ["a", "b"]
    await stage.settles(0, 1)
    assert stage.stream.reported == [200]


async def test_the_end_of_the_stream_ends_the_reading(stage: Stage) -> None:
    await stage.receives(begin(), outbox(), event("a"), commit(200))
    stage.stream.fails = SourceAway("the replication stream has ended")
    await stage.receives()
    with pytest.raises(SourceAway):
        await stage.reading
    assert stage.stream.reported == []


async def test_a_transaction_inside_another_is_a_gap_in_the_stream(stage: Stage) -> None:
    await stage.receives(begin(), begin())
    with pytest.raises(StreamGap, match="begins before the one before it has ended"):
        await stage.reading


@pytest.mark.parametrize("frames", [[commit(200)], [outbox(), event("a")]], ids=["commit", "row"])
async def test_what_comes_outside_of_a_transaction_is_a_gap_in_the_stream(
    stage: Stage, frames: list[XLogData | Keepalive]
) -> None:
    await stage.receives(*frames)
    with pytest.raises(StreamGap):
        await stage.reading


async def test_bytes_that_cannot_be_understood_end_the_reading(stage: Stage) -> None:
    await stage.receives(_data(b"?"))
    with pytest.raises(ProtocolError):
        await stage.reading


@dataclass
class Clock:
    now_s: float = 1000.0

    def monotonic(self) -> float:
        return self.now_s


def test_a_transaction_that_takes_long_to_read_is_logged_with_its_counts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    monkeypatch.setattr(pump_module, "time", clock)
    caplog.set_level("INFO")
    progress, long = Progress(CONFIRMED), LongTransaction(SourceLog("shop", "relay_shop"))
    transaction = progress.begin(Lsn(190), datetime.now(UTC))
    long.look(transaction)
    for _ in range(3):
        progress.publish()
    transaction.settle()
    clock.now_s += 4.9
    long.look(transaction)
    assert caplog.records == []
    clock.now_s += 0.2
    long.look(transaction)
    clock.now_s += 1
    long.look(transaction)
    long.look(None)
    first, last = caplog.records
    assert [record.action for record in (first, last)] == ["transaction_long"] * 2
    assert (first.messages, first.settled) == (3, 1)
    assert "0/BE has been read for 5 s" in first.getMessage()
    assert "0/BE was read for 6 s" in last.getMessage()


async def test_a_transaction_counts_as_long_from_its_beginning_although_the_broker_had_no_room_at_once(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    monkeypatch.setattr(pump_module, "time", clock)
    caplog.set_level("INFO")
    stage.outlet.opened.clear()
    await stage.receives(begin(190), outbox(), event("a"))
    clock.now_s += 6
    stage.outlet.opened.set()
    await stage.settles_down()
    assert ["0/BE has been read for 6 s" in record.getMessage() for record in caplog.records] == [True]


def test_a_transaction_that_took_long_is_logged_at_its_end_if_there_was_no_moment_before(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    monkeypatch.setattr(pump_module, "time", clock)
    caplog.set_level("INFO")
    long = LongTransaction(SourceLog("shop", "relay_shop"))
    long.look(Progress(CONFIRMED).begin(Lsn(190), datetime.now(UTC)))
    clock.now_s += 6
    long.look(None)
    assert ["0/BE was read for 6 s" in record.getMessage() for record in caplog.records] == [True]


def test_a_transaction_that_is_read_at_once_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    long = LongTransaction(SourceLog("shop", "relay_shop"))
    long.look(Progress(CONFIRMED).begin(Lsn(190), datetime.now(UTC)))
    long.look(None)
    assert caplog.records == []
