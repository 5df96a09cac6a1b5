"""The AMQP properties of a message as JSON, and back: a message that is put off stays what it was."""

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from decimal import Decimal
from math import isfinite
from typing import Any, Final, cast

from pydantic import JsonValue

from relay.broker.properties import HeaderValue, Properties

# What JSON has no type for is an object with one of these as its only name.
_BYTES: Final = "base64"
_TIME: Final = "time"
_DECIMAL: Final = "decimal"
_FLOAT: Final = "float"
_TABLE: Final = "table"
_TAGS: Final = frozenset({_BYTES, _TIME, _DECIMAL, _FLOAT, _TABLE})


def to_json(properties: Properties) -> str:
    """Write properties, headers of every type that AMQP has among them."""
    said = {name: value for name, value in asdict(properties).items() if value is not None}
    said["headers"] = {name: _encoded(value) for name, value in properties.headers.items()}
    return json.dumps(said)


def from_json(said: Mapping[str, JsonValue]) -> Properties:
    """Read properties that `to_json` has written."""
    headers = cast(Mapping[str, JsonValue], said["headers"])
    fields: dict[str, Any] = {"message_id": None, "content_type": None, **said}
    return Properties(**fields | {"headers": {name: _decoded(value) for name, value in headers.items()}})


def _encoded(value: object) -> JsonValue:
    match value:
        case bool() | str() | int() | None:
            return value
        case float():
            return value if isfinite(value) else {_FLOAT: repr(value)}
        case bytes() | bytearray():
            return {_BYTES: b64encode(value).decode()}
        case datetime():
            return {_TIME: value.isoformat()}
        case Decimal():
            return {_DECIMAL: str(value)}
        case list():
            return [_encoded(one) for one in value]
        case dict():
            table: dict[str, JsonValue] = {str(name): _encoded(one) for name, one in value.items()}
            return {_TABLE: table} if len(table) == 1 and table.keys() <= _TAGS else table
    raise TypeError(f"AMQP has no headers of type {type(value).__name__}")


def _decoded(value: JsonValue) -> HeaderValue:
    if isinstance(value, list):
        return [_decoded(one) for one in value]
    if not isinstance(value, dict):
        return value
    match list(value.items()):
        case [("base64", str(text))]:
            return b64decode(text)
        case [("float", str(text))]:
            return float(text)
        # pika reads times and decimals too, wherever somebody sends them: x-death has a time.
        case [("time", str(text))]:
            return cast(HeaderValue, datetime.fromisoformat(text))
        case [("decimal", str(text))]:
            return cast(HeaderValue, Decimal(text))
        case [("table", dict(table))]:
            return {name: _decoded(one) for name, one in table.items()}
    return {name: _decoded(one) for name, one in value.items()}
