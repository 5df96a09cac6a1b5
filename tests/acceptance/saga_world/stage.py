"""What the world stands on: accounts on the two servers, and processes that may be killed."""

import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from signal import SIGKILL, SIGTERM, Signals
from typing import Final, Self
from uuid import uuid4

import psycopg

from relay.demo.access import create_role, service_user
from tests.acceptance.saga_world.suppliers import OFFERS
from tests.support.process import Process
from tests.support.servers import PostgresServer, RabbitServer

AGENCY: Final = "agency"
CALLER: Final = "caller"
"""The agency's API: the name of the process."""
SUPPLIERS: Final = tuple(OFFERS)
NAMES: Final = (AGENCY, *SUPPLIERS)

LAST_LINES: Final = 15
"""Of a process's log, in a failure."""


@dataclass
class Servers:
    """A PostgreSQL and a RabbitMQ on which the agency and its suppliers have their accounts."""

    postgres: PostgresServer
    rabbit: RabbitServer
    vhost: str

    @classmethod
    def furnish(cls, postgres: PostgresServer, rabbit: RabbitServer) -> Self:
        """Create what they need: roles, users, and a virtual host."""
        passwords = {name: f"{name}-test" for name in NAMES}
        with psycopg.connect(postgres.dsn, autocommit=True) as connection:
            for name, password in passwords.items():
                create_role(connection, name, password)
        users = {name: service_user(name) for name in NAMES}
        for user in users.values():
            rabbit.put(f"users/{user.name}", {"password": user.password, "tags": ""})
        furnished = RabbitServer(rabbit.url, rabbit.api, rabbit.users | users)
        vhost = f"travel-{os.getpid()}-{uuid4().hex[:6]}"
        furnished.create_vhost(vhost)
        return cls(PostgresServer(postgres.dsn, postgres.passwords | passwords), furnished, vhost)

    def url(self, user: str | None = None) -> str:
        """To the virtual host, as the administrator or as one of the users."""
        return self.rabbit.url_of(self.vhost, user)


class Runner:
    """One process that the test may kill, and start again."""

    def __init__(self, name: str, make: Callable[[], Process]) -> None:
        self.name = name
        self._make = make
        self._life = AsyncExitStack()
        self.process: Process | None = None

    async def start(self) -> None:
        """Start it. It is ready when it says so."""
        assert self.process is None
        self.process = await self._life.enter_async_context(self._make())

    async def ready(self) -> None:
        """Wait until it works."""
        assert self.process is not None
        await self.process.until("streaming" if self.name == "relay" else "consuming")

    async def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        assert await self.process.end(SIGKILL) == -SIGKILL, self.last_words()
        await self.close()

    async def stop(self) -> None:
        """SIGTERM: it has to end in good order."""
        assert self.process is not None
        assert await self.process.end(SIGTERM) == 0, self.last_words()
        await self.close()

    async def close(self) -> None:
        """Whatever state it is in."""
        await self._life.aclose()
        self.process = None

    def signal(self, signal: Signals) -> None:
        """Tell the process something that it survives."""
        assert self.process is not None
        self.process.process.send_signal(signal)

    def last_words(self) -> str:
        """The end of its log."""
        lines = self.process.lines[-LAST_LINES:] if self.process else []
        said = (f"  {line.get('at')} {line.get('action')}: {line.get('message')}" for line in lines)
        return "\n".join((f"{self.name}:", *said))
