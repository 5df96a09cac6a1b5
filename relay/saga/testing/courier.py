"""The relay and the broker of a run: committed rows of each outbox become deliveries, until they are acknowledged."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, LiteralString
from uuid import UUID

from psycopg.rows import class_row

from relay.broker.properties import (
    AGGREGATE_ID,
    AGGREGATE_TYPE,
    CAUSATION_ID,
    COMMANDS,
    EVENTS,
    OPERATION,
    REPLIES,
    Delivery,
    HeaderValue,
    Properties,
)
from relay.saga.testing.journal import Journal
from relay.saga.testing.world import Connections, World

EXCHANGES: Final = {"event": EVENTS, "command": COMMANDS, "reply": REPLIES}

_LAST: Final[LiteralString] = "SELECT coalesce(max(seq), 0), clock_timestamp()::text FROM relay.outbox"

_ROWS: Final[LiteralString] = """
    SELECT id, seq, kind, type, aggregate_type, aggregate_id, destination, correlation_id, reply_to, causation_id,
           operation, headers, payload::text AS payload, extract(epoch FROM created_at)::bigint AS sent_at
    FROM relay.outbox WHERE seq > %s ORDER BY seq
"""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of relay.outbox."""

    id: UUID
    seq: int
    kind: str
    type: str
    aggregate_type: str
    aggregate_id: str
    destination: str | None
    correlation_id: str | None
    reply_to: str | None
    causation_id: str | None
    operation: str | None
    headers: dict[str, Any]
    payload: str
    sent_at: int


@dataclass(frozen=True, slots=True)
class Letter:
    """A message on its way to one service. `key` tells it from all others, also in another process."""

    key: str
    to: str
    delivery: Delivery

    @property
    def what(self) -> str:
        """The message, for people."""
        return f"{self.delivery.properties.type} from {self.key.partition(' ')[0]} to {self.to}"


class Courier:
    """Knows what is on its way. Who commits in a database tells it so: `look_again`."""

    def __init__(self, world: World, connections: Connections, journal: Journal) -> None:
        self._world = world
        self._connections = connections
        self._journal = journal
        self._sent: dict[str, list[Letter]] = {}

    async def forget_what_was(self) -> None:
        """Leave out what earlier runs have sent. At the beginning of a run, once."""
        for name, conn in self._connections.items():
            if name not in self._journal.since:
                ((last, now),) = await (await conn.execute(_LAST)).fetchall()
                self._journal.begin_after(name, last, now)

    async def on_their_way(self) -> list[Letter]:
        """What is committed and not acknowledged, in the order of the rows, one database after the other."""
        for name, conn in sorted(self._connections.items()):
            if name not in self._sent:
                cursor = await conn.cursor(row_factory=class_row(Row)).execute(_ROWS, (self._journal.since[name].seq,))
                self._sent[name] = [letter for row in await cursor.fetchall() for letter in self._letters(name, row)]
        sent = (letter for name in sorted(self._sent) for letter in self._sent[name])
        return [letter for letter in sent if not self._journal.is_acknowledged(letter.key)]

    def look_again(self, database: str) -> None:
        """Something has been committed there."""
        self._sent.pop(database, None)

    def _letters(self, database: str, row: Row) -> Iterator[Letter]:
        first = self._journal.since[database].seq
        for service in self._addressees(row):
            # Counted from the beginning of the run, so that a run which is played again has the same keys.
            yield Letter(f"{database} {row.seq - first} {service}", service, _delivery(row))

    def _addressees(self, row: Row) -> list[str]:
        if row.destination is None:
            return [service.name for service in self._world.services if row.type in service.queue.events]
        return [self._world.service(row.destination).name]


def _delivery(row: Row) -> Delivery:
    """As the relay publishes it, as far as the library reads that."""
    own = {AGGREGATE_ID: row.aggregate_id, CAUSATION_ID: row.causation_id, OPERATION: row.operation}
    headers: dict[str, HeaderValue] = {AGGREGATE_TYPE: row.aggregate_type}
    headers |= {name: value for name, value in own.items() if value is not None}
    properties = Properties(
        message_id=str(row.id),
        type=row.type,
        correlation_id=row.correlation_id,
        reply_to=row.reply_to,
        timestamp=row.sent_at,
        headers=row.headers | headers,
    )
    key = row.destination or f"{row.aggregate_type}.{row.type}"
    return Delivery(0, EXCHANGES[row.kind], key, False, properties, row.payload.encode())
