"""`relay`: its verbs, and how an error ends it."""

import sys
from importlib import import_module
from typing import Any, Final

import click

from relay.errors import ExitCode, RelayError

VERBS: Final = ("dead", "demo", "lag", "migrate", "parked", "republish", "run", "saga", "topology")
"""Each is a module of this package, and the command in it of the same name."""


class Verbs(click.Group):
    """A verb is imported when it is asked for: a relay that starts does not wait for what only other verbs need."""

    def __init__(self, **attributes: Any) -> None:
        # Their names are all that click needs to list them, and to guess which one was meant.
        super().__init__(commands=dict.fromkeys(VERBS, click.Command(None)), **attributes)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        verb: click.Command = getattr(import_module(f"relay.cli.{cmd_name}"), cmd_name)
        return verb


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="saga-relay", prog_name="relay")
def cli() -> None:
    """Publish what services commit to PostgreSQL, to RabbitMQ: nothing lost, nothing made up, in order.

    Exit status: 0 ok, 1 failure, 2 usage, 3 PostgreSQL unreachable or slot missing, 4 broker unreachable.
    """


def main() -> None:
    """Run a verb; an error becomes a sentence, a hint and an exit status."""
    try:
        code = cli(standalone_mode=False)
    except RelayError as error:
        complain(error)
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = ExitCode.USAGE if isinstance(error, click.UsageError) else ExitCode.FAILURE
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        code = ExitCode.FAILURE
    sys.exit(int(code) if isinstance(code, int) else ExitCode.OK)


def complain(error: RelayError) -> None:
    """Say on standard error what happened and what to do."""
    click.echo(f"relay: {error}", err=True)
    if error.hint:
        click.echo(f"  {error.hint}", err=True)
