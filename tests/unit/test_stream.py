"""The COPY BOTH conversation, with a stand-in for PostgreSQL that sends what it is told to, byte for byte."""

import asyncio
import struct
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

import pytest

from relay.errors import SourceAway
from relay.wal.lsn import Lsn
from relay.wal.protocol import Keepalive, XLogData
from relay.wal.stream import BATCH, BATCH_BYTES, Stream
from tests.support.waiting import eventually

SSL_REQUESTS = (80877103, 80877104)
QUERY = b"Q"


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack(">I", len(body) + 4) + body


def piece(number: int, data: bytes = b"change") -> bytes:
    """CopyData with the message of a plugin."""
    return message(b"d", b"w" + struct.pack(">QQq", number, number, 0) + data)


def pieces(*numbers: int) -> list[XLogData]:
    return [XLogData(Lsn(number), Lsn(number), b"change") for number in numbers]


class Walsender:
    """Lets one client in, answers START_REPLICATION, and keeps what the client says from then on."""

    def __init__(self) -> None:
        self.heard = b""
        self._streaming = asyncio.Event()
        self._gone = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.hang_up()
        await self._gone.wait()
        self._server.close()
        await self._server.wait_closed()

    async def stream(self) -> Stream:
        """A client, to which frames can be sent."""
        port = self._server.sockets[0].getsockname()[1]
        dsn = f"host=127.0.0.1 port={port} user=relay dbname=orders sslmode=disable gssencmode=disable"
        stream = await Stream.open(dsn, name="relay")
        await stream.start("slot", "publication")
        return stream

    def send(self, *written: bytes) -> None:
        self._writer.write(b"".join(written))

    async def send_split(self, written: bytes, *, every: int) -> None:
        for at in range(0, len(written), every):
            self._writer.write(written[at : at + every])
            await asyncio.sleep(0)

    def hang_up(self) -> None:
        self._writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        try:
            await self._let_in(reader)
            while not (await self._query(reader)).startswith(b"START_REPLICATION"):
                self.send(message(b"C", b"SET\0"), message(b"Z", b"I"))
            self.send(message(b"W", b"\0\0\0"))
            while heard := await reader.read(65536):
                self.heard += heard
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has hung up
        finally:
            writer.close()
            self._gone.set()

    async def _let_in(self, reader: asyncio.StreamReader) -> None:
        (length,) = struct.unpack(">I", await reader.readexactly(4))
        await reader.readexactly(length - 4)
        said = {b"server_version": b"18.0", b"client_encoding": b"UTF8", b"standard_conforming_strings": b"on"}
        self.send(message(b"R", struct.pack(">I", 0)))
        self.send(*(message(b"S", name + b"\0" + value + b"\0") for name, value in said.items()))
        self.send(message(b"Z", b"I"))

    async def _query(self, reader: asyncio.StreamReader) -> bytes:
        kind = await reader.readexactly(1)
        (length,) = struct.unpack(">I", await reader.readexactly(4))
        body = await reader.readexactly(length - 4)
        assert kind == QUERY
        return body


@pytest.fixture
async def walsender() -> AsyncIterator[Walsender]:
    async with Walsender() as walsender:
        yield walsender


@pytest.fixture
async def stream(walsender: Walsender) -> AsyncIterator[Stream]:
    stream = await walsender.stream()
    yield stream
    await stream.close()


def watched(stream: Stream) -> bool:
    """Whether the loop looks at the socket."""
    return stream._watched is not None


async def read(stream: Stream, count: int) -> list[XLogData | Keepalive]:
    """That many frames, however many come at once."""
    frames: list[XLogData | Keepalive] = []
    async with asyncio.timeout(10):
        while len(frames) < count:
            frames += await stream.read()
    return frames


async def waiting(stream: Stream) -> asyncio.Task[list[XLogData | Keepalive]]:
    """A read for which nothing has come yet."""
    reading = asyncio.ensure_future(stream.read())
    await eventually(lambda: watched(stream))
    return reading


@pytest.mark.parametrize("every", [1, 2, 3, 7, 31, 1000])
async def test_frames_arrive_whole_wherever_the_network_cuts_them(
    walsender: Walsender, stream: Stream, every: int
) -> None:
    keepalive = message(b"d", b"k" + struct.pack(">QqB", 7, 0, 1))
    reading = asyncio.ensure_future(read(stream, 4))
    await walsender.send_split(piece(1) + piece(2) + keepalive + piece(3), every=every)
    assert await reading == [*pieces(1, 2), Keepalive(Lsn(7), reply_requested=True), *pieces(3)]


async def test_what_is_there_is_handed_over_at_once_and_in_batches_that_are_bounded(
    walsender: Walsender, stream: Stream
) -> None:
    numbers = range(1, 3 * BATCH)
    walsender.send(*map(piece, numbers))
    sizes: list[int] = []
    frames: list[XLogData | Keepalive] = []
    async with asyncio.timeout(10):
        while len(frames) < len(numbers):
            batch = await stream.read()
            sizes.append(len(batch))
            frames += batch
    assert frames == pieces(*numbers)
    assert max(sizes) == BATCH


async def test_large_frames_come_in_smaller_batches(walsender: Walsender, stream: Stream) -> None:
    large = BATCH_BYTES // 2
    walsender.send(*(piece(number, bytes(large)) for number in range(6)))
    async with asyncio.timeout(30):
        batches = [await stream.read()]
        while sum(map(len, batches)) < 6:
            batches.append(await stream.read())
    assert max(map(len, batches)) <= 2
    assert {len(frame.data) for batch in batches for frame in batch if isinstance(frame, XLogData)} == {large}


async def test_frames_before_the_end_of_the_stream_are_handed_over_and_then_the_servers_words(
    walsender: Walsender, stream: Stream
) -> None:
    fatal = b"SFATAL\0C57P01\0Mterminating connection due to administrator command\0\0"
    walsender.send(piece(1), piece(2), message(b"E", fatal))
    assert await read(stream, 2) == pieces(1, 2)
    walsender.hang_up()
    for _ in range(2):
        with pytest.raises(SourceAway, match="due to administrator command"):
            await stream.read()


async def test_a_stream_that_the_server_ends_says_so_and_its_socket_is_left_alone(
    walsender: Walsender, stream: Stream
) -> None:
    reading = await waiting(stream)
    walsender.send(piece(1), message(b"c"), message(b"C", b"COPY 0\0"))
    assert await reading == pieces(1)
    with pytest.raises(SourceAway, match="the replication stream has ended"):
        await stream.read()
    assert not watched(stream)


async def test_a_cancelled_read_has_taken_nothing(walsender: Walsender, stream: Stream) -> None:
    for number in range(5):
        reading = asyncio.ensure_future(stream.read())
        for _ in range(number):
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])
        assert reading.cancelled()
    walsender.send(piece(1), piece(2))
    assert await read(stream, 2) == pieces(1, 2)


async def test_others_get_their_turn_however_much_there_is_to_read(walsender: Walsender, stream: Stream) -> None:
    walsender.send(*map(piece, range(4 * BATCH)))
    turns = 0

    async def work() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    working = asyncio.ensure_future(work())
    async with asyncio.timeout(10):
        for _ in range(4):
            before = turns
            await stream.read()
            assert turns > before
    working.cancel()


async def test_the_socket_is_looked_at_from_one_wait_to_the_next_and_registered_once(
    walsender: Walsender, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    registered = []
    add_reader = loop.add_reader

    def counted(fd: int, *rest: object) -> None:
        registered.append(fd)
        add_reader(fd, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "add_reader", counted)
    own = stream._connection.fileno()
    for number in range(5):
        reading = asyncio.ensure_future(read(stream, 1))
        await eventually(lambda: own in registered)
        walsender.send(piece(number))
        assert await reading == pieces(number)
    assert registered.count(own) == 1


async def test_what_nobody_reads_does_not_keep_the_loop_busy(walsender: Walsender, stream: Stream) -> None:
    reading = await waiting(stream)
    walsender.send(piece(1))
    assert await reading == pieces(1)
    assert watched(stream)
    walsender.send(piece(2))
    await eventually(lambda: not watched(stream))
    assert await stream.read() == pieces(2)


async def test_a_socket_that_has_the_number_of_a_lost_one_is_looked_at(walsender: Walsender) -> None:
    async with Walsender() as another:
        lost = await walsender.stream()
        number = lost._connection.fileno()
        reading = await waiting(lost)
        walsender.hang_up()
        with pytest.raises(SourceAway):
            await reading
        stream = await another.stream()
        assert stream._connection.fileno() == number
        reading = await waiting(stream)
        another.send(piece(1))
        async with asyncio.timeout(10):
            assert await reading == pieces(1)
        await stream.close()
        await lost.close()


async def test_a_loss_that_a_report_finds_reaches_the_one_who_reads(stream: Stream) -> None:
    reading = await waiting(stream)
    await stream._connection.close()
    with pytest.raises(SourceAway):
        await stream.report(Lsn(5))
    async with asyncio.timeout(10):
        with pytest.raises(SourceAway):
            await reading


async def test_a_report_reaches_the_server(walsender: Walsender, stream: Stream) -> None:
    await stream.report(Lsn(5))
    await eventually(lambda: len(walsender.heard) >= 39)
    assert walsender.heard[:30] == message(b"d", b"r" + struct.pack(">QQQ", 5, 5, 5) + bytes(9))[:30]


async def test_a_closed_stream_is_not_looked_at_any_more(walsender: Walsender, stream: Stream) -> None:
    number = stream._connection.fileno()
    reading = await waiting(stream)
    walsender.send(piece(1))
    assert await reading == pieces(1)
    assert watched(stream)
    await stream.close()
    assert not asyncio.get_running_loop().remove_reader(number)
