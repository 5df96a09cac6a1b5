"""Tasks end, also those that do not hear the first time."""

import asyncio

import pytest

from relay.tasks import Beside, end, undisturbed


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


async def test_work_that_is_undisturbed_is_done_before_a_cancellation_takes_effect() -> None:
    may_end, done = asyncio.Event(), False

    async def work() -> None:
        nonlocal done
        await may_end.wait()
        done = True

    task = asyncio.create_task(undisturbed(work()))
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    may_end.set()
    await asyncio.wait({task})
    assert task.cancelled()
    assert done


async def test_undisturbed_work_gives_its_result_or_its_error() -> None:
    async def answer() -> int:
        return 42

    async def fail() -> None:
        raise LookupError

    assert await undisturbed(answer()) == 42
    with pytest.raises(LookupError):
        await undisturbed(fail())


async def fails() -> None:
    raise LookupError("gone")


async def test_what_runs_beside_some_work_ends_it_when_it_fails() -> None:
    async with Beside(fails()) as beside:
        with pytest.raises(LookupError):
            await beside.do(asyncio.Event().wait())


async def test_what_has_failed_beside_while_no_work_was_done_is_raised_by_the_next() -> None:
    async with Beside(fails()) as beside:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with pytest.raises(LookupError):
            await beside.do(asyncio.sleep(0))


async def test_work_beside_which_all_is_well_ends_with_its_result_and_all_else_ends_with_it() -> None:
    async def work() -> str:
        return "done"

    waiting = asyncio.Event()
    async with Beside(waiting.wait()) as beside:  # type: ignore[arg-type]
        assert await beside.do(work()) == "done"
        (task,) = beside._tasks
    assert task.cancelled()
