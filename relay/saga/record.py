"""Where a saga stands. Pure: the events of its log are the facts, and the record follows from them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import reduce
from typing import Final, TypeAlias, cast

from pydantic import JsonValue

from relay.saga.log import Happened, LogEvent

Data: TypeAlias = Mapping[str, JsonValue]
"""The state of a saga, as JSON."""


class Status(StrEnum):
    """Where a saga stands. The values are what relay.saga holds."""

    WAITING = "WAITING"
    """For what another saga is working on. Nothing has happened yet."""
    RUNNING = "RUNNING"
    COMPENSATING = "COMPENSATING"
    COMPLETED = "COMPLETED"
    COMPENSATED = "COMPENSATED"
    SUSPENDED = "SUSPENDED"
    """A budget is spent, and only a person can help. It goes on if the reply that is missing arrives after all; if its
    code raised on a timer, with whatever happens in it next."""


ENDED: Final = frozenset({Status.COMPLETED, Status.COMPENSATED})


class Phase(StrEnum):
    """Where a step stands."""

    STARTED = "STARTED"
    """An attempt is under way."""
    RETRYING = "RETRYING"
    """Between two attempts."""
    DONE = "DONE"
    SKIPPED = "SKIPPED"
    FAILED = "FAILED"
    """It has not happened, and will not."""
    LOST = "LOST"
    """Given up without an answer, so that it may have happened: it is to be undone."""
    STUCK = "STUCK"
    """Its budget is spent, beyond the point of no return: the saga is suspended."""
    UNDOING = "UNDOING"
    UNDO_RETRYING = "UNDO_RETRYING"
    UNDONE = "UNDONE"
    UNDO_STUCK = "UNDO_STUCK"
    """The budget of its compensation is spent: the saga is suspended."""


UNDER_WAY: Final = frozenset({Phase.STARTED, Phase.RETRYING, Phase.UNDOING, Phase.UNDO_RETRYING})

BEING_UNDONE: Final = frozenset({Phase.UNDOING, Phase.UNDO_RETRYING, Phase.UNDO_STUCK})


class Then(StrEnum):
    """What a failure of a step led to. The values stand in the log, under "then"."""

    RETRY = "retry"
    ALTERNATIVE = "alternative"
    COMPENSATE = "compensate"
    SUSPEND = "suspend"
    NOTHING = "nothing"
    """The saga was being compensated already."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A step, or an alternative.

    `done`: it has succeeded in time, so that what it produced is in the state. `uncertain`: an attempt timed out, so
    that it may have happened, or still will. `late`: the reply, as the log has it, that says that it has happened, and
    came after it had been given up. Only its compensation is shown that: the saga has gone on without it.

    `undone_from`: the state that its compensation began with, where the saga's has become another one since. Each
    attempt to undo a step says what the first one said: what an alternative has produced since is not this step's.
    """

    phase: Phase
    attempt: int = 1
    undo_attempt: int = 0
    uncertain: bool = False
    late: Data | None = None
    done: bool = False
    undone_from: Data | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """A saga as its log tells it. `reason` says why it is compensated or suspended.

    `resumes` is what a suspended saga was doing, and `because` why: it goes on with that if it can go on. `stalled`: it
    is suspended because its code raised on a timer, which waits to be fired again. `overdue`: its time is over, and its
    pivot may have happened: it is undone as soon as that turns out not to be so.
    """

    status: Status = Status.RUNNING
    state: Data = field(default_factory=dict)
    steps: Mapping[str, StepRecord] = field(default_factory=dict)
    reason: str | None = None
    resumes: Status | None = None
    because: str | None = None
    stalled: bool = False
    overdue: bool = False

    @property
    def direction(self) -> Status:
        """What the saga is doing, or would be doing if it were not suspended."""
        return self.resumes if self.status is Status.SUSPENDED and self.resumes is not None else self.status

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.status in ENDED

    @property
    def under_way(self) -> str | None:
        """The names of the steps that are under way, None when there are none."""
        return ", ".join(name for name, step in self.steps.items() if step.phase in UNDER_WAY) or None

    def progress(self) -> dict[str, JsonValue]:
        """The steps and what is to go on, as JSON: what relay.saga.progress holds."""
        steps: dict[str, JsonValue] = {name: _as_json(step) for name, step in self.steps.items()}
        resumes: dict[str, JsonValue] = {} if self.resumes is None else {"resumes": self.resumes.value}
        because: dict[str, JsonValue] = {} if self.because is None else {"because": self.because}
        stalled: dict[str, JsonValue] = {"stalled": True} if self.stalled else {}
        overdue: dict[str, JsonValue] = {"overdue": True} if self.overdue else {}
        return {"steps": steps, **resumes, **because, **stalled, **overdue}

    @classmethod
    def of(cls, status: str, state: Data, progress: Data, reason: str | None) -> "Record":
        """Read a row of relay.saga."""
        steps = cast(Mapping[str, Data], progress.get("steps", {}))
        resumes = progress.get("resumes")
        return cls(
            Status(status),
            state,
            {name: _step_of(step) for name, step in steps.items()},
            reason,
            None if resumes is None else Status(str(resumes)),
            cast("str | None", progress.get("because")),
            cast(bool, progress.get("stalled", False)),
            cast(bool, progress.get("overdue", False)),
        )


def evolve(record: Record, event: LogEvent) -> Record:
    """The saga after an event."""
    if "state" in event.detail:
        record = replace(record, state=cast(Data, event.detail["state"]), steps=_kept(record))
    if record.stalled and event.what not in (Happened.SAGA_SUSPENDED, Happened.OPERATOR_ACTION):
        record = _try_again(record)
    match event.what:
        case Happened.SAGA_WAITING:
            return replace(record, status=Status.WAITING)
        case Happened.SAGA_STARTED:
            return replace(record, status=Status.RUNNING)
        case Happened.SAGA_COMPLETED:
            return replace(record, status=Status.COMPLETED)
        case Happened.SAGA_COMPENSATED:
            return replace(record, status=Status.COMPENSATED)
        case Happened.SAGA_TIMED_OUT if "pending" in event.detail:
            return replace(record, overdue=True)
        case Happened.SAGA_TIMED_OUT | Happened.SAGA_ABORTED:
            return _turn_back(record, event.reason)
        case Happened.SAGA_SUSPENDED:
            return replace(_suspend(record, event.reason), stalled=record.stalled or "timer" in event.detail)
        case Happened.OPERATOR_ACTION:
            return record
    return _evolve_step(record, event)


def rebuild(events: Iterable[LogEvent]) -> Record:
    """The saga that the whole of its log tells of."""
    return reduce(evolve, events, Record())


def _evolve_step(record: Record, event: LogEvent) -> Record:
    name = event.step or ""
    step = record.steps.get(name, StepRecord(Phase.STARTED))
    attempt = event.attempt or 1
    match event.what:
        case Happened.STEP_STARTED:
            return _with(record, name, replace(step, phase=Phase.STARTED, attempt=attempt))
        case Happened.STEP_SKIPPED:
            return _with(record, name, replace(step, phase=Phase.SKIPPED))
        case Happened.STEP_SUCCEEDED:
            return _succeeded(record, name, step, event)
        case Happened.STEP_FAILED:
            return _failed(
                record, name, replace(step, uncertain=step.uncertain and "settled" not in event.detail), event
            )
        case Happened.STEP_TIMED_OUT:
            return _failed(record, name, replace(step, uncertain=True), event)
        case Happened.STEP_COMPENSATING:
            return _with(record, name, replace(step, phase=Phase.UNDOING, undo_attempt=attempt))
        case Happened.STEP_COMPENSATED:
            resumed = _resume(record) if step.phase is Phase.UNDO_STUCK else record
            return _with(resumed, name, replace(step, phase=Phase.UNDONE, undone_from=None))
        case Happened.COMPENSATION_FAILED:
            again = event.detail.get("then") == Then.RETRY
            return _with(record, name, replace(step, phase=Phase.UNDO_RETRYING if again else Phase.UNDO_STUCK))
    raise ValueError(f"{event.what} is not about a step")


def _kept(record: Record) -> Mapping[str, StepRecord]:
    """The steps before the state becomes another one: those that are being undone keep the one they began with."""
    return {
        name: replace(step, undone_from=record.state)
        if step.phase in BEING_UNDONE and step.undone_from is None
        else step
        for name, step in record.steps.items()
    }


def _succeeded(record: Record, name: str, step: StepRecord, event: LogEvent) -> Record:
    """A success that comes after the step was given up does not bring it back: it shows that there is work to undo."""
    if "late" in event.detail:
        step = replace(step, late=cast(Data, event.detail["reply"]))
    match step.phase:
        case Phase.STARTED | Phase.RETRYING:
            return _with(record, name, replace(step, phase=Phase.DONE, done=True))
        case Phase.STUCK:
            return _with(_resume(record), name, replace(step, phase=Phase.DONE, done=True))
        case Phase.FAILED:
            return _with(record, name, replace(step, phase=Phase.LOST))
        case _:
            return _with(record, name, step)


def _failed(record: Record, name: str, step: StepRecord, event: LogEvent) -> Record:
    given_up = Phase.LOST if step.uncertain else Phase.FAILED
    then = event.detail.get("then", Then.COMPENSATE)
    if step.phase is Phase.STUCK and then != Then.SUSPEND:
        # An answer after all. It may even be tried again: somebody has raised its budget since.
        record = _resume(record)
    match then:
        case Then.RETRY:
            return _with(record, name, replace(step, phase=Phase.RETRYING))
        case Then.SUSPEND:
            return _with(record, name, replace(step, phase=Phase.STUCK))
        case Then.COMPENSATE:
            return _turn_back(_with(record, name, replace(step, phase=given_up)), event.reason)
        case _:
            return _with(record, name, replace(step, phase=given_up))


def _turn_back(record: Record, reason: str | None) -> Record:
    """From here on the saga is undone. What waits for another attempt gets none."""
    steps = {name: _give_up(step) for name, step in record.steps.items()}
    if record.status is Status.SUSPENDED:
        return replace(record, steps=steps, resumes=Status.COMPENSATING, because=reason)
    return replace(record, steps=steps, reason=reason, status=Status.COMPENSATING)


def _give_up(step: StepRecord) -> StepRecord:
    if step.phase is not Phase.RETRYING:
        return step
    return replace(step, phase=Phase.LOST if step.uncertain else Phase.FAILED)


def _suspend(record: Record, reason: str | None) -> Record:
    because = record.because if record.status is Status.SUSPENDED else record.reason
    return replace(record, status=Status.SUSPENDED, resumes=record.direction, reason=reason, because=because)


def _resume(record: Record) -> Record:
    """One that is stuck is no more: go on, unless another step is stuck too."""
    return record if _stuck(record) > 1 else _go_on(record)


def _try_again(record: Record) -> Record:
    """Something has happened since the code of the saga raised: go on, unless a step is stuck."""
    record = replace(record, stalled=False)
    return record if _stuck(record) else _go_on(record)


def _stuck(record: Record) -> int:
    return sum(step.phase in (Phase.STUCK, Phase.UNDO_STUCK) for step in record.steps.values())


def _go_on(record: Record) -> Record:
    if record.status is not Status.SUSPENDED:
        return record
    return replace(record, status=record.direction, resumes=None, reason=record.because, because=None)


def _with(record: Record, name: str, step: StepRecord) -> Record:
    return replace(record, steps={**record.steps, name: step})


def _as_json(step: StepRecord) -> dict[str, JsonValue]:
    """Without what is as it is at the beginning."""
    said: dict[str, JsonValue] = {"phase": step.phase.value, "attempt": step.attempt}
    if step.undo_attempt:
        said["undo_attempt"] = step.undo_attempt
    if step.uncertain:
        said["uncertain"] = True
    if step.late is not None:
        said["late"] = dict(step.late)
    if step.done and step.phase is not Phase.DONE:
        said["done"] = True
    if step.undone_from is not None:
        said["undone_from"] = dict(step.undone_from)
    return said


def _step_of(said: Data) -> StepRecord:
    return StepRecord(
        Phase(str(said["phase"])),
        cast(int, said.get("attempt", 1)),
        cast(int, said.get("undo_attempt", 0)),
        cast(bool, said.get("uncertain", False)),
        cast("Data | None", said.get("late")),
        cast(bool, said.get("done", said["phase"] == Phase.DONE)),
        cast("Data | None", said.get("undone_from")),
    )
