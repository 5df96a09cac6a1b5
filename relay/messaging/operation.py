"""The operation: what must happen at most once, whatever is sent twice."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, LiteralString, NamedTuple, Self, TypeAlias, cast
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import tuple_row

from relay.errors import RelayError
from relay.messaging import outbox
from relay.messaging.message import Compensated, Incoming, OperationCancelled, Reply, Unprocessable, type_of

TIMED_VERSION: Final = 7
"""The version of UUIDs that begin with milliseconds since 1970. Source: RFC 9562, section 5.7."""

ACTION: Final = "action"
"""The branch of a step's own command."""

OPERATION_RETENTION: Final = timedelta(days=90)
"""How long an operation is kept after it was last changed. A saga has to have ended by then."""


@dataclass(frozen=True, slots=True)
class Operation:
    """A step of a saga, as commands name it and replies repeat it: saga id / step / branch.

    It is the same for an action, its repeats and its compensation.
    """

    saga_id: UUID
    step: str
    branch: str = ACTION

    def __str__(self) -> str:
        return f"{self.saga_id}/{self.step}/{self.branch}"

    @classmethod
    def parse(cls, text: str | None) -> Self:
        """Read an operation. Raises Unprocessable when it is none: without it, nobody knows what is answered."""
        match (text or "").split("/"):
            case [saga_id, step, branch] if step and branch:
                try:
                    return cls(UUID(saga_id), step, branch)
                except ValueError:
                    pass
        raise Unprocessable(f"the reply repeats no operation like saga id/step/branch: {text!r}")


def may_be_forgotten(operation: str) -> bool:
    """Whether the saga is so old that an operation which is not recorded may have been. Pure, but for the clock.

    False where the saga's id, which another engine may have made, does not tell its time.
    """
    try:
        saga_id = UUID(operation.partition("/")[0])
    except ValueError:
        return False
    if saga_id.version != TIMED_VERSION:
        return False
    age_s = datetime.now(UTC).timestamp() - (saga_id.int >> 80) / 1000
    return age_s > OPERATION_RETENTION.total_seconds()


State: TypeAlias = Literal["done", "failed", "cancelled", "compensated"]
"""What has become of an operation: the values that relay.operation holds."""


class Written(NamedTuple):
    """A reply as it is stored and sent."""

    type: str
    body: str

    @classmethod
    def of(cls, reply: Reply) -> Self:
        """Write a reply."""
        return cls(type_of(reply), reply.model_dump_json())


@dataclass(frozen=True, slots=True)
class Recorded:
    """An operation that has been recorded before. `attempt` is the one that led to `state`.

    `reply` is None only where nothing was ever answered: a cancelled one that was stored by its first statement.
    """

    state: State
    attempt: int
    reply: Written | None


@dataclass(frozen=True, slots=True)
class Run:
    """Run the handler. What it returns decides what becomes of the operation."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """Run nothing, change nothing, and answer this."""

    reply: Written


@dataclass(frozen=True, slots=True)
class Cancel:
    """Run nothing, record that the action never will either, and answer that it is undone."""


Decision: TypeAlias = Run | Repeat | Cancel

COMPENSATED: Final = Written.of(Compensated())
CANCELLED: Final = Written.of(OperationCancelled())


def decide_action(recorded: Recorded | None, attempt: int) -> Decision:
    """What an action does that finds this recorded, None when nothing was. Pure."""
    match recorded:
        case None:
            return Run()
        case Recorded("cancelled" | "compensated"):
            return Repeat(CANCELLED)
        case Recorded("failed", failed) if failed < attempt:
            return Run()
        case Recorded(reply=Written() as reply):
            return Repeat(reply)
    raise ValueError(f"an action left no reply: {recorded}")


def decide_compensation(recorded: Recorded | None) -> Decision:
    """What a compensation does that finds this recorded, None when nothing was. Pure."""
    match recorded:
        case Recorded("done"):
            return Run()
        case Recorded("cancelled" | "compensated", reply=reply):
            return Repeat(reply or COMPENSATED)
    return Cancel()


_LOCK: Final[LiteralString] = """
    SELECT outcome, attempt, reply_type, reply::text FROM relay.operation
    WHERE consumer = %s AND operation = %s FOR UPDATE
"""

_RECORD: Final[LiteralString] = """
    UPDATE relay.operation
    SET outcome = %s, attempt = coalesce(%s, attempt), reply_type = %s, reply = %s::text::json, at = clock_timestamp()
    WHERE consumer = %s AND operation = %s
"""

_RECORD_AND_SEND: Final = f"WITH recorded AS ({_RECORD}) {outbox.INSERT}"


class OperationGone(RelayError):
    """An operation that was recorded a moment ago has been pruned. The next try records it anew."""


async def lock(conn: AsyncConnection[Any], consumer: str, operation: str) -> Recorded:
    """Read what has become of an operation, and lock it until the transaction ends. Raises OperationGone."""
    cursor = await conn.cursor(row_factory=tuple_row).execute(_LOCK, (consumer, operation))
    row = await cursor.fetchone()
    if row is None:
        raise OperationGone(f"{consumer} has no record of {operation} any more")
    state, attempt, reply_type, body = cast(tuple[State, int, str | None, str | None], row)
    return Recorded(state, attempt, None if reply_type is None else Written(reply_type, body or "{}"))


async def record(
    conn: AsyncConnection[Any], consumer: str, incoming: Incoming, state: State, reply: Written, send: outbox.Row | None
) -> None:
    """Record what has become of the message's operation, and the reply that repeats are answered with; send a row."""
    attempt = incoming.attempt if incoming.compensation is None else None
    what = (state, attempt, reply.type, reply.body, consumer, incoming.operation)
    if send is None:
        await conn.execute(_RECORD, what)
    else:
        await conn.execute(_RECORD_AND_SEND, (*what, *send))
