"""Sagas: business processes over several services, as steps that are undone when a later one fails."""

from relay.messaging.deadline import TookTooLong
from relay.messaging.operation import Operation
from relay.saga import locks
from relay.saga.definition import DefinitionError, Saga
from relay.saga.locks import Locked
from relay.saga.orchestrator import NoSuchSaga, Orchestrator
from relay.saga.record import Record, Status
from relay.saga.transition import UnexpectedReply

__all__ = [
    "DefinitionError",
    "Locked",
    "NoSuchSaga",
    "Operation",
    "Orchestrator",
    "Record",
    "Saga",
    "Status",
    "TookTooLong",
    "UnexpectedReply",
    "locks",
]
