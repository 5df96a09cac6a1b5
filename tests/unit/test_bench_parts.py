"""The processes of the benchmark without their sockets: sink, tap and the bare publisher's window."""

import io
from array import array
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import spec
from pika.frame import Body, Header, Method

from bench import tap
from bench.bare import Window
from bench.sink import Session
from bench.times import delays_ms, read_times, stamp_of, write_times
from bench.wire import PROTOCOL, FrameError, decoded, message_ends
from bench.writer import due_times, payload

CHANNEL = 2


def frames(*methods: spec.amqp_object.Method) -> bytes:
    return b"".join(Method(CHANNEL, method).marshal() for method in methods)


def published(number: int) -> bytes:
    body = payload(number).encode()
    method = Method(CHANNEL, spec.Basic.Publish(exchange="relay.events", routing_key="order.OrderCreated"))
    return b"".join(
        frame.marshal() for frame in (method, Header(CHANNEL, len(body), spec.BasicProperties()), Body(CHANNEL, body))
    )


def given_a_publisher(session: Session) -> None:
    session.take(frames(spec.Channel.Open(), spec.Exchange.Declare(exchange="relay.events"), spec.Confirm.Select()))


def test_the_sink_answers_a_publisher_in_turn() -> None:
    session = Session()
    session.take(b"")

    answer = session.take(frames(spec.Channel.Open()))

    assert isinstance(decoded(answer).method, spec.Channel.OpenOk)
    assert decoded(answer).channel_number == CHANNEL


def test_the_sink_confirms_all_that_it_has_read_at_once() -> None:
    session = Session()
    given_a_publisher(session)

    answer = decoded(session.take(published(1) + published(2) + published(3)[:-1])).method

    assert isinstance(answer, spec.Basic.Ack)
    assert (answer.delivery_tag, answer.multiple) == (2, True)


def test_the_sink_refuses_what_no_publisher_says() -> None:
    with pytest.raises(FrameError, match=r"Basic\.Get"):
        Session().take(frames(spec.Basic.Get(queue="bench")))


def test_the_sink_records_messages_and_nothing_else() -> None:
    record = io.BytesIO()
    session = Session(record)
    given_a_publisher(session)

    session.take(published(1) + published(2))

    assert record.getvalue() == published(1) + published(2)
    assert len(message_ends(record.getvalue())) == 2


@given(tags=st.permutations(range(1, 9)))
def test_a_window_counts_confirms_in_any_order(tags: list[int]) -> None:
    window = Window()
    for count, tag in enumerate(tags, start=1):
        window.take(tag, multiple=False)
        assert window.confirmed == count


def test_one_confirm_stands_for_all_before_it_and_those_that_came_early_count_once() -> None:
    window = Window()
    window.take(2, multiple=False)
    window.take(7, multiple=False)
    window.take(4, multiple=True)
    assert window.confirmed == 5

    window.take(7, multiple=True)
    window.take(3, multiple=False)
    assert window.confirmed == 7


def test_the_tap_knows_a_message_by_its_number_when_it_and_its_confirm_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tap.time, "monotonic_ns", lambda: 5)
    observer = tap.Observer()
    greeting = PROTOCOL + frames(spec.Confirm.Select())
    observer.published(greeting[:3])
    observer.published(greeting[3:] + published(11) + published(12) + published(13))

    observer.answered(frames(spec.Confirm.SelectOk(), spec.Basic.Ack(3, False)))
    assert observer.confirmed == array("q", [13, 5])

    observer.answered(frames(spec.Basic.Ack(2, True)))
    assert observer.confirmed == array("q", [13, 5, 11, 5, 12, 5])
    assert observer.sent == array("q", [11, 5, 12, 5, 13, 5])


def test_times_survive_their_file_and_the_first_of_a_number_counts(tmp_path: Path) -> None:
    path = tmp_path / "times"
    write_times(path, array("q", [1, 2_000_000, 2, 3_000_000, 1, 9_000_000]))

    assert read_times(path) == {1: 2_000_000, 2: 3_000_000}
    assert delays_ms({1: 500_000}, read_times(path)) == [1.5]


def test_a_message_that_never_arrived_has_no_delay() -> None:
    with pytest.raises(KeyError):
        delays_ms({7: 1}, {})


def test_the_number_of_a_payload_is_read_back() -> None:
    assert stamp_of(payload(1234).encode()) == 1234


def test_each_phase_begins_where_the_one_before_it_ends() -> None:
    assert due_times([(2, 1.0), (4, 0.5)]) == [0.0, 0.5, 1.0, 1.25]
