"""`relay topology plan`, `apply` and `verify`."""

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import click

from relay.broker.builder import Builder
from relay.broker.connection import Connection
from relay.broker.layout import Change, Difference, Found, Wanted, differences, strangers
from relay.broker.management import Management
from relay.broker.reach import DeadEnd, Route, dead_ends
from relay.cli.options import OutputFormat, amqp_option, config_option, format_option, load_settings
from relay.cli.routes import routes
from relay.cli.table import columns
from relay.config import BrokerSettings, Settings
from relay.daemon.addressing import routing
from relay.errors import ConfigError, ExitCode

_HEADINGS: Final = ("CHANGE", "WHAT", "NAME", "DETAIL")

IN_SYNC: Final = "nothing differs"


@click.group()
def topology() -> None:
    """Declare exchanges, queues and bindings from the configuration, and show what differs.

    All three verbs read what is there from RabbitMQ's management API: broker.management_url.
    """


@dataclass(frozen=True, slots=True)
class Findings:
    """What differs, and what else is worth knowing."""

    differences: tuple[Difference, ...]
    ends_nowhere: tuple[DeadEnd, ...]
    not_configured: tuple[str, ...]

    @property
    def is_clean(self) -> bool:
        """Whether everything is as configured."""
        return not self.differences

    def as_json(self) -> dict[str, object]:
        """The whole; docs/cli.md tells the keys."""
        return {
            "in_sync": self.is_clean,
            "differences": [
                {
                    "change": each.change,
                    "what": each.thing,
                    "name": each.name,
                    "detail": each.detail or None,
                    "hint": each.hint or None,
                }
                for each in self.differences
            ],
            "ends_nowhere": [
                {"route": each.route, "exchange": each.exchange, "routing_key": each.routing_key, "why": each.why}
                for each in self.ends_nowhere
            ],
            "not_configured": list(self.not_configured),
        }


@topology.command()
@config_option
@amqp_option
@format_option
def plan(config: Path | None, amqp: str | None, output: OutputFormat) -> int:
    """Show what differs, and which routes end nowhere. Touches nothing, and exits 0 whatever it finds."""
    settings, broker = _settings(config, amqp)
    findings = look(settings, broker, _management(broker))
    click.echo(json.dumps(findings.as_json(), ensure_ascii=False) if output == "json" else render(findings))
    return ExitCode.OK


@topology.command()
@config_option
@amqp_option
@format_option
def apply(config: Path | None, amqp: str | None, output: OutputFormat) -> int:
    """Make what is missing. May be repeated.

    It changes and deletes nothing, except when the number of partitions of a group changes: then the queues that are
    out of it are unbound and, being empty, deleted. Exits 1 when something is there otherwise than configured.
    """
    settings, broker = _settings(config, amqp)
    management = _management(broker)
    before = look(settings, broker, management)
    if any(difference.change is not Change.EXTRA for difference in before.differences):
        asyncio.run(_apply(settings.topology.layout(), broker, management, before.differences))
    after = look(settings, broker, management)
    remaining = {difference.name for difference in after.differences}
    done = tuple(each for each in before.differences if each.name not in remaining)
    if output == "json":
        applied = Findings(done, (), ()).as_json()["differences"]
        click.echo(json.dumps({"applied": applied} | after.as_json(), ensure_ascii=False))
    else:
        click.echo("\n\n".join([*([f"applied\n{table(done)}"] if done else []), render(after)]))
    return ExitCode.OK if all(each.change is Change.EXTRA for each in after.differences) else ExitCode.FAILURE


@topology.command()
@config_option
@amqp_option
@format_option
def verify(config: Path | None, amqp: str | None, output: OutputFormat) -> int:
    """Exit 1 when something differs, and say what; else exit 0 in silence. For CI, and before a deployment."""
    settings, broker = _settings(config, amqp)
    findings = look(settings, broker, _management(broker))
    if output == "json":
        click.echo(json.dumps(findings.as_json(), ensure_ascii=False))
    elif not findings.is_clean:
        click.echo(render(findings))
    return ExitCode.OK if findings.is_clean else ExitCode.FAILURE


def _settings(config: Path | None, amqp_url: str | None) -> tuple[Settings, BrokerSettings]:
    settings = load_settings(config, None, amqp_url, needs_broker=True)
    if settings.broker is None:
        raise ConfigError("broker.url is missing")
    return settings, settings.broker


def _management(broker: BrokerSettings) -> Management:
    own = broker.management_url
    return Management.of(broker.url.get_secret_value(), own.get_secret_value() if own else None)


async def _apply(wanted: Wanted, broker: BrokerSettings, management: Management, todo: Sequence[Difference]) -> None:
    connection = await Connection.open(broker.url.get_secret_value(), name="relay topology apply")
    try:
        await Builder(connection, management, partial(_say, "relay: ")).apply(wanted, todo)
    finally:
        await connection.close()


def _say(before: str, what: str) -> None:
    click.echo(before + what, err=True)


def look(settings: Settings, broker: BrokerSettings, management: Management) -> Findings:
    """Compare the configuration with the broker."""
    wanted, found = settings.topology.layout(), management.found()
    return Findings(
        differences(wanted, found), _dead_ends(_routes(settings, broker), wanted, found), strangers(wanted, found)
    )


def _routes(settings: Settings, broker: BrokerSettings) -> tuple[Route, ...]:
    return routes({source.name: routing(broker, source) for source in settings.source})


def _dead_ends(ways: Iterable[Route], wanted: Wanted, found: Found) -> tuple[DeadEnd, ...]:
    """As it will be when what is configured is made."""
    exchanges = dict(found.exchanges) | {exchange.name: exchange for exchange in wanted.exchanges}
    queues = found.queues.keys() | {queue.name for queue in wanted.queues}
    return dead_ends(ways, exchanges, queues, found.bindings | set(wanted.all_bindings))


def render(findings: Findings) -> str:
    """A page for a person."""
    sections = [table(findings.differences) if findings.differences else IN_SYNC]
    hints = dict.fromkeys(each.hint for each in findings.differences if each.hint)
    if hints:
        sections.append("\n".join(hints))
    if findings.ends_nowhere:
        lines = (
            f"  {each.route}: {each.exchange or 'the default exchange'} with {each.routing_key!r}: {each.why}"
            for each in findings.ends_nowhere
        )
        sections.append("\n".join(["These routes end nowhere:", *lines]))
    if findings.not_configured:
        sections.append(f"Listening, but not configured here: {', '.join(findings.not_configured)}")
    return "\n\n".join(sections)


def table(found: Iterable[Difference]) -> str:
    """A table with a line a difference."""
    return columns(_HEADINGS, [(each.change, each.thing, each.name, each.detail) for each in found])
