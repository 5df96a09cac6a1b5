"""The storm's tools do what they say: a checker that cannot fail proves nothing."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.broker.properties import Delivery, Properties
from tests.chaos.plan import LEAST_OF_EACH, Kind, plan
from tests.chaos.storm import Damage, unexcused_repeats
from tests.support.proxy import AMQP, POSTGRES, Crumbs, Cut, Direction, Frames, Protocol, Proxy

WAIT_S = 10.0
SILENCE_S = 0.2
"""How long nothing has to arrive to be held up."""
AMQP_BYTES = [b"AMQP\0\0\x09\x01", b"\x01\0\0\0\0\0\x02hi\xce", b"\x08\0\0\0\0\0\0\xce", b"\x03\0\1\0\0\0\x05hello\xce"]
POSTGRES_BYTES = [b"\0\0\0\x0a\0\x03\0\0u\0", b"p\0\0\0\x07abc", b"S\0\0\0\x04", b"d\0\0\0\x08data"]


@pytest.mark.parametrize(("protocol", "frames"), [(AMQP, AMQP_BYTES), (POSTGRES, POSTGRES_BYTES)])
def test_a_position_is_inside_a_frame_unless_it_is_at_the_end_of_one(protocol: Protocol, frames: list[bytes]) -> None:
    stream = b"".join(frames)
    ends = {sum(map(len, frames[:count])) for count in range(len(frames) + 1)}
    for position in range(len(stream) + 1):
        seen = Frames(*protocol)
        seen.feed(stream[:position])
        assert seen.inside == (position not in ends), position


@given(st.lists(st.integers(1, 12)))
def test_it_does_not_matter_in_what_pieces_a_stream_passes(sizes: list[int]) -> None:
    stream = b"".join(AMQP_BYTES)
    seen, at = Frames(*AMQP), 0
    for size in sizes:
        seen.feed(stream[at : at + size])
        at = min(at + size, len(stream))
    whole = Frames(*AMQP)
    whole.feed(stream[:at])
    assert seen.inside == whole.inside


@given(st.binary(max_size=200), st.integers(0, 250), st.integers(1, 9), st.integers())
def test_crumbs_are_the_whole_in_small_pieces(data: bytes, total: int, most: int, seed: int) -> None:
    crumbs = Crumbs(total, most, Random(seed))
    pieces = crumbs.cut(data)
    assert b"".join(pieces) == data
    small = pieces if total >= len(data) else pieces[:-1]
    assert all(1 <= len(piece) <= most for piece in small)


def test_the_same_seed_is_the_same_plan_and_another_is_another() -> None:
    assert plan(5, 200) == plan(5, 200)
    assert plan(5, 200) != plan(6, 200)


@pytest.mark.parametrize(("count", "least"), [(11, 1), (22, 2), (200, LEAST_OF_EACH)])
def test_a_plan_has_enough_of_each_kind(count: int, least: int) -> None:
    faults = plan(1, count)
    counts = Counter(fault.kind for fault in faults)
    assert len(faults) == count
    assert min(counts[kind] for kind in Kind) >= least


@dataclass(frozen=True)
class Way:
    """A connection through a proxy, and all that the server at its end had heard when that ended."""

    proxy: Proxy
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    heard: asyncio.Future[bytes]


@asynccontextmanager
async def way() -> AsyncIterator[Way]:
    """To a server that says everything twice."""
    heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received = b""
        with suppress(ConnectionError):
            while data := await reader.read(1000):
                received += data
                writer.write(data * 2)
                await writer.drain()
        writer.close()
        heard.set_result(received)

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with asyncio.timeout(WAIT_S), Proxy(port, AMQP) as proxy:
        own_port = urlsplit(proxy.url_of(f"amqp://127.0.0.1:{port}")).port
        reader, writer = await asyncio.open_connection("127.0.0.1", own_port)
        yield Way(proxy, reader, writer, heard)
        writer.close()
    server.close()


async def all_of(reader: asyncio.StreamReader) -> bytes:
    """What arrives until the connection ends, in whatever way."""
    data = b""
    with suppress(ConnectionResetError):
        while more := await reader.read(1000):
            data += more
    return data


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("after", [1, 7, 8, 9, 15])
async def test_a_cut_lets_exactly_so_many_bytes_pass(after: int, reset: bool) -> None:
    async with way() as to:
        cut = Cut(Direction.BACK, after, reset=reset)
        to.proxy.order(cut)
        to.writer.write(AMQP_BYTES[0])
        assert len(await all_of(to.reader)) == after
        assert cut.done.done()


@pytest.mark.parametrize(("after", "passed"), [(8, 9), (12, 12), (18, 19), (26, 27)])
async def test_a_cut_that_is_to_split_a_frame_is_put_off_until_it_does(after: int, passed: int) -> None:
    async with way() as to:
        cut = Cut(Direction.FORTH, after, inside=True, reset=False)
        to.proxy.order(cut)
        to.writer.write(b"".join(AMQP_BYTES))
        assert len(await to.heard) == passed
        assert await cut.done


async def test_a_cut_between_two_frames_is_not_taken_for_one_inside() -> None:
    async with way() as to:
        cut = Cut(Direction.FORTH, len(AMQP_BYTES[0]), reset=False)
        to.proxy.order(cut)
        to.writer.write(b"".join(AMQP_BYTES))
        assert await to.heard == AMQP_BYTES[0]
        assert not await cut.done


async def test_what_is_held_up_arrives_whole_afterwards() -> None:
    async with way() as to:
        to.proxy.hold(Direction.BACK)
        to.writer.write(b"abc")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(to.reader.read(1), SILENCE_S)
        to.proxy.release()
        assert await to.reader.readexactly(6) == b"abcabc"


async def test_a_proxy_that_refuses_can_be_reached_again_at_the_same_place() -> None:
    async with way() as to:
        before = to.proxy.url_of("amqp://x")
        await to.proxy.refuse()
        assert await all_of(to.reader) == b""
        await to.proxy.restore()
        assert to.proxy.url_of("amqp://x") == before


NOW = datetime(2026, 1, 1, tzinfo=UTC)


def delivered(*ids: str) -> list[Delivery]:
    return [Delivery(0, "", "", False, Properties(name), b"") for name in ids]


def test_a_repeat_is_excused_by_damage_between_its_commit_and_its_return_and_by_nothing_else() -> None:
    committed = {"a": NOW, "b": NOW + timedelta(seconds=10)}
    damage = Damage(deliveries=1, over_at=NOW + timedelta(seconds=5))
    assert unexcused_repeats(committed, delivered("a", "a"), [damage]) == (1, [])
    assert unexcused_repeats(committed, delivered("b", "b"), [damage]) == (1, ["b"]), "committed when all was well"
    assert unexcused_repeats(committed, delivered("a", "a", "b"), []) == (1, ["a"]), "nothing has happened"
    later = Damage(deliveries=2, over_at=NOW + timedelta(seconds=5))
    assert unexcused_repeats(committed, delivered("a", "a", "b"), [later]) == (1, ["a"]), "came again before it"
