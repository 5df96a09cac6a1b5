"""What a source captures: its settings, resolved against the tables of its database."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Self, TypeAlias

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

import relay
from relay.capture import columns
from relay.capture.captures import Captured, Captures
from relay.capture.change import Writer
from relay.capture.debezium import DebeziumSettings, DebeziumWriter
from relay.capture.logical import LogicalCapture
from relay.capture.native import NativeWriter
from relay.capture.outbox import OutboxCapture
from relay.capture.rows import RowCapture
from relay.capture.table import TableCapture
from relay.config import SourceSettings
from relay.config import capture as settings
from relay.errors import ConfigError
from relay.wal.connection import database
from relay.wal.identity import verify_exclusions
from relay.wal.lsn import Lsn
from relay.wal.pattern import TablePattern
from relay.wal.publication import Wanted
from relay.wal.selection import matching_tables, table_oids
from relay.wal.table import TableName

TableSettings: TypeAlias = settings.OutboxCapture | settings.EventStoreCapture | settings.TableCapture


@dataclass(frozen=True, slots=True)
class Capturing:
    """Which tables a source captures, and how. Each table by one capture."""

    source: SourceSettings
    tables: Mapping[TableName, TableSettings] = field(default_factory=dict)
    oids: Mapping[TableName, int] = field(default_factory=dict)

    @classmethod
    async def resolve(cls, connection: AsyncConnection[TupleRow], source: SourceSettings) -> Self:
        """Look up which tables there are. Raises SourceError for one that cannot be captured, or ConfigError.

        A table that is named counts before all of a schema: an outbox may lie beside the tables of `public.*`.
        """
        named = await _found(connection, source, whole_schemas=False)
        tables = await _found(connection, source, whole_schemas=True, but=named) | named
        for capture in source.capture:
            if isinstance(capture, settings.TableCapture):
                own = [table for table, one in tables.items() if one is capture]
                await verify_exclusions(connection, own, capture.exclude_columns)
        return cls(source, tables, await table_oids(connection, tables))

    @property
    def wanted(self) -> Wanted:
        """What the publications have to contain."""
        changing = {table for table, capture in self.tables.items() if isinstance(capture, settings.TableCapture)}
        return Wanted(frozenset(self.tables.keys() - changing), frozenset(changing))

    def copied(self, table: TableName) -> bool:
        """Whether the rows that are there when the capture of a table begins are published."""
        return self.tables[table].snapshot is settings.Snapshot.INITIAL

    def captures(
        self, system_identifier: str, since: Mapping[TableName, Lsn], on_ignored: Callable[[], None]
    ) -> Captures:
        """The captures, for one stream."""
        schemas = [
            (TablePattern.parse(pattern), capture.name)
            for capture in self.source.capture
            if isinstance(capture, settings.TableCapture)
            for pattern in capture.tables
        ]
        made = {
            capture.name: self._capture(capture)
            for capture in self.source.capture
            if not isinstance(capture, settings.LogicalCapture)
        }
        logical = [
            LogicalCapture(capture.name, capture.prefix)
            for capture in self.source.capture
            if isinstance(capture, settings.LogicalCapture)
        ]
        tables = {table: made[capture.name] for table, capture in self.tables.items()}
        oids = {self.oids[table]: table for table in tables}
        patterns = [(pattern, made[name]) for pattern, name in schemas]
        return Captures(system_identifier, tables, logical, since, on_ignored, oids=oids, patterns=patterns)

    def capture_of(self, table: TableName) -> Captured:
        """A capture for one table alone."""
        return self._capture(self.tables[table])

    def _capture(self, capture: TableSettings) -> Captured:
        if isinstance(capture, settings.TableCapture):
            return TableCapture(capture.name, capture.exclude_columns, self._writer(capture))
        if isinstance(capture, settings.OutboxCapture) and capture.is_own:
            return OutboxCapture(capture.name)
        like = columns.EVENT_STORE if isinstance(capture, settings.EventStoreCapture) else columns.OUTBOX
        return RowCapture(capture.name, columns.parse(capture.columns) if capture.columns else like)

    def _writer(self, capture: settings.TableCapture) -> Writer:
        if capture.envelope is not settings.Envelope.DEBEZIUM:
            return NativeWriter()
        given = DebeziumSettings.parse(capture.debezium)
        return DebeziumWriter(given, self.source.name, database(self.source.dsn.get_secret_value()), relay.__version__)


async def _found(
    connection: AsyncConnection[TupleRow],
    source: SourceSettings,
    *,
    whole_schemas: bool,
    but: Collection[TableName] = (),
) -> dict[TableName, TableSettings]:
    """The tables that are captured because they are named, or because all of their schema are."""
    found: dict[TableName, TableSettings] = {}
    for capture in source.capture:
        if isinstance(capture, settings.LogicalCapture):
            continue
        patterns = capture.tables if isinstance(capture, settings.TableCapture) else (capture.table,)
        meant = [pattern for pattern in patterns if (TablePattern.parse(pattern).name is None) == whole_schemas]
        for table in sorted(await matching_tables(connection, meant) - set(but)):
            other = found.setdefault(table, capture)
            if other is not capture:
                hint = "A table has one capture: leave one out."
                raise ConfigError(f"{table} is captured twice, by {other.name} and {capture.name}", hint)
    return found
