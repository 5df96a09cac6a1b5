"""Drains a queue, as a consumer would, at little cost: messages are counted and acknowledged many at a time.

`python -m bench.drain --url URL --queue NAME --expect 100000 [--mark 20000] [--times FILE]`
"""

import argparse
import socket
import time
from array import array
from pathlib import Path
from typing import Final

from pika import spec

from bench.helper import end_with_parent, say
from bench.times import stamp_of, write_times
from bench.wire import CHUNK_BYTES, DELIVER, Client, FrameError, Reader, decoded, encoded

PREFETCH: Final = 2000
"""Messages that the broker may hand out ahead of their acknowledgement."""

PAUSE_S: Final = 0.002
"""Between two reads while nobody asks when each message came: RabbitMQ writes message by message, and to read them one
by one would cost more than all else here. Small beside what the prefetch lasts for."""


def refuse(data: bytes) -> None:
    """A consumer's channel carries deliveries and nothing else."""
    raise FrameError(f"the broker says {decoded(data).method!r} instead of a delivery")


def drain(client: Client, expect: int, mark: int, times: "array[int] | None") -> tuple[int, int]:
    """Take the expected number of messages; when the first and the last came, by the monotonic clock, in ns."""
    now_ns = 0

    def on_body(body: bytes) -> None:
        if times is not None:
            times.extend((stamp_of(body), now_ns))

    reader = Reader(DELIVER, refuse, None if times is None else on_body)
    taken, first_ns, acked = 0, 0, 0
    data = client.take_rest()
    while True:
        now_ns = time.monotonic_ns()
        before = taken
        taken += reader.feed(data)
        if before == 0 < taken:
            first_ns = now_ns
        if before < mark <= taken:
            say("mark", at_ns=now_ns, messages=taken)
        if taken > acked:
            client.socket.sendall(encoded(client.channel, spec.Basic.Ack(taken, True)))
            acked = taken
        if taken >= expect:
            return first_ns, now_ns
        if times is None:
            time.sleep(PAUSE_S)
        data = client.socket.recv(CHUNK_BYTES)
        if not data:
            raise FrameError("the broker hung up")


def main() -> None:
    """Drain once, then hold the connection until told to end, so that nothing of it disturbs the last confirms."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--queue", required=True)
    parser.add_argument("--expect", type=int, required=True)
    parser.add_argument("--mark", type=int, default=0)
    parser.add_argument("--times", type=Path)
    arguments = parser.parse_args()
    with Client(arguments.url) as client:
        client.call(spec.Basic.Qos(prefetch_count=PREFETCH), spec.Basic.QosOk)
        client.call(spec.Basic.Consume(queue=arguments.queue), spec.Basic.ConsumeOk)
        client.socket.settimeout(None)
        end_with_parent()
        say("ready")
        times: array[int] | None = None if arguments.times is None else array("q")
        first_ns, last_ns = drain(client, arguments.expect, arguments.mark, times)
        if times is not None:
            write_times(arguments.times, times)
        say("complete", first_ns=first_ns, last_ns=last_ns)
        client.socket.recv(1, socket.MSG_PEEK)


if __name__ == "__main__":
    main()
