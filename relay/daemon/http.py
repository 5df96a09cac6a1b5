"""GET /healthz and GET /readyz, for whoever keeps the relay running."""

import asyncio
import errno
import json
import logging
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from email.utils import formatdate
from functools import partial
from http import HTTPStatus
from types import TracebackType
from typing import Final, NamedTuple, Self

import h11

from relay.daemon.status import SourceStatus
from relay.errors import RelayError
from relay.tasks import end

log = logging.getLogger(__name__)

CONNECTIONS_MAX: Final = 32
"""Connections at one time: far more than probes need. When one more comes, the one that is open longest has to go."""

REQUEST_S: Final = 5.0
"""How long a connection may last, from the first byte to the last: a probe takes milliseconds."""

HEAD_MAX_BYTES: Final = 16 * 1024
"""The request line and all headers together: what h11 takes by default, and much more than a probe sends."""

BODY_MAX_BYTES: Final = 64 * 1024
"""What is read, and thrown away, after the request: a reset that unread bytes cause would destroy the answer."""

READ_BYTES: Final = 4096
"""What is read at a time: mostly the whole request."""

METHODS: Final = ("GET", "HEAD")


class CannotListen(RelayError):
    """The address for /healthz and /readyz cannot be had: it is in use, not permitted, or not of this machine."""

    hint = (
        "Set [http] listen to an address of this machine and a port that nobody else has (another relay may have it), "
        'or to "", which turns it off.'
    )


class Answer(NamedTuple):
    """What is sent back, as JSON."""

    status: HTTPStatus
    body: dict[str, object]


class Http:
    """Listens while it is entered, on "127.0.0.1:8088" or "[::1]:8088". Port 0 is any that is free; "" is off.

    Entering raises CannotListen; leaving hangs up on everybody.
    """

    def __init__(self, listen: str, statuses: Sequence[SourceStatus]) -> None:
        self._listen = listen
        self._statuses = statuses
        self._server: asyncio.Server | None = None
        self._visits: list[asyncio.Task[None]] = []  # the oldest first
        self._leaving = False

    async def __aenter__(self) -> Self:
        if self._listen:
            self._server = await self._open()
            for listening in self._server.sockets:
                host, port = listening.getsockname()[:2]
                extra = {"action": "http_listening", "host": host, "port": port}
                shown = f"[{host}]" if ":" in host else host
                log.info("/healthz and /readyz are on %s:%d", shown, port, extra=extra)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leaving = True
        if self._server is not None:
            self._server.close()
            await end(*self._visits)
            await self._server.wait_closed()

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port that it listens on, the first if a name stands for several. None while it does not."""
        if self._server is None or not self._server.sockets:
            return None
        host, port = self._server.sockets[0].getsockname()[:2]
        return host, port

    async def _open(self) -> asyncio.Server:
        host, _, port = self._listen.rpartition(":")
        try:
            return await asyncio.start_server(
                self._welcome, host.removeprefix("[").removesuffix("]"), int(port), limit=READ_BYTES
            )
        except socket.gaierror as error:
            raise CannotListen(f"cannot listen on {self._listen}: {error.strerror}") from None
        except OSError as error:
            # Its own words, asyncio's, name the address once more. It may have no number: from Python 3.13 on, asyncio
            # passes over addresses that are not of this machine.
            why = os.strerror(error.errno or errno.EADDRNOTAVAIL)
            raise CannotListen(f"cannot listen on {self._listen}: {why}") from None

    def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take a connection. Who dawdles makes room for who comes: a probe gets in, however many others hang on."""
        if self._leaving:  # it was accepted just before the server closed
            writer.transport.abort()
            return
        staying = [visit for visit in self._visits if not visit.cancelling()]
        if len(staying) >= CONNECTIONS_MAX:
            staying[0].cancel()
        visit = asyncio.create_task(self._serve(reader, writer), name="http")
        self._visits.append(visit)
        # Not in the task itself: one that is cancelled before its first step never runs. The callback holds the writer:
        # one that is forgotten before it is closed is a fault from Python 3.13 on.
        visit.add_done_callback(partial(self._part, writer))

    def _part(self, writer: asyncio.StreamWriter, visit: "asyncio.Task[None]") -> None:
        writer.transport.abort()
        self._visits.remove(visit)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request, one answer, and goodbye, in REQUEST_S. Who hangs up, or is late, is not answered."""
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(REQUEST_S):
                connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_MAX_BYTES)
                answered = await self._answer(connection, reader)
                if answered is None:
                    return
                writer.write(answered)
                writer.write_eof()
                await writer.drain()
                await _discard(reader)
                writer.close()
                await writer.wait_closed()

    async def _answer(self, connection: h11.Connection, reader: asyncio.StreamReader) -> bytes | None:
        """The bytes to send. None when the client hung up before it asked for anything."""
        try:
            request = await _request(connection, reader)
        except h11.RemoteProtocolError as error:
            status = HTTPStatus(error.error_status_hint)
            return _response(connection, Answer(status, {"error": status.phrase}))
        if request is None:
            return None
        return _response(connection, self._judge(request), head=request.method == b"HEAD")

    def _judge(self, request: h11.Request) -> Answer:
        path = request.target.partition(b"?")[0]
        if path not in (b"/healthz", b"/readyz"):
            return Answer(HTTPStatus.NOT_FOUND, {"error": "there are /healthz and /readyz"})
        if request.method.decode("ascii") not in METHODS:
            return Answer(HTTPStatus.METHOD_NOT_ALLOWED, {"error": "only GET and HEAD"})
        if path == b"/healthz":
            return Answer(HTTPStatus.OK, {"status": "alive"})
        ready = all(status.ready for status in self._statuses)
        body: dict[str, object] = {"ready": ready, "sources": [status.details() for status in self._statuses]}
        return Answer(HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE, body)


async def _request(connection: h11.Connection, reader: asyncio.StreamReader) -> h11.Request | None:
    """Read the head of a request. None at the end of the connection. Raises RemoteProtocolError."""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(READ_BYTES))
        else:
            return event if isinstance(event, h11.Request) else None


def _response(connection: h11.Connection, answer: Answer, *, head: bool = False) -> bytes:
    """The whole response. One to HEAD has the same headers, and no body."""
    body = json.dumps(answer.body).encode() + b"\n"
    headers = [
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
        ("Date", formatdate(usegmt=True)),
        ("Connection", "close"),
    ]
    if answer.status is HTTPStatus.METHOD_NOT_ALLOWED:
        headers.append(("Allow", ", ".join(METHODS)))
    events: list[h11.Event] = [
        h11.Response(status_code=answer.status, headers=headers, reason=answer.status.phrase),
        *([] if head else [h11.Data(data=body)]),
        h11.EndOfMessage(),
    ]
    return b"".join(connection.send(event) or b"" for event in events)


async def _discard(reader: asyncio.StreamReader) -> None:
    """Wait until the client hangs up, and throw away what it still says, up to BODY_MAX_BYTES."""
    left = BODY_MAX_BYTES
    while left > 0 and (chunk := await reader.read(READ_BYTES)):
        left -= len(chunk)
