"""Which failures mend themselves, and how often a message is tried."""

import psycopg
import pytest
from psycopg import errors
from psycopg_pool import PoolTimeout

from relay.messaging import Retry
from relay.messaging.retry import (
    AWAY_CAP_S,
    CONFLICT_TRIES,
    FAULT_CAP_S,
    FAULT_TRIES,
    Patience,
    Trouble,
    jittered,
    trouble,
)


@pytest.mark.parametrize(
    "error",
    [
        psycopg.OperationalError("the connection is closed"),
        PoolTimeout("no connection in time"),
        errors.AdminShutdown(),
        errors.CrashShutdown(),
        errors.CannotConnectNow(),
        errors.TooManyConnections(),
        errors.ConnectionFailure(),
        errors.ReadOnlySqlTransaction(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_the_database_is_away(error: Exception) -> None:
    assert trouble(error) is Trouble.AWAY


@pytest.mark.parametrize("error", [errors.DeadlockDetected(), errors.SerializationFailure(), errors.LockNotAvailable()])
def test_another_transaction_was_in_the_way(error: Exception) -> None:
    assert trouble(error) is Trouble.CONFLICT


@pytest.mark.parametrize(
    "error",
    [
        ValueError(),
        ConnectionError(),
        errors.UniqueViolation(),
        errors.UndefinedTable(),
        errors.QueryCanceled(),
        psycopg.ProgrammingError("the query has 1 placeholder but 2 parameters were passed"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_anything_else_is_a_fault(error: Exception) -> None:
    assert trouble(error) is Trouble.FAULT


def test_patience_with_an_absent_database_has_no_end_but_its_waits_have() -> None:
    patience = Patience()
    waits_s = [patience.after(errors.AdminShutdown()) for _ in range(1000)]
    assert all(wait_s is not None and 0 < wait_s <= AWAY_CAP_S for wait_s in waits_s)


def test_a_fault_is_tried_a_few_times() -> None:
    patience = Patience()
    *waits_s, end = (patience.after(ValueError()) for _ in range(FAULT_TRIES))
    assert all(wait_s is not None and 0 < wait_s <= FAULT_CAP_S for wait_s in waits_s)
    assert end is None


def test_a_conflict_is_tried_again_at_once_and_then_counts_as_a_fault() -> None:
    patience = Patience()
    waits_s = [patience.after(errors.DeadlockDetected()) for _ in range(CONFLICT_TRIES + FAULT_TRIES)]
    assert waits_s[:CONFLICT_TRIES] == [0.0] * CONFLICT_TRIES
    assert waits_s[-1] is None
    assert None not in waits_s[:-1]


def test_an_absence_of_the_database_does_not_use_up_the_tries() -> None:
    patience = Patience()
    for _ in range(100):
        patience.after(errors.AdminShutdown())
    assert patience.after(ValueError()) is not None


def test_neither_an_absence_nor_the_first_conflicts_are_failed_attempts() -> None:
    patience = Patience()
    for _ in range(CONFLICT_TRIES):
        patience.after(errors.DeadlockDetected())
        patience.after(errors.AdminShutdown())
    assert patience.faults == 0
    patience.after(errors.DeadlockDetected())
    assert patience.faults == 1


def test_the_waits_of_a_policy_double_up_to_its_cap() -> None:
    retry = Retry(attempts=8, backoff="1s..10s")
    assert [retry.delay_s(attempt) for attempt in range(1, 8)] == [1, 2, 4, 8, 10, 10, 10]


def test_a_wait_is_bounded_whatever_the_attempt() -> None:
    assert Retry(backoff="1ms..7d").delay_s(2**31) == 7 * 86_400


def test_a_policy_says_what_it_was_given() -> None:
    assert Retry(3, "1s..1m") == Retry(attempts=3, backoff="1s..1m")
    assert Retry(3, "60s..60s") != Retry(3, "1m..1m")
    assert repr(Retry(3, "1s..1m")) == "Retry(attempts=3, backoff='1s..1m')"
    assert len({Retry(), Retry()}) == 1


@pytest.mark.parametrize(
    ("attempts", "backoff", "complaint"),
    [
        (0, "1s..1m", "attempts is 0"),
        (3, "1s", "not two times like 1s..5m: each should be a time like"),
        (3, "1s..2s..3s", "not two times"),
        (3, "fast..slow", "not two times"),
        (3, "0s..1m", "longer than nothing"),
        (3, "1m..1s", "the last no less"),
    ],
)
def test_what_is_no_policy_is_refused_when_it_is_made(attempts: int, backoff: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Retry(attempts, backoff)


def test_jitter_is_between_half_and_whole() -> None:
    waits_s = [jittered(8) for _ in range(1000)]
    assert 4 <= min(waits_s) < 4.5
    assert 7.5 < max(waits_s) <= 8
