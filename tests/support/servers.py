"""The ladder: servers that the environment names, else our own, else the test is skipped; in CI it fails.

Our own are private ones where the programs are there, else containers where a Docker engine answers.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import quote, urlsplit, urlunsplit

import httpx
import psycopg
import pytest

from relay.demo.access import RELAY, SERVICES, create_role, relay_user, service_user
from relay.demo.servers.choice import choose_postgres, choose_rabbitmq
from relay.demo.servers.definitions import BrokerUser
from relay.demo.servers.host import ServerMissing
from relay.demo.servers.kind import KINDS, Kind

KIND = "RELAY_TEST_SERVERS"
"""One rung of the ladder, if no other one will do."""
NAMED = ("RELAY_TEST_PG_DSN", "RELAY_TEST_AMQP_URL")
"""Servers that are there."""

KEEPALIVE_S = 2.0
"""How long a connection is used again. RabbitMQ 4's web server closes it 5 s after an answer; httpx would use it for as
long, and now and then just then. Source: Cowboy's cowboy_http, `request_timeout`."""

SETTINGS = {"max_replication_slots": "50", "max_wal_senders": "50"}


def wanted_kind() -> Kind | None:
    """What RELAY_TEST_SERVERS says."""
    kind = os.environ.get(KIND)
    if not kind:
        return None
    if kind not in KINDS:
        raise pytest.UsageError(f"{KIND} is {kind!r}: it may be {' or '.join(KINDS)}")
    if named := [name for name in NAMED if os.environ.get(name)]:
        raise pytest.UsageError(f"{KIND} starts servers, and {' and '.join(named)} names one: which shall it be?")
    return kind


def _missing(error: ServerMissing) -> NoReturn:
    reason = f"{error} {error.hint}"
    if os.environ.get("CI") or wanted_kind():
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass(frozen=True)
class PostgresServer:
    """A server with the roles of the relay and the services; `dsn` is its superuser's."""

    dsn: str
    passwords: dict[str, str]

    def dsn_of(self, database: str, role: str | None = None) -> str:
        """A DSN to a database, as its superuser or as one of the roles."""
        parts = urlsplit(self.dsn)
        host = parts.netloc.rpartition("@")[2]
        login = f"{role}:{quote(self.passwords[role], safe='')}" if role else parts.netloc.rpartition("@")[0]
        return urlunsplit((parts.scheme, f"{login}@{host}", f"/{database}", parts.query, ""))


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """From RELAY_TEST_PG_DSN (a superuser's, as a URL), or one of our own."""
    given = os.environ.get("RELAY_TEST_PG_DSN")
    if given:
        yield with_roles(given)
        return
    try:
        server = choose_postgres(wanted_kind(), say=print)(durable=False, settings=SETTINGS)
        server.start()
    except ServerMissing as error:
        _missing(error)
    with server:
        yield with_roles(server.dsn("postgres"))


def with_roles(dsn: str) -> PostgresServer:
    """A server on which the roles of the relay and the services exist."""
    passwords = {role: f"{role}-test" for role in (RELAY, *SERVICES)}
    with psycopg.connect(dsn, autocommit=True) as connection:
        create_role(connection, RELAY, passwords[RELAY], "LOGIN REPLICATION")
        for service in SERVICES:
            create_role(connection, service, passwords[service])
    return PostgresServer(dsn, passwords)


@dataclass(frozen=True)
class RabbitServer:
    """A broker; `url` and `api` (its management API) are an administrator's."""

    url: str
    api: httpx.Client
    users: dict[str, BrokerUser]

    def url_of(self, vhost: str, user: str | None = None) -> str:
        """An AMQP URL to a virtual host, as the administrator or as one of the users."""
        parts = urlsplit(self.url)
        host = parts.netloc.rpartition("@")[2]
        login = f"{user}:{self.users[user].password}" if user else parts.netloc.rpartition("@")[0]
        return urlunsplit((parts.scheme, f"{login}@{host}", f"/{quote(vhost, safe='')}", "", ""))

    def create_vhost(self, name: str) -> None:
        """A virtual host that the administrator and every user may enter, each with its rights."""
        self.put(f"vhosts/{name}", {})
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        self.put(f"permissions/{name}/{urlsplit(self.url).username}", everything)
        for user in self.users.values():
            rights = {"configure": user.configure, "write": user.write, "read": user.read}
            self.put(f"permissions/{name}/{user.name}", rights)

    def put(self, path: str, body: dict[str, object] | dict[str, str]) -> None:
        """Create something."""
        self.api.put(f"/api/{path}", json=body).raise_for_status()

    def delete(self, path: str) -> None:
        """Delete something."""
        self.api.delete(f"/api/{path}").raise_for_status()


@contextmanager
def rabbit_server() -> Iterator[RabbitServer]:
    """From RELAY_TEST_AMQP_URL (an administrator's; its management API at RELAY_TEST_AMQP_API), or one of our own."""
    given = os.environ.get("RELAY_TEST_AMQP_URL")
    if given:
        parts = urlsplit(given)
        api = os.environ.get("RELAY_TEST_AMQP_API", f"http://{parts.hostname}:15672")
        with _with_users(given, api) as server:
            yield server
        return
    try:
        own = choose_rabbitmq(wanted_kind(), interactive=False, say=print)()
        own.start()
    except ServerMissing as error:
        _missing(error)
    with own, _with_users(own.amqp_url(), own.management_url) as server:
        yield server


def management(url: str, user: str, password: str) -> httpx.Client:
    """A client of RabbitMQ's management API."""
    limits = httpx.Limits(keepalive_expiry=KEEPALIVE_S)
    return httpx.Client(base_url=url, auth=(user, password), timeout=30, limits=limits)


@contextmanager
def _with_users(url: str, api: str) -> Iterator[RabbitServer]:
    parts = urlsplit(url)
    login = parts.username or "guest", parts.password or "guest"
    users = {user.name: user for user in (relay_user(), *(service_user(name) for name in SERVICES))}
    with management(api, *login) as client:
        server = RabbitServer(url, client, users)
        for user in users.values():
            server.put(f"users/{user.name}", {"password": user.password, "tags": ""})
        yield server
