"""`[[source]]`: a database that is tailed."""

import re
from datetime import timedelta
from enum import StrEnum
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict
from pydantic import Field, SecretStr, field_validator, model_validator

from relay.config.base import Duration, Frozen, from_json, in_order
from relay.config.capture import DEFAULT, CaptureSettings, LogicalCapture
from relay.wal.connection import database

_NAME: Final = re.compile(r"[a-z0-9_]{1,50}")
"""A source's name is part of its slot's name."""

_SLOT: Final = re.compile(r"[a-z0-9_]{1,63}")
"""What PostgreSQL takes for a slot's name."""


class Ordering(StrEnum):
    """How much of the order of an aggregate's messages pipelining may cost."""

    PIPELINED = "pipelined"
    """Any number are unconfirmed. After a negative confirm a successor may already have arrived."""
    STRICT = "strict"
    """At most one of an aggregate is unconfirmed."""


class SourceSettings(Frozen):
    """`[[source]]`: a database whose outbox is published. The name defaults to the database's."""

    name: str
    dsn: SecretStr
    slot: str
    publication: str
    ordering: Ordering = Ordering.PIPELINED
    outbox_retention: Duration = timedelta(days=7)
    """How long published rows stay in the outbox."""
    parked_limit: int = Field(default=10_000, gt=0)
    """The source stops rather than park more messages than this."""
    capture: tuple[CaptureSettings, ...] = DEFAULT
    """Which changes are messages."""

    @field_validator("capture", mode="before")
    @classmethod
    def _in_order(cls, captures: Any) -> Any:
        return in_order(from_json(captures), "[[source.capture]]", "RELAY_SOURCE__0__CAPTURE__0__KIND")

    @field_validator("capture")
    @classmethod
    def _apart(cls, captures: tuple[CaptureSettings, ...]) -> tuple[CaptureSettings, ...]:
        if not captures:
            raise ValueError("is empty: leave it out, or say what is captured")
        names = [capture.name for capture in captures]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"has two of the name {', '.join(twice)}: give them a name each")
        prefixes = [capture.prefix for capture in captures if isinstance(capture, LogicalCapture)]
        if len(set(prefixes)) < len(prefixes):
            raise ValueError("has two of kind logical with the same prefix")
        return captures

    @field_validator("outbox_retention")
    @classmethod
    def _is_some_time(cls, retention: timedelta) -> timedelta:
        if retention <= timedelta():
            raise ValueError("should be longer than nothing")
        return retention

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        dsn = given.get("dsn")
        name = given.get("name") or (_database_name(dsn) if isinstance(dsn, str) else None) or "unnamed"
        derived = f"relay_{name}" if _NAME.fullmatch(str(name)) else "relay"  # a wrong name is one mistake, not three
        return {"name": name, "slot": derived, "publication": derived} | given

    @field_validator("name")
    @classmethod
    def _is_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError("should have 1 to 50 lower-case letters, digits and underscores")
        return name

    @field_validator("slot")
    @classmethod
    def _is_slot(cls, name: str) -> str:
        if not _SLOT.fullmatch(name):
            raise ValueError("should have 1 to 63 lower-case letters, digits and underscores")
        return name

    @field_validator("publication")
    @classmethod
    def _is_identifier(cls, name: str) -> str:
        if not 0 < len(name.encode()) <= 63 or "\0" in name:
            raise ValueError("should have 1 to 63 bytes")
        return name

    @field_validator("dsn")
    @classmethod
    def _is_dsn(cls, dsn: SecretStr) -> SecretStr:
        try:
            parts = conninfo_to_dict(dsn.get_secret_value())
        except psycopg.ProgrammingError:  # whose message shows the DSN, password and all
            raise ValueError("should look like postgresql://user:password@host:5432/database") from None
        if not parts:
            raise ValueError("should not be empty")
        # A password with an unencoded @ or / makes a host or a port of its other half, which would then be shown.
        ports = [port for port in str(parts.get("port", "")).split(",") if port]
        names = f"{parts.get('host', '')}{parts.get('dbname', '')}"
        if "@" in names or not all(port.isdecimal() and 0 < int(port) < 65536 for port in ports):
            raise ValueError("has a host or a port that is none; write @ and / in a password as %40 and %2F")
        return dsn


def _database_name(dsn: str) -> str | None:
    """A source's name, where only its DSN is given: that of its database, in the letters that a slot may have."""
    try:
        return re.sub(r"[^a-z0-9_]", "_", database(dsn).lower())
    except psycopg.ProgrammingError:
        return None
