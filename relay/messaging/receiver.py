"""One attempt at one message, in one transaction of the caller's."""

from datetime import UTC, datetime, timedelta
from typing import Final

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from relay.broker.properties import Delivery
from relay.messaging import deferred
from relay.messaging.commands import FIRST_STATE, carry_out
from relay.messaging.deferred import Kept
from relay.messaging.entry import Entry, enter
from relay.messaging.handler import Outcome, Route, Routes
from relay.messaging.message import Incoming, Unprocessable
from relay.messaging.operation import OPERATION_RETENTION, may_be_forgotten
from relay.messaging.outbox import require_transaction
from relay.messaging.transaction import Transaction

INBOX_RETENTION: Final = timedelta(days=30)
"""How old a message may be, by its sender's time: of older ones the inbox does not know any more whether they were
handled. Longer than any redelivery takes."""


class TooOld(Unprocessable):
    """The message was sent so long ago that the inbox may have forgotten it: nobody knows whether it was handled."""

    hint = "Find out whether its work is done: then `relay dead drop`, else `relay dead replay`."


class Forgotten(Unprocessable):
    """A saga older than the operations that are kept wants something done or undone: nobody knows what was before."""

    hint = (
        "Find out whether its work is done. An action: `relay dead drop` it. What undoes: undo it, and then "
        "`relay dead replay` answers that it is undone."
    )


class Receiver:
    """Does everything that a message does, except to commit and to acknowledge it. Any number of messages at once."""

    def __init__(self, consumer: str, routes: Routes) -> None:
        self.consumer = consumer
        self._routes = routes

    def overtakes(self, incoming: Incoming) -> bool:
        """Whether a message waits for none of its aggregate that was put off, and none for it.

        What undoes must not wait for an action that cannot be done: the operation keeps the two apart in any order.
        """
        route = self._routes.find(incoming)
        in_any_order = route is not None and (route.undoes or route.any_order)
        return in_any_order and incoming.operation is not None

    async def handle(self, delivery: Delivery, conn: AsyncConnection[TupleRow]) -> Outcome:
        """Handle a delivery. See Service.handle."""
        require_transaction(conn)
        incoming = Incoming.of(delivery)
        route = self._routes.find(incoming)
        outcome = _first_state(route, incoming)
        overtakes = self.overtakes(incoming)
        entry = await enter(conn, self.consumer, incoming, outcome=outcome, overtakes=overtakes)
        if entry.waits:
            await deferred.follow(conn, self.consumer, incoming, delivery.properties, overtakes=overtakes)
            return Outcome.DEFERRED
        if entry.fresh:
            _require_young(incoming)
        if entry.begun:
            _require_remembered(incoming)
        return await self._go_on(conn, incoming, route, entry)

    async def handle_again(self, kept: Kept, conn: AsyncConnection[TupleRow]) -> Outcome:
        """Handle a message that was put off and has been claimed; its row goes.

        DEFERRED when it is not the caller's any more: somebody else has claimed, handled or dropped it.
        """
        incoming = Incoming.read(kept.properties, kept.body)
        route = self._routes.find(incoming)
        outcome = _first_state(route, incoming)
        entry = await enter(conn, self.consumer, incoming, outcome=outcome, attempts=kept.attempts)
        # The cancellation of an action may be forgotten. What undoes is replayed by somebody who has looked.
        if entry.begun and route is not None and not route.undoes:
            _require_remembered(incoming)
        return Outcome.DEFERRED if entry.waits else await self._go_on(conn, incoming, route, entry)

    async def _go_on(
        self, conn: AsyncConnection[TupleRow], incoming: Incoming, route: Route | None, entry: Entry
    ) -> Outcome:
        if not entry.fresh:
            return Outcome.SEEN_BEFORE
        if route is None:
            raise Unprocessable(f"service {self.consumer} has no handler of {incoming.type}")
        tx = Transaction(conn, incoming)
        if route.command is not None:
            await carry_out(tx, self.consumer, route, incoming, begun=entry.begun)
        else:
            await route.prepare(incoming)(tx)
            tx.require_alive()
        return Outcome.HANDLED


def _first_state(route: Route | None, incoming: Incoming) -> str | None:
    """What the operation of a command is recorded with at first. Other messages do not have one of their own."""
    if route is None or route.command is None or incoming.operation is None:
        return None
    return FIRST_STATE[route.undoes]


def _require_young(incoming: Incoming) -> None:
    if incoming.sent_at is not None and datetime.now(UTC) - incoming.sent_at > INBOX_RETENTION:
        raise TooOld(f"it was sent at {incoming.sent_at:%Y-%m-%d %H:%M:%S} UTC: older than {INBOX_RETENTION.days} days")


def _require_remembered(incoming: Incoming) -> None:
    if incoming.operation is not None and may_be_forgotten(incoming.operation):
        days = OPERATION_RETENTION.days
        raise Forgotten(f"nothing is known of {incoming.operation}, and operations are forgotten after {days} days")
