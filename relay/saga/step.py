"""The steps of a saga, and how each is tried, given up and undone. Data for the transition function, no behaviour."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from enum import Enum
from functools import cached_property
from types import UnionType
from typing import (
    Any,
    Final,
    Generic,
    NoReturn,
    Protocol,
    TypeAlias,
    TypedDict,
    TypeVar,
    Union,
    Unpack,
    get_args,
    get_origin,
    get_type_hints,
)

from pydantic import BaseModel

from relay.duration import seconds
from relay.messaging import Command, Compensated, Done, Failure, OperationCancelled, Reply, Retry, Transaction
from relay.messaging.message import type_of

S = TypeVar("S", bound=BaseModel)
R = TypeVar("R", bound=Reply)

Action: TypeAlias = Callable[[S, Transaction], Awaitable[Failure | None]]
"""Local work, in the transaction of the saga. It may change the state. To return a Failure undoes what it wrote."""

Request: TypeAlias = Callable[[S], Command]
"""Makes a command. It only reads the state."""

Condition: TypeAlias = Callable[[S], bool]

RETRY: Final = Retry(attempts=8, backoff="1s..1m")
"""Unless a step says otherwise: some two minutes of waiting, and the timeouts on top."""

COMPENSATION_RETRY: Final = Retry(attempts=20, backoff="1s..5m")
"""Unless a step says otherwise: about an hour. What cannot be undone, a person has to see to."""

TIMEOUT: Final = "1m"
"""How long a command waits for its reply, unless its step says otherwise."""

LOCAL_TIMEOUT: Final = "10s"
"""How long a local step may take, unless it says otherwise. Its saga is locked so long; and it has to be less than what
PostgreSQL bears of an idle transaction (`idle_in_transaction_session_timeout`), which ends the whole connection."""

BUILT_IN: Final[Mapping[str, type[Reply]]] = {
    type_of(reply): reply for reply in (Done, Compensated, OperationCancelled)
}
"""Replies that the messaging library sends by itself. Every step knows them."""


class Nature(Enum):
    """What a failure of a step means. The pivot is the point of no return."""

    COMPENSABLE = "compensable"
    PIVOT = "pivot"
    RETRIABLE = "retriable"


class Declaring(Protocol):
    """The saga that a step belongs to, as far as its steps need it while they are declared."""

    def require_open(self) -> None: ...

    def refuse(self, what: str, step_name: str) -> NoReturn: ...

    def name_alternative(self, step: "RemoteStep[Any]") -> None: ...


class Options(TypedDict, total=False):
    """How a step is tried and undone, wherever its work is done."""

    retry: Retry
    """The budget of the action."""
    compensation_retry: Retry
    """The budget of what undoes it. When it is spent, the saga is suspended."""
    transient: tuple[type[Failure], ...]
    """Business failures that pass: the step is tried again. Any other fails it at once."""
    readonly: bool
    """It changes nothing, so there is nothing to undo."""


class LocalOptions(Options, total=False):
    """How a local step is tried and undone."""

    timeout: str
    """How long its function may take, and the one that undoes it, like "10s". Then it is cancelled, and has failed."""


class RemoteOptions(Options, total=False):
    """How a remote step is tried and undone."""

    timeout: str
    """How long to wait for the reply of an attempt, like "30s"."""


class _Step(Generic[S]):
    """What all steps have. `principal` is the step itself, or the one that it is an alternative of."""

    def __init__(self, saga: Declaring, name: str, options: Options, timeout: str) -> None:
        self._saga = saga
        self.name = name
        self.timeout_s = _timeout_s(saga, name, timeout)
        self.retry = options.get("retry", RETRY)
        self.compensation_retry = options.get("compensation_retry", COMPENSATION_RETRY)
        self.transient = options.get("transient", ())
        self.readonly = options.get("readonly", False)
        self.pivot = False
        self.condition: Condition[S] | None = None

    def can_retry(self, attempt: int) -> bool:
        """Whether there is another attempt after this one."""
        return attempt < self.retry.attempts


class LocalStep(_Step[S]):
    """A step in the database of the saga's owner, in the same transaction as the saga's state."""

    def __init__(self, saga: Declaring, action: Action[S], options: LocalOptions) -> None:
        super().__init__(saga, action.__name__, options, options.get("timeout", LOCAL_TIMEOUT))
        self.action = action
        self.compensation: Action[S] | None = None

    @property
    def principal(self) -> "LocalStep[S]":
        """Itself: a local step has no alternatives."""
        return self

    def compensate(self, compensation: Action[S]) -> Action[S]:
        """Register what undoes the step when a later one fails."""
        self._saga.require_open()
        if self.compensation is not None:
            self._saga.refuse("it has two compensations", self.name)
        self.compensation = compensation
        return compensation


class RemoteStep(_Step[S]):
    """A step in another service: a command, and a reply that says what became of it."""

    def __init__(
        self,
        saga: Declaring,
        request: Request[S],
        to: str,
        options: RemoteOptions,
        principal: "RemoteStep[S] | None" = None,
    ) -> None:
        super().__init__(saga, request.__name__, options, options.get("timeout", TIMEOUT))
        self.request = request
        self.to = to
        self.compensation: Request[S] | None = None
        self.alternatives: list[RemoteStep[S]] = []
        self._principal = principal
        self._replies: dict[str, type[Reply]] = {}
        self._handlers: dict[str, Callable[[S, Any], None]] = {}

    @property
    def principal(self) -> "RemoteStep[S]":
        """The step that this one is an alternative of, or itself."""
        return self._principal or self

    @cached_property
    def commands(self) -> tuple[type[Command], ...]:
        """What it may ask for, one or several; none when that cannot be told, and the definition is refused."""
        return command_types(self.request)

    @property
    def undoing_commands(self) -> tuple[type[Command], ...]:
        """The same of what undoes it."""
        return () if self.compensation is None else command_types(self.compensation)

    @property
    def replies(self) -> Mapping[str, type[Reply]]:
        """The replies that the step has handlers of, by the names of their types."""
        return self._replies

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

    def compensate(self, compensation: Request[S]) -> Request[S]:
        """Register what makes the command that undoes the step, when a later one fails or nobody knows its outcome.

        Participants are asked to undo what they may never have done: the operation tells them (see docs/messages.md).
        """
        self._saga.require_open()
        if self.compensation is not None:
            self._saga.refuse("it has two compensations", self.name)
        self.compensation = compensation
        return compensation

    def or_else(
        self, *, to: str, **options: Unpack[RemoteOptions]
    ) -> Callable[[Callable[[S], Command]], "RemoteStep[S]"]:
        """Declare an alternative: it is tried when this step, and the alternatives before, have failed for good."""

        def declare(request: Callable[[S], Command]) -> RemoteStep[S]:
            step = RemoteStep(self._saga, request, to, options, self.principal)
            self._saga.name_alternative(step)
            self.principal.alternatives.append(step)
            return step

        return declare

    def answer(self, name: str) -> type[Reply] | None:
        """The type of a reply of that name to the command, None when the step does not know it."""
        known = self._replies.get(name) or BUILT_IN.get(name)
        return None if known is Done and not self._takes_done else known

    @property
    def _takes_done(self) -> bool:
        """Whether it is done when its participant says no more than that, so that the saga gets no product of it."""
        if Done in (*self._replies.values(), *declared_replies(self.commands)):
            return True
        return all(issubclass(reply, Failure) for reply in self._replies.values())

    def compensation_answer(self, name: str) -> type[Reply] | None:
        """The type of a reply of that name to the command that undoes the step, None when nobody declares it."""
        declared = {type_of(reply): reply for reply in declared_replies(self.undoing_commands)}
        return declared.get(name) or BUILT_IN.get(name)

    def apply(self, state: S, reply: Reply) -> None:
        """Let the handler of the reply change the state. Built-in replies need none."""
        handler = self._handlers.get(type_of(reply))
        if handler is not None:
            handler(state, reply)

    def following(self) -> "RemoteStep[S] | None":
        """The alternative that is tried when this one has failed for good."""
        options = [self.principal, *self.principal.alternatives]
        after = options.index(self) + 1
        return options[after] if after < len(options) else None


Step: TypeAlias = LocalStep[S] | RemoteStep[S]


def following(step: Step[S]) -> RemoteStep[S] | None:
    """The next alternative of a step, where it has one."""
    return step.following() if isinstance(step, RemoteStep) else None


def line(step: Step[S]) -> tuple[Step[S], ...]:
    """A step, and its alternatives."""
    return (step, *step.alternatives) if isinstance(step, RemoteStep) else (step,)


def _timeout_s(saga: Declaring, name: str, text: str) -> float:
    try:
        timeout_s = seconds(text)
    except ValueError as error:
        saga.refuse(f"its timeout is {text!r}, and {error}", name)
    if not timeout_s:
        saga.refuse("its timeout is 0: nothing can be that quick", name)
    return timeout_s


def command_types(request: Callable[..., Command]) -> tuple[type[Command], ...]:
    """What the function says that it returns: a command, or one of several.

    None when that cannot be told: it does not say, says no more than Command, or by a name that its module does not
    know, as for one of an inner scope.
    """
    try:
        returned = get_type_hints(request).get("return")
    except (NameError, AttributeError):
        return ()
    options = get_args(returned) if get_origin(returned) in (Union, UnionType) else (returned,)
    told = tuple(each for each in options if isinstance(each, type) and issubclass(each, Command))
    return told if len(told) == len(options) and Command not in told else ()


def declared_replies(commands: Iterable[type[Command]]) -> tuple[type[Reply], ...]:
    """All that one of the commands may be answered with, as far as they declare it."""
    return tuple(reply for command in commands for reply in command.replies)
