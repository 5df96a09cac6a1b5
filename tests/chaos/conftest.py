"""Servers that a test may crash."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from relay.demo.access import RELAY, relay_user
from relay.demo.servers.postgres import PrivatePostgres
from relay.demo.servers.rabbitmq import PrivateRabbitMQ
from tests.support.database import Database, Databases
from tests.support.servers import with_roles


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """pika shouts at every attempt of a mailbox to reach a broker that is being restarted."""
    caplog.set_level(logging.CRITICAL, logger="pika")


@dataclass(frozen=True)
class Servers:
    """A PostgreSQL and a RabbitMQ that the test may kill, and a database."""

    postgres: PrivatePostgres
    rabbit: PrivateRabbitMQ
    database: Database

    @property
    def relay_url(self) -> str:
        """RabbitMQ, with the rights of a relay."""
        return self.rabbit.amqp_url(RELAY)


@pytest.fixture
def servers() -> Iterator[Servers]:
    with PrivatePostgres(durable=False) as postgres, PrivateRabbitMQ([relay_user()]) as rabbit:
        database = Databases(with_roles(postgres.dsn("postgres"))).create()
        yield Servers(postgres, rabbit, database)
        database.connection.close()
