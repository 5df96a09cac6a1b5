"""What the crash-everywhere runner runs: services, their sagas, what begins, and what has to hold at the end."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeAlias

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from relay.messaging import Service
from relay.saga.orchestrator import Orchestrator

Connections: TypeAlias = Mapping[str, AsyncConnection[TupleRow]]
"""A connection to the database of each service, by the service's name."""

Begin: TypeAlias = Callable[[AsyncConnection[TupleRow], Random], Awaitable[None]]
"""Starts sagas, in a transaction of its service's database. What it leaves to chance, it asks the generator for."""

Invariants: TypeAlias = Callable[[Connections], Awaitable[None]]
"""Raises AssertionError for what must not be. It sees what all runs so far have left behind, at rest."""


class UnknownService(AssertionError):
    """A message is addressed to a service that the world does not have."""


@dataclass(frozen=True, slots=True)
class World:
    """Made anew in every process that a run consists of, as services are after a crash.

    `orchestrators` and `begin` are given by the names of their services. Each `begin` commits once in a run.
    """

    services: Sequence[Service]
    orchestrators: Mapping[str, Orchestrator]
    begin: Mapping[str, Begin]
    invariants: Invariants

    def service(self, name: str) -> Service:
        """The service of that name. Raises UnknownService when there is none."""
        for service in self.services:
            if service.name == name:
                return service
        raise UnknownService(f"the world has no service {name}, and something is addressed to it")
