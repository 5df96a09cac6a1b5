"""What is to be done after an event of a saga. Pure: doing it is the orchestrator's part."""

from collections.abc import Iterator
from typing import cast

from pydantic_core import to_json

from relay.saga.definition import Saga
from relay.saga.log import Happened, LogEvent
from relay.saga.record import Data, Record
from relay.saga.step import LocalStep, RemoteStep, S
from relay.saga.stimulus import Act, Purpose, Send, SetTimer, Task, Timer, Undo


def due(saga: Saga[S], record: Record, event: LogEvent) -> Iterator[Task[S]]:
    """What is to be done after an event of a decision. `record` is the saga as the whole decision has left it."""
    step = saga.find(event.step)
    attempt = event.attempt or 1
    match event.what, step:
        case Happened.SAGA_STARTED, _ if saga.timeout_s is not None:
            yield SetTimer(Timer(Purpose.SAGA_TIMEOUT), saga.timeout_s)
        case Happened.SAGA_WAITING, _ if saga.on_locked == "wait":
            yield SetTimer(Timer(Purpose.LOCK_TIMEOUT), saga.lock_timeout_s)
        case Happened.STEP_STARTED, LocalStep():
            yield Act(step)
        case Happened.STEP_STARTED, RemoteStep():
            yield Send(step, step.request(load(saga, record)), attempt)
            yield SetTimer(Timer(Purpose.TIMEOUT, step.name, attempt), step.timeout_s)
        case Happened.STEP_COMPENSATING, LocalStep():
            yield Undo(step)
        case Happened.STEP_COMPENSATING, RemoteStep() if step.compensation is not None:
            yield Send(step, step.compensation(_as_produced(saga, record, step)), attempt, compensates=True)
            yield SetTimer(Timer(Purpose.UNDO_TIMEOUT, step.name, attempt), step.timeout_s)
        case Happened.STEP_FAILED | Happened.STEP_TIMED_OUT, _ if "retry_in_s" in event.detail:
            yield _again(Purpose.RETRY, event)
        case Happened.COMPENSATION_FAILED, _ if "retry_in_s" in event.detail:
            yield _again(Purpose.UNDO_RETRY, event)


def load(saga: Saga[S], record: Record) -> S:
    """The state of a saga, as a copy of its own that may be changed."""
    return _read(saga, record.state)


def _as_produced(saga: Saga[S], record: Record, step: RemoteStep[S]) -> S:
    """The state for undoing a step: as it was when that began, so that each attempt asks for the same.

    A success that came late has not changed it: the saga has gone on without that. Its compensation is shown it.
    """
    stands = record.steps[step.name]
    state = _read(saga, record.state if stands.undone_from is None else stands.undone_from)
    late = stands.late
    reply_type = None if late is None else step.answer(str(late["type"]))
    if late is not None and reply_type is not None:
        step.apply(state, reply_type.model_validate_json(to_json(late["body"])))
    return state


def _read(saga: Saga[S], state: Data) -> S:
    # By way of JSON, because a model may read JSON and Python values differently.
    return saga.state.model_validate_json(to_json(state))


def _again(purpose: Purpose, event: LogEvent) -> SetTimer:
    after_s = cast(float, event.detail["retry_in_s"])
    return SetTimer(Timer(purpose, event.step, event.attempt), after_s, jitter=True)
