"""Where messages go: a part of `[broker.routing]`, or of a capture."""

from typing import Annotated

from pydantic import AfterValidator, model_validator

from relay.capture.routing import RouteTemplate
from relay.config.base import Frozen


def _parses(text: str) -> str:
    RouteTemplate.parse(text)
    return text


Template = Annotated[str, AfterValidator(_parses)]
"""Text with fields of the message in braces."""


class RouteSettings(Frozen):
    """An exchange, a routing key, or both; what is left out is taken from the next level."""

    exchange: Template | None = None
    routing_key: Template | None = None

    @model_validator(mode="after")
    def _says_something(self) -> "RouteSettings":
        if self.exchange is None and self.routing_key is None:
            raise ValueError("should have an exchange, a routing_key, or both")
        return self
