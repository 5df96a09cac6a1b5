"""The shop of the demo without its stock: PostgreSQL, RabbitMQ, the relay for two databases, orders and customers."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psycopg

from bench.backlog import Databases, ServiceDatabase
from bench.buyers import CUSTOMERS
from bench.machine import Used, used
from bench.servers import BrokerMaker
from bench.subject import Subject, command
from relay.demo.servers.host import LOOPBACK, free_ports
from relay.demo.servers.postgres import PrivatePostgres

ORDERS: Final = "orders"
CUSTOMER_SERVICE: Final = "customers"
SERVICES: Final = (ORDERS, CUSTOMER_SERVICE)
"""Those that have a part in an order that says nothing of goods."""

_OPEN: Final = """
    INSERT INTO public.customers (id, name, credit_limit)
    SELECT lpad(to_hex(n), 32, '0')::uuid, 'Customer ' || n, 9999999999.99 FROM generate_series(1, %s) AS n
"""

_TIDY: Final = ("VACUUM (ANALYZE)", "CHECKPOINT")


class Shop:
    """Everything that a CreateOrder takes, as processes of its own on this machine. Use it as a context manager.

    There are CUSTOMERS customers, whose credit does not end. Raises MeasurementFailed when something does not start.
    """

    def __init__(self, server: PrivatePostgres, relay: Path, brokers: BrokerMaker, databases: Databases) -> None:
        self._server = server
        self._directory = relay
        self._brokers = brokers
        self._databases = databases
        self._stack = ExitStack()
        self._pids: dict[str, int] = {}
        self._processes: list[Subject] = []
        self._dsns: list[str] = []
        self.port = 0
        """Where orders are placed."""

    @property
    def orders_dsn(self) -> str:
        """The superuser's, to the database of the sagas."""
        return self._dsns[0]

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if kind is None:
                for process in reversed(self._processes):
                    process.stop()

    def used(self, generator: int) -> Used:
        """CPU time so far, by process and of the load generator. Raises MeasurementFailed when a process has ended."""
        for process in self._processes:
            process.check()
        return used({**self._pids, "load generator": generator})

    def tidy(self) -> None:
        """Do what autovacuum and checkpoints do by and by, so that none of it begins in the middle of a measurement."""
        for dsn in self._dsns:
            with psycopg.connect(dsn, autocommit=True) as connection:
                for statement in _TIDY:
                    connection.execute(statement)

    def _start(self, stack: ExitStack) -> None:
        broker = stack.enter_context(self._brokers())
        found = {service: stack.enter_context(self._databases.of_service(service)) for service in SERVICES}
        self._dsns = [database.superuser_dsn for database in found.values()]
        with psycopg.connect(found[CUSTOMER_SERVICE].superuser_dsn) as connection:
            connection.execute(_OPEN, (CUSTOMERS,))
        ports = dict(zip(SERVICES, free_ports(len(SERVICES)), strict=True))
        for service, database in found.items():
            self._run(
                stack,
                service,
                f"services.{service}",
                settings=service_settings(service, database, broker.url, ports[service]),
            )
        for process in self._processes:
            process.until("consuming")
        relay = self._run(stack, "relay", "relay", "run", settings=relay_settings(found, broker.url))
        for _ in found:
            relay.until("streaming")
        self._pids |= {"PostgreSQL": self._server.pid, "RabbitMQ": broker.pid}
        self.port = ports[ORDERS]

    def _run(self, stack: ExitStack, name: str, module: str, *arguments: str, settings: dict[str, str]) -> Subject:
        process = command(self._directory, module, *arguments, environment=settings)
        subject = stack.enter_context(Subject(name, process))
        self._processes.append(subject)
        self._pids[name] = subject.pid
        return subject


def service_settings(service: str, database: ServiceDatabase, amqp_url: str, port: int) -> dict[str, str]:
    """The environment of a service."""
    settings = {
        "DSN": database.service_dsn,
        "AMQP_URL": amqp_url,
        "LISTEN": f"{LOOPBACK}:{port}",
        "LOG_FORMAT": "json",
    }
    return {f"{service.upper()}_{name}": value for name, value in settings.items()}


def relay_settings(databases: Mapping[str, ServiceDatabase], amqp_url: str) -> dict[str, str]:
    """The environment of a relay with one source a service."""
    sources = {
        f"RELAY_SOURCE__{number}__{name}": value
        for number, (service, database) in enumerate(databases.items())
        for name, value in (("NAME", service), ("DSN", database.dsn), ("SLOT", database.slot))
    }
    return {**sources, "RELAY_BROKER__URL": amqp_url, "RELAY_HTTP__LISTEN": "", "RELAY_LOG_FORMAT": "json"}
