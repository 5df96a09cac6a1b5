"""The job that tries messages again that were put off: the first of each lane, when it is due."""

import asyncio
from functools import partial
from typing import Final

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from relay.backoff import Backoff
from relay.messaging import deferred
from relay.messaging.attempt import attempt
from relay.messaging.deferred import Kept, Lane
from relay.messaging.failures import Mishap, described
from relay.messaging.handler import Outcome
from relay.messaging.lanes import Lanes
from relay.messaging.log import ServiceLog
from relay.messaging.message import Unprocessable
from relay.messaging.receiver import Receiver
from relay.messaging.retry import AWAY_CAP_S, AWAY_FIRST_S, Patience, Retry, Trouble, jittered, trouble
from relay.messaging.transaction import Pool

POLL_S: Final = 0.5
"""How often an instance looks for what is due."""

POLL_SHARE: Final = 0.1
"""The part of the time that may be spent on looking, when very much is waiting."""

WIDTH: Final = 4
"""Messages that an instance tries again at once, beside those of its queue."""

LANES: Final = 100
"""How many lanes with something due are taken in hand at a time."""

TURN: Final = 100
"""Messages of one lane that are handled one after the other before others have their turn."""

LOST_MAX: Final = 8
"""How many attempts may end without a word, with the process or the connection, before a message is dead anyway."""


class LostTooOften(Unprocessable):
    """Attempts at the message ended without a word again and again: it may be what ends the process."""


class Retrier:
    """Tries again what is due. Several instances share the work."""

    def __init__(self, receiver: Receiver, retry: Retry) -> None:
        self._receiver = receiver
        self._consumer = receiver.consumer
        self._retry = retry
        self._log = ServiceLog(receiver.consumer)

    async def run(self, pool: Pool) -> None:
        """Try again, until cancelled, what is due. While the database is away, this waits."""
        clock = asyncio.get_running_loop().time
        in_hand: set[Lane] = set()
        async with Lanes(WIDTH) as lanes:
            while True:
                begun_at = clock()
                for lane in await self._due(pool) if len(in_hand) < LANES else ():
                    if lane not in in_hand:
                        in_hand.add(lane)
                        lanes.start(lane, partial(self._take_turn, pool, lane, in_hand, lanes))
                await asyncio.sleep(max(POLL_S, (clock() - begun_at) * (1 / POLL_SHARE - 1)))

    async def _due(self, pool: Pool) -> list[Lane]:
        """What is due. While the database is away, this waits; what is being tried meanwhile is not disturbed."""
        backoff = Backoff(AWAY_FIRST_S, AWAY_CAP_S)
        while True:
            try:
                return await attempt(pool, partial(deferred.due, consumer=self._consumer, limit=LANES))
            except psycopg.Error as error:
                if trouble(error) is not Trouble.AWAY:
                    raise
                words = f"{self._consumer}: nothing is tried again while the database is away: {described(error)}"
                self._log.warning("job_waits", words, job="retries")
            await asyncio.sleep(backoff.next())

    async def _take_turn(self, pool: Pool, lane: Lane, in_hand: set[Lane], lanes: Lanes) -> None:
        """Work on a lane for one turn, and line up for another when there is more."""
        try:
            more = await self._work_off(pool, lane)
        except psycopg.Error as error:
            # One message may be what ends its connection: it costs the others nothing. What was claimed is due again
            # after a while. And another instance may have been quicker, in a session that takes that for a conflict.
            if trouble(error) is Trouble.FAULT:
                raise
            more = False
            words = f"a message of {lane.aggregate_type} {lane.aggregate_id} has to wait: {described(error)}"
            self._log.warning("database_away", words)
        if more:
            lanes.start(lane, partial(self._take_turn, pool, lane, in_hand, lanes))
        else:
            in_hand.discard(lane)

    async def _work_off(self, pool: Pool, lane: Lane) -> bool:
        """Handle the first message of a lane, and, as long as that succeeds, those behind it; True for more."""
        claim = partial(deferred.claim, consumer=self._consumer, lane=lane, retry=self._retry)
        for _ in range(TURN):
            kept = await attempt(pool, claim)
            if kept is None or not await self._try(pool, kept):
                return False
        return True

    async def _try(self, pool: Pool, kept: Kept) -> bool:
        """Make the attempt that was claimed; False when the message is still there, or somebody else's."""
        patience = Patience(fault_tries=1)
        own: AsyncConnection[TupleRow] | None = None

        async def handle(conn: AsyncConnection[TupleRow]) -> Outcome:
            nonlocal own
            own = conn
            return await self._receiver.handle_again(kept, conn)

        while True:
            own = None
            try:
                self._require_words(kept)
                outcome = await attempt(pool, handle)
            except Exception as error:  # the handler's edge: it may raise anything
                away = trouble(error) is Trouble.AWAY
                if away and (own is None or own.closed):
                    raise
                # An absence of another database, which the handler asks, is a failure like any other.
                if away or patience.after(error) is None:
                    await self._failed(pool, kept, error)
                    return False
                self._log.failed(kept.type, kept.message_id, error, 0.0)
            else:
                return outcome is not Outcome.DEFERRED

    def _require_words(self, kept: Kept) -> None:
        """Raise LostTooOften. How many these are, nobody can tell: a replay counts anew, and the history goes on."""
        if kept.attempts > self._retry.attempts + LOST_MAX:
            words = "those of them that are not in its history ended without a word"
            raise LostTooOften(f"it has been tried {kept.attempts - 1} times, and {words}")

    async def _failed(self, pool: Pool, kept: Kept, error: Exception) -> None:
        history = (*kept.history, Mishap.of(error, kept.attempts))
        spent = kept.attempts >= self._retry.attempts or isinstance(error, Unprocessable)
        delay_s = None if spent else jittered(self._retry.delay_s(kept.attempts))
        await attempt(
            pool, partial(deferred.fail, consumer=self._consumer, kept=kept, history=history, delay_s=delay_s)
        )
        if delay_s is None:
            self._log.dead(kept.type, kept.message_id, history, error, overtakes=kept.overtakes)
        else:
            self._log.put_off(kept.type, kept.message_id, history, delay_s)
