"""The orchestrator: runs sagas in its service's transactions. It holds no state; any instance handles any reply."""

import asyncio
import logging
import random
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from relay.broker.properties import COMPENSATION
from relay.errors import RelayError
from relay.messaging import Incoming, Operation, Reply, Service, Transaction, Unprocessable
from relay.messaging.failures import described
from relay.messaging.message import decode
from relay.messaging.operation import ACTION
from relay.messaging.outbox import require_transaction
from relay.messaging.retry import Trouble, trouble
from relay.messaging.uuid7 import uuid7
from relay.saga import jobs, locks, store, timers
from relay.saga.definition import DefinitionError, Saga
from relay.saga.description import fingerprint
from relay.saga.record import Record
from relay.saga.step import RemoteStep, S
from relay.saga.stimulus import Aborted, Due, Held, Purpose, Replied, Stalled, Started, Stimulus, Timer
from relay.saga.store import Stored
from relay.saga.tally import Tally, UnknownSaga
from relay.saga.timers import DueTimer
from relay.saga.transition import UnexpectedReply
from relay.saga.turn import REASON_MAX_CHARS, Turn

logger = logging.getLogger(__name__)


class NoSuchSaga(RelayError):
    """The service has no saga of that id."""

    hint = "`relay saga list` shows those of each database; their types have to be among the orchestrator's sagas."


class AlwaysInterrupted(RelayError):
    """Firing a timer was interrupted so often, by conflicts or lost connections, that it is not tried again."""


class Orchestrator:
    """Runs the sagas of a service: state, log, timers and commands of a transition commit together.

    Seals the definitions, and registers on the service what handles the replies, and what fires the timers.
    `seed` makes the jitter of retries the same each time. Raises DefinitionError for a definition that cannot work.
    """

    def __init__(self, service: Service, *sagas: Saga[Any], seed: int | None = None) -> None:
        self._service = service
        self._chance = random.Random(seed)
        self._sagas: dict[str, Saga[Any]] = {}
        self._fingerprints: dict[str, str] = {}
        for saga in sagas:
            saga.seal()
            if saga.name in self._sagas:
                raise DefinitionError(f"there are two sagas named {saga.name}")
            self._sagas[saga.name] = saga
            self._fingerprints[saga.name] = fingerprint(saga)
        service.replies(self._on_reply)
        service.job("timers", jobs.TimerJob(service.name, self.fire_due).run)
        service.job("timer_pruning", jobs.prune)

    async def start(self, saga: Saga[S], state: S, conn: AsyncConnection[TupleRow]) -> UUID:
        """Start a saga in the caller's transaction, and return its id.

        Leading local steps run at once; the first commands are sent when the transaction commits. `state` is copied.
        Raises NotInTransaction, Locked when another saga works on the same and this one is declared to fail then, and
        whatever a local step raises: then the caller rolls back, and there is no saga.
        """
        require_transaction(conn)
        if self._sagas.get(saga.name) is not saga:
            raise DefinitionError(f"saga {saga.name} is not one of the orchestrator's")
        saga_id = uuid7()
        stimulus = await self._lock(saga, saga_id, state, conn)
        new = Stored(saga.name, self._fingerprints[saga.name], 0, Record())
        await self._proceed(saga, saga_id, new, stimulus, Transaction(conn), starting=True)
        return saga_id

    async def abort(self, saga_id: UUID, reason: str, conn: AsyncConnection[TupleRow]) -> bool:
        """Have a saga undone, in the caller's transaction; False when it has ended, or is past the point of no return.

        A transaction that handles a reply to it is waited for. Raises NotInTransaction or NoSuchSaga.
        """
        require_transaction(conn)
        stored = await store.lock(conn, saga_id)
        saga = None if stored is None else self._sagas.get(stored.type)
        if stored is None or saga is None:
            raise NoSuchSaga(f"there is no saga {saga_id} of service {self._service.name}")
        return await self._proceed(saga, saga_id, stored, Aborted(reason), Transaction(conn)) is not None

    async def fire_due(
        self,
        conn: AsyncConnection[TupleRow],
        *,
        limit: int = jobs.TIMER_BATCH,
        fresh_s: float | None = None,
        at: datetime | None = None,
    ) -> int:
        """Fire up to `limit` timers that are due, the earliest first, in the caller's transaction; how many were tried.

        Each is fired as a whole or not at all: when the code of its saga raises, it is put off, in the end its saga is
        suspended, and the others are fired all the same. Timers of sagas that are busy are left for another time; so
        are those that have not begun after BATCH_S, and with `fresh_s` those that became due longer ago than that.
        `at` is what counts as now. Raises NotInTransaction, and trouble with the database.
        """
        require_transaction(conn)
        claimed = await timers.claim(conn, self._service.name, limit=limit, fresh_s=fresh_s, at=at)
        sagas: dict[UUID, Stored] = {}
        settled: list[int] = []
        tried = 0
        clock = asyncio.get_running_loop().time
        until_s = clock() + jobs.BATCH_S
        for timer in claimed:
            if tried and clock() > until_s:
                break
            # Of two timers of one saga, the second meets the saga as the first has left it.
            stored = sagas.get(timer.saga_id, timer.saga)
            tried += 1
            try:
                sagas[timer.saga_id] = await self._fire(timer, stored, conn)
            except Exception as error:  # the code of a saga may raise anything
                if trouble(error) is Trouble.AWAY and conn.closed:
                    raise
                sagas[timer.saga_id] = await self._put_off(timer, stored, error, conn)
            else:
                settled.append(timer.id)
        await timers.settle(conn, settled)
        return tried

    async def _on_reply(self, incoming: Incoming, tx: Transaction) -> None:
        operation = Operation.parse(incoming.operation)
        stored = await store.lock(tx.connection, operation.saga_id)
        if stored is None:
            raise Unprocessable(f"there is no saga {operation.saga_id}")
        saga = self._sagas.get(stored.type)
        if saga is None:
            raise Unprocessable(f"saga {operation.saga_id} is a {stored.type}, which is not defined here")
        replied = _read(saga, operation, incoming)
        if await self._proceed(saga, operation.saga_id, stored, replied, tx) is None:
            fields = {"action": "reply_stale", "service": self._service.name, "operation": str(operation)}
            logger.info("a reply came too late, or again: %s", operation, extra=fields)

    async def _fire(self, timer: DueTimer, stored: Stored, conn: AsyncConnection[TupleRow]) -> Stored:
        """Fire one timer, and say where that leaves its saga. Nothing is left of it when it raises."""
        saga = self._sagas.get(stored.type)
        if saga is None:
            raise UnknownSaga(f"saga {timer.saga_id} is a {stored.type}, which is not defined here")
        if timer.tally.always_interrupted:
            raise AlwaysInterrupted(f"{timer.tally.interruptions} conflicts or lost connections, one after the other")
        async with conn.transaction():
            changed = await self._proceed(saga, timer.saga_id, stored, Due(_timer(timer)), Transaction(conn))
        return stored if changed is None else changed

    async def _put_off(
        self, timer: DueTimer, stored: Stored, error: Exception, conn: AsyncConnection[TupleRow]
    ) -> Stored:
        """Have a timer that could not be fired tried again; or its saga suspended, when that was the last time."""
        tally = timer.tally.after(error)
        self._tell(timer, tally, error)
        saga = self._sagas.get(stored.type)
        if tally.spent and saga is not None:
            try:
                return await self._suspend(saga, timer, stored, tally, error, conn)
            except psycopg.Error as refused:
                # Not even that can be stored just now. The next try begins with what raises, and comes here again.
                if conn.closed:
                    raise
                self._tell(timer, tally, refused)
        await timers.put_off(conn, timer.id, tally, tally.delay_s(error) * self._chance.uniform(0.5, 1.0))
        return stored

    async def _suspend(
        self,
        saga: Saga[Any],
        timer: DueTimer,
        stored: Stored,
        tally: Tally,
        error: Exception,
        conn: AsyncConnection[TupleRow],
    ) -> Stored:
        """Suspend a saga whose code raises on a timer. The timer is held until something else happens in the saga."""
        stalled = Stalled(_timer(timer), described(error)[:REASON_MAX_CHARS])
        async with conn.transaction():
            await timers.put_off(conn, timer.id, tally, None)
            changed = await self._proceed(saga, timer.saga_id, stored, stalled, Transaction(conn))
        return stored if changed is None else changed

    def _tell(self, timer: DueTimer, tally: Tally, error: Exception) -> None:
        # Code of the saga may ask for a lock that it never gets: that must not go on in silence.
        news = tally.is_news(error)
        logger.log(
            logging.ERROR if news else logging.INFO,
            "saga %s %s: a timer (%s of step %s) could not be fired: %s",
            *(timer.saga.type, timer.saga_id, timer.purpose, timer.step, described(error)),
            exc_info=error if news else None,
            extra={"action": "timer_failed", "service": self._service.name, "saga_id": str(timer.saga_id)},
        )

    async def _proceed(
        self,
        saga: Saga[S],
        saga_id: UUID,
        stored: Stored,
        stimulus: Stimulus,
        tx: Transaction,
        *,
        starting: bool = False,
    ) -> Stored | None:
        """Let something happen in a saga, which the transaction has locked; None when it is stale."""
        turn = Turn(
            saga, saga_id, stored.record, tx, service=self._service.name, chance=self._chance, starting=starting
        )
        change = await turn.take(stimulus)
        if change is None:
            return None
        saved = await store.save(tx.connection, saga_id, self._service.name, stored, change)
        if stored.record.stalled and not saved.record.stalled:
            await timers.release(tx.connection, self._service.name, saga_id)
        return saved

    async def _lock(self, saga: Saga[S], saga_id: UUID, state: S, conn: AsyncConnection[TupleRow]) -> Stimulus:
        """Lock what the saga works on, where it says so; it is started, or has to wait."""
        if saga.lock is None:
            return Started(state)
        resource = locks.resource_of(saga.lock(state))
        if saga.on_locked == "fail":
            await locks.take(conn, resource, saga_id, self._service.name)
        elif not await locks.take_or_queue(conn, resource, saga_id, self._service.name):
            return Held(state, resource)
        return Started(state)


def _timer(timer: DueTimer) -> Timer:
    return Timer(Purpose(timer.purpose), timer.step, timer.attempt)


def _read(saga: Saga[Any], operation: Operation, incoming: Incoming) -> Replied:
    """What a reply says. Raises Unprocessable when the saga has no such step, or nobody there knows such a reply."""
    name = operation.step if operation.branch == ACTION else operation.branch
    step = saga.find(name)
    if not isinstance(step, RemoteStep):
        raise Unprocessable(f"saga {saga.name} has no step {name} in another service")
    compensates = COMPENSATION in incoming.headers
    reply_type: type[Reply] | None = (step.compensation_answer if compensates else step.answer)(incoming.type)
    if reply_type is None:
        raise UnexpectedReply(f"saga {saga.name}, step {name}: nothing handles the reply {incoming.type}")
    attempt = _compensation_attempt(incoming) if compensates else incoming.attempt
    return Replied(name, decode(reply_type, incoming.body), attempt, compensates)


def _compensation_attempt(incoming: Incoming) -> int | None:
    """Which attempt to undo a step is answered; None when the participant says no number."""
    said = str(incoming.headers[COMPENSATION])
    return incoming.compensation if said == str(incoming.compensation) else None
