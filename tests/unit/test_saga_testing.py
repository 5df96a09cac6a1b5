"""relay.saga.testing: stories that hold pass, and those that do not say why."""

import re
from decimal import Decimal
from pathlib import Path

import pytest
from pydantic import BaseModel

from relay.messaging import Command, Failure, Reply, Retry, Transaction
from relay.saga import Saga, Status, TookTooLong
from relay.saga.testing import FakeClock, Scenario, given
from relay.saga.turn import REASON_MAX_CHARS
from tests.support.snippets import fenced, python_of


class OrderState(BaseModel):
    order_id: int = 7
    total: Decimal = Decimal("12.50")
    lines: int = 0
    reason: str | None = None


class CreditReserved(Reply): ...


class CreditLimitExceeded(Failure):
    limit: Decimal = Decimal("10.00")


class Busy(Failure): ...


class ReserveCredit(Command):
    replies = (CreditReserved, CreditLimitExceeded, Busy)

    order_id: int
    amount: Decimal


class ReleaseCredit(Command):
    order_id: int


class ReserveStock(Command):
    order_id: int


class ReleaseStock(Command):
    order_id: int


class ConfirmStock(Command):
    order_id: int


async def never(state: OrderState, tx: Transaction) -> None:
    raise AssertionError("no local step runs without a database")


def define() -> Saga[OrderState]:
    saga = Saga("create_order", state=OrderState, timeout="1h", lock=lambda s: ("order", s.order_id), on_locked="wait")

    @saga.local()
    async def create(state: OrderState, tx: Transaction) -> Failure | None:
        return await never(state, tx)

    @create.compensate
    async def reject(state: OrderState, tx: Transaction) -> None:
        await never(state, tx)

    with saga.parallel():

        @saga.step(to="customers", timeout="30s", transient=(Busy,), retry=Retry(attempts=3, backoff="1s..1m"))
        def reserve_credit(state: OrderState) -> ReserveCredit:
            return ReserveCredit(order_id=state.order_id, amount=state.total)

        @saga.step(to="inventory", when=lambda state: state.lines > 0)
        def reserve_stock(state: OrderState) -> ReserveStock:
            return ReserveStock(order_id=state.order_id)

    @reserve_credit.on(CreditReserved)
    def reserved(state: OrderState, reply: CreditReserved) -> None: ...

    @reserve_credit.on(CreditLimitExceeded)
    def refused(state: OrderState, reply: CreditLimitExceeded) -> None:
        state.reason = f"no more than {reply.limit}"

    @reserve_credit.on(Busy)
    def busy(state: OrderState, reply: Busy) -> None: ...

    @reserve_credit.compensate
    def release_credit(state: OrderState) -> ReleaseCredit:
        return ReleaseCredit(order_id=state.order_id)

    @reserve_stock.compensate
    def release_stock(state: OrderState) -> ReleaseStock:
        return ReleaseStock(order_id=state.order_id)

    @saga.local(pivot=True, retry=Retry(attempts=2, backoff="1s..1m"))
    async def approve(state: OrderState, tx: Transaction) -> None:
        await never(state, tx)

    @saga.step(to="inventory", when=lambda state: state.lines > 0, retry=Retry(attempts=2, backoff="1s..1m"))
    def confirm_stock(state: OrderState) -> ConfirmStock:
        return ConfirmStock(order_id=state.order_id)

    return saga


def order(lines: int = 0, **options: bool) -> Scenario[OrderState]:
    return given(define(), OrderState(lines=lines), **options)


def test_everything_normal() -> None:
    story = order().expect_command(ReserveCredit, to="customers", amount=Decimal("12.50")).reply(CreditReserved())
    story.expect_completed().expect_nothing()


def test_a_failure() -> None:
    story = order().expect_command(ReserveCredit).reply(CreditLimitExceeded(limit=Decimal(5)))
    story.expect_compensated(reason="CreditLimitExceeded").expect_nothing()
    assert story.state.reason == "no more than 5"


def test_commands_in_parallel_are_expected_and_answered_in_any_order() -> None:
    story = order(lines=1).expect_command(ReserveStock).expect_command(ReserveCredit).expect_nothing()
    story.reply(CreditLimitExceeded(), answers=ReserveCredit).expect_nothing()
    story.reply(answers="reserve_stock").expect_command(ReleaseStock, to="inventory").reply().expect_compensated()


def test_time_passes_and_timers_fire_at_their_moments() -> None:
    story = order().expect_command(ReserveCredit)
    story.after("30s").expect_nothing().after("1s").expect_command(ReserveCredit)
    assert story.sent.attempt == 2
    assert story.clock == FakeClock(31.0)
    story.after("32s").expect_command(ReserveCredit).after("29s").expect_nothing()
    story.after("1s").expect_command(ReleaseCredit).reply().expect_compensated(reason="no reply within 30 s")
    assert story.timeline[-1] == "     93 s  SagaCompensated"
    assert "     31 s  StepStarted reserve_credit (attempt 2)" in story.timeline


def test_a_late_reply_to_an_earlier_attempt() -> None:
    story = order().expect_command(ReserveCredit)
    first = story.sent
    story.after("31s").expect_command(ReserveCredit).reply(CreditLimitExceeded(), answers=first)
    assert story.status is Status.RUNNING
    story.reply(CreditReserved(), answers=first).expect_completed()


def test_a_transient_failure() -> None:
    story = (
        order().expect_command(ReserveCredit).reply(Busy()).expect_nothing().after("1s").expect_command(ReserveCredit)
    )
    story.reply(CreditReserved()).expect_completed()


def test_an_abort() -> None:
    story = order().expect_command(ReserveCredit).abort("changed my mind").expect_nothing()
    story.reply(CreditReserved()).expect_command(ReleaseCredit).reply().expect_compensated(reason="changed my mind")


def test_a_local_step_that_returns_a_failure() -> None:
    order().fails("create", Busy()).expect_compensated(reason="Busy").expect_nothing()


def test_a_local_step_that_raises_some_times() -> None:
    story = order().fails("approve", ValueError("no"), times=1).expect_command(ReserveCredit).reply(CreditReserved())
    assert story.status is Status.RUNNING
    story.after("1s").expect_completed()


def test_a_local_step_that_always_raises() -> None:
    story = order().fails("approve", ValueError("no")).expect_command(ReserveCredit).reply(CreditReserved())
    story.after("1s").expect_command(ReleaseCredit).reply().expect_compensated(reason="ValueError: no")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError(), "ValueError"),
        (ValueError("no\nink"), "ValueError: no ink"),
        (ValueError("x" * 1000), f"ValueError: {'x' * 1000}"[:REASON_MAX_CHARS]),
    ],
)
def test_the_reason_is_the_one_that_the_engine_writes(error: ValueError, reason: str) -> None:
    story = order().fails("approve", error).expect_command(ReserveCredit).reply(CreditReserved())
    story.after("1s").expect_command(ReleaseCredit).reply().expect_compensated(reason=reason)


def test_a_local_step_that_takes_too_long() -> None:
    story = order().fails("approve", TookTooLong(10)).expect_command(ReserveCredit).reply(CreditReserved())
    story.after("1s").expect_command(ReleaseCredit).reply()
    story.expect_compensated(reason="TookTooLong: not done within 10 s")


def test_whoever_starts_a_saga_gets_what_its_first_steps_raise() -> None:
    with pytest.raises(ValueError, match="no"):
        order().fails("create", ValueError("no")).expect_nothing()


def test_a_local_compensation_that_fails() -> None:
    story = order().fails("reject", ValueError("no")).expect_command(ReserveCredit).reply(CreditLimitExceeded())
    story.after("2h").expect_suspended(reason="create cannot be undone: ValueError: no")


def test_functions_stand_in_for_local_steps() -> None:
    def create(state: OrderState) -> Failure | None:
        state.order_id = 8
        return None

    story = given(define(), OrderState(), local={"create": create})
    assert story.expect_command(ReserveCredit, order_id=8).state.order_id == 8


def test_a_step_after_the_pivot_that_fails_for_good() -> None:
    story = order(lines=1).expect_command(ReserveStock).reply().expect_command(ReserveCredit).reply(CreditReserved())
    story.expect_command(ConfirmStock).after("61s").expect_command(ConfirmStock).after("60s")
    story.expect_suspended(reason="confirm_stock: no reply within 60 s").reply().expect_completed()


def test_a_saga_that_waits_for_its_lock() -> None:
    order(held=True).expect_waiting().expect_nothing().let_in().expect_command(ReserveCredit)


def test_a_saga_that_waits_too_long_for_its_lock() -> None:
    order(held=True).after("1m").expect_compensated(reason="not free within 60 s").expect_nothing()


def test_commands_are_told_apart_by_what_they_say() -> None:
    story = order().expect_command(ReserveCredit, where=lambda command: command.amount > 10)
    assert story.sent.command == ReserveCredit(order_id=7, amount=Decimal("12.50"))


WRONG = {
    "another command": lambda: order().expect_command(ReserveStock),
    "another service": lambda: order().expect_command(ReserveCredit, to="inventory"),
    "another amount": lambda: order().expect_command(ReserveCredit, amount=Decimal(1)),
    "of another kind": lambda: order().expect_command(ReserveCredit, where=lambda command: command.amount > 100),
    "a second one": lambda: order().expect_command(ReserveCredit).expect_command(ReserveCredit),
    "nothing": lambda: order().expect_nothing(),
    "an end too early": lambda: order().expect_completed(),
    "another end": lambda: order().expect_command(ReserveCredit).reply(CreditLimitExceeded()).expect_completed(),
    "another reason": lambda: order().fails("create", Busy()).expect_compensated(reason="credit"),
    "a reply that nobody handles": lambda: order(lines=1).expect_command(ReserveStock).reply(CreditReserved()),
    "an abort too late": lambda: order().expect_command(ReserveCredit).reply(CreditReserved()).abort("late"),
    "a lock that nobody holds": lambda: order().let_in(),
}

COMPLAINTS = {
    "another command": "expected ReserveStock(), but there was "
    "ReserveCredit(order_id=7, amount=Decimal('12.50')) to customers (step reserve_credit)",
    "another service": "expected ReserveCredit() to inventory, but there was ReserveCredit(",
    "another amount": "expected ReserveCredit(amount=Decimal('1')), but there was ReserveCredit(",
    "of another kind": "expected ReserveCredit() of a certain kind, but there was",
    "a second one": "expected ReserveCredit(), but there was no further command: "
    "the saga is RUNNING: reserve_credit waits for the reply to attempt 1",
    "nothing": "expected no further command, but there was ReserveCredit(",
    "an end too early": "expected the saga to be completed, but it is RUNNING: reserve_credit waits",
    "another end": "expected the saga to be completed, but it is COMPENSATED (CreditLimitExceeded)",
    "another reason": "expected the saga to be compensated because of 'credit', but the reason is 'Busy'",
    "a reply that nobody handles": "expected step reserve_stock to handle CreditReserved(), but it has no handler",
    "an abort too late": "expected the saga to be aborted, but it is COMPLETED",
    "a lock that nobody holds": "expected the saga to wait for its lock, but it is RUNNING",
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_hold_is_told_to_people(what: str) -> None:
    with pytest.raises(AssertionError) as caught:
        WRONG[what]()
    text = str(caught.value)
    assert text.startswith(COMPLAINTS[what])
    assert "what happened:\n        0 s  SagaStarted\n        0 s  StepStarted create\n" in text


@pytest.mark.parametrize(
    ("misuse", "hint"),
    [
        (lambda: order().reply(CreditReserved()), "no command has been expected yet"),
        (lambda: order().expect_command(ReserveCredit).reply(answers=ReserveStock), "expect it before it is answered"),
        (lambda: order().expect_command(ReserveCredit, price=1), "ReserveCredit has no field price"),
        (lambda: order().fails("credit", Busy()), "its local functions are approve, create, reject"),
        (lambda: given(define(), OrderState(), local={"credit": lambda state: None}), "its local functions are"),
        (lambda: order().after("soon"), "should be a time"),
        (lambda: given(unlocked(), OrderState(), held=True).state, "does not wait for a lock"),
    ],
)
def test_what_makes_no_sense_is_refused(misuse: object, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        misuse()  # type: ignore[operator]


def unlocked() -> Saga[OrderState]:
    saga = Saga("plain", state=OrderState)
    saga.local()(never)
    return saga


def test_time_does_not_go_back() -> None:
    with pytest.raises(ValueError, match="does not go back by 1 s"):
        FakeClock().later(-1.0)


def test_the_library_needs_no_pytest() -> None:
    folder = Path(__file__).parents[2] / "relay" / "saga" / "testing"
    assert not any(
        re.search(r"^\s*(import|from) (pytest|tests)", module.read_text(), re.M) for module in folder.glob("*.py")
    )


def test_the_stories_of_the_documentation_hold() -> None:
    page = vars(python_of("saga-testing.md"))
    stories = [name for name in page if name.startswith("test_") and name != "test_credit_adds_up_whatever_crashes"]
    assert len(stories) == 3
    for name in stories:
        page[name]()


def test_the_documentation_shows_a_failure_as_it_is() -> None:
    page = python_of("saga-testing.md")
    with pytest.raises(AssertionError) as caught:
        given(page.create_order, page.ORDER).expect_command(page.ReserveCredit).after("31s").expect_completed()
    assert f"AssertionError: {caught.value}".startswith(fenced("saga-testing.md", "text")[0].rstrip())
