"""A TCP proxy that can stop passing on what the client says."""

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit

CHUNK = 65536


class Proxy:
    """Stands before a server. While `deaf` is set, the server hears nothing from clients, and they notice nothing."""

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self.deaf = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    @property
    def url(self) -> str:
        """The server's URL, by way of the proxy."""
        login = self._parts.netloc.rpartition("@")[0]
        return urlunsplit(self._parts._replace(netloc=f"{login}@127.0.0.1:{self._port}"))

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        self.cut()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def cut(self) -> None:
        """Hang up on both sides of every connection."""
        for task in self._tasks:
            task.cancel()
        for writer in self._writers:
            writer.close()
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection(self._parts.hostname, self._parts.port)
        self._writers += [writer, to_server]
        for source, sink, may_be_deaf in ((reader, to_server, True), (from_server, writer, False)):
            task = asyncio.create_task(self._pass_on(source, sink, may_be_deaf=may_be_deaf))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, may_be_deaf: bool) -> None:
        with suppress(ConnectionError):
            while data := await source.read(CHUNK):
                if may_be_deaf and self.deaf.is_set():
                    continue
                sink.write(data)
                await sink.drain()
        sink.close()
