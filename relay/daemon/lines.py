"""Which messages may leave now, so that those of an aggregate keep their order: that promise is kept here. Pure."""

from bisect import insort
from collections import deque
from dataclasses import dataclass, field

from relay.daemon.sending import Sending

Aggregate = tuple[str, str]


def _aggregate(sending: Sending) -> Aggregate:
    return sending.message[2:4]  # aggregate_type and aggregate_id, without two lookups by name


@dataclass(slots=True, eq=False)
class Line:
    """An aggregate whose next message has to wait for `head`: for its confirm, or until it is tried again."""

    head: Sending | None
    waiting: deque[Sending] = field(default_factory=deque)


class Lines:
    """The aggregates whose messages cannot just follow one another. Mostly there are none.

    A message has to be waited for while its route is unproven, for it may come back; after a queue has refused it,
    until that is mended; and always when the order is strict. Everything else passes at once.
    """

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict
        self._lines: dict[Aggregate, Line] = {}
        self.idle = not strict
        """Whether everything on a certain route passes at once, and nobody waits."""
        self.held = 0
        """Messages that wait here: for another one, or to be tried again."""
        self.held_bytes = 0
        """Their bodies."""

    def enter(self, sending: Sending) -> bool:
        """Whether the message may leave now. If not, it waits behind those of its aggregate that came before."""
        aggregate = _aggregate(sending)
        line = self._lines.get(aggregate)
        if line is not None:
            self._wait(line, sending)
            return False
        if self._holds_up(sending):
            self._lines[aggregate] = Line(sending)
            self.idle = False
        return True

    def leave(self, sending: Sending) -> list[Sending]:
        """The message needs nothing any more. Who may leave now because of that, in their order."""
        aggregate = _aggregate(sending)
        line = self._lines.get(aggregate)
        if line is None or line.head is not sending:
            return []
        line.head = None
        return self._next(aggregate, line)

    def again(self, sending: Sending) -> bool:
        """A queue has refused the message. Whether it is the one of its aggregate to be tried again after a while.

        If not, it takes its place among those that wait. What has left after it may arrive before it, unless the order
        is strict.
        """
        line = self._lines.setdefault(_aggregate(sending), Line(sending))
        self.idle = False
        head = line.head
        if head is not sending:
            if head is None or not head.retrying or sending.position > head.position:
                self._wait(line, sending)
                return False
            self.retry(head)
            self._wait(line, head)
            line.head = sending
        sending.retrying = True
        self._hold(sending)
        return True

    def retry(self, sending: Sending) -> bool:
        """The while is over. Whether it is still this message's turn to be tried again."""
        if sending.retrying:
            sending.retrying = False
            self._free(sending)
            return True
        return False

    def overtakes(self, sending: Sending) -> bool:
        """Whether a message that was let go and has not left yet has to wait after all, for who was refused."""
        line = self._lines.get(_aggregate(sending)) if self._lines else None
        if line is None or line.head is None or line.head.position >= sending.position:
            return False
        self._wait(line, sending)
        return True

    def clear(self) -> list[Sending]:
        """Forget all lines. Returns who waited in them, or to be tried again."""
        held = [sending for line in self._lines.values() for sending in line.waiting]
        held += [line.head for line in self._lines.values() if line.head is not None and self.retry(line.head)]
        self._lines.clear()
        self.idle = not self._strict
        self.held = self.held_bytes = 0
        return held

    def _holds_up(self, sending: Sending) -> bool:
        """Whether the next of its aggregate has to wait for it."""
        return self._strict or not sending.route.certain or sending.refusals > 0

    def _next(self, aggregate: Aggregate, line: Line) -> list[Sending]:
        released = []
        while line.waiting:
            following = line.waiting.popleft()
            self._free(following)
            released.append(following)
            if self._holds_up(following):
                line.head = following
                return released
        del self._lines[aggregate]
        self.idle = not self._lines and not self._strict
        return released

    def _wait(self, line: Line, sending: Sending) -> None:
        """Mostly at the end: only one that was refused has left before others that wait."""
        self._hold(sending)
        if line.waiting and line.waiting[-1].position > sending.position:
            insort(line.waiting, sending, key=lambda waiting: waiting.position)
        else:
            line.waiting.append(sending)

    def _hold(self, sending: Sending) -> None:
        self.held += 1
        self.held_bytes += len(sending.message.payload)

    def _free(self, sending: Sending) -> None:
        self.held -= 1
        self.held_bytes -= len(sending.message.payload)
