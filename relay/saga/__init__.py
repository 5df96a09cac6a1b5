"""Sagas: business processes over several services, as steps that are undone when a later one fails."""

from relay.saga.definition import DefinitionError, Saga
from relay.saga.operation import Operation
from relay.saga.orchestrator import Orchestrator
from relay.saga.transition import Record, Status, UnexpectedReply

__all__ = ["DefinitionError", "Operation", "Orchestrator", "Record", "Saga", "Status", "UnexpectedReply"]
