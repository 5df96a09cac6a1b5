"""Writers that commit and roll back for as long as a test lets them."""

import asyncio
import json
import random
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import psycopg

INSERT = "INSERT INTO relay.outbox (aggregate_type, aggregate_id, type, payload) VALUES (%s, %s, %s, %s) RETURNING id"
RECONNECT_S = 0.2
MOST_MESSAGES = 6


class Writers:
    """Several writers, each with aggregates of its own, so that commit order within an aggregate is insertion order.

    What was committed stands in the outbox; what was rolled back, in `rolled_back`: whole transactions and savepoints.
    """

    def __init__(self, dsn: str, *, seed: int, writers: int = 3, aggregates: int = 4, pause_s: float = 0.002) -> None:
        self._dsn = dsn
        self._seed = seed
        self._writers = writers
        self._aggregates = aggregates
        self._pause_s = pause_s
        self._enough = asyncio.Event()
        self.committed = 0
        self.rolled_back: set[str] = set()

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._write(number)) for number in range(self._writers)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._enough.set()
        await asyncio.gather(*self._tasks)

    async def _write(self, number: int) -> None:
        dice = random.Random(self._seed * 1000 + number)
        while not self._enough.is_set():
            try:
                async with await psycopg.AsyncConnection.connect(self._dsn) as connection:
                    while not self._enough.is_set():
                        await self._transaction(connection, number, dice)
                        await asyncio.sleep(self._pause_s)  # a writer's own pace
            except psycopg.OperationalError:
                await asyncio.sleep(RECONNECT_S)  # PostgreSQL is being restarted

    async def _transaction(self, connection: psycopg.AsyncConnection, number: int, dice: random.Random) -> None:
        """Between one and six messages, some in savepoints that are rolled back; one in five transactions is too."""
        written: list[str] = []
        undone: list[str] = []
        for _ in range(dice.randint(1, MOST_MESSAGES)):
            async with AsyncExitStack() as stack:
                savepoint = dice.random() < 0.2
                if savepoint:
                    await stack.enter_async_context(connection.transaction(force_rollback=True))
                (undone if savepoint else written).append(await self._insert(connection, number, dice))
        if dice.random() < 0.2:
            await connection.rollback()
            self.rolled_back.update(written, undone)
        else:
            await connection.commit()
            self.committed += len(written)
            self.rolled_back.update(undone)

    async def _insert(self, connection: psycopg.AsyncConnection, number: int, dice: random.Random) -> str:
        aggregate = f"{number}-{dice.randrange(self._aggregates)}"
        cursor = await connection.execute(INSERT, ("account", aggregate, "Moved", json.dumps({"n": dice.random()})))
        row = await cursor.fetchone()
        assert row is not None
        return str(row[0])
