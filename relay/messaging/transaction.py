"""The transaction that a handler runs in."""

from typing import TypeAlias, Unpack
from uuid import UUID

from psycopg import AsyncConnection, AsyncCursor
from psycopg.abc import Params, QueryNoTemplate
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from relay.errors import RelayError
from relay.messaging import outbox
from relay.messaging.message import Incoming, Message
from relay.messaging.outbox import Aggregate, Options

Pool: TypeAlias = AsyncConnectionPool[AsyncConnection[TupleRow]]
"""Where a service gets its connections."""


class TransactionLost(RelayError):
    """A statement failed and the handler went on: PostgreSQL would answer the commit with a rollback, silently."""

    hint = "Let the exception of a failed statement out of the handler, or put the statement into a savepoint."


class Transaction:
    """What a handler may use: its connection, and the message that it handles.

    Everything done through it commits together, after the handler has returned; nothing of it does if it raises.
    """

    def __init__(self, connection: AsyncConnection[TupleRow], incoming: Incoming | None = None) -> None:
        self.connection = connection
        self.incoming = incoming
        """The message that is handled. None where none is: in the first steps of a saga that its owner starts."""

    async def execute(self, query: QueryNoTemplate, params: Params | None = None) -> AsyncCursor[TupleRow]:
        """Execute a statement in this transaction."""
        return await self.connection.execute(query, params)

    async def add(self, message: Message, *, aggregate: Aggregate, **options: Unpack[Options]) -> UUID:
        """Add a message to the outbox, as `outbox.add` does; the handled message is given as its cause."""
        if self.incoming is not None:
            options.setdefault("causation_id", self.incoming.message_id)
        return await outbox.add(self.connection, message, aggregate=aggregate, **options)

    def require_alive(self) -> None:
        """Raise TransactionLost when the transaction has failed, so that it can no longer commit."""
        if self.connection.info.transaction_status == TransactionStatus.INERROR:
            raise TransactionLost("a statement failed in the transaction, and its exception was swallowed")
