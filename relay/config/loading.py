"""Flags, environment and file become settings, or one error that names all that is wrong."""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsError

from relay.config.base import by_index
from relay.config.settings import ENV_PREFIX, Settings
from relay.errors import ConfigError


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
    for source in written.get("source", ()):
        if isinstance(source, dict) and "capture" in source:
            source["capture"] = by_index(source["capture"])
    if "source" in written:
        written["source"] = by_index(written["source"])
    if isinstance(written.get("topology"), dict):
        written["topology"] = {name: by_index(tables) for name, tables in written["topology"].items()}
    return written


def _path(loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Where a setting stands in the file: pydantic puts the kind of a capture behind its number."""
    return (*loc[:4], *loc[5:]) if len(loc) > 4 and loc[2] == "capture" else loc


def _sentence(problem: Mapping[str, Any]) -> str:
    """One problem: which setting, and what is wrong. Never what it was set to."""
    setting = ".".join(str(part) for part in _path(problem["loc"]))
    match problem["type"]:
        case "union_tag_not_found":
            return f"{setting}.kind is missing: outbox, logical, event_store or table"
        case "union_tag_invalid":
            return f"{setting}.kind should be outbox, logical, event_store or table"
        case "missing":
            return f"{setting} is missing"
        case "extra_forbidden":
            return f"{setting} is no setting"
        case "value_error":
            return f"{setting} {problem['ctx']['error']}"
        case "model_type" | "tuple_type" | "dict_type" | "mapping_type":
            return f"{setting} should be a table, like [broker] or [[source]]"
    return f"{setting}: {problem['msg']}"
