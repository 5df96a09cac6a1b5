"""`relay parked list` and `relay parked show`."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Final

import click

from relay.cli.options import OutputFormat, config_option, dsn_option, format_option
from relay.cli.parked.options import aggregate_option, desk_of, reason_option, source_option, sources
from relay.errors import ExitCode, RelayError
from relay.parking.desk import Entry, Selection, Sheet
from relay.parking.index import Reason

SHOWN: Final = 100
"""Messages that `relay parked list` shows, unless it is told otherwise."""

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
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    default=SHOWN,
    show_default=True,
    envvar="RELAY_PARKED_LIMIT",
    show_envvar=True,
    help="The most messages to show of a source.",
)
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
    entries: list[Entry] = []
    hidden, code = 0, ExitCode.OK
    for source in sources(config, dsn, source_name):
        try:
            with desk_of(source) as desk:
                found = desk.entries(selection, limit)
                hidden += desk.count(selection) - len(found) if len(found) == limit else 0
        except RelayError as error:
            click.echo(f"relay: {source.name}: {error}\n  {error.hint}".rstrip(), err=True)
            code = ExitCode.SOURCE
        else:
            entries += found
    if output == "json":
        click.echo(json.dumps([asdict(entry) for entry in entries], default=_as_json, ensure_ascii=False))
    elif entries:
        click.echo(render(entries))
    elif code is ExitCode.OK:
        click.echo("nothing is parked that matches" if aggregate or reason else "nothing is parked")
    if hidden:
        click.echo(f"relay: {hidden} more are parked: see --limit", err=True)
    return code


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
        click.echo(json.dumps([asdict(sheet) for sheet in sheets], default=_as_json, ensure_ascii=False))
    else:
        click.echo("\n\n".join(map(_page, sheets)))


def render(entries: Iterable[Entry]) -> str:
    """A table with a line a message."""
    rows: list[Sequence[str]] = [_HEADINGS]
    rows += [
        (
            entry.source,
            f"{entry.commit_lsn}+{entry.ordinal}",
            entry.id,
            f"{entry.kind} {entry.type}",
            f"{entry.aggregate_type}/{entry.aggregate_id}",
            entry.destination or "-",
            entry.reason,
            "yes" if entry.first else "no",
            _age(entry.parked_seconds),
        )
        for entry in entries
    ]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _age(seconds: float) -> str:
    """How long ago, as a person says it."""
    for unit_s, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit_s:
            return f"{seconds // unit_s:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


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


def _as_json(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{value!r} has no form in JSON")
