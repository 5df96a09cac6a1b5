"""A broker of a test's own that takes small messages only, and whose memory can be made to run out."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from relay.demo.servers.rabbitmq import PrivateRabbitMQ

MESSAGE_BYTES_MAX = 1_000_000
PLENTY, NONE = "0.4", "0.0000001"
"""Fractions of the machine's memory that it may use."""


class PickyBroker(PrivateRabbitMQ):
    """RabbitMQ with a max_message_size of MESSAGE_BYTES_MAX."""

    def _configure(self) -> None:
        super()._configure()
        configured = (self.directory / "rabbitmq.conf").read_text()
        self._private.write("rabbitmq.conf", f"{configured}max_message_size = {MESSAGE_BYTES_MAX}\n")

    async def control(self, *command: str) -> None:
        """What an administrator says to it."""
        program = self._program.with_name("rabbitmqctl")
        done = await asyncio.to_thread(self._account.run, program, *command, env=self._environment())
        assert done.returncode == 0, done.stdout

    @asynccontextmanager
    async def short_of_memory(self) -> AsyncIterator[None]:
        """Meanwhile it blocks whoever publishes."""
        await self.control("set_vm_memory_high_watermark", NONE)
        try:
            yield
        finally:
            await self.control("set_vm_memory_high_watermark", PLENTY)
