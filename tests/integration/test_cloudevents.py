"""From SQL typed by hand, through the real relay and a real queue, to the official SDK of CloudEvents."""

from datetime import datetime

from cloudevents.core.bindings.rabbitmq import RabbitMQMessage, from_rabbitmq_event
from cloudevents.core.v1.event import CloudEvent

from relay.broker.properties import Delivery
from tests.conftest import VirtualHost
from tests.support.database import Database
from tests.support.mailbox import mailbox
from tests.support.process import RelayProcess

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
INSERT = (
    "INSERT INTO relay.outbox (aggregate_type, aggregate_id, type, payload, headers)"
    " VALUES (%s, %s, %s, %s, %s) RETURNING id::text, created_at"
)


def event_of(delivery: Delivery) -> CloudEvent:
    """A delivery, as any consumer would hand it to the SDK."""
    headers = {name: str(value) for name, value in delivery.properties.headers.items()}
    return from_rabbitmq_event(RabbitMQMessage(headers, delivery.properties.content_type, delivery.body))


async def test_a_row_becomes_an_event_with_all_its_attributes(database: Database, vhost: VirtualHost) -> None:
    async with mailbox(vhost.url) as box, RelayProcess(database.dsn, vhost.user_url("relay"), name="shop") as relay:
        await relay.until("streaming")
        headers = f'{{"traceparent": "{TRACEPARENT}", "tracestate": "vendor=1"}}'
        ((message_id, created_at),) = database.query(
            INSERT, "order", "7", "OrderCreated", '{"total": "12.50", "note": "ünïcode"}', headers
        )
        (delivery,) = await box.until_count(1)
    event = event_of(delivery)
    assert isinstance(created_at, datetime)
    assert event.get_attributes() == {
        "id": message_id,
        "source": "shop",
        "type": "OrderCreated",
        "specversion": "1.0",
        "datacontenttype": "application/json",
        "time": created_at,
        "partitionkey": "7",
        "sequence": event.get_extension("sequence"),
        "traceparent": TRACEPARENT,
        "tracestate": "vendor=1",
    }
    assert event.get_data() == {"total": "12.50", "note": "ünïcode"}


async def test_sequences_sort_as_their_transactions_were_committed(database: Database, vhost: VirtualHost) -> None:
    database.query(INSERT, "order", "0", "Old", "0", "{}")  # older than the slot
    async with mailbox(vhost.url) as box, RelayProcess(database.dsn, vhost.url) as relay:
        await relay.until("streaming")
        for number in range(1, 12):
            database.query(INSERT, "order", str(number), "Single", str(number), "{}")
        database.query(
            "INSERT INTO relay.outbox (aggregate_type, aggregate_id, type, payload)"
            " SELECT 'order', n, 'Together', to_json(n) FROM generate_series(12, 30) n"
        )
        events = [event_of(delivery) for delivery in await box.until_count(31)]
    by_sequence = sorted(events, key=lambda event: str(event.get_extension("sequence")))
    assert [event.get_data() for event in by_sequence] == list(range(31))
