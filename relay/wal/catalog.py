"""Types, as the catalog of a source describes them now."""

from collections.abc import Iterable
from typing import LiteralString, NamedTuple

from psycopg import AsyncConnection
from psycopg.rows import TupleRow, class_row

from relay.wal.pgtype import Category, Field, PgType, unknown


class _Row(NamedTuple):
    """A type, with the oids of what it is made of."""

    oid: int
    namespace: str
    name: str
    category: str
    element: int | None
    delimiter: str
    modifier: int
    field_names: list[str]
    field_types: list[int]
    field_modifiers: list[int]


# What a type is made of shows in its text. So an array is what array_out writes: int2vector and oidvector have elements
# and the catalog's category of arrays too, but their text is their own.
_QUERY: LiteralString = """
    WITH RECURSIVE wanted AS (
        SELECT unnest(%s::oid[]) AS oid
        UNION
        SELECT part.oid
        FROM wanted
        JOIN pg_catalog.pg_type ON pg_type.oid = wanted.oid
        CROSS JOIN LATERAL (
            SELECT typbasetype AS oid WHERE typtype = 'd'
            UNION ALL
            SELECT typelem WHERE typoutput = 'pg_catalog.array_out'::pg_catalog.regproc
            UNION ALL
            SELECT rngsubtype FROM pg_catalog.pg_range WHERE rngtypid = pg_type.oid
            UNION ALL
            SELECT rngtypid FROM pg_catalog.pg_range WHERE rngmultitypid = pg_type.oid
            UNION ALL
            SELECT atttypid FROM pg_catalog.pg_attribute
            WHERE typtype = 'c' AND attrelid = typrelid AND attnum > 0 AND NOT attisdropped
        ) AS part
    )
    SELECT pg_type.oid::int8 AS oid,
           nspname::text AS namespace,
           typname::text AS name,
           CASE
               WHEN typtype = 'd' THEN 'domain'
               WHEN typtype = 'e' THEN 'enum'
               WHEN typtype = 'c' THEN 'composite'
               WHEN typtype = 'r' THEN 'range'
               WHEN typtype = 'm' THEN 'multirange'
               WHEN typoutput = 'pg_catalog.array_out'::pg_catalog.regproc THEN 'array'
               ELSE 'base'
           END AS category,
           CASE
               WHEN typtype = 'd' THEN typbasetype
               WHEN typtype = 'r' THEN (SELECT rngsubtype FROM pg_catalog.pg_range WHERE rngtypid = pg_type.oid)
               WHEN typtype = 'm' THEN (SELECT rngtypid FROM pg_catalog.pg_range WHERE rngmultitypid = pg_type.oid)
               WHEN typoutput = 'pg_catalog.array_out'::pg_catalog.regproc THEN typelem
           END::int8 AS element,
           typdelim::text AS delimiter,
           typtypmod AS modifier,
           field_names, field_types, field_modifiers
    FROM wanted
    JOIN pg_catalog.pg_type ON pg_type.oid = wanted.oid
    JOIN pg_catalog.pg_namespace ON pg_namespace.oid = typnamespace
    CROSS JOIN LATERAL (
        SELECT coalesce(array_agg(attname::text ORDER BY attnum), '{}') AS field_names,
               coalesce(array_agg(atttypid::int8 ORDER BY attnum), '{}') AS field_types,
               coalesce(array_agg(atttypmod ORDER BY attnum), '{}') AS field_modifiers
        FROM pg_catalog.pg_attribute
        WHERE typtype = 'c' AND attrelid = typrelid AND attnum > 0 AND NOT attisdropped
    ) AS fields
"""


async def load_types(connection: AsyncConnection[TupleRow], oids: Iterable[int]) -> dict[int, PgType]:
    """The types with these oids, each with all that it is made of. Those that are gone are `pgtype.unknown`.

    One query, so that all of it is of one moment: that of the call, and not of the change in the WAL that the types are
    wanted for. Raises psycopg's errors.
    """
    wanted = list(oids)
    cursor = connection.cursor(row_factory=class_row(_Row))
    await cursor.execute(_QUERY, (wanted,))
    return _Types({row.oid: row for row in await cursor.fetchall()}).of(wanted)


class _Types:
    """Puts types together, each once. PostgreSQL lets no type contain itself."""

    def __init__(self, rows: dict[int, _Row]) -> None:
        self._rows = rows
        self._made: dict[int, PgType] = {}

    def of(self, oids: Iterable[int]) -> dict[int, PgType]:
        return {oid: self._type(oid) for oid in oids}

    def _type(self, oid: int) -> PgType:
        if oid not in self._made:
            row = self._rows.get(oid)
            self._made[oid] = self._make(row) if row else unknown(oid)
        return self._made[oid]

    def _make(self, row: _Row) -> PgType:
        fields = zip(row.field_names, row.field_types, row.field_modifiers, strict=True)
        return PgType(
            oid=row.oid,
            namespace=row.namespace,
            name=row.name,
            category=Category(row.category),
            element=None if row.element is None else self._type(row.element),
            delimiter=row.delimiter,
            modifier=row.modifier,
            fields=tuple(Field(name, self._type(oid), modifier) for name, oid, modifier in fields),
        )
