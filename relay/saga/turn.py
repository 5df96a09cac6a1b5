"""One turn of a saga: what a stimulus leads to, until the saga waits for somebody again; all in one transaction."""

import logging
import random
from collections import deque
from functools import reduce
from typing import Final, Generic
from uuid import UUID

from psycopg import Rollback
from psycopg.pq import TransactionStatus

from relay.broker.properties import ATTEMPT, COMPENSATION
from relay.messaging import Failure, Operation, Transaction
from relay.messaging.attempt import uncancelled
from relay.messaging.deadline import Deadline
from relay.messaging.failures import described
from relay.messaging.message import type_of
from relay.messaging.operation import ACTION
from relay.messaging.retry import Trouble, trouble
from relay.saga.definition import Saga
from relay.saga.log import Happened, LogEvent
from relay.saga.record import Phase, Record, evolve
from relay.saga.step import Action, LocalStep, S
from relay.saga.stimulus import Act, Acted, ActionFailed, Send, SetTimer, Stimulus, Task, Undo, UndoFailed, Undone
from relay.saga.store import Alarm, Change
from relay.saga.task import due, load
from relay.saga.transition import decide

REASON_MAX_CHARS: Final = 500
"""So much of an exception's text is kept as the reason of a failure."""

_CHECK_WHAT_IS_DEFERRED: Final = """
    SAVEPOINT deferred; SET CONSTRAINTS ALL IMMEDIATE; ROLLBACK TO SAVEPOINT deferred; RELEASE SAVEPOINT deferred
"""
"""Raises what deferred constraints and triggers would raise at the commit, and leaves them as deferred as they were."""

logger = logging.getLogger(__name__)


class Turn(Generic[S]):
    """A saga in the hands of one transaction, which holds its lock. For one stimulus; storing it is the caller's part.

    `starting`: the owner's transaction starts it, and gets what a local step raises. Later on that is a failed attempt.
    """

    def __init__(
        self,
        saga: Saga[S],
        saga_id: UUID,
        record: Record,
        tx: Transaction,
        *,
        service: str,
        chance: random.Random,
        starting: bool = False,
    ) -> None:
        self._saga = saga
        self._saga_id = saga_id
        self._record = record
        self._tx = tx
        self._service = service
        self._chance = chance
        self._starting = starting
        self._events: list[LogEvent] = []
        self._alarms: list[Alarm] = []
        self._tasks: deque[Task[S]] = deque()

    async def take(self, stimulus: Stimulus) -> Change | None:
        """Let this happen, and do what is to be done then; what is to be stored, None when the stimulus was stale.

        Raises UnexpectedReply, what conditions and handlers of replies raise, and trouble with the database.
        """
        self._decide(stimulus)
        while self._tasks:
            # What a local step has changed is decided on before the next one begins: they share the state.
            came_of_it = await self._do(self._tasks.popleft())
            if came_of_it is not None:
                self._decide(came_of_it)
            if isinstance(came_of_it, ActionFailed) and came_of_it.failure is None:
                self._tell_if_given_up(came_of_it)
        incoming = self._tx.incoming
        message_id = None if incoming is None else incoming.message_id
        return Change(self._record, self._events, self._alarms, message_id) if self._events else None

    def _decide(self, stimulus: Stimulus) -> None:
        events = decide(self._saga, self._record, stimulus)
        self._record = reduce(evolve, events, self._record)
        self._events += events
        for event in events:
            self._tasks.extend(due(self._saga, self._record, event))
            if event.what is Happened.SAGA_SUSPENDED:
                self._log(logging.ERROR, f"is suspended: {event.reason}", "saga_suspended")

    async def _do(self, task: Task[S]) -> Stimulus | None:
        """Do it, and say what came of it; None when that is for somebody else to say."""
        match task:
            case Act(step):
                return await self._act(step)
            case Undo(step):
                return await self._undo(step)
            case Send():
                await self._send(task)
            case SetTimer(timer, after_s, jitter):
                delay_s = after_s * self._chance.uniform(0.5, 1.0) if jitter else after_s
                self._alarms.append(Alarm(timer.purpose.value, timer.step, timer.attempt, delay_s))
        return None

    async def _send(self, task: Send[S]) -> None:
        step = task.step
        branch = ACTION if step.principal is step else step.name
        headers = {COMPENSATION if task.compensates else ATTEMPT: str(task.attempt)}
        await self._tx.add(
            task.command,
            aggregate=(self._saga.name, self._saga_id),
            to=step.to,
            correlation_id=self._saga_id,
            reply_to=self._service,
            operation=str(Operation(self._saga_id, step.principal.name, branch)),
            # The first attempt needs no header: that is what its absence means.
            headers={} if headers == {ATTEMPT: "1"} else headers,
        )

    async def _act(self, step: LocalStep[S]) -> Stimulus:
        state = load(self._saga, self._record)
        try:
            failure = await self._attempt(step.action, state, step.timeout_s)
        except Exception as error:  # the code of a saga may raise anything
            return ActionFailed(step.name, self._excuse(step, error))
        return Acted(step.name, state) if failure is None else ActionFailed(step.name, type_of(failure), failure)

    async def _undo(self, step: LocalStep[S]) -> Stimulus:
        state = load(self._saga, self._record)
        if step.compensation is None:
            return Undone(step.name, state)
        try:
            failure = await self._attempt(step.compensation, state, step.timeout_s)
        except Exception as error:  # the code of a saga may raise anything
            return UndoFailed(step.name, self._excuse(step, error))
        return Undone(step.name, state) if failure is None else UndoFailed(step.name, type_of(failure))

    async def _attempt(self, action: Action[S], state: S, timeout_s: float) -> Failure | None:
        """Run code of the saga in a savepoint: what it wrote is undone if it returns a Failure, or raises.

        Raises TookTooLong when it is not done in time.
        """
        conn = self._tx.connection
        if conn.info.transaction_status == TransactionStatus.IDLE:
            # The caller's transaction begins with its first statement, and a savepoint outside of it would be a
            # transaction of its own.
            await conn.execute("SELECT")
        async with conn.transaction() as savepoint:
            async with Deadline(timeout_s):
                failure = await uncancelled(action(state, self._tx))
            self._tx.require_alive()
            if failure is not None:
                raise Rollback(savepoint)
            if not self._starting:
                # At the commit it would be the failure of all that commits with it: other sagas' timers, or a reply.
                await conn.execute(_CHECK_WHAT_IS_DEFERRED)
        return failure

    def _excuse(self, step: LocalStep[S], error: Exception) -> str:
        """The reason that an exception gives. Raises it again where it is not for the saga to deal with."""
        away = trouble(error) is Trouble.AWAY and self._tx.connection.closed  # and not another database
        if self._starting or away or trouble(error) is Trouble.CONFLICT:
            raise error
        reason = described(error)[:REASON_MAX_CHARS]
        self._log(logging.INFO, f"step {step.name} raised {reason}", "local_step_raised", error)
        return reason

    def _tell_if_given_up(self, failed: ActionFailed) -> None:
        """What raised each time is for somebody to look at. The log of the saga has every attempt with its reason."""
        stands = self._record.steps[failed.step]
        if stands.phase in (Phase.FAILED, Phase.STUCK):
            words = f"step {failed.step} is given up after {stands.attempt} attempts: {failed.reason}"
            self._log(logging.ERROR, words, "step_given_up")

    def _log(self, level: int, text: str, action: str, error: Exception | None = None) -> None:
        fields = {"action": action, "service": self._service, "saga_id": str(self._saga_id), "saga": self._saga.name}
        logger.log(level, "saga %s %s %s", self._saga.name, self._saga_id, text, exc_info=error, extra=fields)
