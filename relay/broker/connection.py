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

from relay.errors import BrokerAway, BrokerError

CLOSE_TIMEOUT_S = 5.0
"""How long a broker may take to say goodbye before we hang up on it."""

ACCESS_REFUSED: Final = 403
NOT_FOUND: Final = 404
PRECONDITION_FAILED: Final = 406
NOT_ALLOWED: Final = 530
INTERNAL_ERROR: Final = 541

DISRUPTIONS: Final = frozenset({311, PRECONDITION_FAILED, 501, 502, 503, 505, 540, INTERNAL_ERROR})
"""Reply codes of a close that a message may have caused: content too large, precondition failed, frame error, syntax
error, command invalid, unexpected frame, not implemented, internal error. Source: AMQP 0-9-1, 1.2."""

_CLOSED_BY_BROKER = re.compile(r"ConnectionClosedByBroker: \((\d+)\)")
"""pika takes any loss of a connection that is being set up for a refusal. A real one has the broker's reply code."""

_NO_EXCHANGE = re.compile(r"no exchange '(.*?)' in vhost")
_TOO_LARGE = re.compile(r"message size \d+ .*larger than")
"""The broker's words, in rabbit_channel and rabbit_misc."""

_TOO_MANY = re.compile(r"limit \(\d+\) is reached")
"""The broker's words when there are too many connections just now."""


class LoginRefused(BrokerError):
    """RabbitMQ refuses the user or its password."""

    hint = "Check the user and the password in the broker's URL."


class VirtualHostRefused(BrokerError):
    """The virtual host does not exist, or the user may not enter it."""

    hint = "Create the virtual host, or give the user permissions in it (rabbitmqctl set_permissions)."


class ChannelRefused(BrokerError):
    """RabbitMQ closed the channel: something that was asked of it is not allowed, missing, or declared differently."""

    hint = "The broker's own words say which right is missing, or what is declared with other arguments."


class ExchangeMissing(BrokerError):
    """A message was published to an exchange that does not exist."""

    hint = (
        "Somebody deleted it, and the bindings of its queues went with it. Start the relay again, which declares the"
        " exchange, and the services, which bind their queues to it."
    )


class Disrupted(BrokerAway):
    """RabbitMQ closed the channel or connection, and a message may have been the cause: `code` is its reply code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code

    @property
    def too_large(self) -> bool:
        """Whether the cause is a body that is larger than this broker takes (its max_message_size)."""
        return self.code == PRECONDITION_FAILED and _TOO_LARGE.search(str(self)) is not None


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


def _loss(what: str, reason: BaseException, *, publishing: bool = False) -> BrokerError:
    """What the end of a connection or channel that had been open means for the one who used it.

    Not found is no refusal when something is declared: whoever connects again declares what it uses.
    """
    code = getattr(reason, "reply_code", 0)
    message = f"{what}: {reason}"
    missing = _NO_EXCHANGE.search(str(reason))
    if publishing and code == NOT_FOUND and missing:
        return ExchangeMissing(f"{what}: the exchange {missing[1]} does not exist")
    if code == ACCESS_REFUSED or (code == PRECONDITION_FAILED and not publishing):
        return ChannelRefused(message)
    return Disrupted(message, code) if code in DISRUPTIONS else BrokerAway(message)


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


class _Attempt(AsyncioConnection):
    """pika's connection, which one may also close while it is being set up.

    pika hands the class of the exception to a callback that expects an exception, and fails over it
    (AMQPConnectionWorkflow._on_connector_done, 1.4).
    """

    def _on_connection_workflow_done(self, conn_or_exc: Any) -> None:
        outcome = conn_or_exc() if isinstance(conn_or_exc, type) else conn_or_exc
        cast(Any, super())._on_connection_workflow_done(outcome)


class Connection:
    """One AMQP connection. `closed` is resolved with the reason once it is gone, whoever ended it.

    `blocked` holds the broker's reason while it takes no messages, because it is short of memory or disk.
    """

    def __init__(self, raw: AsyncioConnection, closed: "asyncio.Future[BrokerError]", where: str) -> None:
        self._raw = raw
        self.closed = closed
        self.where = where
        self.blocked: str | None = None
        self._on_blocking: list[Callable[[], None]] = []
        raw.add_on_connection_blocked_callback(lambda _, frame: self._block(frame.method.reason or "no reason given"))
        raw.add_on_connection_unblocked_callback(lambda *_: self._block(None))

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
        raw = _Attempt(parameters, on_open, on_error, on_close, custom_ioloop=loop)
        try:
            await opened
        except asyncio.CancelledError:
            with suppress(ConnectionWrongStateError):
                raw.close()
            raise
        return cls(raw, closed, where)

    @property
    def frame_max(self) -> int:
        """The largest frame that was agreed with the broker, in bytes."""
        return int(self._raw.params.frame_max)

    def on_blocking(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Have `changed` called when `blocked` has changed. Returns what ends that."""
        self._on_blocking.append(changed)
        return lambda: self._on_blocking.remove(changed)

    def send(self, frames: list[bytes]) -> None:
        """Hand whole frames to the socket, in one write. What a connection that is gone does not take is lost.

        pika's own way is ten times as slow. Its accounts stay right, but that it takes all of this for one frame.
        """
        if self._raw.is_open:
            # pika sends what it can, and cuts that off: of a view it cuts without copying the rest.
            cast(Any, self._raw)._output_marshaled_frames((memoryview(b"".join(frames)),))

    def _block(self, reason: str | None) -> None:
        self.blocked = reason
        for changed in tuple(self._on_blocking):
            changed()

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
    """A channel: `raw` is pika's; `closed` is resolved with the reason once the channel or its connection is gone.

    Once it is `publishing`, what closes it is judged as the fate of a message, else as that of a declaration.
    """

    def __init__(self, raw: PikaChannel, connection: Connection) -> None:
        self.raw = raw
        self.connection = connection
        self.where = connection.where
        self.number = raw.channel_number
        self.frame_max = connection.frame_max
        self.publishing = False
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
        self._resolve(_loss(f"RabbitMQ at {self.where} closed the channel", reason, publishing=self.publishing))

    def _resolve(self, reason: BrokerError) -> None:
        if not self.closed.done():
            self.closed.set_result(reason)
