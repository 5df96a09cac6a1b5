"""Stands between a publisher and a broker, and notes when each message is sent and when it is confirmed.

The bytes pass unchanged. `python -m bench.tap --host HOST --port PORT --expect 10000 --sent FILE --confirmed FILE`
"""

import argparse
import select
import socket
import time
from array import array
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

from pika import spec

from bench.helper import end_with_parent, say
from bench.times import stamp_of, write_times
from bench.wire import CHUNK_BYTES, CONNECT_S, PROTOCOL, PUBLISH, Reader, decoded
from relay.demo.servers.host import LOOPBACK


class Observer:
    """What was published on which delivery tag, and when the broker confirmed it. One channel in confirm mode."""

    def __init__(self) -> None:
        self.sent: array[int] = array("q")
        self.confirmed: array[int] = array("q")
        self._waiting: dict[int, int] = {}
        self._tag = 0
        self._greeting = len(PROTOCOL)
        self._from_publisher = Reader(PUBLISH, lambda _: None, self._published)
        self._from_broker = Reader(PUBLISH, self._answered)

    def published(self, data: bytes) -> None:
        """Bytes on their way to the broker. The first of them are no frames."""
        skipped, self._greeting = data[self._greeting :], max(0, self._greeting - len(data))
        self._from_publisher.feed(skipped)

    def answered(self, data: bytes) -> None:
        """Bytes on their way back."""
        self._from_broker.feed(data)

    def _published(self, body: bytes) -> None:
        self._tag += 1
        self._waiting[self._tag] = number = stamp_of(body)
        self.sent.extend((number, time.monotonic_ns()))

    def _answered(self, data: bytes) -> None:
        method = decoded(data).method
        if not isinstance(method, spec.Basic.Ack):
            return
        now_ns = time.monotonic_ns()
        below = [tag for tag in self._waiting if tag <= method.delivery_tag] if method.multiple else []
        for tag in below or [method.delivery_tag]:
            if (number := self._waiting.pop(tag, None)) is not None:
                self.confirmed.extend((number, now_ns))


def pass_on(publisher: socket.socket, broker: socket.socket, observer: Observer, done: Callable[[], bool]) -> None:
    """Pass bytes both ways until one side hangs up; `done` is asked after each turn until it says so."""
    for side in (publisher, broker):
        side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        side.settimeout(None)
    watching = True
    while True:
        readable, _, _ = select.select([broker, publisher], [], [])
        for side in readable:
            data = side.recv(CHUNK_BYTES)
            if not data:
                return
            if side is publisher:
                broker.sendall(data)
                observer.published(data)
            else:
                publisher.sendall(data)
                observer.answered(data)
        watching = watching and not done()


def keep(observer: Observer, arguments: argparse.Namespace) -> bool:
    """Write the times once enough is confirmed, and say so. True when that is done."""
    if len(observer.confirmed) < 2 * arguments.expect:
        return False
    write_times(arguments.sent, observer.sent)
    write_times(arguments.confirmed, observer.confirmed)
    say("complete")
    return True


def main() -> None:
    """Watch one connection after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--expect", type=int, required=True)
    parser.add_argument("--sent", type=Path, required=True)
    parser.add_argument("--confirmed", type=Path, required=True)
    arguments = parser.parse_args()
    end_with_parent()
    with socket.create_server((LOOPBACK, 0)) as server:
        say("listening", port=server.getsockname()[1])
        while True:
            publisher, _ = server.accept()
            with closing(publisher), socket.create_connection((arguments.host, arguments.port), CONNECT_S) as broker:
                observer = Observer()
                pass_on(publisher, broker, observer, partial(keep, observer, arguments))


if __name__ == "__main__":
    main()
