"""What follows from where a saga stands: which steps start, which are undone, and how it ends. Pure."""

from collections.abc import Iterator

from relay.saga.definition import Saga, Stage
from relay.saga.log import Happened, LogEvent
from relay.saga.record import Phase, Record, Status
from relay.saga.step import RemoteStep, S, Step, line
from relay.saga.task import load

_SETTLED = frozenset({Phase.DONE, Phase.SKIPPED})
_UNSETTLED_UNDO = frozenset({Phase.STARTED, Phase.UNDOING, Phase.UNDO_RETRYING, Phase.UNDO_STUCK})


def advance(saga: Saga[S], record: Record) -> tuple[LogEvent, ...]:
    """The next events of a saga in which nothing else has happened; none while it waits for somebody."""
    match record.status:
        case Status.RUNNING:
            return tuple(_forward(saga, record))
        case Status.COMPENSATING:
            return tuple(_backward(saga, record))
        case _:
            return ()


def can_turn_back(saga: Saga[S], record: Record) -> bool:
    """Whether the saga may still be undone: it is not yet, and the pivot has surely not happened."""
    if record.direction not in (Status.WAITING, Status.RUNNING):
        return False
    stands = None if saga.pivot is None else record.steps.get(saga.pivot.name)
    return stands is None or (stands.phase is Phase.RETRYING and not stands.uncertain)


def out_of_time(saga: Saga[S]) -> str | None:
    """The reason for undoing a saga that takes too long; None when its definition has no timeout, or has none now."""
    return None if saga.timeout_s is None else f"not done within {saga.timeout_s:g} s"


def _forward(saga: Saga[S], record: Record) -> Iterator[LogEvent]:
    reason = out_of_time(saga)
    if record.overdue and reason is not None and can_turn_back(saga, record):
        yield LogEvent(Happened.SAGA_TIMED_OUT, reason=reason)
        return
    # What was given up for an alternative, and may have happened, is undone beside it. The saga ends after that.
    undoing = tuple(_compensating(record, saga.steps))
    yield from undoing
    for stage in saga.stages:
        yield from _starting(saga, record, stage)
        if not all(_phase(record, _active(record, step)) in _SETTLED for step in stage):
            return
    if not undoing and not any(step.phase in _UNSETTLED_UNDO for step in record.steps.values()):
        yield LogEvent(Happened.SAGA_COMPLETED)


def _starting(saga: Saga[S], record: Record, stage: Stage[S]) -> Iterator[LogEvent]:
    for step in stage:
        active = _active(record, step)
        if active.name not in record.steps:
            yield _begin(saga, record, step)
        elif _phase(record, active) in (Phase.FAILED, Phase.LOST) and isinstance(active, RemoteStep):
            alternative = active.following()
            if alternative is not None:
                yield LogEvent(Happened.STEP_STARTED, alternative.name, 1)


def _begin(saga: Saga[S], record: Record, step: Step[S]) -> LogEvent:
    if step.condition is not None and not step.condition(load(saga, record)):
        return LogEvent(Happened.STEP_SKIPPED, step.name)
    return LogEvent(Happened.STEP_STARTED, step.name, 1)


def _backward(saga: Saga[S], record: Record) -> Iterator[LogEvent]:
    for stage in saga.undo_stages:
        begun = False
        for event in _compensating(record, stage):
            begun = True
            yield event
        # A step whose reply is on its way is waited for: what it produced is needed to undo it.
        if begun or any(_phase(record, step) in _UNSETTLED_UNDO for step in stage):
            return
    yield LogEvent(Happened.SAGA_COMPENSATED)


def _compensating(record: Record, steps: Stage[S]) -> Iterator[LogEvent]:
    backward = record.status is Status.COMPENSATING
    for step in steps:
        phase = _phase(record, step)
        if step.compensation is not None and (phase is Phase.LOST or (backward and phase is Phase.DONE)):
            yield LogEvent(Happened.STEP_COMPENSATING, step.name, record.steps[step.name].undo_attempt + 1)


def _active(record: Record, step: Step[S]) -> Step[S]:
    """The alternative that was begun last, or the step itself."""
    begun = [each for each in line(step) if each.name in record.steps]
    return begun[-1] if begun else step


def _phase(record: Record, step: Step[S]) -> Phase | None:
    stands = record.steps.get(step.name)
    return None if stands is None else stands.phase
