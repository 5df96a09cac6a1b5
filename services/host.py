"""The process of a service: its HTTP API and its message handlers on one event loop, from start to clean stop."""

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import uvicorn
from fastapi import APIRouter
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import AsyncConnectionPool

from relay import log
from relay.errors import ExitCode, RelayError
from relay.messaging import Pool, Service
from relay.messaging.worker import STOP_GRACE_S
from relay.tasks import end
from services.http import create_app
from services.settings import ServiceSettings, read

POOL_MIN: Final = 2
POOL_MAX: Final = 24
"""Connections to the database. Messages take up to 8, those tried again 4, jobs 4; the HTTP API has the rest."""

POOL_WAITING_MAX: Final = 1000
"""Requests that may wait for a connection; more are told to come back."""

POOL_TIMEOUT_S: Final = 5.0
"""How long one waits for a connection."""

POOL_RECONNECT_S: Final = 3.0
"""How long the pool goes on trying to connect by itself. Short, because the gaps between its tries double until it
gives up, and whoever asks for a connection next makes it begin again."""

HTTP_GRACE_S: Final = 5
"""How long requests may still take when the service is stopped."""

FROZEN_MS: Final = 60_000
"""How long a transaction may stand still before PostgreSQL ends it: so long a frozen process keeps its locks."""

# A server that vanishes without a word is noticed within about 20 seconds. The DSN may say otherwise.
_CONNECT_DEFAULTS: Final = {
    "options": f"-c idle_in_transaction_session_timeout={FROZEN_MS}",
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 20_000,
}

logger = logging.getLogger(__name__)


class CannotListen(RelayError):
    """The address for HTTP cannot be had."""

    hint = "Another process may have it: choose another one with the variable that ends in _LISTEN."


class _Server(uvicorn.Server):
    """uvicorn, leaving the signals to the host, who has more to stop than HTTP."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def main(service: Service, settings_class: type[ServiceSettings], routes: Callable[[Pool], APIRouter]) -> ExitCode:
    """Run a service until SIGTERM or SIGINT, and return the exit status. `routes` makes the HTTP API for a pool."""
    try:
        settings = read(settings_class)
        log.configure(settings.log_format, settings.log_level)
        logging.getLogger("uvicorn").setLevel(logging.WARNING)  # its start and stop are told here
        asyncio.run(_run(service, settings, routes))
    except RelayError as error:
        print(f"{service.name}: {error}", *filter(None, [error.hint]), sep="\n", file=sys.stderr)
        return error.exit_code
    return ExitCode.OK


async def _run(service: Service, settings: ServiceSettings, routes: Callable[[Pool], APIRouter]) -> None:
    listening = _listen(*settings.address)
    async with _pool(service.name, settings.dsn.get_secret_value()) as pool:
        app = create_app(f"{service.name} service", pool, routes(pool))
        config = uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=HTTP_GRACE_S
        )
        server = _Server(config)
        serving = asyncio.create_task(server.serve([listening]), name="http")
        consuming = asyncio.create_task(service.run(pool, settings.amqp_url.get_secret_value()), name="messages")
        stopping = asyncio.create_task(_signalled(), name="signals")
        host, port = listening.getsockname()[:2]
        _log(f"{service.name} listens on {host}:{port}", "listening", service)
        await asyncio.wait({serving, consuming, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopped_cleanly = stopping.done()
        _log(f"{service.name} stops", "stopping", service)
        server.should_exit = True
        await end(consuming, stopping, again_s=2 * STOP_GRACE_S)
        ended = await asyncio.gather(serving, consuming, return_exceptions=True)
    for result in ended:
        if isinstance(result, Exception):
            raise result
    if not stopped_cleanly:
        raise RelayError(f"{service.name} stopped by itself")
    _log(f"{service.name} has stopped", "stopped", service)


async def _signalled() -> None:
    """Wait for the first SIGTERM or SIGINT. A further one changes nothing: every part of the stop has its bound."""
    signalled = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, signalled.set)
    await signalled.wait()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise CannotListen(f"cannot listen on {host}:{port}: {error.strerror or error}") from error


def _pool(name: str, dsn: str) -> Pool:
    """A pool that waits for a database which is not there yet, and finds out about connections that broke."""
    options: dict[str, Any] = {**_CONNECT_DEFAULTS, "application_name": name, **conninfo_to_dict(dsn)}
    return AsyncConnectionPool(
        make_conninfo(**options),
        open=False,
        name=name,
        min_size=POOL_MIN,
        max_size=POOL_MAX,
        max_waiting=POOL_WAITING_MAX,
        timeout=POOL_TIMEOUT_S,
        reconnect_timeout=POOL_RECONNECT_S,
        check=AsyncConnectionPool.check_connection,
    )


def _log(text: str, action: str, service: Service) -> None:
    logger.info(text, extra={"action": action, "service": service.name})
