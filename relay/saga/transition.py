"""What happens next in a saga. Pure: the events of the log are the facts, and everything follows from them.

`decide` says which events a stimulus brings about, `evolve` what an event makes of the saga, `due` what is to be done
after it. Doing it is the orchestrator's part; it comes back with the next stimulus.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import reduce
from typing import Generic, TypeAlias, cast

from pydantic import BaseModel, JsonValue
from pydantic_core import to_json

from relay.messaging import Command, Failure, Reply, Unprocessable
from relay.messaging.message import type_of
from relay.saga.definition import LocalStep, RemoteStep, S, Saga, Step
from relay.saga.log import Happened, LogEvent

Data: TypeAlias = Mapping[str, JsonValue]
"""The state of a saga, as JSON."""


class Status(StrEnum):
    """Where a saga stands. The values are what relay.saga holds."""

    RUNNING = "RUNNING"
    COMPENSATING = "COMPENSATING"
    COMPLETED = "COMPLETED"
    COMPENSATED = "COMPENSATED"


@dataclass(frozen=True, slots=True)
class Record:
    """A saga as its log tells it. `step` is the one under way, None when the saga has ended."""

    status: Status = Status.RUNNING
    step: str | None = None
    state: Data = field(default_factory=dict)


class UnexpectedReply(Unprocessable):
    """A participant answered the step that is under way with a reply that the step does not handle."""

    hint = "Add a handler for it to the step: the saga waits. The reply is in the dead letters."


@dataclass(frozen=True, slots=True)
class Started:
    """The owner starts the saga."""

    state: BaseModel


@dataclass(frozen=True, slots=True)
class Acted:
    """The action of a local step has run."""

    step: str
    state: BaseModel


@dataclass(frozen=True, slots=True)
class Undone:
    """The compensation of a local step has run."""

    step: str
    state: BaseModel


@dataclass(frozen=True, slots=True)
class Replied:
    """A participant has answered the command of a remote step."""

    step: str
    reply: Reply


Stimulus: TypeAlias = Started | Acted | Undone | Replied


@dataclass(frozen=True, slots=True)
class Act(Generic[S]):
    """Run the action of a local step."""

    step: LocalStep[S]


@dataclass(frozen=True, slots=True)
class Undo(Generic[S]):
    """Run the compensation of a local step."""

    step: LocalStep[S]


@dataclass(frozen=True, slots=True)
class Send(Generic[S]):
    """Send the command of a remote step."""

    step: RemoteStep[S]
    command: Command


Task: TypeAlias = Act[S] | Undo[S] | Send[S]


def decide(saga: Saga[S], record: Record, stimulus: Stimulus) -> tuple[LogEvent, ...]:
    """The events that a stimulus brings about in a saga, which must be sealed.

    Stale and repeated replies bring about none: those for a step that is not under way.
    Raises UnexpectedReply when the step that is under way does not handle the reply.
    """
    match stimulus:
        case Started(state):
            started = LogEvent(Happened.SAGA_STARTED, detail={"state": dump(state)})
            return (started, LogEvent(Happened.STEP_STARTED, saga.steps[0].name))
        case Acted(step, state) if _under_way(record, Status.RUNNING, step):
            return _succeeded(saga, step, {"state": dump(state)})
        case Undone(step, state) if _under_way(record, Status.COMPENSATING, step):
            compensated = LogEvent(Happened.STEP_COMPENSATED, step, {"state": dump(state)})
            return (compensated, _compensate_before(saga, step))
        case Replied(step, reply) if _under_way(record, Status.RUNNING, step):
            return _replied(saga, record, step, reply)
        case _:
            return ()


def evolve(record: Record, event: LogEvent) -> Record:
    """The saga after an event."""
    if "state" in event.detail:
        record = replace(record, state=cast(Data, event.detail["state"]))
    match event.what:
        case Happened.STEP_STARTED | Happened.STEP_COMPENSATING:
            return replace(record, step=event.step)
        case Happened.STEP_FAILED:
            return replace(record, status=Status.COMPENSATING)
        case Happened.SAGA_COMPLETED:
            return replace(record, status=Status.COMPLETED, step=None)
        case Happened.SAGA_COMPENSATED:
            return replace(record, status=Status.COMPENSATED, step=None)
        case Happened.SAGA_STARTED | Happened.STEP_SUCCEEDED | Happened.STEP_COMPENSATED:
            return record


def rebuild(events: Iterable[LogEvent]) -> Record:
    """The saga that the whole of its log tells of."""
    return reduce(evolve, events, Record())


def due(saga: Saga[S], record: Record, last: LogEvent) -> Task[S] | None:
    """What is to be done after the last event of a decision. `record` is the saga as that event has left it."""
    step = saga.find(last.step)
    match last.what, step:
        case Happened.STEP_STARTED, LocalStep():
            return Act(step)
        case Happened.STEP_STARTED, RemoteStep():
            return Send(step, step.command(load(saga, record)))
        case Happened.STEP_COMPENSATING, LocalStep():
            return Undo(step)
        case _:
            return None


def dump(state: BaseModel) -> dict[str, JsonValue]:
    """A state as JSON."""
    return state.model_dump(mode="json")


def load(saga: Saga[S], record: Record) -> S:
    """The state of a saga, as a copy of its own that may be changed."""
    # By way of JSON, because a model may read JSON and Python values differently.
    return saga.state.model_validate_json(to_json(record.state))


def _under_way(record: Record, status: Status, step: str) -> bool:
    return record.status is status and record.step == step


def _replied(saga: Saga[S], record: Record, name: str, reply: Reply) -> tuple[LogEvent, ...]:
    step, reply_type = saga.find(name), type_of(reply)
    if not isinstance(step, RemoteStep) or reply_type not in step.replies:
        raise UnexpectedReply(f"saga {saga.name}, step {name}: nothing handles the reply {reply_type}")
    state = load(saga, record)
    step.apply(state, reply)
    answer: dict[str, JsonValue] = {"type": reply_type, "body": reply.model_dump(mode="json")}
    detail: dict[str, JsonValue] = {"state": dump(state), "reply": answer}
    if isinstance(reply, Failure):
        return (LogEvent(Happened.STEP_FAILED, name, detail), _compensate_before(saga, name))
    return _succeeded(saga, name, detail)


def _succeeded(saga: Saga[S], name: str, detail: Data) -> tuple[LogEvent, ...]:
    following: Step[S] | None = saga.after(name)
    proceed = (
        LogEvent(Happened.SAGA_COMPLETED) if following is None else LogEvent(Happened.STEP_STARTED, following.name)
    )
    return (LogEvent(Happened.STEP_SUCCEEDED, name, detail), proceed)


def _compensate_before(saga: Saga[S], name: str) -> LogEvent:
    """Compensate the latest step before the named one; when there is none, everything is undone."""
    earlier = saga.before(name)
    if not earlier:
        return LogEvent(Happened.SAGA_COMPENSATED)
    return LogEvent(Happened.STEP_COMPENSATING, earlier[0].name)
