"""A connection to RabbitMQ that is given up while it is being set up."""

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from relay.broker.connection import Connection
from tests.conftest import VirtualHost

TURNS = 200
"""More turns of the loop than setting up a connection takes."""


async def _given_up_after(turns: int, url: str) -> bool:
    """Whether it had been set up by then."""
    opening = asyncio.create_task(Connection.open(url, name="hasty"))
    for _ in range(turns):
        await asyncio.sleep(0)
    opening.cancel()
    with suppress(asyncio.CancelledError):
        await (await opening).close()
        return True
    return False


class SilentBroker:
    """It takes a connection, hears what the client has to say first, and never answers."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.left_alone = asyncio.Event()

    async def listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(b"AMQP\x00\x00\x09\x01"))
        self.asked.set()
        with suppress(ConnectionResetError):
            await reader.read()
        writer.close()
        self.left_alone.set()


@pytest.fixture
async def complaints() -> list[dict[str, Any]]:
    """What the loop has to say of callbacks that failed: a person would see it as a traceback."""
    heard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context))
    return heard


async def test_it_can_be_given_up_at_any_moment_without_a_traceback(
    vhost: VirtualHost, complaints: list[dict[str, Any]]
) -> None:
    outcomes = {await _given_up_after(turns, vhost.url) for turns in range(TURNS)}
    assert False in outcomes
    assert complaints == []


async def test_given_up_in_the_middle_of_the_handshake_it_hangs_up(complaints: list[dict[str, Any]]) -> None:
    broker = SilentBroker()
    async with await asyncio.start_server(broker.listen, "127.0.0.1", 0) as server, asyncio.timeout(30):
        port = server.sockets[0].getsockname()[1]
        opening = asyncio.create_task(Connection.open(f"amqp://guest:guest@127.0.0.1:{port}/", name="hasty"))
        await broker.asked.wait()
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await broker.left_alone.wait()
    assert complaints == []
