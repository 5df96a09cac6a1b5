"""A pika connection and its channels, as awaitables on the running loop."""

import asyncio
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Self, TypeVar, cast

from pika import URLParameters
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.channel import Channel as PikaChannel
from pika.connection import Connection as PikaConnection
from pika.exceptions import AuthenticationError, ConnectionWrongStateError
from pika.frame import Method

from relay.errors import BrokerAway, BrokerError, ExitCode

CLOSE_TIMEOUT_S = 5.0
"""How long a broker may take to say goodbye before we hang up on it."""

ACCESS_REFUSED = 403
NOT_ALLOWED = 530

_CLOSED_BY_BROKER = re.compile(r"ConnectionClosedByBroker: \((\d+)\)")
"""pika takes any loss of a connection that is being set up for a refusal. A real one has the broker's reply code."""

_TOO_MANY = re.compile(r"limit \(\d+\) is reached")
"""The broker's words when there are too many connections just now."""


class LoginRefused(BrokerError):
    """RabbitMQ refuses the user or its password."""

    hint = "Check the user and the password in the broker's URL."


class VirtualHostRefused(BrokerError):
    """The virtual host does not exist, or the user may not enter it."""

    hint = "Create the virtual host, or give the user permissions in it (rabbitmqctl set_permissions)."


class FrameRefused(BrokerError):
    """RabbitMQ closed the connection over a frame, such as headers that are larger than a frame may be."""

    exit_code = ExitCode.FAILURE
    hint = "The headers of a message, with its aggregate id, have to fit into one frame (frame_max, 128 kB by default)."


class ChannelRefused(BrokerError):
    """RabbitMQ closed the channel: something that was asked of it is not allowed, missing, or declared differently."""

    hint = "The broker's own words say which right is missing, or what is declared with other arguments."


_REFUSALS: Final[dict[int, type[BrokerError]]] = {
    ACCESS_REFUSED: ChannelRefused,
    406: ChannelRefused,  # precondition-failed
    501: FrameRefused,  # frame-error
}
"""Reply codes of an AMQP 0-9-1 close that trying again does not mend. Not found is none of them: whoever connects again
declares what it uses."""


def address(url: str) -> str:
    """Where a broker's URL points to, without user and password: fit for logs."""
    parameters = URLParameters(url)
    return f"{parameters.host}:{parameters.port}, virtual host {parameters.virtual_host}"


def _refusal(url: str, reason: BaseException) -> BrokerError:
    """What the failure of an attempt to connect means for the one who asked."""
    message = f"RabbitMQ at {address(url)}: {_words(reason)}"
    closed = _CLOSED_BY_BROKER.search(str(reason))
    code = int(closed[1]) if closed else 0
    if isinstance(reason, AuthenticationError) or code == ACCESS_REFUSED:
        return LoginRefused(message)
    if code == NOT_ALLOWED and not _TOO_MANY.search(str(reason)):
        return VirtualHostRefused(message)
    return BrokerAway(message)


def _loss(what: str, reason: BaseException) -> BrokerError:
    """What the end of a connection or channel that had been open means for the one who used it."""
    kind = _REFUSALS.get(getattr(reason, "reply_code", 0), BrokerAway)
    return kind(f"{what}: {reason}")


Answer = TypeVar("Answer")


async def _unless(closed: "asyncio.Future[BrokerError]", awaited: "asyncio.Future[Answer]") -> Answer:
    """What is awaited; raises the reason when that can come no more."""
    futures: set[asyncio.Future[Any]] = {awaited, closed}
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
    if not awaited.done():
        raise closed.result()
    return awaited.result()


def _words(reason: BaseException) -> str:
    """pika wraps what a socket said several times over, and the wrapping has no words of its own."""
    while not isinstance(reason, OSError):
        wrapped = [*getattr(reason, "exceptions", ()), *reason.args]
        inner = next((part for part in reversed(wrapped) if isinstance(part, BaseException)), None)
        if inner is None:
            return str(reason) or repr(reason)
        reason = inner
    return str(reason)


class Connection:
    """One AMQP connection. `closed` is resolved with the reason once it is gone, whoever ended it."""

    def __init__(self, raw: AsyncioConnection, closed: "asyncio.Future[BrokerError]", where: str) -> None:
        self._raw = raw
        self.closed = closed
        self.where = where

    @classmethod
    async def open(cls, url: str, *, name: str) -> Self:
        """Connect; `name` is what the broker's own tools show.

        Raises BrokerAway when trying again may help, another BrokerError when it will not.
        """
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[None] = loop.create_future()
        closed: asyncio.Future[BrokerError] = loop.create_future()
        where = address(url)

        def on_open(_: PikaConnection) -> None:
            if not opened.done():
                opened.set_result(None)

        def on_error(_: PikaConnection, reason: BaseException) -> None:
            if not opened.done():
                opened.set_exception(_refusal(url, reason))

        def on_close(_: PikaConnection, reason: BaseException) -> None:
            if not closed.done():
                closed.set_result(_loss(f"RabbitMQ at {where}", reason))

        parameters = URLParameters(url)
        parameters.client_properties = {"connection_name": name, "product": "saga-relay"}
        raw = AsyncioConnection(parameters, on_open, on_error, on_close, custom_ioloop=loop)
        try:
            await opened
        except asyncio.CancelledError:
            with suppress(ConnectionWrongStateError):
                raw.close()
            raise
        return cls(raw, closed, where)

    async def channel(self) -> "Channel":
        """Open a channel. Raises BrokerAway when the connection is lost meanwhile."""
        opened: asyncio.Future[PikaChannel] = asyncio.get_running_loop().create_future()

        def on_open(raw: PikaChannel) -> None:
            if not opened.done():
                opened.set_result(raw)

        try:
            self._raw.channel(on_open_callback=on_open)
        except ConnectionWrongStateError as error:
            raise BrokerAway(f"RabbitMQ at {self.where}: the connection is closed") from error
        return Channel(await _unless(self.closed, opened), self)

    async def close(self) -> None:
        """Say goodbye; hang up when the broker does not answer in time."""
        if self._raw.is_open:
            self._raw.close()
        await asyncio.wait({self.closed}, timeout=CLOSE_TIMEOUT_S)
        if not self.closed.done():  # a broker that blocks its publishers does not read what they say
            cast(Any, self._raw)._adapter_disconnect_stream()  # pika has no public way to hang up


class Channel:
    """A channel: `raw` is pika's; `closed` is resolved with the reason once the channel or its connection is gone."""

    def __init__(self, raw: PikaChannel, connection: Connection) -> None:
        self.raw = raw
        self.where = connection.where
        self.closed: asyncio.Future[BrokerError] = asyncio.get_running_loop().create_future()
        raw.add_on_close_callback(self._on_close)
        connection.closed.add_done_callback(lambda closed: self._resolve(closed.result()))

    async def call(self, method: Callable[..., Any], *args: Any, **arguments: Any) -> Method[Any]:
        """Call a method of `raw` that takes a `callback`, and await its answer.

        Raises what closed the channel, if it closes first.
        """
        answered: asyncio.Future[Method[Any]] = asyncio.get_running_loop().create_future()

        def on_answer(frame: Method[Any]) -> None:
            if not answered.done():
                answered.set_result(frame)

        if self.closed.done():
            raise self.closed.result()
        method(*args, callback=on_answer, **arguments)
        return await _unless(self.closed, answered)

    def lose(self, reason: BrokerError) -> None:
        """Whoever uses the channel finds that it cannot go on with it."""
        self._resolve(reason)

    def _on_close(self, _: PikaChannel, reason: BaseException) -> None:
        self._resolve(_loss(f"RabbitMQ at {self.where} closed the channel", reason))

    def _resolve(self, reason: BrokerError) -> None:
        if not self.closed.done():
            self.closed.set_result(reason)
