"""`relay demo`."""

import asyncio
import json
import random
import shlex
import signal
import sys
import time
from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Final

import click

from relay.cli.options import OutputFormat, format_option
from relay.cli.report import Report
from relay.config import Settings, load
from relay.demo.servers.kind import KINDS, Kind
from relay.errors import ExitCode, RelayError
from relay.tasks import end
from relay.wal.lag import Lag, measure

if TYPE_CHECKING:
    from relay.demo.play import Plan
    from relay.demo.stack import Addresses, Stack

ORDERS: Final = 200
CHAOS_ORDERS: Final = 400
"""How many orders are placed, unless told otherwise; the second number with chaos."""

WATCH_S: Final = 0.2
"""How often the progress bar moves."""

STALL_S: Final = 60.0
"""The demo fails when no order is settled for so long."""

CATCH_UP_S: Final = 5.0
"""How long the last replies may take to be handled, and PostgreSQL to be told that the last message is confirmed."""

SEED_MAX: Final = 2**32 - 1


class ExtraMissing(RelayError):
    """The packages that only the demo needs are not installed."""

    hint = "Install them in the clone with `pip install -e '.[demo]'`, or run `make demo`."


class Stalled(RelayError):
    """Orders are placed, and do not get settled."""

    hint = "`relay demo --keep` leaves everything running, to look at."


@click.command()
@click.option(
    "--orders",
    type=click.IntRange(min=0),
    envvar="RELAY_ORDERS",
    show_envvar=True,
    help=f"How many orders to place: {ORDERS}, with --chaos {CHAOS_ORDERS}, but with --keep none, unless given.",
)
@click.option(
    "--keep",
    is_flag=True,
    envvar="RELAY_KEEP",
    show_envvar=True,
    help="Leave everything running until Ctrl-C, to play with.",
)
@click.option(
    "--chaos",
    is_flag=True,
    envvar="RELAY_CHAOS",
    show_envvar=True,
    help="For 40 s, while orders are placed, kill the relay and each service at least once every 10 s.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0, max=SEED_MAX),
    envvar="RELAY_SEED",
    show_envvar=True,
    help="Decides when --chaos kills; any, and printed, unless given.",
)
@click.option(
    "--servers",
    type=click.Choice(KINDS),
    envvar="RELAY_SERVERS",
    show_envvar=True,
    help="How to run PostgreSQL and RabbitMQ. Unless given, what is installed is private, the rest in containers.",
)
@format_option
def demo(
    orders: int | None, keep: bool, chaos: bool, seed: int | None, servers: Kind | None, output: OutputFormat
) -> int:
    """Start private servers and the whole stack, place orders, check what became of them, and stop.

    PostgreSQL, RabbitMQ, the relay, and the services for orders, customers and inventory run on free ports of
    127.0.0.1, with data of their own in a temporary directory, and touch no server that runs already. A server that is
    not installed runs in a container, where a Docker engine answers. Some orders are refused, and one service is down
    for a while. A broken invariant ends it with exit status 1.

    With --keep and --format json, standard output has one line, once everything is ready for orders.
    """
    from relay.demo.access import SERVICES
    from relay.demo.provision import tables

    tables(SERVICES[0])  # raises ServicesMissing before a server is installed or started
    try:
        from relay.demo.play import Plan
        from relay.demo.servers.choice import choose_postgres, choose_rabbitmq
        from relay.demo.stack import Stack

        postgres = choose_postgres(servers, _say)
        rabbitmq = choose_rabbitmq(servers, sys.stdin.isatty() and sys.stderr.isatty(), _say)
    except ImportError as error:
        raise ExtraMissing(f"the demo needs the package {error.name}") from None
    usual = CHAOS_ORDERS if chaos else ORDERS
    count = orders if orders is not None else 0 if keep else usual
    plan = Plan(count, (random.SystemRandom().randint(0, SEED_MAX) if seed is None else seed) if chaos else None)
    stack = Stack(_say, postgres, rabbitmq)
    work = _keep(stack, plan, output) if keep else _demonstrate(stack, plan, output)
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


async def _demonstrate(stack: "Stack", plan: "Plan", output: OutputFormat) -> ExitCode:
    async with stack:
        report = await _play(stack, plan)
        click.echo(json.dumps(report.as_json()) if output == "json" else report.as_text())
        _say("stopping everything")
    return ExitCode.OK if report.audit.ok else ExitCode.FAILURE


async def _keep(stack: "Stack", plan: "Plan", output: OutputFormat) -> ExitCode:
    async with stack:
        if output == "json":
            click.echo(json.dumps(_ready_line(stack)))
        if plan.orders:
            report = await _play(stack, plan)
            click.echo(report.as_text(), err=output == "json")
        if output != "json":
            click.echo(_what_to_play_with(stack.addresses))
        await asyncio.Event().wait()
    return ExitCode.OK


async def _play(stack: "Stack", plan: "Plan") -> Report:
    """Place orders, wait until all are settled and confirmed, and look at what became of them."""
    from relay.demo.audit import audit
    from relay.demo.play import play

    addresses = stack.addresses
    placing = asyncio.ensure_future(play(stack, plan, _say))
    try:
        await _settled(addresses.dsns["orders"], plan.orders, placing)
        await placing
    finally:
        await end(placing)
    lags = await asyncio.to_thread(_caught_up, load(addresses.config), addresses.dsns)
    found = await asyncio.to_thread(audit, addresses.dsns)
    return Report(plan.orders, dict(sorted(stack.kills.items())), found, lags)


async def _settled(dsn: str, count: int, placing: "asyncio.Future[None]") -> None:
    """Show the orders being settled, until all are. Raises what went wrong with placing them, or Stalled."""
    from relay.demo.audit import unsettled

    loop = asyncio.get_running_loop()
    moved_at, settled = loop.time(), 0
    with click.progressbar(length=count, label="orders", file=sys.stderr) as bar:
        while True:
            all_placed = placing.done()
            if all_placed:
                placing.result()
            unfinished, total = await asyncio.to_thread(unsettled, dsn)
            if total - unfinished > settled:
                bar.update(min(total - unfinished, count) - min(settled, count))
                settled, moved_at = total - unfinished, loop.time()
            elif loop.time() - moved_at > STALL_S:
                raise Stalled(f"{unfinished} of {total} orders are not settled, and none was for {STALL_S:.0f} s")
            # One whose answer got lost was placed again, so there may be more of them than were wanted.
            if all_placed and unfinished == 0:
                return
            await asyncio.wait({placing}, timeout=WATCH_S) if not all_placed else await asyncio.sleep(WATCH_S)


def _caught_up(settings: Settings, dsns: Mapping[str, str]) -> list[Lag]:
    """Each source's lag once everything is handled and confirmed; as it is then, if that takes too long."""
    from relay.demo.audit import undelivered

    deadline = time.monotonic() + CATCH_UP_S
    while True:
        lags = [measure(source.name, source.dsn.get_secret_value(), source.slot) for source in settings.source]
        on_their_way = undelivered(dsns) or any(lag.lag_bytes for lag in lags)
        if not on_their_way or time.monotonic() > deadline:
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
        "containers": stack.containers,
    }


def _what_to_play_with(addresses: "Addresses") -> str:
    customers, orders, inventory = (addresses.services[name] for name in ("customers", "orders", "inventory"))
    config = shlex.quote(str(addresses.config))
    json_header = "-H 'content-type: application/json'"
    lines = '[{"sku": "lamp", "quantity": 2}]'
    relay = shlex.quote(sys.argv[0]) if sys.argv[0].endswith("relay") else f"{sys.executable} -m relay"
    query = shlex.quote("SELECT * FROM relay.saga_log ORDER BY at")
    dsns = "\n                     ".join(addresses.dsns.values())
    return f"""
Everything runs until Ctrl-C.

  Order Service      {orders}/docs
  Customer Service   {customers}/docs
  Inventory Service  {inventory}/docs
  RabbitMQ           {addresses.amqp_url}
                     {addresses.management_url} (the same user and password)
  PostgreSQL         {dsns}

  curl {json_header} -d '{{"name": "Ada", "credit_limit": "100.00"}}' {customers}/customers
  curl {json_header} -X PUT -d '{{"quantity": 5}}' {inventory}/stock/lamp
  curl {json_header} -d '{{"customer_id": "…", "total": "25.00", "lines": {lines}}}' {orders}/orders
  {relay} saga list --config {config}
  {relay} lag --watch --config {config}
  psql {addresses.dsns["orders"]} -c {query}
"""


def _say(words: str) -> None:
    click.echo(words, err=True)
