"""`[broker]`: the RabbitMQ that messages go to."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final
from urllib.parse import urlsplit

from pika import URLParameters
from pydantic import Field, SecretStr, field_validator

from relay.config.base import Frozen

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
