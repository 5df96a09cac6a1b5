"""How many messages may be unconfirmed at once, by what the broker makes of them. Pure.

A window that is too small leaves the broker idle between confirms; one that is too large only makes messages wait in
the broker, and RabbitMQ's quorum queues get slower from it. Little's law says how the two meet: what is in flight is
the rate times the time that a confirm takes. So the window goes towards the size at which a confirm takes DELAY_S
longer than on a broker with little to do (as in TCP Vegas), whatever the rate is then.
"""

import math
import time
from collections.abc import Callable
from typing import Final

WINDOW_LEARNING: Final = 64
"""Messages. So few hardly wait in the broker: what a confirm takes then is what it takes at least."""

LEARNING_ROUNDS: Final = 3
"""Round trips of which the mean is taken: a classic queue confirms by a timer, so that one may be short by chance."""

WINDOW_MIN: Final = 400
"""Messages. So many go out whatever the broker does: with fewer for each write and each confirm, a message costs the
relay up to twice as much."""

WINDOW_MAX: Final = 2000
"""Messages. RabbitMQ's queues get slower, not faster, when they are flooded with more."""

DELAY_S: Final = 0.06
"""Seconds that messages may wait in the broker so that it always has something to do: some 800 to 1,500 messages at the
12,000 to 25,000 a second that RabbitMQ takes from one publisher on two cores."""

GROWTH: Final = 1.5
"""By how much the window grows with one round trip while messages wait in the broker for less than half of DELAY_S."""

SHRINKING_MAX: Final = 0.75
"""By how much it may shrink with one round trip: one slow confirm, perhaps of a disk that flushed, is no new broker."""

FORGET_S: Final = 10.0
"""Seconds after which the round trip at little load is measured anew: brokers and networks change."""

FORGET_AT_MIN_S: Final = 1.0
"""The same while the window is at its least. Either the broker is so slow, and then measuring costs nothing; or all has
become slower but not from our messages, as on a machine with too much to do, and then a larger window is better."""


class Window:
    """`limit` is the number of messages that may be in flight. Messages are numbered in the order of sending.

    One round trip is timed at a time: from the sending of a message until it and all before it are settled. It counts
    for the window only when the window was full meanwhile; else something else held the messages back. When under such
    load none was timed with little in flight for a while, the window closes to WINDOW_LEARNING for some round trips, to
    learn how fast the broker is when it has little to do, and then opens again as far as it was. So it begins, too.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = WINDOW_LEARNING
        self._clock = clock
        self._timed = 0  # the message whose round trip is being timed, 0 for none
        self._sent_at = 0.0
        self._is_light = False
        self._was_full = False
        self._light: list[float] = []
        self._light_s = math.inf  # the round trip with little in flight, as far as it is known
        self._learnt_at = clock()
        self._reopens_to = WINDOW_MIN  # while the window is closed to learn, else 0

    def sent(self, number: int, in_flight: int) -> None:
        """All messages up to this one are on their way, and so many are in flight."""
        if not self._timed:
            self._timed = number
            self._sent_at = self._clock()
            self._is_light = in_flight <= WINDOW_LEARNING
            self._was_full = False
        if in_flight >= self.limit:
            self._was_full = True

    def settled(self, oldest: int) -> None:
        """All messages before this one are settled."""
        if 0 < self._timed < oldest:
            now = self._clock()
            took_s = now - self._sent_at
            self._timed = 0
            if self._is_light:
                self._learn(took_s, now)
            elif self._was_full:
                self._adapt(took_s, now)

    def interrupted(self) -> None:
        """The broker takes no messages just now: the round trip that is being timed says nothing."""
        self._timed = 0

    def _learn(self, took_s: float, now: float) -> None:
        self._light.append(took_s)
        if len(self._light) == LEARNING_ROUNDS:
            self._light_s = sum(self._light) / LEARNING_ROUNDS
            self._light.clear()
            self._learnt_at = now
            if self._reopens_to:
                self.limit, self._reopens_to = self._reopens_to, 0

    def _adapt(self, took_s: float, now: float) -> None:
        if now - self._learnt_at >= (FORGET_S if self.limit > WINDOW_MIN else FORGET_AT_MIN_S):
            self.limit, self._reopens_to = WINDOW_LEARNING, self.limit
            return
        if took_s - self._light_s < DELAY_S / 2:
            factor = GROWTH
        else:  # half the way to where Little's law says, because round trips are noisy
            factor = max(SHRINKING_MAX, math.sqrt((self._light_s + DELAY_S) / took_s))
        self.limit = min(WINDOW_MAX, max(WINDOW_MIN, int(self.limit * factor)))
