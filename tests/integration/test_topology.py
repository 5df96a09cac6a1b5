"""`relay topology` against a real RabbitMQ: what it makes, what it refuses, and what it leaves alone."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from relay.broker.connection import ChannelRefused, Connection
from relay.broker.consumer import Consumer
from relay.broker.layout import Partitioned
from relay.broker.management import Management
from relay.broker.properties import AGGREGATE_ID, EVENTS, Properties
from relay.broker.ring import PartitionsDiffer, ensure_rings
from relay.broker.topology import bind, unbind
from relay.demo.servers.rabbitmq import PrivateRabbitMQ
from relay.errors import ExitCode
from tests.conftest import VirtualHost
from tests.support.courier import Courier, Outgoing
from tests.support.servers import RabbitServer, management
from tests.support.topology import Topology, billing
from tests.support.waiting import eventually

WAIT_S = 30.0
AUDIT = """
[[topology.exchange]]
name = "orders.events"
type = "topic"
[[topology.queue]]
name = "audit"
delivery_limit = 3
bindings = [{exchange = "orders.events", routing_key = "order.*"}]
"""
HEADERS = """
[[topology.exchange]]
name = "by.headers"
type = "headers"
[[topology.queue]]
name = "vip"
type = "classic"
bindings = [{exchange = "by.headers", arguments = {x-match = "all", vip = true, tier = 1}}]
"""


def event(exchange: str, key: str, aggregate: str = "7") -> Outgoing:
    return Outgoing(exchange, key, Properties("m1", headers={AGGREGATE_ID: aggregate}), b"{}")


@pytest.fixture
def topology(tmp_path: Path, vhost: VirtualHost) -> Topology:
    return Topology(tmp_path, vhost)


@pytest.fixture
async def courier(vhost: VirtualHost) -> AsyncIterator[Courier]:
    async with Courier(vhost.url) as courier:
        yield courier


def queues(vhost: VirtualHost) -> set[str]:
    answer = vhost.server.api.get(f"/api/queues/{vhost.name}").raise_for_status()
    return {queue["name"] for queue in answer.json()}


def bind_by_hand(vhost: VirtualHost, source: str, queue: str, key: str) -> None:
    body = {"routing_key": key, "arguments": {}}
    vhost.server.api.post(f"/api/bindings/{vhost.name}/e/{source}/q/{queue}", json=body).raise_for_status()


async def test_what_is_applied_is_there_and_stays_as_it_is(topology: Topology, vhost: VirtualHost) -> None:
    topology.write(AUDIT, HEADERS, billing(3))
    assert (await topology.run("verify")).code == ExitCode.FAILURE
    planned = (await topology.run("plan")).json
    assert queues(vhost) == set(), "a plan touches nothing"
    applied = (await topology.applied()).json
    assert applied["applied"] == planned["differences"]
    assert queues(vhost) == {
        *("audit", "audit.dead", "vip", "vip.dead", "billing.0", "billing.1", "billing.2", "billing.dead")
    }
    verified = await topology.run("verify")
    assert (verified.code, verified.json["in_sync"]) == (0, True)
    assert (await topology.applied()).json["applied"] == []


async def test_messages_go_where_they_should_and_their_dead_too(topology: Topology, courier: Courier) -> None:
    topology.write(AUDIT)
    await topology.applied()
    await courier.publish(event("orders.events", "order.Created"))
    connection = (await courier.channel()).connection
    consumer = await Consumer.open(connection, "audit", prefetch=1)
    async with asyncio.timeout(WAIT_S):
        consumer.reject(await consumer.next())
    dead = await courier.take("audit.dead")
    assert dead.properties.message_id == "m1"


async def test_an_aggregate_always_gets_the_same_partition(topology: Topology, courier: Courier) -> None:
    topology.write(billing(4))
    await topology.applied()
    seen = {str(number): await partition(courier, str(number), 4) for number in range(30)}
    again = {str(number): await partition(courier, str(number), 4) for number in range(30)}
    assert seen == again
    assert set(seen.values()) == {0, 1, 2, 3}


async def partition(courier: Courier, aggregate: str, partitions: int) -> int:
    """Where a message of an aggregate goes. It is taken out again."""
    await courier.publish(event(EVENTS, "order.Created", aggregate))
    channel = await courier.channel()
    for number in range(partitions):
        answer = (await channel.call(channel.raw.queue_declare, f"billing.{number}", passive=True)).method
        if answer.message_count:
            await channel.call(channel.raw.queue_purge, f"billing.{number}")
            return number
    raise AssertionError(f"the message of {aggregate} went nowhere")


async def test_what_is_there_otherwise_is_refused_and_nothing_is_changed(
    topology: Topology, vhost: VirtualHost
) -> None:
    topology.write(AUDIT)
    await topology.applied()
    topology.write(AUDIT.replace("delivery_limit = 3", "delivery_limit = 4"), billing(2))
    ended = await topology.run("apply")
    assert ended.code == ExitCode.FAILURE
    assert "queue audit: x-delivery-limit is 3, not 4" in ended.err
    assert queues(vhost) == {"audit", "audit.dead"}


async def test_what_rabbitmq_would_accept_is_not_called_wrong(topology: Topology, vhost: VirtualHost) -> None:
    """A classic queue that somebody declared without its type."""
    body: dict[str, object] = {"durable": True, "arguments": {}}
    vhost.server.put(f"queues/{vhost.name}/vip.dead", body)
    topology.write(HEADERS)
    await topology.applied()
    assert (await topology.run("verify")).code == 0


async def test_what_is_more_is_listed_and_left_alone(topology: Topology, vhost: VirtualHost) -> None:
    topology.write(AUDIT)
    await topology.applied()
    bind_by_hand(vhost, "relay.events", "audit", "customer.*")
    verified = await topology.run("verify")
    assert verified.code == ExitCode.FAILURE
    (extra,) = verified.json["differences"]
    assert (extra["change"], extra["name"]) == ("extra", "relay.events -> audit with 'customer.*'")
    applied = await topology.applied()
    assert applied.json["differences"] == [extra]


async def test_routes_that_end_nowhere_are_told_from_those_that_do_not(topology: Topology, vhost: VirtualHost) -> None:
    topology.write(AUDIT)
    await topology.applied()
    before = {each["route"] for each in (await topology.run("plan")).json["ends_nowhere"]}
    bind_by_hand(vhost, "relay.events", "audit", "order.*")
    bind_by_hand(vhost, "relay.commands", "audit", "audit")
    after = {each["route"] for each in (await topology.run("plan")).json["ends_nowhere"]}
    assert before == {"kind event", "kind command", "kind reply"}
    assert after == {"kind reply"}


class TestResizing:
    @pytest.fixture(autouse=True)
    async def _two_partitions(self, topology: Topology) -> None:
        topology.write(billing(2))
        await topology.applied()
        topology.write(billing(3))

    async def refused(self, topology: Topology, vhost: VirtualHost, reason: str) -> None:
        ended = await topology.run("apply")
        assert ended.code == ExitCode.FAILURE
        assert reason in ended.err
        assert "Stop the relay" in ended.err
        assert "billing.2" not in queues(vhost)

    async def test_a_message_that_waits_is_in_the_way(
        self, topology: Topology, vhost: VirtualHost, courier: Courier
    ) -> None:
        await courier.publish(event(EVENTS, "order.Created"))
        await self.refused(topology, vhost, "partitions hold messages: billing.")

    async def test_so_is_one_that_a_consumer_has_not_answered(
        self, topology: Topology, vhost: VirtualHost, courier: Courier
    ) -> None:
        await courier.publish(event(EVENTS, "order.Created"))
        connection = (await courier.channel()).connection
        consumers = [await Consumer.open(connection, f"billing.{number}", prefetch=1) for number in range(2)]
        async with asyncio.timeout(WAIT_S):
            await asyncio.wait(
                [asyncio.ensure_future(consumer.next()) for consumer in consumers], return_when=asyncio.FIRST_COMPLETED
            )
        await self.refused(topology, vhost, "(1)")

    async def test_so_is_a_relay_that_publishes(self, topology: Topology, vhost: VirtualHost) -> None:
        connection = await Connection.open(vhost.url, name="saga-relay shop")
        await self.refused(topology, vhost, "the relay publishes just now: saga-relay shop")
        await connection.close()

    async def test_a_queue_that_still_has_a_consumer_stays_until_it_has_none(
        self, topology: Topology, vhost: VirtualHost, courier: Courier
    ) -> None:
        topology.write(billing(1))
        connection = (await courier.channel()).connection
        consumer = await Consumer.open(connection, "billing.1", prefetch=1)
        ended = await topology.run("apply")
        assert ended.code == ExitCode.FAILURE
        assert "the queue billing.1 is out of use and stays, with 0 messages and 1 consumers" in ended.err
        assert (await topology.run("plan")).json["differences"][0]["detail"] == "the queues billing.1 go"
        await consumer.close()
        await topology.applied()
        assert "billing.1" not in queues(vhost)


class TestMistakes:
    @pytest.fixture(autouse=True)
    def _configured(self, topology: Topology) -> None:
        topology.write(AUDIT)

    @pytest.fixture
    def guest(self, rabbit: RabbitServer, vhost: VirtualHost) -> Iterator[str]:
        """The URL of a user of the management API who may not enter the virtual host."""
        name = f"guest-{vhost.name}"
        rabbit.put(f"users/{name}", {"password": "secret", "tags": "management"})
        yield vhost.url.replace(f"{urlsplit(vhost.url).username}:{urlsplit(vhost.url).password}", f"{name}:secret")
        rabbit.delete(f"users/{name}")

    async def fails(
        self, topology: Topology, *words: str, amqp_url: str | None = None, api_url: str | None = None
    ) -> None:
        ended = await topology.run("plan", amqp_url=amqp_url, api_url=api_url)
        assert (ended.code, ended.out) == (ExitCode.BROKER, "")
        assert "secret" not in ended.err
        for word in words:
            assert word in ended.err

    async def test_nobody_is_there(self, topology: Topology) -> None:
        await self.fails(topology, "refused", "broker.management_url", api_url="http://127.0.0.1:1")

    async def test_something_else_is_there(self, topology: Topology, vhost: VirtualHost) -> None:
        port = urlsplit(vhost.url).port
        await self.fails(topology, f"127.0.0.1:{port}", "broker.management_url", api_url=f"http://127.0.0.1:{port}")

    async def test_a_page_of_something_else_is_there(self, topology: Topology) -> None:
        await self.fails(topology, "no answer of a management API", api_url=f"{topology.api_url}/js")

    async def test_the_password_is_wrong(self, topology: Topology) -> None:
        wrong = topology.api_url.replace("//", "//admin:secret@")
        await self.fails(topology, "user admin", "rabbitmqctl set_user_tags", api_url=wrong)

    async def test_the_user_has_no_tag(self, topology: Topology, vhost: VirtualHost) -> None:
        await self.fails(
            topology, "user relay", "rabbitmqctl set_user_tags USER management", amqp_url=vhost.user_url("relay")
        )

    async def test_the_user_may_not_enter(self, topology: Topology, guest: str) -> None:
        await self.fails(topology, "not authorised to access virtual host", "permissions", amqp_url=guest)

    async def test_the_virtual_host_does_not_exist(self, topology: Topology, vhost: VirtualHost) -> None:
        url = vhost.url.replace(vhost.name, "nope")
        await self.fails(topology, "virtual host nope", "rabbitmqctl add_vhost", amqp_url=url)

    async def test_a_user_who_may_look_but_not_declare(self, topology: Topology, vhost: VirtualHost) -> None:
        admin = urlsplit(vhost.url)
        api_url = topology.api_url.replace("//", f"//{admin.username}:{admin.password}@")
        ended = await topology.run("apply", amqp_url=vhost.user_url("relay"), api_url=api_url)
        assert ended.code == ExitCode.BROKER
        assert "ACCESS_REFUSED" in ended.err


class TestOrder:
    """Which aggregates a queue gets depends on when it was bound. RabbitMQ with Mnesia forgets that when it starts."""

    PARTITIONS = 4
    GROUP = Partitioned("billing", PARTITIONS)

    async def mapped(self, url: str) -> dict[str, int]:
        """The partition of each aggregate."""
        async with Courier(url) as courier:
            return {str(number): await partition(courier, str(number), self.PARTITIONS) for number in range(40)}

    async def restored(self, url: str, groups: int = 1) -> None:
        """What each relay does when it has connected; several at once."""
        connections = [await Connection.open(url, name="test") for _ in range(groups)]
        await asyncio.gather(*(ensure_rings(connection, [self.GROUP]) for connection in connections))
        for connection in connections:
            await connection.close()

    @pytest.fixture
    async def before(self, topology: Topology, vhost: VirtualHost) -> dict[str, int]:
        topology.write(billing(self.PARTITIONS))
        await topology.applied()
        return await self.mapped(vhost.url)

    async def disturb(self, vhost: VirtualHost) -> None:
        """As a start of the broker leaves it."""
        async with Courier(vhost.url) as courier:
            channel = await courier.channel()
            await unbind(channel, self.GROUP.ring[1])
            await bind(channel, self.GROUP.ring[1])
            await channel.call(channel.raw.exchange_delete, self.GROUP.marker)

    async def test_a_lost_order_is_restored_before_anybody_publishes(
        self, vhost: VirtualHost, before: dict[str, int]
    ) -> None:
        await self.disturb(vhost)
        assert await self.mapped(vhost.url) != before
        await self.restored(vhost.url)
        assert await self.mapped(vhost.url) == before

    async def test_several_relays_restore_it_once(self, vhost: VirtualHost, before: dict[str, int]) -> None:
        await self.disturb(vhost)
        await self.restored(vhost.url, groups=5)
        assert await self.mapped(vhost.url) == before
        assert self.GROUP.lock not in queues(vhost)

    async def test_an_order_that_is_marked_is_left_alone(self, vhost: VirtualHost, before: dict[str, int]) -> None:
        user = vhost.user_url("orders")  # who may not bind anything there
        await self.restored(vhost.url)
        connection = await Connection.open(user, name="test")
        await ensure_rings(connection, [self.GROUP])
        await connection.close()
        assert await self.mapped(vhost.url) == before

    async def test_a_group_that_is_not_there_yet_is_left_out(self, vhost: VirtualHost) -> None:
        await self.restored(vhost.url)
        assert queues(vhost) == set()

    @pytest.mark.parametrize("partitions", [3, 5])
    async def test_another_number_than_the_configured_is_never_made_in_passing(
        self, vhost: VirtualHost, before: dict[str, int], partitions: int
    ) -> None:
        await self.disturb(vhost)
        connection = await Connection.open(vhost.url, name="test")
        with pytest.raises(PartitionsDiffer, match=f"billing should have {partitions} partitions"):
            await ensure_rings(connection, [Partitioned("billing", partitions)])
        await connection.close()
        assert self.GROUP.lock not in queues(vhost)

    async def test_who_may_not_bind_is_told_so(self, vhost: VirtualHost, before: dict[str, int]) -> None:
        await self.disturb(vhost)
        connection = await Connection.open(vhost.user_url("relay"), name="test")
        with pytest.raises(ChannelRefused, match="billing"):
            await ensure_rings(connection, [self.GROUP])
        await connection.close()

    async def test_it_is_restored_after_the_broker_has_started_again(self, tmp_path: Path) -> None:
        server = PrivateRabbitMQ()
        server.start()
        with server:
            with management(server.management_url, server.admin.name, server.admin.password) as api:
                topology = Topology(tmp_path, VirtualHost("/", RabbitServer(server.amqp_url(), api, {})))
                topology.write(billing(self.PARTITIONS))
                await topology.applied()
            before = await self.mapped(server.amqp_url())
            server.stop()
            server.start()
            await self.restored(server.amqp_url())
            assert await self.mapped(server.amqp_url()) == before


async def test_the_api_counts_what_queues_hold(vhost: VirtualHost, topology: Topology, courier: Courier) -> None:
    topology.write(billing(2))
    await topology.applied()
    management = Management.of(vhost.url, topology.api_url)
    assert management.totals(["gone"]) == {"gone": None}
    await courier.publish(event(EVENTS, "order.Created"))
    await eventually(lambda: sum(count or 0 for count in management.totals(["billing.0", "billing.1"]).values()) == 1)
    await eventually(lambda: "courier" in management.connections())
    assert replace(management, vhost="/").connections() == ()
