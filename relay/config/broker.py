"""`[broker]`: the RabbitMQ that messages go to."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final
from urllib.parse import urlsplit

from pika import URLParameters
from pydantic import Field, SecretStr, field_validator

from relay.config.base import Frozen
from relay.config.routing import RouteSettings

_KINDS: Final = ("event", "command", "reply")


class OnUnroutable(StrEnum):
    """What becomes of a message that no queue is bound for."""

    PARK = "park"
    """It is set aside, and with it what comes later of its aggregate, kind and destination."""
    IGNORE = "ignore"
    """It is counted, and dropped."""
    STOP = "stop"
    """The source stops."""


class BrokerSettings(Frozen):
    """`[broker]`: the RabbitMQ that messages go to."""

    url: SecretStr
    management_url: SecretStr | None = None
    """Where `relay topology` reads what is there. Without it: the host, user and password of `url`."""
    max_message_bytes: int = Field(default=16 * 1024 * 1024, gt=0)
    """A body over this is parked. RabbitMQ closes the channel over one that is larger than its own max_message_size."""
    on_unroutable: Mapping[str, OnUnroutable] = Field(default_factory=dict)
    """By kind of message (event, command, reply), or by type, which comes first."""

    routing: Mapping[str, RouteSettings] = Field(default_factory=dict)
    """Where messages go: by kind, or by type, which comes first."""

    @field_validator("on_unroutable", "routing")
    @classmethod
    def _is_kind_or_type(cls, given: Mapping[str, object]) -> Mapping[str, object]:
        misspelt = [name for name in given if name.lower() in _KINDS and name not in _KINDS]
        if misspelt:
            raise ValueError(f"has {', '.join(misspelt)}: kinds are written event, command, reply")
        return given

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

    @field_validator("management_url")
    @classmethod
    def _is_http(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not _is_web_address(url.get_secret_value()):
            raise ValueError(
                "should look like http://user:password@host:15672; write @ and / in a password as %40, %2F"
            )
        return url


def _is_web_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and "@" not in parts.path
    except ValueError:  # a port that is no number
        return False
