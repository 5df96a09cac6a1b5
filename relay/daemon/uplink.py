"""The connection to the broker, made again whenever it is lost: what was unsettled goes out once more, in order."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from relay.backoff import Backoff
from relay.broker.connection import INTERNAL_ERROR, Connection, Disrupted
from relay.broker.layout import Partitioned
from relay.broker.publisher import Outcome, Publisher, Unsendable
from relay.broker.ring import ensure_rings
from relay.broker.topology import declare_exchanges
from relay.capture.message import HeadersError
from relay.daemon.sending import Sending
from relay.daemon.status import SourceStatus
from relay.errors import BrokerAway
from relay.log import SourceLog

RETRY_FIRST_S: Final = 0.2
RETRY_CAP_S: Final = 15.0
"""Attempts to reconnect are at least half of this apart when the broker stays away."""

DISRUPTIONS_MAX: Final = 2
"""When the broker has closed the connection so often over a message that was alone in flight, the message is why."""

DISRUPTIONS_INTERNAL_MAX: Final = 5
"""The same when the broker speaks of an internal error: then the broker itself may be ill. With the pauses between the
attempts, that is some six seconds."""


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Whom the uplink tells what."""

    judge: Callable[[Sending, Outcome], None]
    """The broker has said what became of a message."""
    unsendable: Callable[[Sending, Unsendable | HeadersError | Disrupted], None]
    """A message cannot be written as AMQP, or makes the broker close the connection."""
    held: Callable[[Sending], bool]
    """Whether a message that has waited here must not leave any more."""
    lost: Callable[[Sequence[Sending]], Iterable[Sending]]
    """The connection is lost and these are unsettled. Returns who shall leave first when there is a new one."""
    changed: Callable[[], None]
    """There may be room now, or no more of it."""


class Uplink:
    """Takes messages to the broker in the order of `send`, over as many connections as that takes.

    A lost connection, a closed channel and a blocked broker are back-pressure: `has_room` says no, and what has been
    handed over is kept.
    """

    def __init__(
        self,
        url: str,
        name: str,
        callbacks: Callbacks,
        status: SourceStatus,
        log: SourceLog,
        groups: Sequence[Partitioned] = (),
    ) -> None:
        self._url = url
        self._name = name
        self._tell = callbacks
        self._status = status
        self._log = log
        self._groups = groups
        self._publisher: Publisher[Sending] | None = None
        self._ready: deque[Sending] = deque()
        self._suspects: set[Sending] = set()
        self._progressed = False

    @property
    def connected(self) -> bool:
        """Whether messages can leave."""
        return self._publisher is not None

    @property
    def in_flight(self) -> int:
        """Messages that are published, or about to be, and not yet settled."""
        return len(self._ready) + (self._publisher.in_flight if self._publisher is not None else 0)

    @property
    def has_room(self) -> bool:
        """Whether a message that is handed over now would leave at once."""
        publisher = self._publisher
        return publisher is not None and not self._ready and publisher.has_room and not self._suspects

    def send(self, sending: Sending) -> None:
        """Take a message over: it leaves at once, or as soon as there is room, after those that wait already."""
        publisher = self._publisher
        if publisher is None or self._ready or self._suspects or not publisher.has_room:
            self._ready.append(sending)
            self._flush()
        elif not self._publish(publisher, sending):
            self._ready.append(sending)

    def forget(self, sending: Sending) -> None:
        """The message will not be sent after all."""
        self._suspects.discard(sending)

    async def run(self) -> None:
        """Keep connected. Runs until cancelled; raises the BrokerError that waiting does not mend."""
        backoff = Backoff(RETRY_FIRST_S, RETRY_CAP_S)
        while True:
            try:
                await self._serve()
            except BrokerAway as away:
                if self._progressed:
                    backoff.reset()
                self._disconnected(away)
                seconds = backoff.next()
                self._log.warning(
                    "reconnecting", f"{away}; trying again in {seconds:.1f} s", retry_in_s=seconds, hint=away.hint
                )
                await asyncio.sleep(seconds)

    async def _serve(self) -> None:
        """One connection, from its beginning to its end. Raises the reason of its end."""
        self._progressed = False
        connection = await Connection.open(self._url, name=self._name)
        try:
            await declare_exchanges(await connection.channel())
            await ensure_rings(connection, self._groups)
            settled = self._on_suspect if self._suspects else self._tell.judge
            publisher: Publisher[Sending] = await Publisher.open(connection, settled, self._on_freed)
            connection.on_blocking(lambda: self._say_blocked(connection.blocked))
            self._publisher = publisher
            self._status.broker_found()
            self._look()
            raise await asyncio.shield(publisher.channel.closed)
        finally:
            await connection.close()

    def _disconnected(self, away: BrokerAway) -> None:
        """Keep what was unsettled, in order, for the next connection."""
        publisher, self._publisher = self._publisher, None
        self._status.broker_lost(str(away))
        unsettled = publisher.unsettled() if publisher is not None else []
        if isinstance(away, Disrupted):
            self._suspect(unsettled, away)
        unsettled += self._ready
        self._ready.clear()
        self._ready.extend(self._tell.lost(unsettled))
        self._tell.changed()

    def _suspect(self, unsettled: list[Sending], away: Disrupted) -> None:
        """The broker has closed the connection, perhaps over a message: from here on they go one at a time.

        Whoever was alone twice when that happened is taken out of `unsettled`.
        """
        self._suspects.update(unsettled)
        if len(unsettled) != 1:
            return
        unsettled[0].disruptions += 1
        if unsettled[0].disruptions >= (DISRUPTIONS_INTERNAL_MAX if away.code == INTERNAL_ERROR else DISRUPTIONS_MAX):
            self._tell.unsendable(unsettled.pop(), away)

    def _say_blocked(self, reason: str | None) -> None:
        if reason is not None:
            self._status.broker_blocks(reason)
            self._log.warning("broker_blocked", f"RabbitMQ takes no messages just now: {reason}")
        else:
            self._status.broker_unblocks()
            self._log.info("broker_unblocked", "RabbitMQ takes messages again")

    def _on_suspect(self, sending: Sending, outcome: Outcome) -> None:
        """The broker has taken it, so it was not the one."""
        self._suspects.discard(sending)
        self._tell.judge(sending, outcome)

    def _on_freed(self) -> None:
        self._progressed = True
        self._look()

    def _look(self) -> None:
        self._flush()
        self._tell.changed()

    def _flush(self) -> None:
        """Send what waits, as far as there is room: one at a time while one of them is suspected."""
        publisher = self._publisher
        while self._ready and publisher is not None and publisher.has_room:
            if self._suspects and publisher.in_flight:
                return
            sending = self._ready.popleft()
            if not self._tell.held(sending) and not self._publish(publisher, sending):
                self._ready.appendleft(sending)
                return

    def _publish(self, publisher: Publisher[Sending], sending: Sending) -> bool:
        """False when the channel has just been closed, of which `run` is about to hear."""
        message, route = sending.message, sending.route
        try:
            varying = route.envelope.varying(message, sending.position)
            publisher.publish(route.template, varying, message.payload, sending)
        except (Unsendable, HeadersError) as error:
            self._tell.unsendable(sending, error)
        except BrokerAway:
            return False
        return True
