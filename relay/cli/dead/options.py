"""What the verbs of `relay dead` share: which messages, and how they are shown."""

from collections.abc import Iterable
from typing import Final

import click

from relay.cli import options
from relay.cli.options import Verb
from relay.cli.table import age, cell, columns
from relay.messaging.dead import Entry

_HEADINGS: Final = ("SOURCE", "CONSUMER", "ID", "TYPE", "AGGREGATE", "STATE", "ATTEMPTS", "BEHIND", "DEAD FOR", "ERROR")

ERROR_CHARS: Final = 80
"""What a table shows of an error; `relay dead show` has the whole."""

source_option = options.source_option("RELAY_DEAD_SOURCE")
aggregate_option = options.aggregate_option("RELAY_DEAD_AGGREGATE")
dry_run_option = options.dry_run_option("RELAY_DEAD_DRY_RUN")


def type_option(verb: Verb) -> Verb:
    """`--type TYPE`."""
    return click.option(
        "--type",
        "message_type",
        metavar="TYPE",
        envvar="RELAY_DEAD_TYPE",
        show_envvar=True,
        help="Messages of this type, like ReserveCredit.",
    )(verb)


def consumer_option(verb: Verb) -> Verb:
    """`--consumer SERVICE`."""
    return click.option(
        "--consumer",
        metavar="SERVICE",
        envvar="RELAY_DEAD_CONSUMER",
        show_envvar=True,
        help="Messages that this service could not handle.",
    )(verb)


def render(found: Iterable[tuple[str, Entry]]) -> str:
    """A table with a line a message."""
    return columns(
        _HEADINGS,
        [
            (
                source,
                entry.consumer,
                entry.id,
                entry.type,
                f"{entry.aggregate_type}/{entry.aggregate_id}",
                entry.state,
                str(entry.attempts),
                str(entry.behind),
                "-" if entry.dead_seconds is None else age(entry.dead_seconds),
                _shortened(cell(entry.error)),
            )
            for source, entry in found
        ],
    )


def _shortened(line: str) -> str:
    return line if len(line) <= ERROR_CHARS else f"{line[: ERROR_CHARS - 1]}…"
