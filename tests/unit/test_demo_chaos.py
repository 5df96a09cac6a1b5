"""Chaos on purpose is bounded, and the seed decides about it."""

from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from relay.demo.chaos import pauses

PROMISED_S = 10


@given(st.integers(min_value=0, max_value=2**32 - 1))
def test_each_process_is_killed_at_least_once_every_ten_seconds(seed: int) -> None:
    assert all(0 <= pause <= PROMISED_S for pause in islice(pauses("relay", seed), 100))


def test_the_same_seed_is_the_same_plan() -> None:
    assert list(islice(pauses("relay", 7), 5)) == list(islice(pauses("relay", 7), 5))


def test_each_process_has_moments_of_its_own() -> None:
    assert next(pauses("relay", 7)) != next(pauses("orders", 7))
    assert next(pauses("relay", 7)) != next(pauses("relay", 8))
