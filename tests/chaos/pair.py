"""Two relays for one source, an active one and its standby, each with a way of its own to each server."""

from collections.abc import Callable
from contextlib import AsyncExitStack
from random import Random
from signal import SIGKILL, SIGTERM, Signals
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit

from tests.support.process import RelayProcess
from tests.support.proxy import AMQP, POSTGRES, Proxy, querying, replicating
from tests.support.waiting import eventually

RECOVERY_S = 90.0
"""How long anything may take to be well again after a fault."""

LAST_LINES = 25
"""Of a relay's log, in a failure."""

Ordering = Literal["pipelined", "strict"]


class Seat:
    """A place for a relay, which is started again and again."""

    def __init__(self, name: str, dsn: str, amqp_url: str, ordering: Ordering) -> None:
        self._name = name
        self._dsn = dsn
        self._amqp_url = amqp_url
        self.ordering = ordering
        self.postgres = Proxy(urlsplit(dsn).port or 5432, POSTGRES)
        self.rabbit = Proxy(urlsplit(amqp_url).port or 5672, AMQP)
        self._ways = AsyncExitStack()
        self._life = AsyncExitStack()
        self._wanted = False

    async def __aenter__(self) -> Self:
        for proxy in (self.postgres, self.rabbit):
            await self._ways.enter_async_context(proxy)
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._life.aclose()
        await self._ways.aclose()

    @property
    def active(self) -> bool:
        """Whether its relay streams."""
        return self.postgres.carries(replicating)

    @property
    def waits(self) -> bool:
        """Whether its relay is a standby: connected, and told that it is not its turn."""
        last = self.relay.lines[-1].get("action") if self.relay.lines else None
        return last == "standby" and self.postgres.carries(querying)

    async def start(self) -> None:
        """Start a relay."""
        relay = RelayProcess(
            self.postgres.url_of(self._dsn), self.rabbit.url_of(self._amqp_url), SOURCE__0__ORDERING=self.ordering
        )
        self._wanted = True
        self.relay = await self._life.enter_async_context(relay)

    async def end(self, signal: Signals) -> None:
        """End the relay. Told to stop, it has to do so in good order, unless it has only just been started."""
        self.assert_runs()
        self._wanted = False
        orderly = signal is SIGTERM and self.relay.lines
        code = await self.relay.end(signal)
        assert code in ({0} if orderly else {0, -signal}), f"{signal.name}: exit status {code}\n{self.last_words()}"
        await self._life.aclose()

    def assert_runs(self) -> None:
        """A fault must never end a relay, nor show a bug of it."""
        assert not self._wanted or self.relay.process.returncode is None, (
            f"a relay has ended by itself\n{self.last_words()}"
        )
        assert not self.relay.said("source_crashed"), self.last_words()

    def last_words(self) -> str:
        """The end of its log."""
        lines = self.relay.lines[-LAST_LINES:]
        said = (f"  {line.get('at')} {line.get('action')}: {line.get('message')}" for line in lines)
        return "\n".join((f"relay {self._name}:", *said))


class Pair:
    """Both of them. Whoever is active at the moment is `active`."""

    def __init__(self, dsn: str, amqp_url: str, ordering: Ordering) -> None:
        self.seats = tuple(Seat(name, dsn, amqp_url, ordering) for name in ("A", "B"))
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for seat in self.seats:
            await self._stack.enter_async_context(seat)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def active(self) -> Seat:
        """The one that streams, as soon as one does."""
        while not (active := [seat for seat in self.seats if seat.active]):  # it may not stay so while this wakes up
            await self._until(lambda: any(seat.active for seat in self.seats), "no relay became active")
        return active[0]

    def likely_active(self, dice: Random) -> Seat:
        """The one that streams; or, between two that do, any."""
        return next((seat for seat in self.seats if seat.active), dice.choice(self.seats))

    async def active_with_standby(self) -> tuple[Seat, Seat]:
        """The one that streams and the one that waits for its turn, as soon as there are such two."""

        def found() -> list[tuple[Seat, Seat]]:
            first, second = self.seats
            return [(one, two) for one, two in ((first, second), (second, first)) if one.active and two.waits]

        while not (pairs := found()):
            await self._until(lambda: bool(found()), "no relay became a standby")
        return pairs[0]

    async def switch(self, ordering: Ordering) -> None:
        """Start both again with another setting."""
        for seat in self.seats:
            await seat.end(SIGTERM)
            seat.ordering = ordering
        for seat in self.seats:
            await seat.start()

    async def take_over(self) -> None:
        """Kill the active one while the other stands by; start it again when the other has taken over."""
        active, standby = await self.active_with_standby()
        await active.end(SIGKILL)
        await self._until(lambda: standby.active, "the standby did not take over")
        await active.start()

    def assert_run(self) -> None:
        """Neither has ended by itself."""
        for seat in self.seats:
            seat.assert_runs()

    def last_words(self) -> str:
        """The ends of both logs."""
        return "\n".join(seat.last_words() for seat in self.seats)

    async def _until(self, condition: Callable[[], bool], otherwise: str) -> None:
        def holds() -> bool:
            self.assert_run()
            return condition()

        try:
            await eventually(holds, RECOVERY_S)
        except AssertionError as error:
            raise AssertionError(f"{otherwise}: {error}\n{self.last_words()}") from None
