"""What happens next in a saga. Pure: `decide` says which events a stimulus brings about.

Some are facts: a step has succeeded, failed, timed out. The others follow from where that leaves the saga: what starts,
what is undone, how it ends. `record.evolve` says what an event makes of the saga, `task.due` what is to be done after
it. Doing it is the orchestrator's part; it comes back with the next stimulus.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from typing import Final

from pydantic import BaseModel, JsonValue

from relay.messaging import Compensated, Failure, OperationCancelled, Reply, Unprocessable
from relay.messaging.message import type_of
from relay.saga.definition import Saga
from relay.saga.log import Happened, LogEvent
from relay.saga.plan import advance, can_turn_back, out_of_time
from relay.saga.record import Data, Phase, Record, Status, StepRecord, Then, evolve
from relay.saga.step import LocalStep, Nature, RemoteStep, S, Step, following
from relay.saga.stimulus import (
    Aborted,
    Acted,
    ActionFailed,
    Due,
    Held,
    Purpose,
    Replied,
    Stalled,
    Started,
    Stimulus,
    Timer,
    UndoFailed,
    Undone,
)
from relay.saga.task import load

Events = tuple[LogEvent, ...]

_TIMES: Final[Mapping[Purpose, str]] = {
    Purpose.TIMEOUT: "the timeout of {step}",
    Purpose.RETRY: "the next attempt of {step}",
    Purpose.UNDO_TIMEOUT: "the timeout of undoing {step}",
    Purpose.UNDO_RETRY: "the next attempt to undo {step}",
    Purpose.SAGA_TIMEOUT: "the timeout of the saga",
    Purpose.LOCK: "the beginning of the saga",
    Purpose.LOCK_TIMEOUT: "the timeout of the lock",
}
"""What a timer is the time of, in a reason."""


class UnexpectedReply(Unprocessable):
    """A participant answered with a reply that the step does not handle."""

    hint = "Add a handler for it to the step, and replay the message: `relay dead replay`."


def decide(saga: Saga[S], record: Record, stimulus: Stimulus) -> Events:
    """The events that a stimulus brings about in a saga, which must be sealed: facts first, then what follows.

    Stale and repeated stimuli bring about none. Raises UnexpectedReply for a reply that the step does not handle, and
    whatever a condition or a handler of replies raises.
    """
    events = _facts(saga, record, stimulus)
    if not events:
        return ()
    record = reduce(evolve, events, record)
    while more := advance(saga, record):
        events += more
        record = reduce(evolve, more, record)
    return events


def dump(state: BaseModel) -> dict[str, JsonValue]:
    """A state as JSON."""
    return state.model_dump(mode="json")


def _facts(saga: Saga[S], record: Record, stimulus: Stimulus) -> Events:
    match stimulus:
        case Started(state):
            return (LogEvent(Happened.SAGA_STARTED, detail={"state": dump(state)}),)
        case Held(state, resource):
            waits = f"{resource} is being worked on"
            return (LogEvent(Happened.SAGA_WAITING, reason=waits, detail={"state": dump(state)}),)
        case _ if record.ended:
            return ()
        case Aborted(reason) if can_turn_back(saga, record):
            return (LogEvent(Happened.SAGA_ABORTED, reason=reason),)
        case Due(timer):
            return _due(saga, record, timer)
        case Stalled(timer, reason):
            return (_stalled(timer, reason),)
        case Acted(step) | ActionFailed(step) | Undone(step) | UndoFailed(step) | Replied(step):
            found, stands = saga.find(step), record.steps.get(step)
            return () if found is None or stands is None else _of_step(saga, record, found, stands, stimulus)
        case _:
            return ()


def _of_step(saga: Saga[S], record: Record, step: Step[S], stands: StepRecord, stimulus: Stimulus) -> Events:
    match stimulus, stands.phase:
        case Acted(_, state), Phase.STARTED:
            return (LogEvent(Happened.STEP_SUCCEEDED, step.name, stands.attempt, detail=_changed(record, dump(state))),)
        case ActionFailed(_, reason, failure), Phase.STARTED:
            passes = failure is None or isinstance(failure, step.transient)
            return _failed(saga, record, step, stands, reason, passes)
        case Undone(_, state), Phase.UNDOING:
            detail = _changed(record, dump(state))
            return (LogEvent(Happened.STEP_COMPENSATED, step.name, stands.undo_attempt, detail=detail),)
        case UndoFailed(_, reason), Phase.UNDOING:
            return _undo_failed(step, stands, reason)
        case Replied(_, Compensated() as reply, attempt, False), _ if isinstance(step, RemoteStep):
            # It says so itself, whatever its headers say.
            return _compensation_replied(step, stands, reply, None)
        case Replied(_, reply, attempt, True), _ if isinstance(step, RemoteStep):
            return _compensation_replied(step, stands, reply, attempt)
        case Replied(_, reply, attempt, False), _ if isinstance(step, RemoteStep):
            return _replied(saga, record, step, stands, reply, attempt)
        case _:
            return ()


def _replied(
    saga: Saga[S], record: Record, step: RemoteStep[S], stands: StepRecord, reply: Reply, attempt: int | None
) -> Events:
    if step.answer(type_of(reply)) is not type(reply):
        raise UnexpectedReply(f"saga {saga.name}, step {step.name}: nothing handles the reply {type_of(reply)}")
    if isinstance(reply, Failure):
        # An earlier attempt says nothing about the one that is under way: that one will be answered too.
        current = attempt in (None, stands.attempt) and _awaits_failure(saga, step, stands)
        return _refused(saga, record, step, stands, reply, attempt) if current else ()
    if stands.phase in (Phase.DONE, Phase.SKIPPED, Phase.UNDONE) or stands.done or stands.late is not None:
        return ()
    # A success that comes late is kept too: what the step produced is needed to undo it. The saga has gone on without.
    late = stands.phase not in (Phase.STARTED, Phase.RETRYING, Phase.STUCK)
    detail: Data = {"reply": _as_json(reply), "late": True} if late else _answer(saga, record, step, reply)
    return (LogEvent(Happened.STEP_SUCCEEDED, step.name, attempt or stands.attempt, detail=detail),)


def _awaits_failure(saga: Saga[S], step: Step[S], stands: StepRecord) -> bool:
    """Whether a failure of the current attempt is news: also to a suspended saga whose pivot nobody has answered."""
    lost_pivot = stands.phase is Phase.STUCK and saga.nature(step) is Nature.PIVOT
    return stands.phase is Phase.STARTED or lost_pivot


def _refused(
    saga: Saga[S], record: Record, step: RemoteStep[S], stands: StepRecord, reply: Failure, attempt: int | None
) -> Events:
    passes = isinstance(reply, step.transient) and not isinstance(reply, OperationCancelled)
    detail: Data = _answer(saga, record, step, reply)
    if stands.uncertain and attempt is not None:
        # Who answers this attempt so has not carried out those before, and will not: the operation is the same.
        stands = replace(stands, uncertain=False)
        detail = {**detail, "settled": True}
    return _failed(saga, record, step, stands, type_of(reply), passes, detail)


def _compensation_replied(step: Step[S], stands: StepRecord, reply: Reply, attempt: int | None) -> Events:
    if stands.phase not in (Phase.UNDOING, Phase.UNDO_RETRYING, Phase.UNDO_STUCK):
        return ()
    if not isinstance(reply, Failure):
        detail: Data = {"reply": _as_json(reply)}
        return (LogEvent(Happened.STEP_COMPENSATED, step.name, attempt or stands.undo_attempt, detail=detail),)
    current = stands.phase is Phase.UNDOING and attempt in (None, stands.undo_attempt)
    return _undo_failed(step, stands, type_of(reply)) if current else ()


def _due(saga: Saga[S], record: Record, timer: Timer) -> Events:
    match timer.purpose:
        case Purpose.LOCK if record.direction is Status.WAITING:
            return (LogEvent(Happened.SAGA_STARTED),)
        case Purpose.LOCK_TIMEOUT if record.direction is Status.WAITING:
            reason = f"what it works on was not free within {saga.lock_timeout_s:g} s"
            return (LogEvent(Happened.SAGA_TIMED_OUT, reason=reason),)
        case Purpose.SAGA_TIMEOUT:
            return _out_of_time(saga, record)
    step, stands = saga.find(timer.step), record.steps.get(timer.step or "")
    if step is None or stands is None:
        return ()
    match timer.purpose, stands.phase:
        case Purpose.TIMEOUT, Phase.STARTED if timer.attempt == stands.attempt and isinstance(step, RemoteStep):
            return _timed_out(saga, record, step, stands)
        case Purpose.RETRY, Phase.RETRYING if timer.attempt == stands.attempt:
            return (LogEvent(Happened.STEP_STARTED, step.name, stands.attempt + 1),)
        case Purpose.UNDO_TIMEOUT, Phase.UNDOING if timer.attempt == stands.undo_attempt:
            return _undo_failed(step, stands, _no_reply(step))
        case Purpose.UNDO_RETRY, Phase.UNDO_RETRYING if timer.attempt == stands.undo_attempt:
            return (LogEvent(Happened.STEP_COMPENSATING, step.name, stands.undo_attempt + 1),)
    return ()


def _out_of_time(saga: Saga[S], record: Record) -> Events:
    """The time of the whole is over. Where it cannot turn back that is noted, as long as it may be able to yet."""
    reason = out_of_time(saga)
    if reason is None:
        return ()
    if can_turn_back(saga, record):
        return (LogEvent(Happened.SAGA_TIMED_OUT, reason=reason),)
    pivot = saga.pivot
    if pivot is None or record.overdue or record.direction is not Status.RUNNING:
        return ()
    if record.steps[pivot.name].phase is Phase.DONE:
        return ()
    noted = f"{reason}: it is undone if {pivot.name} turns out not to have happened"
    return (LogEvent(Happened.SAGA_TIMED_OUT, reason=noted, detail={"pending": True}),)


def _stalled(timer: Timer, reason: str) -> LogEvent:
    at = _TIMES[timer.purpose].format(step=timer.step)
    detail: Data = {"timer": timer.purpose.value}
    return LogEvent(Happened.SAGA_SUSPENDED, timer.step, timer.attempt, f"at {at}: {reason}", detail)


def _timed_out(saga: Saga[S], record: Record, step: RemoteStep[S], stands: StepRecord) -> Events:
    then = _then(saga, record, step, stands, passes=True, uncertain=True)
    detail = _consequence(step, stands, then)
    event = LogEvent(Happened.STEP_TIMED_OUT, step.name, stands.attempt, _no_reply(step), detail)
    return (event, *_suspended(step, event.reason, then))


def _failed(
    saga: Saga[S],
    record: Record,
    step: Step[S],
    stands: StepRecord,
    reason: str,
    passes: bool,
    detail: Data | None = None,
) -> Events:
    then = _then(saga, record, step, stands, passes, stands.uncertain)
    said = {**(detail or {}), **_consequence(step, stands, then)}
    event = LogEvent(Happened.STEP_FAILED, step.name, stands.attempt, reason, said)
    return (event, *_suspended(step, reason, then))


def _then(saga: Saga[S], record: Record, step: Step[S], stands: StepRecord, passes: bool, uncertain: bool) -> Then:
    """What the failure of an attempt leads to."""
    nature = saga.nature(step)
    if record.direction is Status.COMPENSATING:
        return Then.NOTHING
    if (passes or nature is Nature.RETRIABLE) and step.can_retry(stands.attempt):
        return Then.RETRY
    if following(step) is not None:
        return Then.ALTERNATIVE
    # A pivot that may have happened can neither be undone nor be taken for failed.
    lost_pivot = nature is Nature.PIVOT and uncertain and not step.readonly
    return Then.SUSPEND if nature is Nature.RETRIABLE or lost_pivot else Then.COMPENSATE


def _consequence(step: Step[S], stands: StepRecord, then: Then) -> dict[str, JsonValue]:
    said: dict[str, JsonValue] = {"then": then.value}
    if then is Then.RETRY:
        said["retry_in_s"] = step.retry.delay_s(stands.attempt)
    return said


def _suspended(step: Step[S], reason: str | None, then: Then) -> Events:
    if then is not Then.SUSPEND:
        return ()
    return (LogEvent(Happened.SAGA_SUSPENDED, step.name, reason=f"{step.name}: {reason}"),)


def _undo_failed(step: Step[S], stands: StepRecord, reason: str) -> Events:
    again = stands.undo_attempt < step.compensation_retry.attempts
    said: dict[str, JsonValue] = {"then": (Then.RETRY if again else Then.SUSPEND).value}
    if again:
        said["retry_in_s"] = step.compensation_retry.delay_s(stands.undo_attempt)
    event = LogEvent(Happened.COMPENSATION_FAILED, step.name, stands.undo_attempt, reason, said)
    if again:
        return (event,)
    return (event, LogEvent(Happened.SAGA_SUSPENDED, step.name, reason=f"{step.name} cannot be undone: {reason}"))


def _answer(saga: Saga[S], record: Record, step: RemoteStep[S], reply: Reply) -> dict[str, JsonValue]:
    """What a reply leaves in the log: itself, and the state as its handler has changed it."""
    state = load(saga, record)
    step.apply(state, reply)
    return {"reply": _as_json(reply), **_changed(record, dump(state))}


def _changed(record: Record, state: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """The state, where it is another one than before."""
    return {} if state == record.state else {"state": state}


def _as_json(reply: Reply) -> dict[str, JsonValue]:
    return {"type": type_of(reply), "body": reply.model_dump(mode="json")}


def _no_reply(step: Step[S]) -> str:
    return f"no reply within {step.timeout_s:g} s" if not isinstance(step, LocalStep) else "no reply"
