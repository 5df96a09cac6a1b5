"""`relay dead list` and `relay dead show`."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import cast

import click

from relay.cli.dead.options import aggregate_option, consumer_option, render, source_option, type_option
from relay.cli.listing import list_rows
from relay.cli.options import OutputFormat, config_option, dsn_option, format_option, limit_option
from relay.cli.sources import Round, sources
from relay.cli.table import as_json, cell, columns, fields, moment
from relay.errors import ExitCode, RelayError
from relay.messaging.dead import Selection, Sheet, entries, sheets


class NotDeferred(RelayError):
    """There is no such message among those that are not handled."""

    hint = "`relay dead list --waiting` shows which there are. What was handled or dropped is not there any more."


@click.command("list")
@config_option
@dsn_option
@source_option
@aggregate_option
@type_option
@consumer_option
@click.option(
    "--waiting",
    is_flag=True,
    envvar="RELAY_DEAD_WAITING",
    show_envvar=True,
    help="Also those that are still tried again, and those that wait behind another one.",
)
@limit_option("RELAY_DEAD_LIMIT", rows="messages")
@format_option
def list_dead(
    config: Path | None,
    dsn: str | None,
    source_name: str | None,
    aggregate: tuple[str, str] | None,
    message_type: str | None,
    consumer: str | None,
    waiting: bool,
    limit: int,
    output: OutputFormat,
) -> int:
    """List dead messages, in the order in which they were put off. No service need be running.

    BEHIND says how many messages of the same aggregate wait behind it; ERROR is that of the last attempt. A source that
    cannot be asked does not hide the others; the exit status is 3 then.
    """
    selection = Selection((), aggregate, message_type, consumer)
    return list_rows(
        sources(config, dsn, source_name),
        "dead list",
        partial(entries, selection=selection, waiting=waiting),
        limit=limit,
        output=output,
        render=render,
        nothing=("nothing waits" if waiting else "nothing is dead") + ("" if selection.empty else " that matches"),
    )


@click.command()
@click.argument("message_id", metavar="ID")
@config_option
@dsn_option
@source_option
@format_option
def show(config: Path | None, dsn: str | None, source_name: str | None, message_id: str, output: OutputFormat) -> int:
    """Show everything about a message that is not handled: its failures, its headers and its body.

    It is looked for in every source, and may be there for several services. A source that cannot be asked does not hide
    the others; the exit status is 3 then.
    """
    asked, found = Round(), list[tuple[str, Sheet]]()
    question = partial(sheets, message_id=message_id)
    for source, answer in asked.ask(sources(config, dsn, source_name), "dead show", question):
        found += [(source, sheet) for sheet in answer]
    code = asked.tell()
    if not found and code is ExitCode.OK:
        raise NotDeferred(f"no message {message_id} waits to be handled")
    if output == "json":
        click.echo(as_json([{"source": source} | asdict(sheet) for source, sheet in found]))
    elif found:
        click.echo("\n\n\n".join(render_page(source, sheet) for source, sheet in found))
    return code


def render_page(source: str, sheet: Sheet) -> str:
    """Everything about one message."""
    head = fields(
        [
            ("message", sheet.id),
            ("source", source),
            ("consumer", sheet.consumer),
            ("type", sheet.type),
            ("aggregate", f"{sheet.aggregate_type}/{sheet.aggregate_id}"),
            ("state", sheet.state),
            ("attempts", str(sheet.attempts)),
            ("behind", str(sheet.behind)),
            ("deferred", moment(sheet.deferred_at)),
            ("due", moment(sheet.due_at)),
            ("dead", moment(sheet.dead_at)),
        ]
    )
    failures = [
        (cell(failure.get("at")), cell(failure.get("attempt")), cell(failure.get("error")))
        for failure in cast("list[Mapping[str, object]]", sheet.history)
    ]
    history = columns(("FAILED AT", "ATTEMPT", "ERROR"), failures) if failures else "it has not been tried"
    properties = f"properties\n{json.dumps(sheet.properties, indent=2, ensure_ascii=False)}"
    return "\n\n".join([head, history, properties, f"body\n{sheet.body}"])
