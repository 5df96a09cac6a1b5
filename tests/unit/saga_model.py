"""Sagas of chance, and a world to run them in: participants that keep operations, and a network that keeps no order."""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce, wraps
from random import Random
from typing import Any

from pydantic import BaseModel, Field

from relay.messaging import Command, Compensated, Failure, OperationCancelled, Reply, Retry
from relay.saga.definition import Saga
from relay.saga.log import Happened, LogEvent
from relay.saga.record import Phase, Record, Status, StepRecord, evolve
from relay.saga.step import LocalStep, Nature, RemoteStep, Step, line
from relay.saga.stimulus import (
    Act,
    Acted,
    ActionFailed,
    Due,
    Purpose,
    Replied,
    Send,
    SetTimer,
    Stalled,
    Started,
    Stimulus,
    Timer,
    Undo,
    UndoFailed,
    Undone,
)
from relay.saga.task import due, load
from relay.saga.transition import decide


class Trail(BaseModel):
    """What replies leave behind, and which steps are skipped."""

    produced: dict[str, str] = {}
    heard: list[str] = []
    skipped: list[str] = []


class Ask(Command):
    step: str


class Undoing(Command):
    step: str
    product: str | None
    others: dict[str, str] = Field(default_factory=dict)
    """What the state says of all the other steps."""


class Yes(Reply):
    product: str


class No(Failure):
    pass


class Busy(Failure):
    pass


def named(name: str, function: Any) -> Any:
    @wraps(function)
    def copy(*args: Any) -> Any:
        return function(*args)

    copy.__name__ = name
    return copy


def asking(name: str) -> Any:
    def ask(state: Trail) -> Ask:
        return Ask(step=name)

    return named(name, ask)


def undoing(step: str) -> Callable[[Trail], Undoing]:
    def undo(state: Trail) -> Undoing:
        others = {name: product for name, product in state.produced.items() if name != step}
        return Undoing(step=step, product=state.produced.get(step), others=others)

    return undo


async def never(state: Trail, tx: Any) -> None:
    raise AssertionError("pure code runs nothing")


class Builder:
    """Makes a definition that works, of chance."""

    def __init__(self, chance: Random) -> None:
        self._chance = chance
        self._names = (f"step{number}" for number in range(100))
        self.saga = Saga(
            "trip",
            state=Trail,
            compensation=chance.choice(["reverse", "parallel"]),
            timeout=chance.choice([None, "1h"]),
        )

    def build(self) -> Saga[Trail]:
        before, after = self._chance.randrange(4), self._chance.randrange(3)
        pivot = self._chance.choice([None, "local", "remote"]) if before + after else "local"
        for _ in range(before):
            self._stage(Nature.COMPENSABLE)
        if pivot is not None:
            self._step(Nature.PIVOT, kind=pivot)
        for _ in range(after):
            self._stage(Nature.RETRIABLE if pivot is not None else Nature.COMPENSABLE)
        undoable = [step for step in self._undoable() if self.saga.nature(step) is Nature.COMPENSABLE]
        if undoable and self._chance.random() < 0.3:
            self.saga.compensate_in_order(*self._shuffled(undoable))
        self.saga.seal()
        return self.saga

    def _stage(self, nature: Nature) -> None:
        if self._chance.random() < 0.5:
            self._step(nature)
            return
        with self.saga.parallel():
            for _ in range(self._chance.randint(1, 3)):
                self._step(nature)

    def _step(self, nature: Nature, kind: str | None = None) -> None:
        chance, name = self._chance, next(self._names)
        pivot = nature is Nature.PIVOT
        when = None if pivot or chance.random() < 0.7 else lambda state: name not in state.skipped
        if (kind or chance.choice(["local", "remote", "remote"])) == "local":
            local = self.saga.local(pivot=pivot, when=when, **self._options(nature))(named(name, never))
            if nature is Nature.COMPENSABLE and not local.readonly:
                local.compensate(never)
            return
        options = self._options(nature)
        step: RemoteStep[Trail] = self.saga.step(to="there", pivot=pivot, when=when, **options)(asking(name))
        line = [step]
        for number in range(0 if pivot else chance.choice([0, 0, 0, 1, 2])):
            line.append(step.or_else(to="there", **self._options(nature))(asking(f"{name}_{number}")))
        for each in line:
            self._hear(each)
            if (nature is Nature.COMPENSABLE or each is not line[-1]) and not each.readonly:
                each.compensate(undoing(each.name))

    def _hear(self, step: RemoteStep[Trail]) -> None:
        def produced(state: Trail, reply: Yes) -> None:
            state.produced[step.name] = reply.product

        def refused(state: Trail, reply: Failure) -> None:
            state.heard.append(f"{step.name} {type(reply).__name__}")

        step.on(Yes)(produced)
        step.on(No)(refused)
        step.on(Busy)(refused)

    def _options(self, nature: Nature) -> Any:
        chance = self._chance
        return {
            "retry": Retry(attempts=chance.randint(1, 3), backoff="1s..1m"),
            "compensation_retry": Retry(attempts=chance.randint(1, 3), backoff="1s..1m"),
            "transient": (Busy,),
            "readonly": nature is Nature.COMPENSABLE and chance.random() < 0.15,
        }

    def _undoable(self) -> list[Step[Trail]]:
        stages = self.saga.stages
        return [step for stage in stages for step in stage if any(each.compensation for each in line(step))]

    def _shuffled(self, steps: list[Step[Trail]]) -> list[Any]:
        steps = self._chance.sample(steps, len(steps))
        order: list[Any] = []
        while steps:
            size = self._chance.randint(1, 2)
            order.append(tuple(steps[:size]) if size > 1 else steps[0])
            steps = steps[size:]
        return order


class Runner:
    """Takes stimuli as the orchestrator does, and checks the saga after each."""

    def __init__(self, saga: Saga[Trail]) -> None:
        self.saga = saga
        self.record = Record()
        self.log: list[LogEvent] = []
        self.timers: list[Timer] = []
        self.held: list[Timer] = []
        """Those on which the code of the saga raises: they are set again when anything else happens."""
        self._tasks: deque[Any] = deque()
        self._undoings: dict[str, Undoing] = {}

    def feed(self, stimulus: Stimulus) -> tuple[LogEvent, ...]:
        known, stalled = len(self.log), self.record.stalled
        self._decide(stimulus)
        while self._tasks:
            came_of_it = self._do(self._tasks.popleft())
            if came_of_it is not None:
                self._decide(came_of_it)
        if isinstance(stimulus, Stalled):
            self.held.append(stimulus.timer)
        if stalled and not self.record.stalled:
            self.release()
        self.check()
        return tuple(self.log[known:])

    def release(self) -> None:
        """What is held is due again."""
        self.timers += [timer for timer in self.held if timer not in self.timers]
        self.held = []

    def _decide(self, stimulus: Stimulus) -> None:
        before = self.record
        events = decide(self.saga, self.record, stimulus)
        self.record = reduce(evolve, events, self.record)
        self.log += events
        assert not (before.ended and events), "an ended saga hears nothing"
        for event in events:
            self._tasks.extend(due(self.saga, self.record, event))

    def _do(self, task: Any) -> Stimulus | None:
        match task:
            case Act(step):
                return self.act(step, load(self.saga, self.record))
            case Undo(step):
                return self.undo(step, load(self.saga, self.record))
            case Send():
                if isinstance(task.command, Undoing):
                    self._then_it_says_what_it_said_before(task.command)
                self.send(task)
            case SetTimer(timer, after_s):
                assert after_s > 0
                self.timers.append(timer)
        return None

    def _then_it_says_what_it_said_before(self, command: Undoing) -> None:
        """Each attempt to undo a step asks for the same; a product that came late is the only news."""
        first = self._undoings.setdefault(command.step, command)
        assert command.others == first.others
        assert command.product == first.product or self.record.steps[command.step].late is not None

    def act(self, step: LocalStep[Trail], state: Trail) -> Stimulus:
        return Acted(step.name, state)

    def undo(self, step: LocalStep[Trail], state: Trail) -> Stimulus:
        return Undone(step.name, state)

    def send(self, send: Send[Trail]) -> None:
        pass

    def check(self) -> None:
        record = self.record
        assert Record.of(record.status.value, record.state, record.progress(), record.reason) == record
        then_somebody_is_waited_for(self.saga, record, self.timers + self.held)
        then_budgets_are_kept(self.saga, record)
        then_nothing_starts_after_turning_back(self.log)
        then_nothing_is_undone_beyond_the_pivot(self.saga, self.log)
        if record.status is Status.SUSPENDED:
            assert record.reason
            stuck = any(step.phase in (Phase.STUCK, Phase.UNDO_STUCK) for step in record.steps.values())
            assert stuck or record.stalled
        assert record.stalled == bool(self.held)
        assert record.status is Status.SUSPENDED or not record.stalled
        if record.status is Status.COMPENSATED:
            assert record.reason
        if record.status is Status.COMPLETED:
            assert record.reason is None


WAITED_FOR = {
    Phase.STARTED: (Purpose.TIMEOUT, "attempt"),
    Phase.RETRYING: (Purpose.RETRY, "attempt"),
    Phase.UNDOING: (Purpose.UNDO_TIMEOUT, "undo_attempt"),
    Phase.UNDO_RETRYING: (Purpose.UNDO_RETRY, "undo_attempt"),
}


def then_somebody_is_waited_for(saga: Saga[Trail], record: Record, timers: list[Timer]) -> None:
    """A saga never stands still: what is under way has a timer, and something is, or a person knows."""
    if record.ended:
        return
    under_way = [(name, step) for name, step in record.steps.items() if step.phase in WAITED_FOR]
    for name, step in under_way:
        purpose, attempt = WAITED_FOR[step.phase]
        assert Timer(purpose, name, getattr(step, attempt)) in timers, f"{name} waits for nobody"
    assert under_way or record.status in (Status.SUSPENDED, Status.WAITING), "stuck"


def then_budgets_are_kept(saga: Saga[Trail], record: Record) -> None:
    for name, stands in record.steps.items():
        step = saga.find(name)
        assert step is not None
        assert stands.attempt <= step.retry.attempts
        assert stands.undo_attempt <= step.compensation_retry.attempts
        if stands.phase is Phase.UNDO_STUCK:
            assert stands.undo_attempt >= 1


def then_nothing_starts_after_turning_back(log: list[LogEvent]) -> None:
    back = False
    for event in log:
        assert not (back and event.what in (Happened.STEP_STARTED, Happened.STEP_SKIPPED)), "started after turning back"
        back = back or turns_back(event)


def turns_back(event: LogEvent) -> bool:
    timed_out = event.what is Happened.SAGA_TIMED_OUT and "pending" not in event.detail
    return timed_out or event.what is Happened.SAGA_ABORTED or event.detail.get("then") == "compensate"


def then_nothing_is_undone_beyond_the_pivot(saga: Saga[Trail], log: list[LogEvent]) -> None:
    """But for what was given up for an alternative."""
    beyond = False
    succeeded: set[str] = set()
    for event in log:
        step = saga.find(event.step)
        if event.what is Happened.STEP_SUCCEEDED and step is not None and "late" not in event.detail:
            succeeded.add(step.name)
            beyond = beyond or saga.nature(step) is Nature.PIVOT
        if event.what is Happened.STEP_COMPENSATING and step is not None and beyond:
            assert step.name not in succeeded
            assert isinstance(step, RemoteStep)
            assert step.following()
        assert not (beyond and turns_back(event))


@dataclass
class Kept:
    """A row of relay.operation."""

    outcome: str
    attempt: int
    reply: Reply


class World(Runner):
    """A saga with its participants. What is done, and not undone, is in `effects`."""

    def __init__(self, saga: Saga[Trail], chance: Random, *, troubles: float) -> None:
        super().__init__(saga)
        self._chance = chance
        self.troubles = troubles
        self.effects: Counter[str] = Counter()
        self.given: dict[str, str] = {}
        self.commands: list[Send[Trail]] = []
        self.replies: list[Replied] = []
        self._operations: dict[str, Kept] = {}

    def start(self) -> None:
        skipped = [step.name for step in self.saga.steps if self._chance.random() < 0.5]
        self.feed(Started(Trail(skipped=skipped)))

    def _trouble(self) -> bool:
        return self._chance.random() < self.troubles

    def act(self, step: LocalStep[Trail], state: Trail) -> Stimulus:
        if self._trouble():
            failure = self._chance.choice([None, Busy(), No()])
            return ActionFailed(step.name, "it is so", failure)
        self._effect(step, 1)
        state.produced[step.name] = "local"
        return Acted(step.name, state)

    def undo(self, step: LocalStep[Trail], state: Trail) -> Stimulus:
        if self._trouble():
            return UndoFailed(step.name, "it is so")
        self._effect(step, -1)
        return Undone(step.name, state)

    def send(self, send: Send[Trail]) -> None:
        self.commands.append(send)

    def deliver(self, send: Send[Trail]) -> None:
        """A participant gets a command. It may be the same one as before."""
        self.replies.append((self._undo_operation if send.compensates else self._operate)(send))

    def _operate(self, send: Send[Trail]) -> Replied:
        name = send.step.name
        kept = self._operations.get(name)
        if kept is not None and kept.outcome in ("cancelled", "compensated"):
            return Replied(name, OperationCancelled(), send.attempt)
        if kept is None or (kept.outcome == "failed" and kept.attempt < send.attempt):
            if self._trouble():
                kept = Kept("failed", send.attempt, self._chance.choice([No(), Busy(), Busy()]))
            else:
                product = f"{name}#{self._chance.randrange(100)}"
                self._effect(send.step, 1)
                self.given[name] = product
                kept = Kept("done", send.attempt, Yes(product=product))
            self._operations[name] = kept
        return Replied(name, kept.reply, send.attempt)

    def _undo_operation(self, send: Send[Trail]) -> Replied:
        name = send.step.name
        kept = self._operations.get(name)
        reply: Reply = Compensated()
        if kept is not None and kept.outcome == "done":
            if self._trouble():
                return Replied(name, No(), send.attempt, to_compensation=True)
            assert isinstance(send.command, Undoing)
            # Either the saga has heard what the step produced, or it never got to know: then it says so.
            assert send.command.product in (None, self.given[name])
            self._effect(send.step, -1)
            kept.outcome = "compensated"
        elif kept is None or kept.outcome == "failed":
            self._operations[name] = Kept("cancelled", send.attempt, reply)
        return Replied(name, reply, send.attempt, to_compensation=True)

    def _effect(self, step: Step[Trail], change: int) -> None:
        if not step.readonly:
            self.effects[step.name] += change
            assert self.effects[step.name] in (0, 1), f"{step.name} happened {self.effects[step.name]} times"

    def _deploy(self, step: Step[Trail]) -> None:
        """A new version of the definition gives a step larger budgets, which is safe at any time."""
        step.retry = replace(step.retry, attempts=step.retry.attempts + 1)
        step.compensation_retry = replace(step.compensation_retry, attempts=step.compensation_retry.attempts + 1)

    def move(self) -> bool:
        """Let one thing of chance happen; whether there was any."""
        chance = self._chance
        if self._trouble() and chance.random() < 0.1:
            self._deploy(chance.choice(self.saga.steps))
        moves: list[Any] = [("command", send) for send in self.commands]
        moves += [("reply", reply) for reply in self.replies]
        moves += [("timer", timer) for timer in self.timers]
        if not moves:
            return False
        kind, what = chance.choice(moves)
        again = self._trouble()
        match kind:
            case "command":
                if not again:
                    self.commands.remove(what)
                self.deliver(what)
            case "reply":
                if not again:
                    self.replies.remove(what)
                self.feed(what)
            case "timer":
                self.timers.remove(what)
                # Code raises only where there is something to do: a stale timer runs none.
                raises = again and decide(self.saga, self.record, Due(what)) != ()
                self.feed(Stalled(what, "ValueError: no") if raises else Due(what))
        return True

    def finish(self) -> bool:
        """From now on everything goes well, and a person helps where the saga is suspended; whether the saga ends."""
        self.troubles = 0.0
        while not self.record.ended:
            assert self.move() or self.record.status is Status.SUSPENDED
            if self.record.status is Status.SUSPENDED and not self._help():
                return False
        while self.commands or self.replies:  # what is late finds everything settled
            self.move()
        return True

    def _help(self) -> bool:
        """The participant of a step that is stuck does at last what it was asked for, and says so; code is mended."""
        if self.held:
            self.feed(Due(self.held.pop(0)))
            assert not self.record.stalled
            return True
        for name, stands in self.record.steps.items():
            step = self.saga.find(name)
            assert step is not None
            if stands.phase not in (Phase.STUCK, Phase.UNDO_STUCK):
                continue
            if isinstance(step, LocalStep):
                return False
            if self._is_refused_for_now(step, stands):
                return True
            undoes = stands.phase is Phase.UNDO_STUCK
            attempt = stands.undo_attempt if undoes else stands.attempt + 1
            command = Undoing(step=name, product=None) if undoes else Ask(step=name)
            send = Send(step, command, attempt, undoes)
            self.feed((self._undo_operation if undoes else self._operate)(send))
            after = self.record.steps[name].phase
            assert after is (Phase.UNDONE if undoes else Phase.DONE)
            return True
        raise AssertionError("suspended, and no step is stuck")

    def _is_refused_for_now(self, step: RemoteStep[Trail], stands: StepRecord) -> bool:
        """Whether the last attempt of a stuck pivot is answered by a failure that passes, and its budget was raised."""
        kept = self._operations.get(step.name)
        refusable = kept is None or (kept.outcome == "failed" and kept.attempt < stands.attempt)
        if self.saga.nature(step) is not Nature.PIVOT or not refusable or self._chance.random() < 0.5:
            return False
        self._deploy(step)
        self._operations[step.name] = Kept("failed", stands.attempt, Busy())
        self.feed(Replied(step.name, Busy(), stands.attempt))
        assert self.record.steps[step.name].phase is Phase.RETRYING
        return True

    def judge(self) -> None:
        """At the end: all of it has happened, or nothing; and was undone in the order that the definition says."""
        done = {name for name, count in self.effects.items() if count}
        if self.record.status is Status.COMPENSATED:
            assert not done
            assert all(step.phase is not Phase.DONE or undone_by_nobody(self.saga, name) for name, step in self.steps())
            then_undone_in_order(self.saga, self.log)
            return
        for stage in self.saga.stages:
            for step in stage:
                happened = [each for each in line(step) if self.phase(each) is Phase.DONE]
                skipped = self.phase(step) is Phase.SKIPPED
                assert len(happened) == (0 if skipped else 1)
                assert skipped == (step.condition is not None and step.name in Trail(**self.record.state).skipped)
                assert done & {each.name for each in line(step)} == {
                    each.name for each in happened if not each.readonly
                }

    def steps(self) -> list[tuple[str, Any]]:
        return list(self.record.steps.items())

    def phase(self, step: Step[Trail]) -> Phase | None:
        stands = self.record.steps.get(step.name)
        return None if stands is None else stands.phase


def undone_by_nobody(saga: Saga[Trail], name: str) -> bool:
    step = saga.find(name)
    return step is not None and step.readonly


def then_undone_in_order(saga: Saga[Trail], log: list[LogEvent]) -> None:
    """What a stage undoes is undone before the next stage begins. Given-up alternatives may have begun earlier."""
    back = next((at for at, event in enumerate(log) if turns_back(event)), len(log))
    begun: dict[str, int] = {}
    ended: dict[str, int] = {}
    for at, event in enumerate(log):
        if event.what is Happened.STEP_COMPENSATING:
            begun.setdefault(event.step or "", at)
        if event.what is Happened.STEP_COMPENSATED:
            ended[event.step or ""] = at
    latest = -1
    for stage in saga.undo_stages:
        names = [step.name for step in stage if begun.get(step.name, -1) > back]
        assert all(begun[name] > latest for name in names)
        latest = max([latest, *(ended[name] for name in names)])
