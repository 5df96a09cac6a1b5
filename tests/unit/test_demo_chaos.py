"""Chaos on purpose keeps to its promise, and the seed decides about the rest."""

import asyncio
import selectors
from collections import defaultdict
from itertools import islice, pairwise

from hypothesis import given
from hypothesis import strategies as st

from relay.demo.chaos import chaos, pauses
from relay.demo.child import RESTART_S
from relay.demo.play import CHAOS_S

PROMISED_S = 10.0
NAMES = ("relay", "orders", "customers", "inventory")

seeds = st.integers(min_value=0, max_value=2**32 - 1)


class Leap(selectors.SelectSelector):
    """Nothing is waited for: the clock leaps to when there is something to do."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now_s += timeout or 0.0
        return super().select(0)


class LeapingLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes as fast as it can."""

    def __init__(self) -> None:
        self._leap = Leap()
        super().__init__(self._leap)

    def time(self) -> float:
        return self._leap.now_s


class Processes:
    """Each is down for RESTART_S after its death. The unlucky ones die by themselves at the moment they are to be
    killed: that kill finds nobody."""

    def __init__(self, unlucky: bool) -> None:
        self._unlucky = unlucky
        self._up_at_s: dict[str, float] = defaultdict(float)
        self._lucky_again: set[str] = set()
        self.kills: dict[str, list[float]] = defaultdict(list)

    async def kill(self, name: str) -> bool:
        now_s = asyncio.get_running_loop().time()
        if now_s < self._up_at_s[name]:
            return False
        self._up_at_s[name] = now_s + RESTART_S
        if self._unlucky and name not in self._lucky_again:
            self._lucky_again.add(name)
            return False
        self._lucky_again.discard(name)
        self.kills[name].append(now_s)
        return True


async def rampage(seed: int, processes: Processes) -> None:
    """The chaos of a demo."""
    loop = asyncio.get_running_loop()
    running = loop.create_task(chaos(NAMES, seed, processes.kill))
    await asyncio.wait({running}, timeout=CHAOS_S)
    assert running.cancel()
    await asyncio.wait({running})


def longest_peace_s(moments: list[float]) -> float:
    """The longest time in which a process was not killed."""
    return max(later - earlier for earlier, later in pairwise([0.0, *moments, CHAOS_S]))


@given(seeds, st.booleans())
def test_each_process_is_killed_in_any_ten_seconds_even_if_it_has_just_died_by_itself(seed: int, unlucky: bool) -> None:
    processes = Processes(unlucky)
    with asyncio.Runner(loop_factory=LeapingLoop) as runner:
        runner.run(rampage(seed, processes))
    assert processes.kills.keys() == set(NAMES)
    assert max(map(longest_peace_s, processes.kills.values())) <= PROMISED_S


@given(seeds)
def test_a_process_has_time_to_do_something_between_two_kills(seed: int) -> None:
    assert min(islice(pauses("relay", seed), 1, 100)) >= 5


def test_the_same_seed_is_the_same_plan() -> None:
    assert list(islice(pauses("relay", 7), 5)) == list(islice(pauses("relay", 7), 5))


def test_each_process_has_moments_of_its_own() -> None:
    assert next(pauses("relay", 7)) != next(pauses("orders", 7))
    assert next(pauses("relay", 7)) != next(pauses("relay", 8))
