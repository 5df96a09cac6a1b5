"""The whole settings tree. A flag beats the environment, which beats the TOML file, which beats the default."""

import re
from typing import Any, Final

from pydantic import field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from relay.config.base import Frozen, in_order
from relay.config.broker import BrokerSettings
from relay.config.source import SourceSettings
from relay.config.topology import TopologySettings

ENV_PREFIX: Final = "RELAY_"

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
    topology: TopologySettings = TopologySettings()
    source: tuple[SourceSettings, ...]

    @field_validator("source", mode="before")
    @classmethod
    def _in_order(cls, sources: Any) -> Any:
        return in_order(sources, "[[source]]", f"{ENV_PREFIX}SOURCE__0__DSN")

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
