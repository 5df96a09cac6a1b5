"""A job runs for as long as the service does."""

import asyncio
import logging
from typing import cast

import psycopg
import pytest

from relay.messaging import Pool, Service
from relay.messaging.jobs import JobTaken, keep

POOL = cast(Pool, None)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.messaging.jobs.JOB_FIRST_S", 0.0)


@pytest.mark.parametrize(
    ("error", "action", "level"),
    [
        (psycopg.OperationalError("the connection is lost"), "job_waits", logging.WARNING),
        (psycopg.errors.AdminShutdown(), "job_waits", logging.WARNING),
        (ZeroDivisionError("a bug"), "job_failed", logging.ERROR),
    ],
)
async def test_a_job_that_fails_begins_anew_and_says_why(
    error: Exception, action: str, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    begun = 0

    async def job(_: Pool) -> None:
        nonlocal begun
        begun += 1
        if begun < 4:
            raise error

    await keep("billing", "timers", job, POOL)

    assert begun == 4
    assert [(vars(told)["action"], told.levelno, vars(told)["job"]) for told in caplog.records] == [
        (action, level, "timers")
    ] * 3
    assert all(bool(told.exc_info) is (level == logging.ERROR) for told in caplog.records)


async def test_a_job_is_cancelled() -> None:
    begun = asyncio.Event()

    async def job(_: Pool) -> None:
        begun.set()
        await asyncio.Event().wait()

    kept = asyncio.create_task(keep("billing", "timers", job, POOL))
    await begun.wait()
    kept.cancel()
    with pytest.raises(asyncio.CancelledError):
        await kept


@pytest.mark.parametrize("name", ["timers", "retries", "pruning"])
def test_a_service_has_one_job_of_a_name(name: str) -> None:
    async def job(_: Pool) -> None: ...

    billing = Service("billing")
    if name == "timers":
        billing.job(name, job)
    with pytest.raises(JobTaken, match=f"service billing has a job {name} already"):
        billing.job(name, job)
