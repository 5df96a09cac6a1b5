"""What leaves as AMQP: pika, which encodes and decodes AMQP by itself, has to agree."""

import math
import struct
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika.frame import Body, Header, Method
from pika.spec import Basic, BasicProperties

from relay.broker.encoding import FRAME_OVERHEAD, NESTING_MAX, SHORT_BYTES, Flaw, Template, Unsendable
from relay.broker.properties import HeaderValue, Properties, Varying
from tests.unit.fake_channel import FRAME_MAX, frames_of, messages_of

CHANNEL = 7
LONG = "n" * (SHORT_BYTES + 1)
FRAME_MIN = 4096
"""The smallest frame_max that AMQP allows."""

COMMON = Properties(
    None,
    type="OrderCreated",
    app_id="shop",
    headers={"ce-source": "shop", "ce-type": "OrderCreated", "aggregate_type": "order"},
)
VARYING = Varying("id-1", "saga-1", "orders", 1748779200, {"ce-id": "id-1", "aggregate_id": "7"})

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
names = texts
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | texts | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=10,
)
own_names = names.filter(lambda name: name not in ("CC", "BCC") and not name.startswith("x-"))  # those have rules
headers = st.dictionaries(own_names, values, max_size=5)
commons = st.builds(
    Properties,
    message_id=st.none(),
    type=st.none() | texts,
    content_type=st.none() | texts,
    app_id=st.none() | texts,
    headers=headers,
)
further = st.dictionaries(own_names, texts | st.text("az", min_size=120, max_size=260), max_size=6)
"""Headers that come as names and texts."""


def apart(varying: Varying, said: dict[str, str]) -> Varying:
    """With further headers, whose names are none of its other headers."""
    others = {name: value for name, value in varying.headers.items() if name not in said}
    return varying._replace(headers=others, names=tuple(said), texts=tuple(said.values()))


plain_varyings = st.builds(
    Varying,
    message_id=texts,
    correlation_id=st.none() | texts,
    reply_to=st.none() | texts.filter(lambda text: not text.startswith("amq.")),
    timestamp=st.none() | st.integers(0, (1 << 64) - 1),
    headers=headers,
)
varyings = st.builds(apart, plain_varyings, further)


def encode(
    common: Properties = COMMON,
    varying: Varying = VARYING,
    body: bytes = b"{}",
    *,
    exchange: str = "relay.events",
    routing_key: str = "order.OrderCreated",
    frame_max: int = FRAME_MAX,
) -> bytes:
    return Template(exchange, routing_key, common).encode(varying, body, CHANNEL, frame_max)


def pikas(common: Properties, varying: Varying) -> BasicProperties:
    """What pika would be given for this message."""
    own = {**dict(zip(varying.names, varying.texts, strict=True)), **varying.headers}
    said: Any = {**common.headers, **{name: value for name, value in own.items() if name not in common.headers}}
    return BasicProperties(
        content_type=common.content_type,
        headers=said,
        delivery_mode=2,
        correlation_id=varying.correlation_id,
        reply_to=varying.reply_to,
        message_id=varying.message_id,
        timestamp=varying.timestamp,
        type=common.type,
        app_id=common.app_id,
    )


@given(texts, texts, commons, varyings, st.binary(max_size=3 * FRAME_MIN), st.sampled_from([FRAME_MIN, FRAME_MAX]))
def test_every_byte_is_the_one_that_pika_would_send(
    exchange: str, key: str, common: Properties, varying: Varying, body: bytes, frame_max: int
) -> None:
    publish = Basic.Publish(exchange=exchange, routing_key=key, mandatory=True)
    header = Header(CHANNEL, len(body), pikas(common, varying)).marshal()
    part = frame_max - FRAME_OVERHEAD
    bodies = [Body(CHANNEL, body[start : start + part]).marshal() for start in range(0, len(body), part)]
    if len(header) > frame_max:
        with pytest.raises(Unsendable):
            encode(common, varying, body, exchange=exchange, routing_key=key, frame_max=frame_max)
        return
    encoded = encode(common, varying, body, exchange=exchange, routing_key=key, frame_max=frame_max)
    assert encoded == b"".join([Method(CHANNEL, publish).marshal(), header, *bodies])


@given(texts, texts, commons, varyings, st.binary(max_size=2 * FRAME_MIN))
def test_a_consumer_reads_what_was_published(
    exchange: str, key: str, common: Properties, varying: Varying, body: bytes
) -> None:
    (sent,) = messages_of(encode(common, varying, body, exchange=exchange, routing_key=key))
    assert (sent.exchange, sent.routing_key, sent.body, sent.mandatory) == (exchange, key, body, True)
    assert sent.properties == pikas(common, varying)


@pytest.mark.parametrize(
    "size", [0, 1, FRAME_MIN - 8, FRAME_MIN - 7, 2 * (FRAME_MIN - 8), 2 * (FRAME_MIN - 8) + 1, 50_000]
)
def test_a_body_is_split_into_frames_that_are_never_too_large(size: int) -> None:
    body = bytes(number % 251 for number in range(size))
    _, header, *parts = frames_of(encode(body=body, frame_max=FRAME_MIN))
    assert header.body_size == size
    assert b"".join(part.fragment for part in parts) == body
    assert all(len(part.marshal()) <= FRAME_MIN for part in parts)
    assert len(parts) == math.ceil(size / (FRAME_MIN - FRAME_OVERHEAD))


def test_a_template_serves_one_channel_after_the_other() -> None:
    template = Template("relay.events", "order.OrderCreated", COMMON)
    for channel in (1, 2, 1, 65535):
        frames = frames_of(template.encode(VARYING, b"{}", channel, FRAME_MAX))
        assert [frame.channel_number for frame in frames] == [channel] * 3


def test_a_message_cannot_replace_a_header_that_the_template_has() -> None:
    (sent,) = messages_of(encode(varying=VARYING._replace(headers={"ce-source": "forged", "own": 1})))
    assert sent.properties.headers == {**COMMON.headers, "own": 1}


NAMES = ("ce-id", "ce-sequence", "aggregate_id", "ce-time", "ce-partitionkey")
TEXTS = ("id-1", "0" * 33, "7", "2025-06-01T12:00:00Z", "7")


def with_texts(*texts: str, names: tuple[str, ...] = NAMES) -> Varying:
    return VARYING._replace(names=names, texts=texts, headers={"attempt": 2})


@pytest.mark.parametrize("count", range(len(NAMES) + 1))
@pytest.mark.parametrize("text", ["", "x", "x" * 127, "x" * 128, "x" * 255, "x" * 256, "", "", "naïve ✓"])
def test_texts_under_names_that_many_messages_share_are_headers_like_others(count: int, text: str) -> None:
    """Short ones in ASCII take another way than the rest."""
    names = NAMES[:count]
    (sent,) = messages_of(encode(varying=with_texts(*TEXTS[:count], names=names)))
    assert sent.properties.headers == {**COMMON.headers, **dict(zip(names, TEXTS, strict=False)), "attempt": 2}
    for place in range(count):
        said = (*TEXTS[:place], text, *TEXTS[place + 1 : count])
        (sent,) = messages_of(encode(varying=with_texts(*said, names=names)))
        assert sent.properties.headers == {**COMMON.headers, **dict(zip(names, said, strict=True)), "attempt": 2}


@pytest.mark.parametrize("name", ["", "n" * 127, "n" * 128, "n" * SHORT_BYTES, "naïve", "€" * 85])
def test_any_name_may_be_one_that_many_messages_share(name: str) -> None:
    for names, said in (((name,), ("x",)), ((*NAMES[:4], name), TEXTS)):
        (sent,) = messages_of(encode(varying=with_texts(*said, names=names)))
        assert sent.properties.headers[name] == said[-1]


def test_messages_with_other_names_take_turns() -> None:
    template = Template("relay.events", "order.OrderCreated", COMMON)
    for names in (NAMES, NAMES[:3], (), NAMES, ("one", "two", "three", "four", "five")):
        varying = with_texts(*TEXTS[: len(names)], names=names)
        (sent,) = messages_of(template.encode(varying, b"{}", CHANNEL, FRAME_MAX))
        assert sent.properties == pikas(COMMON, varying)


def test_a_shared_name_that_the_template_has_is_left_out() -> None:
    names = ("ce-id", "ce-source", "aggregate_id", "ce-time", "ce-partitionkey")
    (sent,) = messages_of(encode(varying=with_texts(*TEXTS, names=names)))
    assert sent.properties.headers["ce-source"] == "shop"
    assert sent.properties.headers.keys() == {*COMMON.headers, *names, "attempt"}


@pytest.mark.parametrize(
    ("name", "text"), [("CC", "customers"), ("x-amqp-1.0-footer", ""), (LONG, "x"), ("\ud800", "x"), ("text", "\ud800")]
)
def test_shared_names_and_texts_that_amqp_cannot_express_are_refused(name: str, text: str) -> None:
    for names, said in (((name,), (text,)), ((*NAMES[:4], name), (*TEXTS[:4], text))):
        with pytest.raises(Unsendable, match="message 'id-1' does not fit into AMQP"):
            encode(varying=with_texts(*said, names=names))


def test_a_fraction_travels_as_a_double() -> None:
    encoded = encode(varying=VARYING._replace(headers={"ratio": 0.5}))
    assert b"\x05ratiod" + struct.pack(">d", 0.5) in encoded


def test_what_the_broker_reads_itself_is_sent_when_it_looks_as_it_should() -> None:
    said: dict[str, HeaderValue] = {
        "CC": ["customers"],
        "BCC": [],
        "x-death": [{"queue": "orders", "count": 1}],
        "x-stream-filter-value": "é" * 2048,
        "nested": {"CC": "no routing key"},
    }
    (sent,) = messages_of(encode(varying=VARYING._replace(headers=said)))
    assert {**said, **COMMON.headers} == sent.properties.headers


def nested(depth: int, kind: type[list[Any]] | type[dict[str, Any]]) -> HeaderValue:
    value: HeaderValue = "x"
    for _ in range(depth):
        value = [value] if kind is list else {"k": value}
    return value


UNENCODABLE: dict[str, dict[str, HeaderValue]] = {
    "a name of 256 bytes": {LONG: "x"},
    "a name of 256 bytes with a number": {LONG: 1},
    "a name of 128 characters and 256 bytes": {"é" * 128: "x"},
    "a name of 256 bytes in a table": {"outer": {LONG: "x"}},
    "a number beyond 64 bits": {"big": 1 << 63},
    "a number below 64 bits": {"small": -(1 << 63) - 1},
    "a nested number beyond 64 bits": {"outer": {"inner": [1, 10**30]}},
    "half a character": {"text": "\ud800"},
    "half a character in a list": {"text": ["\ud800"]},
    "half a character in a name": {"\ud800": "x"},
    "lists nested too deep": {"deep": nested(NESTING_MAX + 1, list)},
    "tables nested too deep": {"deep": nested(NESTING_MAX + 1, dict)},
    "tables nested far too deep": {"deep": nested(50_000, dict)},
    "no number": {"nan": math.nan},
    "infinity": {"inf": [math.inf]},
    "a value of a type that AMQP does not know": {"strange": object()},  # type: ignore[dict-item]
    "a further routing key that is no list": {"CC": "customers"},
    "further routing keys that are a table": {"BCC": {"customers": True}},
    "no further routing keys": {"CC": None},
    "a death that is no table": {"x-death": [{}, "rejected"]},
    "a stream's filter value that is no text": {"x-stream-filter-value": 1},
    "a stream's filter value that is too long": {"x-stream-filter-value": "v" * 4097},
    "properties of AMQP 1.0": {"x-amqp-1.0-properties": "p"},
    "application properties of AMQP 1.0": {"x-amqp-1.0-app-properties": b"p"},
    "annotations of AMQP 1.0": {"x-amqp-1.0-message-annotations": ""},
    "a footer of AMQP 1.0": {"x-amqp-1.0-footer": "f"},
}


@pytest.mark.parametrize("said", UNENCODABLE.values(), ids=UNENCODABLE)
def test_headers_that_amqp_cannot_express_are_refused(said: dict[str, HeaderValue]) -> None:
    with pytest.raises(Unsendable, match="message 'id-1' does not fit into AMQP") as refused:
        encode(varying=VARYING._replace(headers=said))
    assert refused.value.flaw is Flaw.UNENCODABLE
    with pytest.raises(Unsendable, match=r"messages for relay\.events .*does not fit into AMQP") as refused:
        Template("relay.events", "order.OrderCreated", replace(COMMON, headers=said))
    assert refused.value.flaw is Flaw.UNENCODABLE


@pytest.mark.parametrize(
    "said",
    [
        VARYING._replace(message_id=LONG),
        VARYING._replace(message_id="\udfff"),
        VARYING._replace(correlation_id=LONG),
        VARYING._replace(reply_to="é" * 128),
        VARYING._replace(reply_to="amq.rabbitmq.reply-to"),
        VARYING._replace(timestamp=-1),
        VARYING._replace(timestamp=1 << 64),
    ],
)
def test_properties_that_amqp_cannot_express_are_refused(said: Varying) -> None:
    with pytest.raises(Unsendable, match="does not fit into AMQP") as refused:
        encode(varying=said)
    assert refused.value.flaw is Flaw.UNENCODABLE


@pytest.mark.parametrize(
    ("exchange", "key", "common"),
    [
        (LONG, "k", COMMON),
        ("x", LONG, COMMON),
        ("x", "\ud800", COMMON),
        ("x", "k", replace(COMMON, type=LONG)),
        ("x", "k", replace(COMMON, app_id=LONG)),
        ("x", "k", replace(COMMON, content_type=LONG)),
    ],
)
def test_routes_that_amqp_cannot_express_are_refused(exchange: str, key: str, common: Properties) -> None:
    with pytest.raises(Unsendable, match="does not fit into AMQP") as refused:
        Template(exchange, key, common)
    assert refused.value.flaw is Flaw.UNENCODABLE


def test_what_only_just_fits_is_sent() -> None:
    longest = "n" * SHORT_BYTES
    said: dict[str, HeaderValue] = {
        longest: "x" * 10_000,
        "": "a name may be empty",
        "zero": "\0",
        "numbers": [(1 << 63) - 1, -(1 << 63), 0, 1 << 31, -(1 << 31), True, None],
        "list": nested(NESTING_MAX, list),
        "table": nested(NESTING_MAX, dict),
    }
    varying = Varying(longest, longest, longest, (1 << 64) - 1, said)
    common = replace(COMMON, type=longest, app_id=longest, content_type=longest, headers={})
    (sent,) = messages_of(encode(common, varying, exchange=longest, routing_key=longest))
    assert sent.properties == pikas(common, varying)


def test_headers_fill_a_frame_and_not_a_byte_more() -> None:
    empty = frames_of(encode(varying=VARYING._replace(headers={"h": ""})))[1].marshal()
    room = FRAME_MIN - len(empty)
    fits = VARYING._replace(headers={"h": "x" * room})
    assert len(frames_of(encode(varying=fits, frame_max=FRAME_MIN))[1].marshal()) == FRAME_MIN
    with pytest.raises(Unsendable, match=r"message 'id-1' has 4,089 bytes .* room for 4,088") as refused:
        encode(varying=VARYING._replace(headers={"h": "x" * (room + 1)}), frame_max=FRAME_MIN)
    assert refused.value.flaw is Flaw.TOO_LARGE
