"""The way to a server, with faults to order: cut at a byte, or inside a frame; held up; handed on in crumbs."""

import asyncio
import fcntl
import socket
import struct
import termios
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from random import Random
from types import TracebackType
from typing import NamedTuple, NoReturn, Self
from urllib.parse import urlsplit, urlunsplit

from relay.tasks import end

CHUNK_BYTES = 65536
FLUSH_S = 2.0
"""How long the last bytes before a cut may take to reach the other side's kernel."""
CRUMB_PAUSE_S = 0.0005
"""Between two crumbs, so that the receiver is likely to read them one by one."""
POLL_S = 0.001
"""How often to ask the kernel, which sends no event, whether the other side has taken what was sent."""
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER that makes close() send RST."""


class Direction(StrEnum):
    """Where bytes go."""

    FORTH = "to the server"
    BACK = "to the client"


class Shape(NamedTuple):
    """How a frame tells its length: how many bytes of header it takes, and the length of the whole by those."""

    header_bytes: int
    total: Callable[[bytes], int]


class Protocol(NamedTuple):
    """How the frames lie in the two streams of a connection. Only the client begins with a greeting."""

    greeting: Shape
    frame: Shape


AMQP = Protocol(Shape(8, lambda _: 8), Shape(7, lambda header: 7 + int.from_bytes(header[3:7]) + 1))
"""The header "AMQP0091"; then type, channel, size, payload, end. Source: AMQP 0-9-1, 4.2.2 and 2.3.5."""

POSTGRES = Protocol(
    Shape(4, lambda header: int.from_bytes(header)), Shape(5, lambda header: 1 + int.from_bytes(header[1:]))
)
"""A startup message has a length, all others have a type before it, which the length does not count. Without TLS, which
would begin with a request and an answer of another shape. Source: PostgreSQL, "Message Formats"."""


class Frames:
    """Where the frames of one stream begin and end, for as much of it as has been fed."""

    def __init__(self, first: Shape, rest: Shape) -> None:
        self._shape = first
        self._rest = rest
        self._header = b""
        self._left = 0

    @property
    def inside(self) -> bool:
        """Whether a frame has begun and has not ended."""
        return bool(self._header or self._left)

    def feed(self, data: bytes) -> None:
        """So much more has passed."""
        at = 0
        while at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
                continue
            missing = self._shape.header_bytes - len(self._header)
            self._header += data[at : at + missing]
            at += missing
            if len(self._header) == self._shape.header_bytes:
                self._left = self._shape.total(self._header) - self._shape.header_bytes
                self._header = b""
                self._shape = self._rest


def anyone(_: bytes) -> bool:
    """Every connection."""
    return True


def replicating(opening: bytes) -> bool:
    """A replication connection to PostgreSQL, by the first bytes that its client sent."""
    return b"\0replication\0" in opening


def querying(opening: bytes) -> bool:
    """Any other connection to PostgreSQL."""
    return not replicating(opening)


class Cut:
    """An order to break a connection after exactly `after_bytes` more bytes in one direction.

    The first connection of these that carries anything there after the order is the one. With `inside` the cut is put
    off byte by byte until it splits a frame. `done` is resolved, once it is cut, with whether it did.
    """

    def __init__(
        self,
        direction: Direction,
        after_bytes: int,
        *,
        inside: bool = False,
        reset: bool = True,
        only: Callable[[bytes], bool] = anyone,
    ) -> None:
        self.direction = direction
        self.left = after_bytes
        self.inside = inside
        self.reset = reset
        self.only = only
        self.victim: _Flow | None = None
        self.done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def concerns(self, flow: "_Flow", direction: Direction) -> bool:
        """Whether it is this connection that is to be cut; the first that qualifies is, from then on."""
        if self.victim is None and direction is self.direction and self.only(flow.opening):
            self.victim = flow
        return self.victim is flow and direction is self.direction


class _Side:
    """One direction of a connection: where from, where to, and where in a frame it is."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, frames: Frames) -> None:
        self.reader = reader
        self.writer = writer
        self.frames = frames
        writer.transport.set_write_buffer_limits(high=0)  # drain() then waits until the kernel has everything

    async def send(self, data: bytes) -> None:
        self.frames.feed(data)
        self.writer.write(data)
        await self.writer.drain()

    async def arrived(self) -> bool:
        """Wait until the other side's kernel has acknowledged all that was sent; False when it does not."""
        for _ in range(int(FLUSH_S / POLL_S)):
            unsent = fcntl.ioctl(_socket(self.writer).fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
            if unsent == b"\0\0\0\0":
                return True
            await asyncio.sleep(POLL_S)
        return False


class _Flow:
    """A connection through the proxy. `opening` is the first that its client sent."""

    def __init__(self, forth: _Side, back: _Side) -> None:
        self.sides = {Direction.FORTH: forth, Direction.BACK: back}
        self.opening = b""
        self.pouring: list[asyncio.Task[None]] = []

    def hang_up(self, *, reset: bool) -> None:
        """Close both ends: by FIN, or by RST."""
        for side in self.sides.values():
            if reset:
                if not side.writer.is_closing():
                    _socket(side.writer).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                side.writer.transport.abort()
            else:
                side.writer.close()


def _socket(writer: asyncio.StreamWriter) -> socket.socket:
    raw: socket.socket = writer.get_extra_info("socket")
    return raw


class Crumbs:
    """Pieces of one byte to `most`, for so many bytes; what comes after passes whole. The dice decide their sizes."""

    def __init__(self, total_bytes: int, most: int, dice: Random) -> None:
        self._left = total_bytes
        self._most = most
        self._dice = dice

    def cut(self, chunk: bytes) -> list[bytes]:
        """The chunk in pieces."""
        pieces, at = [], 0
        while self._left > 0 and at < len(chunk):
            pieces.append(chunk[at : at + self._dice.randint(1, self._most)])
            at += len(pieces[-1])
            self._left -= len(pieces[-1])
        return [*pieces, chunk[at:]] if at < len(chunk) else pieces


class Proxy:
    """Leads to a server from a port of its own, which stays the same, and does what it is told to connections."""

    def __init__(self, port: int, protocol: Protocol) -> None:
        """`port` is the server's, on 127.0.0.1."""
        self._target = port
        self._protocol = protocol
        self._port = 0
        self._server: asyncio.Server | None = None
        self._flows: set[_Flow] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._open = {direction: asyncio.Event() for direction in Direction}
        self._crumbs = {direction: Crumbs(0, 1, Random()) for direction in Direction}
        self._cut: Cut | None = None

    def url_of(self, url: str) -> str:
        """A URL of the server, led through here. PostgreSQL's goes without encryption: frames would not be seen."""
        parts = urlsplit(url)
        login = parts.netloc.rpartition("@")[0]
        plain = "sslmode=disable&gssencmode=disable" if self._protocol is POSTGRES else ""
        query = "&".join(filter(None, (parts.query, plain)))
        return urlunsplit(parts._replace(netloc=f"{login}@127.0.0.1:{self._port}", query=query))

    def carries(self, kind: Callable[[bytes], bool]) -> bool:
        """Whether there is a connection of this kind now."""
        return any(flow.opening and kind(flow.opening) for flow in self._flows)

    @property
    def listens(self) -> bool:
        """Whether connections can be made."""
        return self._server is not None

    async def __aenter__(self) -> Self:
        self.release()
        await self.restore()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.refuse()

    async def restore(self) -> None:
        """The server can be reached."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Refuse connections, and reset those that there are."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for flow in self._flows:
            flow.hang_up(reset=True)
            for task in flow.pouring:
                task.cancel()
        if self._serving:
            await asyncio.wait(self._serving)

    def hold(self, *directions: Direction) -> None:
        """Let nothing through in these directions, or in both; connections can still be made, and nobody is told."""
        for direction in directions or tuple(Direction):
            self._open[direction].clear()

    def release(self) -> None:
        """What was held up goes on its way, all of it and in order."""
        for gate in self._open.values():
            gate.set()

    def crumble(self, direction: Direction, crumbs: Crumbs) -> None:
        """Hand on what comes next in crumbs."""
        self._crumbs[direction] = crumbs

    def order(self, cut: Cut) -> None:
        """Cut a connection. Of several orders only the last is carried out."""
        self._cut = cut

    def forget(self) -> None:
        """Cut nothing, if that has not been done yet."""
        self._cut = None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            await self._serve(reader, writer)
        finally:
            self._serving.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            back, forth = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()  # the server refuses: so do we, as far as somebody can who has accepted
            return
        frame = self._protocol.frame
        forwards = _Side(reader, forth, Frames(self._protocol.greeting, frame))
        flow = _Flow(forwards, _Side(back, writer, Frames(frame, frame)))
        if not self.listens:  # any more
            flow.hang_up(reset=True)
            return
        self._flows.add(flow)
        flow.pouring = [asyncio.create_task(self._pour(flow, direction)) for direction in Direction]
        await asyncio.wait(flow.pouring, return_when=asyncio.FIRST_COMPLETED)
        flow.hang_up(reset=False)
        await end(*flow.pouring)
        self._flows.discard(flow)

    async def _pour(self, flow: _Flow, direction: Direction) -> None:
        """Until one side hangs up, with or without a word, or the flow is cut."""
        side = flow.sides[direction]
        with suppress(OSError):
            while chunk := await side.reader.read(CHUNK_BYTES):
                if direction is Direction.FORTH and not flow.opening:
                    flow.opening = chunk
                await self._open[direction].wait()
                for crumb in self._crumbs[direction].cut(chunk):
                    await self._hand_on(flow, direction, crumb)
                    if len(crumb) < len(chunk):
                        await asyncio.sleep(CRUMB_PAUSE_S)

    async def _hand_on(self, flow: _Flow, direction: Direction, chunk: bytes) -> None:
        side, cut = flow.sides[direction], self._cut
        if cut is None or not cut.concerns(flow, direction):
            await side.send(chunk)
            return
        while chunk:
            part = chunk[: cut.left or 1]
            await side.send(part)
            chunk = chunk[len(part) :]
            cut.left -= min(cut.left, len(part))
            if not cut.left and (side.frames.inside or not cut.inside):
                await self._carry_out(cut, flow, side)

    async def _carry_out(self, cut: Cut, flow: _Flow, side: _Side) -> NoReturn:
        self._cut = None
        arrived = await side.arrived()
        flow.hang_up(reset=cut.reset)
        if not cut.done.done():
            cut.done.set_result(arrived and side.frames.inside)
        raise ConnectionResetError("cut")
