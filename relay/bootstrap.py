"""Settings become objects: the only place that wires the daemon together."""

import asyncio
import gc
from functools import partial
from typing import Final

from relay.config import Settings
from relay.daemon.http import Http
from relay.daemon.session import Session
from relay.daemon.status import SourceStatus
from relay.daemon.supervisor import Supervisor
from relay.errors import ConfigError, ExitCode

COLLECT_EVERY: Final = 100_000
"""Objects between two collections of garbage. What is in flight is no garbage and makes no cycles, and there is much of
it: Python's own 700 cost a fifteenth of the CPU time."""


def run(settings: Settings) -> ExitCode:
    """Run the relay until it is told to stop."""
    broker = settings.broker
    if broker is None:
        raise ConfigError("broker.url is missing")
    statuses = [SourceStatus(source.name) for source in settings.source]
    groups = settings.topology.layout().partitioned
    sources = [
        (status, partial(Session, source, broker, status, groups))
        for source, status in zip(settings.source, statuses, strict=True)
    ]

    gc.set_threshold(COLLECT_EVERY)
    gc.freeze()

    async def supervise() -> ExitCode:
        async with Http(settings.http.listen, statuses):
            return await Supervisor(sources).run()

    return asyncio.run(supervise())
