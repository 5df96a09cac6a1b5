"""Given a saga, when this is answered, then that is asked for: stories about a definition, without servers."""

from collections.abc import Callable, Mapping
from typing import Any, Generic, NoReturn, Self, TypeAlias

from relay.duration import seconds
from relay.messaging import Command, Compensated, Done, Failure, Reply
from relay.messaging.message import type_of
from relay.saga.definition import Saga
from relay.saga.locks import resource_of
from relay.saga.record import Record, Status
from relay.saga.step import S
from relay.saga.stimulus import Aborted, Due, Held, Purpose, Replied, Started, Stimulus, Timer
from relay.saga.testing.clock import FakeClock
from relay.saga.testing.local import StandIn
from relay.saga.testing.rehearsal import Rehearsal, Sent
from relay.saga.testing.wording import body, complaint, describe, standing, timeline
from relay.saga.transition import UnexpectedReply

Answered: TypeAlias = type[Command] | str | Sent
"""Which command a reply answers: the latest of a type, the latest of a step, or this very one."""


def given(
    saga: Saga[S], state: S, *, local: Mapping[str, StandIn[S]] | None = None, held: bool = False
) -> "Scenario[S]":
    """A saga that is about to be started, for a test to tell what happens to it.

    It is sealed. Nothing of it runs but the functions that make commands, handle replies and decide on conditions:
    local steps succeed, unless `local` has a function for them, by the name of the action or the compensation. `held`:
    another saga works on what this one locks. Raises DefinitionError for a definition that cannot work.
    """
    return Scenario(saga, state, local or {}, held=held)


class Scenario(Generic[S]):
    """A story about one saga. Each method says what happens, or what is expected, and returns the story to go on with.

    What is expected and does not hold raises AssertionError, with all that has happened.
    """

    def __init__(self, saga: Saga[S], state: S, local: Mapping[str, StandIn[S]], *, held: bool) -> None:
        self._saga = saga
        self._initial = state
        self._held = held
        self._rehearsal = Rehearsal(saga, local)
        self._expected: list[Sent] = []

    @property
    def state(self) -> S:
        """The saga's state, as a copy."""
        return self._begun().state

    @property
    def status(self) -> Status:
        """Where the saga stands."""
        return self._begun().record.status

    @property
    def record(self) -> Record:
        """Everything about where it stands."""
        return self._begun().record

    @property
    def clock(self) -> FakeClock:
        """How long the saga has been running."""
        return self._rehearsal.clock

    @property
    def timeline(self) -> list[str]:
        """What has happened, a line for each event."""
        return timeline(self._begun().story)

    @property
    def sent(self) -> Sent:
        """The command that was expected last."""
        if not self._expected:
            raise ValueError("no command has been expected yet")
        return self._expected[-1]

    def fails(self, function: str, error: Failure | Exception, *, times: int | None = None) -> Self:
        """Let a local function, an action or a compensation, return this Failure or raise this exception from now on.

        `times`: only so often, then it succeeds. Raises ValueError when the saga has no such function.
        """
        self._rehearsal.local.fail(function, error, times)
        return self

    def expect_command(
        self,
        command: type[Command],
        *,
        to: str | None = None,
        where: Callable[[Any], bool] | None = None,
        **fields: object,
    ) -> Self:
        """Expect that a command of this type has been sent; `to` that service, with these `fields`, `where` this holds.

        Each command that was sent can be expected once. Those of steps that run in parallel come in any order.
        """
        __tracebackhide__ = True
        for sent in self._unexpected():
            if isinstance(sent.command, command) and to in (None, sent.to) and _agrees(sent.command, where, fields):
                self._expected.append(sent)
                return self
        wanted = f"{type_of(command)}({', '.join(f'{name}={value!r}' for name, value in fields.items())})"
        self._fail(wanted + (f" to {to}" if to else "") + (" of a certain kind" if where else ""), self._instead())

    def expect_nothing(self) -> Self:
        """Expect that no command has been sent but those that were expected."""
        __tracebackhide__ = True
        if self._unexpected():
            self._fail("no further command", f"there was {describe(self._unexpected()[0])}")
        return self

    def expect_completed(self) -> Self:
        """Expect that the saga has come to its end, and all is done."""
        __tracebackhide__ = True
        return self._expect(Status.COMPLETED, "the saga to be completed")

    def expect_compensated(self, *, reason: str | None = None) -> Self:
        """Expect that the saga has come to its end, and all is undone; for a reason that has this text in it."""
        __tracebackhide__ = True
        return self._expect(Status.COMPENSATED, "the saga to be compensated", reason)

    def expect_suspended(self, *, reason: str | None = None) -> Self:
        """Expect that a budget is spent, and the saga waits for a person; for a reason that has this text in it."""
        __tracebackhide__ = True
        return self._expect(Status.SUSPENDED, "the saga to be suspended", reason)

    def expect_waiting(self) -> Self:
        """Expect that the saga waits for what another one works on."""
        __tracebackhide__ = True
        return self._expect(Status.WAITING, "the saga to wait for its lock")

    def reply(self, reply: Reply | None = None, *, answers: Answered | None = None) -> Self:
        """Let a participant answer the command that was expected last, or another one that was expected before.

        Without a reply it says what the library would: Done, or Compensated.
        """
        __tracebackhide__ = True
        sent = self.sent if answers is None else self._find(answers)
        said = reply if reply is not None else Compensated() if sent.compensates else Done()
        try:
            self._begun().take(Replied(sent.step, said, sent.attempt, sent.compensates))
        except UnexpectedReply:
            self._fail(f"step {sent.step} to handle {body(said)}", "it has no handler of that type")
        return self

    def after(self, time: str) -> Self:
        """Let time pass, like "31s": what becomes due happens, each at its moment. Waits last as long as declared."""
        self._begun().pass_time(seconds(time))
        return self

    def abort(self, reason: str) -> Self:
        """Have the saga undone, for a reason. Raises AssertionError when it is too late for that."""
        __tracebackhide__ = True
        if not self._begun().take(Aborted(reason)):
            self._fail("the saga to be aborted", f"it {standing(self.record)}")
        return self

    def let_in(self) -> Self:
        """The saga that worked on what this one waits for has ended."""
        __tracebackhide__ = True
        if not self._begun().take(Due(Timer(Purpose.LOCK))):
            self._fail("the saga to wait for its lock", f"it {standing(self.record)}")
        return self

    def _begun(self) -> Rehearsal[S]:
        if not self._rehearsal.started:
            self._rehearsal.take(self._beginning(), starting=True)
        return self._rehearsal

    def _beginning(self) -> Stimulus:
        if not self._held:
            return Started(self._initial)
        if self._saga.lock is None or self._saga.on_locked == "fail":
            raise ValueError(f"saga {self._saga.name} does not wait for a lock: it is never held")
        return Held(self._initial, resource_of(self._saga.lock(self._initial)))

    def _unexpected(self) -> list[Sent]:
        """Each of the commands that were sent may be expected once: also of two that say the same."""
        expected = {id(sent) for sent in self._expected}
        return [sent for sent in self._begun().sent if id(sent) not in expected]

    def _find(self, answers: Answered) -> Sent:
        for sent in reversed(self._expected):
            if (
                answers is sent
                or answers == sent.step
                or (isinstance(answers, type) and isinstance(sent.command, answers))
            ):
                return sent
        raise ValueError(f"no command {answers!r} has been expected yet: expect it before it is answered")

    def _expect(self, status: Status, what: str, reason: str | None = None) -> Self:
        __tracebackhide__ = True
        record = self.record
        if record.status is not status:
            self._fail(what, f"it {standing(record)}")
        if reason is not None and reason not in (record.reason or ""):
            self._fail(f"{what} because of {reason!r}", f"the reason is {record.reason!r}")
        return self

    def _instead(self) -> str:
        unexpected = self._unexpected()
        if unexpected:
            return f"there was {describe(unexpected[0])}"
        return f"there was no further command: the saga {standing(self.record)}"

    def _fail(self, expected: str, instead: str) -> NoReturn:
        __tracebackhide__ = True
        raise AssertionError(complaint(self._begun(), expected, instead, self._unexpected()))


def _agrees(command: Command, where: Callable[[Any], bool] | None, fields: Mapping[str, object]) -> bool:
    unknown = [name for name in fields if name not in type(command).model_fields]
    if unknown:
        raise ValueError(f"{type_of(command)} has no field {unknown[0]}")
    return all(getattr(command, name) == value for name, value in fields.items()) and (where is None or where(command))
