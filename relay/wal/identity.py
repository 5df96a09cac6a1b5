"""What tells a table's rows from each other: verified before a table is published, and looked up.

Once a table is in a publication that publishes UPDATE and DELETE, PostgreSQL refuses these for a table without replica
identity. So it is looked at before. Source: PostgreSQL documentation, "Logical Replication", "Publication".
"""

from collections.abc import Collection, Iterable
from itertools import groupby
from typing import Final, LiteralString, NamedTuple

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from relay.errors import ConfigError, SourceError
from relay.wal.pattern import ColumnPattern
from relay.wal.table import TableName

OWN_SCHEMA: Final = "relay"

PUBLISHES_GENERATED: Final = 180000
"""The first version that can publish generated columns, if they are stored; none can those that are virtual."""

_DEFAULT, _FULL, _NOTHING = "d", "f", "n"
_FOREIGN: Final = "f"
_UNLOGGED: Final = "u"

_TABLES: LiteralString = """
    WITH wanted AS (
        SELECT c.oid AS root, n.nspname AS schema, c.relname AS name
        FROM unnest(%(schemas)s::text[], %(names)s::text[]) AS given (schema, name)
        JOIN pg_namespace AS n ON n.nspname = given.schema
        JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = given.name
    ), member AS (
        SELECT root, wanted.schema, wanted.name, coalesce(tree.relid, root) AS oid
        FROM wanted LEFT JOIN LATERAL pg_partition_tree(root) AS tree ON true
        WHERE tree.isleaf IS NOT FALSE OR tree.relid = root
    )
    SELECT member.schema, member.name, n.nspname, c.relname, c.relkind::text, c.relpersistence::text,
           c.relreplident::text, coalesce(key.columns, '{}'), coalesce(key.generated, false),
           EXISTS (SELECT FROM pg_index WHERE indrelid = c.oid AND indisprimary AND NOT indimmediate),
           EXISTS (SELECT FROM pg_attribute WHERE attrelid = c.oid AND attgenerated = 'v' AND NOT attisdropped)
    FROM member
    JOIN pg_class AS c ON c.oid = member.oid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    LEFT JOIN LATERAL (
        SELECT array_agg(a.attname::text ORDER BY a.attnum) AS columns, bool_or(a.attgenerated <> '') AS generated
        FROM pg_index AS i
        JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS part (attnum, place) ON part.place <= i.indnkeyatts
        JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = part.attnum
        WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate
          AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END
    ) AS key ON true
    ORDER BY 1, 2, c.oid <> member.root, 3, 4
"""
"""The tables, each followed by the partitions that hold its rows."""

_PRIMARY_KEYS: LiteralString = """
    SELECT i.indrelid::bigint, array_agg(a.attname::text ORDER BY part.place)
    FROM pg_index AS i
    JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS part (attnum, place) ON part.place <= i.indnkeyatts
    JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = part.attnum
    WHERE i.indisprimary AND i.indrelid = ANY (%s::bigint[]::oid[])
    GROUP BY i.indrelid
"""

_COLUMNS: LiteralString = """
    SELECT n.nspname, c.relname, a.attname,
           EXISTS (
               SELECT FROM pg_index AS i
               JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS part (attnum, place)
                   ON part.place <= i.indnkeyatts
               WHERE i.indrelid = c.oid AND part.attnum = a.attnum
                 AND CASE c.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END)
    FROM unnest(%(schemas)s::text[], %(names)s::text[]) AS given (schema, name)
    JOIN pg_namespace AS n ON n.nspname = given.schema
    JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = given.name
    JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY 1, 2, a.attnum
"""


class _Member(NamedTuple):
    """A table, or a partition that holds rows of it."""

    root: TableName
    table: TableName
    kind: str
    persistence: str
    identity: str
    columns: tuple[str, ...]
    """Of its replica identity, in the order of the table; none for FULL, NOTHING, and where there is no such index."""
    generated: bool
    deferrable: bool
    virtual: bool


async def verify_identity(connection: AsyncConnection[TupleRow], tables: Iterable[TableName]) -> None:
    """Raise SourceError unless each change of these tables, and of their partitions, will say which row it is about.

    Names all that do not, and leaves them as they are.
    """
    rows = await (await connection.execute(_TABLES, _names(tables))).fetchall()
    members = [
        _Member(TableName(*row[:2]), TableName(*row[2:4]), row[4], row[5], row[6], tuple(row[7]), *row[8:])
        for row in rows
    ]
    wrong = [
        (one.table, what)
        for _, group in groupby(members, key=lambda member: member.root)
        for one, what in _complaints(list(group), connection.info.server_version)
    ]
    if wrong:
        table, _ = wrong[0]
        raise SourceError(
            f"tables that cannot be captured: {'; '.join(f'{table} {what}' for table, what in wrong)}",
            f"Give the table a primary key, or run `ALTER TABLE {_quoted(table)} REPLICA IDENTITY FULL`, for each "
            "partition too; or leave it out of the capture's tables. See docs/capture-table.md.",
        )


def _complaints(members: list[_Member], version: int) -> Iterable[tuple[_Member, str]]:
    root = members[0]
    for member in members:
        what = _own_complaint(member, version) or (_complaint_below(member, root) if member is not root else None)
        if what is not None:
            yield member, what


def _own_complaint(member: _Member, version: int) -> str | None:
    """What is wrong with a table by itself."""
    if member.table.schema == OWN_SCHEMA:
        return "is the relay's own: it would publish what it writes while it publishes"
    if member.kind == _FOREIGN:
        return "is a foreign table, and its changes are in no WAL"
    if member.persistence == _UNLOGGED:
        return "is unlogged, and its changes are in no WAL"
    if member.identity == _NOTHING:
        return "has REPLICA IDENTITY NOTHING"
    if member.identity == _FULL:
        unpublished = version >= PUBLISHES_GENERATED and member.virtual
        return (
            "has REPLICA IDENTITY FULL and a virtual column, which PostgreSQL cannot publish" if unpublished else None
        )
    if not member.columns and member.identity == _DEFAULT:
        return "has a primary key that is deferrable" if member.deferrable else "has no primary key"
    if not member.columns:
        return "has lost the index of its REPLICA IDENTITY"
    if member.generated and version < PUBLISHES_GENERATED:
        return "has a generated column in its key, which PostgreSQL publishes from version 18 on"
    return None


def _complaint_below(member: _Member, root: _Member) -> str | None:
    """What is wrong with a partition. pgoutput describes the root, and sends old rows as the partition has them.

    A root with FULL and a partition without: the old row comes as if it were whole, with nulls where nothing is known.
    Other columns in the partition's identity: the old key comes with nulls. More than the root asks for does no harm.
    """
    if root.identity == _FULL and member.identity != _FULL:
        return f"has no REPLICA IDENTITY FULL, which {root.table} has"
    if root.identity != _FULL and member.identity != _FULL and set(member.columns) != set(root.columns):
        columns, others = ", ".join(member.columns), ", ".join(root.columns)
        return f"has a REPLICA IDENTITY of {columns}, where {root.table} has one of {others}"
    return None


async def verify_exclusions(
    connection: AsyncConnection[TupleRow], tables: Iterable[TableName], exclude: Iterable[str]
) -> None:
    """Raise ConfigError unless each excluded column exists, and none is needed to say which row changed.

    A misspelt one would publish what it was meant to hide. `exclude` is like `password` or `public.customers.ssn`.
    """
    columns = [
        (TableName(schema, table), str(column), bool(is_key))
        for schema, table, column, is_key in await (await connection.execute(_COLUMNS, _names(tables))).fetchall()
    ]
    wrong: list[str] = []
    for text in sorted(exclude):
        try:
            pattern = ColumnPattern.parse(text)
        except ValueError as error:
            wrong.append(str(error))
            continue
        covered = [column for column in columns if pattern.covers(*column[:2])]
        if not covered:
            wrong.append(f"{text} is a column of no table that is captured")
        wrong += [f"{text} is in the key of {table}" for table, _, is_key in covered if is_key]
    if wrong:
        hint = "Correct the names; a column of the key cannot be left out, as it says which row changed."
        raise ConfigError(f"exclude_columns: {'; '.join(wrong)}", hint)


async def primary_keys(connection: AsyncConnection[TupleRow], oids: Collection[int]) -> dict[int, tuple[str, ...]]:
    """The columns of the primary keys of these tables, in the order of the key. Those without one are left out."""
    rows = await (await connection.execute(_PRIMARY_KEYS, (list(oids),))).fetchall()
    return {oid: tuple(columns) for oid, columns in rows}


def _names(tables: Iterable[TableName]) -> dict[str, list[str]]:
    names = sorted(tables)
    return {"schemas": [table.schema for table in names], "names": [table.name for table in names]}


def _quoted(table: TableName) -> str:
    """As SQL that can be pasted."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in table)
