"""The whole stack on private servers: provisioned, started, kept going, and stopped without a trace."""

import asyncio
import itertools
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import httpx
import psycopg

from relay.broker.connection import Connection
from relay.broker.topology import ServiceQueue, declare_service
from relay.demo.access import RELAY, SERVICES, relay_user, service_user
from relay.demo.child import RESTART_S, Child, Say
from relay.demo.provision import provision, tables
from relay.demo.servers.host import LOOPBACK, ServerFailed, free_ports
from relay.demo.servers.postgres import Postgres, PrivatePostgres
from relay.demo.servers.rabbitmq import PrivateRabbitMQ, RabbitMQ
from relay.demo.servers.server import Server
from relay.demo.told import relay_toml, service_settings
from relay.errors import RelayError
from relay.tasks import end, undisturbed

READY_S: Final = 60.0
"""How long the relay and the services may take until they work."""

WATCH_S: Final = 0.2
"""How often to look whether a server has died, or whether all is ready."""


class DemoFailed(RelayError):
    """The demo could not be set up, or did not end as it should."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where everything is. The DSNs are the superuser's, the AMQP URL an administrator's."""

    services: Mapping[str, str]
    dsns: Mapping[str, str]
    amqp_url: str
    management_url: str
    config: Path


class Stack:
    """PostgreSQL, RabbitMQ, the relay for three sources, and three services. Use it as an async context manager."""

    def __init__(
        self, say: Say, postgres: type[Postgres] = PrivatePostgres, rabbitmq: type[RabbitMQ] = PrivateRabbitMQ
    ) -> None:
        self._say = say
        self._passwords = {role: secrets.token_urlsafe(18) for role in (RELAY, *SERVICES)}
        self._postgres = postgres()
        self._rabbit = rabbitmq([relay_user(), *(service_user(name) for name in SERVICES)])
        self._servers: dict[str, Server] = {"postgres": self._postgres, "rabbitmq": self._rabbit}
        self._children: dict[str, Child] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._directory = Path()
        self.addresses: Addresses

    @property
    def pids(self) -> dict[str, int]:
        """The processes, as they are now."""
        children = {name: child.pid for name, child in self._children.items()}
        return children | {name: server.pid for name, server in self._servers.items() if server.pid is not None}

    @property
    def containers(self) -> dict[str, str]:
        """The names of the containers, for servers that are in one."""
        return {name: server.container for name, server in self._servers.items() if server.container is not None}

    @property
    def killable(self) -> list[str]:
        """The relay and the services."""
        return list(self._children)

    @property
    def kills(self) -> dict[str, int]:
        """How often each process was killed on purpose, of those that were."""
        return {name: child.kills for name, child in self._children.items() if child.kills}

    async def kill(self, name: str, held_back_s: float = RESTART_S) -> bool:
        """SIGKILL to the relay or a service, which is started again that much later. False when it did not run."""
        return await self._children[name].kill(held_back_s)

    async def __aenter__(self) -> Self:
        tables(SERVICES[0])  # raises ServicesMissing before anything is started
        self._directory = Path(tempfile.mkdtemp(prefix="relay-demo-"))
        try:
            await self._start()
        except BaseException:  # Ctrl-C too: half a stack is stopped like a whole one
            await undisturbed(self._stop())
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await undisturbed(self._stop())

    async def _start(self) -> None:
        self._say(f"starting {self._postgres.where} and {self._rabbit.where}")
        await self._start_servers()
        self._say("creating databases, roles and queues")
        await asyncio.to_thread(provision, self._postgres.dsn("postgres"), self._passwords)
        await self._provision_queues()
        self._say("starting the relay and the services")
        ports = dict(zip(SERVICES, free_ports(len(SERVICES)), strict=True))
        self.addresses = Addresses(
            services={name: f"http://{LOOPBACK}:{port}" for name, port in ports.items()},
            dsns={name: self._postgres.dsn(name) for name in SERVICES},
            amqp_url=self._rabbit.amqp_url(),
            management_url=self._rabbit.management_url,
            config=self._write_config(),
        )
        await self._start_children(ports)
        await self._ready()

    async def _start_servers(self) -> None:
        """Both at once. A Ctrl-C waits for the threads: a server that is half started cannot be stopped."""
        await undisturbed(self._each_server(lambda server: server.start()))

    async def _provision_queues(self) -> None:
        """The services may not write to the dead-letter exchange, so they cannot create queues that use it."""
        connection = await Connection.open(self._rabbit.amqp_url(), name="demo")
        try:
            for service in SERVICES:
                await declare_service(await connection.channel(), ServiceQueue(service))
        finally:
            await connection.close()

    def _relay_dsn(self, service: str) -> str:
        return self._postgres.dsn(service, RELAY, self._passwords[RELAY])

    def _write_config(self) -> Path:
        """A file that only we can read: it holds the passwords."""
        path = self._directory / "relay.toml"
        dsns = {service: self._relay_dsn(service) for service in SERVICES}
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(relay_toml(self._rabbit.amqp_url(RELAY), dsns, listen=""))
        return path

    async def _start_children(self, ports: Mapping[str, int]) -> None:
        self._children[RELAY] = self._child(RELAY, ["relay", "run", "--config", str(self.addresses.config)], {})
        for service, port in ports.items():
            dsn = self._postgres.dsn(service, service, self._passwords[service])
            settings = service_settings(service, dsn, self._rabbit.amqp_url(service))
            settings[f"{service.upper()}_LISTEN"] = f"{LOOPBACK}:{port}"
            self._children[service] = self._child(service, [f"services.{service}"], settings)
        for child in self._children.values():
            await child.start()
            self._keepers.append(asyncio.create_task(child.keep(self._say)))
        self._keepers += [asyncio.create_task(self._keep(name)) for name in self._servers]

    def _child(self, name: str, arguments: list[str], environment: Mapping[str, str]) -> Child:
        return Child(name, arguments, environment, self._directory / f"{name}.log")

    async def _keep(self, name: str) -> None:
        """Start a server again when it has died. It comes back with its data, on its port."""
        server = self._servers[name]
        while True:
            await asyncio.sleep(WATCH_S)
            ending = await undisturbed(asyncio.to_thread(lambda: None if server.running else server.ending))
            if ending is not None:
                self._say(f"{name} {ending}; starting it again")
                try:
                    await undisturbed(asyncio.to_thread(server.start))
                except ServerFailed as error:
                    self._say(f"{name} did not start: {error}")

    async def _ready(self) -> None:
        """Wait until all services answer and the relay streams from all databases."""
        async with httpx.AsyncClient() as client:
            try:
                async with asyncio.timeout(READY_S):
                    await self._poll_ready(client)
            except TimeoutError:
                words = "\n".join(f"{child.name}:\n{child.last_words()}" for child in self._children.values())
                raise DemoFailed(f"the stack was not ready within {READY_S:.0f} s. Last words of\n{words}") from None

    async def _poll_ready(self, client: httpx.AsyncClient) -> None:
        for _ in itertools.count():
            if await self._services_answer(client) and await asyncio.to_thread(self._relay_streams):
                return
            await asyncio.sleep(WATCH_S)

    async def _services_answer(self, client: httpx.AsyncClient) -> bool:
        try:
            answers = [await client.get(f"{url}/healthz") for url in self.addresses.services.values()]
        except httpx.TransportError:
            return False
        return all(answer.is_success for answer in answers)

    def _relay_streams(self) -> bool:
        with psycopg.connect(self._postgres.dsn("postgres")) as connection:
            active = connection.execute("SELECT count(*) FROM pg_replication_slots WHERE active AND NOT temporary")
            return active.fetchone() == (len(SERVICES),)

    async def _stop(self) -> None:
        """Services first, then the relay, then the servers: each finishes what those before it began."""
        await end(*self._keepers)
        for child in reversed(self._children.values()):
            await child.stop()
        try:
            await self._each_server(lambda server: server.close())
        finally:
            shutil.rmtree(self._directory, ignore_errors=True)

    async def _each_server(self, do: Callable[[Server], None]) -> None:
        """Both at once, and both to their end, whatever becomes of one of them."""
        servers = [asyncio.to_thread(do, server) for server in self._servers.values()]
        results = await asyncio.gather(*servers, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
