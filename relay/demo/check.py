"""`python -m relay.demo.check`: waits until every order is settled, and looks whether everything adds up."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import click

from relay.config import load
from relay.demo.audit import audit, undelivered, unsettled
from relay.demo.program import run
from relay.errors import RelayError

WITHIN_S: Final = 60.0
"""How long the orders may take to be settled, unless told otherwise: a step waits for its reply for half of that."""

POLL_S: Final = 0.5


class NotSettled(RelayError):
    """Orders have been placed, and what becomes of them is not decided."""

    hint = "`relay saga list` shows how far they are, `relay lag` and `relay parked list` what has not arrived."


class Broken(RelayError):
    """An invariant does not hold."""


def await_settled(dsns: Mapping[str, str], within_s: float) -> None:
    """Wait until every saga has ended and every message is handled. Raises NotSettled."""
    deadline = time.monotonic() + within_s
    while True:
        sagas, orders = unsettled(dsns["orders"])
        late = time.monotonic() > deadline
        messages = undelivered(dsns) if late or not sagas else 0
        if not sagas and not messages:
            return
        if late:
            left = f"{sagas} of {orders} orders are not settled, and {messages} messages not handled"
            raise NotSettled(f"after {within_s:g} s {left}")
        time.sleep(POLL_S)


@click.command()
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), envvar="RELAY_CONFIG", show_envvar=True)
@click.option("--within", type=click.FloatRange(min=0), default=WITHIN_S, show_default=True, help="In seconds.")
def check(config: Path | None, within: float) -> None:
    """Wait until every order is settled, and say what became of them and whether everything adds up.

    It reads the databases as the relay's role, which owns them. Place no orders meanwhile.
    """
    dsns = {source.name: source.dsn.get_secret_value() for source in load(config).source}
    await_settled(dsns, within)
    found = audit(dsns)
    for line in ("Orders", *found.outcome_lines, "", "Invariants", *map(str, found.invariants)):
        click.echo(line)
    if not found.ok:
        raise Broken("not every invariant holds")


if __name__ == "__main__":
    run(check)
