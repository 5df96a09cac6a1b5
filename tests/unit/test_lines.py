"""Who may leave when: the order of an aggregate's messages, against every broker that hypothesis can think of."""

from collections import defaultdict
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.capture.message import Kind, Message
from relay.config import OnUnroutable
from relay.daemon.lines import Lines
from relay.daemon.progress import Progress
from relay.daemon.sending import Route, Sending
from relay.wal.lsn import Lsn

NO_TEMPLATE: Any = None


def route(*, proven: bool = True) -> Route:
    made = Route(NO_TEMPLATE, OnUnroutable.PARK)
    if proven:
        made.prove()
    return made


class Stream:
    """Messages in the order in which they are read."""

    def __init__(self) -> None:
        self._transaction = Progress(Lsn(0)).begin(Lsn(100), datetime.now(UTC))
        self._read = 0

    def message(self, aggregate: str, by: Route) -> Sending:
        self._read += 1
        message = Message(
            str(self._read), Kind.EVENT, "order", aggregate, "Paid", None, None, None, None, None, b"{}", b"12345", ""
        )
        return Sending(message, by, self._transaction, self._read)


@pytest.fixture
def stream() -> Stream:
    return Stream()


def test_everything_passes_at_once_when_every_route_is_proven(stream: Stream) -> None:
    lines, proven = Lines(strict=False), route()
    sendings = [stream.message("7", proven) for _ in range(3)]
    assert all(lines.enter(sending) for sending in sendings)
    assert all(lines.leave(sending) == [] for sending in sendings)
    assert (lines.held, lines.held_bytes) == (0, 0)


def test_behind_an_unproven_route_the_aggregate_waits_and_others_do_not(stream: Stream) -> None:
    lines, unproven = Lines(strict=False), route(proven=False)
    first, second, third, other = (stream.message(aggregate, unproven) for aggregate in ("7", "7", "7", "8"))
    assert [lines.enter(sending) for sending in (first, second, third, other)] == [True, False, False, True]
    assert (lines.held, lines.held_bytes) == (2, 10)
    unproven.prove()
    assert lines.leave(first) == [second, third]
    assert lines.held == 0


def test_behind_a_route_that_stays_unproven_they_leave_one_by_one(stream: Stream) -> None:
    lines, unproven = Lines(strict=False), route(proven=False)
    first, second, third = (stream.message("7", unproven) for _ in range(3))
    for sending in (first, second, third):
        lines.enter(sending)
    assert lines.leave(first) == [second]
    assert lines.leave(second) == [third]
    assert lines.leave(third) == []
    assert lines.enter(stream.message("7", route()))


def test_a_message_whose_loss_nobody_minds_lets_the_next_pass(stream: Stream) -> None:
    ignored = Route(NO_TEMPLATE, OnUnroutable.IGNORE)
    ignored.doubt()
    lines = Lines(strict=False)
    assert lines.enter(stream.message("7", ignored))
    assert lines.enter(stream.message("7", ignored))


def test_a_strict_order_lets_one_of_an_aggregate_out_at_a_time(stream: Stream) -> None:
    lines, proven = Lines(strict=True), route()
    first, second, other = (stream.message(aggregate, proven) for aggregate in ("7", "7", "8"))
    assert [lines.enter(sending) for sending in (first, second, other)] == [True, False, True]
    assert lines.leave(other) == []
    assert lines.leave(first) == [second]


def test_a_refused_message_goes_again_before_those_that_come_after_it(stream: Stream) -> None:
    lines, proven = Lines(strict=False), route()
    first, second, third = (stream.message("7", proven) for _ in range(3))
    assert lines.enter(first)
    first.refusals = 1
    assert lines.again(first)
    assert not lines.enter(second)
    assert lines.held == 2
    assert lines.retry(first)
    assert not lines.enter(third)
    assert lines.leave(first) == [second, third]
    assert lines.held == 0


def test_of_several_refused_messages_the_earliest_goes_again_first(stream: Stream) -> None:
    """They had all left when the queue began to refuse; its answers may come in any order."""
    lines, proven = Lines(strict=False), route()
    first, second, third = (stream.message("7", proven) for _ in range(3))
    for sending in (first, second, third):
        assert lines.enter(sending)
        sending.refusals = 1
    assert lines.again(second)
    assert not lines.again(third)
    assert lines.again(first)
    assert (lines.held, lines.retry(second), lines.retry(first)) == (3, False, True)
    assert lines.leave(first) == [second]
    assert lines.leave(second) == [third]
    assert lines.leave(third) == []


def test_a_lost_connection_forgets_every_line_and_nobody_in_it(stream: Stream) -> None:
    lines, proven = Lines(strict=False), route()
    first, second, third = (stream.message("7", proven) for _ in range(3))
    lines.enter(first)
    first.refusals = 1
    lines.again(first)
    lines.enter(second)
    lines.enter(third)
    assert sorted(lines.clear(), key=lambda sending: sending.position) == [first, second, third]
    assert (lines.held, lines.held_bytes, first.retrying) == (0, 0, False)
    assert not lines.retry(first)


@given(
    arrivals=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2)), min_size=1, max_size=30),
    strict=st.booleans(),
    refuses=st.booleans(),
    data=st.data(),
)
def test_an_aggregate_arrives_in_order_whatever_the_broker_does(
    arrivals: list[tuple[str, int]], strict: bool, refuses: bool, data: st.DataObject
) -> None:
    """The broker takes messages in the order in which they leave, and refuses some; pipelined, only if it does not.

    Arrivals, confirms, refusals and retries come in any order. In the end nobody waits any more.
    """
    lines, stream = Lines(strict=strict), Stream()
    routes = [route(proven=False) for _ in range(3)]
    coming = [stream.message(aggregate, routes[number]) for aggregate, number in arrivals]
    out: list[Sending] = []
    retrying: list[Sending] = []
    taken: dict[str, list[Sending]] = defaultdict(list)

    def judge(sending: Sending) -> None:
        if refuses and strict and sending.refusals < 3 and data.draw(st.booleans(), label="refuse"):
            sending.refusals += 1
            if lines.again(sending):
                retrying.append(sending)
            return
        taken[sending.message.aggregate_id].append(sending)
        sending.route.prove()
        out.extend(lines.leave(sending))

    while coming or out or retrying:
        steps = [queue for queue in (coming, out, retrying) if queue]
        queue = data.draw(st.sampled_from(steps), label="step")
        sending = queue.pop(0)
        if queue is coming:
            if lines.enter(sending):
                out.append(sending)
        elif queue is retrying:
            if lines.retry(sending):
                out.append(sending)
        else:
            judge(sending)
        if strict:
            outside = [sending.message.aggregate_id for sending in out]
            assert len(outside) == len(set(outside))

    assert lines.held == lines.held_bytes == 0
    assert sum(len(some) for some in taken.values()) == len(arrivals)
    for some in taken.values():
        assert [cast(int, sending.ordinal) for sending in some] == sorted(sending.ordinal for sending in some)
