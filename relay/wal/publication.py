"""The publications of a source: which tables they should contain, created, changed, verified.

A source has two, because what is published is a property of a publication, and not of a table in it. `<name>`
publishes the INSERTs of append-only tables: outboxes and event stores. `<name>_tables` publishes every change of plain
tables. Were an append-only table published with its UPDATEs and DELETEs, PostgreSQL would refuse those of a table
without a key, and with them the service's own housekeeping.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final, LiteralString, NamedTuple

import psycopg
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

from relay.errors import SourceError
from relay.wal.connection import fetch_one
from relay.wal.identity import PUBLISHES_GENERATED, primary_keys, verify_exclusions, verify_identity
from relay.wal.selection import matching_tables
from relay.wal.table import TableName

__all__ = [
    "PUBLISHES_GENERATED",
    "Changes",
    "PublicationIncomplete",
    "PublicationMissing",
    "Published",
    "TableName",
    "Wanted",
    "ensure_publications",
    "matching_tables",
    "primary_keys",
    "publication_names",
    "read_publication",
    "verify_exclusions",
    "verify_identity",
]

TABLES_SUFFIX: Final = "_tables"
NAME_BYTES: Final = 63
"""PostgreSQL cuts longer identifiers off."""
DIGEST_LETTERS: Final = 8
"""What keeps two long names apart when their ends are cut off."""

INSERT_ONLY: Final = frozenset({"insert"})
EVERY_CHANGE: Final = frozenset({"insert", "update", "delete", "truncate"})
_ACTIONS: Final = ("insert", "update", "delete", "truncate")
_PUBLISH: Final[dict[frozenset[str], LiteralString]] = {
    INSERT_ONLY: "publish = 'insert'",
    EVERY_CHANGE: "publish = 'insert, update, delete, truncate'",
}

VIA_ROOT: Final = "publish_via_partition_root = true"
GENERATED: Final = "publish_generated_columns = stored"
"""Known from PostgreSQL 18 on. Without it, that refuses each UPDATE and DELETE of a table that has such a column and
REPLICA IDENTITY FULL."""


class PublicationMissing(SourceError):
    """The slot is in use and its publication is gone: PostgreSQL silently skips what is committed meanwhile."""

    hint = "Read docs/slot-loss.md: rows written without the publication were not, and will not be, published."


class PublicationIncomplete(SourceError):
    """The publication does not contain what the relay captures."""

    hint = "Give the source a publication of its own, which the relay creates, or mend this one by hand."


@dataclass(frozen=True, slots=True)
class Wanted:
    """The tables that a source captures."""

    append_only: frozenset[TableName] = frozenset()
    """Only their INSERTs are captured."""
    changing: frozenset[TableName] = frozenset()
    """Each change of them is captured."""


class PublishedTable(NamedTuple):
    """How a table stands in a publication."""

    name: TableName
    filtered: bool
    """It has a row filter."""
    listed: bool
    """It has a list of columns."""


@dataclass(frozen=True, slots=True)
class Published:
    """A publication, as the catalog has it."""

    name: str
    actions: frozenset[str]
    via_root: bool
    generated: bool
    """Stored generated columns are published, or the server knows no such thing."""
    all_tables: bool
    schemas: tuple[str, ...]
    """Whose tables are all published."""
    tables: tuple[PublishedTable, ...]

    @property
    def names(self) -> frozenset[TableName]:
        """The tables that it names."""
        return frozenset(table.name for table in self.tables)


@dataclass(frozen=True, slots=True)
class Changes:
    """What was done to the publications. A sentence for each, in this order."""

    created: tuple[str, ...] = ()
    """Publications. Up to PostgreSQL 17, a slot cannot decode what was written before the creation of a publication
    that it is asked for: stream without it until then."""
    added: frozenset[TableName] = frozenset()
    dropped: frozenset[TableName] = frozenset()

    def __iter__(self) -> Iterator[str]:
        yield from (f"created publication {name}" for name in self.created)
        if self.added:
            yield f"published from now on: {_listed(self.added)}"
        if self.dropped:
            yield f"published no longer: {_listed(self.dropped)}"


def publication_names(name: str, wanted: Wanted) -> tuple[str, ...]:
    """The publications to stream."""
    return (name, tables_publication(name)) if wanted.changing else (name,)


def tables_publication(name: str) -> str:
    """The name of the second publication."""
    second = name + TABLES_SUFFIX
    if len(second.encode()) <= NAME_BYTES:
        return second
    digest = "_" + sha256(name.encode()).hexdigest()[:DIGEST_LETTERS]
    room = NAME_BYTES - len(digest + TABLES_SUFFIX)
    return name.encode()[:room].decode(errors="ignore") + digest + TABLES_SUFFIX


async def read_publication(connection: AsyncConnection[TupleRow], name: str) -> Published | None:
    """The publication of that name, None when there is none."""
    query: LiteralString = """
        SELECT oid, pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot, puballtables,
               coalesce(to_jsonb(p) ->> 'pubgencols' = 's', true)
        FROM pg_publication AS p WHERE pubname = %s
    """
    tables: LiteralString = """
        SELECT n.nspname, c.relname, r.prqual IS NOT NULL, r.prattrs IS NOT NULL
        FROM pg_publication_rel AS r
        JOIN pg_class AS c ON c.oid = r.prrelid
        JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE r.prpubid = %s ORDER BY 1, 2
    """
    schemas: LiteralString = """
        SELECT n.nspname FROM pg_publication_namespace AS s
        JOIN pg_namespace AS n ON n.oid = s.pnnspid WHERE s.pnpubid = %s ORDER BY 1
    """
    row = await fetch_one(connection, query, (name,))
    if row is None:
        return None
    oid, *actions, via_root, all_tables, generated = row
    return Published(
        name,
        frozenset(action for action, there in zip(_ACTIONS, actions, strict=True) if there),
        via_root,
        generated,
        all_tables,
        tuple(schema for (schema,) in await (await connection.execute(schemas, (oid,))).fetchall()),
        tuple(
            PublishedTable(TableName(schema, table), filtered, listed)
            for schema, table, filtered, listed in await (await connection.execute(tables, (oid,))).fetchall()
        ),
    )


async def ensure_publications(
    connection: AsyncConnection[TupleRow], name: str, wanted: Wanted, known: frozenset[TableName] | None
) -> Changes:
    """Let the publications contain exactly what is wanted. Nothing must stream from them meanwhile; all or nothing.

    `known` are the tables that were published before, None before the first start. One of them that is missing now may
    have changed unseen: that is PublicationIncomplete or PublicationMissing, and so is a publication that is not as the
    relay makes it. Tables that are new are added, those that are no longer wanted dropped.

    The second publication is created even when it is empty, if the role may: then tables can enter it later without a
    publication that is younger than WAL that is still to be decoded. A table that cannot say which row changed, and a
    missing right, is a SourceError; its hint has the SQL that somebody else has to run.
    """
    await verify_identity(connection, wanted.changing)
    work = _Work(connection, known)
    async with connection.transaction():
        await work.ensure(name, INSERT_ONLY, wanted.append_only)
        second = tables_publication(name)
        if wanted.changing or await _is_ours(connection, second):
            await work.ensure(second, EVERY_CHANGE, wanted.changing)
    return Changes(tuple(work.created), frozenset(work.added), frozenset(work.dropped))


async def _is_ours(connection: AsyncConnection[TupleRow], second: str) -> bool:
    """Whether a second publication that nothing is wanted of can be looked after: it is as the relay makes it, or not
    there, and the role may create one."""
    found = await read_publication(connection, second)
    if found is not None:
        return _mistake(found, EVERY_CHANGE, frozenset()) is None
    may = "SELECT has_database_privilege(current_database(), 'CREATE')"
    return await fetch_one(connection, may) == (True,)


@dataclass(frozen=True, slots=True)
class _Work:
    """One pass over the publications, and what it did."""

    connection: AsyncConnection[TupleRow]
    known: frozenset[TableName] | None
    created: list[str] = field(default_factory=list)
    added: set[TableName] = field(default_factory=set)
    dropped: set[TableName] = field(default_factory=set)

    async def ensure(self, name: str, actions: frozenset[str], wanted: frozenset[TableName]) -> None:
        """See to one publication."""
        found = await read_publication(self.connection, name)
        if found is None:
            await self._create(name, actions, wanted)
            return
        mistake = _mistake(found, actions, wanted)
        if mistake is not None:
            raise mistake
        lost = (wanted - found.names) & (self.known or frozenset())
        if lost:
            raise PublicationIncomplete(
                f"publication {name} does not contain the table {_listed(lost)}",
                "It did: what was committed since then was not published. Read docs/slot-loss.md.",
            )
        await self._alter(name, "ADD", wanted - found.names)
        await self._alter(name, "DROP", found.names - wanted)
        self.added.update(wanted - found.names)
        self.dropped.update(found.names - wanted)

    async def _create(self, name: str, actions: frozenset[str], wanted: frozenset[TableName]) -> None:
        if self.known is not None and wanted & self.known:
            raise PublicationMissing(f"publication {name} is gone")
        tables = sql.SQL("FOR TABLE {} ").format(_identifiers(wanted)) if wanted else sql.SQL("")
        settings = [_PUBLISH[actions], VIA_ROOT]
        if self.connection.info.server_version >= PUBLISHES_GENERATED:
            settings.append(GENERATED)
        statement = sql.SQL("CREATE PUBLICATION {} {}WITH ({})").format(
            sql.Identifier(name), tables, sql.SQL(", ".join(settings))
        )
        await _execute(self.connection, statement, f"create publication {name}")
        self.created.append(name)
        self.added.update(wanted)

    async def _alter(self, name: str, verb: LiteralString, tables: frozenset[TableName]) -> None:
        if not tables:
            return
        statement = sql.SQL("ALTER PUBLICATION {} {} TABLE {}").format(
            sql.Identifier(name), sql.SQL(verb), _identifiers(tables)
        )
        await _execute(self.connection, statement, f"change publication {name}")


async def _execute(connection: AsyncConnection[TupleRow], statement: sql.Composed, what: str) -> None:
    """Run a statement that asks for the rights of an owner. Raises SourceError with the statement."""
    try:
        await connection.execute(statement)
    except psycopg.errors.InsufficientPrivilege as error:
        raise SourceError(
            f"role {connection.info.user} may not {what}: {error.diag.message_primary}",
            f"Let whoever owns it and its tables run: {statement.as_string(connection)};",
        ) from None


def _mistake(found: Published, actions: frozenset[str], wanted: frozenset[TableName]) -> PublicationIncomplete | None:
    """All that makes a publication differ from what the relay makes, apart from its tables."""
    wrong = list(_wrong_contents(found, wanted))
    settings: dict[str, None] = {}
    for setting, what in _wrong_settings(found, actions):
        settings[setting] = None
        wrong.append(what)
    if not wrong:
        return None
    words = f"publication {found.name} {'; '.join(wrong)}"
    if len(wrong) > len(settings):
        return PublicationIncomplete(words)
    statement = sql.SQL("ALTER PUBLICATION {} SET ({})").format(
        sql.Identifier(found.name), sql.SQL(", ".join(settings))
    )
    return PublicationIncomplete(
        words, f"Run: {statement.as_string()}; and read docs/slot-loss.md for what may not have come through."
    )


def _wrong_contents(found: Published, wanted: frozenset[TableName]) -> Iterator[str]:
    if found.all_tables:
        yield "is FOR ALL TABLES"
    if found.schemas:
        yield f"contains all tables of {', '.join(found.schemas)}"
    for table in found.tables:
        if table.name in wanted and table.filtered:
            yield f"filters the rows of {table.name}"
        if table.name in wanted and table.listed:
            yield f"leaves out columns of {table.name}"


def _wrong_settings(found: Published, actions: frozenset[str]) -> Iterator[tuple[LiteralString, str]]:
    """Each setting that is wrong, as it should be, and what is wrong about it."""
    publish = _PUBLISH[actions]
    if actions - found.actions:
        yield publish, f"does not publish {_plural(actions - found.actions)}"
    if found.actions - actions:
        yield publish, f"publishes {_plural(found.actions - actions)}, which it should not"
    if not found.via_root:
        what = "publishes partitions under their own names (publish_via_partition_root is off)"
        yield VIA_ROOT, what
    if actions == EVERY_CHANGE and not found.generated:
        what = "leaves out generated columns (publish_generated_columns is none)"
        yield GENERATED, what


def _plural(actions: Iterable[str]) -> str:
    """As docs and people write them: INSERTs, UPDATEs."""
    return ", ".join(f"{action.upper()}s" for action in _ACTIONS if action in actions)


def _identifiers(tables: Iterable[TableName]) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(*table) for table in sorted(tables))


def _listed(tables: Iterable[TableName]) -> str:
    return ", ".join(str(table) for table in sorted(tables))
