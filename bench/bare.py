"""Publishes recorded messages and does nothing else: how fast is the broker when the relay costs nothing?

The frames go out as they were recorded, at most `--window` messages unconfirmed, on one channel with confirms.
`python -m bench.bare --url URL --messages FILE --window 1000`
"""

import argparse
import select
import socket
import time
from pathlib import Path
from typing import Final

from pika import spec

from bench.helper import end_with_parent, say
from bench.wire import CHUNK_BYTES, PUBLISH, Client, FrameError, Reader, channel_of, decoded, message_ends

PATIENCE_S: Final = 30.0
"""How long the broker may be silent with messages unconfirmed."""

BATCH: Final = 200
"""Messages written at once at most, so that confirms are read in between."""


class Window:
    """Which messages are confirmed. Confirms come out of order, and one may stand for all before it."""

    def __init__(self) -> None:
        self.confirmed = 0
        self._early: set[int] = set()
        self._below = 0

    def take(self, tag: int, multiple: bool) -> None:
        """The broker confirms this message, or all up to it."""
        if multiple:
            self._below = max(self._below, tag)
            self._early = {early for early in self._early if early > self._below}
        elif tag > self._below:
            self._early.add(tag)
            while self._below + 1 in self._early:
                self._below += 1
                self._early.remove(self._below)
        self.confirmed = self._below + len(self._early)


def publish(connection: socket.socket, recorded: bytes, ends: list[int], size: int, rest: bytes) -> int:
    """Publish all, and return when the last is confirmed: by the monotonic clock, in ns. Raises FrameError."""
    window = Window()

    def on_method(data: bytes) -> None:
        method = decoded(data).method
        if not isinstance(method, spec.Basic.Ack):
            raise FrameError(f"the broker says {method!r} instead of a confirm")
        window.take(method.delivery_tag, method.multiple)

    reader = Reader(PUBLISH, on_method)
    reader.feed(rest)
    connection.setblocking(False)
    view = memoryview(recorded)
    sent, at, total = 0, 0, len(ends)
    while window.confirmed < total:
        allowed = min(total, window.confirmed + size, sent + BATCH)
        wanted = ends[allowed - 1] if allowed > sent else at
        writers = [connection] if at < wanted else []
        readable, writable, _ = select.select([connection], writers, [], PATIENCE_S)
        if not readable and not writable:
            raise FrameError(f"the broker confirmed {window.confirmed} of {sent} messages and then nothing more")
        if readable:
            data = connection.recv(CHUNK_BYTES)
            if not data:
                raise FrameError("the broker hung up")
            reader.feed(data)
        if writable:
            at += connection.send(view[at:wanted])
            if at == wanted:
                sent = allowed
    return time.monotonic_ns()


def main() -> None:
    """Publish once, as soon as everything is in memory and the channel is open."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--messages", type=Path, required=True)
    parser.add_argument("--window", type=int, required=True)
    arguments = parser.parse_args()
    recorded = arguments.messages.read_bytes()
    ends = message_ends(recorded)
    with Client(arguments.url, channel_of(recorded)) as client:
        client.call(spec.Confirm.Select(), spec.Confirm.SelectOk)
        end_with_parent()
        say("ready", messages=len(ends))
        first_ns = time.monotonic_ns()
        last_ns = publish(client.socket, recorded, ends, arguments.window, client.take_rest())
        say("complete", first_ns=first_ns, last_ns=last_ns)


if __name__ == "__main__":
    main()
