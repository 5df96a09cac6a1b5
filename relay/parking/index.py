"""Which messages of a slot are parked, and which have been: what is to become of one that comes. Pure."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from enum import Enum, StrEnum, auto
from typing import NamedTuple

from relay.capture.message import Lane
from relay.wal.lsn import Lsn, Position


class Reason(StrEnum):
    """What keeps a message from being published. Those that wait behind another carry the reason of the first."""

    UNROUTABLE = "unroutable"
    """No queue is bound where it is addressed to."""
    NACKED = "nacked"
    """A queue refused it, again and again."""
    TOO_LARGE = "too_large"
    """Its body is over `max_message_bytes`, or its headers do not fit into a frame."""
    UNENCODABLE = "unencodable"
    """AMQP has no form for it, or the broker closes the connection over it."""


class Refusal(NamedTuple):
    """Why a message is parked, or stays so."""

    reason: Reason
    detail: str
    """A sentence for a person."""


class Verdict(Enum):
    """What is to become of a message."""

    PUBLISH = auto()
    PARK = auto()
    """It waits behind the first parked message of its lane."""
    SKIP = auto()
    """It is parked already, or was replayed or dropped: it is settled."""


class Known(NamedTuple):
    """A message that is parked, as far as the index needs to know it."""

    position: Position
    lane: Lane
    reason: Reason


class _Queue:
    """The parked messages of one lane, in the order of the stream. Never empty while it is in the index."""

    __slots__ = ("positions", "reasons")

    def __init__(self) -> None:
        self.positions: list[Position] = []
        self.reasons: list[Reason] = []

    def remove(self, gone: set[Position]) -> int:
        """Take these out, and tell how many there were. Mostly they are the first ones, and the queue may be long."""
        before, first = len(self.positions), 0
        while first < before and self.positions[first] in gone:
            first += 1
        del self.positions[:first], self.reasons[:first]
        if first < len(gone):
            kept = [at for at, position in enumerate(self.positions) if position not in gone]
            self.positions[:] = [self.positions[at] for at in kept]
            self.reasons[:] = [self.reasons[at] for at in kept]
        return before - len(self.positions)


class Index:
    """The parked messages of a slot by lane, and the positions that must not be sent again.

    A position that was replayed or dropped comes again only where the stream begins below it: within one session it
    runs forward. So such positions are held until the stream has come past all that was known when it began.
    """

    def __init__(
        self,
        parked: Iterable[Known] = (),
        remembered: Iterable[Position] = (),
        again: Position | None = None,
        on_reread: Callable[[], None] = lambda: None,
    ) -> None:
        """`remembered` were replayed or dropped. `again` is the last known position that the stream sends again;
        `on_reread` is called once it is past that."""
        self._lanes: dict[Lane, _Queue] = {}
        self._remembered = set(remembered) if again is not None else set()
        self._again = again
        self._on_reread = on_reread
        self.count = 0
        """How many messages are parked."""
        for position, lane, reason in parked:
            self.park(position, lane, reason)

    @property
    def empty(self) -> bool:
        """Whether every message is to be published: then nobody need ask for a verdict."""
        return not self._lanes and self._again is None

    @property
    def reread(self) -> bool:
        """Whether the stream has come past everything that it sends again. Until then a lane may have a message in
        doubt that belongs before parked ones: they must not be replayed."""
        return self._again is None

    def forget(self) -> None:
        """Nothing that is known comes again from here on."""
        self._again = None
        self._remembered.clear()
        self._on_reread()

    def passed(self, lsn: Lsn) -> None:
        """The stream has brought all that was committed before `lsn`."""
        if self._again is not None and self._again.commit_lsn < lsn:
            self.forget()

    def verdict(self, position: Position, lane: Lane) -> Verdict:
        """What is to become of a message that the stream brings. They are asked about in the order of the stream."""
        if self._again is not None:
            seen = position in self._remembered
            if position >= self._again:
                self.forget()
            if seen:
                return Verdict.SKIP
        queue = self._lanes.get(lane)
        if queue is None:
            return Verdict.PUBLISH
        at = bisect_left(queue.positions, position)
        if at < len(queue.positions) and queue.positions[at] == position:
            return Verdict.SKIP
        return Verdict.PARK if at else Verdict.PUBLISH

    def park(self, position: Position, lane: Lane, reason: Reason) -> None:
        """A message is parked. Once more does no harm."""
        queue = self._lanes.setdefault(lane, _Queue())
        at = bisect_left(queue.positions, position)
        if at == len(queue.positions) or queue.positions[at] != position:
            queue.positions.insert(at, position)
            queue.reasons.insert(at, reason)
            self.count += 1

    def settle(self, lane: Lane, positions: Iterable[Position]) -> None:
        """Messages of a lane were replayed or dropped. The lane flows again once none of it is left."""
        queue = self._lanes.get(lane)
        if queue is None:
            return
        gone = set(positions)
        if self._again is not None:
            self._remembered |= gone
        self.count -= queue.remove(gone)
        if not queue.positions:
            del self._lanes[lane]

    def restate(self, lane: Lane, reason: Reason) -> None:
        """The first of a lane is parked for another reason now; those behind it follow."""
        queue = self._lanes.get(lane)
        if queue is not None:
            queue.reasons[:] = [reason] * len(queue.reasons)

    def reason(self, lane: Lane) -> Reason:
        """Why the first of a lane is parked. To be asked only when the verdict on another of it was to park."""
        return self._lanes[lane].reasons[0]

    def parked(self, lane: Lane) -> Sequence[Position]:
        """The parked positions of a lane, in the order of the stream."""
        queue = self._lanes.get(lane)
        return queue.positions if queue else ()
