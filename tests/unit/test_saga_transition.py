"""The transition function, without a server: every order of replies, early, late, repeated and out of place."""

from dataclasses import dataclass, field
from decimal import Decimal
from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from relay.messaging import Command, Failure, Reply, Transaction
from relay.saga import Record, Saga, Status, UnexpectedReply
from relay.saga.log import Happened, LogEvent
from relay.saga.transition import (
    Act,
    Acted,
    Replied,
    Send,
    Started,
    Stimulus,
    Undo,
    Undone,
    decide,
    due,
    evolve,
    load,
    rebuild,
)

ENDS = {Happened.SAGA_COMPLETED: Status.COMPLETED, Happened.SAGA_COMPENSATED: Status.COMPENSATED}


class Trail(BaseModel):
    """Notes what was done to it. The price shows that exact values survive the log."""

    done: list[str] = []
    price: Decimal = Decimal("0.10")


class Ask(Command):
    step: str


class Yes(Reply):
    more: Decimal = Decimal("0.01")


class No(Failure):
    reason: str = "no"


class Stranger(Reply): ...


@dataclass(frozen=True)
class Shape:
    """A saga: compensable local steps, perhaps a remote one that may fail, and steps that cannot."""

    before: int
    fails: bool
    pivot: bool
    after: list[str]


shapes = st.builds(
    Shape,
    before=st.integers(0, 3),
    fails=st.booleans(),
    pivot=st.booleans(),
    after=st.lists(st.sampled_from(["local", "remote"]), max_size=3),
).filter(lambda shape: shape.before + shape.fails + shape.pivot + len(shape.after) > 0)


def build(shape: Shape) -> Saga[Trail]:
    saga = Saga("trip", state=Trail)
    for number in range(shape.before):
        step = saga.local()(named(f"before{number}", act))
        step.compensate(named(f"undo{number}", act))
    if shape.fails:
        add_remote(saga, "risky", fails=True)
    if shape.pivot:
        saga.local(pivot=True)(named("pivot", act))
    for number, kind in enumerate(shape.after):
        if kind == "local":
            saga.local()(named(f"after{number}", act))
        else:
            add_remote(saga, f"after{number}", fails=False)
    saga.seal()
    return saga


async def act(state: Trail, tx: Transaction) -> None:
    raise AssertionError("the transition function runs nothing")


def named(name, function):
    def copy(*args):
        return function(*args)

    copy.__name__ = name
    return copy


def add_remote(saga: Saga[Trail], name: str, *, fails: bool) -> None:
    def say(state: Trail, reply: Yes | No) -> None:
        state.done.append(f"{name}:{type(reply).__name__}")
        if isinstance(reply, Yes):
            state.price += reply.more

    step = saga.step(to="somewhere")(named(name, lambda state: Ask(step=name)))
    step.on(Yes)(say)
    if fails:
        step.on(No)(say)


@dataclass
class Run:
    """Runs a saga as the orchestrator does, with local work that only leaves a trail."""

    saga: Saga[Trail]
    record: Record = field(default_factory=Record)
    log: list[LogEvent] = field(default_factory=list)
    sent: list[Send] = field(default_factory=list)
    undone: list[str] = field(default_factory=list)

    def start(self) -> "Run":
        return self.feed(Started(Trail()))

    def reply(self, step: str, reply: Reply) -> "Run":
        return self.feed(Replied(step, reply))

    def feed(self, stimulus: Stimulus | None) -> "Run":
        while stimulus is not None:
            events = decide(self.saga, self.record, stimulus)
            self.record = reduce(evolve, events, self.record)
            self.log += events
            stimulus = self.work(due(self.saga, self.record, events[-1])) if events else None
        return self

    def work(self, task) -> Stimulus | None:
        state = load(self.saga, self.record)
        match task:
            case Act(step):
                state.done.append(step.name)
                return Acted(step.name, state)
            case Undo(step):
                state.done.append(f"undo {step.name}")
                self.undone.append(step.name)
                return Undone(step.name, state)
            case Send():
                self.sent.append(task)
        return None

    @property
    def happened(self) -> list[str]:
        return [f"{event.what.value} {event.step or ''}".strip() for event in self.log]


@pytest.fixture
def create_order() -> Saga[Trail]:
    return build(Shape(before=1, fails=True, pivot=True, after=[]))


def test_a_saga_whose_replies_are_good_completes(create_order: Saga[Trail]) -> None:
    run = Run(create_order).start().reply("risky", Yes())

    assert run.happened == [
        "SagaStarted",
        "StepStarted before0",
        "StepSucceeded before0",
        "StepStarted risky",
        "StepSucceeded risky",
        "StepStarted pivot",
        "StepSucceeded pivot",
        "SagaCompleted",
    ]
    assert run.record.status is Status.COMPLETED
    assert run.record.state == {"done": ["before0", "risky:Yes", "pivot"], "price": "0.11"}


def test_a_failure_compensates_what_was_done_before(create_order: Saga[Trail]) -> None:
    run = Run(create_order).start().reply("risky", No())

    assert run.happened[4:] == [
        "StepFailed risky",
        "StepCompensating before0",
        "StepCompensated before0",
        "SagaCompensated",
    ]
    assert run.record == Record(
        Status.COMPENSATED, None, {"done": ["before0", "risky:No", "undo before0"], "price": "0.10"}
    )


def test_compensation_runs_in_reverse() -> None:
    run = Run(build(Shape(before=3, fails=True, pivot=False, after=[]))).start().reply("risky", No())
    assert run.undone == ["before2", "before1", "before0"]


def test_the_reply_is_kept_in_the_log(create_order: Saga[Trail]) -> None:
    run = Run(create_order).start().reply("risky", No(reason="broke"))
    failed = next(event for event in run.log if event.what is Happened.STEP_FAILED)
    assert failed.detail["reply"] == {"type": "No", "body": {"reason": "broke"}}


def test_the_command_of_a_step_is_sent_once(create_order: Saga[Trail]) -> None:
    run = Run(create_order).start().reply("risky", Yes()).reply("risky", Yes())
    assert [(send.step.name, send.command) for send in run.sent] == [("risky", Ask(step="risky"))]


def test_a_reply_for_a_step_that_is_not_under_way_decides_nothing(create_order: Saga[Trail]) -> None:
    run = Run(create_order).start()
    assert decide(create_order, run.record, Replied("pivot", Yes())) == ()


@pytest.mark.parametrize(
    ("status", "stimulus"),
    [
        (Status.COMPENSATING, Acted("before0", Trail())),
        (Status.COMPENSATING, Replied("before0", Yes())),
        (Status.RUNNING, Undone("before0", Trail())),
    ],
)
def test_what_does_not_fit_the_status_decides_nothing(
    create_order: Saga[Trail], status: Status, stimulus: Stimulus
) -> None:
    assert decide(create_order, Record(status, "before0"), stimulus) == ()


def test_a_reply_that_the_step_does_not_handle_is_refused(create_order: Saga[Trail]) -> None:
    run = Run(create_order).start()
    with pytest.raises(UnexpectedReply, match="saga trip, step risky: nothing handles the reply Stranger"):
        run.reply("risky", Stranger())


def test_deciding_changes_neither_the_record_nor_the_given_state(create_order: Saga[Trail]) -> None:
    state = Trail()
    run = Run(create_order).feed(Started(state))
    before = load(create_order, run.record)

    decide(create_order, run.record, Replied("risky", Yes()))

    assert load(create_order, run.record) == before
    assert state == Trail()


replies = st.lists(
    st.tuples(
        st.sampled_from(["before0", "risky", "pivot", "after0", "after1", "after2", "nowhere"]),
        st.sampled_from([Yes(), No()]),
    ),
    max_size=20,
)


@given(shapes, replies)
def test_whatever_replies_come_a_saga_ends_once_and_its_log_tells_the_same_story(
    shape: Shape, stray: list[tuple[str, Reply]]
) -> None:
    run = Run(build(shape)).start()
    for step, reply in stray:
        feed_tolerantly(run, step, reply)
    while run.record.step is not None:  # whoever still waits gets the reply at last, and once more
        step = run.record.step
        run.reply(step, Yes()).reply(step, Yes())

    ends = [event.what for event in run.log if event.what in ENDS]
    assert len(ends) == 1
    assert run.log[-1].what is ends[0]
    assert run.record.status is ENDS[ends[0]]
    assert rebuild(run.log) == run.record
    assert len({send.step.name for send in run.sent}) == len(run.sent)


@given(shapes, replies)
def test_an_ended_saga_hears_nothing_any_more(shape: Shape, late: list[tuple[str, Reply]]) -> None:
    run = Run(build(shape)).start()
    while run.record.step is not None:
        run.reply(run.record.step, Yes())
    ended, told = run.record, len(run.log)

    for step, reply in late:
        run.reply(step, reply)

    assert run.record == ended
    assert len(run.log) == told


@given(shapes, replies)
def test_every_prefix_of_the_log_is_a_state_the_saga_was_in(shape: Shape, stray: list[tuple[str, Reply]]) -> None:
    run = Run(build(shape)).start()
    seen = [(len(run.log), run.record)]
    for step, reply in stray:
        feed_tolerantly(run, step, reply)
        seen.append((len(run.log), run.record))

    assert all(rebuild(run.log[:length]) == record for length, record in seen)


@given(shapes)
def test_everything_that_was_done_before_a_failure_is_undone_once(shape: Shape) -> None:
    run = Run(build(shape)).start()
    feed_tolerantly(run, "risky", No())

    failed = any(event.what is Happened.STEP_FAILED for event in run.log)
    done = [event.step for event in run.log if event.what is Happened.STEP_SUCCEEDED]
    assert run.undone == (done[::-1] if failed else [])


def feed_tolerantly(run: Run, step: str, reply: Reply) -> None:
    """A failure where none can be is a mistake of the participant's: refused, and nothing has changed."""
    before = run.record
    try:
        run.reply(step, reply)
    except UnexpectedReply:
        assert run.record == before
