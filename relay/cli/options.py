"""Options that several verbs share. Each has a twin in the environment, which its help names.

Those whose twin differs from verb to verb, or from group to group, are made by a function that takes its name.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import click
from psycopg.conninfo import conninfo_to_dict

from relay.config import Settings, load

Verb = TypeVar("Verb", bound=Callable[..., Any])

OutputFormat = Literal["table", "json"]

SHOWN: Final = 100
"""Rows that a verb shows of a source, unless it is told otherwise."""


def config_option(verb: Verb) -> Verb:
    """`--config FILE`."""
    return click.option(
        "--config",
        type=click.Path(path_type=Path, dir_okay=False),
        envvar="RELAY_CONFIG",
        show_envvar=True,
        help="TOML file with [broker] and [[source]].",
    )(verb)


def dsn_option(verb: Verb) -> Verb:
    """`--dsn DSN`. Its twin is read with the other settings, so that it is laid over the file in the same way."""
    return click.option(
        "--dsn",
        metavar="DSN",
        help="Database of the first source, like postgresql://relay@host/orders.  [env var: RELAY_SOURCE__0__DSN]",
    )(verb)


def amqp_option(verb: Verb) -> Verb:
    """`--amqp URL`."""
    return click.option(
        "--amqp",
        metavar="URL",
        help="RabbitMQ, like amqp://relay:password@host:5672/vhost.  [env var: RELAY_BROKER__URL]",
    )(verb)


def format_option(verb: Verb) -> Verb:
    """`--format table|json`."""
    return click.option(
        "--format",
        "output",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        envvar="RELAY_FORMAT",
        show_envvar=True,
        help="For a person, or for a program.",
    )(verb)


def source_option(envvar: str) -> Callable[[Verb], Verb]:
    """`--source NAME`."""
    return click.option(
        "--source", "source_name", metavar="NAME", envvar=envvar, show_envvar=True, help="One of several sources."
    )


def aggregate_option(envvar: str) -> Callable[[Verb], Verb]:
    """`--aggregate TYPE/ID`."""
    return click.option(
        "--aggregate",
        metavar="TYPE/ID",
        envvar=envvar,
        show_envvar=True,
        callback=_to_aggregate,
        help="Messages of this aggregate, like order/7.",
    )


def limit_option(envvar: str, *, rows: str) -> Callable[[Verb], Verb]:
    """`--limit N`; `rows` is what the verb shows."""
    return click.option(
        "--limit",
        type=click.IntRange(min=1),
        metavar="N",
        default=SHOWN,
        show_default=True,
        envvar=envvar,
        show_envvar=True,
        help=f"The most {rows} to show of a source.",
    )


def dry_run_option(envvar: str) -> Callable[[Verb], Verb]:
    """`--dry-run`."""
    return click.option(
        "--dry-run",
        is_flag=True,
        envvar=envvar,
        show_envvar=True,
        help="Only show the messages that it would be about.",
    )


def _to_aggregate(_context: click.Context, _option: click.Parameter, text: str | None) -> tuple[str, str] | None:
    """The type ends at the first slash: an id may have some."""
    if text is None:
        return None
    aggregate_type, slash, aggregate_id = text.partition("/")
    if not (aggregate_type and slash and aggregate_id):
        raise click.BadParameter("should look like order/7")
    return aggregate_type, aggregate_id


def load_settings(
    config: Path | None, dsn: str | None, amqp_url: str | None = None, *, needs_broker: bool = False
) -> Settings:
    """The settings of a verb; a password in its flags is warned about."""
    settings = load(config, dsn=dsn, amqp_url=amqp_url, needs_broker=needs_broker)
    twins = {"--dsn": "RELAY_SOURCE__0__DSN", "--amqp": "RELAY_BROKER__URL"}
    for flag, value in (("--dsn", dsn), ("--amqp", amqp_url)):
        if value is not None and _has_password(value):
            click.echo(
                f"relay: warning: everybody on this machine can see the password in {flag} (ps shows it); "
                f"give it in {twins[flag]}, or in a file with --config",
                err=True,
            )
    return settings


def _has_password(address: str) -> bool:
    """Whether a DSN or URL that has been found valid holds a password."""
    if address.startswith("amqp"):
        return ":" in address.partition("://")[2].rpartition("@")[0]
    return bool(conninfo_to_dict(address).get("password"))
