"""What becomes of a delivered message: handled, put off, dead, or, where no table can hold it, rejected."""

from functools import partial
from typing import Final, Protocol

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from relay.broker.properties import Delivery
from relay.messaging import deferred
from relay.messaging.attempt import attempt
from relay.messaging.failures import History, Mishap, described
from relay.messaging.handler import Outcome
from relay.messaging.log import ServiceLog
from relay.messaging.message import Incoming, Unprocessable
from relay.messaging.receiver import Receiver
from relay.messaging.retry import FAULT_TRIES, Patience, Retry, jittered
from relay.messaging.transaction import Pool


class Held(Protocol):
    """A delivered message that waits for its answer."""

    @property
    def delivery(self) -> Delivery:
        """The message."""
        ...

    def ack(self) -> None:
        """What is to become of it has committed."""
        ...

    def reject(self) -> None:
        """It cannot be handled, and no table can hold it."""
        ...

    async def pause(self, delay_s: float) -> None:
        """Wait before another try. What this raises ends the settling, and the message comes again."""
        ...


_ACTIONS: Final = {
    Outcome.HANDLED: "message_handled",
    Outcome.SEEN_BEFORE: "message_seen_before",
    Outcome.DEFERRED: "message_queued",
}


class Settling:
    """Tries a message a few times in memory, and then puts it off, so that nothing is held unacknowledged for long."""

    def __init__(self, receiver: Receiver, pool: Pool, retry: Retry) -> None:
        self._receiver = receiver
        self._pool = pool
        self._retry = retry
        self._log = ServiceLog(receiver.consumer)

    async def settle(self, held: Held) -> None:
        """Answer a message when what is to become of it has committed; while the database is away, this waits.

        Whatever dies between the commit and the answer, the tables know the message when it comes again.
        """
        try:
            incoming = Incoming.of(held.delivery)
        except Unprocessable as error:
            self._reject(held, error)
            return
        patience = Patience(min(FAULT_TRIES, self._retry.attempts))
        history: History = ()
        begun = False

        async def handle(conn: AsyncConnection[TupleRow]) -> Outcome:
            nonlocal begun
            begun = True
            return await self._receiver.handle(held.delivery, conn)

        while True:
            begun = False
            try:
                outcome = await attempt(self._pool, handle, held.ack)
            except Unprocessable as error:
                history += (Mishap.of(error, patience.faults + 1),)
                return await self._keep(held, incoming, history, error, None)
            except Exception as error:  # the handler's edge: it may raise anything
                delay_s = patience.after(error, begun=begun)
                if patience.faults > len(history):
                    history += (Mishap.of(error, patience.faults),)
                if delay_s is None:
                    return await self._keep(held, incoming, history, error, self._delay_s(len(history)))
                self._log.failed(incoming.type, incoming.message_id, error, delay_s)
                await held.pause(delay_s)
            else:
                self._log.debug(_ACTIONS[outcome], f"{incoming.type} {incoming.message_id}")
                return None

    def _delay_s(self, attempts: int) -> float | None:
        """How long to put a message off after so many attempts; None when its tries are used up."""
        return jittered(self._retry.delay_s(attempts)) if attempts < self._retry.attempts else None

    async def _keep(
        self, held: Held, incoming: Incoming, history: History, error: Exception, delay_s: float | None
    ) -> None:
        """Keep a message in the table; reject it when the table cannot have it."""
        overtakes = self._receiver.overtakes(incoming)
        keep = partial(
            deferred.put_off,
            consumer=self._receiver.consumer,
            incoming=incoming,
            said=held.delivery.properties,
            history=history,
            delay_s=delay_s,
            overtakes=overtakes,
        )
        patience = Patience(fault_tries=1)
        while True:
            try:
                await attempt(self._pool, keep, held.ack)
                break
            except Exception as refused:  # the same edge: the message must not be lost, whatever is wrong here
                wait_s = patience.after(refused)
                if wait_s is None:
                    self._reject(held, refused)
                    return
                self._log.failed(incoming.type, incoming.message_id, refused, wait_s)
                await held.pause(wait_s)
        if delay_s is None:
            self._log.dead(incoming.type, incoming.message_id, history, error, overtakes=overtakes)
        else:
            self._log.put_off(incoming.type, incoming.message_id, history, delay_s)

    def _reject(self, held: Held, error: Exception) -> None:
        held.reject()
        said = held.delivery.properties
        words = f"{said.type} {said.message_id} goes to the dead letters of the broker: {described(error)}"
        self._log.error("message_rejected", words, error, message_id=said.message_id)
