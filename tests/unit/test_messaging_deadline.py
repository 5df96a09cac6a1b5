"""Work with a deadline: cancelled when that is over, again until it is heard, and failed whatever it says then."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable

import pytest

from relay.messaging.attempt import WorkCancelled, uncancelled
from relay.messaging.deadline import Deadline, TookTooLong

SOON_S = 0.02


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.messaging.deadline.AGAIN_S", SOON_S)


async def for_ever() -> None:
    await asyncio.Event().wait()


async def in_time(work: Awaitable[object], timeout_s: float = SOON_S) -> None:
    async with Deadline(timeout_s):
        await work


async def test_what_is_done_in_time_is_left_alone() -> None:
    await in_time(asyncio.sleep(0), 60)
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


async def test_what_takes_longer_is_cancelled_and_the_error_names_the_time() -> None:
    with pytest.raises(TookTooLong, match=r"not done within 0\.02 s"):
        await in_time(for_ever())


async def test_the_task_goes_on_afterwards_as_if_it_had_never_been_cancelled() -> None:
    with pytest.raises(TookTooLong):
        await in_time(for_ever())
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]
    await asyncio.sleep(2 * SOON_S)


@pytest.mark.parametrize("times", [1, 3])
async def test_what_swallows_the_cancellation_is_cancelled_again_and_has_failed_whatever_it_says(times: int) -> None:
    swallowed: list[int] = []

    async def deaf() -> None:
        while len(swallowed) < times:
            with contextlib.suppress(asyncio.CancelledError):
                await for_ever()
            swallowed.append(1)

    with pytest.raises(TookTooLong):
        await in_time(deaf())
    assert len(swallowed) == times
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


async def test_what_it_raises_when_it_is_cancelled_is_the_cause() -> None:
    async def fail() -> None:
        try:
            await for_ever()
        except asyncio.CancelledError:
            raise LookupError from None

    with pytest.raises(TookTooLong) as raised:
        await in_time(fail())
    assert isinstance(raised.value.__cause__, LookupError)


async def test_what_it_raises_in_time_is_left_alone() -> None:
    async def fail() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await in_time(fail(), 60)


async def test_a_cancellation_from_outside_is_none_of_its_own() -> None:
    task = asyncio.create_task(in_time(for_ever(), 60))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancellation_from_outside_is_heard_also_when_the_time_is_over() -> None:
    task: asyncio.Task[None]

    async def work() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await for_ever()
        task.cancel()
        await for_ever()

    task = asyncio.create_task(in_time(work()))
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_timeout_around_it_is_told_apart() -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(in_time(for_ever(), 60), SOON_S)


async def test_something_that_was_cancelled_inside_is_no_timeout() -> None:
    cancelled = asyncio.get_running_loop().create_future()
    cancelled.cancel()
    with pytest.raises(WorkCancelled):
        await in_time(uncancelled(cancelled), 60)


async def test_a_timeout_of_its_own_code_is_one_of_its_errors() -> None:
    with pytest.raises(TimeoutError):
        await in_time(asyncio.wait_for(for_ever(), SOON_S), 60)


async def test_what_never_awaits_is_done_when_it_is_found_out_and_is_left_as_it_is() -> None:
    async with Deadline(SOON_S):
        time.sleep(2 * SOON_S)  # noqa: ASYNC251
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]
