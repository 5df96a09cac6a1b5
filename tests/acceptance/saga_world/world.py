"""The whole of it: four databases, a virtual host, the relay, and the services, each a process."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from uuid import uuid4

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from relay.broker.connection import Connection
from relay.broker.topology import ServiceQueue, declare_service
from tests.acceptance.saga_world import agency as agency_side
from tests.acceptance.saga_world import plans as plans_side
from tests.acceptance.saga_world import suppliers as supplier_side
from tests.acceptance.saga_world.__main__ import plans_pool
from tests.acceptance.saga_world.agency import Agency, Journey
from tests.acceptance.saga_world.books import Books, Trip
from tests.acceptance.saga_world.plans import How, Plans, gate
from tests.acceptance.saga_world.stage import AGENCY, CALLER, NAMES, Runner, Servers
from tests.support.database import Database, Databases
from tests.support.process import Process, configured_relay

PLENTY: Final = 1_000_000


class World(Books):
    """What the stories are told with.

    `agencies` is how many instances of the agency there are, `attempts` how often a supplier tries a message.
    """

    def __init__(self, servers: Servers, directory: Path, agencies: int = 1, attempts: int = 5) -> None:
        super().__init__()
        self.servers = servers
        self._directory = directory
        self._databases = Databases(servers.postgres)
        self._stack = AsyncExitStack()
        self._numbers = {AGENCY: agencies}
        self.attempts = attempts
        self._offered: set[tuple[str, str]] = set()
        self.runners: dict[str, Runner] = {}
        self.agency: Agency
        self.connection: AsyncConnection[TupleRow]

    # The stage

    async def __aenter__(self) -> Self:
        try:
            await self._set_up()
        except BaseException:
            await self._tear_down()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            print("\n".join(runner.last_words() for runner in self.runners.values()), flush=True)
        await self._tear_down()

    async def _set_up(self) -> None:
        for name in NAMES:
            self.databases[name] = self._furnish(name)
        await self._declare_queues()
        self._add("relay", lambda: configured_relay(self._config(), self.servers.url("relay")))
        for name in NAMES:
            number = self._numbers.get(name, 1)
            for runner in (name,) if number == 1 else (f"{name}{i}" for i in range(1, number + 1)):
                self._add(runner, self._service(name, runner))
        for runner in self.runners.values():
            await runner.start()
        for runner in self.runners.values():
            await runner.ready()
        await self.runners["relay"].process.until("streaming", times=len(NAMES))  # type: ignore[union-attr]
        await self.connect()

    async def connect(self) -> None:
        """To the agency's database, as its API would be; once more after that was away."""
        await self._stack.aclose()
        dsn = self.databases[AGENCY].role_dsn(AGENCY)
        pool = await self._stack.enter_async_context(plans_pool(dsn))
        self.agency = Agency(Plans(pool))
        self.connection = await self._stack.enter_async_context(await AsyncConnection.connect(dsn, autocommit=True))

    async def _tear_down(self) -> None:
        for runner in self.runners.values():
            await runner.close()
        await self._stack.aclose()
        for database in self.databases.values():
            await asyncio.to_thread(self._databases.drop, database)
        await asyncio.to_thread(self._databases.drop_all)
        await asyncio.to_thread(self.servers.rabbit.delete, f"vhosts/{self.servers.vhost}")

    def _furnish(self, name: str) -> Database:
        database = self._databases.create()
        schema = agency_side.SCHEMA if name == AGENCY else supplier_side.SCHEMA
        database.query(f"GRANT CONNECT ON DATABASE {database.name} TO {name}")
        database.query(f"SELECT relay.grant_service('{name}')")
        database.query(schema + plans_side.SCHEMA)
        database.query(f"GRANT USAGE ON SCHEMA public TO {name}; GRANT ALL ON ALL TABLES IN SCHEMA public TO {name}")
        return database

    async def _declare_queues(self) -> None:
        connection = await Connection.open(self.servers.url(), name="test")
        for name in NAMES:
            await declare_service(await connection.channel(), ServiceQueue(name))
        await connection.close()

    def _config(self) -> Path:
        path = self._directory / f"{self.servers.vhost}.toml"
        sources = (f'[[source]]\nname = "{made.name}"\ndsn = "{made.dsn}"\n' for made in self.databases.values())
        path.write_text("\n".join(sources))
        return path

    def _service(self, name: str, application: str) -> Callable[[], Process]:
        dsn = f"{self.databases[name].role_dsn(name)}?application_name={application}"
        environment = {
            "WORLD_DSN": dsn,
            "WORLD_AMQP_URL": self.servers.url(name),
            "WORLD_ATTEMPTS": str(self.attempts),
        }
        return lambda: Process(["tests.acceptance.saga_world", name], environment)

    def _add(self, name: str, make: Callable[[], Process]) -> None:
        self.runners[name] = Runner(name, make)

    async def restart(self, name: str) -> None:
        """Start again what was killed, and wait until it works."""
        await self.runners[name].start()
        await self.runners[name].ready()

    # What happens

    def journey(self, **about: Any) -> Journey:
        """A journey that can be planned before it begins. Everything that it needs is there in plenty."""
        journey = Journey(trip_id=uuid4(), **{"traveller": f"t{uuid4().hex[:8]}", **about})
        self.offer("flights", journey.flight)
        self.offer("flights", journey.tickets)
        self.offer("bank", journey.traveller)
        self.offer("hotel", journey.hostel)
        if journey.hotel is not None:
            self.offer("hotel", journey.hotel)
        return journey

    def offer(self, supplier: str, what: str, capacity: int = PLENTY) -> None:
        """There is so much of it, unless the test has said otherwise before."""
        if (supplier, what) not in self._offered:
            self.databases[supplier].query("INSERT INTO stock VALUES (%s, %s)", what, capacity)
            self._offered.add((supplier, what))

    def plan(self, where: str, journey: Journey, what: str | type[object], how: How, times: int = 1) -> None:
        """Let something go wrong. `what` is a command, or in the agency itself the name of a function."""
        name = what if isinstance(what, str) else what.__name__
        text = "INSERT INTO plan (trip, what, how, times) VALUES (%s, %s, %s, %s)"
        self.databases[where].query(text, journey.trip_id, name, how.value, times)

    async def start(self, saga: str, journey: Journey | None = None) -> Trip:
        """Start a saga, as the agency's API would."""
        journey = journey or self.journey()
        async with self.connection.transaction():
            saga_id = await self.agency.orchestrator.start(self.agency.sagas[saga], journey, self.connection)
        trip = Trip(saga_id, journey)
        self.trips.append(trip)
        return trip

    async def abort(self, trip: Trip) -> bool:
        """Somebody has changed his mind."""
        async with self.connection.transaction():
            return await self.agency.orchestrator.abort(trip.saga_id, "changed his mind", self.connection)

    def calling(self, verb: str, *about: str) -> Process:
        """Start a saga or abort one, as `start` and `abort` do, in a process of its own, which the test may kill."""
        dsn = f"{self.databases[AGENCY].role_dsn(AGENCY)}?application_name={CALLER}"
        return Process(["tests.acceptance.saga_world.caller", verb, *about], {"WORLD_DSN": dsn})

    @asynccontextmanager
    async def gate_shut(self, where: str, journey: Journey) -> AsyncIterator[None]:
        """Those whose plan is to HOLD wait, within their transactions, until this is over."""
        key = gate(journey.trip_id)
        async with await AsyncConnection.connect(self.databases[where].superuser_dsn, autocommit=True) as connection:
            await connection.execute("SELECT pg_advisory_lock(%s)", (key,))
            yield
