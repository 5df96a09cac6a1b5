"""`relay saga show`."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from uuid import UUID

import click

from relay.cli.options import OutputFormat, config_option, dsn_option, format_option, source_option
from relay.cli.sources import Round, sources
from relay.cli.table import age, as_json, cell, columns, fields, moment
from relay.errors import ExitCode, RelayError
from relay.saga.history import Lock, Sheet, Timer, sheet


class NoSuchSaga(RelayError):
    """There is no saga of this id in any of the sources."""

    hint = "`relay saga list` shows which there are. A saga is in the database of the service that runs it."


@click.command("show")
@click.argument("saga_id", metavar="ID", type=click.UUID)
@config_option
@dsn_option
@source_option("RELAY_SAGA_SOURCE")
@format_option
def show_saga(
    config: Path | None, dsn: str | None, source_name: str | None, saga_id: UUID, output: OutputFormat
) -> int:
    """Show everything about a saga: where it stands, what it waits for, its state, and all that happened, in order.

    It is looked for in every source. One that cannot be asked matters only if it is in none of the others; the exit
    status is 3 then.
    """
    asked = Round()
    for source, found in asked.ask(sources(config, dsn, source_name), "saga show", partial(sheet, saga_id=saga_id)):
        if found is not None:
            click.echo(as_json({"source": source} | asdict(found)) if output == "json" else render(source, found))
            return ExitCode.OK
    code = asked.tell()
    if code is ExitCode.OK:
        raise NoSuchSaga(f"there is no saga {saga_id}")
    return code


def render(source: str, found: Sheet) -> str:
    """A page, with a section for each kind of thing that there is."""
    return "\n\n".join(_sections(source, found))


def _sections(source: str, found: Sheet) -> Iterator[str]:
    yield fields(
        [
            ("saga", found.id),
            ("source", source),
            ("type", found.type),
            ("definition", cell(found.definition)),
            ("status", found.status),
            ("reason", cell(found.reason)),
            ("started", f"{moment(found.started_at)}  {age(found.age_seconds)} ago"),
            ("updated", moment(found.updated_at)),
            ("ended", moment(found.ended_at)),
        ]
    )
    if found.steps:
        steps = [(one.step, one.phase, str(one.attempt), str(one.undo_attempt or "-")) for one in found.steps]
        yield columns(("STEP", "PHASE", "ATTEMPT", "UNDO ATTEMPT"), steps)
    if found.timers:
        headings = ("TIMER", "STEP", "ATTEMPT", "DUE", "IN S", "FAILURES", "INTERRUPTIONS")
        yield columns(headings, map(_timer, found.timers))
    if found.locks:
        yield columns(("LOCK", "SINCE", "HOLDER", "AHEAD"), map(_lock, found.locks))
    yield f"state\n{json.dumps(found.state, indent=2, ensure_ascii=False)}"
    yield columns(
        ("TIME", "OFFSET S", "EVENT", "STEP", "ATTEMPT", "REASON"),
        [
            (
                moment(event.at),
                f"{event.offset_seconds:.3f}",
                event.event,
                cell(event.step),
                cell(event.attempt),
                cell(event.reason),
            )
            for event in found.timeline
        ],
    )


def _timer(timer: Timer) -> tuple[str, ...]:
    return (
        timer.purpose,
        cell(timer.step),
        cell(timer.attempt),
        "held" if timer.due_at is None else moment(timer.due_at),
        "-" if timer.due_in_seconds is None else f"{timer.due_in_seconds:.1f}",
        str(timer.failures),
        str(timer.interruptions),
    )


def _lock(lock: Lock) -> tuple[str, ...]:
    return lock.resource, moment(lock.taken_at) if lock.held else "waits", cell(lock.holder), str(lock.ahead)
