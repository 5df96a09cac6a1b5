"""`relay saga`: which sagas there are, and what happened in one."""

import click

from relay.cli.saga.list import list_sagas
from relay.cli.saga.show import show_saga


@click.group()
def saga() -> None:
    """Look at sagas: where each stands, and all that happened in it.

    They are in the databases of the services that run them, in relay.saga and relay.saga_log. Neither a relay nor a
    service need be running.
    """


for verb in (list_sagas, show_saga):
    saga.add_command(verb)
