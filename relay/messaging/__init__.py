"""The library that services use: messages that commit with the work they are about, and handlers that run once."""

from relay.messaging import event_store, inbox, outbox
from relay.messaging.event_store import StoredEvent, UnreadableEvent, WrongVersion
from relay.messaging.message import Command, Event, Failure, Incoming, Message, Reply, Unprocessable
from relay.messaging.outbox import NotInTransaction, WrongDestination
from relay.messaging.service import HandlerTaken, Service
from relay.messaging.transaction import Pool, Transaction, TransactionLost

__all__ = [
    "Command",
    "Event",
    "Failure",
    "HandlerTaken",
    "Incoming",
    "Message",
    "NotInTransaction",
    "Pool",
    "Reply",
    "Service",
    "StoredEvent",
    "Transaction",
    "TransactionLost",
    "Unprocessable",
    "UnreadableEvent",
    "WrongDestination",
    "WrongVersion",
    "event_store",
    "inbox",
    "outbox",
]
