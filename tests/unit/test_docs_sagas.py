"""docs/sagas.md and docs/participants.md say what the engine does: options, events, statuses, what a failure means."""

import inspect
import re
from functools import reduce
from typing import Any, get_type_hints

import pytest
from pydantic import BaseModel

from relay.broker import properties
from relay.duration import seconds
from relay.messaging import Command, Done, Failure, Reply, Retry, Transaction
from relay.messaging.deadline import AGAIN_S
from relay.saga import DefinitionError, Saga, Status
from relay.saga.definition import LOCK_TIMEOUT
from relay.saga.description import describe, fingerprint
from relay.saga.log import Happened
from relay.saga.record import Record, Then, evolve
from relay.saga.step import (
    BUILT_IN,
    COMPENSATION_RETRY,
    LOCAL_TIMEOUT,
    RETRY,
    TIMEOUT,
    LocalOptions,
    LocalStep,
    Nature,
    RemoteOptions,
)
from relay.saga.stimulus import Acted, ActionFailed, Due, Purpose, Replied, Started, Stimulus, Timer
from relay.saga.tally import INTERRUPTION_RETRY, TIMER_RETRY
from relay.saga.timers import RETENTION_DAYS
from relay.saga.transition import decide
from tests.support.snippets import DOCS, python_of

SAGAS = (DOCS / "sagas.md").read_text(encoding="utf-8")
PARTICIPANTS = (DOCS / "participants.md").read_text(encoding="utf-8")


def table(text: str, heading: str) -> list[list[str]]:
    """The rows of the table with this first heading."""
    lines = text[text.index(f"\n| {heading} |") :].lstrip().split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def first_codes(text: str, heading: str) -> list[str]:
    """All that is set in code in the first cells."""
    return [name for row in table(text, heading) for name in code(row[0])]


class TestTables:
    def test_every_status_is_told(self) -> None:
        assert first_codes(SAGAS, "status") == [status.value for status in Status]

    def test_every_event_is_told(self) -> None:
        assert set(first_codes(SAGAS, "event")) == {event.value for event in Happened} - {
            Happened.OPERATOR_ACTION.value
        }

    def test_every_consequence_of_a_failure_is_told(self) -> None:
        (row,) = (row for row in table(SAGAS, "key of `detail`") if code(row[0]) == ["then"])
        assert set(code(row[1])) == {then.value for then in Then}

    def test_every_option_of_a_saga_is_told_with_its_default(self) -> None:
        parameters = dict(list(inspect.signature(Saga.__init__).parameters.items())[2:])
        assert first_codes(SAGAS, "of a saga") == [
            "state",
            "timeout",
            "compensation",
            "lock",
            "on_locked",
            "lock_timeout",
        ]
        assert set(first_codes(SAGAS, "of a saga")) == set(parameters)
        assert parameters["compensation"].default == "reverse"
        assert (parameters["on_locked"].default, LOCK_TIMEOUT) == ("fail", "1m")

    def test_every_option_of_a_step_is_told_with_its_default(self) -> None:
        told = {code(row[0])[0]: row[1] for row in table(SAGAS, "of a step")}
        assert set(told) == {*get_type_hints(RemoteOptions), "to", "pivot", "when"}
        assert set(get_type_hints(LocalOptions)) == set(get_type_hints(RemoteOptions))
        assert told["timeout"] == f'`"{TIMEOUT}"`; local `"{LOCAL_TIMEOUT}"`'
        assert told["retry"] == f'`Retry(attempts={RETRY.attempts}, backoff="{RETRY.backoff}")`'
        expected = f'`Retry(attempts={COMPENSATION_RETRY.attempts}, backoff="{COMPENSATION_RETRY.backoff}")`'
        assert told["compensation_retry"] == expected

    def test_the_numbers_of_the_text_are_those_of_the_code(self) -> None:
        waits_s = sum(RETRY.delay_s(attempt) for attempt in range(1, RETRY.attempts))
        assert round(waits_s / 60) == 2, "the text says: two minutes of waits at most"
        assert f"are kept for {RETENTION_DAYS} days" in SAGAS
        assert f"{seconds(LOCAL_TIMEOUT):g} s unless it says otherwise" in SAGAS
        assert f"cancelled again every {AGAIN_S:g} s" in " ".join(SAGAS.split())
        assert (TIMER_RETRY.attempts, TIMER_RETRY.backoff) == (20, "1s..5m"), "tried 20 times in all, ..."
        assert (INTERRUPTION_RETRY.attempts, INTERRUPTION_RETRY.backoff) == (100, "1s..1m"), (
            "only after 100 of them, ..."
        )
        assert f"tried {TIMER_RETRY.attempts} times in all" in SAGAS
        assert f"only after {INTERRUPTION_RETRY.attempts} of them" in SAGAS

    def test_every_timer_is_told(self) -> None:
        (row,) = (row for row in table(SAGAS, "key of `detail`") if code(row[0]) == ["timer"])
        assert set(code(row[1])) - {"step", "attempt"} == {purpose.value for purpose in Purpose}

    def test_the_built_in_replies_are_told(self) -> None:
        assert first_codes(PARTICIPANTS, "type") == [name for name in BUILT_IN if name]

    def test_the_headers_of_commands_are_told(self) -> None:
        told = first_codes(PARTICIPANTS, "property or header")
        assert {properties.OPERATION, properties.ATTEMPT, properties.COMPENSATION} <= set(told)


class TestThePage:
    def test_the_saga_of_the_page_is_sound_and_has_a_pivot(self) -> None:
        saga = python_of("sagas.md").book_trip
        assert {step.name: saga.nature(step) for step in saga.steps} == {
            "open_trip": Nature.COMPENSABLE,
            "reserve_room": Nature.COMPENSABLE,
            "reserve_bed": Nature.COMPENSABLE,
            "reserve_car": Nature.COMPENSABLE,
            "charge": Nature.PIVOT,
            "confirm": Nature.RETRIABLE,
            "send_voucher": Nature.RETRIABLE,
        }

    def test_it_is_undone_in_the_order_that_the_page_says(self) -> None:
        undo = describe(python_of("sagas.md").book_trip)["undo"]
        assert undo == [["reserve_car"], ["reserve_room", "reserve_bed"], ["open_trip"]]

    def test_the_test_of_the_page_passes(self) -> None:
        python_of("sagas.md").test_without_a_room_and_without_a_bed_there_is_no_trip()

    def test_the_same_page_has_the_same_hash(self) -> None:
        assert fingerprint(python_of("sagas.md").book_trip) == fingerprint(python_of("sagas.md").book_trip)

    def test_a_compensation_that_is_missing_is_refused_with_the_step_named(self) -> None:
        page: Any = python_of("sagas.md")
        saga = Saga("other", state=page.Trip)
        saga.step(to="hotels")(page.reserve_car.request)
        saga.local(pivot=True)(page.confirm.action)
        with pytest.raises(DefinitionError, match=r"saga other, step reserve_car: .*compensat"):
            saga.seal()


class Data(BaseModel):
    pass


class Refused(Failure):
    pass


class Busy(Failure):
    pass


class Do(Command):
    replies = (Done, Refused, Busy)


class Undo(Command):
    pass


async def nothing(state: Data, tx: Transaction) -> None: ...


def the_step(state: Data) -> Do:
    return Do()


def undo(state: Data) -> Undo:
    return Undo()


def told(state: Data, reply: Reply) -> None: ...


NATURES = {"compensable": Nature.COMPENSABLE, "pivot": Nature.PIVOT, "retriable": Nature.RETRIABLE}
"""The columns of the table "Before, at and after the pivot"."""

TWICE = Retry(attempts=2, backoff="1s..1s")


class Play:
    """A saga whose step of interest has this nature; every other one succeeds."""

    def __init__(self, nature: str, *, local: bool = False) -> None:
        self.saga = saga = Saga("play", state=Data)
        if nature == "retriable":
            saga.local(pivot=True)(nothing)
        pivot = nature == "pivot"
        if local:
            act = self._named("the_step")
            step: Any = saga.local(retry=TWICE, pivot=pivot)(act)
            if nature == "compensable":
                step.compensate(nothing)
        else:
            step = saga.step(to="other", retry=TWICE, pivot=pivot, transient=(Busy,))(the_step)
            for reply in (Refused, Busy):
                step.on(reply)(told)
            if nature == "compensable":
                step.compensate(undo)
        if nature == "compensable":
            saga.local(pivot=True)(nothing)
        saga.seal()
        self.record = Record()
        self.events: list[str] = []
        self.take(Started(Data()))

    @staticmethod
    def _named(name: str) -> Any:
        async def act(state: Data, tx: Transaction) -> None: ...

        act.__name__ = name
        return act

    def take(self, stimulus: Stimulus) -> "Play":
        events = decide(self.saga, self.record, stimulus)
        self.record = reduce(evolve, events, self.record)
        self.events += [f"{event.what.value} {event.step or ''}".strip() for event in events]
        for event in events:
            other = event.step not in (None, "the_step") and isinstance(self.saga.find(event.step), LocalStep)
            if event.what is Happened.STEP_STARTED and other:
                self.take(Acted(str(event.step), Data()))
        return self

    def fails_twice(self, local: bool) -> "Play":
        for attempt in (1, 2):
            if local:
                self.take(ActionFailed("the_step", "ValueError: no"))
            else:
                self.take(Due(Timer(Purpose.TIMEOUT, "the_step", attempt)))
            self.take(Due(Timer(Purpose.RETRY, "the_step", attempt)))
        return self


@pytest.mark.parametrize("nature", NATURES)
class TestBeforeAtAndAfterThePivot:
    def test_a_failure(self, nature: str) -> None:
        play = Play(nature).take(Replied("the_step", Refused(), 1))
        assert play.record.status is (Status.RUNNING if nature == "retriable" else Status.COMPENSATED)
        assert ("SagaCompensated" in play.events) is (nature != "retriable")

    def test_a_transient_failure_is_tried_again(self, nature: str) -> None:
        play = Play(nature).take(Replied("the_step", Busy(), 1)).take(Due(Timer(Purpose.RETRY, "the_step", 1)))
        assert play.record.status is Status.RUNNING
        assert play.events.count("StepStarted the_step") == 2

    def test_no_reply_in_time(self, nature: str) -> None:
        play = Play(nature).fails_twice(local=False)
        expected = Status.COMPENSATING if nature == "compensable" else Status.SUSPENDED
        assert play.record.status is expected
        assert ("StepCompensating the_step" in play.events) is (nature == "compensable")

    def test_a_local_step_that_raises(self, nature: str) -> None:
        play = Play(nature, local=True).fails_twice(local=True)
        assert play.record.status is (Status.SUSPENDED if nature == "retriable" else Status.COMPENSATED)

    def test_a_reply_that_comes_after_all(self, nature: str) -> None:
        play = Play(nature).fails_twice(local=False).take(Replied("the_step", Done(), 1))
        assert play.record.status is (Status.COMPENSATING if nature == "compensable" else Status.COMPLETED)
