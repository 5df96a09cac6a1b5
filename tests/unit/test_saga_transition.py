"""The transition function, without a server: what each thing that can happen makes of a saga."""

from collections.abc import Callable
from typing import Any

import pytest

from relay.messaging import Compensated, Done, Failure, OperationCancelled, Reply, Retry
from relay.saga.definition import Saga
from relay.saga.record import Phase, Record, Status, rebuild
from relay.saga.step import RemoteStep
from relay.saga.stimulus import (
    Aborted,
    Acted,
    ActionFailed,
    Due,
    Held,
    Purpose,
    Replied,
    Send,
    Stalled,
    Started,
    Stimulus,
    Timer,
    UndoFailed,
)
from relay.saga.task import load
from relay.saga.transition import UnexpectedReply, decide
from tests.unit.saga_model import Busy, No, Runner, Trail, Undoing, Yes, asking, named, never, undoing

OK = Yes(product="p")
TWICE = Retry(attempts=2, backoff="1s..1m")
ONCE = Retry(attempts=1)


class Stranger(Reply): ...


class Trip:
    """Declares steps in a few words."""

    def __init__(self, **options: Any) -> None:
        self.saga = Saga("trip", state=Trail, **options)

    def local(self, name: str, *, undo: bool = False, **options: Any) -> "Trip":
        step = self.saga.local(**options)(named(name, never))
        if undo:
            step.compensate(never)
        return self

    def remote(self, name: str, *, undo: bool = False, **options: Any) -> "Trip":
        self._hear(self.saga.step(to="there", **options)(asking(name)), undo)
        return self

    def or_else(self, name: str, *, undo: bool = False, **options: Any) -> "Trip":
        step = self.saga.steps[-1].principal
        assert isinstance(step, RemoteStep)
        self._hear(step.or_else(to="there", **options)(asking(name)), undo)
        return self

    def _hear(self, step: RemoteStep[Trail], undo: bool) -> None:
        def produced(state: Trail, reply: Yes) -> None:
            state.produced[step.name] = reply.product

        def refused(state: Trail, reply: Failure) -> None:
            state.heard.append(type(reply).__name__)

        step.on(Yes)(produced)
        step.on(No)(refused)
        step.on(Busy)(refused)
        if undo:
            step.compensate(undoing(step.name))

    def start(self) -> "Run":
        self.saga.seal()
        run = Run(self.saga)
        run.feed(Started(Trail()))
        return run


class Run(Runner):
    """Notes what is sent. Local steps fail as they are told to."""

    def __init__(self, saga: Saga[Trail]) -> None:
        super().__init__(saga)
        self.sent: list[Send[Trail]] = []
        self.undone: list[str] = []
        self.failing: dict[str, Callable[[], Stimulus]] = {}

    def act(self, step: Any, state: Trail) -> Stimulus:
        state.heard.append(step.name)
        return self.failing[step.name]() if step.name in self.failing else Acted(step.name, state)

    def undo(self, step: Any, state: Trail) -> Stimulus:
        self.undone.append(step.name)
        return self.failing[f"undo {step.name}"]() if f"undo {step.name}" in self.failing else super().undo(step, state)

    def send(self, send: Send[Trail]) -> None:
        self.sent.append(send)

    def reply(self, step: str, reply: Reply = OK, attempt: int | None = 1) -> "Run":
        self.feed(Replied(step, reply, attempt))
        return self

    def undo_reply(self, step: str, reply: Reply | None = None, attempt: int | None = 1) -> "Run":
        self.feed(Replied(step, reply or Compensated(), attempt, to_compensation=True))
        return self

    def due(self, purpose: Purpose, step: str | None = None, attempt: int | None = 1) -> "Run":
        timer = Timer(purpose, step, None if step is None else attempt)
        assert timer in self.timers
        self.feed(Due(timer))
        return self

    def stall(self, purpose: Purpose, step: str | None = None, attempt: int | None = 1) -> "Run":
        """The code of the saga raises on this timer until the budget is spent."""
        timer = Timer(purpose, step, None if step is None else attempt)
        assert timer in self.timers
        self.feed(Stalled(timer, "ValueError: no"))
        return self

    def deploy(self, step: str, *, retry: Retry) -> "Run":
        """A new version of the definition, in which only a budget is another one."""
        found = self.saga.find(step)
        assert found is not None
        found.retry = retry
        return self

    @property
    def happened(self) -> list[str]:
        return [f"{event.what.value} {event.step or ''}".strip() for event in self.log]

    @property
    def commands(self) -> list[str]:
        return [f"{'undo ' if send.compensates else ''}{send.step.name} {send.attempt}" for send in self.sent]

    @property
    def status(self) -> Status:
        return self.record.status

    def phase(self, step: str) -> Phase:
        return self.record.steps[step].phase


def order() -> Trip:
    return Trip().local("create", undo=True).remote("credit", undo=True, transient=(Busy,)).local("approve", pivot=True)


def test_a_saga_whose_replies_are_good_completes() -> None:
    run = order().start().reply("credit")
    assert run.happened == [
        "SagaStarted",
        "StepStarted create",
        "StepSucceeded create",
        "StepStarted credit",
        "StepSucceeded credit",
        "StepStarted approve",
        "StepSucceeded approve",
        "SagaCompleted",
    ]
    assert run.record.state == {"produced": {"credit": "p"}, "heard": ["create", "approve"], "skipped": []}


def test_a_failure_compensates_what_was_done_before() -> None:
    run = order().start().reply("credit", No())
    assert run.happened[4:] == [
        "StepFailed credit",
        "StepCompensating create",
        "StepCompensated create",
        "SagaCompensated",
    ]
    assert run.record.reason == "No"
    assert run.record.state["heard"] == ["create", "No"]


def test_a_failure_that_passes_is_tried_again() -> None:
    run = order().start().reply("credit", Busy())
    assert run.phase("credit") is Phase.RETRYING
    run.due(Purpose.RETRY, "credit").reply("credit", attempt=2)
    assert run.commands == ["credit 1", "credit 2"]
    assert run.status is Status.COMPLETED


def test_waits_between_attempts_grow() -> None:
    run = order().start()
    for attempt in (1, 2, 3):
        run.reply("credit", Busy(), attempt).due(Purpose.RETRY, "credit", attempt)
    assert [event.detail["retry_in_s"] for event in run.log if "retry_in_s" in event.detail] == [1.0, 2.0, 4.0]


def test_a_failure_that_does_not_pass_in_time_is_final() -> None:
    run = Trip().remote("credit", retry=TWICE, transient=(Busy,)).start()
    run.reply("credit", Busy()).due(Purpose.RETRY, "credit").reply("credit", Busy(), 2)
    assert run.status is Status.COMPENSATED


def test_a_reply_to_an_attempt_that_was_given_up_does_not_fail_the_next_one() -> None:
    run = order().start().due(Purpose.TIMEOUT, "credit").due(Purpose.RETRY, "credit")
    run.reply("credit", No(), attempt=1)
    assert run.phase("credit") is Phase.STARTED
    assert run.reply("credit", attempt=2).status is Status.COMPLETED


def test_a_success_of_an_attempt_that_was_given_up_completes_the_step() -> None:
    run = order().start().due(Purpose.TIMEOUT, "credit").reply("credit", attempt=1)
    assert run.status is Status.COMPLETED
    run.due(Purpose.RETRY, "credit")
    assert run.commands == ["credit 1"]


def test_a_step_without_an_answer_is_undone_too() -> None:
    run = Trip().remote("credit", undo=True, retry=ONCE).local("approve").start().due(Purpose.TIMEOUT, "credit")
    assert run.happened[2:] == ["StepTimedOut credit", "StepCompensating credit"]
    assert run.undo_reply("credit").status is Status.COMPENSATED


def test_what_a_late_success_produced_is_told_to_its_compensation_and_nobody_else() -> None:
    run = Trip().remote("credit", undo=True, retry=ONCE).local("approve").start().due(Purpose.TIMEOUT, "credit")
    run.reply("credit").due(Purpose.UNDO_TIMEOUT, "credit").due(Purpose.UNDO_RETRY, "credit")
    told = [send.command.product for send in run.sent if isinstance(send.command, Undoing)]
    assert told == [None, "p"]
    assert run.record.state["produced"] == {}


def test_a_late_success_is_noted_once() -> None:
    run = Trip().remote("credit", undo=True, retry=ONCE).local("approve").start().due(Purpose.TIMEOUT, "credit")
    run.reply("credit").reply("credit")
    assert run.happened.count("StepSucceeded credit") == 1


def test_a_failure_of_the_last_attempt_settles_those_that_nobody_answered() -> None:
    run = order().start().due(Purpose.TIMEOUT, "credit").due(Purpose.RETRY, "credit").reply("credit", No(), 2)
    assert run.status is Status.COMPENSATED
    assert run.commands == ["credit 1", "credit 2"]


def test_a_failure_of_nobody_knows_which_attempt_settles_nothing() -> None:
    run = order().start().due(Purpose.TIMEOUT, "credit").due(Purpose.RETRY, "credit").reply("credit", No(), None)
    assert run.commands == ["credit 1", "credit 2", "undo credit 1"]


def group() -> Trip:
    trip = Trip().local("create", undo=True)
    with trip.saga.parallel():
        trip.remote("credit", undo=True, retry=TWICE).remote("stock", undo=True, retry=TWICE)
    return trip.local("approve", pivot=True)


def test_steps_of_a_group_start_together_and_are_waited_for() -> None:
    run = group().start()
    assert run.commands == ["credit 1", "stock 1"]
    assert "StepStarted approve" not in run.reply("stock").happened
    assert run.reply("credit").status is Status.COMPLETED


def test_a_saga_that_turns_back_waits_for_a_reply_on_its_way() -> None:
    run = group().start().reply("credit", No())
    assert run.status is Status.COMPENSATING
    assert run.undone == []
    run.reply("stock")
    assert run.commands[-1] == "undo stock 1"
    assert run.sent[-1].command == Undoing(step="stock", product="p")
    assert run.undo_reply("stock").undone == ["create"]
    assert run.status is Status.COMPENSATED


def test_what_is_done_is_undone_while_others_are_waited_for() -> None:
    run = group().start().reply("stock").reply("credit", No())
    assert run.commands[-1] == "undo stock 1"


def test_nothing_is_tried_again_after_turning_back() -> None:
    run = group().start().due(Purpose.TIMEOUT, "stock").reply("credit", No())
    run.due(Purpose.RETRY, "stock")
    assert run.commands == ["credit 1", "stock 1", "undo stock 1"]


def test_a_failure_after_turning_back_needs_no_undo() -> None:
    run = group().start().reply("credit", No()).reply("stock", No())
    assert run.status is Status.COMPENSATED
    assert run.record.reason == "No"


def test_a_step_is_skipped_when_its_condition_does_not_hold_as_it_begins() -> None:
    run = Trip().remote("credit", undo=True).remote("stock", when=lambda state: "credit" not in state.produced).start()
    assert run.reply("credit").happened[-2:] == ["StepSkipped stock", "SagaCompleted"]


def bank() -> Trip:
    trip = Trip().local("create", undo=True).remote("credit", undo=True, retry=ONCE)
    return trip.or_else("bank", undo=True, retry=ONCE).local("approve", pivot=True)


def test_an_alternative_is_tried_when_a_step_has_failed() -> None:
    run = bank().start().reply("credit", No())
    assert run.commands == ["credit 1", "bank 1"]
    assert run.reply("bank").status is Status.COMPLETED


def test_what_was_given_up_for_an_alternative_is_undone_beside_it() -> None:
    run = bank().start().due(Purpose.TIMEOUT, "credit")
    assert run.commands == ["credit 1", "undo credit 1", "bank 1"]
    run.reply("bank")
    assert run.phase("approve") is Phase.DONE
    assert run.status is Status.RUNNING
    assert run.undo_reply("credit").status is Status.COMPLETED


def test_a_late_success_does_not_write_over_what_the_alternative_has_produced() -> None:
    trip = bank()
    run = trip.start().due(Purpose.TIMEOUT, "credit").reply("bank", Yes(product="of the bank")).reply("credit")
    assert run.record.state["produced"] == {"bank": "of the bank"}


def test_when_the_alternatives_fail_too_the_saga_turns_back() -> None:
    run = bank().start().reply("credit", No()).reply("bank", No())
    assert run.undone == ["create"]
    assert run.status is Status.COMPENSATED


def test_a_compensation_that_cannot_be_done_suspends_the_saga() -> None:
    trip = Trip().remote("credit", undo=True, compensation_retry=TWICE).remote("stock")
    run = trip.start().reply("credit").reply("stock", No())
    run.undo_reply("credit", No()).due(Purpose.UNDO_RETRY, "credit").due(Purpose.UNDO_TIMEOUT, "credit", 2)
    assert run.status is Status.SUSPENDED
    assert run.record.reason == "credit cannot be undone: no reply within 60 s"
    assert run.commands[-2:] == ["undo credit 1", "undo credit 2"]


def test_a_suspended_saga_goes_on_when_the_missing_reply_arrives() -> None:
    trip = Trip().remote("credit", undo=True, compensation_retry=ONCE).remote("stock")
    run = trip.start().reply("credit").reply("stock", No()).due(Purpose.UNDO_TIMEOUT, "credit")
    assert run.status is Status.SUSPENDED
    run.undo_reply("credit")
    assert (run.status, run.record.reason) == (Status.COMPENSATED, "No")


def test_a_failed_compensation_of_an_attempt_that_was_given_up_is_old_news() -> None:
    trip = Trip().remote("credit", undo=True, compensation_retry=TWICE).remote("stock")
    run = trip.start().reply("credit").reply("stock", No())
    run.due(Purpose.UNDO_TIMEOUT, "credit").due(Purpose.UNDO_RETRY, "credit").undo_reply("credit", No(), attempt=1)
    assert run.phase("credit") is Phase.UNDOING


def test_a_local_compensation_that_cannot_be_done_suspends_the_saga() -> None:
    run = order()
    trip = Trip().local("create", undo=True, compensation_retry=TWICE).remote("credit").start()
    trip.failing["undo create"] = lambda: UndoFailed("create", "ValueError: no")
    trip.reply("credit", No()).due(Purpose.UNDO_RETRY, "create")
    assert trip.record.reason == "create cannot be undone: ValueError: no"
    assert trip.status is Status.SUSPENDED
    assert run


def test_steps_after_the_pivot_are_tried_whatever_they_answer() -> None:
    run = Trip().local("approve", pivot=True).remote("stock", retry=TWICE).start()
    run.reply("stock", No()).due(Purpose.RETRY, "stock")
    assert run.commands == ["stock 1", "stock 2"]
    run.reply("stock", No(), 2)
    assert run.status is Status.SUSPENDED
    assert run.record.reason == "stock: No"
    assert run.reply("stock").status is Status.COMPLETED
    assert run.record.reason is None


def paid(timeout: str | None = None, **options: Any) -> Trip:
    return Trip(timeout=timeout).local("create", undo=True).remote("pay", pivot=True, **options).remote("ship")


def test_a_pivot_that_nobody_answers_suspends_the_saga() -> None:
    run = paid(retry=ONCE).start().due(Purpose.TIMEOUT, "pay")
    assert run.status is Status.SUSPENDED
    assert run.record.reason == "pay: no reply within 60 s"
    assert run.undone == []


@pytest.mark.parametrize(
    ("reply", "status"), [(OK, Status.RUNNING), (No(), Status.COMPENSATED), (Busy(), Status.COMPENSATED)]
)
def test_a_pivot_that_is_answered_at_last_says_where_to_go(reply: Reply, status: Status) -> None:
    run = paid(retry=ONCE).start().due(Purpose.TIMEOUT, "pay").reply("pay", reply)
    assert run.status is status


def test_a_pivot_whose_budget_is_raised_while_it_is_stuck_goes_on_when_its_failure_passes() -> None:
    run = paid(retry=ONCE, transient=(Busy,)).start().due(Purpose.TIMEOUT, "pay")
    assert run.status is Status.SUSPENDED
    run.deploy("pay", retry=TWICE)
    run.reply("pay", Busy())
    assert (run.status, run.record.reason) == (Status.RUNNING, None)
    run.due(Purpose.RETRY, "pay").reply("pay", attempt=2).reply("ship")
    assert run.status is Status.COMPLETED


def test_a_pivot_that_fails_after_an_attempt_without_an_answer_is_not_taken_for_lost() -> None:
    run = paid(retry=TWICE).start().due(Purpose.TIMEOUT, "pay").due(Purpose.RETRY, "pay").reply("pay", No(), 2)
    assert run.status is Status.COMPENSATED


def test_a_readonly_last_step_that_nobody_answers_is_no_reason_to_suspend() -> None:
    run = Trip().local("create", undo=True).remote("ask", readonly=True, retry=ONCE).start().due(Purpose.TIMEOUT, "ask")
    assert run.status is Status.COMPENSATED


def test_an_abort_undoes_what_was_done() -> None:
    run = order().start()
    run.feed(Aborted("changed my mind"))
    assert (run.status, run.record.reason) == (Status.COMPENSATING, "changed my mind")
    run.reply("credit").undo_reply("credit")
    assert run.undone == ["create"]
    assert run.status is Status.COMPENSATED


def test_nothing_is_aborted_while_the_pivot_is_under_way_or_done() -> None:
    run = paid().start()
    assert not run.feed(Aborted("too late"))
    run.reply("pay")
    assert not run.feed(Aborted("too late"))


def test_between_two_attempts_a_pivot_has_surely_not_happened() -> None:
    run = paid(transient=(Busy,)).start().reply("pay", Busy())
    assert run.feed(Aborted("in time"))
    assert run.status is Status.COMPENSATED


def test_between_two_attempts_without_an_answer_it_may_have() -> None:
    run = paid().start().due(Purpose.TIMEOUT, "pay")
    assert not run.feed(Aborted("who knows"))


def test_a_saga_that_takes_too_long_is_undone() -> None:
    trip = Trip(timeout="1h").local("create", undo=True).remote("credit")
    run = trip.start()
    assert not run.due(Purpose.SAGA_TIMEOUT).undone, "the pivot may have happened"
    trip = Trip(timeout="1h").local("create", undo=True).remote("credit", undo=True).local("approve")
    run = trip.start().due(Purpose.SAGA_TIMEOUT)
    assert run.record.reason == "not done within 3600 s"
    assert run.reply("credit", No()).status is Status.COMPENSATED


LATE_REASON = "not done within 3600 s"


def test_a_saga_whose_time_is_over_while_its_pivot_is_under_way_is_undone_as_soon_as_that_fails_for_now() -> None:
    run = paid(timeout="1h", transient=(Busy,)).start().due(Purpose.SAGA_TIMEOUT)
    assert (run.status, run.undone) == (Status.RUNNING, []), "the pivot may have happened"
    assert run.log[-1].reason == f"{LATE_REASON}: it is undone if pay turns out not to have happened"
    run.reply("pay", Busy())
    assert (run.status, run.record.reason) == (Status.COMPENSATED, LATE_REASON)
    assert run.happened[-5:] == [
        "StepFailed pay",
        "SagaTimedOut",
        "StepCompensating create",
        "StepCompensated create",
        "SagaCompensated",
    ]
    assert rebuild(run.log) == run.record


def test_a_saga_whose_time_is_over_asks_again_until_it_knows_that_its_pivot_has_not_happened() -> None:
    run = paid(timeout="1h", transient=(Busy,)).start().due(Purpose.TIMEOUT, "pay").due(Purpose.SAGA_TIMEOUT)
    run.due(Purpose.RETRY, "pay").due(Purpose.TIMEOUT, "pay", 2).due(Purpose.RETRY, "pay", 2)
    assert run.status is Status.RUNNING
    assert run.reply("pay", Busy(), 3).record.reason == LATE_REASON
    assert run.status is Status.COMPENSATED


def test_a_saga_whose_time_is_over_is_completed_when_its_pivot_has_happened() -> None:
    run = paid(timeout="1h").start().due(Purpose.SAGA_TIMEOUT).reply("pay").reply("ship")
    assert (run.status, run.record.reason) == (Status.COMPLETED, None)


def test_the_time_of_a_saga_is_over_once() -> None:
    run = paid(timeout="1h").start().due(Purpose.SAGA_TIMEOUT)
    assert not run.feed(Due(Timer(Purpose.SAGA_TIMEOUT)))
    assert not run.reply("pay").feed(Due(Timer(Purpose.SAGA_TIMEOUT)))


def test_a_suspended_saga_whose_time_is_over_is_undone_when_its_pivot_could_be_tried_again() -> None:
    run = paid(timeout="1h", retry=ONCE, transient=(Busy,)).start().due(Purpose.TIMEOUT, "pay")
    run.due(Purpose.SAGA_TIMEOUT).deploy("pay", retry=TWICE)
    assert run.status is Status.SUSPENDED
    assert run.reply("pay", Busy()).status is Status.COMPENSATED


def test_a_saga_that_has_lost_its_timeout_after_that_was_over_goes_on() -> None:
    run = paid(timeout="1h", transient=(Busy,)).start().due(Purpose.SAGA_TIMEOUT)
    run.saga.timeout_s = None
    run.reply("pay", Busy())
    assert run.phase("pay") is Phase.RETRYING


def test_a_timeout_that_the_definition_has_lost_since_does_nothing() -> None:
    run = order().start()
    assert not run.feed(Due(Timer(Purpose.SAGA_TIMEOUT)))


def test_an_abort_of_a_suspended_saga_is_done_when_it_goes_on() -> None:
    trip = Trip().remote("credit", undo=True, retry=ONCE, compensation_retry=ONCE)
    trip.or_else("bank", undo=True).remote("stock", undo=True).local("approve")
    run = trip.start().due(Purpose.TIMEOUT, "credit").due(Purpose.UNDO_TIMEOUT, "credit")
    assert run.status is Status.SUSPENDED
    run.feed(Aborted("enough"))
    assert (run.status, run.record.reason) == (Status.SUSPENDED, "credit cannot be undone: no reply within 60 s")
    run.undo_reply("credit")
    assert (run.status, run.record.reason) == (Status.COMPENSATING, "enough")
    assert run.reply("bank", No()).status is Status.COMPENSATED


def test_a_saga_waits_for_what_another_one_works_on() -> None:
    trip = Trip(lock=lambda state: ("order", "7"), on_locked="wait").remote("credit")
    trip.saga.seal()
    run = Run(trip.saga)
    run.feed(Held(Trail(), "order/7"))
    assert (run.status, run.sent) == (Status.WAITING, [])
    assert run.timers == [Timer(Purpose.LOCK_TIMEOUT)]
    run.feed(Due(Timer(Purpose.LOCK)))
    assert run.commands == ["credit 1"]
    assert not run.feed(Due(Timer(Purpose.LOCK_TIMEOUT)))


def test_a_local_step_that_raises_is_tried_again() -> None:
    trip = Trip().remote("credit", undo=True).local("approve", retry=TWICE).start()
    trip.failing["approve"] = lambda: ActionFailed("approve", "ValueError: no")
    trip.reply("credit")
    assert trip.phase("approve") is Phase.RETRYING
    trip.due(Purpose.RETRY, "approve")
    assert trip.undo_reply("credit").status is Status.COMPENSATED
    assert trip.record.reason == "ValueError: no"


def test_a_local_step_that_says_no_fails_at_once() -> None:
    trip = Trip().remote("credit", undo=True).local("approve", transient=(Busy,)).start()
    trip.failing["approve"] = lambda: ActionFailed("approve", "No", No())
    trip.reply("credit")
    assert trip.phase("approve") is Phase.FAILED
    assert trip.record.state["heard"] == [], "what it did to the state is gone too"


def test_local_steps_of_a_group_see_what_each_other_has_done() -> None:
    trip = Trip()
    with trip.saga.parallel():
        trip.local("one", undo=True).local("two", undo=True)
    assert trip.start().record.state["heard"] == ["one", "two"]


def test_a_step_without_handlers_is_completed_by_done() -> None:
    trip = Trip()
    trip.saga.step(to="there")(asking("tell"))
    assert trip.start().reply("tell", Done()).status is Status.COMPLETED


def test_done_is_no_answer_to_a_step_that_waits_for_what_was_produced() -> None:
    """A participant that says no more than that would have the saga go on without its product."""
    run = order().start()
    with pytest.raises(UnexpectedReply, match="step credit: nothing handles the reply Done"):
        run.reply("credit", Done())
    assert run.phase("credit") is Phase.STARTED
    assert run.reply("credit").status is Status.COMPLETED


def test_an_operation_that_was_cancelled_fails_its_step_for_good() -> None:
    run = order().start().reply("credit", OperationCancelled())
    assert run.status is Status.COMPENSATED


def test_the_answer_to_a_compensation_is_never_taken_for_one_to_the_action() -> None:
    """A participant may have lost the header that says which it is."""
    run = order().start().reply("credit", Compensated())
    assert run.phase("credit") is Phase.STARTED
    run.feed(Aborted("enough"))
    run.due(Purpose.TIMEOUT, "credit")
    assert run.reply("credit", Compensated()).status is Status.COMPENSATED


def test_a_reply_that_the_step_does_not_handle_is_refused() -> None:
    run = order().start()
    with pytest.raises(UnexpectedReply, match="saga trip, step credit: nothing handles the reply Stranger"):
        run.reply("credit", Stranger())
    assert run.phase("credit") is Phase.STARTED


def test_the_reply_is_kept_in_the_log() -> None:
    run = order().start().reply("credit")
    assert run.log[4].detail["reply"] == {"type": "Yes", "body": {"product": "p"}}


def test_deciding_changes_neither_the_record_nor_the_given_state() -> None:
    run, state = order().start(), Trail()
    before = load(run.saga, run.record)
    decide(run.saga, run.record, Replied("credit", OK))
    decide(run.saga, Record(), Started(state))
    assert load(run.saga, run.record) == before
    assert state == Trail()


@pytest.mark.parametrize(
    "stimulus",
    [
        Replied("nowhere", OK),
        Replied("approve", OK),
        Acted("create", Trail()),
        ActionFailed("create", "again"),
        UndoFailed("create", "again"),
        Due(Timer(Purpose.TIMEOUT, "credit", 7)),
        Due(Timer(Purpose.RETRY, "credit", 1)),
        Due(Timer(Purpose.LOCK)),
        Replied("credit", Compensated(), 1, to_compensation=True),
    ],
    ids=repr,
)
def test_what_is_stale_brings_about_nothing(stimulus: Stimulus) -> None:
    run = order().start()
    assert decide(run.saga, run.record, stimulus) == ()


def test_the_log_rebuilds_the_saga() -> None:
    run = bank().start().due(Purpose.TIMEOUT, "credit").reply("credit").due(Purpose.UNDO_TIMEOUT, "credit")
    assert rebuild(run.log) == run.record


def test_a_success_that_contradicts_a_failure_is_undone_all_the_same() -> None:
    """A participant that keeps no operations may do what an older attempt asked for, after it has refused the last."""
    run = group().start().reply("credit", No()).reply("credit")
    assert run.phase("credit") is Phase.UNDOING
    run.undo_reply("credit").reply("stock", No())
    assert run.status is Status.COMPENSATED


def test_an_old_timer_does_not_shorten_the_wait_for_a_later_attempt() -> None:
    run = order().start().reply("credit", Busy()).due(Purpose.RETRY, "credit").reply("credit", Busy(), 2)
    run.due(Purpose.RETRY, "credit", 1)
    assert run.phase("credit") is Phase.RETRYING


@pytest.mark.parametrize("purpose", [Purpose.UNDO_TIMEOUT, Purpose.UNDO_RETRY])
def test_an_old_timer_says_nothing_about_a_later_attempt_at_a_compensation(purpose: Purpose) -> None:
    run = Trip().remote("credit", undo=True).remote("stock").start().reply("credit").reply("stock", No())
    run.undo_reply("credit", No()).due(Purpose.UNDO_RETRY, "credit")
    if purpose is Purpose.UNDO_RETRY:
        run.undo_reply("credit", No(), 2)
    before = run.record
    assert run.due(purpose, "credit", 1).record == before


def test_an_operation_that_was_cancelled_stays_so_whatever_is_called_transient() -> None:
    trip = Trip()
    step = trip.saga.step(to="there", transient=(OperationCancelled,))(asking("ask"))
    step.on(OperationCancelled)(lambda state, reply: None)
    step.on(Yes)(lambda state, reply: None)
    assert trip.start().reply("ask", OperationCancelled()).status is Status.COMPENSATED


def test_a_success_that_is_repeated_while_the_step_is_undone_is_not_taken_for_a_late_one() -> None:
    run = Trip().remote("credit", undo=True).remote("stock").start().reply("credit").reply("stock", No())
    before = run.record
    assert run.phase("credit") is Phase.UNDOING
    assert run.reply("credit").record == before


def test_what_is_done_need_not_be_said_twice() -> None:
    run = order().start()
    assert run.record.progress() == {
        "steps": {"create": {"phase": "DONE", "attempt": 1}, "credit": {"phase": "STARTED", "attempt": 1}}
    }


def test_code_that_raises_on_a_timer_until_its_budget_is_spent_suspends_the_saga_with_the_reason() -> None:
    run = order().start().reply("credit", Busy()).stall(Purpose.RETRY, "credit")
    assert (run.status, run.record.stalled) == (Status.SUSPENDED, True)
    assert run.record.reason == "at the next attempt of credit: ValueError: no"
    assert run.happened[-1] == "SagaSuspended credit"
    assert (run.log[-1].attempt, run.log[-1].detail) == (1, {"timer": "retry"})
    assert run.phase("credit") is Phase.RETRYING
    assert rebuild(run.log) == run.record


@pytest.mark.parametrize("purpose", Purpose)
def test_the_reason_tells_what_was_to_happen(purpose: Purpose) -> None:
    run = order().start()
    step = None if purpose in (Purpose.SAGA_TIMEOUT, Purpose.LOCK, Purpose.LOCK_TIMEOUT) else "credit"
    (event,) = decide(run.saga, run.record, Stalled(Timer(purpose, step, 1), "ValueError: no"))
    assert str(event.reason).startswith("at ")
    assert str(event.reason).endswith(": ValueError: no")
    assert (step or "saga") in str(event.reason) or "lock" in str(event.reason)


def test_it_goes_on_when_the_timer_is_fired_again_and_nothing_raises() -> None:
    run = order().start().reply("credit", Busy()).stall(Purpose.RETRY, "credit").due(Purpose.RETRY, "credit")
    assert (run.status, run.record.stalled, run.record.reason) == (Status.RUNNING, False, None)
    assert run.commands == ["credit 1", "credit 2"]
    assert run.reply("credit", attempt=2).status is Status.COMPLETED


def test_it_goes_on_with_a_reply_that_arrives_after_all() -> None:
    run = order().start().due(Purpose.TIMEOUT, "credit").stall(Purpose.RETRY, "credit").reply("credit")
    assert (run.status, run.record.reason) == (Status.COMPLETED, None)


def test_the_reply_of_another_step_has_it_tried_once_more() -> None:
    run = group().start().due(Purpose.TIMEOUT, "credit").stall(Purpose.RETRY, "credit")
    assert run.held == [Timer(Purpose.RETRY, "credit", 1)]
    run.reply("stock")
    assert (run.status, run.held) == (Status.RUNNING, [])
    run.stall(Purpose.RETRY, "credit")
    assert run.status is Status.SUSPENDED


def test_it_can_be_aborted_and_is_undone() -> None:
    run = order().start().due(Purpose.TIMEOUT, "credit").stall(Purpose.RETRY, "credit")
    run.feed(Aborted("enough"))
    assert (run.status, run.record.reason) == (Status.COMPENSATING, "enough")
    assert run.undo_reply("credit").status is Status.COMPENSATED


def test_the_timeout_of_the_whole_undoes_it() -> None:
    trip = Trip(timeout="1h").local("create", undo=True).remote("credit", undo=True, transient=(Busy,)).local("approve")
    run = trip.start().reply("credit", Busy()).stall(Purpose.RETRY, "credit").due(Purpose.SAGA_TIMEOUT)
    assert (run.status, run.record.reason) == (Status.COMPENSATED, "not done within 3600 s")


def test_what_cannot_be_undone_because_of_its_code_is_undone_when_that_is_mended() -> None:
    run = Trip().remote("credit", undo=True).remote("stock").start().reply("credit").reply("stock", No())
    run.undo_reply("credit", No()).stall(Purpose.UNDO_RETRY, "credit")
    assert run.record.reason == "at the next attempt to undo credit: ValueError: no"
    assert not run.feed(Aborted("enough")), "it is being undone already"
    run.due(Purpose.UNDO_RETRY, "credit").undo_reply("credit", attempt=2)
    assert (run.status, run.record.reason) == (Status.COMPENSATED, "No")


def test_a_step_that_is_stuck_besides_keeps_it_suspended() -> None:
    with (trip := Trip().local("approve", pivot=True)).saga.parallel():
        trip.remote("stock", retry=ONCE).remote("mail", retry=TWICE)
    run = trip.start().due(Purpose.TIMEOUT, "mail").due(Purpose.TIMEOUT, "stock").stall(Purpose.RETRY, "mail")
    run.due(Purpose.RETRY, "mail")
    assert (run.status, run.record.stalled) == (Status.SUSPENDED, False)
    run.reply("stock")
    assert run.status is Status.RUNNING
    assert run.reply("mail", attempt=2).status is Status.COMPLETED


def test_two_timers_that_raise_are_both_tried_again() -> None:
    run = group().start().due(Purpose.TIMEOUT, "credit").due(Purpose.TIMEOUT, "stock")
    run.stall(Purpose.RETRY, "credit").stall(Purpose.RETRY, "stock")
    assert len(run.held) == 2
    run.due(Purpose.RETRY, "stock")
    assert (run.status, run.held) == (Status.RUNNING, [])
    assert run.timers.count(Timer(Purpose.RETRY, "credit", 1)) == 1


@pytest.mark.parametrize(
    ("purpose", "status"), [(Purpose.LOCK, Status.RUNNING), (Purpose.LOCK_TIMEOUT, Status.COMPENSATED)]
)
def test_one_that_raised_when_it_was_let_in_begins_later_or_gives_up(purpose: Purpose, status: Status) -> None:
    trip = Trip(lock=lambda state: ("order", "7"), on_locked="wait").remote("credit")
    trip.saga.seal()
    run = Run(trip.saga)
    run.feed(Held(Trail(), "order/7"))
    run.timers.append(Timer(Purpose.LOCK))
    run.stall(Purpose.LOCK)
    assert (run.status, run.sent) == (Status.SUSPENDED, [])
    assert run.due(purpose).status is status
