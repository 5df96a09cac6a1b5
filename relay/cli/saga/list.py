"""`relay saga list`."""

from collections.abc import Iterable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Final

import click
from pydantic import TypeAdapter, ValidationError

from relay.cli.listing import list_rows
from relay.cli.options import OutputFormat, config_option, dsn_option, format_option, limit_option, source_option
from relay.cli.sources import sources
from relay.cli.table import age, cell, columns
from relay.config import Duration
from relay.saga.history import Entry, Filter, entries
from relay.saga.record import Status

_HEADINGS: Final = ("SOURCE", "ID", "TYPE", "STATUS", "STEP", "AGE", "REASON")

_AGE: Final = TypeAdapter[timedelta](Duration)


def _to_seconds(_context: click.Context, _option: click.Parameter, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return _AGE.validate_python(text).total_seconds()
    except (ValidationError, OverflowError):
        raise click.BadParameter("should be an age like 90s, 5m, 12h or 7d") from None


@click.command("list")
@config_option
@dsn_option
@source_option("RELAY_SAGA_SOURCE")
@click.option(
    "--type",
    "saga_type",
    metavar="TYPE",
    envvar="RELAY_SAGA_TYPE",
    show_envvar=True,
    help="Sagas of this definition, like create_order.",
)
@click.option(
    "--status",
    "statuses",
    type=click.Choice([status.value for status in Status], case_sensitive=False),
    multiple=True,
    envvar="RELAY_SAGA_STATUS",
    show_envvar=True,
    help="Sagas of this status; may be repeated.",
)
@click.option(
    "--older-than",
    "older_than_s",
    metavar="AGE",
    envvar="RELAY_SAGA_OLDER_THAN",
    show_envvar=True,
    callback=_to_seconds,
    help="Sagas that were started longer ago: 90s, 5m, 12h, 7d.",
)
@limit_option("RELAY_SAGA_LIMIT", rows="sagas")
@format_option
def list_sagas(
    config: Path | None,
    dsn: str | None,
    source_name: str | None,
    saga_type: str | None,
    statuses: tuple[str, ...],
    older_than_s: float | None,
    limit: int,
    output: OutputFormat,
) -> int:
    """List sagas, those that were started last first.

    \b
        relay saga list --status SUSPENDED
        relay saga list --type create_order --status RUNNING --status COMPENSATING --older-than 5m

    STEP has the steps that are under way; REASON says why a saga is compensated or suspended. A source that cannot be
    asked does not hide the others; the exit status is 3 then.
    """
    wanted = Filter(saga_type, tuple(Status(status) for status in statuses), older_than_s)
    return list_rows(
        sources(config, dsn, source_name),
        "saga list",
        partial(entries, wanted=wanted),
        limit=limit,
        output=output,
        render=render,
        nothing="there are no sagas" if wanted == Filter() else "there are no sagas that match",
    )


def render(found: Iterable[tuple[str, Entry]]) -> str:
    """A table with a line a saga."""
    return columns(
        _HEADINGS,
        [
            (
                source,
                entry.id,
                entry.type,
                entry.status,
                cell(entry.step),
                age(entry.age_seconds),
                cell(entry.reason),
            )
            for source, entry in found
        ],
    )
