"""Every way to be atomic, from SQL typed by hand to a real queue, while the relay is killed in the middle."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL
from typing import Any

import psycopg
import pytest

from relay.broker.properties import Delivery
from tests.conftest import VirtualHost
from tests.support.database import Database
from tests.support.mailbox import mailbox
from tests.support.process import Process, configured_relay

STORIES = 40
"""Transactions of each test: a quarter before the first kill, a half while no relay runs, a quarter at the end."""

AGGREGATES = 5

Story = Callable[[int], str]
Expected = tuple[str, str, Any]
"""Aggregate id, type, and body."""


@dataclass(frozen=True)
class Way:
    """One row of the capture table."""

    name: str
    configuration: str
    story: Story
    """The SQL of a transaction."""
    expected: Callable[[int], list[Expected]]
    setup: str = ""


def of(number: int) -> int:
    """The aggregate that a story is about."""
    return number % AGGREGATES


OUTBOX = Way(
    "outbox",
    'kind = "outbox"',
    lambda n: (
        f"""
        INSERT INTO relay.outbox (aggregate_type, aggregate_id, type, payload)
        VALUES ('order', '{of(n)}', 'OrderCreated', '{{"n": {n}}}'), ('order', '{of(n)}', 'OrderPaid', '{{"n": {n}}}')
    """
    ),
    lambda n: [(str(of(n)), "OrderCreated", {"n": n}), (str(of(n)), "OrderPaid", {"n": n})],
)

DEBEZIUMS_OUTBOX = Way(
    "an outbox in Debezium's layout",
    """
    kind = "outbox"
    table = "public.outboxevent"
    [source.capture.columns]
    id = "id"
    aggregate_type = "aggregatetype"
    aggregate_id = "aggregateid"
    type = "type"
    payload = "payload"
    """,
    lambda n: (
        f"""
        INSERT INTO public.outboxevent VALUES (gen_random_uuid(), 'order', '{of(n)}', 'OrderCreated', '{{"n": {n}}}');
        DELETE FROM public.outboxevent
    """
    ),
    lambda n: [(str(of(n)), "OrderCreated", {"n": n})],
    """
    CREATE TABLE public.outboxevent (
        id uuid NOT NULL PRIMARY KEY, aggregatetype varchar(255) NOT NULL, aggregateid varchar(255) NOT NULL,
        type varchar(255) NOT NULL, payload jsonb)
    """,
)

EVENTUATES_MESSAGE = Way(
    "Eventuate's message table",
    """
    kind = "outbox"
    table = "public.message"
    [source.capture.columns]
    id = "id"
    aggregate_type = "headers.event-aggregate-type"
    aggregate_id = "headers.PARTITION_ID"
    type = "headers.event-type"
    headers = "headers"
    payload = "payload"
    created_at = "creation_time"
    """,
    lambda n: (
        f"""
        INSERT INTO public.message (id, destination, headers, payload, published, creation_time)
        VALUES ('m{n}', 'order',
                '{{"event-aggregate-type": "order", "event-type": "OrderCreated", "PARTITION_ID": "{of(n)}"}}',
                '{{"n": {n}}}', 0, 1795388273000)
    """
    ),
    lambda n: [(str(of(n)), "OrderCreated", {"n": n})],
    """
    CREATE TABLE public.message (
        id varchar(1000) PRIMARY KEY, destination text NOT NULL, headers text NOT NULL, payload text NOT NULL,
        published smallint DEFAULT 0, message_partition smallint, creation_time bigint)
    """,
)

LOGICAL = Way(
    "logical messages",
    'kind = "logical"',
    lambda n: (
        f"""
        SELECT pg_logical_emit_message(true, 'relay.outbox', '{{
            "aggregate_type": "order", "aggregate_id": "{of(n)}", "type": "OrderCreated", "payload": {{"n": {n}}}}}');
        SELECT pg_logical_emit_message(false, 'relay.outbox', 'not of this transaction');
        SELECT pg_logical_emit_message(true, 'somebody else''s', 'not for the relay')
    """
    ),
    lambda n: [(str(of(n)), "OrderCreated", {"n": n})],
)

EVENT_STORE = Way(
    "an event store",
    'kind = "event_store"',
    lambda n: (
        f"""
        INSERT INTO relay.event_store (stream_type, stream_id, version, type, data)
        VALUES ('order', '{of(n)}', {2 * (n // AGGREGATES) + 1}, 'OrderCreated', '{{"n": {n}}}'),
               ('order', '{of(n)}', {2 * (n // AGGREGATES) + 2}, 'OrderPaid', '{{"n": {n}}}')
    """
    ),
    lambda n: [(str(of(n)), "OrderCreated", {"n": n}), (str(of(n)), "OrderPaid", {"n": n})],
)

CUSTOMERS = "CREATE TABLE public.customers (id integer PRIMARY KEY, name text)"


def customer(n: int) -> str:
    """A customer comes, changes the name, and goes."""
    return f"""
        INSERT INTO public.customers VALUES ({n}, 'ada');
        UPDATE public.customers SET name = 'grace' WHERE id = {n};
        DELETE FROM public.customers WHERE id = {n}
    """


TRIGGER = Way(
    "a trigger",
    'kind = "outbox"',
    customer,
    lambda n: [
        (str(n), "inserted", {"op": "insert", "before": None, "after": {"id": n, "name": "ada"}}),
        (str(n), "updated", {"op": "update", "before": {"id": n, "name": "ada"}, "after": {"id": n, "name": "grace"}}),
        (str(n), "deleted", {"op": "delete", "before": {"id": n, "name": "grace"}, "after": None}),
    ],
    f"{CUSTOMERS}; SELECT relay.capture_table('public.customers')",
)

TABLE = Way(
    "a plain table",
    """
    kind = "table"
    tables = ["public.customers"]
    """,
    customer,
    lambda n: [
        (str(n), "inserted", {"op": "insert", "before": None, "after": {"id": n, "name": "ada"}, "unchanged": []}),
        (str(n), "updated", {"op": "update", "before": None, "after": {"id": n, "name": "grace"}, "unchanged": []}),
        (str(n), "deleted", {"op": "delete", "before": {"id": n}, "after": None, "unchanged": []}),
    ],
    CUSTOMERS,
)

WAYS = (OUTBOX, DEBEZIUMS_OUTBOX, EVENTUATES_MESSAGE, LOGICAL, EVENT_STORE, TRIGGER, TABLE)


def first_arrivals(deliveries: Iterable[Delivery]) -> dict[str, list[tuple[str, Any]]]:
    """Type and body of each message, by aggregate, in the order of first arrivals. Fails when one id tells two."""
    known: dict[str, tuple[str, bytes]] = {}
    found: dict[str, list[tuple[str, Any]]] = defaultdict(list)
    for delivery in deliveries:
        properties = delivery.properties
        content = (str(properties.type), delivery.body)
        if properties.message_id not in known:
            found[str(properties.headers["aggregate_id"])].append((content[0], json.loads(delivery.body)))
        assert known.setdefault(str(properties.message_id), content) == content
    return found


def tell(database: Database, way: Way, numbers: range) -> None:
    """One transaction a story, and one after each that is rolled back."""
    with psycopg.connect(database.dsn) as connection:
        for number in numbers:
            connection.execute(way.story(number).encode())
            connection.commit()
            if number + AGGREGATES < STORIES:
                connection.execute(way.story(number + AGGREGATES).encode())
                connection.rollback()


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
async def test_what_is_committed_arrives_in_order_under_one_id_whatever_happens_to_the_relay(
    way: Way, database: Database, vhost: VirtualHost, tmp_path: Path
) -> None:
    if way.setup:
        with psycopg.connect(database.dsn) as connection:
            connection.execute(way.setup.encode())
    config = tmp_path / "relay.toml"
    config.write_text(f'[[source]]\nname = "shop"\ndsn = "{database.dsn}"\n\n[[source.capture]]\n{way.configuration}\n')
    expected: dict[str, list[tuple[str, Any]]] = defaultdict(list)
    for number in range(STORIES):
        for aggregate_id, kind, body in way.expected(number):
            expected[aggregate_id].append((kind, body))
    count = sum(map(len, expected.values()))

    def relay() -> Process:
        return configured_relay(config, vhost.user_url("relay"))

    async with mailbox(vhost.url) as box:
        async with relay() as first:
            await first.until("streaming")
            tell(database, way, range(STORIES // 4))
            await box.until_count(1)
            assert await first.end(SIGKILL) == -SIGKILL
        tell(database, way, range(STORIES // 4, 3 * STORIES // 4))
        arrived = len(box.deliveries)
        async with relay() as second:
            await box.until_count(arrived + 1)
            assert await second.end(SIGKILL) == -SIGKILL
        async with relay() as third:
            tell(database, way, range(3 * STORIES // 4, STORIES))
            deliveries = await box.until(
                lambda all_of_them: len({d.properties.message_id for d in all_of_them}) >= count
            )
            assert await third.end() == 0
    assert first_arrivals(deliveries) == expected
