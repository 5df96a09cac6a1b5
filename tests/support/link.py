"""The way to a server, which a test can cut or make deaf: the server is away, without being stopped."""

import asyncio
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit

CHUNK_BYTES = 65536


class Link:
    """Leads to the server of a URL, from a port of its own that stays the same. `url` goes through it.

    While `deaf` is set, the server hears nothing from the clients, and they notice nothing.
    """

    def __init__(self, url: str, *, up: bool = True) -> None:
        self._parts = urlsplit(url)
        self._up_at_first = up
        self._port = 0
        self.deaf = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._flows: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        login = self._parts.netloc.rpartition("@")[0]
        return urlunsplit(self._parts._replace(netloc=f"{login}@127.0.0.1:{self._port}"))

    async def __aenter__(self) -> Self:
        await self.restore()
        if not self._up_at_first:
            await self.cut()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.cut()

    async def restore(self) -> None:
        """The server can be reached again."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Refuse connections, and break those that there are."""
        if self._server is not None:
            self._server.close()
            self._server = None
        flows = list(self._flows)
        for flow in flows:
            flow.cancel()
        await asyncio.gather(*flows, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        flow = asyncio.current_task()
        assert flow is not None
        self._flows.add(flow)
        try:
            back, forth = await asyncio.open_connection(self._parts.hostname, self._parts.port)
            try:
                await asyncio.gather(_pour(reader, forth, self.deaf), _pour(back, writer))
            finally:
                forth.transport.abort()
        except (OSError, asyncio.CancelledError):
            pass  # whoever was connected finds out by the abort
        finally:
            writer.transport.abort()
            self._flows.discard(flow)


async def _pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, deaf: asyncio.Event | None = None) -> None:
    while chunk := await reader.read(CHUNK_BYTES):
        if deaf is not None and deaf.is_set():
            continue
        writer.write(chunk)
        await writer.drain()
    raise ConnectionResetError("one side has hung up")
