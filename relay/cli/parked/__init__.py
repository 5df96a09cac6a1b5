"""`relay parked`: what could not be published, and what is to become of it."""

import click

from relay.cli.parked.act import drop, replay
from relay.cli.parked.look import list_parked, show


@click.group()
def parked() -> None:
    """See to messages that could not be published.

    They are set aside in relay.parked, in the source's own database, with those of the same aggregate, kind and
    destination that came after them. Everything else flows on.
    """


for verb in (list_parked, show, replay, drop):
    parked.add_command(verb)
