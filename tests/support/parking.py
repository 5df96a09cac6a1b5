"""Parking with a stand-in for the broker: a session of a relay, and the operators."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import psycopg

from relay.capture.message import Kind, Message
from relay.daemon.parking import Parking
from relay.log import SourceLog
from relay.parking.desk import Desk, Selection
from relay.parking.index import Reason, Refusal, Verdict
from relay.parking.request import ASKED, Action
from relay.tasks import end
from relay.wal.lsn import Lsn, Position, parse_lsn
from tests.support.database import Database
from tests.support.waiting import eventually

SLOT = "relay_orders"
STREAMING = "INSERT INTO relay.checkpoint (slot, state) VALUES (%s, 'streaming') ON CONFLICT DO NOTHING"
"""The first start of the source is long past, unless the test says otherwise."""


def message(number: int, aggregate: str = "7", *, kind: Kind = Kind.COMMAND, **fields: object) -> Message:
    """The message with this number."""
    given: dict[str, object] = {
        "id": f"m{number}",
        "kind": kind,
        "aggregate_type": "order",
        "aggregate_id": aggregate,
        "type": "Ship",
        "destination": None if kind is Kind.EVENT else "stock",
        "correlation_id": None,
        "reply_to": None,
        "causation_id": None,
        "operation": None,
        "headers": b"{}",
        "payload": b'{"n": %d}' % number,
        "created_at": "2025-06-01 12:00:00.123456+00",
    }
    return Message(**(given | fields))  # type: ignore[arg-type]


def at(number: int, ordinal: int = 0) -> Position:
    return Position(Lsn(number * 0x100), ordinal)


class Broker:
    """Stands in for the outlet: what it is given reaches a queue, but what it is told to refuse; in order per lane."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.refuses: set[str] = set()
        self.stops_after: int | None = None
        self.then: Callable[[], None] = lambda: None
        self.open = asyncio.Event()
        self.open.set()
        self.given = asyncio.Event()

    @property
    def heard(self) -> list[str]:
        return [message.id for message in self.messages]

    async def replay(self, message: Message, position: Position) -> Refusal | None:
        self.given.set()
        if len(self.messages) == self.stops_after:
            self.open.clear()
        await self.open.wait()
        if message.id in self.refuses:
            return Refusal(Reason.NACKED, f"{message.id} was refused")
        self.messages.append(message)
        self.then()
        return None


class Relay:
    """The parts of a relay that parking has to do with: a session of it."""

    def __init__(self, parking: Parking, broker: Broker) -> None:
        self.parking = parking
        self.broker = broker
        self.settled: list[str] = []
        self.running = asyncio.ensure_future(parking.run(broker.replay, lambda: None))

    def park(self, *messages: Message, reason: Reason = Reason.UNROUTABLE, detail: str = "no queue is bound") -> None:
        """Park messages at the positions of their numbers."""
        for one in messages:
            self.parking.park(one, position_of(one), reason, detail, lambda one=one: self.settled.append(one.id))  # type: ignore[misc]

    def comes(self, one: Message) -> Verdict:
        """The stream brings a message: it is published or parked as the outlet would."""
        verdict = self.parking.index.verdict(position_of(one), one.lane)
        if verdict is Verdict.PUBLISH:
            self.broker.messages.append(one)
        elif verdict is Verdict.PARK:
            self.park(one, reason=self.parking.index.reason(one.lane), detail="it waits")
        return verdict

    async def stored(self) -> None:
        """Everything that was parked is in the table."""
        await eventually(lambda: self.parking.pending == 0 or self.running.done())
        if self.running.done():
            await self.running

    async def failure(self) -> BaseException:
        """What has stopped the source."""
        async with asyncio.timeout(20):
            await asyncio.wait({self.running})
        error = self.running.exception()
        assert error is not None
        return error

    async def until_done(self, number: int, database: Database) -> tuple[object, ...]:
        """A request is done: what was published, dropped, and is still parked."""
        text = "SELECT published, dropped, still_parked FROM relay.parked_request WHERE id = %s AND state = 'done'"
        await eventually(lambda: self.running.done() or database.query(text, number))
        if self.running.done():
            await self.running
        ((published, dropped, left),) = database.query(text, number)
        return published, dropped, left


def position_of(one: Message) -> Position:
    return at(int(one.id[1:]))


@asynccontextmanager
async def session(database: Database, broker: Broker, *, limit: int = 1000) -> AsyncIterator[Relay]:
    """A session of a relay, which ends as a crash would: nothing more is said to anybody."""
    database.query(STREAMING, SLOT)
    parking = await Parking.open(database.dsn, "test", SLOT, limit, SourceLog("orders", SLOT))
    relay = Relay(parking, broker)
    try:
        yield relay
    finally:
        await end(relay.running)
        await parking.close()


def parked(database: Database) -> list[tuple[object, ...]]:
    return database.query("SELECT id, reason FROM relay.parked ORDER BY commit_lsn, ordinal")


def ids(database: Database) -> list[object]:
    return [row[0] for row in parked(database)]


def remembered(database: Database) -> list[tuple[object, ...]]:
    return database.query("SELECT id, outcome FROM relay.unparked ORDER BY commit_lsn, ordinal")


def ask(
    database: Database, action: Action, selection: Selection, *, first_only: bool = False, timeout_s: float = 30
) -> int:
    """An operator asks, and does not wait."""
    with Desk.open("orders", database.dsn, SLOT) as desk:
        return desk.ask(action, selection, timeout_s, first_only=first_only).number


async def done(relay: Relay, database: Database, number: int) -> tuple[object, ...]:
    relay.parking.wake()
    return await relay.until_done(number, database)


def waiting_for_a_lock(database: Database) -> bool:
    return bool(database.value("SELECT count(*) FROM pg_locks WHERE NOT granted"))


class Slot:
    """A real slot, and positions of commits after its own."""

    def __init__(self, database: Database) -> None:
        self._database = database
        database.query("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", SLOT)
        database.query(STREAMING, SLOT)

    def position(self) -> Position:
        """Where a transaction commits now."""
        self._database.query("SELECT pg_logical_emit_message(true, 'test', '')")
        return Position(parse_lsn(str(self._database.value("SELECT pg_current_wal_insert_lsn()::text"))), 0)

    def advance(self) -> None:
        """Confirm everything, and let PostgreSQL move the slot's restart_lsn behind it.

        For that it needs to find its running transactions in the WAL, which a checkpoint puts there.
        """
        for _ in range(3):
            self._database.query("CHECKPOINT")
            self.position()
        self.confirm()

    def confirm(self) -> None:
        """Confirm everything."""
        self._database.query("SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", SLOT)


@asynccontextmanager
async def listening(database: Database, relay: Relay) -> AsyncIterator[None]:
    """The relay hears what operators ask, as its SQL connection does."""

    async def listen(connection: psycopg.AsyncConnection) -> None:
        async for _ in connection.notifies():
            relay.parking.wake()

    async with await psycopg.AsyncConnection.connect(database.dsn, autocommit=True) as connection:
        await connection.execute(f"LISTEN {ASKED}")
        task = asyncio.ensure_future(listen(connection))
        try:
            yield
        finally:
            await end(task)


async def asked(database: Database) -> None:
    """Somebody has asked something."""
    await eventually(lambda: database.query("SELECT 1 FROM relay.parked_request"))


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


class Operator:
    """Somebody at a terminal."""

    def __init__(self, database: Database) -> None:
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")} | {
            "RELAY_SOURCE__0__DSN": database.dsn,
            "RELAY_SOURCE__0__NAME": "orders",
        }

        self._started: list[asyncio.subprocess.Process] = []

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        """`relay parked`, not waited for."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "relay", "parked", *arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._environment,
        )
        self._started.append(process)
        return process

    async def leave(self) -> None:
        """Nothing of it runs any more."""
        for process in self._started:
            if process.returncode is None:
                process.kill()
                await process.communicate()

    async def __call__(self, *arguments: str) -> Ended:
        return await ended(await self.start(*arguments))


async def ended(process: asyncio.subprocess.Process) -> Ended:
    out, err = await process.communicate()
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())
