"""A message -> its AMQP 0-9-1 frames. What messages have in common is encoded once. Pure.

Source: AMQP 0-9-1, 4.2 (frames, field tables) and 1.8 (the class basic), with RabbitMQ's errata on the types of fields.
"""

import math
from collections.abc import Callable, Container, Iterator, Mapping
from enum import StrEnum
from functools import lru_cache
from struct import Struct
from struct import error as StructError
from typing import Final, TypeAlias

from relay.broker.properties import HeaderValue, Properties, Varying
from relay.errors import BrokerError, ExitCode

SHORT_BYTES: Final = 255
"""The longest short string, as UTF-8. Names, keys, ids and types are such."""

NESTING_MAX: Final = 100
"""How deep a header's lists and tables may be nested. RabbitMQ takes any depth; what reads the message by recursion, as
pika does, gives up at some hundred levels, and then the consumer falls and not the message."""

NAMES_CACHED: Final = 1024
"""Names of headers that are kept in their encoded form. Rows may bring names of their own, and any number of them."""

TERSE_NAMES_CACHED: Final = 64
"""Names of headers that are kept with each length that a terse text may have. Only the relay's own are such."""

TERSE_CHARACTERS: Final = 127
"""The longest text that is terse. It is ASCII, and so is its length, if that is below 128: then a header is text as a
whole, and Python joins texts in a fraction of the time that bytes take."""

FRAME_OVERHEAD: Final = 8
"""Bytes of a frame around its payload: type, channel, size and the end mark."""

FILTER_BYTES: Final = 4096
"""The longest filter value of a stream, as UTF-8: RabbitMQ 4 takes longer text for something else."""

DIRECT_REPLY: Final = "amq.rabbitmq.reply-to"
"""Who names this as where replies go has to consume them on the same channel, or RabbitMQ closes it (406)."""

_METHOD, _HEADER, _BODY, _END = 1, 2, 3, b"\xce"
_BASIC, _PUBLISH = 60, 40
_MANDATORY = 0b1
_PERSISTENT = b"\x02"
_CONTENT_BYTES = 19
"""Of a content header: class, weight, body size, flags, the size of the header table, and the delivery mode."""

_CONTENT_TYPE, _HEADERS, _DELIVERY_MODE, _CORRELATION_ID = 1 << 15, 1 << 13, 1 << 12, 1 << 10
_REPLY_TO, _MESSAGE_ID, _TIMESTAMP, _TYPE, _APP_ID = 1 << 9, 1 << 7, 1 << 6, 1 << 5, 1 << 3
"""The flags that say which properties follow, in this order."""

_frame = Struct(">BHI").pack
_next_frame = Struct(">cBHI").pack
"""The end mark of the frame before, and the head of this one."""
_publish = Struct(">HHH").pack
_u32 = Struct(">I").pack
_u64 = Struct(">Q").pack
_i32 = Struct(">ci").pack
_i64 = Struct(">cq").pack
_double = Struct(">cd").pack
_sized = Struct(">cI").pack

_OCTETS = tuple(bytes((number,)) for number in range(256))

_Beginnings: TypeAlias = tuple[str, ...]
"""What a header begins with, up to its text, by the length of the text; none if it is never terse."""


class Flaw(StrEnum):
    """Why a message cannot be sent, in a word for machines."""

    TOO_LARGE = "too_large"
    """Its headers and properties do not fit into one frame."""
    UNENCODABLE = "unencodable"
    """AMQP cannot express it, or the broker would close the channel over it."""


class Unsendable(BrokerError):
    """A message cannot be written as AMQP, or the broker would not take it; `flaw` says why."""

    exit_code = ExitCode.FAILURE
    hint = (
        "Routing keys, types, ids and header names have 255 bytes at most; header numbers have 64 bits; "
        "all headers together have to fit into one frame (frame_max, 128 kB by default)."
    )

    def __init__(self, message: str, flaw: Flaw) -> None:
        super().__init__(message)
        self.flaw = flaw


class Template:
    """What all messages of one route and type have in common, encoded: where to, and their constant properties.

    The messages are persistent and mandatory. Where a message's own headers have a name in common with those here, the
    ones here stand. Raises Unsendable when no message can be sent like this.
    """

    __slots__ = (
        "_beginning",
        "_channel_number",
        "_content_type",
        "_expected",
        "_flags",
        "_head",
        "_headers",
        "_headers_size",
        "_names",
        "_publish",
        "_size",
        "_tail",
        "_terse",
        "_watched",
        "exchange",
        "routing_key",
    )

    def __init__(self, exchange: str, routing_key: str, common: Properties) -> None:
        self.exchange = exchange
        self.routing_key = routing_key
        try:
            names = (b"\0\0", _short(exchange), _short(routing_key), bytes((_MANDATORY,)))
            self._publish = _BASIC.to_bytes(2, "big") + _PUBLISH.to_bytes(2, "big") + b"".join(names)
            self._content_type = b"" if common.content_type is None else _short(common.content_type)
            pieces: list[bytes] = []
            _put_headers(pieces, common.headers, _READ_BY_THE_BROKER, ())
            self._headers = b"".join(pieces)
            self._tail = b"".join(_short(text) for text in (common.type, common.app_id) if text is not None)
        except (UnicodeError, ValueError, StructError, OverflowError) as error:
            raise _unencodable(f"messages for {exchange} with routing key {routing_key!r}", error) from None
        self._names = common.headers.keys()
        self._watched = self._names | _READ_BY_THE_BROKER.keys()
        self._flags = (
            _HEADERS
            | _DELIVERY_MODE
            | _MESSAGE_ID
            | (_CONTENT_TYPE if common.content_type is not None else 0)
            | (_TYPE if common.type is not None else 0)
            | (_APP_ID if common.app_id is not None else 0)
        )
        self._headers_size = len(self._headers)
        self._size = _CONTENT_BYTES + len(self._content_type) + self._headers_size + len(self._tail)
        self._expected: tuple[str, ...] = ()
        self._terse: tuple[_Beginnings, ...] = ()
        self._address(0)

    def encode(self, varying: Varying, body: bytes, channel_number: int, frame_max: int) -> bytes:
        """All frames of a message: method, content header, and as many of the body as it takes.

        Raises Unsendable; `frame_max` is the size of the largest frame, in bytes, as it was agreed with the broker.
        """
        message_id, correlation_id, reply_to, timestamp, headers, names, texts = varying
        if channel_number != self._channel_number:
            self._address(channel_number)
        if names is not self._expected:
            self._expect(names)
        flags = self._flags
        try:
            try:
                own = _put_terse(self._terse, texts)
            except (IndexError, UnicodeEncodeError):
                own = self._own_headers(dict(zip(names, texts, strict=True)))
            if headers:
                own += self._own_headers(headers)
            ending = _short(message_id)
            if correlation_id is not None or reply_to is not None:
                conversing, conversation = _conversation(correlation_id, reply_to)
                flags |= conversing
                ending = conversation + ending
            if timestamp is not None:
                flags |= _TIMESTAMP
                ending += _u64(timestamp)
        except (UnicodeError, ValueError, StructError, OverflowError) as error:
            raise _unencodable(f"message {message_id!r}", error) from None
        own_size, body_size = len(own), len(body)
        size = self._size + own_size + len(ending)
        payload_max = frame_max - FRAME_OVERHEAD
        if size > payload_max:
            raise Unsendable(
                f"message {message_id!r} has {size:,} bytes of headers and properties; "
                f"a frame of this broker has room for {payload_max:,}",
                Flaw.TOO_LARGE,
            )
        table_size = self._headers_size + own_size
        head = self._head(
            self._beginning, size, _BASIC, 0, body_size, flags, self._content_type, table_size, self._headers
        )
        if 0 < body_size <= payload_max:
            between = _next_frame(_END, _BODY, channel_number, body_size)
            return b"".join((head, own, _PERSISTENT, ending, self._tail, between, body, _END))
        bodies = _body_frames(body, channel_number, payload_max)
        return b"".join((head, own, _PERSISTENT, ending, self._tail, _END, *bodies))

    def _address(self, channel_number: int) -> None:
        """What the frames on this channel begin with: all of the method frame, and the next one up to its size.

        Behind that, `_head` packs the header frame up to a message's own headers: its size; class, weight, size of the
        body, flags; the content type; the size of all headers, and those that are the template's.
        """
        method = _frame(_METHOD, channel_number, len(self._publish)) + self._publish + _END
        self._beginning = method + _frame(_HEADER, channel_number, 0)[:3]
        beginning, content_type = len(self._beginning), len(self._content_type)
        self._head = Struct(f">{beginning}sIHHQH{content_type}sI{self._headers_size}s").pack
        self._channel_number = channel_number

    def _expect(self, names: tuple[str, ...]) -> None:
        """Messages with headers of these names come, perhaps many of them."""
        self._terse = tuple(() if name in self._watched else _terse(name) for name in names)
        self._expected = names

    def _own_headers(self, headers: Mapping[str, HeaderValue]) -> bytes:
        """A message's own headers, but for those that the template has."""
        pieces: list[bytes] = []
        _put_headers(pieces, headers, self._watched, self._names)
        return b"".join(pieces)


def _conversation(correlation_id: str | None, reply_to: str | None) -> tuple[int, bytes]:
    """What few messages have: the flags and the values of these properties."""
    flags, values = 0, b""
    if correlation_id is not None:
        flags |= _CORRELATION_ID
        values += _short(correlation_id)
    if reply_to is not None:
        if reply_to == DIRECT_REPLY:
            raise ValueError(f"{DIRECT_REPLY} is for those who wait for the reply on the same channel")
        flags |= _REPLY_TO
        values += _short(reply_to)
    return flags, values


def _unencodable(what: str, error: Exception) -> Unsendable:
    return Unsendable(f"{what} does not fit into AMQP: {error}", Flaw.UNENCODABLE)


def _short(text: str) -> bytes:
    encoded = text.encode()
    if len(encoded) > SHORT_BYTES:
        raise ValueError(f"{len(encoded)} bytes in a name, key, id or type: {text[:40]!r}…")
    return _OCTETS[len(encoded)] + encoded


def _is_list(value: HeaderValue) -> bool:
    return isinstance(value, list)


def _is_deaths(value: HeaderValue) -> bool:
    return not isinstance(value, list) or all(isinstance(death, dict) for death in value)


def _is_filter(value: HeaderValue) -> bool:
    return isinstance(value, str) and len(value.encode()) <= FILTER_BYTES


def _is_no_section(value: HeaderValue) -> bool:
    return not isinstance(value, str | bytes)


_SECTION = _is_no_section, "absent: RabbitMQ takes it for a section of an AMQP 1.0 message"

_READ_BY_THE_BROKER: Final[Mapping[str, tuple[Callable[[HeaderValue], bool], str]]] = {
    "CC": (_is_list, "a list of routing keys"),
    "BCC": (_is_list, "a list of routing keys"),
    "x-death": (_is_deaths, "a list of tables"),
    "x-stream-filter-value": (_is_filter, f"text of {FILTER_BYTES:,} bytes at most"),
    "x-amqp-1.0-properties": _SECTION,
    "x-amqp-1.0-app-properties": _SECTION,
    "x-amqp-1.0-message-annotations": _SECTION,
    "x-amqp-1.0-footer": _SECTION,
}
"""Headers that RabbitMQ reads itself, and how they have to look.

Otherwise it closes the channel: over CC and BCC with 406, over those of streams and of AMQP 1.0 with 541 where a stream
is bound. With anything but tables in the list x-death, RabbitMQ 3 loses the message and the process of its queue when
the message becomes a dead letter. Found by trying values of all types, with queues of all types, on 3.10 and 4.0."""


@lru_cache(NAMES_CACHED)
def _text_header(name: str) -> bytes:
    """What a header that is text begins with, up to its length."""
    return _short(name) + b"S"


@lru_cache(TERSE_NAMES_CACHED)
def _terse(name: str) -> _Beginnings:
    """What a header of this name begins with when its text is terse."""
    if not name.isascii() or len(name) > TERSE_CHARACTERS:
        return ()
    return tuple(f"{chr(len(name))}{name}S\0\0\0{chr(length)}" for length in range(TERSE_CHARACTERS + 1))


def _put_terse(terse: tuple[_Beginnings, ...], texts: tuple[str, ...]) -> bytes:
    """Headers that are terse. Raises IndexError or UnicodeEncodeError when one of them is not."""
    if len(texts) == 5:  # as a CloudEvent has them: without a loop that takes less than half of the time
        a, b, c, d, e = texts
        to_a, to_b, to_c, to_d, to_e = terse
        headers = f"{to_a[len(a)]}{a}{to_b[len(b)]}{b}{to_c[len(c)]}{c}{to_d[len(d)]}{d}{to_e[len(e)]}{e}"
    else:
        headers = "".join([beginning[len(text)] + text for beginning, text in zip(terse, texts, strict=True)])
    return headers.encode("ascii")


def _put_headers(
    pieces: list[bytes], headers: Mapping[str, HeaderValue], watched: Container[str], without: Container[str]
) -> None:
    """Write headers, but those in `without`. Only names in `watched` need a second look."""
    for name, value in headers.items():
        if name in watched:
            if name in without:
                continue
            acceptable, form = _READ_BY_THE_BROKER[name]
            if not acceptable(value):
                raise ValueError(f"header {name} has to be {form}")
        if type(value) is str:  # nearly all of them
            text = value.encode()
            pieces += (_text_header(name), _u32(len(text)), text)
        else:
            pieces.append(_short(name))
            _put(pieces, value, 0)


def _put(pieces: list[bytes], value: HeaderValue, depth: int) -> None:
    """A field's value, in the types that pika chooses: whole numbers take 32 bits where they fit."""
    if depth > NESTING_MAX:
        raise ValueError(f"a header is nested deeper than {NESTING_MAX} levels")
    match value:
        case None:
            pieces.append(b"V")
        case bool():
            pieces.append(b"t\1" if value else b"t\0")
        case int():
            pieces.append(_i32(b"I", value) if -(1 << 31) <= value < 1 << 31 else _i64(b"l", value))
        case float():
            if not math.isfinite(value):
                raise ValueError(f"a header is {value}")
            pieces.append(_double(b"d", value))
        case str():
            _put_sized(pieces, b"S", value.encode())
        case bytes():
            _put_sized(pieces, b"x", value)
        case list():
            items: list[bytes] = []
            for item in value:
                _put(items, item, depth + 1)
            _put_sized(pieces, b"A", b"".join(items))
        case dict():
            fields: list[bytes] = []
            for name, item in value.items():
                fields.append(_short(name))
                _put(fields, item, depth + 1)
            _put_sized(pieces, b"F", b"".join(fields))
        case _:
            raise ValueError(f"a header is a {type(value).__name__}")


def _put_sized(pieces: list[bytes], kind: bytes, value: bytes) -> None:
    pieces += (_sized(kind, len(value)), value)


def _body_frames(body: bytes, channel_number: int, payload_max: int) -> Iterator[bytes | memoryview]:
    whole = memoryview(body)  # a slice of it is no copy
    for start in range(0, len(body), payload_max):
        part = whole[start : start + payload_max]
        yield _frame(_BODY, channel_number, len(part))
        yield part
        yield _END
