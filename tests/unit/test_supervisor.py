"""Sources that are kept going, with sessions that end as they are told to."""

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable

import pytest

from relay.daemon import supervisor as supervisor_module
from relay.daemon.status import SourceStatus, State
from relay.daemon.supervisor import Supervisor
from relay.errors import BrokerError, ExitCode, RelayError, SourceAway, SourceError

PATIENCE_S = 5.0


class FakeSession:
    """A session that plays its part and notes what it was told."""

    def __init__(self, part: Callable[["FakeSession"], Awaitable[None]], streams: asyncio.Event) -> None:
        self._part = part
        self._streams = streams
        self.streaming = self.progressed = False
        self.stopped = asyncio.Event()
        self.cancelled = False

    async def run(self) -> None:
        try:
            await self._part(self)
        except asyncio.CancelledError:
            self.cancelled = True
            raise

    def stop(self) -> None:
        self.stopped.set()

    def begins_to_stream(self) -> None:
        self.streaming = True
        self._streams.set()


class FakeSource:
    """One session after the other: the parts in turn, then the last of them again and again."""

    def __init__(self, *parts: Callable[[FakeSession], Awaitable[None]]) -> None:
        self._parts = parts
        self.sessions: list[FakeSession] = []
        self.begun = asyncio.Event()
        self.streams = asyncio.Event()

    def make(self) -> FakeSession:
        part = self._parts[min(len(self.sessions), len(self._parts) - 1)]
        self.sessions.append(FakeSession(part, self.streams))
        self.begun.set()
        return self.sessions[-1]


# Parts.


def fails(error: Exception, *, after_progress: bool = False) -> Callable[[FakeSession], Awaitable[None]]:
    async def part(session: FakeSession) -> None:
        session.progressed = after_progress
        await asyncio.sleep(0)
        raise error

    return part


async def streams_until_stopped(session: FakeSession) -> None:
    session.begins_to_stream()
    await session.stopped.wait()


async def streams_and_cannot_drain(session: FakeSession) -> None:
    session.begins_to_stream()
    await session.stopped.wait()
    await asyncio.Event().wait()


async def cannot_connect(session: FakeSession) -> None:
    await asyncio.Event().wait()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other without a pause."""
    monkeypatch.setattr(supervisor_module, "RETRY_FIRST_S", 0.0)
    monkeypatch.setattr(supervisor_module, "RETRY_CAP_S", 0.0)


pytestmark = pytest.mark.usefixtures("impatient")


async def supervise(**sources: FakeSource) -> ExitCode:
    makers = [(SourceStatus(name), source.make) for name, source in sources.items()]
    return await asyncio.wait_for(Supervisor(makers).run(), PATIENCE_S)  # type: ignore[arg-type]


async def signalled(supervising: "asyncio.Task[ExitCode]", *numbers: signal.Signals) -> ExitCode:
    for number in numbers:
        os.kill(os.getpid(), number)
        await asyncio.sleep(0.01)
    return await supervising


async def test_a_server_that_is_away_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    away = SourceAway("PostgreSQL is away")
    source = FakeSource(fails(away), fails(away), fails(SourceError("the slot is gone")))
    assert await supervise(shop=source) is ExitCode.SOURCE
    assert len(source.sessions) == 3
    attempts = [record for record in caplog.records if record.action == "reconnecting"]
    assert [record.source for record in attempts] == ["shop", "shop"]
    assert all(str(away) in record.getMessage() for record in attempts)


async def test_whoever_asks_is_told_how_the_source_is_doing() -> None:
    status, seen = SourceStatus("shop"), []

    async def looks(_: FakeSession) -> None:
        seen.append((status.state, status.reason))
        raise SourceAway("PostgreSQL is away")

    source = FakeSource(looks, looks, fails(SourceError("the slot is gone")))
    await asyncio.wait_for(Supervisor([(status, source.make)]).run(), PATIENCE_S)  # type: ignore[list-item]
    assert seen[1] == (State.AWAY, "PostgreSQL is away")
    assert (status.state, status.reason) == (State.STOPPED, "the slot is gone")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SourceError("no such role"), ExitCode.SOURCE),
        (BrokerError("no such virtual host"), ExitCode.BROKER),
        (RelayError("a command was returned"), ExitCode.FAILURE),
        (LookupError("a bug"), ExitCode.FAILURE),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
async def test_what_waiting_cannot_mend_ends_with_its_exit_code(error: Exception, code: ExitCode) -> None:
    source = FakeSource(fails(error))
    assert await supervise(shop=source) is code
    assert len(source.sessions) == 1


async def test_the_end_of_a_source_is_logged_with_its_hint(caplog: pytest.LogCaptureFixture) -> None:
    await supervise(shop=FakeSource(fails(SourceError("the slot is gone", "Read docs/slot-loss.md."))))
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert (record.action, record.source, record.hint) == ("source_stopped", "shop", "Read docs/slot-loss.md.")


async def test_a_bug_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    await supervise(shop=FakeSource(fails(LookupError("nothing there"))))
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.action == "source_crashed"
    assert "nothing there" in caplog.text


@pytest.mark.parametrize(
    ("error", "code"),
    [(SourceError("the slot is gone"), ExitCode.SOURCE), (LookupError("a bug"), ExitCode.FAILURE)],
    ids=["refused", "crashed"],
)
async def test_a_source_that_has_to_stop_stops_the_others_in_good_order(error: Exception, code: ExitCode) -> None:
    failing, healthy = FakeSource(fails(error)), FakeSource(streams_until_stopped)
    assert await supervise(healthy=healthy, failing=failing) is code
    (session,) = healthy.sessions
    assert session.stopped.is_set()
    assert not session.cancelled


async def test_the_exit_code_is_that_of_the_first_source_that_gave_up() -> None:
    sources = {"one": FakeSource(fails(BrokerError("no"))), "two": FakeSource(fails(SourceError("no")))}
    assert await supervise(**sources) is ExitCode.BROKER


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_what_is_in_flight_arrive_and_exits_with_0(number: signal.Signals) -> None:
    source = FakeSource(streams_until_stopped)
    supervising = asyncio.create_task(supervise(shop=source))
    await source.streams.wait()
    assert await signalled(supervising, number) is ExitCode.OK
    (session,) = source.sessions
    assert session.stopped.is_set()
    assert not session.cancelled


async def test_a_signal_stops_every_source() -> None:
    sources = {"one": FakeSource(streams_until_stopped), "two": FakeSource(streams_until_stopped)}
    supervising = asyncio.create_task(supervise(**sources))
    await asyncio.gather(*(source.streams.wait() for source in sources.values()))
    assert await signalled(supervising, signal.SIGTERM) is ExitCode.OK
    assert all(source.sessions[0].stopped.is_set() for source in sources.values())


async def test_a_first_signal_waits_for_what_is_in_flight_and_a_second_does_not() -> None:
    source = FakeSource(streams_and_cannot_drain)
    supervising = asyncio.create_task(supervise(shop=source))
    await source.streams.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0.05)
    assert not supervising.done()
    assert await signalled(supervising, signal.SIGTERM) is ExitCode.OK
    assert source.sessions[0].cancelled


async def test_a_signal_does_not_wait_for_a_session_that_has_not_begun_to_stream() -> None:
    source = FakeSource(cannot_connect)
    supervising = asyncio.create_task(supervise(shop=source))
    await source.begun.wait()
    await asyncio.sleep(0)
    assert await signalled(supervising, signal.SIGTERM) is ExitCode.OK
    assert source.sessions[0].cancelled


async def test_a_signal_ends_the_wait_for_the_next_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "RETRY_FIRST_S", 3600.0)
    monkeypatch.setattr(supervisor_module, "RETRY_CAP_S", 3600.0)
    source = FakeSource(fails(SourceAway("away")))
    supervising = asyncio.create_task(supervise(shop=source))
    await source.begun.wait()
    await asyncio.sleep(0.01)
    assert await signalled(supervising, signal.SIGTERM) is ExitCode.OK
    assert len(source.sessions) == 1


async def test_a_server_that_goes_away_while_what_is_in_flight_arrives_is_not_tried_again() -> None:
    async def loses_the_server(session: FakeSession) -> None:
        await streams_until_stopped(session)
        raise SourceAway("away")

    source = FakeSource(loses_the_server)
    supervising = asyncio.create_task(supervise(shop=source))
    await source.streams.wait()
    assert await signalled(supervising, signal.SIGTERM) is ExitCode.OK
    assert len(source.sessions) == 1


async def test_an_error_while_what_is_in_flight_arrives_is_not_hidden() -> None:
    async def breaks(session: FakeSession) -> None:
        await streams_until_stopped(session)
        raise BrokerError("a command was returned")

    source = FakeSource(breaks)
    supervising = asyncio.create_task(supervise(shop=source))
    await source.streams.wait()
    assert await signalled(supervising, signal.SIGTERM) is ExitCode.BROKER


async def test_signals_are_nobodys_business_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)
    await supervise(shop=FakeSource(fails(SourceError("no"))))
    assert signal.getsignal(signal.SIGTERM) == before


class TestPauses:
    """How long it waits between attempts, as it says in the log."""

    @pytest.fixture(autouse=True)
    def short(self, impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(supervisor_module, "RETRY_FIRST_S", 0.001)
        monkeypatch.setattr(supervisor_module, "RETRY_CAP_S", 0.008)
        monkeypatch.setattr("random.uniform", lambda low, high: high)

    async def test_they_grow_up_to_a_cap_while_a_server_stays_away(self, caplog: pytest.LogCaptureFixture) -> None:
        away = fails(SourceAway("away"))
        await supervise(shop=FakeSource(*[away] * 6, fails(SourceError("enough"))))
        assert self.pauses(caplog) == [0.001, 0.002, 0.004, 0.008, 0.008, 0.008]

    async def test_they_begin_again_after_a_session_that_streamed(self, caplog: pytest.LogCaptureFixture) -> None:
        away, lost = fails(SourceAway("away")), fails(SourceAway("lost"), after_progress=True)
        await supervise(shop=FakeSource(away, away, lost, away, fails(SourceError("enough"))))
        assert self.pauses(caplog) == [0.001, 0.002, 0.001, 0.002]

    def pauses(self, caplog: pytest.LogCaptureFixture) -> list[float]:
        return [record.retry_in_s for record in caplog.records if record.action == "reconnecting"]
