"""Fixtures: servers for the session, a database and a virtual host for each test."""

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import settings

from tests.support.database import Database, Databases
from tests.support.servers import PostgresServer, RabbitServer, postgres_server, rabbit_server, wanted_kind

# How long an example takes says more of what else the machine does. Each test has a timeout.
settings.register_profile("unhurried", settings(), deadline=None)
settings.load_profile("unhurried")

# A shell without job control starts what runs in the background deaf to Ctrl-C, and children inherit that. Some tests
# send Ctrl-C to theirs.
signal.signal(signal.SIGINT, signal.default_int_handler)

CONTAINERS = "containers"
"""The mark of tests that start containers of their own."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where containers are asked for, a test that uses neither server of the session would only repeat itself.

    Elsewhere, tests that start containers of their own are left out: nothing else there needs an engine.
    """
    asked_for = wanted_kind() == CONTAINERS
    chosen: list[pytest.Item] = []
    others: list[pytest.Item] = []
    for item in items:
        starts_some = item.get_closest_marker(CONTAINERS) is not None
        belongs_here = asked_for if starts_some else not asked_for or _uses_a_server(item)
        (chosen if belongs_here else others).append(item)
    config.hook.pytest_deselected(items=others)
    items[:] = chosen


def _uses_a_server(item: pytest.Item) -> bool:
    return isinstance(item, pytest.Function) and not {"postgres", "rabbit"}.isdisjoint(item.fixturenames)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """PostgreSQL with the roles of the relay and the services."""
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def rabbit() -> Iterator[RabbitServer]:
    """RabbitMQ with the users of the relay and the services."""
    with rabbit_server() as server:
        yield server


@pytest.fixture(scope="session")
def databases(postgres: PostgresServer) -> Iterator[Databases]:
    made = Databases(postgres)
    yield made
    made.drop_all()


@pytest.fixture
def make_database(databases: Databases) -> Iterator[Callable[..., Database]]:
    """Make databases that go with the test: `make_database("orders")` has the tables of sql/orders as well."""
    made: list[Database] = []

    def make(*folders: str) -> Database:
        made.append(databases.create(*folders))
        return made[-1]

    yield make
    for database in made:
        databases.drop(database)


@pytest.fixture
def database(make_database: Callable[..., Database]) -> Database:
    """A database with the relay's schema."""
    return make_database()


@dataclass(frozen=True)
class VirtualHost:
    """A virtual host for one test. `url` has all rights in it."""

    name: str
    server: RabbitServer

    @property
    def url(self) -> str:
        return self.server.url_of(self.name)

    def user_url(self, user: str) -> str:
        """As the relay, or as a service, with its rights and no more."""
        return self.server.url_of(self.name, user)


_numbers = itertools.count(1)


@pytest.fixture
def vhost(rabbit: RabbitServer) -> Iterator[VirtualHost]:
    host = VirtualHost(f"t{os.getpid()}-{next(_numbers)}", rabbit)
    rabbit.create_vhost(host.name)
    yield host
    rabbit.delete(f"vhosts/{host.name}")
