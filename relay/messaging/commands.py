"""Commands: carried out, at most once where they have an operation, and answered."""

from typing import Final

from psycopg import Rollback

from relay.broker.properties import ATTEMPT, COMPENSATION
from relay.messaging import operation, outbox
from relay.messaging.handler import Handling, Route, UndeclaredReply
from relay.messaging.message import Compensated, Done, Failure, Incoming, Reply, Unprocessable, type_of
from relay.messaging.operation import COMPENSATED, Cancel, Repeat, Run, State, Written
from relay.messaging.transaction import Transaction

FIRST_STATE: Final[dict[bool, State]] = {False: "done", True: "cancelled"}
"""What an operation is recorded with before anything is known: by an action, and by a compensation that comes first."""


class MistakenForAction(Unprocessable):
    """A saga sent the command to undo something, and its handler is registered as one that does something."""

    hint = "Register the handler with `@service.compensation`, and then `relay dead replay` the message."


async def carry_out(tx: Transaction, consumer: str, route: Route, incoming: Incoming, *, begun: bool) -> None:
    """Do what a command asks for, and answer it. Raises MistakenForAction.

    `begun`: this transaction has recorded its operation, and nobody had before.
    """
    if incoming.compensation is not None and not route.undoes:
        raise MistakenForAction(
            f"{incoming.type} is to undo {incoming.operation}, but {consumer} handles it as an action"
        )
    if incoming.operation is None:
        handling = route.prepare(incoming)
        await _send(tx, incoming, Written.of(await _run(tx, route, incoming, handling)))
        return
    recorded = None if begun else await operation.lock(tx.connection, consumer, incoming.operation)
    if route.undoes:
        decision = operation.decide_compensation(recorded)
    else:
        decision = operation.decide_action(recorded, incoming.attempt)
    match decision:
        case Repeat(reply):
            await _send(tx, incoming, reply)
        case Cancel():
            await _cancel(tx, consumer, incoming, begun=begun)
        case Run():
            said = await _run(tx, route, incoming, route.prepare(incoming))
            await _settle(tx, consumer, route, incoming, said)


async def _run(tx: Transaction, route: Route, incoming: Incoming, handling: Handling) -> Reply:
    """Run the handler; a Failure rolls back what it has written. Raises UndeclaredReply."""
    if route.may_fail:
        async with tx.connection.transaction() as savepoint:
            reply = _answer(route, incoming, await handling(tx))
            if isinstance(reply, Failure):
                raise Rollback(savepoint)
            tx.require_alive()
    else:
        reply = _answer(route, incoming, await handling(tx))
        tx.require_alive()
    return reply


def _answer(route: Route, incoming: Incoming, returned: Reply | None) -> Reply:
    """The reply to what the handler returned. Raises UndeclaredReply when the command does not declare it."""
    if route.undoes and (returned is None or isinstance(returned, Compensated)):
        return Compensated()
    reply = Done() if returned is None else returned
    declared = route.command.replies if route.command else ()
    wanted = returned is not None or incoming.reply_to is not None
    if declared and wanted and type(reply) not in declared:
        names = ", ".join(type_of(one) for one in declared)
        said = "nothing, which is a Done" if returned is None else type_of(reply)
        raise UndeclaredReply(f"the handler of {incoming.type} returned {said}, and {incoming.type} declares {names}")
    return reply


async def _cancel(tx: Transaction, consumer: str, incoming: Incoming, *, begun: bool) -> None:
    """The operation has not been done, and never will be."""
    if begun:  # it is recorded as that already
        await _send(tx, incoming, COMPENSATED)
    else:
        await operation.record(tx.connection, consumer, incoming, "cancelled", COMPENSATED, _row(incoming, COMPENSATED))


async def _settle(tx: Transaction, consumer: str, route: Route, incoming: Incoming, reply: Reply) -> None:
    """Record what the handler has made of the operation, and answer."""
    written, failed = Written.of(reply), isinstance(reply, Failure)
    if route.undoes and failed:  # it stays done, and keeps the reply to its action
        await _send(tx, incoming, written)
        return
    state: State = "compensated" if route.undoes else "failed" if failed else "done"
    await operation.record(tx.connection, consumer, incoming, state, written, _row(incoming, written))


async def _send(tx: Transaction, incoming: Incoming, reply: Written) -> None:
    row = _row(incoming, reply)
    if row is not None:
        await tx.execute(outbox.INSERT, row)


def _row(incoming: Incoming, reply: Written) -> outbox.Row | None:
    """The reply belongs to the aggregate and the operation of its command. Who wants none gets none."""
    if incoming.reply_to is None:
        return None
    return outbox.Row(
        kind="reply",
        aggregate_type=incoming.aggregate[0],
        aggregate_id=incoming.aggregate[1],
        type=reply.type,
        destination=incoming.reply_to,
        correlation_id=incoming.correlation_id,
        reply_to=None,
        causation_id=incoming.message_id,
        operation=incoming.operation,
        headers=_headers(incoming),
        payload=reply.body,
    )


def _headers(incoming: Incoming) -> str:
    """A reply repeats which attempt it answers, and whether that was to do or to undo: else nobody could tell."""
    if incoming.compensation is not None:
        return f'{{"{COMPENSATION}": "{incoming.compensation}"}}'
    return "{}" if incoming.attempt == 1 else f'{{"{ATTEMPT}": "{incoming.attempt}"}}'
