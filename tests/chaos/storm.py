"""A storm: the faults of a plan strike while writers write, and the verdict on what arrived."""

import asyncio
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random, SystemRandom
from signal import SIGKILL, SIGTERM
from typing import assert_never

from relay.broker.properties import Delivery
from relay.demo.servers.postgres import PrivatePostgres
from relay.demo.servers.rabbitmq import PrivateRabbitMQ
from tests.chaos.pair import RECOVERY_S, Ordering, Pair, Seat
from tests.chaos.plan import CRUMBLED_BYTES, HARMLESS, MOST_CRUMB, Fault, Kind, Line
from tests.support.database import Database
from tests.support.mailbox import Mailbox
from tests.support.proxy import Crumbs, Cut, Proxy, anyone, querying, replicating

FAULTS = int(os.environ.get("CHAOS_FAULTS") or 2 * len(Kind))
SEED = int(os.environ.get("CHAOS_SEED") or SystemRandom().randrange(1_000_000))

LONGEST_FAULT_S = 10.0
"""On average: a restart of RabbitMQ takes longer on a busy machine, and most other faults less."""
PREPARATION_S = 120.0


CUT_PATIENCE_S = 4.0
"""How long a cut waits for its bytes before it is ordered anew, of whichever relay is active then."""
CUT_ATTEMPTS = 20

PROBE = (
    "INSERT INTO relay.outbox (aggregate_type, aggregate_id, type, payload) VALUES ('probe', 'probe', 'Probed', '{}')"
    " RETURNING id"
)

ONLY = {Line.REPLICATION: replicating, Line.SQL: querying, Line.POSTGRES: anyone, Line.AMQP: anyone}


def timeout_s(faults: int) -> float:
    """How long a test with so many faults may take."""
    return PREPARATION_S + LONGEST_FAULT_S * faults


@dataclass(frozen=True, slots=True)
class Damage:
    """A time in which messages may have been published that have to be published again."""

    deliveries: int
    """How many messages had arrived when it began."""
    over_at: datetime


class Storm:
    """Strikes, one fault after the other, and keeps in mind what each can excuse."""

    def __init__(
        self, postgres: PrivatePostgres, rabbit: PrivateRabbitMQ, database: Database, box: Mailbox, pair: Pair
    ) -> None:
        self._postgres = postgres
        self._rabbit = rabbit
        self._database = database
        self._box = box
        self._pair = pair
        self._since: int | None = None
        self.damages: list[Damage] = []
        self.cuts_inside = 0
        """Cuts of every kind that were seen to split a frame."""

    async def rage(self, faults: Iterable[Fault]) -> None:
        """All of these, and then recover."""
        for fault in faults:
            if fault.recovered:
                await self.recover()
            await asyncio.sleep(fault.pause_s)  # part of the plan: the moment is what matters
            print(fault, flush=True)
            if fault.kind not in HARMLESS:
                self._harm()
            await self._strike(fault)
            self._pair.assert_run()
        await self.recover()

    async def switch(self, ordering: Ordering) -> None:
        """Go on with another setting. That takes a restart of both relays."""
        self._harm()
        await self._pair.switch(ordering)

    def _harm(self) -> None:
        """From here on messages may be published again."""
        if self._since is None:
            self._since = len(self._box.deliveries)

    async def recover(self) -> None:
        """Wait until a message arrives that is committed now: whatever was wrong is over."""
        ((probe,),) = await asyncio.to_thread(self._database.query, PROBE)
        looked = len(self._box.deliveries)

        def arrived(_: list[Delivery]) -> bool:
            nonlocal looked
            news = self._box.deliveries[looked:]
            looked += len(news)
            return any(delivery.properties.message_id == str(probe) for delivery in news)

        try:
            await self._box.until(arrived, RECOVERY_S)
        except AssertionError as error:
            raise AssertionError(f"no recovery: {error}\n{self._pair.last_words()}") from None
        if self._since is not None:
            self.damages.append(Damage(self._since, datetime.now(UTC)))
            self._since = None

    async def _strike(self, fault: Fault) -> None:
        match fault.kind:
            case Kind.CUT_POSTGRES | Kind.CUT_RABBIT | Kind.TEAR_POSTGRES | Kind.TEAR_RABBIT:
                await self._cut(fault)
            case Kind.DELAY:
                await self._delay(fault)
            case Kind.CRUMBLE:
                proxy = self._proxy(fault, await self._pair.active())
                proxy.crumble(fault.direction, Crumbs(CRUMBLED_BYTES, MOST_CRUMB, Random(fault.dice)))
            case Kind.KILL | Kind.TERMINATE:
                seat = self._pair.likely_active(Random(fault.dice))
                await seat.end(SIGKILL if fault.kind is Kind.KILL else SIGTERM)
                await seat.start()
            case Kind.TAKEOVER:
                await self._pair.take_over()
            case Kind.CRASH_POSTGRES:
                if fault.gentle:
                    await asyncio.to_thread(self._postgres.stop, "immediate")
                else:
                    await asyncio.to_thread(self._postgres.kill)
                await asyncio.to_thread(self._postgres.start)
                self._database.reconnect()
            case Kind.RESTART_RABBIT:
                await asyncio.to_thread(self._rabbit.stop if fault.gentle else self._rabbit.kill)
                await asyncio.to_thread(self._rabbit.start)
            case _:
                assert_never(fault.kind)

    async def _cut(self, fault: Fault) -> None:
        """Until it is done, and inside a frame where that is the point of it: the relay's traffic decides when."""
        torn = fault.kind in (Kind.TEAR_POSTGRES, Kind.TEAR_RABBIT)
        for _ in range(CUT_ATTEMPTS):
            proxy = self._proxy(fault, await self._pair.active())
            cut = Cut(fault.direction, fault.after_bytes, inside=torn, reset=fault.reset, only=ONLY[fault.line])
            proxy.order(cut)
            with suppress(TimeoutError):
                inside = await asyncio.wait_for(asyncio.shield(cut.done), CUT_PATIENCE_S)
                self.cuts_inside += inside
                if inside or not torn:
                    return
            proxy.forget()
        raise AssertionError(f"nothing passed that could be cut: {fault}\n{self._pair.last_words()}")

    async def _delay(self, fault: Fault) -> None:
        proxy = self._proxy(fault, await self._pair.active())
        proxy.hold(fault.direction)
        await asyncio.sleep(fault.seconds)  # that is the fault
        proxy.release()

    def _proxy(self, fault: Fault, seat: Seat) -> Proxy:
        return seat.rabbit if fault.line is Line.AMQP else seat.postgres


def unexcused_repeats(
    committed_at: Mapping[str, datetime], deliveries: Iterable[Delivery], damages: Iterable[Damage]
) -> tuple[int, list[str]]:
    """How many deliveries were repeats, and which of them no damage excuses.

    One excuses what was committed before it was over, and came again after it had begun.
    """
    damages = list(damages)
    seen: set[str] = set()
    repeats, unexcused = 0, []
    for index, delivery in enumerate(deliveries):
        message_id = str(delivery.properties.message_id)
        if message_id in seen:
            repeats += 1
            if not any(damage.deliveries <= index and committed_at[message_id] <= damage.over_at for damage in damages):
                unexcused.append(message_id)
        seen.add(message_id)
    return repeats, unexcused


def assert_repeats_excused(database: Database, deliveries: list[Delivery], damages: list[Damage]) -> int:
    """Nothing arrived twice without a fault that explains it. Returns the number of repeats."""
    rows = database.query("SELECT id::text, created_at FROM relay.outbox")
    committed_at = {str(message_id): at for message_id, at in rows if isinstance(at, datetime)}
    repeats, unexcused = unexcused_repeats(committed_at, deliveries, damages)
    assert not unexcused, f"{len(unexcused)} messages arrived twice for no reason, {unexcused[0]} among them"
    return repeats
