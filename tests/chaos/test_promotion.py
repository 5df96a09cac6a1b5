"""What comes again carries the same ids: from a promoted standby, and with another configuration after a crash."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL
from urllib.parse import urlsplit

import psycopg
import pytest

from relay.broker.properties import Delivery, Properties
from relay.demo.postgres import PrivatePostgres
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
DEBEZIUM = 'envelope = "debezium"\n[source.capture.debezium]\n"skipped.operations" = "none"'

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


def tell(dsn: str, story: int) -> list[Told]:
    """One of everything that becomes a message, in several transactions; and those messages, in their order."""
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
            f"INSERT INTO public.customers VALUES ({row + 1}, 'ada')",
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
        with connection.cursor().copy("COPY public.customers (id, name) FROM STDIN") as copy:
            for n in COPIED:
                copy.write_row((row + n, "bob"))
        run(f"DELETE FROM public.customers WHERE id = {row + 2}")
        run("TRUNCATE public.customers, sales.items")
    return [
        *_changes("public.customers", (row + 1, "inserted"), (row + 1, "updated")),
        *_changes("public.customers", (row + 1, "deleted"), (row + 2, "inserted")),
        *_changes("order", (story, "OrderCreated"), (story, "OrderPaid")),
        *_changes("sales.items", (row + 1, "inserted")),
        *_changes("order", (story, "OrderPacked")),
        *_changes("sales.items", (row + 3, "inserted")),
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


async def given_the_slot_can_be_taken_over(
    shop: Shop, database: Database, vhost: VirtualHost, *captures: str
) -> None:
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
    lsn = str(primary.database.value("SELECT pg_current_wal_insert_lsn()::text"))
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
    primary.database.query(TABLES)
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


def everything(_: Delivery) -> bool:
    return True


def of_a_customer(delivery: Delivery) -> bool:
    return told(delivery)[0] == "public.customers"


def of_no_item(delivery: Delivery) -> bool:
    return told(delivery)[0] != "sales.items"


def of_an_order(delivery: Delivery) -> bool:
    return told(delivery)[0] == "order"


@dataclass(frozen=True)
class Change:
    """A change of the configuration."""

    name: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    kept: Callable[[Delivery], bool] = everything
    """What the second configuration captures as the first does."""
    same_body: bool = True


COLUMN_LESS = f'{BOTH}\nexclude_columns = ["note"]'
PLAIN = 'envelope = "plain"\nrouting = {{routing_key = "cdc.{{type}}"}}'.replace("{{", "{").replace("}}", "}")
CHANGES = (
    Change("one table less", (OUTBOX, LOGICAL, BOTH), (OUTBOX, LOGICAL, CUSTOMERS), of_no_item),
    Change("one table more", (OUTBOX, LOGICAL, CUSTOMERS), (OUTBOX, LOGICAL, BOTH)),
    Change("no table at all", (OUTBOX, LOGICAL, BOTH), (LOGICAL, OUTBOX), of_an_order),
    Change("only tables", (OUTBOX, LOGICAL, BOTH), (BOTH,), lambda delivery: not of_an_order(delivery)),
    Change("a column less", (OUTBOX, LOGICAL, BOTH), (OUTBOX, LOGICAL, COLUMN_LESS), same_body=False),
    Change("plain", (OUTBOX, LOGICAL, BOTH), (OUTBOX, LOGICAL, f"{BOTH}\n{PLAIN}")),
    Change("as Debezium has it", (OUTBOX, LOGICAL, BOTH), (OUTBOX, LOGICAL, f"{BOTH}\n{DEBEZIUM}"), same_body=False),
    Change(
        "other names, another order, more captures",
        (OUTBOX, LOGICAL, BOTH),
        (EVENT_STORE, f'{CUSTOMERS}\nname = "clients"', ITEMS, f'{LOGICAL}\nname = "wal"', f'{OUTBOX}\nname = "o"'),
    ),
)


def is_extra(delivery: Delivery) -> bool:
    """What only the second configuration makes: copies of rows that were there before, and tombstones."""
    return delivery.properties.type == "snapshot" or not delivery.body


def assert_came_again(change: Change, published: list[Delivery], again: list[Delivery]) -> None:
    """What both configurations capture has the ids that it had, and nothing else has one of them."""
    kept = [delivery for delivery in published if change.kept(delivery)]
    assert kept
    repeated = [delivery for delivery in again if not is_extra(delivery)]
    assert {id_of(delivery): told(delivery) for delivery in repeated} == {id_of(one): told(one) for one in kept}
    assert len({id_of(delivery) for delivery in again}) == len(again)
    if change.same_body:
        bodies = {id_of(delivery): delivery.body for delivery in published}
        assert all(delivery.body == bodies[id_of(delivery)] for delivery in repeated)


async def come_again_after(
    change: Change, crash: Callable[[], None], shop: Shop, database: Database, vhost: VirtualHost
) -> None:
    """A relay publishes, hears of no confirm, and is killed; `crash`; and another begins with the changed configuration.

    A confirm on each route comes first: without one, the second message of an aggregate would wait.
    """
    dsn, amqp_url = database.dsn, vhost.user_url("relay")
    database.query(TABLES)
    async with mailbox(vhost.url) as box, Proxy(urlsplit(amqp_url).port or 0, AMQP) as way:
        async with shop.relay(dsn, way.url_of(amqp_url), *change.before) as relay:
            await relay.until("streaming")
            proven = [one for one in tell(dsn, 1) if captured(one, change.before)]
            await box.until_count(len(proven))
            await eventually(lambda: is_settled(database))
            way.hold(Direction.BACK)
            unsettled = [one for one in tell(dsn, 2) if captured(one, change.before)]
            published = (await box.until_count(len(proven) + len(unsettled)))[len(proven) :]
            assert await relay.end(SIGKILL) == -SIGKILL
        crash()
        assert by_aggregate(map(told, published)) == by_aggregate(unsettled)
        expected = {id_of(delivery) for delivery in published if change.kept(delivery)}
        before = len(proven) + len(unsettled)
        async with shop.relay(dsn, amqp_url, *change.after) as relay:
            deliveries = await box.until(
                lambda found: expected <= {id_of(delivery) for delivery in found[before:]}
            )
            assert await relay.end() == 0
    assert_came_again(change, published, deliveries[before:])
