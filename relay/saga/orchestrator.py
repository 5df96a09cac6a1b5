"""The orchestrator: runs sagas in its service's transactions. It holds no state; any instance handles any reply."""

import logging
from functools import reduce
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from relay.messaging import Reply, Service, Transaction, Unprocessable
from relay.messaging.outbox import require_transaction
from relay.saga import log, store
from relay.saga.definition import DefinitionError, RemoteStep, S, Saga
from relay.saga.log import LogEvent
from relay.saga.operation import Operation
from relay.saga.transition import (
    Act,
    Acted,
    Record,
    Replied,
    Send,
    Started,
    Stimulus,
    Task,
    Undo,
    Undone,
    decide,
    due,
    evolve,
    load,
)

logger = logging.getLogger(__name__)


class Orchestrator:
    """Runs the sagas of a service: state, log and commands of a transition commit together.

    Seals the definitions, and registers on the service the handlers of their replies.
    Raises DefinitionError for a definition that cannot work.
    """

    def __init__(self, service: Service, *sagas: Saga[Any]) -> None:
        self._service = service
        self._sagas: dict[str, Saga[Any]] = {}
        replies: dict[str, type[Reply]] = {}
        for saga in sagas:
            saga.seal()
            if saga.name in self._sagas:
                raise DefinitionError(f"there are two sagas named {saga.name}")
            self._sagas[saga.name] = saga
            for step in saga.steps:
                if isinstance(step, RemoteStep):
                    _collect(saga, step, replies)
        for reply_type in replies.values():
            service.reply(reply_type, self._on_reply)

    async def start(self, saga: Saga[S], state: S, conn: AsyncConnection[TupleRow]) -> UUID:
        """Start a saga in the caller's transaction, and return its id.

        Leading local steps run at once; the first command is sent when the transaction commits. `state` is copied.
        Raises NotInTransaction, and whatever a local step raises: then the caller rolls back, and there is no saga.
        """
        require_transaction(conn)
        if self._sagas.get(saga.name) is not saga:
            raise DefinitionError(f"saga {saga.name} is not one of the orchestrator's")
        saga_id = await store.new_id(conn)
        record, events = await self._advance(saga, saga_id, Record(), Started(state), Transaction(conn))
        await store.insert(conn, saga_id, saga.name, record)
        await log.append(conn, saga_id, events)
        return saga_id

    async def _on_reply(self, reply: Reply, tx: Transaction) -> None:
        incoming = tx.incoming
        operation = Operation.parse(incoming.operation if incoming else None)
        stored = await store.lock(tx.connection, operation.saga_id)
        if stored is None:
            raise Unprocessable(f"there is no saga {operation.saga_id}")
        saga = self._sagas.get(stored.type)
        if saga is None:
            raise Unprocessable(f"saga {operation.saga_id} is a {stored.type}, which is not defined here")
        record, events = await self._advance(saga, operation.saga_id, stored.record, Replied(operation.step, reply), tx)
        if not events:
            fields = {"action": "reply_stale", "service": self._service.name, "operation": str(operation)}
            logger.info("a reply came too late, or again: %s", operation, extra=fields)
            return
        await store.update(tx.connection, operation.saga_id, record)
        await log.append(tx.connection, operation.saga_id, events, incoming.message_id if incoming else None)

    async def _advance(
        self, saga: Saga[S], saga_id: UUID, record: Record, stimulus: Stimulus | None, tx: Transaction
    ) -> tuple[Record, list[LogEvent]]:
        """Go on until a command is on its way, or the saga has ended."""
        happened: list[LogEvent] = []
        while stimulus is not None:
            events = decide(saga, record, stimulus)
            record = reduce(evolve, events, record)
            happened += events
            task = due(saga, record, events[-1]) if events else None
            stimulus = await self._do(saga, saga_id, record, task, tx)
        return record, happened

    async def _do(
        self, saga: Saga[S], saga_id: UUID, record: Record, task: Task[S] | None, tx: Transaction
    ) -> Stimulus | None:
        """Do what is due, and say what came of it; None when that is for somebody else to say."""
        match task:
            case Act(step):
                state = load(saga, record)
                await step.action(state, tx)
                return Acted(step.name, state)
            case Undo(step):
                state = load(saga, record)
                if step.compensation is not None:
                    await step.compensation(state, tx)
                return Undone(step.name, state)
            case Send(step, command):
                await tx.add(
                    command,
                    aggregate=(saga.name, saga_id),
                    to=step.to,
                    correlation_id=saga_id,
                    reply_to=self._service.name,
                    operation=str(Operation(saga_id, step.name)),
                )
        return None


def _collect(saga: Saga[Any], step: RemoteStep[Any], replies: dict[str, type[Reply]]) -> None:
    """Sagas may share types of reply, but not the name of one for two types: the name is all that a message tells."""
    for name, reply_type in step.replies.items():
        if replies.setdefault(name, reply_type) is not reply_type:
            saga.refuse(f"two different types of reply are named {name}", step.name)
