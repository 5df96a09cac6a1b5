"""The hash of a definition: the same for the same, another one for whatever makes a difference to a running saga."""

import subprocess
import sys
from typing import Any

import pytest
from pydantic import BaseModel, Field, create_model

from relay.messaging import Command, Failure, Reply, Retry
from relay.saga.definition import Saga
from relay.saga.description import describe, fingerprint
from relay.saga.step import LOCAL_TIMEOUT


class State(BaseModel):
    note: str = ""


class Other(BaseModel):
    note: int = 0


class Yes(Reply): ...


class Maybe(Reply): ...


class Busy(Failure): ...


class Ask(Command):
    pass


class AskMore(Command):
    more: str = ""


def define(name: str = "trip", state: Any = State, /, **said: Any) -> Saga[Any]:
    """A saga, with one thing in it as it is said."""
    option = said.get
    saga = Saga(
        name,
        state=state,
        timeout=option("saga_timeout"),
        compensation=option("compensation", "reverse"),
        lock=option("lock"),
        on_locked=option("on_locked", "fail"),
        lock_timeout=option("lock_timeout", "1m"),
    )

    async def note(state: Any, tx: Any) -> None: ...

    async def strike(state: Any, tx: Any) -> None: ...

    async def last(state: Any, tx: Any) -> None: ...

    def ask(state: Any) -> Any:
        return Ask()

    def take_back(state: Any) -> Any:
        return Ask()

    def ask_others(state: Any) -> Any:
        return Ask()

    def heard(state: Any, reply: Reply) -> None: ...

    ask_others.__annotations__ = {"return": Ask}
    ask.__annotations__ = {"return": option("command", Ask)}
    take_back.__annotations__ = {"return": option("undo_command", Ask)}
    strike.__name__ = option("strike", "strike")
    local_timeout = {"timeout": option("local_timeout")} if option("local_timeout") else {}
    noted = saga.local(when=option("when"), readonly=option("readonly", False), **local_timeout)(note)
    if not noted.readonly:
        noted.compensate(strike)
    step: Any = saga.step(
        to=option("to", "hotel"),
        timeout=option("timeout", "1m"),
        retry=option("retry", Retry(attempts=2)),
        compensation_retry=option("compensation_retry", Retry(attempts=2)),
        transient=option("transient", ()),
    )(ask)
    for reply in (option("reply", Yes), Busy):
        step.on(reply)(heard)
    step.compensate(take_back)
    if option("alternative"):
        step.or_else(to="inn")(ask_others).compensate(take_back)
    if option("order"):
        saga.compensate_in_order(noted, step)
    saga.local(pivot=option("pivot", False))(last)
    return saga


CHANGES: dict[str, dict[str, Any]] = {
    "timeout of the saga": {"saga_timeout": "1h"},
    "direction of compensation": {"compensation": "parallel"},
    "order of compensation": {"order": True},
    "lock": {"lock": lambda state: ("order", "7")},
    "condition": {"when": lambda state: True},
    "readonly": {"readonly": True},
    "name of a compensation": {"strike": "erase"},
    "addressee": {"to": "inn"},
    "timeout": {"timeout": "2m"},
    "timeout of a local step": {"local_timeout": "2m"},
    "attempts": {"retry": Retry(attempts=3)},
    "backoff": {"retry": Retry(attempts=2, backoff="2s..5m")},
    "budget of a compensation": {"compensation_retry": Retry(attempts=3)},
    "transient failures": {"transient": (Busy,)},
    "command": {"command": AskMore},
    "one of two commands": {"command": Ask | AskMore},
    "command that undoes": {"undo_command": AskMore},
    "replies": {"reply": Maybe},
    "alternatives": {"alternative": True},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_definition_is_seen(change: str) -> None:
    assert fingerprint(define(**CHANGES[change])) != fingerprint(define())


@pytest.mark.parametrize("option", [{"on_locked": "wait"}, {"on_locked": "wait", "lock_timeout": "2m"}])
def test_a_change_of_what_a_lock_means_is_seen(option: dict[str, Any]) -> None:
    def lock(state: Any) -> tuple[str, str]:
        return ("order", "7")

    assert fingerprint(define(lock=lock, **option)) != fingerprint(define(lock=lock))


def test_another_name_and_another_state_are_other_definitions() -> None:
    assert len({fingerprint(define()), fingerprint(define("tour")), fingerprint(define("trip", Other))}) == 3


def test_the_same_definition_has_the_same_hash() -> None:
    assert fingerprint(define()) == fingerprint(define())


def test_saying_what_is_so_anyway_changes_nothing() -> None:
    """The last step is the pivot with and without a word about it."""
    assert fingerprint(define(pivot=True)) == fingerprint(define())


def test_the_order_in_which_a_function_names_its_commands_changes_nothing() -> None:
    assert fingerprint(define(command=Ask | AskMore)) == fingerprint(define(command=AskMore | Ask))


def test_saying_that_a_local_step_has_the_time_it_has_anyway_changes_nothing() -> None:
    assert fingerprint(define(local_timeout=LOCAL_TIMEOUT)) == fingerprint(define())


def a_model(base: type[BaseModel], docstring: str | None, /, **fields: Any) -> Any:
    model: Any = create_model("Model", __base__=base, **fields)
    model.__doc__ = docstring
    model.model_rebuild(force=True)
    return model


@pytest.mark.parametrize(("what", "base"), [("state", BaseModel), ("command", Command), ("reply", Reply)])
class TestWhatIsSaidOfAModel:
    def fingerprint(self, what: str, model: Any) -> str:
        return fingerprint(define("trip", model) if what == "state" else define(**{what: model}))

    def test_the_order_of_its_fields_changes_nothing(self, what: str, base: Any) -> None:
        one = a_model(base, None, room=(str, ...), nights=(int, ...))
        other = a_model(base, None, nights=(int, ...), room=(str, ...))
        assert self.fingerprint(what, one) == self.fingerprint(what, other)

    def test_what_is_said_for_people_changes_nothing(self, what: str, base: Any) -> None:
        plain = a_model(base, None, room=(str, ...))
        said = a_model(base, "A night, or several.", room=(str, Field(title="Room", description="Its number.")))
        assert self.fingerprint(what, plain) == self.fingerprint(what, said)

    @pytest.mark.parametrize("field", ["title", "description", "required"])
    def test_a_field_of_such_a_name_is_a_field(self, what: str, base: Any, field: str) -> None:
        models = [a_model(base, None), *(a_model(base, None, **{field: (kind, ...)}) for kind in (str, int, BaseModel))]
        assert len({self.fingerprint(what, model) for model in models}) == 4

    def test_a_default_is_what_it_is(self, what: str, base: Any) -> None:
        models = [a_model(base, None, note=(dict[str, str], {"title": title})) for title in ("one", "two")]
        assert self.fingerprint(what, models[0]) != self.fingerprint(what, models[1])

    def test_a_model_within_is_described_in_the_same_way(self, what: str, base: Any) -> None:
        def holding(docstring: str, kind: type[object]) -> Any:
            return a_model(base, None, inner=(list[a_model(BaseModel, docstring, title=(kind, ...))], ...))  # type: ignore[misc]

        assert self.fingerprint(what, holding("One.", str)) == self.fingerprint(what, holding("Two.", str))
        assert self.fingerprint(what, holding("One.", str)) != self.fingerprint(what, holding("One.", int))


def test_another_process_finds_the_same_hash() -> None:
    program = "from tests.unit.test_saga_description import define, fingerprint; print(fingerprint(define()))"
    for hash_seed in ("1", "2"):
        told = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": hash_seed},
        )
        assert told.stdout.strip() == fingerprint(define())


def test_a_hash_is_64_hexadecimal_digits() -> None:
    assert len(bytes.fromhex(fingerprint(define()))) == 32


def test_a_description_is_made_of_plain_data() -> None:
    stages = describe(define(alternative=True))["stages"]
    assert isinstance(stages, list)
    ((asked,),) = [stage for stage in stages if isinstance(stage, list) and stage[0]["name"] == "ask"]
    assert asked["nature"] == "compensable"
    assert [other["name"] for other in asked["alternatives"]] == ["ask_others"]
