"""How long to wait before trying again."""

import random


class Backoff:
    """Exponential delays in seconds, capped, with jitter so that many who lost one server do not come back together.

    Each delay lies between half of the nominal one and the whole; the nominal one doubles from `first_s` to `cap_s`.
    """

    def __init__(self, first_s: float, cap_s: float) -> None:
        self._first_s = first_s
        self._cap_s = cap_s
        self._nominal_s = first_s

    def next(self) -> float:
        """The delay before the next attempt."""
        nominal_s = self._nominal_s
        self._nominal_s = min(self._cap_s, nominal_s * 2)
        return nominal_s * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """An attempt succeeded: begin again with the shortest delay."""
        self._nominal_s = self._first_s
