"""A message -> its AMQP properties and headers, in one of several forms. The body is the payload in each of them.

They come in two parts, so that the first need not be made, nor encoded, for every message.

Sources: CloudEvents 1.0.2, its RabbitMQ protocol binding (binary content mode: headers with the prefix `ce-`), and its
extensions partitioning, sequence and distributed tracing.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, Protocol

from relay.broker.properties import (
    AGGREGATE_ID,
    AGGREGATE_TYPE,
    CAUSATION_ID,
    CE_ID,
    CE_PARTITIONKEY,
    CE_SEQUENCE,
    CE_SOURCE,
    CE_SPECVERSION,
    CE_TIME,
    CE_TRACEPARENT,
    CE_TRACESTATE,
    CE_TYPE,
    OPERATION,
    TRACEPARENT,
    TRACESTATE,
    HeaderValue,
    Properties,
    Varying,
)
from relay.capture.message import HeadersError, Message
from relay.wal.lsn import Position

SPECVERSION: Final = "1.0"

SEQUENCE: Final = "%016X-%016X"
"""How a position is written: so that the texts sort as the positions do. Half the time of an f-string."""

TIMES: Final = 64
"""Times whose timestamps are remembered. Rows of one transaction share theirs; one would do, but for a service that
writes its own."""

_RESERVED: Final = frozenset(
    (CE_ID, CE_SOURCE, CE_TYPE, CE_SPECVERSION, CE_TIME, CE_PARTITIONKEY, CE_SEQUENCE, AGGREGATE_TYPE)
)
"""What a row cannot say in the relay's place, not even where the relay says nothing. Readers of CloudEvents do not care
for the case of these names."""

_USUAL: Final = (CE_ID, CE_SEQUENCE, AGGREGATE_ID, CE_TIME, CE_PARTITIONKEY)
_CERTAIN: Final = (CE_ID, CE_SEQUENCE, AGGREGATE_ID)
_PLAIN: Final = (AGGREGATE_ID,)
"""Names of headers that messages of one form bring along: nearly all CloudEvents, the others, plain ones."""

_NO_HEADERS: Final = b"{}"
_NOTHING: Final[dict[str, HeaderValue]] = {}
"""Shared by all messages that have no more headers. Nobody changes it."""

_LONGEST_INTEGER: Final = len(str(-(2**63)))

_new: Final = tuple.__new__
"""Makes a named tuple in half the time of its own constructor, which is Python."""


class Envelope(Protocol):
    """A form that messages leave in."""

    def common(self, message: Message, source: str) -> Properties:
        """What a message shares with all from `source` of its kind, aggregate type, type and destination."""
        ...

    def varying(self, message: Message, position: Position) -> Varying:
        """What is the message's own; `position` is where it lies in the stream.

        The row's headers come along, except those that would replace one of the relay's. Raises HeadersError.
        """
        ...


class CloudEvents:
    """CloudEvents 1.0 in binary content mode, beside the relay's own headers."""

    def common(self, message: Message, source: str) -> Properties:
        """See Envelope."""
        return Properties(
            message_id=None,
            type=message.type,
            app_id=source,
            headers={
                CE_SOURCE: source,
                CE_TYPE: message.type,
                CE_SPECVERSION: SPECVERSION,
                AGGREGATE_TYPE: message.aggregate_type,
            },
        )

    def varying(self, message: Message, position: Position) -> Varying:
        """See Envelope. The hot path: a header that is not among the usual ones takes four times as long."""
        message_id, aggregate_id = message.id, message.aggregate_id
        seconds, time = _times(message.created_at)
        headers = _NOTHING
        if message.headers != _NO_HEADERS:
            headers = _with_trace(_own_headers(message))
        if message.causation_id is not None or message.operation is not None:
            headers = headers | _reasons(message)
        names: tuple[str, ...] = _USUAL
        texts: tuple[str, ...]
        if time and aggregate_id:
            texts = message_id, SEQUENCE % position, aggregate_id, time, aggregate_id
        else:
            names, texts = _CERTAIN, (message_id, SEQUENCE % position, aggregate_id)
            headers = headers | _present({CE_TIME: time, CE_PARTITIONKEY: aggregate_id or None})
        return _new(Varying, (message_id, message.correlation_id, message.reply_to, seconds, headers, names, texts))


class Plain:
    """The relay's own headers and those of the row, and nothing of CloudEvents."""

    def common(self, message: Message, source: str) -> Properties:
        """See Envelope."""
        headers = {AGGREGATE_TYPE: message.aggregate_type}
        return Properties(message_id=None, type=message.type, app_id=source, headers=headers)

    def varying(self, message: Message, position: Position) -> Varying:
        """See Envelope."""
        seconds, _ = _times(message.created_at)
        headers = _NOTHING
        if message.headers != _NO_HEADERS:
            headers = _parsed_headers(message)
        if message.causation_id is not None or message.operation is not None:
            headers = headers | _reasons(message)
        texts = (message.aggregate_id,)
        return _new(Varying, (message.id, message.correlation_id, message.reply_to, seconds, headers, _PLAIN, texts))


CLOUDEVENTS: Final[Envelope] = CloudEvents()
PLAIN: Final[Envelope] = Plain()

ENVELOPES: Final[Mapping[str, Envelope]] = {"cloudevents": CLOUDEVENTS, "plain": PLAIN, "debezium": PLAIN}
"""By the names that a configuration has for them. A message of Debezium's is a plain one: what tells it is its body,
and the header `key`, both of which its capture has written."""


def _reasons(message: Message) -> dict[str, HeaderValue]:
    """Why there is this message, as far as that is told."""
    return _present({CAUSATION_ID: message.causation_id, OPERATION: message.operation})


def _present(texts: Mapping[str, str | None]) -> dict[str, HeaderValue]:
    return {name: text for name, text in texts.items() if text is not None}


def _own_headers(message: Message) -> dict[str, HeaderValue]:
    """The row's headers, without those that are the relay's."""
    headers = _parsed_headers(message)
    for name in [name for name in headers if name.lower() in _RESERVED]:
        del headers[name]
    return headers


def _with_trace(headers: dict[str, HeaderValue]) -> dict[str, HeaderValue]:
    """The trace that the row belongs to, also where readers of CloudEvents look for it."""
    traceparent = headers.get(TRACEPARENT)
    if traceparent and isinstance(traceparent, str):
        headers[CE_TRACEPARENT] = traceparent
        tracestate = headers.get(TRACESTATE)
        if tracestate and isinstance(tracestate, str):
            headers[CE_TRACESTATE] = tracestate
    return headers


def _parsed_headers(message: Message) -> dict[str, HeaderValue]:
    """The row's headers, without those that the relay has for every message.

    Numbers for which AMQP, or pika, has no exact type travel as the text that the row has.
    """
    try:
        headers: object = _parse(message.headers.decode())
    except RecursionError:
        raise HeadersError(f"the headers of {message} are nested too deep") from None
    except ValueError:
        raise HeadersError(f"the headers of {message} are not JSON in UTF-8") from None
    if not isinstance(headers, dict):
        raise HeadersError(f"the headers of {message} are no JSON object")
    headers.pop(AGGREGATE_TYPE, None)
    headers.pop(AGGREGATE_ID, None)
    return headers


def _integer(text: str) -> int | str:
    if len(text) > _LONGEST_INTEGER:
        return text
    number = int(text)
    return number if -(2**63) <= number < 2**63 else text


_parse: Final = json.JSONDecoder(parse_int=_integer, parse_float=str).decode
"""json.loads with options makes such a decoder every time, which takes twice as long as to use it."""


@lru_cache(maxsize=TIMES)
def _times(created_at: str) -> tuple[int | None, str | None]:
    """AMQP's timestamp, in seconds, and the time in RFC 3339.

    What cannot be told is None: AMQP has no times before 1970, and neither has any outside of Python's years.
    """
    try:
        moment = datetime.fromisoformat(created_at)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        seconds = int(moment.timestamp())
        if _is_postgresqls(created_at):
            time = f"{created_at[:10]}T{created_at[11:-3]}Z"
        else:
            time = moment.astimezone(UTC).isoformat().removesuffix("+00:00") + "Z"
    except (ValueError, OverflowError):
        return None, None
    return (seconds if seconds >= 0 else None), time


def _is_postgresqls(time: str) -> bool:
    """Whether a time that Python understands looks like 2025-06-01 12:00:00.5+00.

    Then it is RFC 3339 but for two characters, and moving these takes a quarter of the time that printing it takes.
    """
    return time[4:17:3] == "-- ::" and time[19:20] in "+." and time[-3:] == "+00"
