"""What a service does beside handling messages: timers, retries, pruning."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from relay.backoff import Backoff
from relay.errors import RelayError
from relay.messaging.failures import described
from relay.messaging.retry import Trouble, trouble
from relay.messaging.transaction import Pool

JOB_FIRST_S: Final = 0.1
JOB_CAP_S: Final = 30.0
"""Waits before a job that has failed is begun anew. After one that ran for longer than the cap, the first again."""

Job: TypeAlias = Callable[[Pool], Awaitable[None]]
"""Runs for as long as the service does, with connections of its pool."""

logger = logging.getLogger(__name__)


class JobTaken(RelayError):
    """A service has one job of a name."""


async def keep(service: str, name: str, job: Job, pool: Pool) -> None:
    """Run a job until it returns, or is cancelled; begin it anew, after a while, whenever it fails."""
    backoff = Backoff(JOB_FIRST_S, JOB_CAP_S)
    clock = asyncio.get_running_loop().time
    while True:
        begun_at = clock()
        try:
            await job(pool)
            return
        except Exception as error:  # a job's edge: whatever it raises, it is what somebody relies on
            if clock() - begun_at > JOB_CAP_S:
                backoff.reset()
            delay_s = backoff.next()
            _tell(service, name, error, delay_s)
        await asyncio.sleep(delay_s)


def _tell(service: str, name: str, error: Exception, delay_s: float) -> None:
    fields = {"service": service, "job": name, "delay_s": round(delay_s, 3)}
    if trouble(error) is Trouble.AWAY:
        text = f"{service}: the job {name} waits for the database: {described(error)}"
        logger.warning(text, extra={"action": "job_waits", **fields})
    else:
        text = f"{service}: the job {name} failed, and begins anew: {described(error)}"
        logger.error(text, exc_info=error, extra={"action": "job_failed", **fields})
