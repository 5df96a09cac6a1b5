"""What the benchmark reads of AMQP: messages counted in bytes that arrive in any pieces."""

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import spec
from pika.frame import Body, Header, Heartbeat, Method

from bench.wire import DELIVER, PUBLISH, FrameError, Reader, channel_of, decoded, message_ends

CHANNEL = 3
BODY_MAX = 10


def message(body: bytes) -> bytes:
    """A published message, its body in frames of ten bytes."""
    method = Method(CHANNEL, spec.Basic.Publish(exchange="relay.events", routing_key="order.OrderCreated"))
    header = Header(CHANNEL, len(body), spec.BasicProperties(message_id="7", headers={"a": "b"}))
    parts = [body[at : at + BODY_MAX] for at in range(0, len(body), BODY_MAX)]
    return b"".join(frame.marshal() for frame in (method, header, *(Body(CHANNEL, part) for part in parts)))


def ack(tag: int) -> bytes:
    return bytes(Method(CHANNEL, spec.Basic.Ack(tag, True)).marshal())


def refuse(data: bytes) -> None:
    raise AssertionError(f"unexpected: {data!r}")


@given(bodies=st.lists(st.binary(max_size=40), max_size=6), cuts=st.lists(st.integers(0, 1000), max_size=8))
def test_every_message_is_counted_once_however_the_bytes_are_cut(bodies: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(message(body) + Heartbeat().marshal() for body in bodies)
    places = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    seen: list[bytes] = []
    reader = Reader(PUBLISH, refuse, seen.append)

    counted = sum(reader.feed(stream[start:end]) for start, end in itertools.pairwise(places))

    assert counted == len(bodies)
    assert b"".join(seen) == b"".join(bodies)


def test_a_message_that_is_not_whole_is_not_counted() -> None:
    reader = Reader(PUBLISH, refuse)
    whole = message(b"twenty bytes of body")

    assert reader.feed(whole[:-1]) == 0
    assert reader.feed(whole[-1:]) == 1


def test_other_methods_are_handed_on_whole() -> None:
    seen: list[bytes] = []

    assert Reader(DELIVER, seen.append).feed(ack(5) + ack(9)) == 0

    assert [decoded(data).method.delivery_tag for data in seen] == [5, 9]  # type: ignore[attr-defined]


def test_a_frame_without_its_end_byte_is_refused() -> None:
    with pytest.raises(FrameError, match="does not end where it should"):
        Reader(PUBLISH, refuse).feed(ack(1)[:-1] + b"\0")


def test_a_frame_of_an_unknown_type_is_refused() -> None:
    with pytest.raises(FrameError, match="no frame of type 5"):
        Reader(PUBLISH, refuse).feed(struct.pack(">BHI", 5, 0, 0) + bytes([spec.FRAME_END]))


def test_recorded_messages_are_told_apart_and_an_unfinished_last_one_is_left_out() -> None:
    first, second, third = message(b""), message(b"x" * 25), message(b"y")

    assert message_ends(first + second + third[:-1]) == [len(first), len(first + second)]
    assert channel_of(first) == CHANNEL


def test_a_header_is_no_method() -> None:
    with pytest.raises(FrameError, match="expected a method"):
        decoded(Header(CHANNEL, 0, spec.BasicProperties()).marshal())
