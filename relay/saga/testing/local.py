"""What stands in for the local steps of a saga while there is no database."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeAlias

from relay.messaging import Failure
from relay.messaging.failures import described
from relay.messaging.message import type_of
from relay.saga.definition import Saga
from relay.saga.step import LocalStep, S
from relay.saga.stimulus import Acted, ActionFailed, Stimulus, UndoFailed, Undone
from relay.saga.turn import REASON_MAX_CHARS

StandIn: TypeAlias = Callable[[S], Failure | None]
"""Does to the state what the action, or the compensation, of a local step would do, and fails as that would."""

FOREVER: Final = None


@dataclass(slots=True)
class Trouble:
    """What a local step answers with for some time; `times` is None for ever."""

    error: Failure | Exception
    times: int | None = FOREVER


class LocalWork(Generic[S]):
    """Local steps succeed and change nothing, unless a function stands in for them, or they are told to fail."""

    def __init__(self, saga: Saga[S], stand_ins: Mapping[str, StandIn[S]]) -> None:
        self._saga = saga
        self._stand_ins = dict(stand_ins)
        self._troubles: dict[str, Trouble] = {}
        for name in stand_ins:
            self._require(name)

    def fail(self, name: str, error: Failure | Exception, times: int | None) -> None:
        """Let the action or the compensation of that name fail from now on. Raises ValueError when there is none."""
        self._require(name)
        self._troubles[name] = Trouble(error, times)

    def act(self, step: LocalStep[S], state: S, *, starting: bool) -> Stimulus:
        """The action of a step. While the saga is started, what it raises is for the one who starts it."""
        try:
            failure = self._run(step.action.__name__, state)
        except Exception as error:  # the code of a saga may raise anything
            if starting:
                raise
            return ActionFailed(step.name, described(error)[:REASON_MAX_CHARS])
        return Acted(step.name, state) if failure is None else ActionFailed(step.name, type_of(failure), failure)

    def undo(self, step: LocalStep[S], state: S) -> Stimulus:
        """The compensation of a step."""
        if step.compensation is None:
            return Undone(step.name, state)
        try:
            failure = self._run(step.compensation.__name__, state)
        except Exception as error:  # as the engine does: a compensation may raise anything
            return UndoFailed(step.name, described(error)[:REASON_MAX_CHARS])
        return Undone(step.name, state) if failure is None else UndoFailed(step.name, type_of(failure))

    def _run(self, name: str, state: S) -> Failure | None:
        trouble = self._troubles.get(name)
        if trouble is not None and trouble.times != 0:
            if trouble.times is not None:
                trouble.times -= 1
            if isinstance(trouble.error, Failure):
                return trouble.error
            raise trouble.error
        stand_in = self._stand_ins.get(name)
        return None if stand_in is None else stand_in(state)

    def _require(self, name: str) -> None:
        known = sorted(_names(self._saga))
        if name not in known:
            local = f"its local functions are {', '.join(known)}" if known else "it has no local steps"
            raise ValueError(f"saga {self._saga.name} does nothing local that is called {name}: {local}")


def _names(saga: Saga[Any]) -> set[str]:
    """The functions of local steps: actions and compensations."""
    local = [step for step in saga.steps if isinstance(step, LocalStep)]
    return {each.__name__ for step in local for each in (step.action, step.compensation) if each is not None}
