"""Definitions of sagas: steps, in their order, and what undoes them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Generic, Literal, NoReturn, TypeAlias, Unpack

from relay.duration import seconds
from relay.errors import RelayError
from relay.messaging import Command
from relay.messaging.outbox import Aggregate
from relay.saga.check import check
from relay.saga.step import (
    Action,
    Condition,
    LocalOptions,
    LocalStep,
    Nature,
    RemoteOptions,
    RemoteStep,
    S,
    Step,
    following,
    line,
)

Stage: TypeAlias = tuple[Step[S], ...]
"""Steps that start together. The next stage starts when all of them are done."""

OnLocked: TypeAlias = Literal["fail", "wait", "queue"]
"""What becomes of a saga whose resource another one is working on: `start` raises Locked; it waits its turn, but no
longer than `lock_timeout`; or it waits however long that takes."""

LOCK_TIMEOUT: Final = "1m"


class DefinitionError(RelayError):
    """The definition of a saga cannot work. The message names the saga, and the step."""


class Saga(Generic[S]):
    """A business process as a sequence of steps, in the order in which they are declared.

    Steps before the *pivot* are compensable: when one fails, what was done is undone, in reverse order unless the
    definition says otherwise. The pivot is the point of no return. Steps after it are retriable: they are tried until
    they succeed, or their budget is spent and the saga is suspended. Without a declared pivot, a last step that has no
    compensation is it.

    `state` is a pydantic model, kept as JSON; local steps and the handlers of replies change it, the functions that
    make commands and the conditions only read it. `timeout` bounds the whole: when it is over before the pivot, the
    saga is compensated. `lock` names what the saga works on, as type and id: no other saga that names it works on it
    meanwhile.

    Raises DefinitionError for what cannot work: at the declaration where that shows already, the rest in `seal`.
    """

    def __init__(
        self,
        name: str,
        *,
        state: type[S],
        timeout: str | None = None,
        compensation: Literal["reverse", "parallel"] = "reverse",
        lock: Callable[[S], Aggregate] | None = None,
        on_locked: OnLocked = "fail",
        lock_timeout: str = LOCK_TIMEOUT,
    ) -> None:
        self.name = name
        self.state = state
        self.timeout_s = None if timeout is None else self._seconds("timeout", timeout)
        self.lock = lock
        self.on_locked: OnLocked = on_locked
        self.lock_timeout_s = self._seconds("lock_timeout", lock_timeout)
        self.stages: list[Stage[S]] = []
        self._compensation = compensation
        self._undo_order: tuple[Stage[S], ...] | None = None
        self._by_name: dict[str, Step[S]] = {}
        self._together: list[Step[S]] | None = None
        self._sealed = False

    @property
    def steps(self) -> tuple[Step[S], ...]:
        """The steps in their order, each followed by its alternatives."""
        return tuple(each for stage in self.stages for step in stage for each in line(step))

    def local(
        self, *, pivot: bool = False, when: Condition[S] | None = None, **options: Unpack[LocalOptions]
    ) -> Callable[[Action[S]], LocalStep[S]]:
        """Declare a local step, named after its function. `when` decides, as the step begins, whether it is skipped."""

        def declare(action: Action[S]) -> LocalStep[S]:
            step = LocalStep(self, action, options)
            self._add(step, pivot, when)
            return step

        return declare

    def step(
        self, *, to: str, pivot: bool = False, when: Condition[S] | None = None, **options: Unpack[RemoteOptions]
    ) -> Callable[[Callable[[S], Command]], RemoteStep[S]]:
        """Declare a remote step, named after the function that makes its command; `to` is the service addressed."""

        def declare(request: Callable[[S], Command]) -> RemoteStep[S]:
            step = RemoteStep(self, request, to, options)
            self._add(step, pivot, when)
            return step

        return declare

    @contextmanager
    def parallel(self) -> Iterator[None]:
        """Steps that are declared within start together; the next step waits for all of them."""
        self.require_open()
        if self._together is not None:
            raise DefinitionError(f"saga {self.name}: a parallel group within another one")
        members: list[Step[S]] = []
        self._together = members
        try:
            yield
        finally:
            self._together = None
        if members:
            self.stages.append(tuple(members))

    def compensate_in_order(self, *stages: Step[S] | tuple[Step[S], ...]) -> None:
        """Say in which order steps are undone; those in a tuple together. Alternatives belong to their step."""
        self.require_open()
        if self._undo_order is not None:
            raise DefinitionError(f"saga {self.name}: the order of compensation is given twice")
        self._undo_order = tuple(stage if isinstance(stage, tuple) else (stage,) for stage in stages)

    def find(self, step_name: str | None) -> Step[S] | None:
        """The step, or alternative, of that name."""
        return self._by_name.get(step_name) if step_name is not None else None

    @property
    def pivot_stage(self) -> int | None:
        """The stage of the pivot, None when everything can be undone to the end."""
        for number, stage in enumerate(self.stages):
            if any(step.pivot for step in stage):
                return number
        last = len(self.stages) - 1
        (*_, step) = self.stages[last]
        implicit = len(self.stages[last]) == 1 and step.compensation is None and not following(step)
        return last if implicit else None

    @property
    def pivot(self) -> Step[S] | None:
        """The step of that stage: a pivot has none beside it."""
        return None if self.pivot_stage is None else self.stages[self.pivot_stage][0]

    def nature(self, step: Step[S]) -> Nature:
        """What a failure of the step means."""
        stage = next(number for number, stage in enumerate(self.stages) if step.principal in stage)
        if self.pivot_stage is None or stage < self.pivot_stage:
            return Nature.COMPENSABLE
        return Nature.PIVOT if stage == self.pivot_stage else Nature.RETRIABLE

    @property
    def undo_stages(self) -> tuple[Stage[S], ...]:
        """The steps, with their alternatives, in the order in which they are undone. Those of one stage together."""
        order: tuple[Stage[S], ...] = self._undo_order or tuple(reversed(self.stages))
        if self._undo_order is None and self._compensation == "parallel":
            order = (tuple(step for stage in self.stages for step in stage),)
        return tuple(tuple(each for step in stage for each in line(step)) for stage in order)

    @property
    def undo_order(self) -> tuple[Stage[S], ...] | None:
        """The order of compensation, where the definition gives one."""
        return self._undo_order

    def seal(self) -> None:
        """Check the whole, and refuse further declarations. Raises DefinitionError."""
        if self._sealed:
            return
        if not self.stages:
            raise DefinitionError(f"saga {self.name} has no steps")
        check(self)
        self._sealed = True

    def require_open(self) -> None:
        """Raise DefinitionError when the saga is in use already."""
        if self._sealed:
            raise DefinitionError(f"saga {self.name} is in use: its definition cannot change any more")

    def refuse(self, what: str, step_name: str) -> NoReturn:
        """Raise the DefinitionError that names saga and step."""
        raise DefinitionError(f"saga {self.name}, step {step_name}: {what}")

    def name_alternative(self, step: RemoteStep[Any]) -> None:
        """Take the name of an alternative."""
        self._name(step)

    def _seconds(self, option: str, text: str) -> float:
        try:
            return seconds(text)
        except ValueError as error:
            raise DefinitionError(f"saga {self.name}: its {option} is {text!r}, and {error}") from None

    def _add(self, step: Step[S], pivot: bool, condition: Condition[S] | None) -> None:
        step.pivot, step.condition = pivot, condition
        self._name(step)
        if self._together is None:
            self.stages.append((step,))
        else:
            self._together.append(step)

    def _name(self, step: Step[S]) -> None:
        self.require_open()
        if step.name in self._by_name:
            self.refuse("there are two steps of that name", step.name)
        self._by_name[step.name] = step
