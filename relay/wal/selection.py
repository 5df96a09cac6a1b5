"""Which tables a setting means: patterns, resolved against a source's catalog."""

from collections.abc import Iterable, Sequence
from typing import Final, LiteralString

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from relay.errors import ConfigError, SourceError
from relay.wal.connection import fetch_one
from relay.wal.pattern import TablePattern
from relay.wal.table import TableName

FIRST_USER_OID: Final = 16384
"""Objects with lower ones belong to PostgreSQL itself."""

_ORDINARY, _PARTITIONED = "r", "p"
_KINDS: Final = {
    "v": "is a view",
    "m": "is a materialized view",
    "f": "is a foreign table",
    "S": "is a sequence",
    "i": "is an index",
    "I": "is an index",
    "c": "is a type",
    "t": "is a table of PostgreSQL itself",
}
_TEMPORARY, _UNLOGGED = "t", "u"


async def matching_tables(connection: AsyncConnection[TupleRow], patterns: Sequence[str]) -> set[TableName]:
    """The tables that are meant: `public.customers`, or `sales.*` for all of a schema that can be published.

    Partitions are captured through their root. Raises ConfigError for what is no pattern, and SourceError for tables
    and schemas that do not exist or cannot be published; it names all of them.
    """
    try:
        parsed = [TablePattern.parse(pattern) for pattern in patterns]
    except ValueError as error:
        raise ConfigError(str(error)) from None
    tables: set[TableName] = set()
    wrong: list[str] = []
    for schema, name in parsed:
        if name is None:
            found = await _tables_of(connection, schema)
            wrong += [f"schema {schema} does not exist"] if found is None else []
            tables |= found or set()
            continue
        table = TableName(schema, name)
        complaint = await _complaint(connection, table)
        wrong += [f"{table} {complaint}"] if complaint else []
        tables.add(table)
    related = await _related(connection, tables)
    wrong += [f"{table} inherits, or is inherited from: no publication keeps such tables apart" for table in related]
    if wrong:
        hint = 'Names with upper case or dots need double quotes inside the setting, as in public."Customers".'
        raise SourceError(f"tables that cannot be captured: {'; '.join(wrong)}", hint)
    return tables


async def _related(connection: AsyncConnection[TupleRow], tables: Iterable[TableName]) -> list[TableName]:
    """Those of the tables that have parents or children by INHERITS, which is not how partitions do it."""
    names = sorted(tables)
    query: LiteralString = """
        SELECT wanted.schema, wanted.name
        FROM unnest(%s::text[], %s::text[]) AS wanted (schema, name)
        JOIN pg_namespace AS n ON n.nspname = wanted.schema
        JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = wanted.name
        WHERE EXISTS (
            SELECT FROM pg_inherits AS i JOIN pg_class AS child ON child.oid = i.inhrelid
            WHERE c.oid IN (i.inhparent, i.inhrelid) AND NOT child.relispartition)
        ORDER BY 1, 2
    """
    lists = [table.schema for table in names], [table.name for table in names]
    return [TableName(*row) for row in await (await connection.execute(query, lists)).fetchall()]


async def table_oids(connection: AsyncConnection[TupleRow], tables: Iterable[TableName]) -> dict[TableName, int]:
    """The oids of tables that there are."""
    names = list(tables)
    query: LiteralString = """
        SELECT n.nspname, c.relname, c.oid::bigint
        FROM unnest(%s::text[], %s::text[]) AS wanted (schema, name)
        JOIN pg_namespace AS n ON n.nspname = wanted.schema
        JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = wanted.name
    """
    lists = [table.schema for table in names], [table.name for table in names]
    rows = await (await connection.execute(query, lists)).fetchall()
    return {TableName(schema, name): oid for schema, name, oid in rows}


async def _tables_of(connection: AsyncConnection[TupleRow], schema: str) -> set[TableName] | None:
    """Every table of a schema that a publication takes; None when there is no such schema."""
    query: LiteralString = """
        SELECT array_remove(array_agg(c.relname::text), NULL) FROM pg_namespace AS n
        LEFT JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relkind IN ('r', 'p') AND c.relpersistence = 'p'
            AND NOT c.relispartition AND c.oid >= %s
        WHERE n.nspname = %s GROUP BY n.oid
    """
    row = await fetch_one(connection, query, (FIRST_USER_OID, schema))
    return None if row is None else {TableName(schema, name) for name in row[0]}


async def _complaint(connection: AsyncConnection[TupleRow], table: TableName) -> str | None:
    """Why a table cannot be published, None when it can."""
    query: LiteralString = """
        SELECT c.oid::bigint, c.relkind::text, c.relpersistence::text, root.relname, root_schema.nspname
        FROM pg_class AS c
        JOIN pg_namespace AS n ON n.oid = c.relnamespace
        LEFT JOIN pg_class AS root ON c.relispartition AND root.oid = pg_partition_root(c.oid)
        LEFT JOIN pg_namespace AS root_schema ON root_schema.oid = root.relnamespace
        WHERE n.nspname = %s AND c.relname = %s
    """
    row = await fetch_one(connection, query, table)
    if row is None:
        return "does not exist"
    oid, kind, persistence, root, root_schema = row
    if oid < FIRST_USER_OID:
        return _KINDS["t"]
    if root is not None:
        return f"is a partition: capture {TableName(root_schema, root)}"
    if kind not in (_ORDINARY, _PARTITIONED):
        return _KINDS.get(kind, "is no table")
    if persistence == _UNLOGGED:
        return "is unlogged, and its changes are in no WAL"
    return "is temporary" if persistence == _TEMPORARY else None
