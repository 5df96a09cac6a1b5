"""Definitions that cannot work are refused, with the saga and the step named."""

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from relay.messaging import Command, Done, Failure, OperationCancelled, Reply, Retry, Transaction
from relay.saga.definition import DefinitionError, Saga
from relay.saga.step import Nature


class State(BaseModel):
    note: str = ""


class Yes(Reply): ...


class No(Failure): ...


class Strange(Reply): ...


class Ask(Command): ...


class AskPlainly(Command):
    replies = (Yes, No)


class Booked(Reply): ...


class AskForABed(Command):
    replies = (Booked, No)


class Tell(Command):
    replies = (Done, No)


class TellOrSayYes(Command):
    replies = (Done, Yes)


class Refuse(Command):
    replies = (No,)


async def work(state: State, tx: Transaction) -> None: ...


async def more_work(state: State, tx: Transaction) -> None: ...


async def undo(state: State, tx: Transaction) -> None: ...


def ask(state: State) -> Ask:
    return Ask()


def ask_again(state: State) -> Ask:
    return Ask()


def ask_plainly(state: State) -> AskPlainly:
    return AskPlainly()


def ask_either(state: State) -> AskPlainly | AskForABed:
    return AskForABed() if state.note else AskPlainly()


def ask_freely(state: State) -> "AskPlainly | Ask":
    return Ask()


def tell(state: State) -> Tell:
    return Tell()


def tell_or_say_yes(state: State) -> TellOrSayYes:
    return TellOrSayYes()


def refuse(state: State) -> Refuse:
    return Refuse()


def take_back(state: State) -> Ask:
    return Ask()


def action(state: State) -> Ask:
    return Ask()


def note(state: State, reply: Reply) -> None: ...


Build = Callable[[Saga[State]], Any]


def no_steps(trip: Saga[State]) -> None: ...


def two_of_one_name(trip: Saga[State]) -> None:
    trip.local(readonly=True)(work)
    trip.local()(work)


def an_alternative_of_another_steps_name(trip: Saga[State]) -> None:
    trip.local(readonly=True)(work)
    trip.step(to="hotel")(ask).or_else(to="hotel")(named("work", ask_again))


def a_handler_twice(trip: Saga[State]) -> None:
    step = trip.step(to="hotel")(ask)
    step.on(Yes)(note)
    step.on(Yes)(note)


def two_compensations(trip: Saga[State]) -> None:
    step = trip.local()(work)
    step.compensate(undo)
    step.compensate(undo)


def two_remote_compensations(trip: Saga[State]) -> None:
    step = trip.step(to="hotel")(ask)
    step.compensate(take_back)
    step.compensate(take_back)


def two_pivots(trip: Saga[State]) -> None:
    trip.local(pivot=True)(work)
    trip.local(pivot=True)(more_work)


def a_pivot_beside_another_step(trip: Saga[State]) -> None:
    with trip.parallel():
        trip.local(pivot=True)(work)
        trip.local()(more_work).compensate(undo)


def a_pivot_with_an_alternative(trip: Saga[State]) -> None:
    trip.step(to="hotel", pivot=True)(ask).or_else(to="inn")(ask_again)


def a_pivot_with_a_condition(trip: Saga[State]) -> None:
    trip.local(pivot=True, when=lambda state: True)(work)


def a_pivot_that_is_undone(trip: Saga[State]) -> None:
    trip.local(pivot=True)(work).compensate(undo)


def a_compensable_step_after_the_pivot(trip: Saga[State]) -> None:
    trip.local(pivot=True)(work)
    trip.local()(more_work).compensate(undo)


def a_remote_compensable_step_after_the_pivot(trip: Saga[State]) -> None:
    trip.local(pivot=True)(work)
    trip.step(to="hotel")(ask).compensate(take_back)


def a_local_step_without_an_undo(trip: Saga[State]) -> None:
    trip.local()(work)
    trip.local(pivot=True)(more_work)


def a_remote_step_without_an_undo(trip: Saga[State]) -> None:
    trip.step(to="hotel")(ask)
    trip.local()(work)


def a_parallel_step_without_an_undo(trip: Saga[State]) -> None:
    with trip.parallel():
        trip.local()(work).compensate(undo)
        trip.step(to="hotel")(ask)


def an_alternative_without_an_undo(trip: Saga[State]) -> None:
    step = trip.step(to="hotel")(ask)
    step.compensate(take_back)
    step.or_else(to="inn")(ask_again)
    trip.local(pivot=True)(work)


def a_given_up_step_without_an_undo_after_the_pivot(trip: Saga[State]) -> None:
    trip.local(pivot=True)(work)
    trip.step(to="hotel")(ask).or_else(to="inn")(ask_again)


def a_readonly_step_with_an_undo(trip: Saga[State]) -> None:
    trip.local(readonly=True)(work).compensate(undo)


def an_alternative_called_action(trip: Saga[State]) -> None:
    step = trip.step(to="hotel")(ask)
    step.compensate(take_back)
    step.or_else(to="inn")(action).compensate(take_back)


def a_reply_nobody_handles(trip: Saga[State]) -> None:
    trip.step(to="hotel")(ask_plainly).on(Yes)(note)


def a_reply_that_never_comes(trip: Saga[State]) -> None:
    step = trip.step(to="hotel")(ask_plainly)
    step.on(Yes)(note)
    step.on(No)(note)
    step.on(Strange)(note)


def another_reply_of_that_name(trip: Saga[State]) -> None:
    step = trip.step(to="hotel")(ask_plainly)
    step.on(No)(note)
    step.on(type("Yes", (Reply,), {}))(note)


def only_failures(trip: Saga[State]) -> None:
    trip.step(to="hotel")(ask).on(No)(note)


def only_failures_are_declared(trip: Saga[State]) -> None:
    trip.step(to="hotel")(refuse).on(No)(note)


def transient_but_not_handled(trip: Saga[State]) -> None:
    trip.step(to="hotel", transient=(No,))(ask).on(Yes)(note)


def an_order_that_leaves_one_out(trip: Saga[State]) -> None:
    trip.local()(work).compensate(undo)
    step = trip.local()(more_work)
    step.compensate(undo)
    trip.compensate_in_order(step)


def an_order_that_leaves_an_alternative_out(trip: Saga[State]) -> None:
    """The step is readonly, but what is tried instead of it is not."""
    first = trip.local()(work)
    first.compensate(undo)
    trip.step(to="hotel", readonly=True)(ask).or_else(to="inn")(ask_again).compensate(take_back)
    trip.compensate_in_order(first)
    trip.local(pivot=True)(more_work)


def an_order_that_names_one_twice(trip: Saga[State]) -> None:
    step = trip.local()(work)
    step.compensate(undo)
    trip.compensate_in_order(step, (step,))


def an_order_that_names_a_stranger(trip: Saga[State]) -> None:
    stranger = Saga("other", state=State).local()(more_work)
    stranger.compensate(undo)
    trip.local()(work).compensate(undo)
    trip.compensate_in_order(stranger)


def an_order_that_names_an_alternative(trip: Saga[State]) -> None:
    step = trip.step(to="hotel")(ask)
    step.compensate(take_back)
    other = step.or_else(to="inn")(ask_again)
    other.compensate(take_back)
    trip.compensate_in_order(step, other)


def an_order_that_names_what_is_never_undone(trip: Saga[State]) -> None:
    step = trip.local(readonly=True)(work)
    trip.local(pivot=True)(more_work)
    trip.compensate_in_order(step)


def an_order_that_goes_beyond_the_pivot(trip: Saga[State]) -> None:
    trip.local(pivot=True)(work)
    step = trip.step(to="hotel")(ask)
    step.compensate(take_back)
    step.or_else(to="inn")(ask_again)
    trip.compensate_in_order(step)


def two_orders(trip: Saga[State]) -> None:
    step = trip.local()(work)
    trip.compensate_in_order(step)
    trip.compensate_in_order(step)


def a_group_within_a_group(trip: Saga[State]) -> None:
    with trip.parallel(), trip.parallel():
        trip.local()(work)


def a_timeout_that_is_none(trip: Saga[State]) -> None:
    trip.step(to="hotel", timeout="soon")(ask)


def a_timeout_of_nothing(trip: Saga[State]) -> None:
    trip.step(to="hotel", timeout="0s")(ask)


def a_local_timeout_that_is_none(trip: Saga[State]) -> None:
    trip.local(timeout="soon")(work)


def a_local_timeout_of_nothing(trip: Saga[State]) -> None:
    trip.local(timeout="0s")(work)


def a_command_that_nobody_declares(trip: Saga[State]) -> None:
    trip.step(to="hotel")(named("ask", lambda state: Ask(), returns=None))


def a_command_of_any_kind(trip: Saga[State]) -> None:
    trip.step(to="hotel")(named("ask", ask, returns=Command))


def a_command_by_a_name_that_its_module_does_not_know(trip: Saga[State]) -> None:
    class Inner(Command): ...

    trip.step(to="hotel")(named("ask", lambda state: Inner(), returns="Inner"))


def a_command_or_something_else(trip: Saga[State]) -> None:
    trip.step(to="hotel")(named("ask", ask, returns=Ask | None))


def an_alternative_whose_command_nobody_declares(trip: Saga[State]) -> None:
    step = trip.step(to="hotel")(ask)
    step.compensate(take_back)
    step.or_else(to="inn")(named("ask_inn", ask, returns=None)).compensate(take_back)


def an_undoing_command_that_nobody_declares(trip: Saga[State]) -> None:
    trip.step(to="hotel")(ask).compensate(lambda state: Ask())


def a_reply_of_the_second_command_that_nobody_handles(trip: Saga[State]) -> None:
    step = trip.step(to="hotel")(ask_either)
    step.on(Yes)(note)
    step.on(No)(note)


def a_reply_that_neither_command_declares(trip: Saga[State]) -> None:
    step = trip.step(to="hotel")(ask_either)
    for reply in (Yes, No, Booked, Strange):
        step.on(reply)(note)


def named(name: str, function: Any, returns: Any = Ask) -> Any:
    def copy(state: State) -> Any:
        return function(state)

    copy.__name__ = name
    copy.__annotations__["return"] = returns
    if returns is None:
        del copy.__annotations__["return"]
    return copy


REFUSED: dict[Build, str] = {
    no_steps: "saga trip has no steps",
    two_of_one_name: "saga trip, step work: there are two steps of that name",
    an_alternative_of_another_steps_name: "saga trip, step work: there are two steps of that name",
    a_handler_twice: "saga trip, step ask: it handles Yes twice",
    two_compensations: "saga trip, step work: it has two compensations",
    two_remote_compensations: "saga trip, step ask: it has two compensations",
    two_pivots: "saga trip, step more_work: it is a second pivot",
    a_pivot_beside_another_step: "saga trip, step work: a pivot has no step beside it",
    a_pivot_with_an_alternative: "saga trip, step ask: a pivot has no alternatives",
    a_pivot_with_a_condition: "saga trip, step work: a pivot is never skipped",
    a_pivot_that_is_undone: "saga trip, step work: it has a compensation, but nothing is undone from the pivot on",
    a_compensable_step_after_the_pivot: "saga trip, step more_work: it has a compensation, but nothing is undone",
    a_remote_compensable_step_after_the_pivot: "saga trip, step ask: it has a compensation, but nothing is undone",
    a_local_step_without_an_undo: "saga trip, step work: it has no compensation, .* add @work.compensate",
    a_remote_step_without_an_undo: "saga trip, step ask: it has no compensation",
    a_parallel_step_without_an_undo: "saga trip, step ask: it has no compensation",
    an_alternative_without_an_undo: "saga trip, step ask_again: it has no compensation",
    a_given_up_step_without_an_undo_after_the_pivot: "saga trip, step ask: another one is tried after it",
    a_readonly_step_with_an_undo: "saga trip, step work: it is readonly",
    an_alternative_called_action: "saga trip, step action: an alternative cannot be called that",
    a_reply_nobody_handles: r"saga trip, step ask_plainly: nobody handles its reply No: add @ask_plainly.on\(No\)",
    a_reply_that_never_comes: "saga trip, step ask_plainly: it handles Strange, which is none of the replies",
    another_reply_of_that_name: "saga trip, step ask_plainly: it handles Yes, which is none of the replies",
    only_failures: "saga trip, step ask: no reply completes it",
    only_failures_are_declared: "saga trip, step refuse: no reply completes it",
    transient_but_not_handled: "saga trip, step ask: No is called transient, but nobody handles it",
    an_order_that_leaves_one_out: "saga trip, step work: the order of compensation leaves it out",
    an_order_that_leaves_an_alternative_out: "saga trip, step ask: the order of compensation leaves it out",
    an_order_that_names_one_twice: "saga trip, step work: the order of compensation names it twice",
    an_order_that_names_a_stranger: "saga trip, step more_work: .* but it is no step of this saga",
    an_order_that_names_an_alternative: "saga trip, step ask_again: .* but it belongs to ask",
    an_order_that_names_what_is_never_undone: "saga trip, step work: .* but it has no compensation",
    an_order_that_goes_beyond_the_pivot: "saga trip, step ask: .* but nothing is undone from the pivot on",
    two_orders: "saga trip: the order of compensation is given twice",
    a_group_within_a_group: "saga trip: a parallel group within another one",
    a_command_that_nobody_declares: "saga trip, step ask: its command cannot be told: .* like `-> ReserveRoom`",
    a_command_of_any_kind: "saga trip, step ask: its command cannot be told",
    a_command_by_a_name_that_its_module_does_not_know: "saga trip, step ask: its command cannot be told",
    a_command_or_something_else: "saga trip, step ask: its command cannot be told",
    an_alternative_whose_command_nobody_declares: "saga trip, step ask_inn: its command cannot be told",
    an_undoing_command_that_nobody_declares: "saga trip, step ask: the command that undoes it cannot be told",
    a_reply_of_the_second_command_that_nobody_handles: "saga trip, step ask_either: nobody handles its reply Booked",
    a_reply_that_neither_command_declares: "it handles Strange, .* of AskPlainly or AskForABed",
    a_timeout_that_is_none: "saga trip, step ask: its timeout is 'soon'",
    a_timeout_of_nothing: "saga trip, step ask: its timeout is 0",
    a_local_timeout_that_is_none: "saga trip, step work: its timeout is 'soon'",
    a_local_timeout_of_nothing: "saga trip, step work: its timeout is 0",
}


@pytest.fixture
def trip() -> Saga[State]:
    return Saga("trip", state=State)


@pytest.mark.parametrize("build", REFUSED, ids=lambda build: build.__name__)
def test_refused(trip: Saga[State], build: Build) -> None:
    def define() -> None:
        build(trip)
        trip.seal()

    with pytest.raises(DefinitionError, match=REFUSED[build]):
        define()


@pytest.mark.parametrize("option", ["timeout", "lock_timeout"])
def test_a_time_that_is_none_is_refused(option: str) -> None:
    times: dict[str, Any] = {option: "soon"}
    with pytest.raises(DefinitionError, match=f"saga trip: its {option} is 'soon'"):
        Saga("trip", state=State, **times)


def test_a_definition_in_use_cannot_change(trip: Saga[State]) -> None:
    step = trip.step(to="hotel")(ask)
    trip.seal()
    trip.seal()
    for change in (
        lambda: trip.local()(more_work),
        lambda: step.on(Yes)(note),
        lambda: step.compensate(take_back),
        lambda: step.or_else(to="inn")(ask_again),
        lambda: trip.compensate_in_order(step),
        trip.parallel().__enter__,
    ):
        with pytest.raises(DefinitionError, match="saga trip is in use"):
            change()


def test_what_was_refused_can_be_mended(trip: Saga[State]) -> None:
    step = trip.local()(work)
    trip.local(pivot=True)(more_work)
    with pytest.raises(DefinitionError):
        trip.seal()
    step.compensate(undo)
    trip.seal()


def test_the_last_step_is_the_pivot_when_nothing_undoes_it(trip: Saga[State]) -> None:
    first = trip.local()(work)
    first.compensate(undo)
    last = trip.step(to="hotel")(ask)
    trip.seal()
    assert (trip.nature(first), trip.nature(last)) == (Nature.COMPENSABLE, Nature.PIVOT)


def test_without_a_pivot_everything_can_be_undone(trip: Saga[State]) -> None:
    last = trip.step(to="hotel")(ask)
    last.compensate(take_back)
    trip.seal()
    assert trip.pivot_stage is None
    assert trip.nature(last) is Nature.COMPENSABLE


def test_every_step_has_a_timeout_a_remote_one_a_longer_one(trip: Saga[State]) -> None:
    """A local step has its saga locked meanwhile. PostgreSQL is told to bear idle transactions for a minute."""
    assert (trip.step(to="hotel")(ask).timeout_s, trip.local()(work).timeout_s) == (60, 10)
    assert trip.local(timeout="90s")(more_work).timeout_s == 90


def test_steps_after_the_pivot_are_retriable(trip: Saga[State]) -> None:
    pivot = trip.local(pivot=True)(work)
    after = trip.step(to="hotel")(ask)
    trip.seal()
    assert (trip.nature(pivot), trip.nature(after)) == (Nature.PIVOT, Nature.RETRIABLE)


def test_an_alternative_has_the_nature_of_its_step(trip: Saga[State]) -> None:
    step = trip.step(to="hotel")(ask)
    step.compensate(take_back)
    other = step.or_else(to="inn")(ask_again)
    other.compensate(take_back)
    trip.seal()
    assert trip.nature(other) is Nature.COMPENSABLE
    assert trip.steps == (step, other)
    assert (step.following(), other.following()) == (other, None)


def test_replies_of_the_library_need_no_handler(trip: Saga[State]) -> None:
    trip.step(to="hotel")(tell).on(No)(note)
    trip.seal()


def test_a_command_that_declares_no_replies_may_have_any(trip: Saga[State]) -> None:
    step = trip.step(to="hotel")(ask)
    step.on(Strange)(note)
    trip.seal()
    assert step.answer("Strange") is Strange
    assert step.answer("OperationCancelled") is OperationCancelled
    assert step.answer("Yes") is None


def test_a_step_may_ask_for_one_thing_or_another(trip: Saga[State]) -> None:
    step = trip.step(to="hotel")(ask_either)
    for reply in (Yes, No, Booked):
        step.on(reply)(note)
    step.compensate(ask_either)
    trip.seal()
    assert (step.answer("Yes"), step.answer("Booked"), step.answer("Done")) == (Yes, Booked, None)
    assert (step.compensation_answer("Yes"), step.compensation_answer("Booked")) == (Yes, Booked)


def test_a_command_that_declares_no_replies_may_have_any_also_beside_one_that_does(trip: Saga[State]) -> None:
    step = trip.step(to="hotel")(ask_freely)
    for reply in (Yes, No, Strange):
        step.on(reply)(note)
    trip.seal()
    assert step.answer("Strange") is Strange


def test_a_command_may_be_defined_after_the_function_that_makes_it(trip: Saga[State]) -> None:
    """What it is called is looked up when the definition is whole."""
    try:
        step = trip.step(to="hotel")(named("ask", ask, returns="Later"))
        step.on(Yes)(note)
        globals()["Later"] = type("Later", (Command,), {"replies": (Yes,)})
        trip.seal()
        assert step.answer("Yes") is Yes
    finally:
        globals().pop("Later", None)


def test_done_completes_a_step_that_handles_no_other_success(trip: Saga[State]) -> None:
    step = trip.step(to="hotel")(ask)
    step.on(No)(note)
    assert step.answer("Done") is Done
    step.on(Yes)(note)
    assert step.answer("Done") is None
    step.on(Done)(note)
    assert step.answer("Done") is Done


def test_done_completes_a_step_whose_command_declares_it_beside_others(trip: Saga[State]) -> None:
    step = trip.step(to="hotel")(tell_or_say_yes)
    step.on(Yes)(note)
    assert step.answer("Done") is Done


def test_the_command_that_undoes_says_what_it_is_answered_with(trip: Saga[State]) -> None:
    step = trip.step(to="hotel")(ask)
    step.compensate(ask_plainly)
    assert step.compensation_answer("No") is No
    assert step.compensation_answer("Compensated")
    assert step.compensation_answer("Strange") is None


class Undoing:
    """Orders of compensation, by name."""

    def __init__(self, **options: Any) -> None:
        self.saga = Saga("trip", state=State, **options)
        self.first = self.saga.local()(work)
        self.first.compensate(undo)
        with self.saga.parallel():
            self.second = self.saga.step(to="hotel")(ask)
            self.second.compensate(take_back)
            self.second.or_else(to="inn")(ask_again).compensate(take_back)
            self.third = self.saga.local()(more_work)
            self.third.compensate(undo)

    @property
    def order(self) -> list[set[str]]:
        self.saga.seal()
        return [{step.name for step in stage} for stage in self.saga.undo_stages]


def test_compensation_is_in_reverse() -> None:
    assert Undoing().order == [{"ask", "ask_again", "more_work"}, {"work"}]


def test_compensation_may_be_all_at_once() -> None:
    assert Undoing(compensation="parallel").order == [{"ask", "ask_again", "more_work", "work"}]


def test_compensation_may_have_an_order_of_its_own() -> None:
    trip = Undoing()
    trip.saga.compensate_in_order(trip.first, (trip.second, trip.third))
    assert trip.order == [{"work"}, {"ask", "ask_again", "more_work"}]


def test_more_forgiving_than_usual_by_default(trip: Saga[State]) -> None:
    step = trip.step(to="hotel")(ask)
    assert step.retry == Retry(attempts=8, backoff="1s..1m")
    assert step.compensation_retry.attempts > step.retry.attempts
