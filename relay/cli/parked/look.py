"""`relay parked list` and `relay parked show`."""

from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Final

import click

from relay.cli.options import OutputFormat, config_option, dsn_option, format_option, limit_option
from relay.cli.parked.options import aggregate_option, desk_of, reason_option, source_option
from relay.cli.sources import Round, sources
from relay.cli.table import age, as_json, columns
from relay.config import SourceSettings
from relay.errors import ExitCode, RelayError
from relay.parking.desk import Entry, Selection, Sheet
from relay.parking.index import Reason

_HEADINGS: Final = ("SOURCE", "POSITION", "ID", "TYPE", "AGGREGATE", "DESTINATION", "REASON", "FIRST", "PARKED")


class NotParked(RelayError):
    """There is no such message among those that are parked."""

    hint = "`relay parked list` shows what is parked. What was replayed or dropped is not parked any more."


@click.command("list")
@config_option
@dsn_option
@source_option
@aggregate_option
@reason_option
@limit_option("RELAY_PARKED_LIMIT", rows="messages")
@format_option
def list_parked(
    config: Path | None,
    dsn: str | None,
    source_name: str | None,
    aggregate: tuple[str, str] | None,
    reason: str | None,
    limit: int,
    output: OutputFormat,
) -> int:
    """List what is parked, in the order of the stream. No relay need be running.

    FIRST says whether the message is the first of its aggregate, kind and destination; the others wait behind it, and
    carry its reason. A source that cannot be asked does not hide the others; the exit status is 3 then.
    """
    selection = Selection((), aggregate, Reason(reason) if reason else None)
    asked, entries, hidden = Round(), list[Entry](), 0
    question = partial(_parked, selection=selection, limit=limit)
    for _, (found, more) in asked.each(sources(config, dsn, source_name), question):
        entries += found
        hidden += more
    code = asked.tell()
    if output == "json":
        click.echo(as_json([asdict(entry) for entry in entries]))
    elif entries:
        click.echo(render(entries))
    elif code is ExitCode.OK:
        click.echo("nothing is parked that matches" if aggregate or reason else "nothing is parked")
    if hidden:
        click.echo(f"relay: {hidden} more are parked: see --limit", err=True)
    return code


def _parked(source: SourceSettings, selection: Selection, limit: int) -> tuple[list[Entry], int]:
    """The first that are selected, and how many more there are."""
    with desk_of(source) as desk:
        found = desk.entries(selection, limit)
        return found, desk.count(selection) - len(found) if len(found) == limit else 0


@click.command()
@click.argument("message_id", metavar="ID")
@config_option
@dsn_option
@source_option
@format_option
def show(config: Path | None, dsn: str | None, source_name: str | None, message_id: str, output: OutputFormat) -> None:
    """Show everything about a parked message, its payload among it, byte for byte."""
    sheets: list[Sheet] = []
    for source in sources(config, dsn, source_name):
        with desk_of(source) as desk:
            sheets += desk.sheets(message_id)
    if not sheets:
        raise NotParked(f"no message {message_id} is parked")
    if output == "json":
        click.echo(as_json([asdict(sheet) for sheet in sheets]))
    else:
        click.echo("\n\n".join(map(_page, sheets)))


def render(entries: Iterable[Entry]) -> str:
    """A table with a line a message."""
    return columns(
        _HEADINGS,
        [
            (
                entry.source,
                f"{entry.commit_lsn}+{entry.ordinal}",
                entry.id,
                f"{entry.kind} {entry.type}",
                f"{entry.aggregate_type}/{entry.aggregate_id}",
                entry.destination or "-",
                entry.reason,
                "yes" if entry.first else "no",
                age(entry.parked_seconds),
            )
            for entry in entries
        ],
    )


def _page(sheet: Sheet) -> str:
    fields = asdict(sheet)
    payload = fields.pop("payload")
    width = max(map(len, fields))
    lines = [f"{name:<{width}}  {_as_text(value)}" for name, value in fields.items()]
    return "\n".join([*lines, "payload", payload])


def _as_text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)
