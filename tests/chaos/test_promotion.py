"""What comes again carries the same ids: from a promoted standby, and with another configuration after a crash."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL
from urllib.parse import urlsplit

import psycopg
import pytest

from relay.broker.properties import Delivery, Properties
from relay.demo.servers.postgres import PrivatePostgres
from tests.conftest import VirtualHost
from tests.support.database import Database, Databases
from tests.support.mailbox import mailbox
from tests.support.process import Process, configured_relay
from tests.support.proxy import AMQP, Direction, Proxy
from tests.support.servers import PostgresServer, with_roles
from tests.support.standby import HAS_FAILOVER_SLOTS, Standby, let_standbys_take_over
from tests.support.waiting import eventually

SLOT = "relay_shop"
COPIED = range(5, 10)

TABLES = """
    CREATE SCHEMA sales;
    CREATE TABLE public.customers (id integer PRIMARY KEY, name text, note text);
    CREATE TABLE sales.items (id integer PRIMARY KEY, name text)
"""

OUTBOX = 'kind = "outbox"'
LOGICAL = 'kind = "logical"'
EVENT_STORE = 'kind = "event_store"'
CUSTOMERS = 'kind = "table"\ntables = ["public.customers"]'
ITEMS = 'kind = "table"\nname = "items"\ntables = ["sales.*"]'
BOTH = 'kind = "table"\ntables = ["public.customers", "sales.*"]'

pytestmark = pytest.mark.timeout(240)

Told = tuple[str, str, str]
"""Aggregate type, aggregate id, and type of a message."""


@dataclass(frozen=True)
class Shop:
    """The file that configures a relay, wherever its servers are."""

    file: Path

    def relay(self, dsn: str, amqp_url: str, *captures: str) -> Process:
        """The relay, once the file says this."""
        sections = "".join(f"\n[[source.capture]]\n{capture}\n" for capture in captures)
        self.file.write_text(f'[[source]]\nname = "shop"\ndsn = "{dsn}"\n{sections}', encoding="utf-8")
        return configured_relay(self.file, amqp_url)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path / "relay.toml")


@dataclass(frozen=True)
class Primary:
    """A PostgreSQL that the test may end, with a database in it."""

    server: PrivatePostgres
    database: Database


@pytest.fixture
def primary() -> Iterator[Primary]:
    with PrivatePostgres(durable=False) as server:
        database = Databases(with_roles(server.dsn("postgres"))).create()
        yield Primary(server, database)
        database.connection.close()


def given_tables(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute(TABLES.encode())


def tell(dsn: str, story: int) -> list[Told]:
    """Some of everything that becomes a message, in several transactions; and those messages, in their order.

    A logical message has the LSN of its end, which is that of the row behind it; a COPY writes rows at one LSN, and a
    TRUNCATE empties tables at one.
    """
    row = story * 100
    logical = (
        "SELECT pg_logical_emit_message(true, 'relay.outbox',"
        f' \'{{"aggregate_type": "order", "aggregate_id": "{story}", "type": "{{}}", "payload": 1}}\')'
    )
    outbox = "INSERT INTO relay.outbox (aggregate_type, aggregate_id, type, payload) VALUES ('order', '{}', '{}', '1')"
    with psycopg.connect(dsn, autocommit=True) as connection:

        def run(*statements: str) -> None:
            connection.execute(f"BEGIN; {'; '.join(statements)}; COMMIT".encode())

        run(
            f"INSERT INTO public.customers VALUES ({row + 1}, 'ada', 'a note')",
            f"UPDATE public.customers SET name = 'grace' WHERE id = {row + 1}",
        )
        run(f"UPDATE public.customers SET id = {row + 2} WHERE id = {row + 1}")
        run(
            outbox.format(story, "OrderCreated"),
            logical.replace("{}", "OrderPaid"),
            f"INSERT INTO sales.items VALUES ({row + 1}, 'saw')",
            "SAVEPOINT here",
            logical.replace("{}", "OrderLost"),
            f"INSERT INTO sales.items VALUES ({row + 2}, 'none')",
            "ROLLBACK TO here",
            logical.replace("{}", "OrderPacked"),
            f"INSERT INTO sales.items VALUES ({row + 3}, 'axe')",
        )
        with connection.transaction():
            connection.execute(logical.replace("{}", "OrderShipped").encode())
            with connection.cursor().copy("COPY public.customers FROM STDIN") as copy:
                for n in COPIED:
                    copy.write_row((row + n, "bob", "copied"))
        run(f"DELETE FROM public.customers WHERE id = {row + 2}")
        run("TRUNCATE public.customers, sales.items")
    return [
        *_changes("public.customers", (row + 1, "inserted"), (row + 1, "updated")),
        *_changes("public.customers", (row + 1, "deleted"), (row + 2, "inserted")),
        *_changes("order", (story, "OrderCreated"), (story, "OrderPaid")),
        *_changes("sales.items", (row + 1, "inserted")),
        *_changes("order", (story, "OrderPacked")),
        *_changes("sales.items", (row + 3, "inserted")),
        *_changes("order", (story, "OrderShipped")),
        *_changes("public.customers", *((row + n, "inserted") for n in COPIED), (row + 2, "deleted")),
        ("public.customers", "", "truncated"),
        ("sales.items", "", "truncated"),
    ]


def _changes(aggregate_type: str, *changes: tuple[int, str]) -> list[Told]:
    return [(aggregate_type, str(aggregate_id), what) for aggregate_id, what in changes]


def told(delivery: Delivery) -> Told:
    headers = delivery.properties.headers
    return str(headers["aggregate_type"]), str(headers["aggregate_id"]), str(delivery.properties.type)


def by_aggregate(messages: Iterable[Told]) -> dict[tuple[str, str], list[str]]:
    """The types of the messages of each aggregate, in order: the relay promises no order between two of them."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for aggregate_type, aggregate_id, what in messages:
        found[aggregate_type, aggregate_id].append(what)
    return found


def id_of(delivery: Delivery) -> str:
    return str(delivery.properties.message_id)


def first_arrivals(deliveries: Iterable[Delivery]) -> list[Delivery]:
    """Without what came again."""
    first: dict[str, Delivery] = {}
    for delivery in deliveries:
        first.setdefault(id_of(delivery), delivery)
    return list(first.values())


def whole(delivery: Delivery) -> tuple[str, str, Properties, bytes]:
    """All of a message but what the broker says of its delivery."""
    return delivery.exchange, delivery.routing_key, delivery.properties, delivery.body


def assert_same_whenever_it_came(deliveries: Iterable[Delivery]) -> None:
    """One id is one message, to the last byte."""
    first: dict[str, Delivery] = {}
    for delivery in deliveries:
        assert whole(delivery) == whole(first.setdefault(id_of(delivery), delivery))


async def given_the_slot_can_be_taken_over(shop: Shop, database: Database, vhost: VirtualHost, *captures: str) -> None:
    """The first start makes publications and slot; then the slot is made one that a standby takes over."""
    async with shop.relay(database.dsn, vhost.user_url("relay"), *captures) as relay:
        await relay.until("streaming")
        assert await relay.end() == 0
    let_standbys_take_over(database.dsn, SLOT)


async def when_taken_over(database: Database, standby: Standby) -> None:
    """The standby has the slot, as it is now. Only once the primary's slot has moved on can it have it."""

    def taken_over() -> bool:
        database.query("SELECT pg_log_standby_snapshot()")
        return standby.takes_over(SLOT)

    await eventually(taken_over)


async def when_failed_over(primary: Primary, standby: Standby) -> Database:
    """The primary dies, once the standby has seen all of it, and the standby is promoted."""
    lsn = str(primary.database.value("SELECT pg_current_wal_flush_lsn()::text"))
    await eventually(lambda: standby.has_replayed(lsn))
    primary.server.stop("immediate")
    standby.promote()
    server = PostgresServer(standby.dsn("postgres"), primary.database.server.passwords)
    return Database(primary.database.name, server)


async def test_a_promoted_standby_publishes_the_same_messages_under_the_same_ids(
    primary: Primary, shop: Shop, vhost: VirtualHost
) -> None:
    if primary.database.connection.info.server_version < HAS_FAILOVER_SLOTS:
        pytest.skip("before PostgreSQL 17 no standby takes over a logical slot")
    dsn, amqp_url, captures = primary.database.dsn, vhost.user_url("relay"), (OUTBOX, LOGICAL, BOTH)
    given_tables(dsn)
    await given_the_slot_can_be_taken_over(shop, primary.database, vhost, *captures)
    with Standby(primary.server) as standby:
        async with mailbox(vhost.url) as box:
            async with shop.relay(dsn, amqp_url, *captures) as relay:
                await relay.until("streaming")
                await when_taken_over(primary.database, standby)
                known = tell(dsn, 1)
                published = await box.until_count(len(known))
                assert await relay.end() == 0
            unseen = tell(dsn, 2)
            promoted = await when_failed_over(primary, standby)
            async with shop.relay(promoted.dsn, amqp_url, *captures) as relay:
                await relay.until("streaming")
                new = tell(promoted.dsn, 3)
                deliveries = await box.until_count(2 * len(known) + len(unseen) + len(new))
                assert await relay.end() == 0
        assert standby.timeline == 2
    arrivals = first_arrivals(deliveries)
    assert by_aggregate(map(told, arrivals)) == by_aggregate([*known, *unseen, *new])
    twice = [id_of(delivery) for delivery in published]
    once = [id_of(delivery) for delivery in arrivals[len(known) :]]
    assert Counter(map(id_of, deliveries)) == dict.fromkeys(twice, 2) | dict.fromkeys(once, 1)
    assert_same_whenever_it_came(deliveries)


def everything(_: Told) -> bool:
    return True


def of_customers(message: Told) -> bool:
    return message[0] == "public.customers"


def of_items(message: Told) -> bool:
    return message[0] == "sales.items"


def of_orders(message: Told) -> bool:
    return message[0] == "order"


@dataclass(frozen=True)
class Change:
    """A change of the configuration."""

    name: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    stays: Callable[[Told], bool] = everything
    """What the second configuration captures of that which the first does."""
    same_body: bool = True

    def published(self, message: Told) -> bool:
        """Whether the first configuration captures it."""
        return BOTH in self.before or not of_items(message)


ALL = (OUTBOX, LOGICAL, BOTH)
NO_NOTE = f'{BOTH}\nexclude_columns = ["note"]'
PLAIN = f'{BOTH}\nenvelope = "plain"\nrouting = {{routing_key = "cdc.{{type}}"}}'
DEBEZIUM = f'{BOTH}\nenvelope = "debezium"\n[source.capture.debezium]\n"skipped.operations" = "none"'
OTHERS = (
    EVENT_STORE,
    f'{CUSTOMERS}\nname = "clients"',
    ITEMS,
    f'{LOGICAL}\nname = "wal"',
    f'{OUTBOX}\nname = "old"\nenvelope = "plain"',
)

CHANGES = (
    Change("one table less", ALL, (OUTBOX, LOGICAL, ITEMS), lambda message: not of_customers(message)),
    Change("one table more", (OUTBOX, LOGICAL, CUSTOMERS), ALL),
    Change("no table", ALL, (LOGICAL, OUTBOX), of_orders),
    Change("tables only", ALL, (BOTH,), lambda message: not of_orders(message)),
    Change("a column less", ALL, (OUTBOX, LOGICAL, NO_NOTE), same_body=False),
    Change("plain", ALL, (OUTBOX, LOGICAL, PLAIN)),
    Change("as Debezium has it", ALL, (OUTBOX, LOGICAL, DEBEZIUM), same_body=False),
    Change("other captures under other names", ALL, OTHERS),
)


def is_tombstone(delivery: Delivery) -> bool:
    """What only the envelope of Debezium has."""
    return not delivery.body


def assert_came_again(change: Change, published: list[Delivery], again: list[Delivery]) -> None:
    """What came is what was published before, under the id that it had, and each of it once."""
    repeated = [delivery for delivery in again if not is_tombstone(delivery)]
    known = {id_of(delivery): delivery for delivery in published}
    assert {id_of(delivery) for delivery in repeated} <= known.keys()
    assert [told(delivery) for delivery in repeated] == [told(known[id_of(delivery)]) for delivery in repeated]
    assert len({id_of(delivery) for delivery in again}) == len(again)
    if change.same_body:
        assert [delivery.body for delivery in repeated] == [known[id_of(delivery)].body for delivery in repeated]


async def come_again_with_the_same_ids(
    change: Change, shop: Shop, database: Database, vhost: VirtualHost, crash: Callable[[], None] = lambda: None
) -> None:
    """A relay publishes, hears of no confirm, and is killed; `crash`; and one begins with the changed configuration.

    First there is a confirm on each route: before that, the second message of an aggregate would wait for one.
    """
    dsn, amqp_url = database.dsn, vhost.user_url("relay")
    given_tables(dsn)
    async with mailbox(vhost.url) as box, Proxy(urlsplit(amqp_url).port or 0, AMQP) as way:
        async with shop.relay(dsn, way.url_of(amqp_url), *change.before) as relay:
            await relay.until("streaming")
            settled = len(await box.until_count(len(list(filter(change.published, tell(dsn, 1))))))
            position = database.value("SELECT pg_current_wal_flush_lsn()::text")
            await eventually(
                lambda: database.value(
                    "SELECT confirmed_flush_lsn >= %s::pg_lsn FROM pg_replication_slots WHERE slot_name = %s",
                    position,
                    SLOT,
                )
            )
            way.hold(Direction.BACK)
            unsettled = list(filter(change.published, tell(dsn, 2)))
            published = await box.until_count(settled + len(unsettled))
            assert await relay.end(SIGKILL) == -SIGKILL
        assert by_aggregate(map(told, published[settled:])) == by_aggregate(unsettled)
        await asyncio.to_thread(crash)
        expected = {id_of(delivery) for delivery in published[settled:] if change.stays(told(delivery))}
        assert expected
        async with shop.relay(dsn, amqp_url, *change.after) as relay:
            deliveries = await box.until(lambda found: expected <= set(map(id_of, found[len(published) :])))
            assert await relay.end() == 0
    assert_came_again(change, published, deliveries[len(published) :])


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name)
async def test_what_comes_again_after_a_change_of_the_configuration_has_the_same_ids(
    change: Change, shop: Shop, database: Database, vhost: VirtualHost
) -> None:
    await come_again_with_the_same_ids(change, shop, database, vhost)


async def test_what_comes_again_after_a_crash_of_postgresql_too_has_the_same_ids(
    primary: Primary, shop: Shop, vhost: VirtualHost
) -> None:
    def crash() -> None:
        primary.server.kill()
        primary.server.start()
        primary.database.reconnect()

    change = Change("other captures, the last one first", ALL, OTHERS[::-1])
    await come_again_with_the_same_ids(change, shop, primary.database, vhost, crash)
