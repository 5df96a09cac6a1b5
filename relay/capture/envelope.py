"""A message -> its AMQP properties and headers: CloudEvents 1.0 in binary content mode."""

import json
from datetime import datetime
from typing import Final

from relay.broker.properties import (
    AGGREGATE_ID,
    AGGREGATE_TYPE,
    CAUSATION_ID,
    CE_ID,
    CE_PARTITIONKEY,
    CE_SOURCE,
    CE_SPECVERSION,
    CE_TYPE,
    OPERATION,
    HeaderValue,
    Properties,
)
from relay.capture.message import CaptureError, Message

SPECVERSION: Final = "1.0"

_LONGEST_INTEGER: Final = len(str(-(2**63)))


def cloudevents(message: Message, source: str) -> Properties:
    """The properties of a message from `source`. The row's own headers come along, and cannot replace the relay's."""
    headers = _own_headers(message)
    headers |= {
        CE_ID: message.id,
        CE_SOURCE: source,
        CE_TYPE: message.type,
        CE_SPECVERSION: SPECVERSION,
        CE_PARTITIONKEY: message.aggregate_id,
        AGGREGATE_TYPE: message.aggregate_type,
        AGGREGATE_ID: message.aggregate_id,
    }
    if message.causation_id is not None:
        headers[CAUSATION_ID] = message.causation_id
    if message.operation is not None:
        headers[OPERATION] = message.operation
    return Properties(
        message_id=message.id,
        type=message.type,
        correlation_id=message.correlation_id,
        reply_to=message.reply_to,
        timestamp=_seconds(message.created_at),
        app_id=source,
        headers=headers,
    )


def _own_headers(message: Message) -> dict[str, HeaderValue]:
    """The row's headers. Numbers for which AMQP, or pika, has no exact type travel as the text that the row has."""
    if message.headers == b"{}":
        return {}
    try:
        headers: dict[str, HeaderValue] = json.loads(message.headers, parse_int=_integer, parse_float=str)
    except RecursionError:
        raise CaptureError(f"the headers of {message} are nested too deep") from None
    return headers


def _integer(text: str) -> int | str:
    if len(text) > _LONGEST_INTEGER:
        return text
    number = int(text)
    return number if -(2**63) <= number < 2**63 else text


def _seconds(created_at: str) -> int | None:
    """AMQP's timestamp. A time before 1970 or beyond Python's years has none: the message goes without."""
    try:
        seconds = int(datetime.fromisoformat(created_at).timestamp())
    except ValueError:
        return None
    return seconds if seconds >= 0 else None
