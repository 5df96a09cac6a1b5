"""The retained outbox once more, for one queue: how a new subscriber learns what was said before it was there."""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import psycopg
from psycopg import sql

from relay.broker.connection import Connection
from relay.broker.publisher import Outcome, Publisher, Unsendable
from relay.capture.message import OUTBOX, CaptureError, Kind, Message
from relay.capture.outbox import COLUMNS, SCHEMA, TABLE, to_message
from relay.capture.routing import Address, RouteTemplate, Routing
from relay.config import BrokerSettings, OnUnroutable, SourceSettings
from relay.config.capture import OutboxCapture
from relay.daemon.addressing import content_types, envelopes
from relay.daemon.sending import Routes
from relay.errors import BrokerAway, BrokerError
from relay.wal.connection import connect, refusal
from relay.wal.lsn import NOWHERE, Position

DEFAULT_EXCHANGE: Final = ""
"""Every queue is bound to it under its own name. Source: AMQP 0-9-1, 3.1.3.1."""

LEFT_OUT_NAMED: Final = 10
"""So many of the messages that cannot be sent are named; the rest are counted."""

_NO_QUEUE: Final = re.compile(r"NOT_FOUND - no queue ")
"""The broker's words, in rabbit_misc."""


class QueueMissing(BrokerError):
    """The queue that messages are to be published to does not exist."""

    hint = "Declare the queue first, with its final arguments, and bind it. docs/republish.md has the order."


class Refused(BrokerError):
    """The queue took no more messages."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows of the outbox are meant: those for which everything holds that is given."""

    kinds: tuple[Kind, ...] = (Kind.EVENT,)
    types: tuple[str, ...] = ()
    aggregate_types: tuple[str, ...] = ()
    since: datetime | None = None
    """Created then or later."""
    until: datetime | None = None
    """Created before that."""
    from_seq: int | None = None
    """Inserted as this row or later."""

    @property
    def condition(self) -> sql.Composed:
        """As SQL. COPY takes no parameters, so the values are in it."""
        parts: list[sql.Composable] = [
            sql.SQL("{} = ANY ({}::text[])").format(sql.Identifier(column), sql.Literal(list(values)))
            for column, values in (
                ("kind", [str(kind) for kind in self.kinds]),
                ("type", self.types),
                ("aggregate_type", self.aggregate_types),
            )
            if values
        ]
        if self.since is not None:
            parts.append(sql.SQL("created_at >= {}").format(sql.Literal(self.since)))
        if self.until is not None:
            parts.append(sql.SQL("created_at < {}").format(sql.Literal(self.until)))
        if self.from_seq is not None:
            parts.append(sql.SQL("seq >= {}").format(sql.Literal(self.from_seq)))
        return sql.SQL(" AND ").join(parts or [sql.SQL("true")])


class Republish:
    """Publishes rows of the outbox to one queue, in the order of their `seq`, under their own ids.

    The rows are those that are visible when it begins, read one by one. It stops at the first message that the queue
    refuses; what cannot be sent at all is left out. What is counted below stays so when `run` raises.
    """

    def __init__(self, source: SourceSettings, broker: BrokerSettings, queue: str) -> None:
        self._source = source
        self._dsn = source.dsn.get_secret_value()
        self._url = broker.url.get_secret_value()
        self._max_message_bytes = broker.max_message_bytes
        self._queue = queue
        self._capture = _outbox_of(source)
        # Its capture's address is all that counts: there are none by type.
        address = Address(RouteTemplate.literal(DEFAULT_EXCHANGE), RouteTemplate.literal(queue))
        stop = {str(kind): OnUnroutable.STOP for kind in Kind}
        routing = Routing(by_capture={self._capture: address})
        self._routes = Routes(source.name, routing, envelopes(source), stop, content_types(source))
        self._open: dict[int, Message] = {}
        self._refusal: Refused | None = None
        self._news = asyncio.Event()
        self._next: int | None = None
        self.published = 0
        """Messages that the queue has confirmed."""
        self.left_out = 0
        """Messages that cannot be sent."""
        self.named: list[str] = []
        """The first of these, and why."""

    @property
    def resume_at(self) -> int | None:
        """The `seq` to go on from after an interruption; None when nothing was begun, or all is done."""
        return next(iter(self._open), self._next)

    async def run(self, selection: Selection) -> None:
        """Publish, and wait until all is confirmed.

        Raises QueueMissing before anything is sent; Refused; another BrokerError or SourceError when a server refuses
        or goes away.
        """
        connection = await Connection.open(self._url, name=f"saga-relay republish {self._source.name}")
        try:
            await self._verify_queue(connection)
            publisher: Publisher[int] = await Publisher.open(connection, self._settled, self._news.set)
            publisher.channel.closed.add_done_callback(lambda _: self._news.set())
            async with aclosing(self._rows(selection)) as rows:
                async for seq, message in rows:
                    await self._until(publisher, lambda: publisher.has_room)
                    self._next = seq
                    self._publish(publisher, seq, message)
            await self._until(publisher, lambda: not self._open)
            self._next = None
        finally:
            await connection.close()

    async def _verify_queue(self, connection: Connection) -> None:
        channel = await connection.channel()
        try:
            await channel.call(channel.raw.queue_declare, self._queue, passive=True)
        except BrokerAway as away:
            if _NO_QUEUE.search(str(away)):
                raise QueueMissing(f"there is no queue {self._queue} on RabbitMQ at {connection.where}") from None
            raise

    async def _rows(self, selection: Selection) -> AsyncGenerator[tuple[int, Message], None]:
        """The rows, in one statement and so in one snapshot. A policy that hides rows from the role is an error."""
        query = sql.SQL("COPY (SELECT seq, {} FROM {} WHERE {} ORDER BY seq) TO STDOUT").format(
            sql.SQL(", ").join(map(sql.Identifier, COLUMNS)), sql.Identifier(SCHEMA, TABLE), selection.condition
        )
        connection = await connect(self._dsn, name=f"saga-relay republish {self._source.name}")
        try:
            await connection.execute("SET row_security = off")
            async with connection.cursor() as cursor, cursor.copy(query) as copy:
                async for seq, *values in copy.rows():
                    texts = [None if value is None else value.encode() for value in values]
                    yield int(seq), to_message(texts, self._capture)
        except psycopg.Error as error:
            raise refusal(error, self._dsn) from None
        finally:
            await connection.close()

    def _publish(self, publisher: Publisher[int], seq: int, message: Message) -> None:
        """A message that cannot be sent was parked when the relay came to it, and nobody has ever had it."""
        try:
            if len(message.payload) > self._max_message_bytes:
                self._leave_out(message, f"its body has {len(message.payload)} bytes, more than max_message_bytes")
                return
            route = self._routes.of(message)
            varying = route.envelope.varying(message, Position(NOWHERE, seq))
            publisher.publish(route.template, varying, message.payload, seq)
        except (Unsendable, CaptureError) as error:
            self._leave_out(message, str(error))
        else:
            self._open[seq] = message

    def _leave_out(self, message: Message, why: str) -> None:
        self.left_out += 1
        if len(self.named) < LEFT_OUT_NAMED:
            self.named.append(f"{message}: {why}")

    def _settled(self, seq: int, outcome: Outcome) -> None:
        if outcome is Outcome.CONFIRMED:
            del self._open[seq]
            self.published += 1
        elif self._refusal is None:
            message = self._open[seq]
            if outcome is Outcome.NACKED:
                hint = "It is full, perhaps, or has no leader just now. Go on when it takes messages again."
                self._refusal = Refused(f"the queue {self._queue} refused {message}", hint)
            else:
                hint = "Somebody deleted it in the middle. Declare it again, and begin from the start."
                self._refusal = Refused(f"{message} came back: the queue {self._queue} is gone", hint)

    async def _until(self, publisher: Publisher[int], ready: Callable[[], bool]) -> None:
        """Wait for what the broker has to bring about. Raises why it does not.

        After a refusal that is when the broker has said what became of all that had left before: a queue may refuse one
        message before it confirms those in front of it.
        """
        closed = publisher.channel.closed
        while not closed.done():
            if self._refusal is not None and not publisher.in_flight:
                raise self._refusal
            if self._refusal is None and ready():
                return
            self._news.clear()
            await self._news.wait()
        raise self._refusal or closed.result()


def _outbox_of(source: SourceSettings) -> str:
    """The name of the capture of relay.outbox: its envelope is set there."""
    own = (one.name for one in source.capture if isinstance(one, OutboxCapture) and one.is_own)
    return next(own, OUTBOX)
