"""mypy finds the mistakes that a user of the library can make with types."""

from pathlib import Path

import pytest
from mypy import api

PRELUDE = """
from uuid import UUID
import psycopg
from pydantic import BaseModel
from relay.messaging import Command, Event, Failure, Reply, Retry, Service, Transaction, outbox
from relay.saga import Saga

class Pay(Command): ...
class Refund(Command): ...
class Paid(Reply): ...
class Broke(Failure): ...
class Moved(Event): ...
class State(BaseModel):
    note: str = ""

shop = Service("shop")
trip = Saga("trip", state=State)
"""

RIGHT = """
@shop.command(Pay)
async def pay(command: Pay, tx: Transaction) -> Paid | Broke:
    await tx.add(Moved(), aggregate=("order", "7"))
    return Paid()

@shop.compensation(Refund)
async def refund(command: Refund, tx: Transaction) -> None: ...

@shop.event(Moved)
async def moved(event: Moved, tx: Transaction) -> None: ...

@trip.local(retry=Retry(attempts=3, backoff="1s..1m"), timeout="5s", when=lambda state: state.note != "")
async def note(state: State, tx: Transaction) -> Broke | None: ...

@note.compensate
async def strike(state: State, tx: Transaction) -> None: ...

with trip.parallel():

    @trip.step(to="billing", timeout="30s", transient=(Broke,))
    def ask(state: State) -> Pay:
        return Pay()

@ask.on(Paid)
def paid(state: State, reply: Paid) -> None: ...

@ask.on(Broke)
def broke(state: State, reply: Broke) -> None: ...

@ask.compensate
def refund_it(state: State) -> Refund:
    return Refund()

@ask.or_else(to="bank")
def ask_the_bank(state: State) -> Pay:
    return Pay()

@ask_the_bank.on(Reply)
def heard(state: State, reply: Reply) -> None: ...

trip.compensate_in_order((ask, note))

async def again(state: State, tx: Transaction) -> None:
    await strike(state, tx)
    refund_it(state)
    paid(state, Paid())

def sync(conn: psycopg.Connection) -> UUID:
    return outbox.add(conn, Moved(), aggregate=("order", "7"))

async def asynchronous(conn: psycopg.AsyncConnection) -> UUID:
    return await outbox.add(conn, Moved(), aggregate=("order", "7"))
"""

A_STEP = """
@trip.step(to="billing")
def ask(state: State) -> Pay: ...
"""

A_LOCAL_STEP = """
@trip.local()
async def note(state: State, tx: Transaction) -> None: ...
"""

WRONG = {
    "a handler of another command": """
@shop.command(Pay)
async def pay(command: Refund, tx: Transaction) -> Paid: ...
""",
    "a handler whose reply is no reply": """
@shop.command(Pay)
async def pay(command: Pay, tx: Transaction) -> str: ...
""",
    "a handler that is not async": """
@shop.command(Pay)
def pay(command: Pay, tx: Transaction) -> Paid: ...
""",
    "a handler that undoes another command": """
@shop.compensation(Refund)
async def refund(command: Pay, tx: Transaction) -> None: ...
""",
    "a command where an event belongs": """
@shop.event(Pay)
async def pay(command: Pay, tx: Transaction) -> None: ...
""",
    "a reply to an event": """
@shop.event(Moved)
async def moved(event: Moved, tx: Transaction) -> Paid: ...
""",
    "a handler of another reply": f"""{A_STEP}
@ask.on(Paid)
def paid(state: State, reply: Broke) -> None: ...
""",
    "a handler of a reply that works on another state": f"""{A_STEP}
@ask.on(Paid)
def paid(state: Pay, reply: Paid) -> None: ...
""",
    "a handler of what is no reply": f"""{A_STEP}
@ask.on(Pay)
def paid(state: State, reply: Pay) -> None: ...
""",
    "a handler of a reply that is async": f"""{A_STEP}
@ask.on(Paid)
async def paid(state: State, reply: Paid) -> None: ...
""",
    "a step that works on another state": """
@trip.local()
async def note(state: Pay, tx: Transaction) -> None: ...
""",
    "a step that returns a reply which is no failure": """
@trip.local()
async def note(state: State, tx: Transaction) -> Paid: ...
""",
    "a step that makes no command": """
@trip.step(to="billing")
def ask(state: State) -> Paid: ...
""",
    "a step that makes a command from another state": """
@trip.step(to="billing")
def ask(state: Pay) -> Pay: ...
""",
    "a condition on another state": """
def rich(state: Pay) -> bool: ...
@trip.step(to="billing", when=rich)
def ask(state: State) -> Pay: ...
""",
    "a condition that is no condition": """
@trip.step(to="billing", when=True)
def ask(state: State) -> Pay: ...
""",
    "a transient failure that is none": """
@trip.step(to="billing", transient=(Paid,))
def ask(state: State) -> Pay: ...
""",
    "an option of another kind of step": """
@trip.local(to="billing")
async def note(state: State, tx: Transaction) -> None: ...
""",
    "an order of compensation that wants what is no step": """
trip.compensate_in_order("ask")
""",
    "a compensation that works on another state": f"""{A_LOCAL_STEP}
@note.compensate
async def strike(state: Pay, tx: Transaction) -> None: ...
""",
    "a compensation of a local step that is not async": f"""{A_LOCAL_STEP}
@note.compensate
def strike(state: State, tx: Transaction) -> None: ...
""",
    "a compensation that returns no command": f"""{A_STEP}
@ask.compensate
def refund(state: State) -> Paid: ...
""",
    "a compensation that makes a command from another state": f"""{A_STEP}
@ask.compensate
def refund(state: Pay) -> Refund: ...
""",
    "an alternative that makes no command": f"""{A_STEP}
@ask.or_else(to="bank")
def ask_the_bank(state: State) -> Paid: ...
""",
    "an alternative of a local step": f"""{A_LOCAL_STEP}
@note.or_else(to="bank")
def ask_the_bank(state: State) -> Pay: ...
""",
    "an alternative with a condition": f"""{A_STEP}
@ask.or_else(to="bank", when=lambda state: True)
def ask_the_bank(state: State) -> Pay: ...
""",
    "a way to be locked that does not exist": """
other = Saga("other", state=State, lock=lambda state: ("order", state.note), on_locked="despair")
""",
    "a message that is not awaited": """
async def forgetful(conn: psycopg.AsyncConnection) -> None:
    outbox.add(conn, Moved(), aggregate=("order", "7"))
""",
    "an option that does not exist": """
async def mistaken(conn: psycopg.AsyncConnection) -> None:
    await outbox.add(conn, Pay(), aggregate=("order", "7"), destination="billing")
""",
}


def check(source: str, folder: Path) -> str:
    program = folder / "program.py"
    program.write_text(PRELUDE + source)
    report, errors, _ = api.run(["--strict", "--allow-empty-bodies", "--no-error-summary", str(program)])
    assert not errors
    return report


def test_what_is_right_passes(tmp_path: Path) -> None:
    assert check(RIGHT, tmp_path) == ""


@pytest.mark.parametrize("mistake", WRONG)
def test_what_is_wrong_is_found(mistake: str, tmp_path: Path) -> None:
    report = check(WRONG[mistake], tmp_path)
    wrong = {line.partition(": error: ")[0] for line in report.splitlines() if ": error: " in line}
    assert len(wrong) == 1, report
