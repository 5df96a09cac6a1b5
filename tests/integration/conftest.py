"""A service that takes notes: its database, and somebody who writes to it."""

from collections.abc import AsyncIterator, Callable

import pytest

from tests.conftest import VirtualHost
from tests.support.courier import Courier
from tests.support.database import Database
from tests.support.notebook import Notebook, with_notes


@pytest.fixture
def notes(make_database: Callable[..., Database]) -> Database:
    return with_notes(make_database())


@pytest.fixture
async def courier(vhost: VirtualHost) -> AsyncIterator[Courier]:
    """The queue of a notebook is there."""
    async with Courier(vhost.url) as courier:
        await courier.declare(Notebook().service.queue)
        yield courier
