"""The compose stack, as most people will meet this project: up, orders, trouble, and nothing left of it."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from relay.demo.access import SERVICES
from relay.demo.load import Shoppers
from relay.demo.servers.host import LOOPBACK
from tests.containers.conftest import IMAGE
from tests.support.compose import Compose, now
from tests.support.waiting import eventually

ORDERS = 200
"""Before the relay is killed, and as many after it."""

OUTAGE_S = 20.0
OUTAGE_ORDERS = 60
"""How long RabbitMQ is away, and how many of the orders are placed meanwhile."""

BACK_S = 60.0
"""How long what has died may take to work again."""

ONE_SHOTS = ("secrets", "migrate")
RUNNING = ("postgres", "rabbitmq", "relay", *SERVICES)
OURS = (*ONE_SHOTS, "relay", *SERVICES)

READY = ("python", "-m", "relay.probe", "http://127.0.0.1:8088/readyz")

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def stack(engine: None) -> Iterator[Compose]:
    """The stack, healthy, from nothing. What it has said is told with a test that fails: see conftest.py."""
    stack = Compose(IMAGE)
    try:
        stack.up("--build")
        yield stack
    finally:
        stack.down()


async def restarted(stack: Compose, service: str, before: dict[str, Any]) -> None:
    """Wait until a container that has died runs again."""

    def runs_again() -> bool:
        after = stack.inspect(service)
        return bool(after["State"]["Running"] and after["State"]["StartedAt"] != before["State"]["StartedAt"])

    await eventually(runs_again, within_s=BACK_S)


def kill(stack: Compose, service: str) -> None:
    """SIGKILL to the program in a container, which is the one child of its init. That takes the command with it."""
    stack.attempt("exec", "--no-TTY", service, "sh", "-c", "kill -KILL $(cat /proc/1/task/1/children)")


def has_no_lag(stack: Compose) -> bool:
    """Whether the relay works on every source, and has nothing left to publish."""
    lags = json.loads(stack.inside("relay", "relay", "lag", "--format", "json"))
    working = [lag["source"] for lag in lags if lag["active"] and lag["wal_status"] == "reserved"]
    return working == list(SERVICES) and all(lag["lag_seconds"] == 0 for lag in lags)


def orders(stack: Compose) -> Counter[str]:
    """The orders by state, as the service tells."""
    answer = httpx.get(f"{stack.urls['orders']}/orders", params={"limit": 10_000}, timeout=30.0)
    return Counter(order["state"] for order in answer.raise_for_status().json())


def test_it_comes_up_healthy(stack: Compose) -> None:
    states = stack.states()
    assert {service: states.pop(service) for service in ONE_SHOTS} == dict.fromkeys(ONE_SHOTS, ("exited", None, 0))
    assert states == dict.fromkeys(RUNNING, ("running", "healthy", 0))


def test_it_listens_on_this_machine_alone_and_where_it_needs_to(stack: Compose) -> None:
    published = {
        service: stack.inspect(service)["HostConfig"]["PortBindings"] or {} for service in (*ONE_SHOTS, *RUNNING)
    }
    assert {service for service, ports in published.items() if ports} == set(SERVICES)
    assert {
        binding["HostIp"] for ports in published.values() for bindings in ports.values() for binding in bindings
    } == {LOOPBACK}


def test_nothing_of_ours_is_root_and_everything_has_a_bound_on_its_memory(stack: Compose) -> None:
    for service in (*ONE_SHOTS, *RUNNING):
        found = stack.inspect(service)
        assert found["HostConfig"]["Memory"] > 0, service
        if service in OURS:
            assert found["Config"]["User"] == "10001:10001", service
            assert found["HostConfig"]["CapDrop"] == ["ALL"], service


def test_each_sees_its_own_secrets_alone_and_none_in_its_environment(stack: Compose) -> None:
    seen = {service: stack.inside(service, "ls", "/run/secrets").split() for service in RUNNING}
    assert seen == {
        "postgres": ["password"],
        "rabbitmq": ["definitions.json"],
        "relay": ["password", "relay.toml"],
        **{service: [f"{service}_amqp_url", f"{service}_dsn", "password"] for service in SERVICES},
    }
    passwords = [
        stack.inside(service, "cat", "/run/secrets/password").strip() for service in RUNNING if service != "rabbitmq"
    ]
    assert len(set(passwords)) == len(passwords)
    told = [json.dumps(stack.inspect(service)["Config"]) for service in RUNNING]
    assert not [password for password in passwords for words in told if password in words]
    assert not [
        password
        for password in passwords
        if password in stack.inside("rabbitmq", "cat", "/run/secrets/definitions.json")
    ]


def test_the_broker_knows_nobody_else(stack: Compose) -> None:
    users = json.loads(stack.inside("rabbitmq", "rabbitmqctl", "--quiet", "--formatter=json", "list_users"))
    assert sorted(user["user"] for user in users) == sorted(["relay", *SERVICES])
    assert not any(user["tags"] for user in users)


async def test_every_order_is_settled_whatever_dies_meanwhile(stack: Compose) -> None:
    async with Shoppers(stack.urls) as shoppers:
        await shoppers.open(2 * ORDERS)
        await shoppers.order(ORDERS)

        before = stack.inspect("relay")
        await asyncio.to_thread(kill, stack, "relay")
        await restarted(stack, "relay", before)
        assert stack.inspect("relay")["RestartCount"] == before["RestartCount"] + 1

        await shoppers.order((ORDERS - OUTAGE_ORDERS) // 2)
        await asyncio.to_thread(stack.run, "stop", "rabbitmq")
        await shoppers.order(OUTAGE_ORDERS, over_s=OUTAGE_S)
        assert '"away"' in stack.attempt("exec", "--no-TTY", "relay", *READY).stdout
        await asyncio.to_thread(stack.run, "start", "rabbitmq")
        await shoppers.order(ORDERS - OUTAGE_ORDERS - (ORDERS - OUTAGE_ORDERS) // 2)

    verdict = await asyncio.to_thread(stack.inside, "relay", "python", "-m", "relay.demo.check", "--within", "120")
    print(verdict)
    assert "BROKEN" not in verdict
    assert verdict.count("  ok  ") == 8
    settled = orders(stack)
    assert sum(settled.values()) == 2 * ORDERS
    assert set(settled) == {"APPROVED", "CANCELLED"}


async def test_the_verbs_of_the_relay_work_inside_and_find_nothing_left_over(stack: Compose) -> None:
    await eventually(lambda: has_no_lag(stack), within_s=BACK_S)
    sagas = json.loads(stack.inside("relay", "relay", "saga", "list", "--limit", "10000", "--format", "json"))
    assert {saga["status"] for saga in sagas} == {"COMPLETED", "COMPENSATED"}
    for verb in ("parked", "dead"):
        assert json.loads(stack.inside("relay", "relay", verb, "list", "--format", "json")) == []


async def test_the_load_places_orders_until_it_is_told_to_stop(stack: Compose) -> None:
    before = sum(orders(stack).values())
    stack.run("--profile", "load", "up", "--wait", "load")
    await eventually(lambda: sum(orders(stack).values()) > before)
    stack.run("--profile", "load", "stop", "load")
    assert stack.inspect("load")["State"]["ExitCode"] == 0
    assert stack.words("load").splitlines()[-1] == "stopped"
    stack.run("--profile", "load", "rm", "--force", "load")


def test_a_relay_that_is_stopped_lets_arrive_what_is_in_flight(stack: Compose) -> None:
    since = now()
    stack.run("stop", "relay")
    assert stack.inspect("relay")["State"]["ExitCode"] == 0
    assert sorted(re.findall(r" stopped: (\w+): .* with 0 in flight", stack.words("relay", since))) == sorted(SERVICES)


async def test_another_start_with_new_passwords_finds_everything_again(stack: Compose) -> None:
    known, password = orders(stack), stack.inside("orders", "cat", "/run/secrets/password")
    stack.run("run", "--rm", "secrets", "--renew")
    stack.up("--force-recreate")
    assert stack.words("migrate").splitlines() == [f"{service}: up to date" for service in SERVICES]
    assert stack.inside("orders", "cat", "/run/secrets/password") != password
    assert sum(orders(stack).values()) >= sum(known.values())
    stack.run("--profile", "load", "run", "--rm", "load", "--orders", "10", "--per-second", "20")
    assert "BROKEN" not in stack.inside("relay", "python", "-m", "relay.demo.check")
    assert sum(orders(stack).values()) == sum(known.values()) + 10


def test_down_leaves_nothing(stack: Compose) -> None:
    stack.run("down", "-v")
    assert stack.remains() == {"container": [], "volume": [], "network": []}
