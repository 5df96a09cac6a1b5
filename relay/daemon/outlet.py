"""Where the messages of a source leave: held to their order, published, and judged by what the broker says of them."""

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Final

from relay.broker.connection import Disrupted
from relay.broker.layout import Partitioned
from relay.broker.publisher import Outcome, Unsendable
from relay.capture.message import NO_CAPTURE, HeadersError, Kind, Lane, Malformed, Message
from relay.config import BrokerSettings, OnUnroutable, Ordering, SourceSettings
from relay.daemon.addressing import content_types, envelopes, routing
from relay.daemon.lines import Lines
from relay.daemon.parking import Parking
from relay.daemon.progress import Transaction
from relay.daemon.sending import Replay, Replays, Route, Routes, Sending
from relay.daemon.status import SourceStatus
from relay.daemon.uplink import Callbacks, Uplink
from relay.errors import RelayError
from relay.log import SourceLog
from relay.parking.index import Reason, Refusal, Verdict
from relay.tasks import end
from relay.wal.lsn import Lsn, Position

HOLD: Final = 1000
HOLD_BYTES: Final = 8_000_000
"""Messages that may wait for another of their aggregate, and their bodies; then reading stops."""

REFUSALS: Final = 8
"""How often a queue may refuse a message, with nothing confirmed on its route meanwhile: for about five seconds. A
replay may be refused so often in all."""

REFUSALS_MOST: Final = 100
"""How often a queue may refuse a message whatever else it takes: one over the queue's own limit in bytes, say."""

REFUSING_S: Final = 10.0
"""For so long after a message was parked for being refused, the next one on its route is parked at its first refusal: a
queue that is full for good must not cost five seconds for each aggregate."""

RETRY_FIRST_S: Final = 0.05
RETRY_CAP_S: Final = 2.0
"""Waits before a refused message is tried again; each is twice the one before it."""

SAY_REFUSED_EVERY_S: Final = 60.0
"""How often the log says that a queue refuses what comes on a route."""

HANG_UP_S: Final = 6.0
"""How long the broker may take to say goodbye when the source ends."""

DEFAULT_POLICIES: Final[dict[str, OnUnroutable]] = {
    Kind.EVENT: OnUnroutable.IGNORE,
    Kind.COMMAND: OnUnroutable.PARK,
    Kind.REPLY: OnUnroutable.PARK,
}
"""What becomes of a message that no queue is bound for, unless [broker.on_unroutable] says otherwise."""

_CONFIRMED: Final = Outcome.CONFIRMED
"""Looked up once, not for each message: in an Enum that takes fifteen times as long as in a module."""


class Unheard(RelayError):
    """A message was returned: no queue is bound where it is addressed to, and the source is set to stop then."""

    hint = (
        "Bind a queue there, or start the service that it is addressed to, which declares its queue; then the relay "
        "again: it begins with this message. Or let such messages be parked: [broker.on_unroutable]."
    )


class Outlet:
    """The one way out of a source. Messages leave in the order of the calls, as far as that is promised.

    Each is settled once: confirmed by a queue, ignored as an event that nobody listens to, or parked for good. `run`
    raises what stops the source; whatever is not settled by then, and with it the LSN, stays so.
    """

    def __init__(
        self,
        source: SourceSettings,
        broker: BrokerSettings,
        parking: Parking,
        status: SourceStatus,
        log: SourceLog,
        groups: Sequence[Partitioned] = (),
    ) -> None:
        self._parking = parking
        self._index = parking.index
        self._status = status
        self._log = log
        self._max_message_bytes = broker.max_message_bytes
        self._routes = Routes(
            source.name,
            routing(broker, source),
            envelopes(source),
            DEFAULT_POLICIES | dict(broker.on_unroutable),
            content_types(source),
        )
        self._lines = Lines(strict=source.ordering is Ordering.STRICT)
        self._released: deque[Sending] = deque()
        self._releasing = False
        self._replays: dict[Lane, Replays] = {}
        callbacks = Callbacks(self._judge, self._unsendable, self._held, self._lost, self.changed)
        self._uplink = Uplink(
            broker.url.get_secret_value(), f"saga-relay {source.name}", callbacks, status, log, groups
        )
        self._changed = asyncio.Event()
        self._failed: asyncio.Future[RelayError] = asyncio.get_running_loop().create_future()
        self.published = 0

    @property
    def in_flight(self) -> int:
        """Messages that were handed over and are not yet settled, but for those that are being parked."""
        return self._uplink.in_flight + self._lines.held

    @property
    def has_room(self) -> bool:
        """Whether `publish` may be called."""
        lines = self._lines
        if not self._uplink.has_room or lines.held >= HOLD or lines.held_bytes >= HOLD_BYTES:
            return False
        return self._index.empty or self._parking.has_room

    async def room(self) -> None:
        """Wait until there is room: for as long as the broker is away, if need be."""
        while not self.has_room:
            await self._change()

    async def connected(self) -> None:
        """Wait until the broker has been reached."""
        while not self._uplink.connected:
            await self._change()

    async def settled(self) -> None:
        """Wait until everything is settled: for as long as the broker is away, if need be."""
        while self.in_flight or self._parking.pending:
            await self._change()

    async def backlog_settled(self) -> None:
        """Wait until the rows that are older than the slot are settled, of which none comes again."""
        await self.settled()
        self._parking.backlog_done()

    async def disconnected(self) -> None:
        """Wait until the broker is away."""
        while self._uplink.connected:
            await self._change()

    async def run(self) -> None:
        """Keep connected to the broker. Runs until cancelled; raises what stops the source."""
        uplink = asyncio.ensure_future(self._uplink.run())
        try:
            futures: set[asyncio.Future[Any]] = {uplink, self._failed}
            await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
            if self._failed.done():
                raise self._failed.result()
            uplink.result()
        finally:
            await end(uplink, again_s=HANG_UP_S)

    def publish(self, message: Message, transaction: Transaction, ordinal: int) -> None:
        """Take a message over; it is settled with its transaction. To be called when there is room."""
        self.published += 1
        if not self._index.empty and self._seen_to(message, transaction, ordinal):
            return
        try:
            route = self._routes.of(message)
        except Unsendable as error:
            position = Position(transaction.commit_lsn, ordinal)
            self._parking.park(message, position, Reason(error.flaw), str(error), transaction.settle)
            return
        sending = Sending(message, route, transaction, ordinal)
        if len(message.payload) > self._max_message_bytes:
            self._park(sending, self._too_large(message))
        elif (route.certain and self._lines.idle) or self._lines.enter(sending):
            self._uplink.send(sending)

    def set_aside(self, malformed: Malformed, transaction: Transaction, ordinal: int) -> None:
        """Park what is no message. To be called when there is room. It comes by no capture, so it is never sent."""
        self.published += 1
        message = malformed.message._replace(capture=NO_CAPTURE)
        if self._index.empty or not self._seen_to(message, transaction, ordinal):
            position = Position(transaction.commit_lsn, ordinal)
            self._parking.park(message, position, Reason.UNENCODABLE, str(malformed), transaction.settle)

    def passed(self, lsn: Lsn) -> None:
        """Everything that was committed before `lsn` has been handed over."""
        self._index.passed(lsn)

    async def replay(self, message: Message, position: Position) -> Refusal | None:
        """Publish a parked message under its own id; None when a queue has it, else why it stays parked.

        May be called for several messages of a lane at once, in their order: once one is refused, so are those after it
        that have not left yet.
        """
        try:
            route = self._routes.of(message)
        except Unsendable as error:
            return Refusal(Reason(error.flaw), str(error))
        if len(message.payload) > self._max_message_bytes:
            return self._too_large(message)
        lane = message.lane
        replays = self._replays.setdefault(lane, Replays(position))
        replays.pending += 1
        replay = Replay(position, replays, asyncio.get_running_loop().create_future())
        try:
            sending = Sending(message, route, replay, position.ordinal)
            if self._lines.enter(sending):
                self._release([sending])
            return await replay.answer
        finally:
            replays.pending -= 1
            if not replays.pending:
                self._replays.pop(lane, None)

    async def _change(self) -> None:
        """Wait until something may have changed. Several may wait: each looks for itself."""
        self._changed.clear()
        await self._changed.wait()

    def changed(self) -> None:
        """There may be room now, or everything settled, or the broker gone: whoever waits for it looks again."""
        self.show()
        self._changed.set()

    def show(self) -> None:
        """Tell the status how much is on its way, and how much is parked."""
        self._status.in_flight = self.in_flight
        self._status.parked = self._index.count

    def _seen_to(self, message: Message, transaction: Transaction, ordinal: int) -> bool:
        """Whether the message needs no publishing: it is parked behind others, or was parked or replayed before."""
        position, lane = Position(transaction.commit_lsn, ordinal), message.lane
        verdict = self._index.verdict(position, lane)
        if verdict is Verdict.SKIP:
            transaction.settle()
        elif verdict is Verdict.PARK:
            refusal = self._behind(lane)
            self._parking.park(message, position, refusal.reason, refusal.detail, transaction.settle)
        return verdict is not Verdict.PUBLISH

    def _too_large(self, message: Message) -> Refusal:
        detail = f"its body has {len(message.payload)} bytes, and max_message_bytes is {self._max_message_bytes}"
        return Refusal(Reason.TOO_LARGE, detail)

    def _behind(self, lane: Lane) -> Refusal:
        """Those that wait carry the reason of the first of their lane."""
        return Refusal(
            self._index.reason(lane) or Reason.UNROUTABLE, "it waits behind a parked message of the same aggregate"
        )

    def _judge(self, sending: Sending, outcome: Outcome) -> None:
        """The broker has said what became of a message. The hot path: nearly all are confirmed, and nobody waits."""
        if outcome is _CONFIRMED:
            if not sending.route.proven:
                sending.route.prove()
            sending.origin.settle()
            if not self._lines.idle:
                self._release(self._lines.leave(sending))
        elif outcome is Outcome.NACKED:
            self._refuse(sending)
        else:
            self._return(sending)

    def _return(self, sending: Sending) -> None:
        """The message came back: no queue is bound for it."""
        route = sending.route
        route.doubt()
        if route.policy is OnUnroutable.PARK or isinstance(sending.origin, Replay):
            self._park(sending, Refusal(Reason.UNROUTABLE, f"no queue is bound to {route}"))
        elif route.policy is OnUnroutable.STOP:
            self._fail(Unheard(f"{sending.message} was returned: no queue is bound to {route}"))
        else:
            if self._status.nobody_heard(route.template.routing_key):
                words = f"nobody listens on {route}: such messages are counted and dropped"
                self._log.warning("event_unheard", words, routing_key=route.template.routing_key)
            self._settle(sending)

    def _refuse(self, sending: Sending) -> None:
        """A queue refused the message: try again, for a while."""
        route = sending.route
        now = time.monotonic()
        sending.refused_by(route.proofs)
        route.doubt()
        self._say_refused(route, now)
        count = sending.refusals_in_all
        most = REFUSALS if isinstance(sending.origin, Replay) else REFUSALS_MOST  # an operator waits for its outcome
        if sending.refusals >= REFUSALS or count >= most or now < route.refusing_until:
            route.refusing_until = now + REFUSING_S
            times = f"{count} times" if count > 1 else "as it did with the messages before it"
            detail = f"a queue behind {route} has refused it {times}"
            self._park(sending, Refusal(Reason.NACKED, detail))
        elif self._lines.again(sending):
            delay_s = min(RETRY_CAP_S, RETRY_FIRST_S * 2 ** (sending.refusals - 1))
            asyncio.get_running_loop().call_later(delay_s, self._retry, sending)

    def _say_refused(self, route: Route, now: float) -> None:
        """A queue that is full refuses thousands of messages a second: one line in a while will do."""
        if route.refused_at is None or now - route.refused_at > SAY_REFUSED_EVERY_S:
            route.refused_at = now
            words = f"a queue refuses messages of {route}: they are tried again, and parked if that goes on"
            self._log.warning("refused", words, routing_key=route.template.routing_key)

    def _retry(self, sending: Sending) -> None:
        if self._lines.retry(sending):
            self._release([sending])
            self.changed()

    def _unsendable(self, sending: Sending, error: Unsendable | HeadersError | Disrupted) -> None:
        reason = Reason.UNENCODABLE
        if isinstance(error, Unsendable):
            reason = Reason(error.flaw)
        elif isinstance(error, Disrupted) and error.too_large:
            reason = Reason.TOO_LARGE
        self._park(sending, Refusal(reason, str(error)))

    def _settle(self, sending: Sending) -> None:
        """Nothing more needs to be done for the message."""
        sending.origin.settle()
        self._release(self._lines.leave(sending))

    def _park(self, sending: Sending, refusal: Refusal) -> None:
        """Set a message aside; a replay stays where it is."""
        self._uplink.forget(sending)
        origin = sending.origin
        if isinstance(origin, Replay):
            origin.settle(refusal)
        else:
            self._parking.park(sending.message, sending.position, refusal.reason, refusal.detail, origin.settle)
        self._release(self._lines.leave(sending))

    def _release(self, sendings: Iterable[Sending]) -> None:
        """Let messages leave which waited for others. Those that this lets leave in turn follow them, in one loop."""
        self._released.extend(sendings)
        if self._releasing:
            return
        self._releasing = True
        while self._released:
            sending = self._released.popleft()
            if not self._held(sending):
                self._uplink.send(sending)
        self._releasing = False

    def _held(self, sending: Sending) -> bool:
        """Whether the message must not leave after all, because one before it was parked meanwhile."""
        lane = sending.message.lane
        refusal = None
        if isinstance(sending.origin, Replay):
            replays, parked = sending.origin.lane, self._index.parked(lane)
            refusal = replays.refusal
            if refusal is None and parked and parked[0] < replays.first:
                refusal = self._behind(lane)
        elif not self._index.empty and self._index.verdict(sending.position, lane) is Verdict.PARK:
            refusal = self._behind(lane)
        if refusal is not None:
            self._park(sending, refusal)
            return True
        return self._lines.overtakes(sending)

    def _lost(self, unsettled: Iterable[Sending]) -> list[Sending]:
        """The connection is lost, and with it what was known of routes. Everything begins again, in order."""
        self._routes.doubt()
        waiting = sorted([*unsettled, *self._lines.clear()], key=lambda sending: sending.position)
        for sending in waiting:
            sending.route.doubt()  # one that was forgotten meanwhile is known to its messages alone
        return [sending for sending in waiting if not self._held(sending) and self._lines.enter(sending)]

    def _fail(self, reason: RelayError) -> None:
        if not self._failed.done():
            self._failed.set_result(reason)
