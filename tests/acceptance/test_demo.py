"""The demo, as a newcomer runs it: the whole stack, from nothing to approved orders."""

import asyncio
import json
import os
from collections import defaultdict
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from signal import SIGINT, SIGKILL

import httpx
import pytest

from relay.demo.access import SERVICES
from relay.demo.audit import unsettled
from relay.demo.load import place_orders
from relay.demo.play import CHAOS_S
from relay.tasks import end
from tests.support.demo import demo, exists, gone, ready, said, then_all_is_settled
from tests.support.mailbox import QUEUE_IS_DURABLE_S
from tests.support.waiting import POLL_S

PROMISED_S = 10.0
"""In chaos, each process is killed at least once in any time as long as this."""

pytestmark = pytest.mark.timeout(400)


def children(pid: int) -> list[int]:
    """The processes that a process has started, by whichever of its threads."""
    started: list[int] = []
    with suppress(OSError):  # it has just ended, or one of its threads
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                started += map(int, (thread / "children").read_text().split())
    return started


def command(pid: int) -> list[str]:
    """What a process was started with; nothing when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]
    except OSError:
        return []


class Watcher:
    """Watches the relay and the services of a demo from outside."""

    def __init__(self, demo: asyncio.subprocess.Process) -> None:
        self._demo = demo
        self._clock = asyncio.get_running_loop().time
        self.lives: dict[str, list[int]] = defaultdict(list)
        """The process ids that each of them has had."""
        self.deaths: dict[str, list[float]] = defaultdict(list)
        """When each of them died, by the clock of the event loop."""

    async def watch(self) -> None:
        """Look what lives and what does not, until cancelled."""
        while True:
            for name, lives in self.lives.items():
                if len(self.deaths[name]) < len(lives) and not command(lives[-1]):
                    self.deaths[name].append(self._clock())
            for pid in children(self._demo.pid):
                match command(pid):
                    case [_, "-m", "relay", "run", *_]:
                        self._saw("relay", pid)
                    case [_, "-m", module] if module.startswith("services."):
                        self._saw(module.removeprefix("services."), pid)
            await asyncio.sleep(POLL_S)

    def _saw(self, name: str, pid: int) -> None:
        if pid not in self.lives[name]:
            self.lives[name].append(pid)

    def longest_life_s(self, name: str, began_at: float) -> float:
        """The longest time of the chaos in which it did not die."""
        ended_at = began_at + CHAOS_S
        deaths = [died_at for died_at in self.deaths[name] if began_at < died_at < ended_at]
        return max(later - earlier for earlier, later in pairwise([began_at, *deaths, ended_at]))


async def test_every_order_is_settled_and_every_invariant_holds() -> None:
    async with demo("--orders", "60", "--format", "json") as process:
        output, _ = await process.communicate()
    assert process.returncode == 0
    report = json.loads(output)
    assert report["ok"] is True
    assert report["kills"] == {"inventory": 1}
    outcomes = {(state, reason): count for state, reason, count in report["outcomes"]}
    assert sum(outcomes.values()) == 60
    assert {state for state, _ in outcomes} == {"APPROVED", "CANCELLED"}
    assert {reason for _, reason in outcomes} == {
        None,
        "credit limit exceeded",
        "unknown customer",
        "out of stock",
        "no answer in time",
    }
    assert list(report["published"]) == list(SERVICES)
    assert all(report["published"].values())
    assert 0 < report["latency_p50_ms"] <= report["latency_p99_ms"]
    assert [row["source"] for row in report["lag"]] == list(SERVICES)
    assert all(row["active"] for row in report["lag"])
    assert len(report["invariants"]) == 8


@pytest.mark.alone
async def test_in_chaos_every_process_is_killed_in_any_ten_seconds_and_every_invariant_holds() -> None:
    async with demo("--chaos", "--orders", "120", "--seed", "7", "--format", "json") as process:
        watcher = Watcher(process)
        watching = asyncio.create_task(watcher.watch())
        await said(process, "killing relay, orders, customers, inventory at moments of chance; seed 7")
        began_at = asyncio.get_running_loop().time()
        output, rest = await process.communicate()
        await end(watching)
        assert watching.cancelled(), watching.exception()
    assert process.returncode == 0, rest.decode()[-4000:]
    report = json.loads(output)
    assert report["ok"] is True, report["invariants"]
    assert sum(count for _, _, count in report["outcomes"]) >= 120
    assert set(report["kills"]) == {"relay", *SERVICES}
    # By this seed nobody is killed in the last two seconds: all are back, each started once more than it was killed.
    assert {name: len(lives) - 1 for name, lives in watcher.lives.items()} == report["kills"]
    longest_s = {name: watcher.longest_life_s(name, began_at) for name in watcher.lives}
    assert max(longest_s.values()) <= PROMISED_S, longest_s


async def test_a_kept_stack_survives_the_death_of_each_of_its_processes() -> None:
    async with demo("--keep", "--format", "json") as process:
        stack = await ready(process)
        assert stack["ready"] is True
        urls = {f"{name}_url" for name in SERVICES}
        assert set(stack) == {"ready", *urls, "amqp_url", "dsn", "config", "pids", "containers"}
        assert list(stack["pids"]) == ["relay", *SERVICES, "postgres", "rabbitmq"]
        assert unsettled(stack["dsn"]["orders"]) == (0, 0), "no orders unless they are asked for"

        services = {name: stack[f"{name}_url"] for name in SERVICES}
        placing = asyncio.create_task(place_orders(services, 200))
        queues_saved = asyncio.create_task(asyncio.sleep(QUEUE_IS_DURABLE_S))
        for name, pid in stack["pids"].items():
            if name == "rabbitmq":
                await queues_saved
            os.kill(pid, SIGKILL)
            await said(process, f"{name} was killed by SIGKILL; starting it again")
        await placing

        await then_all_is_settled(stack, 200)

        process.send_signal(SIGINT)
        rest, _ = await process.communicate()
    assert process.returncode == 0
    assert rest == b"", "nothing but the one line on standard output"
    assert gone(stack["pids"].values())
    assert not exists(stack["config"])


async def test_two_demos_at_once_do_not_meet() -> None:
    async with demo("--keep", "--format", "json") as kept:
        stack = await ready(kept)
        async with demo("--orders", "10", "--format", "json") as other:
            output, _ = await other.communicate()
        assert other.returncode == 0
        assert json.loads(output)["ok"] is True
        async with httpx.AsyncClient() as client:
            answer = await client.get(f"{stack['orders_url']}/healthz")
        assert answer.status_code == 200
        kept.send_signal(SIGINT)
        await kept.communicate()
    assert kept.returncode == 0


async def test_ctrl_c_in_the_middle_leaves_nothing_behind() -> None:
    async with demo("--orders", "100000") as process:
        await said(process, "starting the relay and the services")
        started = children(process.pid)
        assert len(started) >= 2, "PostgreSQL and RabbitMQ run by now"
        process.send_signal(SIGINT)
        await process.communicate()
    assert process.returncode == 1
    assert gone(started)


async def test_ctrl_c_again_while_it_stops_does_not_keep_it_from_stopping() -> None:
    async with demo("--keep", "--format", "json") as process:
        stack = await ready(process)
        process.send_signal(SIGINT)
        await said(process, "stopping everything")
        for _ in range(3):
            process.send_signal(SIGINT)
        await process.communicate()
    assert process.returncode == 0
    assert gone(stack["pids"].values())


async def test_ctrl_c_when_the_demo_stops_by_itself_leaves_nothing_behind() -> None:
    async with demo("--orders", "5") as process:
        await said(process, "starting the relay and the services")
        started = children(process.pid)
        await said(process, "stopping everything")
        process.send_signal(SIGINT)
        await process.communicate()
    assert gone(started)
