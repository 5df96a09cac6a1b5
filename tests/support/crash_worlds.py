"""Small worlds for the crash-everywhere runner: one that is right, and some that break in ways of their own.

An order takes credit from customers and goods from inventory, in parallel. Reserving adds to a sum: done twice, it
shows.
"""

import os
from random import Random
from uuid import UUID, uuid4

from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from pydantic import BaseModel

from relay.messaging import Command, Done, Event, Failure, Reply, Retry, Service, Transaction
from relay.saga import Orchestrator, Saga
from relay.saga.testing import World
from relay.saga.testing.world import Connections

CREDIT = 100
TABLES = {
    "orders": "CREATE TABLE purchase (id uuid PRIMARY KEY, amount int NOT NULL, state text NOT NULL)",
    "customers": "CREATE TABLE account (reserved int CHECK (reserved >= 0)); INSERT INTO account VALUES (0)",
    "inventory": "CREATE TABLE stock (held int CHECK (held >= 0), sold int); INSERT INTO stock VALUES (0, 0);"
    " CREATE TABLE seen (id uuid PRIMARY KEY, state text)",
}
LEAK_DSN = "CRASH_WORLD_LEAK_DSN"


class Purchase(BaseModel):
    id: UUID
    amount: int


class Settled(Event):
    id: UUID
    state: str


class Reserved(Reply): ...


class TooMuch(Failure): ...


class Reserve(Command):
    replies = (Reserved, TooMuch)
    amount: int


class Release(Command):
    amount: int


class Hold(Command): ...


class LetGo(Command): ...


class Sell(Command): ...


class Shop:
    """A correct world, unless it is told how to be broken."""

    def __init__(self, *, leaks: bool = False, trusts_the_order: bool = False, remembers: bool = False) -> None:
        self._leaks = leaks
        self._trusts_the_order = trusts_the_order
        self._remembers = remembers
        self._in_memory: list[str] = []
        self.orders = Service("orders")
        self.customers = Service("customers")
        self.inventory = Service("inventory")
        self.saga = self._define()
        self.orchestrator = Orchestrator(self.orders, self.saga, seed=1)
        self._take_part()

    def world(self) -> World:
        return World(
            services=[self.orders, self.customers, self.inventory],
            orchestrators={"orders": self.orchestrator},
            begin={"orders": self.begin},
            invariants=self.check,
        )

    async def begin(self, conn: AsyncConnection[TupleRow], chance: Random) -> None:
        await self.orchestrator.start(self.saga, Purchase(id=uuid4(), amount=chance.randint(1, 9)), conn)
        await self.orchestrator.start(self.saga, Purchase(id=uuid4(), amount=10 * CREDIT), conn)

    async def check(self, connections: Connections) -> None:
        states = await _rows(connections["orders"], "SELECT state, count(*), sum(amount) FROM purchase GROUP BY state")
        by_state = {state: (count, amount) for state, count, amount in states}
        assert set(by_state) <= {"approved", "cancelled"}, by_state
        count, amount = by_state.get("approved", (0, 0))
        ((reserved,),) = await _rows(connections["customers"], "SELECT reserved FROM account")
        ((held, sold),) = await _rows(connections["inventory"], "SELECT held, sold FROM stock")
        assert reserved == amount, f"{reserved} reserved, for orders of {amount}"
        assert (held, sold) == (0, count), f"{held} held and {sold} sold, for {count} orders"
        if self._trusts_the_order:
            seen = await _rows(connections["inventory"], "SELECT id, state FROM seen ORDER BY id")
            assert seen == await _rows(connections["orders"], "SELECT id, state FROM purchase ORDER BY id"), (
                "out of date"
            )

    def _define(self) -> Saga[Purchase]:
        saga = Saga("purchase", state=Purchase)

        @saga.local()
        async def create(state: Purchase, tx: Transaction) -> None:
            await tx.execute("INSERT INTO purchase VALUES (%s, %s, 'pending')", (state.id, state.amount))
            await self._tell(tx, state.id, "pending")

        @create.compensate
        async def cancel(state: Purchase, tx: Transaction) -> None:
            await tx.execute("UPDATE purchase SET state = 'cancelled' WHERE id = %s", (state.id,))
            await self._tell(tx, state.id, "cancelled")

        with saga.parallel():

            @saga.step(to="customers", retry=Retry(attempts=20, backoff="1s..1m"))
            def reserve(state: Purchase) -> Reserve:
                return Reserve(amount=state.amount)

            @saga.step(to="inventory", retry=Retry(attempts=20, backoff="1s..1m"))
            def hold(state: Purchase) -> Hold:
                return Hold()

        @reserve.on(Reserved)
        def reserved(state: Purchase, reply: Reserved) -> None: ...

        @reserve.on(TooMuch)
        def too_much(state: Purchase, reply: TooMuch) -> None: ...

        @reserve.compensate
        def release(state: Purchase) -> Release:
            return Release(amount=state.amount)

        @hold.compensate
        def let_go(state: Purchase) -> LetGo:
            return LetGo()

        @saga.local(pivot=True)
        async def approve(state: Purchase, tx: Transaction) -> None:
            await tx.execute("UPDATE purchase SET state = 'approved' WHERE id = %s", (state.id,))
            await self._tell(tx, state.id, "approved")

        @saga.step(to="inventory", retry=Retry(attempts=20, backoff="1s..1m"))
        def sell(state: Purchase) -> Sell:
            return Sell()

        return saga

    async def _tell(self, tx: Transaction, purchase: UUID, state: str) -> None:
        if self._trusts_the_order:
            await tx.add(Settled(id=purchase, state=state), aggregate=("purchase", purchase))

    def _take_part(self) -> None:
        @self.customers.command(Reserve)
        async def reserve(command: Reserve, tx: Transaction) -> Reserved | TooMuch:
            if command.amount > CREDIT:
                return TooMuch()
            add = "UPDATE account SET reserved = reserved + %s"
            if self._leaks:
                async with await AsyncConnection.connect(os.environ[LEAK_DSN], autocommit=True) as other:
                    await other.execute(add, (command.amount,))
            else:
                await tx.execute(add, (command.amount,))
            return Reserved()

        @self.customers.compensation(Release)
        async def release(command: Release, tx: Transaction) -> None:
            await tx.execute("UPDATE account SET reserved = reserved - %s", (command.amount,))

        @self.inventory.command(Hold)
        async def hold(command: Hold, tx: Transaction) -> None:
            self._in_memory.append("held")
            await tx.execute("UPDATE stock SET held = held + 1")

        @self.inventory.compensation(LetGo)
        async def let_go(command: LetGo, tx: Transaction) -> None:
            await tx.execute("UPDATE stock SET held = held - 1")

        @self.inventory.command(Sell)
        async def sell(command: Sell, tx: Transaction) -> None:
            if self._remembers and not self._in_memory:
                return
            await tx.execute("UPDATE stock SET held = held - 1, sold = sold + 1")

        if self._trusts_the_order:

            @self.inventory.event(Settled)
            async def seen(event: Settled, tx: Transaction) -> None:
                upsert = "INSERT INTO seen VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET state = excluded.state"
                await tx.execute(upsert, (event.id, event.state))


class Visit(BaseModel):
    name: str


class Wait(Failure): ...


class Knock(Command):
    replies = (Done, Wait)


class Hotel:
    """Sagas whose steps are tried again and again, after waits of chance. What comes of it is told as a complaint."""

    def __init__(self) -> None:
        self.orders = Service("orders")
        self.customers = Service("customers")
        self.saga = Saga("visit", state=Visit)
        retry = Retry(attempts=5, backoff="1h..1h")  # so long that it does not matter how quick the machine is
        self.saga.step(to="customers", readonly=True, retry=retry, transient=(Wait,))(self.knock).on(Wait)(self.wait)
        self.orchestrator = Orchestrator(self.orders, self.saga)
        self.customers.command(Knock)(self.answer)

    def knock(self, state: Visit) -> Knock:
        return Knock()

    def wait(self, state: Visit, reply: Wait) -> None: ...

    async def answer(self, command: Knock, tx: Transaction) -> Wait:
        return Wait()

    async def begin(self, conn: AsyncConnection[TupleRow], chance: Random) -> None:
        for name in "abc":
            await self.orchestrator.start(self.saga, Visit(name=name), conn)

    async def complain(self, connections: Connections) -> None:
        attempts = await _rows(
            connections["orders"],
            "SELECT saga.state ->> 'name' FROM relay.saga_log AS log JOIN relay.saga AS saga ON saga.id = log.saga_id"
            " WHERE log.event = 'StepStarted' ORDER BY log.at",
        )
        raise AssertionError(f"they knocked in the order {''.join(name for (name,) in attempts)}")


async def _rows(conn: AsyncConnection[TupleRow], query: str) -> list[TupleRow]:
    return await (await conn.execute(query)).fetchall()  # type: ignore[arg-type]


def right() -> World:
    return Shop().world()


def leaky() -> World:
    """A handler writes on a connection of its own: that commits, whatever becomes of the message."""
    return Shop(leaks=True).world()


def forgetful() -> World:
    """A service keeps in memory what it needs later."""
    return Shop(remembers=True).world()


def trusting() -> World:
    """A service believes that events come in their order, and once."""
    return Shop(trusts_the_order=True).world()


def stuck() -> World:
    """Nobody listens at inventory."""
    shop = Shop()
    return World([shop.orders, shop.customers], {"orders": shop.orchestrator}, {"orders": shop.begin}, shop.check)


def restless() -> World:
    """Three sagas are tried again and again."""
    hotel = Hotel()
    begin = {"orders": hotel.begin}
    return World([hotel.orders, hotel.customers], {"orders": hotel.orchestrator}, begin, hotel.complain)
