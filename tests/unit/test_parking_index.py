"""Which messages are published, parked or skipped, against a model that is too slow and too simple to be wrong."""

from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from relay.capture.message import Kind, Lane
from relay.parking.index import Index, Known, Reason, Verdict
from relay.schema import sql_folder
from relay.wal.lsn import Lsn, Position

LANES = [Lane("order", number, kind, "stock") for number in ("7", "8") for kind in (Kind.COMMAND, Kind.REPLY)]
LANE, OTHER, *_ = LANES


def at(number: int) -> Position:
    return Position(Lsn(number // 3 * 100), number % 3)


class Restarts(RuleBasedStateMachine):
    """A stream is read, messages are parked, and operators replay and drop them, over crashes that rewind the stream.

    The model is what is durable: the rows of the two tables, and where the stream begins again.
    """

    @initialize(lanes=st.lists(st.sampled_from(LANES), min_size=30, max_size=60))
    def begin(self, lanes: list[Lane]) -> None:
        self.stream = lanes
        self.parked: dict[int, Reason] = {}
        self.remembered: set[int] = set()
        self.arrived: list[int] = []
        self.settled: set[int] = set()
        self.confirmed = 0
        self.start()

    def start(self) -> None:
        """A session begins where the last one had confirmed everything."""
        known = sorted([*self.parked, *self.remembered])
        again = [number for number in known if number >= self.confirmed]
        self.index = Index(
            [Known(at(number), self.stream[number], self.parked[number]) for number in sorted(self.parked)],
            [at(number) for number in self.remembered],
            at(again[-1]) if again else None,
        )
        self.next = self.confirmed
        self.in_flight: list[int] = []
        self.seen_again = self.confirmed if not again else again[-1] + 1

    def lane_of(self, lane: Lane) -> list[int]:
        return sorted(number for number in self.parked if self.stream[number] == lane)

    @precondition(lambda self: self.next < len(self.stream))
    @rule(reason=st.sampled_from(Reason), refused=st.booleans(), slow=st.booleans(), count=st.integers(1, 4))
    def read(self, reason: Reason, refused: bool, slow: bool, count: int) -> None:
        for number in range(self.next, min(self.next + count, len(self.stream))):
            lane = self.stream[number]
            first = min(self.lane_of(lane), default=None)
            verdict = Verdict.PUBLISH if self.index.empty else self.index.verdict(at(number), lane)
            if number in self.parked or number in self.remembered:
                assert verdict is Verdict.SKIP
            elif first is not None and number > first:
                assert verdict is Verdict.PARK
                assert self.index.reason(lane) is self.parked[first]
                self.park(number, self.parked[first])
            else:
                assert verdict is Verdict.PUBLISH
                if refused:
                    self.park(number, reason)
                else:
                    self.in_flight.append(number)
            if number not in self.in_flight:
                self.settled.add(number)
            self.next = number + 1
        if not slow:
            self.arrive()

    @rule()
    def arrive(self) -> None:
        """The broker confirms what is in flight."""
        self.arrived += self.in_flight
        self.settled |= set(self.in_flight)
        self.in_flight.clear()

    def park(self, number: int, reason: Reason) -> None:
        self.index.park(at(number), self.stream[number], reason)
        self.parked[number] = reason

    @rule()
    def confirm(self) -> None:
        """PostgreSQL is told how far everything is settled."""
        while self.confirmed in self.settled and self.confirmed < self.next:
            self.confirmed += 1

    @rule()
    def crash(self) -> None:
        self.start()

    @precondition(lambda self: self.parked)
    @rule(data=st.data(), replayed=st.booleans())
    def take_out(self, data: st.DataObject, replayed: bool) -> None:
        """Of a lane the first ones are replayed or dropped. A replay waits until the stream is where it was, and for
        what is in flight of its lane."""
        lane = self.stream[data.draw(st.sampled_from(sorted(self.parked)))]
        if replayed and (not self.index.reread or any(self.stream[number] == lane for number in self.in_flight)):
            return
        gone = self.lane_of(lane)[: data.draw(st.integers(1, 30))]
        if replayed:
            self.arrived += gone
        for number in gone:
            del self.parked[number]
            self.remembered.add(number)
        self.index.settle(lane, map(at, gone))

    @precondition(lambda self: self.parked)
    @rule(data=st.data(), reason=st.sampled_from(Reason))
    def refuse_again(self, data: st.DataObject, reason: Reason) -> None:
        lane = self.stream[data.draw(st.sampled_from(sorted(self.parked)))]
        for number in self.lane_of(lane):
            self.parked[number] = reason
        self.index.restate(lane, reason)

    @invariant()
    def what_is_parked_is_known_in_order(self) -> None:
        assert self.index.count == len(self.parked)
        for lane in LANES:
            assert list(self.index.parked(lane)) == [at(number) for number in self.lane_of(lane)]

    @invariant()
    def nothing_is_asked_when_nothing_is_parked_and_the_stream_is_where_it_was(self) -> None:
        assert self.index.reread == (self.next >= self.seen_again)
        assert self.index.empty == (not self.parked and self.index.reread)

    @invariant()
    def what_arrives_first_arrives_in_order(self) -> None:
        for lane in LANES:
            first = list(dict.fromkeys(number for number in self.arrived if self.stream[number] == lane))
            assert all(before < after for before, after in pairwise(first))


TestRestarts = Restarts.TestCase
TestRestarts.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)


def test_a_message_that_belongs_before_the_first_parked_one_of_its_lane_is_published() -> None:
    index = Index([Known(at(5), LANE, Reason.NACKED)])
    assert index.verdict(at(4), LANE) is Verdict.PUBLISH
    assert index.verdict(at(6), LANE) is Verdict.PARK
    assert index.verdict(at(6), OTHER) is Verdict.PUBLISH


def test_one_that_is_parked_late_becomes_the_first_and_gives_its_reason_to_those_that_come() -> None:
    index = Index([Known(at(5), LANE, Reason.NACKED)])
    index.park(at(4), LANE, Reason.TOO_LARGE)
    assert index.reason(LANE) is Reason.TOO_LARGE
    index.settle(LANE, [at(4)])
    assert index.reason(LANE) is Reason.NACKED


def test_parking_twice_counts_once() -> None:
    index = Index()
    index.park(at(1), LANE, Reason.NACKED)
    index.park(at(1), LANE, Reason.NACKED)
    assert index.count == 1
    index.settle(LANE, [at(1), at(2)])
    assert index.count == 0
    assert index.empty


def test_messages_may_be_taken_out_of_the_middle() -> None:
    index = Index(Known(at(number), LANE, Reason.NACKED) for number in range(6))
    index.settle(LANE, [at(0), at(2), at(5)])
    assert list(index.parked(LANE)) == [at(1), at(3), at(4)]
    assert index.verdict(at(2), LANE) is Verdict.PARK


def test_what_is_remembered_is_of_no_interest_once_the_stream_is_past_it() -> None:
    told: list[str] = []
    index = Index([], [at(1), at(2)], at(2), lambda: told.append("reread"))
    assert not index.empty
    assert index.verdict(at(1), LANE) is Verdict.SKIP
    assert told == []
    assert index.verdict(at(2), LANE) is Verdict.SKIP
    assert told == ["reread"]
    assert index.empty


def test_the_stream_is_past_it_even_when_the_message_does_not_come_again() -> None:
    index = Index([], [at(1)], at(1))
    assert index.verdict(at(9), LANE) is Verdict.PUBLISH
    assert index.empty


def test_an_idle_stream_is_past_it_too_when_it_says_that_it_is() -> None:
    index = Index([], [at(1)], at(1))
    index.passed(at(1).commit_lsn)
    assert not index.empty
    index.passed(Lsn(at(1).commit_lsn + 1))
    assert index.empty


def test_what_is_dropped_before_the_stream_has_brought_it_again_is_skipped_when_it_does() -> None:
    index = Index([Known(at(1), LANE, Reason.NACKED)], [], at(1))
    index.settle(LANE, [at(1)])
    assert not index.empty
    assert index.verdict(at(1), LANE) is Verdict.SKIP
    assert index.empty


@pytest.mark.parametrize("reason", Reason)
def test_the_reasons_are_those_that_the_table_allows(reason: Reason) -> None:
    assert f"'{reason}'" in (sql_folder() / "0004_parking.sql").read_text(encoding="utf-8")
