"""How many messages may be in flight, on simulated brokers: a queue, a rate of service, and a way there and back."""

from collections import deque
from collections.abc import Callable

import pytest

from relay.broker.window import DELAY_S, FORGET_S, WINDOW_LEARNING, WINDOW_MAX, WINDOW_MIN, Window

STEP_S = 0.0005
"""The simulation's clock ticks so often, and as often the publisher has its turn."""


class Broker:
    """Confirms messages in order, at a rate that may depend on how many wait in it, and `latency_s` later."""

    def __init__(self, latency_s: float, rate: Callable[[int], float]) -> None:
        self.latency_s = latency_s
        self.rate = rate
        self.now = 1000.0
        self.window = Window(lambda: self.now)
        self.limits: list[int] = []
        self.confirmed = 0
        self._sent = 0
        self._served = 0.0
        self._on_their_way: deque[tuple[float, int]] = deque()

    @property
    def in_flight(self) -> int:
        return self._sent - self.confirmed

    def run(self, seconds: float, offered: float = float("inf")) -> float:
        """Publish as the window lets, and no more than is `offered`. Both that and what it returns are messages/s."""
        before, offer = self.confirmed, float(self._sent)
        for _ in range(round(seconds / STEP_S)):
            self.now += STEP_S
            offer += offered * STEP_S
            self._serve()
            self._confirm()
            count = int(min(self.window.limit - self.in_flight, offer - self._sent))
            if count > 0:
                self._sent += count
                self.window.sent(self._sent, self.in_flight)
            self.limits.append(self.window.limit)
        return (self.confirmed - before) / seconds

    def _serve(self) -> None:
        waiting = self._sent - self._served
        self._served += min(waiting, self.rate(int(waiting)) * STEP_S)
        self._on_their_way.append((self.now + self.latency_s, int(self._served)))

    def _confirm(self) -> None:
        confirmed = self.confirmed
        while self._on_their_way and self._on_their_way[0][0] <= self.now:
            confirmed = self._on_their_way.popleft()[1]
        if confirmed > self.confirmed:
            self.confirmed = confirmed
            self.window.settled(confirmed + 1)


def steady(messages_s: float) -> Callable[[int], float]:
    return lambda waiting: messages_s


@pytest.mark.parametrize(("latency_s", "messages_s"), [(0.001, 20_000), (0.001, 3_000), (0.02, 15_000), (0.05, 30_000)])
def test_a_broker_is_kept_busy_and_no_message_waits_long_in_it(latency_s: float, messages_s: float) -> None:
    broker = Broker(latency_s, steady(messages_s))
    broker.run(1)
    assert broker.run(5) > 0.97 * messages_s
    longest_s = max(broker.limits[-2000:]) / messages_s
    assert longest_s < max(latency_s + 1.5 * DELAY_S, WINDOW_MIN / messages_s + STEP_S)


def test_a_fresh_start_is_at_full_speed_within_some_round_trips() -> None:
    broker = Broker(0.002, steady(20_000))
    broker.run(0.05)
    assert broker.run(0.1) > 0.95 * 20_000


def test_a_broker_far_away_is_given_all_that_may_be_in_flight() -> None:
    broker = Broker(0.2, steady(30_000))
    broker.run(5)
    assert broker.window.limit == WINDOW_MAX


def test_a_broker_that_is_slow_is_given_no_more_than_the_least() -> None:
    broker = Broker(0.001, steady(100))
    broker.run(20)
    assert max(broker.limits) == WINDOW_MIN
    assert broker.run(5) > 97


def test_a_broker_that_gets_slower_when_flooded_is_not_flooded() -> None:
    def flooded(waiting: int) -> float:
        return 13_000 if waiting <= 1000 else 13_000 * 1000 / waiting

    broker = Broker(0.002, flooded)
    broker.run(1)
    assert broker.run(30) > 0.95 * 13_000
    assert max(broker.limits) < 1000


def test_a_broker_that_has_become_slower_has_less_in_it() -> None:
    broker = Broker(0.002, steady(20_000))
    broker.run(3)
    broker.rate = steady(4_000)
    broker.run(1)
    assert broker.window.limit / 4_000 < 0.002 + 2 * DELAY_S
    assert broker.run(5) > 0.97 * 4_000


def test_a_broker_that_has_become_faster_is_noticed_within_a_second() -> None:
    broker = Broker(0.002, steady(4_000))
    broker.run(3)
    broker.rate = steady(20_000)
    broker.run(1)
    assert broker.run(2) > 0.97 * 20_000


@pytest.mark.parametrize("offered", [float("inf"), 10_000])
def test_a_broker_that_has_moved_further_away_is_noticed_when_the_old_round_trip_is_forgotten(offered: float) -> None:
    broker = Broker(0.001, steady(20_000))
    broker.run(3, offered)
    broker.latency_s = 0.08
    broker.run(2 * FORGET_S + 3, offered)
    assert broker.run(3, offered) > 0.95 * min(20_000, offered)


def test_a_broker_that_answers_late_for_other_reasons_than_our_messages_is_given_more_within_seconds() -> None:
    broker = Broker(0.002, steady(10_000))
    broker.run(3)
    broker.latency_s = 0.15
    broker.run(4)
    assert broker.run(3) > 0.95 * 10_000


def test_under_unending_load_the_window_does_not_creep_up() -> None:
    broker = Broker(0.002, steady(10_000))
    broker.run(5)
    early = max(broker.limits[-4000:])
    broker.run(6 * FORGET_S)
    assert max(broker.limits[-4000:]) <= 1.1 * early
    assert broker.run(3 * FORGET_S) > 0.97 * 10_000  # what it costs to measure anew


def test_the_window_opens_as_far_as_it_was_when_it_has_learnt() -> None:
    broker = Broker(0.002, steady(20_000))
    broker.run(2)
    opened = broker.window.limit
    broker.limits.clear()
    broker.run(FORGET_S)
    closed = broker.limits.index(WINDOW_LEARNING)
    assert next(limit for limit in broker.limits[closed:] if limit > WINDOW_LEARNING) > 0.9 * opened


def test_the_window_stays_open_for_a_burst_when_little_was_sent_for_long() -> None:
    broker = Broker(0.002, steady(20_000))
    broker.run(2)
    opened = broker.window.limit
    broker.run(3 * FORGET_S, offered=100)
    assert broker.window.limit > 0.9 * opened


def test_a_broker_that_keeps_up_is_never_held_back_to_learn() -> None:
    broker = Broker(0.008, steady(30_000))
    broker.run(1)
    broker.limits.clear()
    assert broker.run(2 * FORGET_S, offered=20_000) > 0.99 * 20_000
    assert min(broker.limits) >= WINDOW_MIN


def test_a_round_trip_during_which_the_broker_took_no_messages_does_not_count() -> None:
    broker = Broker(0.002, steady(20_000))
    broker.run(1)
    opened = broker.window.limit
    broker.window.interrupted()
    broker.now += 60
    broker.run(STEP_S)
    assert broker.window.limit == opened
