"""A service dies between the commit of its work and the acknowledgement of the message that asked for it."""

from collections.abc import Callable
from signal import SIGKILL

from relay.broker.connection import Connection
from relay.broker.topology import ServiceQueue, declare_service
from tests.conftest import VirtualHost
from tests.support.database import Database
from tests.support.link import Link
from tests.support.process import RelayProcess, ServiceProcess
from tests.support.waiting import eventually

CUSTOMER = "00000000-0000-0000-0000-00000000000a"
ORDERS = 5
RESERVE = """
    INSERT INTO relay.outbox (kind, aggregate_type, aggregate_id, type, destination, reply_to, correlation_id, payload)
    SELECT 'command', 'create_order', id::text, 'ReserveCredit', 'customers', 'orders', id::text,
           json_build_object('order_id', id, 'customer_id', %s::text, 'amount', '10.00')
    FROM (SELECT gen_random_uuid() AS id FROM generate_series(1, %s)) AS orders
"""


async def declare(url: str, *services: str) -> None:
    """Somebody with the rights makes the queues of the services."""
    connection = await Connection.open(url, name="test")
    for service in services:
        await declare_service(await connection.channel(), ServiceQueue(service))
    await connection.close()


async def left(url: str, queue: str) -> int:
    """Messages in a queue that nobody consumes now: what was handed out and not acknowledged is among them."""
    connection = await Connection.open(url, name="test")
    channel = await connection.channel()
    answer = await channel.call(channel.raw.queue_declare, queue, passive=True)
    await connection.close()
    count: int = answer.method.message_count
    return count


async def test_work_that_was_committed_and_not_acknowledged_is_not_done_again(
    make_database: Callable[..., Database], vhost: VirtualHost
) -> None:
    orders, customers = make_database(), make_database("customers")
    customers.query("INSERT INTO customers (id, name, credit_limit) VALUES (%s, 'Ada', '1000.00')", CUSTOMER)
    await declare(vhost.url, "orders", "customers")
    own_dsn, own_url = customers.role_dsn("customers"), vhost.user_url("customers")

    async with RelayProcess(orders.dsn, vhost.user_url("relay")), Link(own_url) as link:
        async with ServiceProcess("customers", own_dsn, link.url) as service:
            await service.until("consuming")
            link.deaf.set()
            orders.query(RESERVE, CUSTOMER, ORDERS)
            await eventually(lambda: customers.value("SELECT count(*) FROM relay.inbox") == ORDERS)
            assert await service.end(SIGKILL) == -SIGKILL
        await link.cut()
        assert customers.value("SELECT reserved FROM customers") == 10 * ORDERS

        async with ServiceProcess("customers", own_dsn, own_url) as service:
            await service.until("consuming")
            await service.until("message_seen_before", times=ORDERS)
            assert not service.said("message_handled")
            assert await service.end() == 0
    assert await left(vhost.url, "customers") == 0
    assert customers.value("SELECT reserved FROM customers") == 10 * ORDERS
    assert customers.value("SELECT count(*) FROM credit_reservations") == ORDERS
    assert customers.value("SELECT count(*) FROM relay.outbox WHERE kind = 'reply'") == ORDERS
