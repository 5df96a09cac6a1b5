"""Definitions of sagas: steps, in their order, and what undoes them. Data for the transition function, no behaviour."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Generic, NoReturn, TypeAlias, TypeVar

from pydantic import BaseModel

from relay.errors import RelayError
from relay.messaging import Command, Failure, Reply, Transaction
from relay.messaging.message import type_of

S = TypeVar("S", bound=BaseModel)
R = TypeVar("R", bound=Reply)
C = TypeVar("C", bound=Command)

Action: TypeAlias = Callable[[S, Transaction], Awaitable[None]]
"""Local work, in the transaction of the saga. It may change the state."""


class DefinitionError(RelayError):
    """The definition of a saga cannot work. The message names the saga, and the step."""


class LocalStep(Generic[S]):
    """A step in the database of the saga's owner, in the same transaction as the saga's state."""

    def __init__(self, saga: "Saga[S]", action: Action[S], *, pivot: bool) -> None:
        self._saga = saga
        self.name = action.__name__
        self.action = action
        self.pivot = pivot
        self.compensation: Action[S] | None = None

    def compensate(self, compensation: Action[S]) -> Action[S]:
        """Register what undoes the step when a later one fails."""
        self._saga.require_open()
        if self.compensation is not None:
            self._saga.refuse("it has two compensations", self.name)
        self.compensation = compensation
        return compensation


class RemoteStep(Generic[S]):
    """A step in another service: a command, and a reply that says what became of it."""

    def __init__(self, saga: "Saga[S]", command: Callable[[S], Command], to: str) -> None:
        self._saga = saga
        self.name = command.__name__
        self.command = command
        self.to = to
        self._replies: dict[str, type[Reply]] = {}
        self._handlers: dict[str, Callable[[S, Any], None]] = {}

    def on(self, reply_type: type[R]) -> Callable[[Callable[[S, R], None]], Callable[[S, R], None]]:
        """Register what a reply does to the state. A reply that is a Failure fails the step, any other completes it."""

        def register(handler: Callable[[S, R], None]) -> Callable[[S, R], None]:
            self._saga.require_open()
            name = type_of(reply_type)
            if name in self._replies:
                self._saga.refuse(f"it handles {name} twice", self.name)
            self._replies[name] = reply_type
            self._handlers[name] = handler
            return handler

        return register

    @property
    def replies(self) -> Mapping[str, type[Reply]]:
        """The replies that the step knows, by the names of their types."""
        return self._replies

    @property
    def can_fail(self) -> bool:
        """Whether a reply may fail the step."""
        return any(issubclass(reply, Failure) for reply in self._replies.values())

    def apply(self, state: S, reply: Reply) -> None:
        """Let the handler of the reply change the state. Raises KeyError for a reply that the step does not know."""
        self._handlers[type_of(reply)](state, reply)


Step: TypeAlias = LocalStep[S] | RemoteStep[S]


class Saga(Generic[S]):
    """A business process as a sequence of steps, in the order in which they are declared.

    When a step fails, the steps before it are compensated in reverse. The *pivot* is the point of no return: no step
    from there on can fail, and none is compensated. `state` is a pydantic model, kept as JSON; steps and the handlers
    of replies change it, and the functions that make commands only read it.

    Raises DefinitionError for what cannot work: at the declaration where that shows already, the rest in `seal`.
    """

    def __init__(self, name: str, *, state: type[S]) -> None:
        self.name = name
        self.state = state
        self._steps: dict[str, Step[S]] = {}
        self._sealed = False

    @property
    def steps(self) -> tuple[Step[S], ...]:
        """The steps in their order."""
        return tuple(self._steps.values())

    def local(self, *, pivot: bool = False) -> Callable[[Action[S]], LocalStep[S]]:
        """Declare a local step, named after its function."""

        def declare(action: Action[S]) -> LocalStep[S]:
            step = LocalStep(self, action, pivot=pivot)
            self._add(step)
            return step

        return declare

    def step(self, *, to: str) -> Callable[[Callable[[S], C]], RemoteStep[S]]:
        """Declare a remote step, named after the function that makes its command; `to` is the service addressed."""

        def declare(command: Callable[[S], C]) -> RemoteStep[S]:
            step = RemoteStep(self, command, to)
            self._add(step)
            return step

        return declare

    def find(self, step_name: str | None) -> Step[S] | None:
        """The step of that name."""
        return self._steps.get(step_name) if step_name is not None else None

    def after(self, step_name: str) -> Step[S] | None:
        """The step that follows, None after the last one."""
        steps = self.steps
        following = steps.index(self._steps[step_name]) + 1
        return steps[following] if following < len(steps) else None

    def before(self, step_name: str) -> tuple[Step[S], ...]:
        """The steps that came before, the latest first."""
        steps = self.steps
        return steps[: steps.index(self._steps[step_name])][::-1]

    def seal(self) -> None:
        """Check the whole, and refuse further declarations. Raises DefinitionError."""
        if self._sealed:
            return
        if not self._steps:
            raise DefinitionError(f"saga {self.name} has no steps")
        for step in self.steps:
            self._check(step)
        self._sealed = True

    def require_open(self) -> None:
        """Raise DefinitionError when the saga is in use already."""
        if self._sealed:
            raise DefinitionError(f"saga {self.name} is in use: its definition cannot change any more")

    def refuse(self, what: str, step_name: str) -> NoReturn:
        """Raise the DefinitionError that names saga and step."""
        raise DefinitionError(f"saga {self.name}, step {step_name}: {what}")

    def _add(self, step: Step[S]) -> None:
        self.require_open()
        if step.name in self._steps:
            self.refuse("there are two steps of that name", step.name)
        self._steps[step.name] = step

    def _check(self, step: Step[S]) -> None:
        earlier = self.before(step.name)
        beyond = any(isinstance(before, LocalStep) and before.pivot for before in earlier)
        if isinstance(step, LocalStep):
            if step.pivot and beyond:
                self.refuse("it is a second pivot", step.name)
            if step.compensation is not None and (step.pivot or beyond):
                self.refuse("it has a compensation, but nothing is undone from the pivot on", step.name)
            return
        if all(issubclass(reply, Failure) for reply in step.replies.values()):
            self.refuse("no reply completes it: handle one that is not a Failure", step.name)
        if step.can_fail and beyond:
            self.refuse("a reply may fail it, but it comes after the pivot", step.name)
        if step.can_fail:
            self._check_undoable(step, earlier)

    def _check_undoable(self, failing: RemoteStep[S], earlier: tuple[Step[S], ...]) -> None:
        for step in earlier:
            if isinstance(step, RemoteStep):
                self.refuse(
                    f"{failing.name} may fail after it, but what another service has done cannot be undone yet: "
                    "put the step that may fail first",
                    step.name,
                )
            if step.compensation is None:
                self.refuse(f"{failing.name} may fail after it, but it has no compensation", step.name)
