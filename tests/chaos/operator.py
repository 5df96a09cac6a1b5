"""An operator in a storm: unbinds and binds a queue, replays what was parked, and looks what is."""

import asyncio
import os
import sys
from random import Random

import psycopg

from relay.broker.connection import Connection
from relay.broker.properties import COMMANDS
from relay.errors import BrokerAway, ExitCode
from tests.chaos.pair import RECOVERY_S
from tests.support.waiting import eventually

QUEUE = "mailbox"
REPLAY_TIMEOUT_S = 10
"""How long `relay parked replay` may go without progress. Shorter than the longest fault: it also gives up at times."""
RETRY_S = 0.2
GOOD = frozenset({ExitCode.OK, ExitCode.FAILURE, ExitCode.SOURCE})
"""What replaying may end with in a storm: done; not all of it, or no relay took the request; PostgreSQL is away."""


class Operator:
    """Works on one source. What it does is at the mercy of the faults; what it finds is checked."""

    def __init__(self, dsn: str, amqp_url: str, destination: str, dice: Random) -> None:
        self._dsn = dsn
        self._amqp_url = amqp_url
        self._destination = destination
        self._dice = dice
        self.replays = 0
        """That published everything that was parked."""
        self.most_parked = 0

    async def work(self) -> None:
        """Until cancelled: take the queue away; and when something is parked, bring it back and replay it.

        Before that, replaying is tried in vain at times. The queue comes back only when something is parked: before the
        first return is known, a successor in flight may overtake it, if pipelined. That is a documented exception.
        """
        while True:
            await self.bind(there=False)
            await self._until_parked()
            if self._dice.random() < 0.3:
                await self.replay()
            await self.bind(there=True)
            for _ in range(self._dice.randint(1, 3)):
                await self.replay()

    async def replay_all(self) -> None:
        """Bring the queue back, and replay until nothing is parked any more."""
        await self.bind(there=True)
        async with asyncio.timeout(RECOVERY_S):
            while await asyncio.to_thread(self._parked):
                await self.replay()

    async def replay(self) -> None:
        """`relay parked replay`, as a person would type it."""
        command = [sys.executable, "-m", "relay", "parked", "replay", "--reason", "unroutable"]
        settings = {"RELAY_SOURCE__0__DSN": self._dsn}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
        process = await asyncio.create_subprocess_exec(
            *command,
            "--timeout",
            str(REPLAY_TIMEOUT_S),
            env=inherited | settings,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(RECOVERY_S):
                output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode in GOOD, output.decode()
        assert b"Traceback" not in output, output.decode()
        self.replays += process.returncode == ExitCode.OK

    async def bind(self, *, there: bool) -> None:
        """Bind the queue to the destination, or unbind it; again, until the broker has done it."""
        async with asyncio.timeout(RECOVERY_S):
            while True:
                try:
                    await self._bind_once(there)
                except BrokerAway:
                    await asyncio.sleep(RETRY_S)  # it is being restarted
                else:
                    return

    async def _bind_once(self, there: bool) -> None:
        connection = await Connection.open(self._amqp_url, name="operator")
        try:
            channel = await connection.channel()
            change = channel.raw.queue_bind if there else channel.raw.queue_unbind
            await channel.call(change, QUEUE, COMMANDS, routing_key=self._destination)
        finally:
            await connection.close()

    async def _until_parked(self) -> None:
        await eventually(self._parked, RECOVERY_S)

    def _parked(self) -> int:
        """How many messages are parked; none, as far as anybody knows, while PostgreSQL is away."""
        try:
            with psycopg.connect(self._dsn, autocommit=True) as connection:
                found = connection.execute("SELECT count(*), count(DISTINCT id) FROM relay.parked").fetchone()
        except psycopg.OperationalError:
            return 0
        assert found is not None
        count, different = found
        assert count == different, f"{count - different} messages are parked twice"
        self.most_parked = max(self.most_parked, count)
        return int(count)
