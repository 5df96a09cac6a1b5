"""What the verbs of `relay dead` share: which messages, and how they are shown."""

from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

import click

from relay.cli.sources import source_option as one_of_several
from relay.cli.table import age, cell, columns
from relay.messaging.dead import Entry

Verb = TypeVar("Verb", bound=Callable[..., Any])

_HEADINGS: Final = ("SOURCE", "CONSUMER", "ID", "TYPE", "AGGREGATE", "STATE", "ATTEMPTS", "BEHIND", "DEAD FOR", "ERROR")

ERROR_CHARS: Final = 80
"""What a table shows of an error; `relay dead show` has the whole."""


def source_option(verb: Verb) -> Verb:
    """`--source NAME`."""
    return one_of_several("RELAY_DEAD_SOURCE")(verb)


def aggregate_option(verb: Verb) -> Verb:
    """`--aggregate TYPE/ID`."""
    return click.option(
        "--aggregate",
        metavar="TYPE/ID",
        envvar="RELAY_DEAD_AGGREGATE",
        show_envvar=True,
        callback=_to_aggregate,
        help="Messages of this aggregate, like order/7.",
    )(verb)


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


def _to_aggregate(_context: click.Context, _option: click.Parameter, text: str | None) -> tuple[str, str] | None:
    """The type ends at the first slash: an id may have some."""
    if text is None:
        return None
    aggregate_type, slash, aggregate_id = text.partition("/")
    if not (aggregate_type and slash and aggregate_id):
        raise click.BadParameter("should look like order/7")
    return aggregate_type, aggregate_id


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
