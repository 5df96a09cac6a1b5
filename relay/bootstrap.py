"""Settings become objects: the only place that wires the daemon together."""

import asyncio
from functools import partial

from relay.config import Settings
from relay.daemon.session import Session
from relay.daemon.supervisor import Supervisor
from relay.errors import ConfigError, ExitCode


def run(settings: Settings) -> ExitCode:
    """Run the relay until it is told to stop."""
    if settings.broker is None:
        raise ConfigError("broker.url is missing")
    url = settings.broker.url.get_secret_value()
    sources = {source.name: partial(Session, source, url) for source in settings.source}

    async def supervise() -> ExitCode:
        return await Supervisor(sources).run()

    return asyncio.run(supervise())
