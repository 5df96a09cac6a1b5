"""The inbox: which messages a consumer has handled."""

from typing import Any, Final, LiteralString

from psycopg import AsyncConnection

from relay.messaging.message import Incoming

_INSERT: Final[LiteralString] = """
    INSERT INTO relay.inbox (consumer, message_id, sent_at) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING
"""


async def add(conn: AsyncConnection[Any], consumer: str, incoming: Incoming) -> bool:
    """Note in the caller's transaction that `consumer` handles the message; False when it has done so before.

    While another transaction that handles the same message is open, this waits for its end: a copy is refused if the
    other commits, and accepted if it rolls back.
    """
    cursor = await conn.execute(_INSERT, (consumer, incoming.message_id, incoming.sent_at))
    return cursor.rowcount == 1
