"""Flights, hotel and bank: each sells something of which there is only so much."""

from typing import Final

from relay.messaging import Failure, Retry, Service, Transaction
from relay.messaging.message import type_of
from tests.acceptance.saga_world.contracts import (
    BookBed,
    BookRoom,
    BookSeat,
    Busy,
    CancelBed,
    CancelRoom,
    CancelSeat,
    GiveBack,
    IssueTicket,
    ReserveMoney,
    ReturnMoney,
    SoldOut,
    Take,
    Taken,
)
from tests.acceptance.saga_world.plans import How, Plans

SCHEMA: Final = """
    CREATE TABLE stock (
        what text PRIMARY KEY, capacity integer NOT NULL, taken integer NOT NULL DEFAULT 0,
        most integer NOT NULL DEFAULT 0);
    CREATE TABLE ledger (
        id bigint GENERATED ALWAYS AS IDENTITY, trip uuid NOT NULL, command text NOT NULL, what text NOT NULL,
        amount integer NOT NULL);
    CREATE INDEX ON ledger (trip);
"""
"""The ledger has no unique key, so that nothing hides what is done twice. `most` is the most that was ever taken."""

OFFERS: Final[dict[str, dict[type[Take], type[GiveBack] | None]]] = {
    "flights": {BookSeat: CancelSeat, IssueTicket: None},
    "hotel": {BookRoom: CancelRoom, BookBed: CancelBed},
    "bank": {ReserveMoney: ReturnMoney},
}

BACKOFF: Final = "100ms..500ms"

_NOTE: Final = "INSERT INTO ledger (trip, command, what, amount) VALUES (%s, %s, %s, %s) RETURNING id"
_TAKE: Final = """
    UPDATE stock SET taken = taken + %(amount)s, most = greatest(most, taken + %(amount)s) WHERE what = %(what)s
    RETURNING taken <= capacity
"""
_GIVE_BACK: Final = "UPDATE stock SET taken = taken - %s WHERE what = %s"


class Supplier:
    """Its handlers write first and look afterwards: what they refuse has to be undone by somebody else."""

    def __init__(self, name: str, plans: Plans, attempts: int) -> None:
        self.service = Service(name, retry=Retry(attempts=attempts, backoff=BACKOFF))
        self._plans = plans
        for take, give_back in OFFERS[name].items():
            self.service.command(take)(self.take)
            if give_back is not None:
                self.service.compensation(give_back)(self.give_back)

    async def take(self, command: Take, tx: Transaction) -> Taken | SoldOut | Busy:
        """It is the trip's now, unless that is more than there is."""
        how = await self._plans.next(type_of(command), command.trip_id)
        receipt = await self._note(command, command.amount, tx)
        cursor = await tx.execute(_TAKE, {"amount": command.amount, "what": command.what})
        row = await cursor.fetchone()
        await self._plans.carry_out(how, command.trip_id, tx)
        if how is How.BUSY:
            return Busy()
        if how is How.REFUSE or row is None or not row[0]:
            return SoldOut()
        return Taken(receipt=receipt)

    async def give_back(self, command: GiveBack, tx: Transaction) -> Failure | None:
        """It is the trip's no longer. Whether it ever was is for the library to know."""
        how = await self._plans.next(type_of(command), command.trip_id)
        await self._note(command, -command.amount, tx)
        await tx.execute(_GIVE_BACK, (command.amount, command.what))
        await self._plans.carry_out(how, command.trip_id, tx)
        return Busy() if how in (How.BUSY, How.REFUSE) else None

    async def _note(self, command: Take | GiveBack, amount: int, tx: Transaction) -> int:
        cursor = await tx.execute(_NOTE, (command.trip_id, type_of(command), command.what, amount))
        row = await cursor.fetchone()
        assert row is not None
        return int(row[0])
