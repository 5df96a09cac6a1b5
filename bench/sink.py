"""An AMQP server that does nothing but confirm: how fast is the relay when the broker costs nothing?

It answers what a publisher asks, counts whole messages, and confirms all it has read with one `basic.ack` per read.
It routes nothing and keeps nothing. `python -m bench.sink --expect 100000 [--record FILE]`
"""

import argparse
import socket
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, Final

from pika import amqp_object, spec

from bench.helper import end_with_parent, say
from bench.wire import CHUNK_BYTES, FRAME_MAX, PROTOCOL, PUBLISH, FrameError, Reader, decoded, encoded
from relay.demo.servers.host import LOOPBACK

CHANNELS: Final = 2047
"""As many as RabbitMQ allows."""

ANSWERS: Final[dict[type[amqp_object.Method], Callable[[], amqp_object.Method | None]]] = {
    spec.Connection.StartOk: lambda: spec.Connection.Tune(CHANNELS, FRAME_MAX, 0),
    spec.Connection.TuneOk: lambda: None,
    spec.Connection.Open: spec.Connection.OpenOk,
    spec.Connection.Close: spec.Connection.CloseOk,
    spec.Channel.Open: spec.Channel.OpenOk,
    spec.Channel.Close: spec.Channel.CloseOk,
    spec.Exchange.Declare: spec.Exchange.DeclareOk,
    spec.Confirm.Select: spec.Confirm.SelectOk,
}
"""What is answered to the methods of a publisher. Source: AMQP 0-9-1, and RabbitMQ's "Consumer Acknowledgements and
Publisher Confirms"."""

CAPABILITIES: Final = {"publisher_confirms": True, "basic.nack": True, "connection.blocked": True}


class Session:
    """One publisher's connection, without its socket: bytes in, bytes out."""

    def __init__(self, record: BinaryIO | None = None) -> None:
        self.messages = 0
        self._channel = 0
        self._out = bytearray(encoded(0, spec.Connection.Start(0, 9, {"capabilities": CAPABILITIES}, "PLAIN", "en_US")))
        self._reader = Reader(PUBLISH, self._answer)
        self._record = record

    def take(self, data: bytes) -> bytes:
        """What to answer to these bytes. Raises FrameError for what no publisher says."""
        if self._record is not None and self._channel:  # nothing but messages comes after confirm.select
            self._record.write(data)
        done = self._reader.feed(data)
        if done:
            self.messages += done
            self._out += encoded(self._channel, spec.Basic.Ack(self.messages, True))
        out = bytes(self._out)
        self._out.clear()
        return out

    def _answer(self, data: bytes) -> None:
        asked = decoded(data)
        answer = ANSWERS.get(type(asked.method))
        if answer is None:
            raise FrameError(f"a publisher does not say {asked.method!r}")
        if isinstance(asked.method, spec.Confirm.Select):
            self._channel = asked.channel_number
        if (method := answer()) is not None:
            self._out += encoded(asked.channel_number, method)


def serve(client: socket.socket, session: Session, expect: int) -> None:
    """Answer until the client hangs up, and tell when the first message and the expected one were confirmed."""
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if client.recv(len(PROTOCOL), socket.MSG_WAITALL) != PROTOCOL:
        raise FrameError("this client does not speak AMQP 0-9-1")
    client.sendall(session.take(b""))
    first_ns = 0
    while data := client.recv(CHUNK_BYTES):
        before = session.messages
        if answer := session.take(data):
            client.sendall(answer)
        if before == 0 < session.messages:
            first_ns = time.monotonic_ns()
            say("first")
        if before < expect <= session.messages:
            say("complete", first_ns=first_ns, last_ns=time.monotonic_ns(), messages=session.messages)


def main() -> None:
    """Serve one publisher after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--expect", type=int, required=True)
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    end_with_parent()
    with socket.create_server((LOOPBACK, 0)) as server:
        say("listening", port=server.getsockname()[1])
        while True:
            client, _ = server.accept()
            with closing(client):
                if arguments.record is None:
                    serve(client, Session(), arguments.expect)
                else:
                    with arguments.record.open("wb", buffering=0) as record:
                        serve(client, Session(record), arguments.expect)


if __name__ == "__main__":
    main()
