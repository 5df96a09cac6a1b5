"""`relay topology` as its users run it, and what a partitioned group looks like in a file."""

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import VirtualHost

WAIT_S = 60.0

SOURCE = """
[[source]]
name = "shop"
dsn = "postgresql://127.0.0.1:1/nobody"
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """What it printed for a program."""
        answer: dict[str, Any] = json.loads(self.out)
        return answer


def billing(partitions: int, delivery_limit: int = 20) -> str:
    """A group that hears every event."""
    return (
        f'[[topology.partitioned]]\nname = "billing"\npartitions = {partitions}\ndelivery_limit = {delivery_limit}\n'
        'bindings = [{exchange = "relay.events", routing_key = "#"}]\n'
    )


class Topology:
    """Runs the verbs with a file of its own against one virtual host, as the administrator unless told otherwise."""

    def __init__(self, directory: Path, vhost: VirtualHost) -> None:
        self._file = directory / "topology.toml"
        self._vhost = vhost
        self.api_url = str(vhost.server.api.base_url).rstrip("/")

    def write(self, *parts: str) -> None:
        """The configuration, from now on."""
        self._file.write_text("".join((SOURCE, *parts)), encoding="utf-8")

    async def run(self, verb: str, *, amqp_url: str | None = None, api_url: str | None = None) -> Ended:
        """`relay topology VERB --format json`."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "relay", "topology", verb, "--format", "json"),
            env=inherited
            | {
                "RELAY_CONFIG": str(self._file),
                "RELAY_BROKER__URL": amqp_url or self._vhost.url,
                "RELAY_BROKER__MANAGEMENT_URL": api_url or self.api_url,
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(WAIT_S):
            out, err = await process.communicate()
        return Ended(process.returncode or 0, out.decode(), err.decode())

    async def applied(self) -> Ended:
        """`apply`, which has to succeed."""
        ended = await self.run("apply")
        assert ended.code == 0, ended.err
        return ended
