"""`[[source.capture]]`: which changes of a source are messages, and how they look."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from relay.broker.properties import JSON
from relay.capture import columns as row_columns
from relay.capture.debezium import DebeziumSettings
from relay.capture.message import OUTBOX
from relay.capture.outbox import SCHEMA, TABLE
from relay.config.base import Frozen, from_json
from relay.config.routing import RouteSettings
from relay.wal.pattern import ColumnPattern, TablePattern


class Envelope(StrEnum):
    """How a message is wrapped."""

    CLOUDEVENTS = "cloudevents"
    PLAIN = "plain"
    DEBEZIUM = "debezium"


class Snapshot(StrEnum):
    """What becomes of the rows that are there when the capture of their table begins."""

    INITIAL = "initial"
    """They are published first."""
    NEVER = "never"


def _parses(columns: Mapping[str, str]) -> Mapping[str, str]:
    if columns:
        row_columns.parse(columns)
    return columns


Columns = Annotated[Mapping[str, str], AfterValidator(_parses)]
"""For each part of a message a column, a path into a JSON column, or a 'literal'."""


def _is_table(text: str) -> str:
    if TablePattern.parse(text).name is None:
        raise ValueError("should be one table, like public.outbox")
    return text


def _are_tables(texts: tuple[str, ...]) -> tuple[str, ...]:
    if not texts:
        raise ValueError('should name a table at least, like ["public.customers", "sales.*"]')
    for text in texts:
        TablePattern.parse(text)
    return texts


def _are_columns(texts: frozenset[str]) -> frozenset[str]:
    for text in sorted(texts):
        ColumnPattern.parse(text)
    return texts


_OF_SEVERAL: Final = ("tables", "exclude_columns", "columns", "debezium", "routing")

Table = Annotated[str, AfterValidator(_is_table)]
Tables = Annotated[tuple[str, ...], AfterValidator(_are_tables)]
ExcludedColumns = Annotated[frozenset[str], AfterValidator(_are_columns)]
"""Names are those of SQL: what has upper case or dots in it is in double quotes."""


class _Capture(Frozen):
    """What every kind has."""

    name: str = Field(min_length=1, max_length=100)
    """Unique in its source. Parked messages remember it."""
    envelope: Envelope = Envelope.CLOUDEVENTS
    routing: RouteSettings | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: object) -> object:
        """The name is that of the kind. A list or a table that a variable gives is JSON."""
        if not isinstance(given, dict):
            return given
        read = {name: from_json(value) if name in _OF_SEVERAL else value for name, value in given.items()}
        return {"name": given.get("kind")} | read


class _Wrapped(_Capture):
    """A capture whose payload is the application's own."""

    @field_validator("envelope")
    @classmethod
    def _is_no_debezium(cls, envelope: Envelope) -> Envelope:
        if envelope is Envelope.DEBEZIUM:
            raise ValueError('cannot be debezium: that is what changes of tables look like (kind = "table")')
        return envelope


class _Rows(_Wrapped):
    """A capture of rows that are messages already."""

    columns: Columns = Field(default_factory=dict)
    """Where the parts of a message are; nothing for a table whose columns are named as those of the relay's own."""
    content_type: str = Field(default=JSON, min_length=1, max_length=255)
    """Of the bodies."""
    snapshot: Snapshot = Snapshot.INITIAL


class OutboxCapture(_Rows):
    """Rows of relay.outbox, or of another table that somebody writes messages to."""

    kind: Literal["outbox"]
    table: Table = "relay.outbox"

    @model_validator(mode="after")
    def _leaves_its_own_alone(self) -> "OutboxCapture":
        if self.is_own and self.columns:
            raise ValueError("has columns for relay.outbox, whose columns are what they are")
        return self

    @property
    def is_own(self) -> bool:
        """Whether the table is relay.outbox, however that is written."""
        return TablePattern.parse(self.table) == TablePattern(SCHEMA, TABLE)


class LogicalCapture(_Wrapped):
    """Logical messages: an outbox without a table."""

    kind: Literal["logical"]
    prefix: str = Field(default="relay.outbox", min_length=1)


class EventStoreCapture(_Rows):
    """Rows of an append-only table of events."""

    kind: Literal["event_store"]
    table: Table = "relay.event_store"


class TableCapture(_Capture):
    """Changes of plain tables."""

    kind: Literal["table"]
    tables: Tables
    exclude_columns: ExcludedColumns = frozenset()
    snapshot: Snapshot = Snapshot.INITIAL
    debezium: Mapping[str, str | bool | int] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_debezium(self) -> "TableCapture":
        if self.debezium and self.envelope is not Envelope.DEBEZIUM:
            raise ValueError('has settings of Debezium, but not envelope = "debezium"')
        DebeziumSettings.parse(self.debezium)
        return self


CaptureSettings = Annotated[
    OutboxCapture | LogicalCapture | EventStoreCapture | TableCapture, Field(discriminator="kind")
]

DEFAULT: tuple[CaptureSettings, ...] = (
    OutboxCapture(kind="outbox", name=OUTBOX),
    LogicalCapture(kind="logical", name="logical"),
)
"""What a source captures unless it says otherwise."""
