"""What a definition must be like so that it can work."""

from collections.abc import Sequence
from typing import Any, NoReturn, Protocol, TypeAlias

from relay.messaging import Failure
from relay.messaging.message import type_of
from relay.messaging.operation import ACTION
from relay.saga.step import BUILT_IN, Nature, RemoteStep, Step, declared_replies, following, line

Steps: TypeAlias = tuple[Step[Any], ...]


class Declared(Protocol):
    """A definition, as far as it is checked."""

    @property
    def steps(self) -> Steps: ...

    @property
    def stages(self) -> Sequence[Steps]: ...

    @property
    def undo_order(self) -> Sequence[Steps] | None: ...

    def find(self, step_name: str | None) -> Step[Any] | None: ...

    def nature(self, step: Step[Any]) -> Nature: ...

    def refuse(self, what: str, step_name: str) -> NoReturn: ...


def check(saga: Declared) -> None:
    """Raise DefinitionError, with the step named, for what cannot work."""
    _check_pivots(saga)
    for step in saga.steps:
        if step.name == ACTION and step.principal is not step:
            saga.refuse("an alternative cannot be called that: operations call the step itself so", step.name)
        _check_undo(saga, step)
        if isinstance(step, RemoteStep):
            _check_commands(saga, step)
            _check_replies(saga, step)
    if saga.undo_order is not None:
        _check_undo_order(saga)


def _check_pivots(saga: Declared) -> None:
    pivots = [step for step in saga.steps if step.pivot]
    for step in pivots[1:]:
        saga.refuse("it is a second pivot", step.name)
    for stage in saga.stages:
        for step in stage:
            if step.pivot and len(stage) > 1:
                saga.refuse("a pivot has no step beside it: what is done in parallel could not be undone", step.name)
            if step.pivot and following(step):
                saga.refuse("a pivot has no alternatives: nobody knows whether the first one passed", step.name)
            if step.pivot and step.condition is not None:
                saga.refuse("a pivot is never skipped: without it there is no point of no return", step.name)


def _check_undo(saga: Declared, step: Step[Any]) -> None:
    if step.readonly and step.compensation is not None:
        saga.refuse("it is readonly, so there is nothing that its compensation could undo", step.name)
    undoable = step.readonly or step.compensation is not None
    nature = saga.nature(step)
    if nature is Nature.COMPENSABLE and not undoable:
        saga.refuse(
            "it has no compensation, but comes before the point of no return: "
            f"add @{step.name}.compensate, or say readonly=True when there is nothing to undo",
            step.name,
        )
    if nature is Nature.COMPENSABLE:
        return
    if following(step) and not undoable:
        saga.refuse("another one is tried after it, so it needs a compensation: it may have happened", step.name)
    if step.compensation is not None and not following(step):
        saga.refuse("it has a compensation, but nothing is undone from the pivot on", step.name)


def _check_commands(saga: Declared, step: RemoteStep[Any]) -> None:
    """Nobody can tell which replies are to be handled when it is not known which command they answer."""
    say = "say in {}() what it returns, like `-> ReserveRoom`, by a name that its module knows"
    if not step.commands:
        saga.refuse(f"its command cannot be told: {say.format(step.request.__name__)}", step.name)
    if step.compensation is not None and not step.undoing_commands:
        saga.refuse(f"the command that undoes it cannot be told: {say.format(step.compensation.__name__)}", step.name)


def _check_replies(saga: Declared, step: RemoteStep[Any]) -> None:
    declared = {reply: type_of(reply) for reply in declared_replies(step.commands)}
    # A command that declares none may have any.
    known = all(command.replies for command in step.commands)
    for name, reply in step.replies.items():
        if known and name not in BUILT_IN and reply not in declared:
            commands = " or ".join(command.__name__ for command in step.commands)
            saga.refuse(f"it handles {name}, which is none of the replies of {commands}", step.name)
    for reply, name in declared.items():
        if step.replies.get(name) is not reply and name not in BUILT_IN:
            saga.refuse(f"nobody handles its reply {name}: add @{step.name}.on({name})", step.name)
    if step.replies and all(issubclass(reply, Failure) for reply in (*step.replies.values(), *declared)):
        saga.refuse(
            f"no reply completes it: handle one that is not a Failure, like Done (@{step.name}.on(Done))",
            step.name,
        )
    for failure in step.transient:
        if type_of(failure) not in step.replies:
            saga.refuse(f"{type_of(failure)} is called transient, but nobody handles it", step.name)


def _check_undo_order(saga: Declared) -> None:
    order = [step for stage in saga.undo_order or () for step in stage]
    for step in order:
        if order.count(step) > 1:
            saga.refuse("the order of compensation names it twice", step.name)
        if saga.find(step.name) is not step:
            saga.refuse("the order of compensation names it, but it is no step of this saga", step.name)
        if step.principal is not step:
            saga.refuse(f"the order of compensation names it, but it belongs to {step.principal.name}", step.name)
        if not any(each.compensation for each in line(step)):
            saga.refuse("the order of compensation names it, but it has no compensation", step.name)
        if saga.nature(step) is not Nature.COMPENSABLE:
            saga.refuse("the order of compensation names it, but nothing is undone from the pivot on", step.name)
    for stage in saga.stages:
        for step in stage:
            undoable = saga.nature(step) is Nature.COMPENSABLE and any(each.compensation for each in line(step))
            if undoable and step not in order:
                saga.refuse("the order of compensation leaves it out", step.name)
