"""What a source captures, through the real relay: snapshots, changes of the configuration, DDL, what is no message."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from signal import SIGKILL
from typing import Any

import psycopg
import pytest

from relay.broker.properties import Delivery
from relay.messaging import Event, outbox
from tests.conftest import VirtualHost
from tests.support.database import Database
from tests.support.mailbox import mailbox
from tests.support.process import Process, configured_relay
from tests.support.waiting import eventually

OUTBOX = '[[source.capture]]\nkind = "outbox"\n'
CUSTOMERS = '[[source.capture]]\nkind = "table"\ntables = ["public.customers"]\n'

Table = dict[str, dict[str, Any]]


class Shipped(Event):
    number: int


class Source:
    """A database and the file that configures its relay."""

    def __init__(self, database: Database, vhost: VirtualHost, directory: Path) -> None:
        self._database = database
        self._url = vhost.user_url("relay")
        self._file = directory / "relay.toml"

    def relay(self, *captures: str) -> Process:
        """The relay, once the file has these captures."""
        head = f'[[source]]\nname = "shop"\ndsn = "{self._database.dsn}"\n\n'
        self._file.write_text(head + "\n".join(captures), encoding="utf-8")
        return configured_relay(self._file, self._url)

    def parked(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """`relay parked` with these arguments."""
        command = [sys.executable, "-m", "relay", "parked", *arguments, "--config", str(self._file)]
        environment = os.environ | {"RELAY_BROKER__URL": self._url}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    def run(self, *statements: str) -> None:
        """Each statement in a transaction of its own, as the owner of the tables."""
        with psycopg.connect(self._database.dsn, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())


@pytest.fixture
def source(database: Database, vhost: VirtualHost, tmp_path: Path) -> Source:
    made = Source(database, vhost, tmp_path)
    made.run("CREATE TABLE public.customers (id integer PRIMARY KEY, name text, note text)")
    return made


def first_arrivals(deliveries: Iterable[Delivery]) -> list[Delivery]:
    """Without what came again."""
    return list({str(delivery.properties.message_id): delivery for delivery in reversed(list(deliveries))}.values())[
        ::-1
    ]


def types(deliveries: Iterable[Delivery]) -> list[str]:
    """The types of the messages, in order."""
    return [str(delivery.properties.type) for delivery in first_arrivals(deliveries)]


def bodies(deliveries: Iterable[Delivery]) -> list[Any]:
    """What is in the messages, in order."""
    return [json.loads(delivery.body) for delivery in first_arrivals(deliveries)]


def replayed(deliveries: Iterable[Delivery]) -> Table:
    """The table that somebody has who applies every message, those that come twice among them."""
    rows: Table = {}
    for delivery in deliveries:
        body, key = json.loads(delivery.body), str(delivery.properties.headers["aggregate_id"])
        if body["op"] == "truncate":
            rows.clear()
        elif body["after"] is None:
            rows.pop(key, None)
        else:
            kept = {name: rows.get(key, {}).get(name) for name in body["unchanged"]}
            rows[key] = kept | body["after"]
    return rows


def table(database: Database) -> Table:
    """The table as it is."""
    return {str(row["id"]): row for (row,) in database.query("SELECT to_jsonb(c) FROM public.customers AS c")}  # type: ignore[index, misc]


async def test_rows_that_were_there_come_as_a_snapshot_and_then_what_changes(
    source: Source, vhost: VirtualHost
) -> None:
    source.run("INSERT INTO public.customers SELECT n, 'old', NULL FROM generate_series(1, 3) AS n")
    async with mailbox(vhost.url) as box, source.relay(OUTBOX, CUSTOMERS) as relay:
        await relay.until("streaming")
        source.run("UPDATE public.customers SET name = 'new' WHERE id = 2")
        deliveries = await box.until_count(4)
    assert types(deliveries) == ["snapshot"] * 3 + ["updated"]
    assert bodies(deliveries)[0] == {
        "op": "snapshot",
        "before": None,
        "after": {"id": 1, "name": "old", "note": None},
        "unchanged": [],
    }
    assert deliveries[3].routing_key == "public.customers.updated"


async def test_without_a_snapshot_only_changes_come(source: Source, vhost: VirtualHost) -> None:
    source.run("INSERT INTO public.customers VALUES (1, 'old')")
    async with mailbox(vhost.url) as box, source.relay(CUSTOMERS + 'snapshot = "never"\n') as relay:
        await relay.until("streaming")
        source.run("INSERT INTO public.customers VALUES (2, 'new')")
        deliveries = await box.until_count(1)
        assert await relay.end() == 0
    assert types(deliveries) == ["inserted"]


async def test_a_table_that_is_captured_later_is_copied_once_and_its_changes_follow(
    source: Source, database: Database, vhost: VirtualHost
) -> None:
    source.run("INSERT INTO public.customers SELECT n, 'old' FROM generate_series(1, 500) AS n")
    async with mailbox(vhost.url) as box:
        async with source.relay(OUTBOX) as relay:
            await relay.until("streaming")
            assert await relay.end() == 0
        source.run(
            "UPDATE public.customers SET name = 'changed while nobody looked' WHERE id <= 10",
            "DELETE FROM public.customers WHERE id = 500",
        )
        async with source.relay(OUTBOX, CUSTOMERS) as relay:
            await relay.until("tables_copied")
            await relay.until("streaming")
            source.run(
                "UPDATE public.customers SET name = 'new' WHERE id = 7", "DELETE FROM public.customers WHERE id = 8"
            )
            deliveries = await box.until_count(501)
            assert await relay.end() == 0
        async with source.relay(OUTBOX, CUSTOMERS) as relay:
            await relay.until("streaming")
            assert not relay.said("tables_copied")
            assert await relay.end() == 0
    assert types(deliveries) == ["snapshot"] * 499 + ["updated", "deleted"]
    assert replayed(deliveries) == table(database)


async def test_a_crash_in_the_middle_of_a_copy_begins_it_again_and_loses_nothing(
    source: Source, database: Database, vhost: VirtualHost
) -> None:
    rows = 5000
    source.run(f"INSERT INTO public.customers SELECT n, 'old' FROM generate_series(1, {rows}) AS n")
    async with mailbox(vhost.url) as box:
        async with source.relay(OUTBOX) as relay:
            await relay.until("streaming")
            assert await relay.end() == 0
        async with source.relay(OUTBOX, CUSTOMERS) as relay:
            await box.until_count(1)
            assert await relay.end(SIGKILL) == -SIGKILL
            assert not relay.said("tables_copied")
        assert database.value("SELECT state FROM relay.captured WHERE table_name = 'customers'") == "copying"
        source.run("UPDATE public.customers SET name = 'changed in between' WHERE id % 2 = 0")
        async with source.relay(OUTBOX, CUSTOMERS) as relay:
            await relay.until("streaming")
            source.run("DELETE FROM public.customers WHERE id = 1")
            deliveries = await box.until(lambda found: any(one.properties.type == "deleted" for one in found))
            assert await relay.end() == 0
    assert replayed(deliveries) == table(database)
    ids: dict[bytes, set[str | None]] = {}
    for delivery in deliveries:
        ids.setdefault(delivery.body, set()).add(delivery.properties.message_id)
    assert all(len(same) == 1 for same in ids.values())
    assert len(deliveries) > rows + 1


async def test_a_table_that_is_no_longer_captured_leaves_the_publication(
    source: Source, database: Database, vhost: VirtualHost
) -> None:
    query = "SELECT pubname, tablename FROM pg_publication_tables ORDER BY pubname"
    async with source.relay(OUTBOX, CUSTOMERS) as relay:
        await relay.until("streaming")
        assert await relay.end() == 0
    assert database.query(query) == [("relay_shop", "outbox"), ("relay_shop_tables", "customers")]
    async with source.relay(OUTBOX) as relay:
        await relay.until("publication_changed")
        await relay.until("streaming")
        assert await relay.end() == 0
    assert database.query(query) == [("relay_shop", "outbox")]
    assert database.query("SELECT table_name FROM relay.captured") == [("outbox",)]


async def test_a_table_that_somebody_took_out_of_the_publication_stops_the_source(
    source: Source, database: Database
) -> None:
    async with source.relay(OUTBOX, CUSTOMERS) as relay:
        await relay.until("streaming")
        assert await relay.end() == 0
    database.query("ALTER PUBLICATION relay_shop_tables DROP TABLE public.customers")
    async with source.relay(OUTBOX, CUSTOMERS) as relay:
        assert await relay.status() == 3
        (line,) = relay.said("source_stopped")
    assert "public.customers" in line["message"]


async def test_a_table_that_cannot_say_which_row_changed_is_refused_by_name_and_its_writers_go_on(
    source: Source, database: Database
) -> None:
    source.run("CREATE TABLE public.keyless (n integer)", "INSERT INTO public.keyless VALUES (1)")
    async with source.relay(CUSTOMERS.replace("]", ', "public.keyless"]', 1).replace("[, ", "[")) as relay:
        assert await relay.status() == 2
    capture = '[[source.capture]]\nkind = "table"\ntables = ["public.customers", "public.keyless"]\n'
    async with source.relay(capture) as relay:
        assert await relay.status() == 3
        (line,) = relay.said("source_stopped")
    assert "public.keyless" in line["message"]
    assert "public.customers" not in line["message"]
    source.run("UPDATE public.keyless SET n = 2")
    assert database.value("SELECT count(*) FROM pg_publication_tables WHERE tablename = 'keyless'") == 0


async def test_what_the_table_looks_like_may_change_in_mid_stream(source: Source, vhost: VirtualHost) -> None:
    async with mailbox(vhost.url) as box, source.relay(CUSTOMERS) as relay:
        await relay.until("streaming")
        source.run(
            "INSERT INTO public.customers VALUES (1, 'ada')",
            "ALTER TABLE public.customers ADD COLUMN born date, DROP COLUMN note",
            "INSERT INTO public.customers VALUES (2, 'bob', '2001-02-03')",
            "ALTER TABLE public.customers RENAME COLUMN name TO called",
            "INSERT INTO public.customers VALUES (3, 'eve', NULL)",
            "CREATE TYPE public.mood AS ENUM ('sad', 'happy')",
            "ALTER TABLE public.customers ALTER COLUMN born TYPE public.mood USING 'happy'",
            "ALTER TABLE public.customers ALTER COLUMN called TYPE jsonb USING to_jsonb(called)",
            "INSERT INTO public.customers VALUES (4, '{\"first\": 1.50}', 'sad')",
            "ALTER TABLE public.customers RENAME TO clients",
            "INSERT INTO public.clients VALUES (5, 'null', NULL)",
        )
        deliveries = await box.until_count(5)
    assert [body["after"] for body in bodies(deliveries)] == [
        {"id": 1, "name": "ada", "note": None},
        {"id": 2, "name": "bob", "born": "2001-02-03"},
        {"id": 3, "called": "eve", "born": None},
        {"id": 4, "called": {"first": 1.5}, "born": "sad"},
        {"id": 5, "called": None, "born": None},
    ]


async def test_a_value_that_was_not_sent_is_marked_and_never_null(source: Source, vhost: VirtualHost) -> None:
    source.run("ALTER TABLE public.customers ALTER COLUMN note SET STORAGE EXTERNAL")
    async with mailbox(vhost.url) as box, source.relay(CUSTOMERS) as relay:
        await relay.until("streaming")
        source.run(
            "INSERT INTO public.customers VALUES (1, 'ada', repeat('0123456789', 1000))",
            "UPDATE public.customers SET name = 'grace'",
            "ALTER TABLE public.customers REPLICA IDENTITY FULL",
            "UPDATE public.customers SET name = 'edith'",
        )
        _, bare, full = bodies(await box.until_count(3))
    assert bare == {"op": "update", "before": None, "after": {"id": 1, "name": "grace"}, "unchanged": ["note"]}
    assert full["before"] == {"id": 1, "name": "grace", "note": "0123456789" * 1000}
    assert full["after"] == {"id": 1, "name": "edith", "note": "0123456789" * 1000}
    assert full["unchanged"] == []


async def test_a_partitioned_table_speaks_with_the_name_of_its_root(source: Source, vhost: VirtualHost) -> None:
    source.run(
        "CREATE TABLE public.readings (at date, sensor int, v real, PRIMARY KEY (at, sensor)) PARTITION BY RANGE (at)",
        "CREATE TABLE public.old PARTITION OF public.readings FOR VALUES FROM ('2025-01-01') TO ('2026-01-01')",
        "CREATE TABLE public.young PARTITION OF public.readings FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')",
        "INSERT INTO public.readings VALUES ('2025-06-01', 7, 21.5)",
    )
    capture = '[[source.capture]]\nkind = "table"\ntables = ["public.readings"]\n'
    async with mailbox(vhost.url) as box, source.relay(capture) as relay:
        await relay.until("streaming")
        source.run(
            "UPDATE public.readings SET v = 22",
            "UPDATE public.readings SET at = '2026-06-01'",
            "TRUNCATE public.readings",
        )
        deliveries = await box.until_count(5)
    assert types(deliveries) == ["snapshot", "updated", "deleted", "inserted", "truncated"]
    assert {delivery.properties.headers["aggregate_type"] for delivery in deliveries} == {"public.readings"}
    ids = [delivery.properties.headers["aggregate_id"] for delivery in deliveries]
    assert ids == ["2025-06-01/7", "2025-06-01/7", "2025-06-01/7", "2026-06-01/7", ""]


async def test_excluded_columns_never_leave_and_a_misspelt_one_is_refused(source: Source, vhost: VirtualHost) -> None:
    async with mailbox(vhost.url) as box, source.relay(CUSTOMERS + 'exclude_columns = ["note"]\n') as relay:
        await relay.until("streaming")
        source.run(
            "ALTER TABLE public.customers REPLICA IDENTITY FULL", "INSERT INTO public.customers VALUES (1, 'a', 'x')"
        )
        source.run("UPDATE public.customers SET note = 'y'", "DELETE FROM public.customers")
        deliveries = await box.until_count(3)
        assert await relay.end() == 0
    assert all("note" not in json.dumps(body) for body in bodies(deliveries))
    async with source.relay(CUSTOMERS + 'exclude_columns = ["nota"]\n') as relay:
        assert await relay.status() == 2


async def test_a_message_that_is_in_the_log_alone_arrives_as_one_of_the_outbox_does(
    source: Source, database: Database, vhost: VirtualHost
) -> None:
    async with mailbox(vhost.url) as box, source.relay() as relay:
        await relay.until("streaming")
        with psycopg.connect(database.dsn) as connection:
            stored = outbox.add(connection, Shipped(number=1), aggregate=("order", "7"))
            logged = outbox.add(connection, Shipped(number=2), aggregate=("order", "7"), wal_only=True)
        deliveries = await box.until_count(2)
    assert [delivery.properties.message_id for delivery in deliveries] == [str(stored), str(logged)]
    assert bodies(deliveries) == [{"number": 1}, {"number": 2}]
    assert deliveries[0].properties.headers.keys() == deliveries[1].properties.headers.keys()


async def test_what_is_no_message_is_set_aside_and_everything_else_flows(
    source: Source, database: Database, vhost: VirtualHost
) -> None:
    emit = "SELECT pg_logical_emit_message(true, 'relay.outbox', '{}')"
    good = '{"aggregate_type": "order", "aggregate_id": "7", "type": "OrderCreated", "payload": 1.50}'
    async with mailbox(vhost.url) as box, source.relay('[[source.capture]]\nkind = "logical"\n') as relay:
        await relay.until("streaming")
        source.run(emit.format("this is no JSON"), emit.format('{"aggregate_type": "order"}'), emit.format(good))
        (delivery,) = await box.until_count(1)
        await eventually(lambda: database.value("SELECT count(*) FROM relay.parked") == 2)
        assert await relay.end() == 0
    assert (delivery.body, delivery.properties.type) == (b"1.50", "OrderCreated")
    assert database.query("SELECT reason, capture, payload FROM relay.parked ORDER BY commit_lsn")[0] == (
        "unencodable",
        "",
        "this is no JSON",
    )


async def test_what_is_no_message_cannot_be_replayed_and_can_be_dropped(
    source: Source, database: Database, vhost: VirtualHost
) -> None:
    looks_whole = '{"aggregate_type": "order", "aggregate_id": "7", "type": "Created", "payload": 1, "colour": "red"}'
    async with mailbox(vhost.url) as box, source.relay('[[source.capture]]\nkind = "logical"\n') as relay:
        await relay.until("streaming")
        source.run(f"SELECT pg_logical_emit_message(true, 'relay.outbox', '{looks_whole}')")
        await eventually(lambda: database.value("SELECT count(*) FROM relay.parked") == 1)
        replaying = await asyncio.to_thread(source.parked, "replay", "--reason", "unencodable")
        assert database.value("SELECT count(*) FROM relay.parked") == 1
        dropping = await asyncio.to_thread(source.parked, "drop", "--reason", "unencodable")
        assert database.value("SELECT count(*) FROM relay.parked") == 0
    assert (replaying.returncode, dropping.returncode) == (1, 0), replaying.stdout + replaying.stderr
    assert not box.deliveries


async def test_a_body_may_be_any_bytes_and_keeps_them_also_while_it_is_parked(
    source: Source, database: Database, vhost: VirtualHost
) -> None:
    source.run("CREATE TABLE public.raw (aggregate_type text, aggregate_id text, type text, payload bytea, id uuid)")
    capture = '[[source.capture]]\nkind = "outbox"\ntable = "public.raw"\ncontent_type = "application/avro"\n'
    parking = '[broker.on_unroutable]\nevent = "park"\n'
    row = "INSERT INTO public.raw VALUES ('order', '{}', 'Created', '\\x00ff80', gen_random_uuid())"
    async with source.relay(capture, parking) as relay:
        await relay.until("streaming")
        source.run(row.format(1))
        await eventually(lambda: database.value("SELECT count(*) FROM relay.parked") == 1)
        async with mailbox(vhost.url) as box:
            source.run(row.format(2))
            await box.until_count(1)
            assert (await asyncio.to_thread(source.parked, "replay", "--aggregate", "order/1")).returncode == 0
            deliveries = await box.until_count(2)
    assert [delivery.body for delivery in deliveries] == [b"\x00\xff\x80"] * 2
    assert {delivery.properties.content_type for delivery in deliveries} == {"application/avro"}


async def test_what_is_excluded_stays_so_when_the_table_is_renamed(source: Source, vhost: VirtualHost) -> None:
    capture = CUSTOMERS + 'exclude_columns = ["public.customers.note"]\n'
    async with mailbox(vhost.url) as box, source.relay(capture) as relay:
        await relay.until("streaming")
        source.run(
            "ALTER TABLE public.customers RENAME TO clients",
            "INSERT INTO public.clients VALUES (2, 'bob', 'a secret')",
        )
        (delivery,) = await box.until_count(1)
    assert b"secret" not in delivery.body


async def test_tables_that_inherit_are_refused_and_their_writers_go_on(source: Source, database: Database) -> None:
    source.run("CREATE TABLE public.child () INHERITS (public.customers)", "INSERT INTO public.child VALUES (5, 'c')")
    async with source.relay(CUSTOMERS) as relay:
        assert await relay.status() == 3
        (line,) = relay.said("source_stopped")
    assert "public.customers inherits, or is inherited from" in line["message"]
    source.run("UPDATE public.child SET name = 'd'")


async def test_a_row_that_is_deleted_between_two_attempts_of_a_copy_is_gone(
    source: Source, database: Database, vhost: VirtualHost
) -> None:
    source.run("INSERT INTO public.customers SELECT n, 'old' FROM generate_series(1, 5000) AS n")
    async with mailbox(vhost.url) as box:
        async with source.relay(OUTBOX) as relay:
            await relay.until("streaming")
            assert await relay.end() == 0
        async with source.relay(OUTBOX, CUSTOMERS) as relay:
            await box.until_count(1)
            assert await relay.end(SIGKILL) == -SIGKILL
            assert not relay.said("tables_copied")
        source.run("DELETE FROM public.customers WHERE id = 1")
        async with source.relay(OUTBOX, CUSTOMERS) as relay:
            await relay.until("streaming")
            deliveries = await box.until(lambda found: any(one.properties.type == "deleted" for one in found))
            assert await relay.end() == 0
    assert replayed(deliveries) == table(database)


async def test_what_commits_during_the_first_copy_is_not_lost_when_that_crashes(
    source: Source, database: Database, vhost: VirtualHost
) -> None:
    source.run("INSERT INTO public.customers SELECT n, 'old' FROM generate_series(1, 20000) AS n")
    logical = '[[source.capture]]\nkind = "logical"\n'
    content = '{"aggregate_type": "order", "aggregate_id": "7", "type": "WalOnly", "payload": 1}'
    async with mailbox(vhost.url) as box:
        async with source.relay(logical, CUSTOMERS) as relay:
            await relay.until("slot_created")
            await box.until_count(1)
            source.run(
                f"SELECT pg_logical_emit_message(true, 'relay.outbox', '{content}')",
                "INSERT INTO public.customers VALUES (99999, 'short-lived')",
                "DELETE FROM public.customers WHERE id IN (1, 99999)",
            )
            assert await relay.end(SIGKILL) == -SIGKILL
            assert not relay.said("backlog_published")
        async with source.relay(logical, CUSTOMERS) as relay:
            deliveries = await box.until(lambda found: "WalOnly" in [one.properties.type for one in found[-20:]])
            await box.until(lambda found: sum(one.properties.type == "deleted" for one in found) >= 2)
            deliveries = list(box.deliveries)
            assert await relay.end() == 0
    of_table = [delivery for delivery in deliveries if delivery.properties.type != "WalOnly"]
    assert replayed(of_table) == table(database)


async def test_a_row_that_changed_between_two_copies_is_parked_behind_its_older_self(
    source: Source, database: Database
) -> None:
    source.run("INSERT INTO public.customers VALUES (1, 'v1')")
    parking = '[broker.on_unroutable]\nevent = "park"\n'
    async with source.relay(CUSTOMERS, parking) as relay:
        await relay.until("streaming")
        assert await relay.end() == 0
    # As a relay leaves it that was killed before its last words of the first start.
    source.run("UPDATE relay.checkpoint SET state = 'copying'", "UPDATE relay.captured SET state = 'copying'")
    source.run("UPDATE public.customers SET name = 'v2'")
    async with source.relay(CUSTOMERS, parking) as relay:
        await relay.until("streaming")
        assert await relay.end() == 0
    names = "SELECT payload::json #>> '{after,name}' FROM relay.parked ORDER BY commit_lsn, ordinal"
    assert database.query(names)[:2] == [("v1",), ("v2",)]


async def test_unread_changes_of_tables_that_are_dropped_or_renamed_meanwhile_still_come(
    source: Source, vhost: VirtualHost
) -> None:
    source.run(
        "CREATE SCHEMA sales", "CREATE TABLE sales.a (id int PRIMARY KEY)", "CREATE TABLE sales.b (id int PRIMARY KEY)"
    )
    capture = '[[source.capture]]\nkind = "table"\ntables = ["sales.*"]\n'
    async with mailbox(vhost.url) as box:
        async with source.relay(capture) as relay:
            await relay.until("streaming")
            assert await relay.end() == 0
        source.run(
            "INSERT INTO sales.a VALUES (1)",
            "DROP TABLE sales.a",
            "INSERT INTO sales.b VALUES (1), (2)",
            "DELETE FROM sales.b WHERE id = 1",
            "ALTER TABLE sales.b RENAME TO c",
            "INSERT INTO sales.c VALUES (3)",
        )
        async with source.relay(capture) as relay:
            deliveries = await box.until_count(5)
            assert not relay.said("tables_copied")
            assert await relay.end() == 0
    assert types(deliveries) == ["inserted", "inserted", "inserted", "deleted", "inserted"]


async def test_a_table_that_is_dropped_and_made_again_is_a_new_one(source: Source, vhost: VirtualHost) -> None:
    async with mailbox(vhost.url) as box:
        async with source.relay(CUSTOMERS) as relay:
            await relay.until("streaming")
            assert await relay.end() == 0
        source.run(
            "DROP TABLE public.customers",
            "CREATE TABLE public.customers (id integer PRIMARY KEY, name text)",
            "INSERT INTO public.customers VALUES (1, 'new')",
        )
        async with source.relay(CUSTOMERS) as relay:
            await relay.until("tables_copied")
            (delivery,) = await box.until_count(1)
            assert await relay.end() == 0
    assert delivery.properties.type == "snapshot"


async def test_a_publication_may_be_younger_than_what_the_slot_has_still_to_send(
    source: Source, database: Database, vhost: VirtualHost
) -> None:
    """Up to PostgreSQL 17 a slot cannot decode what was written before a publication was created."""
    row = "INSERT INTO relay.outbox (aggregate_type, aggregate_id, type, payload) VALUES ('order', '1', '{}', '1')"
    async with mailbox(vhost.url) as box:
        async with source.relay(OUTBOX) as relay:
            await relay.until("streaming")
            assert await relay.end() == 0
        # As with a role that may create no publication: its owner does, while the outbox is written to.
        source.run("DROP PUBLICATION relay_shop_tables", row.format("Before"))
        source.run("INSERT INTO public.customers VALUES (1, 'ada')")
        async with source.relay(OUTBOX, CUSTOMERS) as relay:
            await relay.until("streaming")
            source.run(row.format("After"))
            await relay.until("tables_copied")
            await relay.until("streaming", times=len(relay.said("publication_young")) + 1)
            source.run("UPDATE public.customers SET name = 'grace'")
            deliveries = await box.until(lambda found: any(one.properties.type == "updated" for one in found))
            assert await relay.end() == 0
    assert sorted(set(types(deliveries))) == ["After", "Before", "snapshot", "updated"]


async def test_an_outbox_may_lie_among_the_tables_of_a_schema(source: Source, database: Database) -> None:
    source.run("CREATE TABLE public.messages (aggregate_type text, aggregate_id text, type text, payload json)")
    own = '[[source.capture]]\nkind = "outbox"\ntable = "public.messages"\n'
    every = '[[source.capture]]\nkind = "table"\ntables = ["public.*"]\n'
    async with source.relay(every, own) as relay:
        await relay.until("streaming")
        assert await relay.end() == 0
    query = "SELECT pubname, tablename FROM pg_publication_tables ORDER BY pubname"
    assert database.query(query) == [("relay_shop", "messages"), ("relay_shop_tables", "customers")]


async def test_a_message_goes_where_its_type_then_its_capture_then_its_kind_says(
    source: Source, database: Database, vhost: VirtualHost, tmp_path: Path
) -> None:
    routing = (
        '[broker.routing]\nevent = {routing_key = "e.{aggregate_type}.{type}.{aggregate_id}"}\n'
        'Special = {routing_key = "special"}\n\n'
    )
    captures = OUTBOX + CUSTOMERS + 'routing = {routing_key = "cdc.{aggregate_type}"}\n'
    file = tmp_path / "routed.toml"
    file.write_text(f'{routing}[[source]]\nname = "shop"\ndsn = "{database.dsn}"\n\n{captures}', encoding="utf-8")
    outbox = "INSERT INTO relay.outbox (aggregate_type, aggregate_id, type, payload) VALUES ('order', '{}', '{}', '1')"
    async with mailbox(vhost.url) as box, configured_relay(file, vhost.user_url("relay")) as relay:
        await relay.until("streaming")
        source.run(
            outbox.format(1, "Created"),
            outbox.format(2, "Created"),
            outbox.format(1, "Special"),
            "INSERT INTO public.customers VALUES (1, 'ada')",
        )
        deliveries = await box.until_count(4)
    assert [delivery.routing_key for delivery in deliveries] == [
        "e.order.Created.1",
        "e.order.Created.2",
        "special",
        "cdc.public.customers",
    ]
