"""What a network and several instances do to messages: some are late, some come twice, and timers fire before them."""

from collections.abc import Sequence
from random import Random
from typing import Final

from relay.saga.testing.courier import Letter

LATE_TURNS_MAX: Final = 20
"""So many other messages may overtake one that is late."""

HURRY: Final = 0.1
"""How often a timer fires although messages are on their way: as when those are slow."""

HURRIES_MAX: Final = 3
"""But no more often than that in one process: the budgets of the steps are not to be spent by it."""


class Disorder:
    """Decides what comes next. `share` is how many messages are late, and how many come twice: 0 is perfect order.

    The same generator and the same letters make the same decisions.
    """

    def __init__(self, chance: Random, share: float) -> None:
        self._chance = chance
        self._share = share
        self._turn = 0
        self._ready: dict[str, int] = {}
        self._hurries = 0

    def pick(self, letters: Sequence[Letter]) -> Letter:
        """The oldest letter that is not late; when all are, the one that is so for the shortest time."""
        self._turn += 1
        for letter in letters:
            if letter.key not in self._ready:
                self._ready[letter.key] = self._turn + self._lateness()
        return min(letters, key=lambda letter: max(self._ready[letter.key], self._turn))

    def comes_again(self, letter: Letter) -> bool:
        """Whether a letter that was delivered will be delivered once more, sooner or later."""
        if not self._happens():
            return False
        self._ready[letter.key] = self._turn + self._chance.randint(1, LATE_TURNS_MAX)
        return True

    def hurries(self) -> bool:
        """Whether a timer fires before the messages that are on their way."""
        if not self._share or self._hurries == HURRIES_MAX or self._chance.random() >= HURRY:
            return False
        self._hurries += 1
        return True

    def _lateness(self) -> int:
        return self._chance.randint(1, LATE_TURNS_MAX) if self._happens() else 0

    def _happens(self) -> bool:
        return self._share > 0 and self._chance.random() < self._share
