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
from relay.capture.message import Message

SPECVERSION: Final = "1.0"


def cloudevents(message: Message, source: str) -> Properties:
    """The properties of a message from `source`. The row's own headers come along, and cannot replace the relay's."""
    headers: dict[str, HeaderValue] = {} if message.headers == b"{}" else json.loads(message.headers)
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


def _seconds(created_at: str) -> int | None:
    """AMQP's timestamp. A time beyond Python's years, or infinity, has none: the message goes without."""
    try:
        return int(datetime.fromisoformat(created_at).timestamp())
    except ValueError:
        return None
