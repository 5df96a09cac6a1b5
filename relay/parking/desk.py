"""The operator's side of parking: what is parked, and what the relay is asked to do about it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString, NamedTuple, Self

import psycopg
from psycopg import Connection, sql
from psycopg.rows import class_row

from relay.errors import RelayError
from relay.parking.index import Reason
from relay.parking.request import ASKED, PROGRESS, Action
from relay.wal.connection import prepared, refusal


@dataclass(frozen=True, slots=True)
class Entry:
    """One parked message. The names and their meaning are a contract: `relay parked list --format json` prints them."""

    source: str
    slot: str
    commit_lsn: str
    """Together with `ordinal`: where it lies in the stream."""
    ordinal: int
    id: str
    kind: str
    aggregate_type: str
    aggregate_id: str
    type: str
    destination: str | None
    reason: str
    first: bool
    """Whether it is the first of its aggregate, kind and destination: those that are not wait behind it."""
    detail: str
    created_at: datetime | None
    parked_at: datetime
    parked_seconds: float


@dataclass(frozen=True, slots=True)
class Sheet(Entry):
    """One parked message, whole."""

    correlation_id: str | None
    reply_to: str | None
    causation_id: str | None
    operation: str | None
    capture: str
    """The name of the capture that it came by."""
    headers: str
    payload: str
    """The body as it was captured; one that is no text in UTF-8, as \\x and hexadecimal digits."""


class Selection(NamedTuple):
    """Which messages are meant: those for which everything holds that is given."""

    ids: tuple[str, ...] = ()
    aggregate: tuple[str, str] | None = None
    """Type and id."""
    reason: Reason | None = None

    @property
    def columns(self) -> dict[str, object]:
        """As the tables have them."""
        aggregate_type, aggregate_id = self.aggregate or (None, None)
        return {
            "ids": list(self.ids) or None,
            "aggregate_type": aggregate_type,
            "aggregate_id": aggregate_id,
            "reason": self.reason,
        }


class Progress(NamedTuple):
    """How far a request has come."""

    state: str
    published: int
    dropped: int
    still_parked: int
    detail: str | None


_NUMBERED: LiteralString = """
    WITH matched AS (
        SELECT *, (%(ids)s::text[] IS NULL OR id = ANY (%(ids)s))
            AND (%(aggregate_type)s::text IS NULL OR aggregate_type = %(aggregate_type)s)
            AND (%(aggregate_id)s::text IS NULL OR aggregate_id = %(aggregate_id)s)
            AND (%(reason)s::text IS NULL OR reason = %(reason)s) AS matches
        FROM relay.parked WHERE slot = %(slot)s
    ), numbered AS (
        SELECT *, row_number() OVER (
                PARTITION BY aggregate_type, aggregate_id, kind, destination ORDER BY commit_lsn, ordinal) AS number,
            bool_or(matches) OVER (PARTITION BY aggregate_type, aggregate_id, kind, destination) AS lane_matches
        FROM matched)
"""

_ENTRY: LiteralString = """
    SELECT %(source)s::text AS source, slot, commit_lsn::text, ordinal, id, kind, aggregate_type, aggregate_id, type,
           destination, reason, number = 1 AS first, detail, created_at, parked_at,
           extract(epoch FROM clock_timestamp() - parked_at)::float AS parked_seconds
"""

_SHEET: LiteralString = """,
           correlation_id, reply_to, causation_id, operation, capture, headers,
           CASE WHEN binary_payload IS NULL THEN payload ELSE '\\x' || encode(binary_payload, 'hex') END AS payload
"""

_EACH: LiteralString = " FROM numbered WHERE matches ORDER BY commit_lsn, ordinal LIMIT %(limit)s"

_LANES: LiteralString = " FROM numbered WHERE lane_matches ORDER BY commit_lsn, ordinal"

_COUNT: LiteralString = "SELECT count(*) FROM numbered WHERE matches"


class Desk:
    """Where an operator asks about the parked messages of one source, and what is to become of them."""

    def __init__(self, connection: Connection, source: str, slot: str) -> None:
        self._connection = connection
        self._source = source
        self._slot = slot

    @classmethod
    @contextmanager
    def open(cls, source: str, dsn: str, slot: str) -> Iterator[Self]:
        """Connect. Whatever PostgreSQL refuses meanwhile is raised as SourceAway or another SourceError."""
        try:
            with psycopg.connect(prepared(dsn, "saga-relay parked"), autocommit=True) as connection:
                yield cls(connection, source, slot)
        except psycopg.Error as error:
            raise refusal(error, dsn) from None

    def entries(self, selection: Selection, limit: int | None = None) -> list[Entry]:
        """The messages that are selected, in the order of the stream."""
        cursor = self._connection.cursor(row_factory=class_row(Entry))
        return cursor.execute(_NUMBERED + _ENTRY + _EACH, self._named(selection, limit)).fetchall()

    def lanes(self, selection: Selection) -> list[Entry]:
        """All messages of the lanes that have one that is selected: what a request would be about."""
        cursor = self._connection.cursor(row_factory=class_row(Entry))
        return cursor.execute(_NUMBERED + _ENTRY + _LANES, self._named(selection)).fetchall()

    def sheets(self, message_id: str) -> list[Sheet]:
        """Everything about the messages with this id: one, unless a slot was made anew in between."""
        cursor = self._connection.cursor(row_factory=class_row(Sheet))
        return cursor.execute(_NUMBERED + _ENTRY + _SHEET + _EACH, self._named(Selection((message_id,)))).fetchall()

    def count(self, selection: Selection) -> int:
        """How many messages are selected."""
        row = self._connection.execute(_NUMBERED + _COUNT, self._named(selection)).fetchone()
        return row[0] if row else 0

    def ask(self, action: Action, selection: Selection, timeout_s: float, *, first_only: bool = False) -> "Asked":
        """Ask the relay. Nobody takes the request once `timeout_s` have passed without news of it."""
        self._connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(PROGRESS)))
        query: LiteralString = """
            WITH asked AS (
                INSERT INTO relay.parked_request
                    (slot, action, ids, aggregate_type, aggregate_id, reason, first_only, expires_at)
                VALUES (%(slot)s, %(action)s, %(ids)s, %(aggregate_type)s, %(aggregate_id)s, %(reason)s, %(first_only)s,
                    clock_timestamp() + make_interval(secs => %(timeout_s)s))
                RETURNING id)
            SELECT id, pg_notify(%(channel)s, %(slot)s) FROM asked
        """
        named = self._named(selection) | {
            "action": action,
            "first_only": first_only,
            "timeout_s": timeout_s,
            "channel": ASKED,
        }
        ((number, _),) = self._connection.execute(query, named).fetchall()
        return Asked(self._connection, self._slot, number, timeout_s)

    def _named(self, selection: Selection, limit: int | None = None) -> dict[str, object]:
        return selection.columns | {"slot": self._slot, "source": self._source, "limit": limit}


class Asked:
    """A request, as seen by who has asked it."""

    def __init__(self, connection: Connection, slot: str, number: int, timeout_s: float) -> None:
        self._connection = connection
        self._slot = slot
        self._timeout_s = timeout_s
        self.number = number

    def wait(self) -> Progress:
        """Wait until it is done, or until the relay has made no progress for so long, with this or another request."""
        seen = self.progress()
        deadline = time.monotonic() + self._timeout_s
        while seen.state != "done":
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                break
            news = list(self._connection.notifies(timeout=left_s, stop_after=1))
            if any(one.payload == self._slot for one in news):
                deadline = time.monotonic() + self._timeout_s
                self._stay()
                seen = self.progress()
        return seen

    def withdraw(self) -> bool:
        """Take it back, and tell whether that was possible: not once a relay has taken it."""
        query: LiteralString = "DELETE FROM relay.parked_request WHERE id = %s AND state = 'asked'"
        return self._connection.execute(query, (self.number,)).rowcount == 1

    def progress(self) -> Progress:
        """How far it has come."""
        query: LiteralString = (
            "SELECT state, published, dropped, still_parked, detail FROM relay.parked_request WHERE id = %s"
        )
        row = self._connection.execute(query, (self.number,)).fetchone()
        if row is None:
            raise RelayError(f"somebody has deleted request {self.number} from relay.parked_request")
        return Progress(*row)

    def _stay(self) -> None:
        """The relay is at work: do not let the request expire while it waits behind another."""
        query: LiteralString = """
            UPDATE relay.parked_request SET expires_at = clock_timestamp() + make_interval(secs => %s)
            WHERE id = %s AND state = 'asked'
        """
        self._connection.execute(query, (self._timeout_s, self.number))
