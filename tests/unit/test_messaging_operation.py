"""What an action and a compensation do, given what has become of their operation: every case."""

from itertools import product
from uuid import UUID

import pytest

from relay.messaging import Operation, Unprocessable
from relay.messaging.operation import (
    CANCELLED,
    COMPENSATED,
    Cancel,
    Decision,
    Recorded,
    Repeat,
    Run,
    State,
    Written,
    decide_action,
    decide_compensation,
)

SAGA = UUID("01a2057a-f347-7c3f-82ba-70ab9fdefeaa")
BOOKED = Written("Booked", '{"room": 7}')


@pytest.mark.parametrize(
    ("state", "recorded_attempt", "attempt", "decision"),
    [
        *(("done", recorded, attempt, Repeat(BOOKED)) for recorded, attempt in product((1, 2), (1, 2))),
        ("failed", 1, 1, Repeat(BOOKED)),
        ("failed", 2, 1, Repeat(BOOKED)),
        ("failed", 1, 2, Run()),
        *(("cancelled", 1, attempt, Repeat(CANCELLED)) for attempt in (1, 2)),
        *(("compensated", 1, attempt, Repeat(CANCELLED)) for attempt in (1, 2)),
    ],
)
def test_an_action(state: State, recorded_attempt: int, attempt: int, decision: Decision) -> None:
    assert decide_action(Recorded(state, recorded_attempt, BOOKED), attempt) == decision


def test_an_action_of_which_nothing_is_known_runs() -> None:
    assert decide_action(None, 1) == decide_action(None, 7) == Run()


@pytest.mark.parametrize(
    ("state", "reply", "decision"),
    [
        ("done", BOOKED, Run()),
        ("failed", BOOKED, Cancel()),
        ("cancelled", None, Repeat(COMPENSATED)),
        ("cancelled", COMPENSATED, Repeat(COMPENSATED)),
        ("compensated", BOOKED, Repeat(BOOKED)),
    ],
)
def test_a_compensation(state: State, reply: Written | None, decision: Decision) -> None:
    assert decide_compensation(Recorded(state, 1, reply)) == decision


def test_a_compensation_of_which_nothing_is_known_cancels() -> None:
    assert decide_compensation(None) == Cancel()


def test_an_operation_is_read_as_it_is_written() -> None:
    operation = Operation(SAGA, "book_room")
    assert str(operation) == f"{SAGA}/book_room/action"
    assert Operation.parse(str(operation)) == operation


@pytest.mark.parametrize("text", [None, "", "x", "x/y/z", f"{SAGA}//action", f"{SAGA}/a/", f"{SAGA}/a/b/c"])
def test_what_is_no_operation_is_refused(text: str | None) -> None:
    with pytest.raises(Unprocessable, match="saga id/step/branch"):
        Operation.parse(text)
