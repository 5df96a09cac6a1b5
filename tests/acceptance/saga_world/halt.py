"""A place in a transaction where somebody halts, so that a test can kill him there. Triggers do it, no code of his."""

from types import TracebackType
from typing import Any, Final, Self

from psycopg import AsyncConnection
from psycopg.types.json import Jsonb

from tests.acceptance.saga_world.books import Books

LOCK: Final = 1
"""The advisory lock at which they halt."""

# The constraint trigger acts when the transaction commits: whoever is killed there has committed when he is let go,
# because PostgreSQL has been told to. The other acts within the statement: its end is never heard of, and rolled back.
_SCHEMA: Final = """
    CREATE TABLE halt (what jsonb NOT NULL, at_commit boolean NOT NULL);
    GRANT SELECT ON halt TO public;
    CREATE FUNCTION halt() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF EXISTS (SELECT FROM halt WHERE to_jsonb(NEW) @> what AND at_commit = TG_ARGV[0]::boolean) THEN
            PERFORM pg_advisory_xact_lock_shared(1);
        END IF;
        RETURN NULL;
    END $$;
"""
_TRIGGERS: Final = """
    CREATE TRIGGER halt_within AFTER INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION halt('false');
    CREATE CONSTRAINT TRIGGER halt_at_commit AFTER INSERT ON {table} DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION halt('true');
"""


def install(books: Books, where: str, *tables: str) -> None:
    """Let transactions of a database halt at what they insert into these tables."""
    books.databases[where].query(_SCHEMA + "".join(_TRIGGERS.format(table=table) for table in tables))


class Halt:
    """Whoever inserts a row with these values halts, within his transaction or at its commit, until this is over."""

    def __init__(self, books: Books, where: str, what: dict[str, Any], *, at_commit: bool) -> None:
        self._books = books
        self._where = where
        self._row = (Jsonb(what), at_commit)

    async def __aenter__(self) -> Self:
        dsn = self._books.databases[self._where].superuser_dsn
        self._connection = await AsyncConnection.connect(dsn, autocommit=True)
        await self._connection.execute("SELECT pg_advisory_lock(%s)", (LOCK,))
        await self._connection.execute("INSERT INTO halt VALUES (%s, %s)", self._row)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # First nobody else halts, then he goes on.
        await self._connection.execute("DELETE FROM halt")
        await self._connection.close()

    async def reached(self) -> str:
        """Wait until somebody halts; the name of his process."""
        await self._books.until_held(self._where, LOCK)
        (name,) = self._books.held(self._where, LOCK)
        return name
