"""mypy finds the mistakes that a user of the library can make with types."""

from pathlib import Path

import pytest
from mypy import api

PRELUDE = """
from uuid import UUID
import psycopg
from pydantic import BaseModel
from relay.messaging import Command, Event, Failure, Reply, Service, Transaction, outbox
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

@shop.command(Refund)
async def refund(command: Refund, tx: Transaction) -> None: ...

@shop.event(Moved)
async def moved(event: Moved, tx: Transaction) -> None: ...

@trip.local()
async def note(state: State, tx: Transaction) -> None: ...

@note.compensate
async def strike(state: State, tx: Transaction) -> None: ...

@trip.step(to="billing")
def ask(state: State) -> Pay:
    return Pay()

@ask.on(Paid)
def paid(state: State, reply: Paid) -> None: ...

def sync(conn: psycopg.Connection) -> UUID:
    return outbox.add(conn, Moved(), aggregate=("order", "7"))

async def asynchronous(conn: psycopg.AsyncConnection) -> UUID:
    return await outbox.add(conn, Moved(), aggregate=("order", "7"))
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
    "a command where an event belongs": """
@shop.event(Pay)
async def pay(command: Pay, tx: Transaction) -> None: ...
""",
    "a reply to an event": """
@shop.event(Moved)
async def moved(event: Moved, tx: Transaction) -> Paid: ...
""",
    "a handler of another reply": """
@trip.step(to="billing")
def ask(state: State) -> Pay: ...
@ask.on(Paid)
def paid(state: State, reply: Broke) -> None: ...
""",
    "a step that works on another state": """
@trip.local()
async def note(state: Pay, tx: Transaction) -> None: ...
""",
    "a step that makes no command": """
@trip.step(to="billing")
def ask(state: State) -> Paid: ...
""",
    "a compensation that works on another state": """
@trip.local()
async def note(state: State, tx: Transaction) -> None: ...
@note.compensate
async def strike(state: Pay, tx: Transaction) -> None: ...
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
