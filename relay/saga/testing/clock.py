"""Time that passes when a test says so."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class FakeClock:
    """A time, in seconds since the saga was started."""

    now_s: float = 0.0

    def later(self, seconds: float) -> "FakeClock":
        """The clock after so many seconds. Raises ValueError for a time that has passed already."""
        if seconds < 0:
            raise ValueError(f"time does not go back by {-seconds:g} s")
        return replace(self, now_s=self.now_s + seconds)
