"""Does what operators ask: publishes parked messages after all, or drops them."""

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Final, Protocol, TypeAlias

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from relay.capture.message import Lane, Message
from relay.log import SourceLog
from relay.parking import request as requests
from relay.parking import table
from relay.parking.index import Index, Refusal
from relay.parking.request import Action, Request
from relay.parking.table import Outcome
from relay.tasks import end
from relay.wal.lsn import Position

CHUNK: Final = 100
"""Messages that are replayed before what became of them is committed: at most so many come twice after a crash."""

Replay: TypeAlias = Callable[[Message, Position], Coroutine[Any, Any, Refusal | None]]
"""Publishes a parked message: None once a queue has it, else why it has to stay parked.

It is called for the messages of a lane in their order, and for some of them at once: when it refuses one, it refuses
those behind it as well.
"""


class Held(Protocol):
    """What is parked, as the replayer needs it: see Parking."""

    index: Index

    def unstored(self) -> set[Position]:
        """The positions that are not in the table yet."""

    async def at_rest(self) -> None:
        """Wait until everything is stored that there is room for."""

    async def reread(self) -> None:
        """Wait until the stream has come past everything that it sends again."""

    def hold(self, held: bool) -> None:
        """Let nothing new come, or let it come again."""

    def made_room(self) -> None:
        """Messages were taken out, or a request has come to its end."""


class Replayer:
    """Takes one request after the other, and sees it through, also one that another relay has left unfinished.

    A message is taken out of the table, remembered and counted in one transaction, and then out of the index. As long
    as anything of a lane is parked, what is new of it is parked behind: nothing is overtaken. When the last is gone,
    the next one that comes is published.
    """

    def __init__(
        self, connection: AsyncConnection[TupleRow], slot: str, parking: Held, replay: Replay, log: SourceLog
    ) -> None:
        self._connection = connection
        self._slot = slot
        self._parking = parking
        self._index = parking.index
        self._replay = replay
        self._log = log
        self.waits = False
        """Whether it waits for the stream, which must go on for that."""

    async def run(self, asked: asyncio.Event) -> None:
        """Look for requests whenever somebody has asked. Runs until cancelled; raises psycopg's errors."""
        while True:
            await asked.wait()
            asked.clear()
            while (request := await requests.take(self._connection, self._slot)) is not None:
                await self._execute(request)
            self._parking.made_room()

    async def _execute(self, request: Request) -> None:
        self._parking.hold(True)
        try:
            await self._parking.at_rest()
            lanes = request.lanes
            if lanes is None:
                lanes = await requests.select_lanes(self._connection, request)
            if request.action is Action.DROP and not request.dropped:
                await self._drop(request, lanes)
            self._parking.hold(False)
            trouble = None if request.first_only else await self._publish(request, lanes)
        finally:
            self._parking.hold(False)
        left = sum(len(self._index.parked(lane)) for lane in lanes)
        await requests.finish(self._connection, self._slot, request.id, left, trouble)
        words = f"did as request {request.id} asked: {request.action}; {left} messages of the lanes are still parked"
        self._log.info("parked_request_done", words, request=request.id, still_parked=left)

    async def _drop(self, request: Request, lanes: Iterable[Lane]) -> None:
        """Drop what is parked of these lanes by now, in one transaction; of the first only, where that is asked."""
        unstored = self._parking.unstored()
        chosen = {lane: [at for at in self._index.parked(lane) if at not in unstored] for lane in lanes}
        if request.first_only:
            named = await table.find(self._connection, self._slot, request.ids or ())
            chosen = {lane: [at for at in self._index.parked(lane)[:1] if at in named] for lane in lanes}
        await self._settle(request, chosen, Outcome.DROPPED)

    async def _publish(self, request: Request, lanes: Iterable[Lane]) -> str | None:
        """Publish what is parked of these lanes, and what is parked behind it meanwhile, until nothing is left of them
        but what is refused. Returns why the first of those is, None when there is none.

        What had been parked when this began is done first. Then nothing new is let in until the rest is done: else a
        lane that fills as fast as it is emptied would never come to its end.
        """
        waiting = deque(lane for lane in lanes if self._index.parked(lane))
        if not waiting:
            return None
        self.waits = True
        await self._parking.reread()
        self.waits = False
        known = sum(len(self._index.parked(lane)) for lane in waiting)
        trouble: str | None = None
        while any(self._index.parked(lane) for lane in waiting):
            if known <= 0:
                self._parking.hold(True)
                await self._parking.at_rest()
            chunk = self._chunk(waiting)
            if chunk:
                known -= len(chunk)
                for lane, refusal in (await self._publish_chunk(request, chunk)).items():
                    waiting.remove(lane)
                    trouble = trouble or refusal.detail
            elif known <= 0:
                return trouble or "there is no room in relay.parked for what waits behind: see parked_limit"
            else:
                known = 0
        return trouble

    def _chunk(self, waiting: deque[Lane]) -> list[tuple[Position, Lane]]:
        """The next to be published: the first of each lane come first, and none before it is in the table."""
        unstored = self._parking.unstored()
        while waiting and not self._index.parked(waiting[0]):
            waiting.popleft()
        chunk: list[tuple[Position, Lane]] = []
        for lane in waiting:
            for position in self._index.parked(lane):
                if position in unstored:
                    break
                if len(chunk) == CHUNK:
                    return chunk
                chunk.append((position, lane))
        return chunk

    async def _publish_chunk(self, request: Request, chunk: Sequence[tuple[Position, Lane]]) -> dict[Lane, Refusal]:
        """Publish these, and commit what became of them. Returns the lanes that stay parked, and why."""
        lanes = dict(chunk)
        found = await table.fetch(self._connection, self._slot, [position for position, _ in chunk])
        answers = await self._hand_over({at: message for at, message in found.items() if message is not None})
        settled: dict[Lane, list[Position]] = defaultdict(list)
        refused: dict[Lane, Refusal] = {}
        for position in found:
            answer = answers.get(position)  # one that somebody has deleted by hand has none, and is gone
            if answer is None:
                settled[lanes[position]].append(position)
            elif lanes[position] not in refused:
                refused[lanes[position]] = answer
                await table.restate(self._connection, self._slot, lanes[position], position, answer)
                self._index.restate(lanes[position], answer.reason)
        await self._settle(request, settled, Outcome.REPLAYED)
        return refused

    async def _hand_over(self, messages: dict[Position, Message]) -> dict[Position, Refusal | None]:
        """Give messages to the outlet, in their order, and wait for what becomes of each."""
        if not messages:
            return {}
        refused: dict[Lane, Refusal] = {}

        async def give(message: Message, position: Position) -> Refusal | None:
            """What is refused at once has had no time to keep those behind it back."""
            answer = refused.get(message.lane) or await self._replay(message, position)
            if answer is not None:
                refused.setdefault(message.lane, answer)
            return answer

        answers = {at: asyncio.ensure_future(give(message, at)) for at, message in messages.items()}
        try:
            await asyncio.wait(answers.values(), return_when=asyncio.FIRST_EXCEPTION)
            return {position: answer.result() for position, answer in answers.items() if answer.done()}
        finally:
            await end(*answers.values())

    async def _settle(self, request: Request, chosen: dict[Lane, list[Position]], outcome: Outcome) -> None:
        positions = [position for some in chosen.values() for position in some]
        await table.settle(self._connection, self._slot, request.id, positions, outcome)
        for lane, some in chosen.items():
            self._index.settle(lane, some)
        self._parking.made_room()
