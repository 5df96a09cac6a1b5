"""`relay demo`."""

import asyncio
import json
import shlex
import signal
import sys
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final

import click

from relay.cli.options import OutputFormat, format_option
from relay.cli.report import Report
from relay.config import Settings, load
from relay.errors import ExitCode, RelayError
from relay.tasks import end
from relay.wal.lag import Lag, measure

if TYPE_CHECKING:
    from relay.demo.stack import Addresses, Stack

ORDERS: Final = 200

WATCH_S: Final = 0.2
"""How often the progress bar moves."""

STALL_S: Final = 60.0
"""The demo fails when no order is settled for so long."""

CATCH_UP_S: Final = 5.0
"""How long PostgreSQL may take to be told that the last message is confirmed."""


class ExtraMissing(RelayError):
    """The packages that only the demo needs are not installed."""

    hint = "Install them with `pip install 'saga-relay[demo]'`, or run `make demo` in a clone."


class Stalled(RelayError):
    """Orders are placed, and do not get settled."""

    hint = "`relay demo --keep` leaves everything running, to look at."


@click.command()
@click.option(
    "--orders",
    type=click.IntRange(min=0),
    envvar="RELAY_ORDERS",
    show_envvar=True,
    help=f"How many orders to place: {ORDERS}, but with --keep none, unless given.",
)
@click.option(
    "--keep",
    is_flag=True,
    envvar="RELAY_KEEP",
    show_envvar=True,
    help="Leave everything running until Ctrl-C, to play with.",
)
@format_option
def demo(orders: int | None, keep: bool, output: OutputFormat) -> int:
    """Start private servers and the whole stack, place orders, check what became of them, and stop.

    PostgreSQL, RabbitMQ, the relay, the Order Service and the Customer Service run on free ports of 127.0.0.1, with
    data of their own in a temporary directory, and touch no server that runs already. A broken invariant ends it with
    exit status 1.

    With --keep and --format json, standard output has one line, once everything is ready for orders.
    """
    try:
        from relay.demo.install import ensure_rabbitmq
        from relay.demo.stack import Stack
    except ImportError as error:
        raise ExtraMissing(f"the demo needs the package {error.name}") from None
    ensure_rabbitmq(sys.stdin.isatty() and sys.stderr.isatty(), _say)
    count = orders if orders is not None else 0 if keep else ORDERS
    work = _keep(Stack(_say), count, output) if keep else _demonstrate(Stack(_say), count, output)
    return asyncio.run(_until_signal(work, stopped=ExitCode.OK if keep else ExitCode.FAILURE))


async def _until_signal(work: Coroutine[Any, Any, ExitCode], stopped: ExitCode) -> ExitCode:
    """Do the work; a signal cancels it once, and it cleans up undisturbed by further ones."""
    task = asyncio.ensure_future(work)
    signalled = False

    def on_signal() -> None:
        nonlocal signalled
        if not signalled:
            signalled = True
            _say("stopping everything")
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    try:
        return await task
    except asyncio.CancelledError:
        return stopped


async def _demonstrate(stack: "Stack", count: int, output: OutputFormat) -> ExitCode:
    async with stack:
        report = await _play(stack, count)
        click.echo(json.dumps(report.as_json()) if output == "json" else report.as_text())
        _say("stopping everything")
    return ExitCode.OK if report.audit.ok else ExitCode.FAILURE


async def _keep(stack: "Stack", count: int, output: OutputFormat) -> ExitCode:
    async with stack:
        if output == "json":
            click.echo(json.dumps(_ready_line(stack)))
        if count:
            report = await _play(stack, count)
            click.echo(report.as_text(), err=output == "json")
        if output != "json":
            click.echo(_what_to_play_with(stack.addresses))
        await asyncio.Event().wait()
    return ExitCode.OK


async def _play(stack: "Stack", count: int) -> Report:
    """Place orders, wait until all are settled and confirmed, and look at what became of them."""
    from relay.demo.audit import audit
    from relay.demo.load import place_orders

    addresses = stack.addresses
    placing = asyncio.ensure_future(place_orders(addresses.services, count))
    try:
        await _settled(addresses.dsns["orders"], count, placing)
        await placing
    finally:
        await end(placing)
    settings = load(addresses.config)
    lags = await asyncio.to_thread(_caught_up, settings)
    return Report(count, await asyncio.to_thread(audit, addresses.dsns), lags)


async def _settled(dsn: str, count: int, placing: "asyncio.Future[None]") -> None:
    """Show the orders being settled, until all are. Raises what went wrong with placing them, or Stalled."""
    from relay.demo.audit import unsettled

    loop = asyncio.get_running_loop()
    moved_at = loop.time()
    with click.progressbar(length=count, label="orders", file=sys.stderr) as bar:
        while bar.pos < count or not placing.done():
            await asyncio.wait({placing}, timeout=WATCH_S) if not placing.done() else await asyncio.sleep(WATCH_S)
            if placing.done():
                placing.result()
            pending, total = await asyncio.to_thread(unsettled, dsn)
            if total - pending > bar.pos:
                bar.update(total - pending - bar.pos)
                moved_at = loop.time()
            elif loop.time() - moved_at > STALL_S:
                raise Stalled(f"{pending} of {total} orders are PENDING, and none was settled for {STALL_S:.0f} s")


def _caught_up(settings: Settings) -> list[Lag]:
    """Each source's lag once everything is confirmed; as it is then, if that takes too long."""
    deadline = time.monotonic() + CATCH_UP_S
    while True:
        lags = [measure(source.name, source.dsn.get_secret_value(), source.slot) for source in settings.source]
        if not any(lag.lag_bytes for lag in lags) or time.monotonic() > deadline:
            return lags
        time.sleep(WATCH_S)


def _ready_line(stack: "Stack") -> dict[str, object]:
    addresses = stack.addresses
    return {
        "ready": True,
        **{f"{name}_url": url for name, url in addresses.services.items()},
        "amqp_url": addresses.amqp_url,
        "dsn": dict(addresses.dsns),
        "config": str(addresses.config),
        "pids": stack.pids,
    }


def _what_to_play_with(addresses: "Addresses") -> str:
    customers, orders = addresses.services["customers"], addresses.services["orders"]
    config = shlex.quote(str(addresses.config))
    json_header = "-H 'content-type: application/json'"
    relay = shlex.quote(sys.argv[0]) if sys.argv[0].endswith("relay") else f"{sys.executable} -m relay"
    query = shlex.quote("SELECT * FROM relay.saga_log ORDER BY at")
    return f"""
Everything runs until Ctrl-C.

  Order Service      {orders}/docs
  Customer Service   {customers}/docs
  RabbitMQ           {addresses.amqp_url}
                     {addresses.management_url} (the same user and password)
  PostgreSQL         {addresses.dsns["orders"]}
                     {addresses.dsns["customers"]}

  curl {json_header} -d '{{"name": "Ada", "credit_limit": "100.00"}}' {customers}/customers
  curl {json_header} -d '{{"customer_id": "…", "total": "25.00"}}' {orders}/orders
  {relay} lag --watch --config {config}
  psql {addresses.dsns["orders"]} -c {query}
"""


def _say(words: str) -> None:
    click.echo(words, err=True)
