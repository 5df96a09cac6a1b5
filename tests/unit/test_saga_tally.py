"""How often a timer is tried that cannot be fired, and what spends its budgets."""

import psycopg
import pytest
from psycopg import errors

from relay.messaging.retry import CONFLICT_TRIES
from relay.saga.tally import INTERRUPTION_RETRY, TIMER_RETRY, UNKNOWN_MAX, Tally, UnknownSaga

TRANSIENT = [
    errors.DeadlockDetected(),
    errors.SerializationFailure(),
    errors.LockNotAvailable(),
    psycopg.OperationalError("the connection is lost"),
    errors.AdminShutdown(),
    errors.DiskFull(),
]


def after(tally: Tally, error: Exception, times: int) -> Tally:
    for _ in range(times):
        tally = tally.after(error)
    return tally


def test_code_that_raises_has_a_budget() -> None:
    last_but_one = after(Tally(), ValueError(), TIMER_RETRY.attempts - 1)
    assert not last_but_one.spent
    assert last_but_one.after(ValueError()).spent
    assert not last_but_one.after(ValueError()).always_interrupted


@pytest.mark.parametrize("error", TRANSIENT, ids=lambda error: type(error).__name__)
def test_what_is_nobody_s_fault_does_not_spend_it(error: Exception) -> None:
    tally = after(Tally(failures=TIMER_RETRY.attempts - 1), error, INTERRUPTION_RETRY.attempts - 1)
    assert tally.failures == TIMER_RETRY.attempts - 1
    assert not tally.spent


@pytest.mark.parametrize("error", TRANSIENT, ids=lambda error: type(error).__name__)
def test_and_yet_it_ends(error: Exception) -> None:
    assert after(Tally(), error, INTERRUPTION_RETRY.attempts).spent
    assert after(Tally(), error, INTERRUPTION_RETRY.attempts).always_interrupted


def test_an_instance_that_does_not_know_the_saga_spends_nothing_however_often_it_tries() -> None:
    tally = after(Tally(), UnknownSaga("trip"), 10 * INTERRUPTION_RETRY.attempts)
    assert tally == Tally(interruptions=UNKNOWN_MAX)
    assert tally.delay_s(UnknownSaga("trip")) == INTERRUPTION_RETRY.cap_s
    assert after(Tally(3, 50), UnknownSaga("trip"), 2) == Tally(3, 50)


def test_waits_grow_with_what_failed_last() -> None:
    tally = Tally()
    waits = []
    for _ in range(4):
        tally = tally.after(ValueError())
        waits.append(tally.delay_s(ValueError()))
    assert waits == [1.0, 2.0, 4.0, 8.0]
    conflict = errors.DeadlockDetected()
    assert tally.after(conflict).delay_s(conflict) == 1.0


def test_it_is_an_hour_until_code_that_raises_is_given_up_and_longer_until_a_conflict_is() -> None:
    waits_s = [sum(retry.delay_s(n) for n in range(1, retry.attempts)) for retry in (TIMER_RETRY, INTERRUPTION_RETRY)]
    assert [round(wait_s / 1800) / 2 for wait_s in waits_s] == [1.0, 1.5]


def test_the_first_conflicts_are_no_news_everything_else_is() -> None:
    conflict = errors.DeadlockDetected()
    tallies = [after(Tally(), conflict, times) for times in range(1, CONFLICT_TRIES + 2)]
    assert [tally.is_news(conflict) for tally in tallies] == [False] * CONFLICT_TRIES + [True]
    assert Tally(failures=1).is_news(ValueError())
