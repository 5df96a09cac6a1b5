"""Places orders over HTTP, as shops do: many connections that are kept open, one order at a time on each.

`python -m bench.buyers --port 8001 --orders 1500 [--rate 100]`: as fast as they are taken, or so many a second.
"""

import argparse
import asyncio
import itertools
import json
import re
import sys
import uuid
from collections.abc import Iterator
from typing import Final

from bench.helper import end_with_parent, say
from relay.demo.servers.host import LOOPBACK

CONNECTIONS: Final = 16
"""Orders that are under way at once, at most. Their service has as many connections to its database."""

CUSTOMERS: Final = 1_000
"""They order in turn, so that orders seldom wait for each other's customer."""

TOTAL: Final = "25.00"
"""Of every order: far below what a customer of the benchmark may owe in all."""

START_S: Final = 0.1
"""Between the word that all is ready and the first order: whoever reads it takes down what was used until then."""

TAKEN: Final = b"HTTP/1.1 202 "

_LENGTH: Final = re.compile(rb"^content-length: (\d+)\r$", re.IGNORECASE | re.MULTILINE)


class OrderRefused(Exception):
    """The service did not take an order."""


def customer_id(number: int) -> uuid.UUID:
    """The id of a customer, counted from 1."""
    return uuid.UUID(int=number)


def request(number: int) -> bytes:
    """An order without lines, for credit only. Orders go around the customers."""
    order = {"customer_id": str(customer_id(1 + number % CUSTOMERS)), "total": TOTAL}
    body = json.dumps(order).encode()
    head = f"POST /orders HTTP/1.1\r\nhost: {LOOPBACK}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def body_bytes(head: bytes) -> int:
    """The length of the answer's body. Raises OrderRefused when the answer is another one than that it is taken."""
    found = _LENGTH.search(head)
    if not head.startswith(TAKEN) or found is None:
        raise OrderRefused(f"the service answered {head.decode(errors='replace')}")
    return int(found[1])


async def _place(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, numbers: Iterator[int], pause_s: float, start_s: float
) -> None:
    """One connection's share: take the next order, wait until it is due, place it, wait for the answer."""
    clock = asyncio.get_running_loop().time
    for number in numbers:
        if (early_s := start_s + number * pause_s - clock()) > 0:
            await asyncio.sleep(early_s)
        writer.write(request(number))
        await reader.readexactly(body_bytes(await reader.readuntil(b"\r\n\r\n")))


async def place_all(port: int, orders: int, rate: float | None) -> None:
    """Place so many orders. Raises a group with OrderRefused, or what a connection raises, for the first that fails."""
    connections = [await asyncio.open_connection(LOOPBACK, port) for _ in range(CONNECTIONS)]
    say("ready")
    start_s = asyncio.get_running_loop().time() + START_S
    numbers = itertools.islice(itertools.count(), orders)
    try:
        async with asyncio.TaskGroup() as group:
            for reader, writer in connections:
                group.create_task(_place(reader, writer, numbers, 0.0 if rate is None else 1 / rate, start_s))
        say("complete")
    finally:
        for _, writer in connections:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for _, writer in connections), return_exceptions=True)


def main() -> int:
    """Place all orders. Returns the exit status: 1 when one of them was refused."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--orders", type=int, required=True)
    parser.add_argument("--rate", type=float)
    arguments = parser.parse_args()
    end_with_parent()
    status = 0
    try:
        asyncio.run(place_all(arguments.port, arguments.orders, arguments.rate))
    except* (OrderRefused, OSError, EOFError) as errors:
        print(f"an order was not placed: {errors.exceptions[0]}", file=sys.stderr)
        status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
