"""What may happen to a saga from outside, and what is to be done for it then: values."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeAlias

from pydantic import BaseModel

from relay.messaging import Command, Failure, Reply
from relay.saga.step import LocalStep, RemoteStep, S


class Purpose(StrEnum):
    """What a timer is for. The values are what relay.saga_timer holds."""

    TIMEOUT = "timeout"
    """An attempt of a step has had no reply."""
    RETRY = "retry"
    """The next attempt of a step is due."""
    UNDO_TIMEOUT = "undo_timeout"
    UNDO_RETRY = "undo_retry"
    SAGA_TIMEOUT = "saga_timeout"
    LOCK = "lock"
    """What the saga waits for is its own now."""
    LOCK_TIMEOUT = "lock_timeout"


@dataclass(frozen=True, slots=True)
class Timer:
    """Names the step and the attempt that it is about, so that it does nothing when the saga has gone on."""

    purpose: Purpose
    step: str | None = None
    attempt: int | None = None


@dataclass(frozen=True, slots=True)
class Started:
    """The owner starts the saga."""

    state: BaseModel


@dataclass(frozen=True, slots=True)
class Held:
    """The owner starts the saga, but another one works on its resource."""

    state: BaseModel
    resource: str


@dataclass(frozen=True, slots=True)
class Acted:
    """The action of a local step has run."""

    step: str
    state: BaseModel


@dataclass(frozen=True, slots=True)
class ActionFailed:
    """The action of a local step returned a Failure, or raised: then `failure` is None. It left nothing behind."""

    step: str
    reason: str
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Undone:
    """The compensation of a local step has run."""

    step: str
    state: BaseModel


@dataclass(frozen=True, slots=True)
class UndoFailed:
    """The compensation of a local step returned a Failure, or raised. It left nothing behind."""

    step: str
    reason: str


@dataclass(frozen=True, slots=True)
class Replied:
    """A participant has answered the command of a remote step, or the one that undoes it.

    `step` names the step, or the alternative: the branch of the operation, or its step where the branch is "action".
    `attempt` is the one that is answered, None where the participant does not say. Commands that undo carry the header
    `compensation` in the place of `attempt`; replies repeat whichever it is: that tells the two kinds of reply apart.
    """

    step: str
    reply: Reply
    attempt: int | None = None
    to_compensation: bool = False


@dataclass(frozen=True, slots=True)
class Due:
    """The time of a timer has come."""

    timer: Timer


@dataclass(frozen=True, slots=True)
class Stalled:
    """The time of a timer has come again and again, and each time code of the saga raised that is no step's attempt."""

    timer: Timer
    reason: str


@dataclass(frozen=True, slots=True)
class Aborted:
    """Somebody wants the saga to be undone."""

    reason: str


Stimulus: TypeAlias = Started | Held | Acted | ActionFailed | Undone | UndoFailed | Replied | Due | Stalled | Aborted


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
    """Send the command of a remote step, or the one that undoes it. The attempt goes with it."""

    step: RemoteStep[S]
    command: Command
    attempt: int
    compensates: bool = False


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Fire this timer so many seconds from now. `jitter`: any time between half of that and the whole will do."""

    timer: Timer
    after_s: float
    jitter: bool = False


Task: TypeAlias = Act[S] | Undo[S] | Send[S] | SetTimer
