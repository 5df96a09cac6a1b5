"""What a travel agency and its suppliers say to each other."""

from typing import ClassVar
from uuid import UUID

from relay.messaging import Command, Compensated, Failure, Reply


class Taken(Reply):
    """It is the traveller's. `receipt` is the entry in the supplier's ledger."""

    receipt: int


class SoldOut(Failure):
    """There is not so much of it left."""


class Busy(Failure):
    """Not now: ask again."""


class Take(Command):
    """Give something to a trip."""

    replies: ClassVar[tuple[type[Reply], ...]] = (Taken, SoldOut, Busy)

    trip_id: UUID
    what: str
    amount: int = 1


class GiveBack(Command):
    """Take it back from the trip."""

    replies: ClassVar[tuple[type[Reply], ...]] = (Compensated, Busy)

    trip_id: UUID
    what: str
    amount: int = 1


class BookSeat(Take):
    """Of the flights."""


class CancelSeat(GiveBack):
    """Of the flights."""


class IssueTicket(Take):
    """Of the flights. Tickets are not taken back."""


class BookRoom(Take):
    """Of the hotel."""


class CancelRoom(GiveBack):
    """Of the hotel."""


class BookBed(Take):
    """Of the hotel: where those sleep for whom it has no room."""


class CancelBed(GiveBack):
    """Of the hotel."""


class ReserveMoney(Take):
    """Of the bank. `what` is the traveller, whose account has a limit."""


class ReturnMoney(GiveBack):
    """Of the bank."""
