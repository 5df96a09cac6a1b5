"""Delays between attempts."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.backoff import Backoff


@given(st.floats(0.01, 10), st.floats(10, 100), st.integers(1, 30))
def test_each_delay_lies_between_half_of_the_nominal_one_and_the_whole(first_s: float, cap_s: float, n: int) -> None:
    backoff = Backoff(first_s, cap_s)
    nominal_s = first_s
    for _ in range(n):
        assert nominal_s / 2 <= backoff.next() <= nominal_s
        nominal_s = min(cap_s, nominal_s * 2)


@pytest.fixture
def without_luck(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every delay is the nominal one."""
    monkeypatch.setattr("random.uniform", lambda low, high: high)


@pytest.mark.usefixtures("without_luck")
def test_delays_double_up_to_the_cap() -> None:
    backoff = Backoff(0.2, 15)
    assert [round(backoff.next(), 1) for _ in range(9)] == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 15, 15]


@pytest.mark.usefixtures("without_luck")
def test_after_a_success_it_begins_again_with_the_shortest() -> None:
    backoff = Backoff(0.2, 15)
    assert backoff.next() < backoff.next()
    backoff.reset()
    assert backoff.next() == 0.2


def test_two_who_lost_one_server_do_not_come_back_together() -> None:
    delays = [Backoff(1, 1).next() for _ in range(20)]
    assert any(one != other for one, other in pairwise(delays))
