"""The demo with its servers in containers: as with private ones, and nothing is left in the engine either."""

import asyncio
from signal import SIGINT

import pytest

from relay.demo.access import SERVICES
from relay.demo.load import place_orders
from relay.demo.servers.container import OWNER, engine
from tests.support.demo import demo, exists, gone, ready, said, then_all_is_settled
from tests.support.mailbox import QUEUE_IS_DURABLE_S
from tests.support.waiting import eventually

WITHOUT_RABBITMQ = (
    "-c",
    "from relay.cli import main; from relay.demo.servers import choice; choice.find_rabbitmq = lambda: None; main()",
)
"""`relay` on a machine that has no rabbitmq-server."""

pytestmark = [pytest.mark.containers, pytest.mark.timeout(400)]


async def test_servers_in_containers_that_are_killed_come_back_and_at_the_end_nothing_is_left() -> None:
    async with demo("--servers", "containers", "--keep", "--format", "json") as process:
        stack = await ready(process)
        assert set(stack["pids"]) == {"relay", *SERVICES}
        assert set(stack["containers"]) == {"postgres", "rabbitmq"}

        services = {name: stack[f"{name}_url"] for name in SERVICES}
        placing = asyncio.create_task(place_orders(services, 60))
        await asyncio.sleep(QUEUE_IS_DURABLE_S)
        assert sorted(stack["containers"].values()) == sorted(containers_of(process.pid))
        for name, container in stack["containers"].items():
            await asyncio.to_thread(kill, container)
            await said(process, f"{name} was killed by SIGKILL; starting it again")
        await placing

        await then_all_is_settled(stack, 60)

        process.send_signal(SIGINT)
        await process.communicate()
    assert process.returncode == 0
    assert gone(stack["pids"].values())
    assert not exists(stack["config"])
    assert containers_of(process.pid) == []


async def test_a_server_that_is_not_installed_runs_in_a_container_and_the_other_one_does_not() -> None:
    async with demo("--keep", "--format", "json", program=WITHOUT_RABBITMQ) as process:
        await said(process, "starting a private PostgreSQL and RabbitMQ in a container (rabbitmq:4-management)")
        stack = await ready(process)
        assert set(stack["containers"]) == {"rabbitmq"}
        assert set(stack["pids"]) == {"relay", *SERVICES, "postgres"}
        process.send_signal(SIGINT)
        await process.communicate()
    assert process.returncode == 0
    assert containers_of(process.pid) == []


async def test_ctrl_c_while_containers_start_leaves_nothing() -> None:
    async with demo("--servers", "containers") as process:
        await said(process, "starting PostgreSQL in a container")
        await eventually(lambda: containers_of(process.pid))
        process.send_signal(SIGINT)
        await process.communicate()
    assert process.returncode == 1
    assert containers_of(process.pid) == []


def kill(container: str) -> None:
    with engine() as client:
        client.containers.get(container).kill()


def containers_of(pid: int) -> list[str]:
    """The names of those that a process has started, whether they run or not."""
    with engine() as client:
        found = client.containers.list(all=True, filters={"label": f"{OWNER}={pid}"}, ignore_removed=True)
        return [str(container.name) for container in found]
