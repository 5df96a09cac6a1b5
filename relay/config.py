"""One frozen settings tree. A flag beats the environment, which beats the TOML file, which beats the default."""

import os
import re
import tomllib
from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import psycopg
from pika import URLParameters
from psycopg.conninfo import conninfo_to_dict
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from relay.errors import ConfigError
from relay.wal.connection import database

_NAME: Final = re.compile(r"[a-z0-9_]{1,50}")
"""A source's name is part of its slot's name."""

_SLOT: Final = re.compile(r"[a-z0-9_]{1,63}")
"""What PostgreSQL takes for a slot's name."""

_KINDS: Final = ("event", "command", "reply")

ENV_PREFIX: Final = "RELAY_"


_DURATION: Final = re.compile(r"(\d+)([smhd])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def _duration(given: Any) -> Any:
    """Read `90s`, `30m`, `12h` or `7d`."""
    found = _DURATION.fullmatch(given) if isinstance(given, str) else None
    if found is None:
        raise ValueError("should be a time like 90s, 30m, 12h or 7d")
    try:
        return timedelta(**{_UNITS[found[2]]: int(found[1])})
    except OverflowError:
        raise ValueError("should be less than a billion days") from None


Duration = Annotated[timedelta, BeforeValidator(_duration)]
"""A time as people write it: a number and one of s, m, h, d."""


class OnUnroutable(StrEnum):
    """What becomes of a message that no queue is bound for."""

    PARK = "park"
    """It is set aside, and with it what comes later of its aggregate, kind and destination."""
    IGNORE = "ignore"
    """It is counted, and dropped."""
    STOP = "stop"
    """The source stops."""


class Ordering(StrEnum):
    """How much of the order of an aggregate's messages pipelining may cost."""

    PIPELINED = "pipelined"
    """Any number are unconfirmed. After a negative confirm a successor may already have arrived."""
    STRICT = "strict"
    """At most one of an aggregate is unconfirmed."""


class Frozen(BaseModel):
    """A part of the tree."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class BrokerSettings(Frozen):
    """`[broker]`: the RabbitMQ that messages go to."""

    url: SecretStr
    max_message_bytes: int = Field(default=16 * 1024 * 1024, gt=0)
    """A body over this is parked. RabbitMQ closes the channel over one that is larger than its own max_message_size."""
    on_unroutable: Mapping[str, OnUnroutable] = Field(default_factory=dict)
    """By kind of message (event, command, reply), or by type, which comes first."""

    @field_validator("on_unroutable")
    @classmethod
    def _is_kind_or_type(cls, policies: Mapping[str, OnUnroutable]) -> Mapping[str, OnUnroutable]:
        misspelt = [name for name in policies if name.lower() in _KINDS and name not in _KINDS]
        if misspelt:
            raise ValueError(f"has {', '.join(misspelt)}: kinds are written event, command, reply")
        return policies

    @field_validator("url")
    @classmethod
    def _is_amqp(cls, url: SecretStr) -> SecretStr:
        text = url.get_secret_value()
        if not text.startswith(("amqp://", "amqps://")):
            raise ValueError("should look like amqp://user:password@host:5672/vhost")
        if "@" in "".join(urlsplit(text)[2:]):  # part of a password with an unencoded / in it
            raise ValueError("has an @ in its virtual host; write @ and / in a password as %40 and %2F")
        try:
            URLParameters(text)
        except (ValueError, TypeError, SyntaxError, OSError):  # pika evaluates the options behind ? as Python and files
            raise ValueError("should look like amqp://user:password@host:5672/vhost") from None
        return url


_LISTEN: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:/\s]+):(\d{1,5})")


class HttpSettings(Frozen):
    """`[http]`: where the relay answers /healthz and /readyz."""

    listen: str = "127.0.0.1:8088"
    """Host and port, nothing to be off."""

    @field_validator("listen")
    @classmethod
    def _is_address(cls, listen: str) -> str:
        found = _LISTEN.fullmatch(listen)
        if listen and (found is None or int(found[2]) > 65535):
            raise ValueError('should look like 127.0.0.1:8088 or [::1]:8088, or be "" to be off')
        return listen


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


class Settings(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        hide_input_in_errors=True,
    )

    broker: BrokerSettings | None = None
    http: HttpSettings = HttpSettings()
    source: tuple[SourceSettings, ...]

    @field_validator("source", mode="before")
    @classmethod
    def _in_order(cls, sources: Any) -> Any:
        """Sources are kept by their index while flags, environment and file are laid over each other."""
        if not isinstance(sources, Mapping):
            return sources
        if not all(isinstance(index, str) and index.isdecimal() for index in sources):
            raise ValueError("should be [[source]] tables in a file, or numbered from 0, like RELAY_SOURCE__0__DSN")
        return [sources[index] for index in sorted(sources, key=int)]

    @field_validator("source")
    @classmethod
    def _apart(cls, sources: tuple[SourceSettings, ...]) -> tuple[SourceSettings, ...]:
        if not sources:
            raise ValueError("is missing")
        names = [source.name for source in sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"has two of the name {', '.join(twice)}: give them a name each")
        if len({(source.dsn, source.slot) for source in sources}) < len(sources):
            raise ValueError("has the same database and slot twice: one of them would wait for the other for ever")
        return sources


def load(
    file: Path | None, *, dsn: str | None = None, amqp_url: str | None = None, needs_broker: bool = False
) -> Settings:
    """The settings of a command: two flags, the environment and a file, laid over each other.

    Raises ConfigError that names every setting which is wrong or missing.
    """
    flags: dict[str, Any] = {}
    if dsn is not None:
        flags["source"] = {"0": {"dsn": dsn}}
    if amqp_url is not None:
        flags["broker"] = {"url": amqp_url}
    written = {} if file is None else _read(file)
    problems = []
    try:
        settings = _layered(written)(**flags)
        if settings.broker is not None or not needs_broker:
            return settings
    except ValidationError as error:
        problems = [_sentence(problem) for problem in error.errors(include_input=False, include_url=False)]
    except SettingsError:
        problems = [
            f"a variable that holds a whole table ({ENV_PREFIX}SOURCE, {ENV_PREFIX}BROKER, {ENV_PREFIX}HTTP or "
            f"{ENV_PREFIX}BROKER__ON_UNROUTABLE) is not JSON; single settings are like {ENV_PREFIX}SOURCE__0__DSN"
        ]
    if needs_broker and "broker" not in written | flags and not any(name in os.environ for name in _BROKER_TWINS):
        problems.append("broker.url is missing")
    raise ConfigError(
        "the settings are wrong or not complete:" + "".join(f"\n  {problem}" for problem in problems),
        f"Settings come from {file or 'no file (give one with --config)'}, "
        f"from variables like {ENV_PREFIX}BROKER__URL and {ENV_PREFIX}SOURCE__0__DSN, and from flags.",
    )


_BROKER_TWINS: Final = (f"{ENV_PREFIX}BROKER__URL", f"{ENV_PREFIX}BROKER")


def _layered(written: dict[str, Any]) -> type[Settings]:
    """Settings whose lowest layer above the defaults is what a file says."""

    class Layered(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return (init_settings, env_settings, InitSettingsSource(settings_cls, written))

    return Layered


def _read(file: Path) -> dict[str, Any]:
    """A TOML file, its sources by their index. Raises ConfigError."""
    try:
        written = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}", "Give the path of a TOML file with --config.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}", "docs/configuration.md shows a whole file.") from None
    sources = written.get("source")
    if isinstance(sources, list):
        written["source"] = {str(index): source for index, source in enumerate(sources)}
    return written


def _sentence(problem: Mapping[str, Any]) -> str:
    """One problem: which setting, and what is wrong. Never what it was set to."""
    setting = ".".join(str(part) for part in problem["loc"])
    match problem["type"]:
        case "missing":
            return f"{setting} is missing"
        case "extra_forbidden":
            return f"{setting} is no setting"
        case "value_error":
            return f"{setting} {problem['ctx']['error']}"
        case "model_type" | "tuple_type" | "dict_type" | "mapping_type":
            return f"{setting} should be a table, like [broker] or [[source]]"
    return f"{setting}: {problem['msg']}"


def _database_name(dsn: str) -> str | None:
    """A source's name, where only its DSN is given: that of its database, in the letters that a slot may have."""
    try:
        return re.sub(r"[^a-z0-9_]", "_", database(dsn).lower())
    except psycopg.ProgrammingError:
        return None
