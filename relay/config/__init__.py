"""One frozen settings tree. A flag beats the environment, which beats the TOML file, which beats the default."""

from relay.config.base import Duration, Frozen
from relay.config.broker import BrokerSettings, OnUnroutable
from relay.config.loading import load
from relay.config.settings import ENV_PREFIX, HttpSettings, Settings
from relay.config.source import Ordering, SourceSettings

__all__ = [
    "ENV_PREFIX",
    "BrokerSettings",
    "Duration",
    "Frozen",
    "HttpSettings",
    "OnUnroutable",
    "Ordering",
    "Settings",
    "SourceSettings",
    "load",
]
