"""`relay dead replay` and `relay dead drop`."""

from collections.abc import Callable
from pathlib import Path

import click
from psycopg import Connection

from relay.cli.dead.options import aggregate_option, consumer_option, dry_run_option, render, source_option, type_option
from relay.cli.options import config_option, dsn_option
from relay.cli.sources import connected, one_source
from relay.cli.table import messages
from relay.config import SourceSettings
from relay.errors import ExitCode
from relay.messaging import dead
from relay.messaging.dead import Selection, entries


@click.command()
@click.argument("ids", metavar="[ID]...", nargs=-1)
@config_option
@dsn_option
@source_option
@aggregate_option
@type_option
@consumer_option
@dry_run_option
def replay(
    config: Path | None,
    dsn: str | None,
    source_name: str | None,
    ids: tuple[str, ...],
    aggregate: tuple[str, str] | None,
    message_type: str | None,
    consumer: str | None,
    dry_run: bool,
) -> int:
    """Have dead messages tried again, under their own ids and with all their attempts anew.

    Whatever is given, of IDs, --aggregate, --type and --consumer, has to hold. Any instance of the service takes them
    up, now or when one is started; those that wait behind follow. Their history is kept. It may be repeated, and
    nothing asks back.
    """
    selection = _selection(ids, aggregate, message_type, consumer)
    return _act(one_source(config, dsn, source_name), selection, dead.replay, "replayed", dry_run=dry_run)


@click.command()
@click.argument("ids", metavar="[ID]...", nargs=-1)
@config_option
@dsn_option
@source_option
@aggregate_option
@type_option
@consumer_option
@dry_run_option
def drop(
    config: Path | None,
    dsn: str | None,
    source_name: str | None,
    ids: tuple[str, ...],
    aggregate: tuple[str, str] | None,
    message_type: str | None,
    consumer: str | None,
    dry_run: bool,
) -> int:
    """Drop dead messages: they will never be handled, nor will a copy that is delivered again.

    Whatever is given, of IDs, --aggregate, --type and --consumer, has to hold. What waits behind them is tried from now
    on. Nobody is told: the saga of a command that is dropped gets no reply. It may be repeated, and nothing asks back.
    """
    selection = _selection(ids, aggregate, message_type, consumer)
    return _act(one_source(config, dsn, source_name), selection, dead.drop, "dropped", dry_run=dry_run)


def _selection(
    ids: tuple[str, ...], aggregate: tuple[str, str] | None, message_type: str | None, consumer: str | None
) -> Selection:
    selection = Selection(ids, aggregate, message_type, consumer)
    if selection.empty:
        raise click.UsageError("say which messages: give their IDs, --aggregate, --type or --consumer")
    return selection


def _act(
    source: SourceSettings,
    selection: Selection,
    action: Callable[[Connection, Selection], int],
    done: str,
    *,
    dry_run: bool,
) -> ExitCode:
    with connected(source, f"dead {'dry run' if dry_run else done}") as connection:
        if dry_run:
            found = entries(connection, selection)
            if found:
                click.echo(render((source.name, entry) for entry in found))
            count, words = len(found), f"would be {done}"
        else:
            count, words = action(connection, selection), done
    click.echo(f"{messages(count)} {words}" if count else "nothing is dead that matches")
    return ExitCode.OK
