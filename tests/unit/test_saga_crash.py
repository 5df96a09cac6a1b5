"""The parts of the crash-everywhere runner that need no server."""

import os
from pathlib import Path
from random import Random

import pytest

from relay.broker.properties import Delivery, Properties
from relay.messaging import Service
from relay.saga.testing.courier import Letter
from relay.saga.testing.disorder import HURRIES_MAX, LATE_TURNS_MAX, Disorder
from relay.saga.testing.journal import TOLD_LINES, Journal, Since
from relay.saga.testing.nursery import CRASHED, FAILED, fork
from relay.saga.testing.world import UnknownService, World

LETTERS = [
    Letter(f"orders {number} customers", "customers", Delivery(0, "", "", False, Properties(str(number)), b""))
    for number in range(50)
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def test_a_journal_outlives_its_process(path: Path) -> None:
    journal = Journal(path)
    journal.begin_after("orders", 12, "2026-11-23 21:40:00+00")
    journal.hand_out_again("orders 1 customers")
    journal.acknowledge("orders 2 customers")
    journal.tell("something\nwas done")

    again = Journal(path)
    assert again.since == {"orders": Since(12, "2026-11-23 21:40:00+00")}
    assert again.was_handed_out_again("orders 1 customers")
    assert not again.is_acknowledged("orders 1 customers")
    assert again.is_acknowledged("orders 2 customers")
    assert again.story() == ["something was done"]


def test_the_end_of_a_long_story_is_told(path: Path) -> None:
    journal = Journal(path)
    for number in range(TOLD_LINES + 1):
        journal.tell(f"line {number}")
    assert journal.story() == ["...", *(f"line {number}" for number in range(1, TOLD_LINES + 1))]


def test_without_disorder_everything_comes_in_its_order_and_once() -> None:
    disorder = Disorder(Random(7), 0.0)
    letters = list(LETTERS)
    picked = []
    while letters:
        picked.append(disorder.pick(letters))
        letters.remove(picked[-1])
        assert not disorder.hurries()
        assert not disorder.comes_again(picked[-1])
    assert picked == LETTERS


def test_with_disorder_letters_overtake_each_other_within_a_bound() -> None:
    disorder = Disorder(Random(7), 0.3)
    letters = list(LETTERS)
    picked = []
    while letters:
        picked.append(disorder.pick(letters))
        letters.remove(picked[-1])
    assert picked != LETTERS
    assert sorted(picked, key=LETTERS.index) == LETTERS
    assert max(picked.index(letter) - at for at, letter in enumerate(LETTERS)) <= LATE_TURNS_MAX


def test_some_letters_come_twice_and_some_timers_early() -> None:
    disorder = Disorder(Random(7), 0.3)
    again = sum(disorder.comes_again(letter) for letter in LETTERS)
    assert 0 < again < len(LETTERS)
    assert sum(disorder.hurries() for _ in range(1_000)) == HURRIES_MAX


def test_a_child_ends_where_it_is_told_and_its_failure_is_heard() -> None:
    assert fork(lambda: os._exit(CRASHED)) == (CRASHED, "")

    def fail() -> None:
        raise AssertionError("what must not be")

    status, told = fork(fail)  # type: ignore[arg-type]
    assert status == FAILED
    assert "AssertionError: what must not be" in told


def test_a_service_that_is_not_in_the_world_is_named() -> None:
    async def check(connections: object) -> None: ...

    world = World([Service("orders")], {}, {}, check)
    assert world.service("orders").name == "orders"
    with pytest.raises(UnknownService, match="no service billing"):
        world.service("billing")
