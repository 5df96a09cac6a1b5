"""How a verb lists what is in the databases of the sources: in a table with a line a row, or as JSON."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import click

from relay.cli.options import OutputFormat
from relay.cli.sources import Round
from relay.cli.table import as_json
from relay.config import SourceSettings
from relay.errors import ExitCode

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Row = TypeVar("Row", bound="DataclassInstance")


def list_rows(
    sources: Iterable[SourceSettings],
    verb: str,
    question: Callable[..., Sequence[Row]],
    *,
    limit: int,
    output: OutputFormat,
    render: Callable[[Iterable[tuple[str, Row]]], str],
    nothing: str,
) -> ExitCode:
    """Show the first rows of each source, `limit` at the most, and say whether there are more.

    `question` takes a connection, and `limit` by its name. `nothing` is what a person reads where there is no row. A
    source that cannot be asked is told of, and does not hide the others.
    """
    asked, found, hidden = Round(), list[tuple[str, Row]](), False
    for source, answer in asked.ask(sources, verb, partial(question, limit=limit + 1)):
        found += [(source, row) for row in answer[:limit]]
        hidden = hidden or len(answer) > limit
    code = asked.tell()
    if output == "json":
        click.echo(as_json([{"source": source} | asdict(row) for source, row in found]))
    elif found:
        click.echo(render(found))
    elif code is ExitCode.OK:
        click.echo(nothing)
    if hidden:
        click.echo("relay: there are more: see --limit", err=True)
    return code
