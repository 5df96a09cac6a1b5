"""Who may do what on the two servers: the rights of the relay and of each service, and no more than those."""

import secrets
from collections.abc import Sequence
from typing import Final, LiteralString

from psycopg import Connection, sql

from relay.demo.servers.definitions import NOTHING, BrokerUser

_EXCHANGES: Final = r"relay\.(events|commands|replies|dead)"

RELAY: Final = "relay"
"""The relay's role and broker user. The role owns the databases, so that it can create the publication."""

SERVICES: Final = ("orders", "customers", "inventory")
"""The services of the demo. Each has a database, a role and a broker user of its name."""


def relay_user() -> BrokerUser:
    """May declare the exchanges and publish to them; reads nothing."""
    write = r"^relay\.(events|commands|replies)$"
    return BrokerUser(RELAY, secrets.token_urlsafe(18), (), f"^{_EXCHANGES}$", write, NOTHING)


def service_user(name: str) -> BrokerUser:
    """May declare, bind and read its own queues, and publish nowhere: it writes to PostgreSQL only.

    To bind a queue takes the right to write to the *queue*; no exchange has the name of a service.
    """
    own = rf"{name}(\.dead)?"
    declared = f"^({own}|{_EXCHANGES})$"
    return BrokerUser(name, secrets.token_urlsafe(18), (), declared, f"^{own}$", declared)


def create_role(connection: Connection, name: str, password: str, attributes: LiteralString = "LOGIN") -> None:
    """Create a role, or give an existing one this password."""
    exists = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (name,)).fetchone()
    verb: LiteralString = "ALTER" if exists else "CREATE"
    # The server is not told the password itself: it may log the statement.
    verifier = connection.pgconn.encrypt_password(password.encode(), name.encode(), b"scram-sha-256").decode()
    statement = sql.SQL(f"{verb} ROLE {{}} {attributes} PASSWORD {{}}")
    connection.execute(statement.format(sql.Identifier(name), sql.Literal(verifier)))


def create_database(connection: Connection, name: str, owner: str, guests: Sequence[str] = ()) -> None:
    """Create a database that its owner and its guests may connect to, and nobody else; one that exists becomes such."""
    database = sql.Identifier(name)
    if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone():
        connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(database, sql.Identifier(owner)))
    connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(database))
    for guest in guests:
        connection.execute(sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(database, sql.Identifier(guest)))
