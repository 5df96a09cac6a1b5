"""The library that services use: messages that commit with the work they are about, and handlers that run once."""

from relay.messaging import event_store, outbox
from relay.messaging.deadline import TookTooLong
from relay.messaging.event_store import StoredEvent, UnreadableEvent, WrongVersion
from relay.messaging.handler import HandlerTaken, Outcome, UndeclaredReply
from relay.messaging.jobs import JobTaken
from relay.messaging.message import (
    Command,
    Compensated,
    Done,
    Event,
    Failure,
    Incoming,
    Message,
    OperationCancelled,
    Reply,
    Unprocessable,
)
from relay.messaging.operation import Operation
from relay.messaging.outbox import NotInTransaction, WrongDestination
from relay.messaging.retry import Retry
from relay.messaging.service import Service
from relay.messaging.transaction import Pool, Transaction, TransactionLost

__all__ = [
    "Command",
    "Compensated",
    "Done",
    "Event",
    "Failure",
    "HandlerTaken",
    "Incoming",
    "JobTaken",
    "Message",
    "NotInTransaction",
    "Operation",
    "OperationCancelled",
    "Outcome",
    "Pool",
    "Reply",
    "Retry",
    "Service",
    "StoredEvent",
    "TookTooLong",
    "Transaction",
    "TransactionLost",
    "UndeclaredReply",
    "Unprocessable",
    "UnreadableEvent",
    "WrongDestination",
    "WrongVersion",
    "event_store",
    "outbox",
]
