"""Definitions that cannot work are refused, with the saga and the step named."""

import pytest
from pydantic import BaseModel

from relay.messaging import Command, Failure, Reply, Service, Transaction
from relay.saga import DefinitionError, Orchestrator, Saga


class State(BaseModel):
    note: str = ""


class Ask(Command): ...


class Yes(Reply): ...


class No(Failure): ...


async def work(state: State, tx: Transaction) -> None: ...


async def more_work(state: State, tx: Transaction) -> None: ...


async def undo(state: State, tx: Transaction) -> None: ...


def ask(state: State) -> Ask:
    return Ask()


def ask_again(state: State) -> Ask:
    return Ask()


def note(state: State, reply: Reply) -> None: ...


@pytest.fixture
def trip() -> Saga[State]:
    return Saga("trip", state=State)


def test_a_saga_without_steps_is_refused(trip: Saga[State]) -> None:
    with pytest.raises(DefinitionError, match="saga trip has no steps"):
        trip.seal()


def test_two_steps_of_one_name_are_refused(trip: Saga[State]) -> None:
    trip.local()(work)
    with pytest.raises(DefinitionError, match="saga trip, step work: there are two steps of that name"):
        trip.local()(work)


def test_a_remote_step_without_a_reply_that_completes_it_is_refused(trip: Saga[State]) -> None:
    trip.step(to="hotel")(ask).on(No)(note)
    with pytest.raises(DefinitionError, match="saga trip, step ask: no reply completes it"):
        trip.seal()


def test_a_reply_that_is_handled_twice_is_refused(trip: Saga[State]) -> None:
    step = trip.step(to="hotel")(ask)
    step.on(Yes)(note)
    with pytest.raises(DefinitionError, match="saga trip, step ask: it handles Yes twice"):
        step.on(Yes)(note)


def test_a_second_compensation_is_refused(trip: Saga[State]) -> None:
    step = trip.local()(work)
    step.compensate(undo)
    with pytest.raises(DefinitionError, match="saga trip, step work: it has two compensations"):
        step.compensate(undo)


def test_a_compensation_of_the_pivot_is_refused(trip: Saga[State]) -> None:
    trip.local(pivot=True)(work).compensate(undo)
    with pytest.raises(DefinitionError, match="saga trip, step work: it has a compensation"):
        trip.seal()


def test_a_compensation_after_the_pivot_is_refused(trip: Saga[State]) -> None:
    trip.local(pivot=True)(work)
    trip.local()(more_work).compensate(undo)
    with pytest.raises(DefinitionError, match="saga trip, step more_work: it has a compensation"):
        trip.seal()


def test_a_second_pivot_is_refused(trip: Saga[State]) -> None:
    trip.local(pivot=True)(work)
    trip.local(pivot=True)(more_work)
    with pytest.raises(DefinitionError, match="saga trip, step more_work: it is a second pivot"):
        trip.seal()


def test_a_step_that_may_fail_after_the_pivot_is_refused(trip: Saga[State]) -> None:
    trip.local(pivot=True)(work)
    step = trip.step(to="hotel")(ask)
    step.on(Yes)(note)
    step.on(No)(note)
    with pytest.raises(DefinitionError, match="saga trip, step ask: a reply may fail it"):
        trip.seal()


def test_a_local_step_without_a_compensation_before_one_that_may_fail_is_refused(trip: Saga[State]) -> None:
    trip.local()(work)
    step = trip.step(to="hotel")(ask)
    step.on(Yes)(note)
    step.on(No)(note)
    with pytest.raises(DefinitionError, match=r"saga trip, step work: ask may fail after it.*no compensation"):
        trip.seal()


def test_a_remote_step_before_one_that_may_fail_is_refused_for_now(trip: Saga[State]) -> None:
    trip.step(to="hotel")(ask).on(Yes)(note)
    step = trip.step(to="airline")(ask_again)
    step.on(Yes)(note)
    step.on(No)(note)
    with pytest.raises(DefinitionError, match="saga trip, step ask: ask_again may fail after it"):
        trip.seal()


def test_a_definition_in_use_cannot_change(trip: Saga[State]) -> None:
    trip.local()(work)
    Orchestrator(Service("travel"), trip)
    with pytest.raises(DefinitionError, match="saga trip is in use"):
        trip.local()(more_work)


def test_two_sagas_of_one_name_are_refused(trip: Saga[State]) -> None:
    trip.local()(work)
    with pytest.raises(DefinitionError, match="two sagas named trip"):
        Orchestrator(Service("travel"), trip, trip)


def test_sagas_may_share_a_reply(trip: Saga[State]) -> None:
    trip.step(to="hotel")(ask).on(Yes)(note)
    other = Saga("other", state=State)
    other.step(to="hotel")(ask).on(Yes)(note)
    Orchestrator(Service("travel"), trip, other)


def test_two_replies_of_one_name_are_refused(trip: Saga[State]) -> None:
    trip.step(to="hotel")(ask).on(Yes)(note)
    other = Saga("other", state=State)
    other.step(to="hotel")(ask).on(type("Yes", (Reply,), {}))(note)
    with pytest.raises(DefinitionError, match="saga other, step ask: two different types of reply are named Yes"):
        Orchestrator(Service("travel"), trip, other)
