"""`relay run`."""

from pathlib import Path

import click

from relay import log
from relay.bootstrap import run as run_relay
from relay.cli.options import amqp_option, config_option, dsn_option, load_settings


@click.command()
@config_option
@dsn_option
@amqp_option
@click.option(
    "--log-format",
    type=click.Choice(["console", "json"]),
    default="console",
    show_default=True,
    envvar="RELAY_LOG_FORMAT",
    show_envvar=True,
    help="Lines for a person, or JSON objects.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
    default="info",
    show_default=True,
    envvar="RELAY_LOG_LEVEL",
    show_envvar=True,
    help="The least that is logged.",
)
def run(config: Path | None, dsn: str | None, amqp: str | None, log_format: log.Format, log_level: str) -> int:
    """Publish the outbox of every source until SIGTERM or Ctrl-C.

    \b
        relay run --config relay.toml
        RELAY_SOURCE__0__DSN=postgresql://… RELAY_BROKER__URL=amqp://… relay run

    While a server is away it waits and tries again, for ever. On SIGTERM it lets what is in flight arrive, and exits 0;
    a second signal does not wait for that. Of several relays on one source, one works and the others wait.
    """
    settings = load_settings(config, dsn, amqp, needs_broker=True)
    log.configure(log_format, log_level)
    return run_relay(settings)
