"""`relay`: its verbs, and how an error ends it."""

import sys

import click

from relay import __version__
from relay.cli.dead import dead
from relay.cli.demo import demo
from relay.cli.lag import lag
from relay.cli.migrate import migrate
from relay.cli.parked import parked
from relay.cli.republish import republish
from relay.cli.run import run
from relay.cli.saga import saga
from relay.cli.topology import topology
from relay.errors import ExitCode, RelayError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="relay")
def cli() -> None:
    """Publish what services commit to PostgreSQL, to RabbitMQ: nothing lost, nothing made up, in order.

    Exit status: 0 ok, 1 failure, 2 usage, 3 PostgreSQL unreachable or slot missing, 4 broker unreachable.
    """


for verb in (run, lag, parked, saga, dead, republish, topology, migrate, demo):
    cli.add_command(verb)


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
