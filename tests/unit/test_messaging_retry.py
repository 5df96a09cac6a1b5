"""Which failures mend themselves, and how often a message is tried."""

import psycopg
import pytest
from psycopg import errors
from psycopg_pool import PoolTimeout

from relay.messaging.retry import AWAY_CAP_S, CONFLICT_TRIES, FAULT_CAP_S, FAULT_TRIES, Patience, Trouble, trouble


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
