"""`relay republish`."""

import asyncio
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click
from pydantic import TypeAdapter, ValidationError

from relay.broker.encoding import SHORT_BYTES
from relay.capture.message import Kind
from relay.cli.options import amqp_option, config_option, dsn_option, load_settings, source_option
from relay.cli.sources import only
from relay.config import Duration
from relay.daemon.republish import Republish, Selection
from relay.errors import ConfigError, ExitCode, RelayError
from relay.tasks import end

TELL_EVERY_S: Final = 1.0
"""How often a terminal is told how far it has come."""

_AGE: Final = TypeAdapter(Duration)


def _to_time(_context: click.Context, _option: click.Parameter, text: str | None) -> datetime | None:
    """A time in ISO 8601, in UTC where it has no zone, or how long ago it was."""
    if text is None:
        return None
    with suppress(ValidationError, OverflowError):
        return datetime.now(UTC) - _AGE.validate_python(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter("should be a time like 2026-11-23T12:00:00Z, or an age like 12h or 7d") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _to_queue(_context: click.Context, _option: click.Parameter, text: str) -> str:
    if not 0 < len(text.encode()) <= SHORT_BYTES:
        raise click.BadParameter(f"should have 1 to {SHORT_BYTES} bytes")
    return text


@click.command()
@config_option
@dsn_option
@amqp_option
@click.option(
    "--to",
    "queue",
    metavar="QUEUE",
    required=True,
    envvar="RELAY_REPUBLISH_TO",
    show_envvar=True,
    callback=_to_queue,
    help="The queue that gets the messages. It has to exist.",
)
@click.option(
    "--type",
    "types",
    metavar="TYPE",
    multiple=True,
    envvar="RELAY_REPUBLISH_TYPE",
    show_envvar=True,
    help="Messages of this type; may be repeated.",
)
@click.option(
    "--aggregate-type",
    "aggregate_types",
    metavar="TYPE",
    multiple=True,
    envvar="RELAY_REPUBLISH_AGGREGATE_TYPE",
    show_envvar=True,
    help="Messages of aggregates of this type; may be repeated.",
)
@click.option(
    "--kind",
    "kinds",
    type=click.Choice([kind.value for kind in Kind]),
    multiple=True,
    default=[Kind.EVENT.value],
    show_default=True,
    envvar="RELAY_REPUBLISH_KIND",
    show_envvar=True,
    help="Messages of this kind; may be repeated.",
)
@click.option(
    "--since",
    metavar="TIME",
    envvar="RELAY_REPUBLISH_SINCE",
    show_envvar=True,
    callback=_to_time,
    help="Messages created then or later: 2026-11-23T12:00:00Z, or how long ago, like 12h or 7d.",
)
@click.option(
    "--until",
    metavar="TIME",
    envvar="RELAY_REPUBLISH_UNTIL",
    show_envvar=True,
    callback=_to_time,
    help="Messages created before that.",
)
@click.option(
    "--from-seq",
    metavar="SEQ",
    type=int,
    envvar="RELAY_REPUBLISH_FROM_SEQ",
    show_envvar=True,
    help="Go on where an interrupted run stopped: it says where.",
)
@source_option("RELAY_REPUBLISH_SOURCE")
def republish(
    config: Path | None,
    dsn: str | None,
    amqp: str | None,
    queue: str,
    types: tuple[str, ...],
    aggregate_types: tuple[str, ...],
    kinds: tuple[str, ...],
    since: datetime | None,
    until: datetime | None,
    from_seq: int | None,
    source_name: str | None,
) -> int:
    """Publish what is in the outbox once more, to one queue: for a subscriber that was not there before.

    \b
        relay republish --to billing --type OrderCreated --type OrderPaid --since 7d

    Messages keep their ids, and come in the order in which they were inserted. They go to that queue alone; nobody else
    gets them again. Only events, unless --kind says otherwise. The user of the broker needs the right to write to the
    default exchange.
    """
    settings = load_settings(config, dsn, amqp, needs_broker=True)
    if settings.broker is None:
        raise ConfigError("broker.url is missing")
    work = Republish(only(settings.source, source_name), settings.broker, queue)
    selection = Selection(tuple(Kind(kind) for kind in kinds), types, aggregate_types, since, until, from_seq)
    try:
        asyncio.run(_told(work, selection))
    except RelayError as error:
        if work.resume_at is not None:
            error.hint = f"{error.hint} {_so_far(work)}".strip()
        raise
    except KeyboardInterrupt:
        if work.resume_at is not None:
            click.echo(_so_far(work), err=True)
        raise
    return _sum_up(work, queue)


async def _told(work: Republish, selection: Selection) -> None:
    """Do the work; a person at a terminal sees how far it has come."""
    telling = asyncio.ensure_future(_tell(work)) if sys.stderr.isatty() else None
    try:
        await work.run(selection)
    finally:
        if telling is not None:
            await end(telling)
            click.echo("", err=True)


async def _tell(work: Republish) -> None:
    while True:
        click.echo(f"\r{_messages(work.published)} published", nl=False, err=True)
        await asyncio.sleep(TELL_EVERY_S)


def _so_far(work: Republish) -> str:
    return f"{_messages(work.published)} published so far; go on with the same options and --from-seq {work.resume_at}."


def _sum_up(work: Republish, queue: str) -> ExitCode:
    for named in work.named:
        click.echo(f"relay: left out {named}", err=True)
    if not work.published and not work.left_out:
        click.echo("nothing in the outbox matches")
        return ExitCode.OK
    left_out = f"; {_messages(work.left_out)} left out, as they cannot be sent" if work.left_out else ""
    click.echo(f"{_messages(work.published)} published to the queue {queue}{left_out}")
    return ExitCode.FAILURE if work.left_out else ExitCode.OK


def _messages(count: int) -> str:
    return "1 message" if count == 1 else f"{count:,} messages"
