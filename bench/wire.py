"""AMQP 0-9-1 as the benchmark needs it: messages counted fast, everything else by pika's own encoder."""

import socket
import struct
from collections.abc import Callable
from typing import Final, Self, TypeVar
from urllib.parse import unquote, urlsplit

from pika import amqp_object, frame, spec

CHUNK_BYTES: Final = 256 * 1024
"""Read at once: many frames for one system call."""

CONNECT_S: Final = 10.0
"""How long a broker on this machine may take for any answer of a handshake."""

FRAME_MAX: Final = 131_072
"""What RabbitMQ proposes, in bytes."""

PROTOCOL: Final = b"AMQP\x00\x00\x09\x01"

PUBLISH: Final = spec.Basic.Publish.INDEX
DELIVER: Final = spec.Basic.Deliver.INDEX

_END: Final = spec.FRAME_END
_EMPTY: Final = 8
"""Bytes of a frame without its payload: type, channel, size, and the end byte."""

_head = struct.Struct(">BHI").unpack_from
_method = struct.Struct(">I").unpack_from
_size = struct.Struct(">Q").unpack_from

Method = TypeVar("Method", bound=amqp_object.Method)


class FrameError(Exception):
    """The bytes are not what AMQP 0-9-1 says they should be, or not what was expected here."""


class Reader:
    """Splits a stream into frames, and counts the messages that one kind of method carries.

    `carrier` is that method's class and method id in one number. `on_method` gets every other method frame whole, and
    `on_body` every body frame's payload, when somebody wants them. Heartbeats are passed over.
    """

    def __init__(
        self,
        carrier: int,
        on_method: Callable[[bytes], None],
        on_body: Callable[[bytes], None] | None = None,
    ) -> None:
        self._carrier = carrier
        self._on_method = on_method
        self._on_body = on_body
        self._rest = b""
        self._missing = 0

    def feed(self, data: bytes) -> int:
        """How many messages are complete with these bytes. Raises FrameError."""
        buffer = self._rest + data if self._rest else data
        at, length, done = 0, len(buffer), 0
        while length - at >= _EMPTY:
            kind, _, size = _head(buffer, at)
            end = at + _EMPTY + size
            if end > length:
                break
            if buffer[end - 1] != _END:
                raise FrameError(f"a frame of type {kind} with {size} bytes does not end where it should")
            if kind == spec.FRAME_BODY:
                self._missing -= size
                done += self._missing == 0
                if self._on_body is not None:
                    self._on_body(buffer[at + _EMPTY - 1 : end - 1])
            elif kind == spec.FRAME_HEADER:
                (self._missing,) = _size(buffer, at + 11)
                done += self._missing == 0
            elif kind == spec.FRAME_METHOD:
                if _method(buffer, at + 7)[0] != self._carrier:
                    self._on_method(buffer[at:end])
            elif kind != spec.FRAME_HEARTBEAT:
                raise FrameError(f"there is no frame of type {kind}")
            at = end
        self._rest = buffer[at:]
        return done


def message_ends(recorded: bytes) -> list[int]:
    """Where each message ends in recorded bytes that begin with one. An unfinished last one is left out."""
    ends: list[int] = []
    at, missing = 0, 0
    while len(recorded) - at >= _EMPTY:
        kind, _, size = _head(recorded, at)
        at += _EMPTY + size
        if at > len(recorded):
            break
        if kind == spec.FRAME_HEADER:
            (missing,) = _size(recorded, at - size + 3)
        elif kind == spec.FRAME_BODY:
            missing -= size
        if kind in (spec.FRAME_HEADER, spec.FRAME_BODY) and missing == 0:
            ends.append(at)
    return ends


def channel_of(recorded: bytes) -> int:
    """The channel of the first recorded frame."""
    return int(_head(recorded, 0)[1])


def decoded(data: bytes) -> frame.Method[amqp_object.Method]:
    """One method frame as pika's value. Raises FrameError."""
    _, value = frame.decode_frame(data)
    if not isinstance(value, frame.Method):
        raise FrameError(f"expected a method, not {value!r}")
    return value


def encoded(channel: int, method: amqp_object.Method) -> bytes:
    """A method as a frame."""
    return frame.Method(channel, method).marshal()


class Client:
    """A blocking connection with one channel, for the few words before and after the messages."""

    def __init__(self, url: str, channel: int = 1) -> None:
        parts = urlsplit(url)
        self.channel = channel
        self.socket = socket.create_connection((parts.hostname or "localhost", parts.port or 5672), CONNECT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""
        self._shake_hands(unquote(parts.username or ""), unquote(parts.password or ""), unquote(parts.path[1:]))

    def _shake_hands(self, user: str, password: str, vhost: str) -> None:
        self.socket.sendall(PROTOCOL)
        self.version = str((self._expect(spec.Connection.Start).server_properties or {}).get("version"))
        response = f"\0{user}\0{password}"
        self._send(0, spec.Connection.StartOk({}, "PLAIN", response, "en_US"))
        tune = self._expect(spec.Connection.Tune)
        self._send(0, spec.Connection.TuneOk(tune.channel_max, FRAME_MAX, 0))
        self._send(0, spec.Connection.Open(vhost))
        self._expect(spec.Connection.OpenOk)
        self.call(spec.Channel.Open(), spec.Channel.OpenOk)

    def call(self, method: amqp_object.Method, answer: type[Method]) -> Method:
        """Send a method on the channel and wait for its answer. Raises FrameError when another one comes."""
        self._send(self.channel, method)
        return self._expect(answer)

    def _send(self, channel: int, method: amqp_object.Method) -> None:
        self.socket.sendall(encoded(channel, method))

    def _expect(self, answer: type[Method]) -> Method:
        while True:
            used, value = frame.decode_frame(self._rest)
            if value is not None:
                self._rest = self._rest[used:]
                method = getattr(value, "method", None)
                if not isinstance(method, answer):
                    raise FrameError(f"expected {answer.NAME}, not {value!r}")
                return method
            more = self.socket.recv(CHUNK_BYTES)
            if not more:
                raise FrameError(f"the broker hung up instead of {answer.NAME}")
            self._rest += more

    def take_rest(self) -> bytes:
        """What has come after the last answer already."""
        rest, self._rest = self._rest, b""
        return rest

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
