"""What the verbs of `relay parked` share: which source, which messages."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import click

from relay.cli.options import load_settings
from relay.config import SourceSettings
from relay.errors import ConfigError
from relay.parking.desk import Desk
from relay.parking.index import Reason

Verb = TypeVar("Verb", bound=Callable[..., Any])


def source_option(verb: Verb) -> Verb:
    """`--source NAME`."""
    return click.option(
        "--source",
        "source_name",
        metavar="NAME",
        envvar="RELAY_PARKED_SOURCE",
        show_envvar=True,
        help="One of several sources.",
    )(verb)


def aggregate_option(verb: Verb) -> Verb:
    """`--aggregate TYPE/ID`."""
    return click.option(
        "--aggregate",
        metavar="TYPE/ID",
        envvar="RELAY_PARKED_AGGREGATE",
        show_envvar=True,
        callback=_to_aggregate,
        help="Messages of this aggregate, like order/7.",
    )(verb)


def reason_option(verb: Verb) -> Verb:
    """`--reason REASON`."""
    return click.option(
        "--reason",
        type=click.Choice([reason.value for reason in Reason]),
        envvar="RELAY_PARKED_REASON",
        show_envvar=True,
        help="Messages that are parked for this reason, or wait behind such a one.",
    )(verb)


def _to_aggregate(_context: click.Context, _option: click.Parameter, text: str | None) -> tuple[str, str] | None:
    """The type ends at the first slash: an id may have some."""
    if text is None:
        return None
    aggregate_type, slash, aggregate_id = text.partition("/")
    if not (aggregate_type and slash and aggregate_id):
        raise click.BadParameter("should look like order/7")
    return aggregate_type, aggregate_id


def sources(config: Path | None, dsn: str | None, name: str | None) -> Sequence[SourceSettings]:
    """All sources, or the one of that name. Raises ConfigError when there is none."""
    sources = load_settings(config, dsn).source
    chosen = [source for source in sources if name in (None, source.name)]
    if not chosen:
        known = ", ".join(source.name for source in sources)
        raise ConfigError(f"there is no source {name}", f"Give one of these with --source: {known}.")
    return chosen


def one_source(config: Path | None, dsn: str | None, name: str | None) -> SourceSettings:
    """The only source, or the one of that name. Raises ConfigError when there are several, or none."""
    chosen = sources(config, dsn, name)
    if len(chosen) > 1:
        known = ", ".join(source.name for source in chosen)
        raise ConfigError("there are several sources", f"Give one of these with --source: {known}.")
    return chosen[0]


def desk_of(source: SourceSettings) -> AbstractContextManager[Desk]:
    """A connection to what is parked of a source."""
    return Desk.open(source.name, source.dsn.get_secret_value(), source.slot)
