"""Tasks end, also those that do not hear the first time."""

import asyncio

from relay.tasks import end


async def test_a_task_that_swallows_a_cancellation_is_cancelled_again() -> None:
    swallowed = 0

    async def deaf() -> None:
        nonlocal swallowed
        while swallowed < 3:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed += 1
        await asyncio.Event().wait()

    task = asyncio.create_task(deaf())
    await asyncio.sleep(0)
    await end(task, again_s=0.01)
    assert task.cancelled()
    assert swallowed == 3


async def test_it_does_not_matter_how_a_task_ends() -> None:
    async def fail() -> None:
        raise LookupError

    done = asyncio.create_task(fail())
    waiting = asyncio.create_task(asyncio.Event().wait())
    await asyncio.sleep(0)
    await end(done, waiting)
    assert isinstance(done.exception(), LookupError)
    assert waiting.cancelled()


async def test_nothing_is_ended_at_once() -> None:
    await end()
