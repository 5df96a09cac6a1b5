"""`relay parked replay` and `relay parked drop`."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import click

from relay.cli.options import Verb, config_option, dsn_option
from relay.cli.parked.look import render
from relay.cli.parked.options import aggregate_option, desk_of, dry_run_option, reason_option, source_option
from relay.cli.sources import one_source
from relay.cli.table import messages
from relay.errors import ExitCode, RelayError
from relay.parking.desk import Asked, Entry, Progress, Selection
from relay.parking.index import Reason
from relay.parking.request import Action

TIMEOUT_S: Final = 30.0
"""How long to wait for a relay that makes no progress, unless it is told otherwise."""


class NotFirst(RelayError):
    """A message waits behind others of its aggregate, so it cannot be dropped alone."""

    hint = "Drop or replay those before it first; or leave out --first, which drops all of them."


class NobodyThere(RelayError):
    """No relay has taken the request in time. It is withdrawn: nothing will happen."""

    hint = "Only the relay that works on the source publishes: start `relay run`, or look at its log, and ask again."


class Stalled(RelayError):
    """A relay has taken the request, and has made no progress for a while. It sees it through when it can."""

    hint = "Look at the relay's log: RabbitMQ may be away. `relay parked list` shows what is still parked."


class StillParked(RelayError):
    """Not everything that was to be published was."""

    hint = "Mend the cause and replay them again, or drop them. `relay parked show ID` has the detail of each."


def timeout_option(verb: Verb) -> Verb:
    """`--timeout SECONDS`."""
    return click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        default=TIMEOUT_S,
        show_default=True,
        envvar="RELAY_PARKED_TIMEOUT",
        show_envvar=True,
        help="How long to wait for a relay that makes no progress.",
    )(verb)


@click.command()
@click.argument("ids", metavar="[ID]...", nargs=-1)
@config_option
@dsn_option
@source_option
@aggregate_option
@reason_option
@dry_run_option
@timeout_option
def replay(
    config: Path | None,
    dsn: str | None,
    source_name: str | None,
    ids: tuple[str, ...],
    aggregate: tuple[str, str] | None,
    reason: str | None,
    dry_run: bool,
    timeout: float,
) -> int:
    """Have parked messages published after all, in order and under their own ids.

    Whatever is selected, by ID, --aggregate or --reason, stands for all that is parked of its aggregate, kind and
    destination. The relay that works on the source does it; this command waits, and says what came of it. It exits 1
    when some are still parked, or when no relay is there. It may be repeated, and nothing asks back.
    """
    selection = _selection(ids, aggregate, reason)
    with desk_of(one_source(config, dsn, source_name)) as desk:
        if dry_run:
            return _preview(desk.lanes(selection), "replayed")
        if not desk.count(selection):
            click.echo("nothing is parked that matches")
            return ExitCode.OK
        done = _await(desk.ask(Action.REPLAY, selection, timeout), timeout)
        return _tell(done)


@click.command()
@click.argument("ids", metavar="[ID]...", nargs=-1)
@config_option
@dsn_option
@source_option
@aggregate_option
@reason_option
@click.option(
    "--first",
    is_flag=True,
    envvar="RELAY_PARKED_FIRST",
    show_envvar=True,
    help="Only the messages with these IDs, each the first of its aggregate, kind and destination.",
)
@dry_run_option
@timeout_option
def drop(
    config: Path | None,
    dsn: str | None,
    source_name: str | None,
    ids: tuple[str, ...],
    aggregate: tuple[str, str] | None,
    reason: str | None,
    first: bool,
    dry_run: bool,
    timeout: float,
) -> int:
    """Have parked messages dropped: they will never be published.

    Whatever is selected, by ID, --aggregate or --reason, stands for all that is parked of its aggregate, kind and
    destination; with --first only the messages named are dropped, and what waits behind them stays parked, to be
    replayed. The relay that works on the source does it; this command waits, and says what came of it. It may be
    repeated, and nothing asks back.
    """
    selection = _selection(ids, aggregate, reason)
    if first and not ids:
        raise click.UsageError("--first needs the IDs of the messages that are to be dropped alone")
    with desk_of(one_source(config, dsn, source_name)) as desk:
        if first:
            _verify_first(desk.entries(selection))
        if dry_run:
            return _preview(desk.entries(selection) if first else desk.lanes(selection), "dropped")
        if not desk.count(selection):
            click.echo("nothing is parked that matches")
            return ExitCode.OK
        done = _await(desk.ask(Action.DROP, selection, timeout, first_only=first), timeout)
        return _tell(done, first_only=first)


def _selection(ids: tuple[str, ...], aggregate: tuple[str, str] | None, reason: str | None) -> Selection:
    if not (ids or aggregate or reason):
        raise click.UsageError("say which messages: give their IDs, --aggregate or --reason")
    return Selection(ids, aggregate, Reason(reason) if reason else None)


def _verify_first(entries: Iterable[Entry]) -> None:
    for entry in entries:
        if not entry.first:
            raise NotFirst(f"{entry.id} waits behind another message of {entry.aggregate_type} {entry.aggregate_id}")


def _preview(entries: Sequence[Entry], what: str) -> ExitCode:
    if entries:
        click.echo(render(entries))
    click.echo(f"{messages(len(entries))} would be {what}" if entries else "nothing is parked that matches")
    return ExitCode.OK


def _await(asked: Asked, timeout_s: float) -> Progress:
    """What came of a request. Raises NobodyThere or Stalled; withdraws it on Ctrl-C, where that is still possible."""
    try:
        while True:
            seen = asked.wait()
            if seen.state == "done":
                return seen
            if seen.state == "taken":
                so_far = f"published {seen.published} and dropped {seen.dropped} so far"
                raise Stalled(
                    f"a relay has taken request {asked.number}, and nothing has moved for {timeout_s:g} s: {so_far}"
                )
            if asked.withdraw():
                raise NobodyThere(f"no relay has taken the request within {timeout_s:g} s, and it is withdrawn")
    except KeyboardInterrupt:
        gone = asked.withdraw()
        click.echo("the request is withdrawn" if gone else "the relay goes on with what it has begun", err=True)
        raise


def _tell(done: Progress, *, first_only: bool = False) -> ExitCode:
    """Say what came of a request. Raises StillParked."""
    parts = [f"{messages(done.dropped)} dropped"] if done.dropped else []
    if done.published:
        parts.append(f"{messages(done.published)} published" + (", which came meanwhile" if done.dropped else ""))
    if done.still_parked and first_only:
        parts.append(f"{messages(done.still_parked)} behind still parked")
    if parts:
        click.echo("; ".join(parts))
    if done.still_parked and not first_only:
        raise StillParked(f"{messages(done.still_parked)} still parked: {done.detail or 'others came meanwhile'}")
    if not parts:
        click.echo("nothing is parked that matches")
    return ExitCode.OK
