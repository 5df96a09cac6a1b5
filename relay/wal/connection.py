"""Connecting to a source, and what its refusals mean."""

from typing import Any, Final, LiteralString

import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from relay.errors import SourceAway, SourceError

_DEFAULTS: Final[dict[str, int]] = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
"""A server that vanishes without a word is noticed within half a minute, unless the DSN says otherwise. In seconds, but
the last in milliseconds."""

_LOGIN_HINT: Final = "Check the user, the password and the database in the DSN, and pg_hba.conf on the server."
_RIGHTS_HINT: Final = "docs/setup.md lists the rights that the relay's role needs."

_REFUSALS: Final[dict[str, str]] = {
    "28000": _LOGIN_HINT,  # invalid authorization: no such role, or pg_hba.conf
    "28P01": _LOGIN_HINT,  # wrong password
    "3D000": _LOGIN_HINT,  # no such database
    "42501": _RIGHTS_HINT,
    "3F000": "Run `relay migrate` on this database first.",
    "42P01": "Run `relay migrate` on this database first.",
    "42703": "Run `relay migrate` on this database: its schema is older than this relay.",
}
"""SQLSTATEs that waiting does not mend, and what to do about each."""

_MENDS_ITSELF: Final[dict[str, str]] = {
    "25006": "The server is a standby, or read-only for maintenance.",
    "25P03": "The server ends idle transactions (idle_in_transaction_session_timeout).",
}
"""SQLSTATEs that are no connection trouble to psycopg, and still pass."""

_NO_RIGHTS: Final = ("permission denied", "must be superuser or replication role")
"""The server's words when a role may not connect, or not replicate. The second are those of PostgreSQL 15."""

_CONNECT_REFUSALS: Final[tuple[str, ...]] = (
    "password authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    "does not exist",
    "is not permitted to log in",
)
"""libpq gives no SQLSTATE for a failed connect, so the server's words have to do. Where a server speaks another
language, the relay waits instead of stopping, and shows those words."""


def address(dsn: str) -> str:
    """Where a DSN points to, without user and password: fit for logs."""
    parts = conninfo_to_dict(dsn)
    return f"{parts.get('host', 'the local socket')}:{parts.get('port', 5432)}, database {database(dsn)}"


def database(dsn: str) -> str:
    """The database that a DSN names; libpq falls back to the user's name."""
    parts = conninfo_to_dict(dsn)
    return str(parts.get("dbname") or parts.get("user") or "postgres")


def refusal(error: psycopg.Error, dsn: str) -> SourceError:
    """What an error of psycopg means to the relay: SourceAway when waiting may help, else a plain SourceError."""
    message = f"PostgreSQL at {address(dsn)}: {_one_line(error)}"
    if error.sqlstate in _MENDS_ITSELF:
        return SourceAway(message, _MENDS_ITSELF[error.sqlstate])
    if error.sqlstate in _REFUSALS:
        return SourceError(message, _REFUSALS[error.sqlstate])
    if isinstance(error, psycopg.OperationalError):
        if any(words in str(error) for words in _NO_RIGHTS):
            return SourceError(message, _RIGHTS_HINT)
        if error.sqlstate is None and any(words in str(error) for words in _CONNECT_REFUSALS):
            return SourceError(message, _LOGIN_HINT)
        return SourceAway(message, error.diag.message_hint)
    return SourceError(message, error.diag.message_hint)


_SESSION: Final[dict[str, str | int]] = {
    "DateStyle": "ISO",
    "TimeZone": "UTC",
    "IntervalStyle": "postgres",
    "extra_float_digits": 1,
    "bytea_output": "hex",
    # The exported snapshot of a new slot lives in an idle transaction for as long as the backlog takes.
    "idle_in_transaction_session_timeout": 0,
    "idle_session_timeout": 0,
    "statement_timeout": 0,
    # The server notices within a minute that a relay's machine is gone, and frees the slot for another. (0 is hours.)
    "tcp_keepalives_idle": 30,
    "tcp_keepalives_interval": 10,
    "tcp_keepalives_count": 3,
}
"""Values are decoded as text, so their form must not depend on the role's settings; nor may the session's life."""

_HAS_TRANSACTION_TIMEOUT: Final = 170000
"""PostgreSQL 17 has one more limit on a session's life, and older ones refuse a setting that they do not know."""


async def connect(dsn: str, *, name: str, replication: bool = False) -> AsyncConnection[TupleRow]:
    """Connect in autocommit mode. `name` is what pg_stat_activity shows. Raises SourceError or SourceAway."""
    options: dict[str, Any] = {"replication": "database"} if replication else {}
    try:
        connection = await AsyncConnection.connect(prepared(dsn, name), autocommit=True, **options)
        try:
            if connection.info.server_version >= _HAS_TRANSACTION_TIMEOUT:
                await connection.execute("SET transaction_timeout = 0")
        except BaseException:  # cancelled, too: nobody else knows of the connection yet
            await connection.close()
            raise
    except psycopg.Error as error:
        raise refusal(error, dsn) from None
    return connection


def prepared(dsn: str, name: str) -> str:
    """The DSN with what every session of the relay relies on."""
    given = conninfo_to_dict(dsn)
    defaults = {name: value for name, value in _DEFAULTS.items() if name not in given}
    session = " ".join(f"-c {name}={value}" for name, value in _SESSION.items())
    return make_conninfo(
        dsn,
        application_name=name,
        client_encoding="UTF8",
        **defaults,
        options=f"{given.get('options', '')} {session}".strip(),
    )


async def fetch_one(
    connection: AsyncConnection[TupleRow], query: LiteralString, parameters: tuple[object, ...] = ()
) -> TupleRow | None:
    """The first row of a query, None when there is none."""
    return await (await connection.execute(query, parameters)).fetchone()


async def listen(connection: AsyncConnection[TupleRow], seconds: float) -> bool:
    """Wait so long, or until notified; whether it was. Raises psycopg's error as soon as the server hangs up."""
    async for _ in connection.notifies(timeout=seconds, stop_after=1):
        return True
    return False


def _one_line(error: psycopg.Error) -> str:
    return " ".join((error.diag.message_primary or str(error)).split())
