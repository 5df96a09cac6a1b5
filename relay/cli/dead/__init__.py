"""`relay dead`: messages that a service could not handle, and what is to become of them."""

import click

from relay.cli.dead.act import drop, replay
from relay.cli.dead.look import list_dead, show


@click.group()
def dead() -> None:
    """See to messages that a service could not handle.

    A message whose tries are used up is dead: it is in relay.deferred, in the service's own database, and those of its
    aggregate that came later wait behind it. Everything else is handled. The service need not be running.
    """


for verb in (list_dead, show, replay, drop):
    dead.add_command(verb)
