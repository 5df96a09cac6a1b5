"""What the programs of the compose stack have in common: options by click, errors for a person."""

import sys
from typing import NoReturn

import click

from relay.errors import RelayError


def run(command: click.Command) -> NoReturn:
    """Run it and end the process: an error becomes a sentence, a hint and an exit status."""
    try:
        command()
    except RelayError as error:
        click.echo(f"{command.name}: {error}", err=True)
        if error.hint:
            click.echo(f"  {error.hint}", err=True)
        sys.exit(int(error.exit_code))
    sys.exit()
