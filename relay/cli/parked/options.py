"""What the verbs of `relay parked` share: which messages, and where they are."""

from contextlib import AbstractContextManager

import click

from relay.cli import options
from relay.cli.options import Verb
from relay.config import SourceSettings
from relay.parking.desk import Desk
from relay.parking.index import Reason

source_option = options.source_option("RELAY_PARKED_SOURCE")
aggregate_option = options.aggregate_option("RELAY_PARKED_AGGREGATE")
dry_run_option = options.dry_run_option("RELAY_PARKED_DRY_RUN")


def reason_option(verb: Verb) -> Verb:
    """`--reason REASON`."""
    return click.option(
        "--reason",
        type=click.Choice([reason.value for reason in Reason]),
        envvar="RELAY_PARKED_REASON",
        show_envvar=True,
        help="Messages that are parked for this reason, or wait behind such a one.",
    )(verb)


def desk_of(source: SourceSettings) -> AbstractContextManager[Desk]:
    """A connection to what is parked of a source."""
    return Desk.open(source.name, source.dsn.get_secret_value(), source.slot)
