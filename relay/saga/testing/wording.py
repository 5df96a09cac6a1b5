"""What a failing test tells its reader: what the saga was expected to do, what it did, and where it stands."""

from collections.abc import Iterable
from typing import Any

from relay.messaging import Message
from relay.messaging.message import type_of
from relay.saga.record import Phase, Record
from relay.saga.testing.rehearsal import Moment, Rehearsal, Sent

_WAITS = {
    Phase.STARTED: "waits for the reply to attempt {0.attempt}",
    Phase.RETRYING: "waits for its next attempt, after {0.attempt}",
    Phase.UNDOING: "waits for the reply to its compensation, attempt {0.undo_attempt}",
    Phase.UNDO_RETRYING: "waits for the next attempt at its compensation, after {0.undo_attempt}",
}


def complaint(rehearsal: Rehearsal[Any], expected: str, instead: str, unexpected: Iterable[Sent]) -> str:
    """The whole text of a failure."""
    lines = [f"expected {expected}, but {instead}", "", f"saga {rehearsal.saga.name} {standing(rehearsal.record)}"]
    lines += ["", "what happened:", *(f"  {line}" for line in timeline(rehearsal.story))]
    waiting = [describe(sent) for sent in unexpected]
    if waiting:
        lines += ["", "what was sent, and no test has expected yet:", *(f"  {line}" for line in waiting)]
    return "\n".join(lines)


def standing(record: Record) -> str:
    """Where a saga stands, in a clause."""
    waits = [f"{name} {_WAITS[step.phase].format(step)}" for name, step in record.steps.items() if step.phase in _WAITS]
    reason = f" ({record.reason})" if record.reason else ""
    return f"is {record.status.value}{reason}" + (": " + ", ".join(waits) if waits else "")


def timeline(story: Iterable[Moment]) -> list[str]:
    """A line for each event: when, what, of which step, which attempt, and why."""
    return [_line(moment) for moment in story]


def describe(sent: Sent) -> str:
    """A command, and where it goes."""
    attempt = f", attempt {sent.attempt}" if sent.attempt > 1 else ""
    return f"{body(sent.command)} to {sent.to} (step {sent.step}{attempt})"


def body(message: Message) -> str:
    """A message as one would write it."""
    fields = ", ".join(f"{name}={getattr(message, name)!r}" for name in type(message).model_fields)
    return f"{type_of(message)}({fields})"


def _line(moment: Moment) -> str:
    event = moment.event
    attempt = f" (attempt {event.attempt})" if event.attempt and event.attempt > 1 else ""
    reason = f": {event.reason}" if event.reason else ""
    return f"{moment.at_s:7g} s  {event.what.value}{' ' + event.step if event.step else ''}{attempt}{reason}"
