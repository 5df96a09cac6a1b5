"""One frozen settings tree. A flag beats the environment, which beats the TOML file, which beats the default."""

from relay.config.base import Duration, Frozen
from relay.config.broker import BrokerSettings, OnUnroutable
from relay.config.capture import CaptureSettings
from relay.config.loading import load
from relay.config.routing import RouteSettings
from relay.config.settings import ENV_PREFIX, HttpSettings, Settings
from relay.config.source import Ordering, SourceSettings
from relay.config.topology import TopologySettings

__all__ = [
    "ENV_PREFIX",
    "BrokerSettings",
    "CaptureSettings",
    "Duration",
    "Frozen",
    "HttpSettings",
    "OnUnroutable",
    "Ordering",
    "RouteSettings",
    "Settings",
    "SourceSettings",
    "TopologySettings",
    "load",
]
