"""One process of a run: it carries messages, fires timers, and ends at a boundary, or when everything has settled."""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from random import Random
from typing import Any, Final, LiteralString

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from relay.messaging import Outcome, Unprocessable
from relay.saga import log
from relay.saga.record import Record, Status, rebuild
from relay.saga.testing.courier import Courier, Letter
from relay.saga.testing.disorder import Disorder
from relay.saga.testing.journal import Journal
from relay.saga.testing.world import Connections, World

STEPS_MAX: Final = 5_000
"""So many messages and timers in one process, and the sagas still have not settled: then they never will."""

TRIES_MAX: Final = 5
"""How often a message whose handler raises is delivered before that counts as a failure of the run."""

TIMERS: Final = 1_000
"""Timers that are fired in one transaction when all sagas have ended: none of them does anything any more."""

LATER: Final = datetime(9999, 1, 1, tzinfo=UTC)
"""By then every timer is due."""

_NOTE: Final[LiteralString] = """
    INSERT INTO relay.inbox (consumer, message_id) VALUES ('crash_everywhere', %s) ON CONFLICT DO NOTHING
"""

_UNFINISHED: Final[LiteralString] = "SELECT EXISTS (SELECT FROM relay.saga WHERE ended_at IS NULL)"

_SAGAS: Final[LiteralString] = """
    SELECT id, type, status, state, progress, reason FROM relay.saga WHERE started_at >= %s::timestamptz ORDER BY id
"""


class NeverSettles(AssertionError):
    """There is no end of messages and timers."""


class Stuck(AssertionError):
    """A saga has not ended, and there is nothing that it could wait for."""


class Contradiction(AssertionError):
    """What the log of a saga tells is not what its row says."""


class Life:
    """Runs the world until it has settled. `boundary` is called, with a text for people, where a process may crash."""

    def __init__(
        self,
        world: World,
        connections: Connections,
        journal: Journal,
        boundary: Callable[[str], None],
        disorder: Disorder,
    ) -> None:
        self._world = world
        self._connections = connections
        self._journal = journal
        self._boundary = boundary
        self._disorder = disorder
        self._courier = Courier(world, connections, journal)
        self._tries: Counter[str] = Counter()

    async def live(self, run: str, seed: str) -> None:
        """Begin, unless an earlier process of the run has, and go on until nothing is left to do; then judge.

        `run` is a name that no other run has, `seed` decides what begins.
        """
        await self._courier.forget_what_was()
        for service in self._world.begin:
            await self._begin(service, f"{run} {service}", Random(f"{seed} {service}"))
        for _ in range(STEPS_MAX):
            if not await self._step():
                break
        else:
            raise NeverSettles(f"nothing has settled after {STEPS_MAX} messages and timers")
        for service in self._world.orchestrators:
            await _judge(self._connections[service], self._journal.since[service].time)
        await self._world.invariants(self._connections)

    async def _begin(self, service: str, note: str, chance: Random) -> None:
        """The note in the inbox commits with what begins: so it happens once, whatever crashes."""
        conn = self._connections[service]
        async with conn.transaction():
            if (await conn.execute(_NOTE, (note,))).rowcount == 0:
                return
            await self._world.begin[service](conn, chance)
            self._boundary(f"before the commit: {service} begins")
        self._journal.tell(f"{service} has begun")
        self._boundary(f"after the commit: {service} begins")

    async def _step(self) -> bool:
        letters = await self._courier.on_their_way()
        if letters and not self._disorder.hurries():
            await self._deliver(self._disorder.pick(letters))
            return True
        return await self._fire() or bool(letters)

    async def _deliver(self, letter: Letter) -> None:
        conn = self._connections[letter.to]
        try:
            async with conn.transaction():
                outcome = await self._world.service(letter.to).handle(letter.delivery, conn)
                self._boundary(f"before the commit: {letter.what}")
        except Unprocessable:
            raise
        except Exception as error:  # a handler may raise anything, and is given the message again
            self._tries[letter.key] += 1
            self._journal.tell(f"{letter.what} raises {type(error).__name__}: {error}")
            if self._tries[letter.key] == TRIES_MAX:
                raise
            return
        if outcome is Outcome.DEFERRED:
            raise AssertionError(f"{letter.what} waits behind what relay.deferred had before the run")
        self._courier.look_again(letter.to)
        self._journal.tell(f"{letter.what}: {outcome.value}")
        self._boundary(f"after the commit, before the acknowledgement: {letter.what}")
        if not self._journal.was_handed_out_again(letter.key) and self._disorder.comes_again(letter):
            self._journal.hand_out_again(letter.key)
        else:
            self._journal.acknowledge(letter.key)
        self._boundary(f"after the acknowledgement: {letter.what}")

    async def _fire(self) -> bool:
        """Fire the timer that is due first, whenever that may be; all of them at once when the sagas have ended."""
        fired = 0
        for service, orchestrator in self._world.orchestrators.items():
            conn = self._connections[service]
            async with conn.transaction():
                ((unfinished,),) = await (await conn.execute(_UNFINISHED)).fetchall()
                fired = await orchestrator.fire_due(conn, limit=1 if unfinished else TIMERS, at=LATER)
                if fired:
                    self._boundary(f"before the commit: {service} fires a timer")
            if fired:
                self._courier.look_again(service)
                self._journal.tell(f"{service} has fired {fired} timers")
                self._boundary(f"after the commit: {service} fires a timer")
                return True
        return False


@asynccontextmanager
async def connected(dsns: Mapping[str, str]) -> AsyncIterator[dict[str, AsyncConnection[TupleRow]]]:
    """A connection to each database, by the name of its service."""
    async with AsyncExitStack() as stack:
        opened = {}
        for name, dsn in dsns.items():
            conn = await AsyncConnection.connect(dsn, autocommit=True, application_name="crash_everywhere")
            opened[name] = await stack.enter_async_context(conn)
            # It is processes that crash here, not PostgreSQL: what is committed is there, written to disk or not.
            await conn.execute("SET synchronous_commit = off")
        yield opened


async def _judge(conn: AsyncConnection[Any], since: str) -> None:
    """What holds for every saga of a run: it has an end, or a person knows, and its log tells what its row does."""
    for saga_id, name, status, state, progress, reason in await (await conn.execute(_SAGAS, (since,))).fetchall():
        record = Record.of(status, state, progress, reason)
        if not record.ended and record.status is not Status.SUSPENDED:
            raise Stuck(f"saga {name} {saga_id} is {status}, and nothing is on its way ({record.under_way})")
        told = rebuild(await log.read(conn, saga_id))
        if told != record:
            raise Contradiction(f"the log of saga {name} {saga_id} tells of {told}, its row of {record}")
