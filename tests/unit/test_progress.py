"""The position that is safe to flush, against a model that is too slow and too simple to be wrong."""

import gc
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from relay.daemon.progress import Progress, StreamGap, Transaction
from relay.wal.lsn import NOWHERE, Lsn

NOON = datetime(2025, 6, 1, 12, tzinfo=UTC)


def kept(progress: Progress) -> int:
    """How many transactions it holds on to, wherever it keeps them."""
    found: dict[int, object] = {}
    waiting: list[object] = [progress]
    while waiting:
        held = waiting.pop()
        if id(held) not in found and not isinstance(held, type):
            found[id(held)] = held
            waiting += gc.get_referents(held)
    return sum(isinstance(held, Transaction) for held in found.values())


def read(progress: Progress, end: int, *, messages: int, at: datetime = NOON) -> list[Transaction]:
    """Read a whole transaction; what is returned is to be settled, once each."""
    progress.begin(Lsn(end - 1), at)
    published = [progress.publish() for _ in range(messages)]
    progress.commit(Lsn(end))
    return published


@dataclass
class Seen:
    """What the model remembers of a commit or keepalive: everything."""

    end: int
    committed_at: datetime | None = None
    unsettled: int = 0


@dataclass
class Model:
    """All that ever came, in order. Safe is the end of the longest beginning without an unsettled message."""

    confirmed: int
    seen: list[Seen] = field(default_factory=list)

    @property
    def safe(self) -> int:
        safe = self.confirmed
        for one in self.seen:
            if one.unsettled:
                break
            safe = max(safe, one.end)
        return safe


class AnyOrder(RuleBasedStateMachine):
    """Transactions and keepalives come in the order of the log; their messages are settled in any order."""

    @initialize(confirmed=st.integers(0, 300), position=st.integers(0, 300))
    def connect(self, confirmed: int, position: int) -> None:
        """After a reconnect PostgreSQL may begin below what it has confirmed."""
        self.progress = Progress(Lsn(confirmed))
        self.model = Model(confirmed)
        self.position = position
        self.clock = NOON
        self.reading: Seen | None = None
        self.in_flight: list[tuple[Transaction, Seen]] = []
        self.highest_safe = confirmed

    @precondition(lambda self: self.reading is None)
    @rule()
    def begin(self) -> None:
        self.clock += timedelta(seconds=1)
        self.reading = Seen(0, self.clock)
        self.progress.begin(Lsn(0), self.clock)

    @precondition(lambda self: self.reading is not None)
    @rule(count=st.integers(1, 4))
    def publish(self, count: int) -> None:
        assert self.reading is not None
        for _ in range(count):
            self.reading.unsettled += 1
            self.in_flight.append((self.progress.publish(), self.reading))

    @precondition(lambda self: self.reading is not None)
    @rule(length=st.integers(1, 50))
    def commit(self, length: int) -> None:
        assert self.reading is not None
        self.position += length
        self.reading.end = self.position
        self.model.seen.append(self.reading)
        self.reading = None
        self.progress.commit(Lsn(self.position))

    @rule(length=st.integers(0, 50))
    def keepalive(self, length: int) -> None:
        """In a transaction, the server has read further than it has sent: then this means nothing."""
        if self.reading is None:
            self.position += length
            self.model.seen.append(Seen(self.position))
            self.progress.keepalive(Lsn(self.position))
        else:
            self.progress.keepalive(Lsn(self.position + 1000 + length))

    @precondition(lambda self: self.reading is None)
    @rule(counts=st.lists(st.integers(1, 3), min_size=1, max_size=5))
    def transactions(self, counts: list[int]) -> None:
        for count in counts:
            self.begin()
            self.publish(count)
            self.commit(10)

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        which = data.draw(st.integers(0, len(self.in_flight) - 1))
        transaction, seen = self.in_flight.pop(which)
        seen.unsettled -= 1
        transaction.settle()

    @precondition(lambda self: self.in_flight)
    @rule(spared=st.integers(0, 2))
    def settle_all_but_the_oldest(self, spared: int) -> None:
        for transaction, seen in self.in_flight[spared:]:
            seen.unsettled -= 1
            transaction.settle()
        del self.in_flight[spared:]

    @invariant()
    def safe_is_what_the_model_says(self) -> None:
        assert self.progress.safe == self.model.safe

    @invariant()
    def safe_never_passes_an_unsettled_transaction_and_never_goes_back(self) -> None:
        assert self.progress.safe >= self.highest_safe
        unsettled = [seen.end for seen in self.model.seen if seen.unsettled and seen.end > self.model.confirmed]
        assert all(self.progress.safe < end for end in unsettled)
        self.highest_safe = self.progress.safe

    @invariant()
    def safe_reaches_the_end_when_all_is_settled(self) -> None:
        if not self.in_flight and self.model.seen:
            assert self.progress.safe == max(self.model.confirmed, self.model.seen[-1].end)

    @invariant()
    def the_oldest_unsettled_commit_is_known(self) -> None:
        waiting = [seen.committed_at for seen in (*self.model.seen, self.reading) if seen and seen.unsettled]
        assert self.progress.oldest_unsettled_commit_at == (waiting[0] if waiting else None)
        assert (self.progress.transaction is not None) == (self.reading is not None)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


class BoundedMemory(AnyOrder):
    """The same in any order, with an eye on what is kept."""

    @invariant()
    def no_more_is_kept_than_is_in_flight(self) -> None:
        """And the transaction that is being read."""
        assert kept(self.progress) <= len(self.in_flight) + 1


TestBoundedMemory = BoundedMemory.TestCase
TestBoundedMemory.settings = settings(max_examples=100, stateful_step_count=15, deadline=None)


def test_whoever_reports_is_told_when_there_is_news_and_only_then() -> None:
    told: list[int] = []
    progress = Progress(Lsn(5), lambda: told.append(progress.safe))
    progress.keepalive(Lsn(5))
    first, second = read(progress, 50, messages=2)
    second.settle()
    assert told == []
    first.settle()
    progress.keepalive(Lsn(60))
    assert told == [50, 60]


def test_messages_are_numbered_within_their_transaction() -> None:
    progress = Progress(NOWHERE)
    read(progress, 10, messages=3)
    transaction = progress.begin(Lsn(19), NOON)
    assert (progress.publish().messages, progress.publish().messages) == (1, 2)
    assert (transaction.commit_lsn, transaction.messages) == (19, 2)


def test_it_begins_where_the_slot_was_confirmed() -> None:
    assert Progress(Lsn(100)).safe == 100


def test_a_transaction_is_passed_when_its_last_message_is_settled() -> None:
    progress = Progress(NOWHERE)
    first, second = read(progress, 10, messages=2)
    assert progress.safe == 0
    second.settle()
    assert progress.safe == 0
    first.settle()
    assert progress.safe == 10


def test_a_settled_transaction_waits_for_the_one_before_it() -> None:
    progress = Progress(NOWHERE)
    (early,) = read(progress, 10, messages=1)
    (late,) = read(progress, 20, messages=1)
    late.settle()
    assert progress.safe == 0
    early.settle()
    assert progress.safe == 20


def test_a_transaction_is_not_passed_before_its_commit_has_been_read() -> None:
    progress = Progress(NOWHERE)
    progress.begin(Lsn(9), NOON)
    progress.publish().settle()
    assert progress.safe == 0
    progress.commit(Lsn(10))
    assert progress.safe == 10


def test_an_idle_source_follows_keepalives() -> None:
    progress = Progress(Lsn(5))
    progress.keepalive(Lsn(50))
    assert progress.safe == 50


def test_a_busy_source_without_messages_follows_commits() -> None:
    progress = Progress(Lsn(5))
    read(progress, 50, messages=0)
    assert progress.safe == 50


def test_a_keepalive_in_a_transaction_means_nothing() -> None:
    progress = Progress(NOWHERE)
    progress.begin(Lsn(9), NOON)
    progress.keepalive(Lsn(1000))
    assert progress.safe == 0
    progress.commit(Lsn(10))
    assert progress.safe == 10


def test_a_keepalive_while_something_is_unsettled_moves_nothing() -> None:
    progress = Progress(NOWHERE)
    (message,) = read(progress, 10, messages=1)
    progress.keepalive(Lsn(1000))
    assert progress.safe == 0
    message.settle()
    assert progress.safe >= 10


def test_a_keepalive_after_a_reconnect_does_not_take_the_position_back() -> None:
    progress = Progress(Lsn(100))
    progress.keepalive(Lsn(60))
    assert progress.safe == 100
    read(progress, 80, messages=0)
    assert progress.safe == 100


def test_a_transaction_that_comes_again_does_not_take_the_position_back() -> None:
    progress = Progress(Lsn(100))
    (again,) = read(progress, 80, messages=1)
    again.settle()
    assert progress.safe == 100


def test_the_oldest_unsettled_commit_is_the_first_that_still_waits() -> None:
    progress = Progress(NOWHERE)
    (first,) = read(progress, 10, messages=1, at=NOON)
    (second,) = read(progress, 20, messages=1, at=NOON + timedelta(hours=1))
    assert progress.oldest_unsettled_commit_at == NOON
    first.settle()
    assert progress.oldest_unsettled_commit_at == NOON + timedelta(hours=1)
    second.settle()
    assert progress.oldest_unsettled_commit_at is None


def test_memory_does_not_grow_with_empty_transactions_behind_an_unsettled_message() -> None:
    progress = Progress(NOWHERE)
    (stuck,) = read(progress, 1, messages=1)
    for end in range(2, 100_002):
        read(progress, end, messages=0)
    assert progress.safe == 0
    assert kept(progress) <= 2
    stuck.settle()
    assert progress.safe == 100_001
    assert kept(progress) == 0


def test_memory_does_not_grow_with_settled_transactions_behind_an_unsettled_message() -> None:
    """One queue may be slow to confirm while the others are quick: the window counts what is unconfirmed only."""
    progress = Progress(NOWHERE)
    (stuck,) = read(progress, 1, messages=1)
    for end in range(2, 10_002):
        (quick,) = read(progress, end, messages=1)
        quick.settle()
    assert progress.safe == 0
    assert kept(progress) <= 2
    stuck.settle()
    assert progress.safe == 10_001


def test_memory_does_not_grow_with_a_transaction_of_many_messages() -> None:
    progress = Progress(NOWHERE)
    progress.begin(Lsn(9), NOON)
    for _ in range(100_000):
        progress.publish().settle()
    assert kept(progress) == 1
    progress.commit(Lsn(10))
    assert progress.safe == 10
    assert kept(progress) == 0


def test_settling_more_than_was_published_is_a_mistake() -> None:
    progress = Progress(NOWHERE)
    (message,) = read(progress, 10, messages=1)
    message.settle()
    with pytest.raises(ValueError, match="more messages settled than published"):
        message.settle()


def test_publishing_and_committing_belong_into_a_transaction() -> None:
    progress = Progress(NOWHERE)
    with pytest.raises(StreamGap, match="a row comes outside of a transaction"):
        progress.publish()
    with pytest.raises(StreamGap, match="a commit comes outside of a transaction"):
        progress.commit(Lsn(10))


def test_a_transaction_inside_another_is_a_mistake_and_lets_nothing_pass() -> None:
    progress = Progress(NOWHERE)
    progress.begin(Lsn(9), NOON)
    progress.publish()
    with pytest.raises(StreamGap, match="begins before"):
        progress.begin(Lsn(9), NOON)
    progress.commit(Lsn(10))
    assert progress.safe == 0
