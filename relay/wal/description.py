"""What a source's catalogs say of a table: as pgoutput would describe it, its types and its primary key."""

from collections.abc import Mapping
from typing import LiteralString, Self

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from relay.errors import SourceError
from relay.wal.catalog import load_types
from relay.wal.connection import connect, fetch_one, refusal
from relay.wal.identity import primary_keys
from relay.wal.pgoutput import Column, Relation
from relay.wal.pgtype import PgType
from relay.wal.publication import PUBLISHES_GENERATED
from relay.wal.table import TableName

_RELATION: LiteralString = """
    SELECT c.oid::bigint, c.relreplident::text,
           array_agg(a.attname::text ORDER BY a.attnum),
           array_agg(coalesce(a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1]), false) ORDER BY a.attnum),
           array_agg(a.atttypid::bigint ORDER BY a.attnum),
           array_agg(a.atttypmod ORDER BY a.attnum)
    FROM pg_class AS c
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated IN ('', %s)
    LEFT JOIN pg_index AS i ON i.indrelid = c.oid
        AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END
    WHERE n.nspname = %s AND c.relname = %s
    GROUP BY c.oid, c.relreplident
"""


async def describe(connection: AsyncConnection[TupleRow], table: TableName) -> Relation:
    """The table as pgoutput describes it: with stored generated columns where the server can publish them.

    Raises SourceError when there is none.
    """
    stored = "s" if connection.info.server_version >= PUBLISHES_GENERATED else ""
    row = await fetch_one(connection, _RELATION, (stored, *table))
    if row is None:
        raise SourceError(f"there is no table {table}, or it has no columns")
    oid, identity, names, keys, types, modifiers = row
    columns = tuple(Column(*column) for column in zip(names, keys, types, modifiers, strict=True))
    return Relation(oid, table.schema, table.name, identity, columns)


async def types_and_key(
    connection: AsyncConnection[TupleRow], relation: Relation
) -> tuple[Mapping[int, PgType], tuple[str, ...]]:
    """The types of a relation's columns, and its primary key; both as they are now."""
    types = await load_types(connection, {column.type_oid for column in relation.columns})
    keys = await primary_keys(connection, [relation.oid])
    return types, keys.get(relation.oid, ())


class Descriptions:
    """Looks up what a stream does not say of its tables, on a connection of its own that opens when it is needed."""

    def __init__(self, dsn: str, label: str) -> None:
        self._dsn = dsn
        self._label = label
        self._connection: AsyncConnection[TupleRow] | None = None

    async def types_and_key(self, relation: Relation) -> tuple[Mapping[int, PgType], tuple[str, ...]]:
        """The types of a relation's columns, and its primary key, as they are now. Raises SourceAway or SourceError."""
        try:
            if self._connection is None:
                self._connection = await connect(self._dsn, name=self._label)
            return await types_and_key(self._connection, relation)
        except psycopg.Error as error:
            raise refusal(error, self._dsn) from None

    async def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
