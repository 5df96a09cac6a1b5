"""What stands in the tables of the agency and its suppliers."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from tests.acceptance.saga_world.agency import Journey
from tests.acceptance.saga_world.stage import AGENCY, CALLER, SUPPLIERS
from tests.support.database import Database
from tests.support.waiting import eventually

SETTLE_S: Final = 60.0
"""How long a saga may take to come to where a test wants it."""


@dataclass(frozen=True)
class Trip:
    """A saga, and what it is about."""

    saga_id: UUID
    journey: Journey

    @property
    def id(self) -> UUID:
        return self.journey.trip_id


@dataclass(frozen=True)
class Told:
    """An event of a saga's log."""

    event: str
    step: str | None
    attempt: int | None
    reason: str | None


class Books:
    """Reads them, and waits for what shall stand there."""

    def __init__(self) -> None:
        self.databases: dict[str, Database] = {}
        self.trips: list[Trip] = []
        """The sagas of this story."""

    async def until_held(self, where: str, key: int) -> None:
        """Wait until somebody waits for this advisory lock: a gate, or a halt."""
        await eventually(lambda: self.held(where, key))

    def held(self, where: str, key: int) -> list[str]:
        """Who waits for it: the names of the processes."""
        text = (
            "SELECT application_name FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory'"
            " AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            " AND NOT granted AND (classid::bigint << 32) | objid::bigint = %s"
        )
        return [str(name) for (name,) in self.databases[where].query(text, key)]

    async def until_caller_is_gone(self) -> None:
        """Wait until PostgreSQL has ended what a caller was doing who was killed, the one way or the other."""
        text = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s"
        await eventually(lambda: self.databases[AGENCY].value(text, CALLER) == 0)

    def about(self, journey: Journey) -> list[Trip]:
        """The sagas about a journey, whoever has started them."""
        text = "SELECT id FROM relay.saga WHERE state ->> 'trip_id' = %s"
        return [Trip(UUID(str(id)), journey) for (id,) in self.databases[AGENCY].query(text, str(journey.trip_id))]

    def status(self, trip: Trip) -> str:
        """Of the saga."""
        return str(self.databases[AGENCY].value("SELECT status FROM relay.saga WHERE id = %s", trip.saga_id))

    def reason(self, trip: Trip) -> str | None:
        """Why the saga is undone, or suspended."""
        return self.databases[AGENCY].value("SELECT reason FROM relay.saga WHERE id = %s", trip.saga_id)  # type: ignore[return-value]

    def state(self, trip: Trip) -> dict[str, Any]:
        """What the saga knows."""
        return self.databases[AGENCY].value("SELECT state FROM relay.saga WHERE id = %s", trip.saga_id)  # type: ignore[return-value]

    async def until(self, trip: Trip, *statuses: str, within_s: float = SETTLE_S) -> None:
        """Wait until the saga is there; fail with its story."""
        try:
            await eventually(lambda: self.status(trip) in statuses, within_s)
        except AssertionError:
            told = "\n".join(str(event) for event in self.story(trip))
            raise AssertionError(f"{trip.saga_id} is {self.status(trip)}, not {statuses}:\n{told}") from None

    async def until_all_end(self, trips: Iterable[Trip] | None = None, within_s: float = SETTLE_S) -> None:
        """Wait until all sagas are completed or compensated."""
        ids = [trip.saga_id for trip in (self.trips if trips is None else trips)]
        text = "SELECT count(*) FROM relay.saga WHERE id = ANY(%s) AND status NOT IN ('COMPLETED', 'COMPENSATED')"
        try:
            await eventually(lambda: self.databases[AGENCY].value(text, ids) == 0, within_s)
        except AssertionError:
            left = "SELECT status, step, count(*) FROM relay.saga WHERE id = ANY(%s) GROUP BY 1, 2 ORDER BY 3 DESC"
            raise AssertionError(f"these have not ended: {self.databases[AGENCY].query(left, ids)}") from None

    async def until_told(self, trip: Trip, event: str, step: str | None = None, within_s: float = SETTLE_S) -> None:
        """Wait for an event in the saga's log."""
        await eventually(lambda: any((told.event, told.step) == (event, step) for told in self.story(trip)), within_s)

    def story(self, trip: Trip) -> list["Told"]:
        """The log of the saga."""
        text = "SELECT event, step, attempt, reason FROM relay.saga_log WHERE saga_id = %s ORDER BY ordinal"
        return [Told(*row) for row in self.databases[AGENCY].query(text, trip.saga_id)]  # type: ignore[arg-type]

    def told_at(self, trip: Trip, event: str) -> datetime:
        """When an event was told that is told once."""
        text = "SELECT at FROM relay.saga_log WHERE saga_id = %s AND event = %s"
        return self.databases[AGENCY].value(text, trip.saga_id, event)  # type: ignore[return-value]

    def steps(self, trip: Trip, event: str) -> list[str]:
        """The steps to which this happened, in its order."""
        return [str(told.step) for told in self.story(trip) if told.event == event]

    def diary(self, trip: Trip) -> list[str]:
        """What the agency itself has done for a trip."""
        return [
            str(entry) for (entry,) in self._of(AGENCY, trip, "SELECT entry FROM diary WHERE trip = %s ORDER BY id")
        ]

    def ledger(self, trip: Trip) -> list[str]:
        """The commands that suppliers have carried out for a trip, in any order."""
        text = "SELECT command FROM ledger WHERE trip = %s"
        return sorted(str(command) for name in SUPPLIERS for (command,) in self._of(name, trip, text))

    def tried(self, where: str, trip: Trip, what: type[object] | str) -> int:
        """How often a handler has been called."""
        name = what if isinstance(what, str) else what.__name__
        text = "SELECT count(*) FROM tried WHERE trip = %s AND what = %s"
        return int(self.databases[where].value(text, trip.id, name))  # type: ignore[call-overload, no-any-return]

    def taken(self, supplier: str, what: str) -> tuple[int, int]:
        """How much of it is taken, and the most that ever was."""
        ((taken, most),) = self.databases[supplier].query("SELECT taken, most FROM stock WHERE what = %s", what)
        return taken, most  # type: ignore[return-value]

    def _of(self, where: str, trip: Trip, text: str) -> list[tuple[object, ...]]:
        return self.databases[where].query(text, trip.id)
