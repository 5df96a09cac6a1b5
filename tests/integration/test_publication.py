"""What is published, and what must not be: tables, their identities, and the two publications of a source."""

import json
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection

from relay.capture.change import Origin
from relay.capture.message import Message
from relay.capture.native import NativeWriter
from relay.capture.table import TableCapture
from relay.errors import ConfigError, SourceError
from relay.wal.catalog import load_types
from relay.wal.connection import connect
from relay.wal.lsn import Lsn, parse_lsn
from relay.wal.pgoutput import Begin, Delete, Insert, Relation, Truncate, Update, decode
from relay.wal.publication import (
    Changes,
    PublicationIncomplete,
    PublicationMissing,
    TableName,
    Wanted,
    ensure_publications,
    matching_tables,
    primary_keys,
    publication_names,
    read_publication,
    tables_publication,
    verify_exclusions,
    verify_identity,
)
from tests.support.database import Database

PUBLICATION = "relay_shop"
TABLES = "relay_shop_tables"
OUTBOX = TableName("relay", "outbox")
EVERY_CHANGE = {"insert", "update", "delete", "truncate"}


@pytest.fixture
async def connection(database: Database) -> AsyncIterator[AsyncConnection]:
    """The relay's own session: its role owns the database."""
    async with await connect(database.dsn, name="saga-relay test") as opened:
        await opened.execute("SET search_path = public")  # the schema of the role's own name would come first
        await opened.execute("CREATE SCHEMA sales")
        yield opened


async def make(connection: AsyncConnection, *statements: str) -> None:
    for statement in statements:
        await connection.execute(statement)  # type: ignore[arg-type]


def public(*names: str) -> frozenset[TableName]:
    return frozenset(TableName("public", name) for name in names)


class TestMatchingTables:
    async def test_a_table_is_named(self, connection: AsyncConnection) -> None:
        await make(connection, "CREATE TABLE customers (id int)", 'CREATE TABLE sales."Odd.Name" (id int)')
        found = await matching_tables(connection, ["public.customers", 'sales."Odd.Name"', "relay.outbox"])
        assert found == {*public("customers"), TableName("sales", "Odd.Name"), OUTBOX}

    async def test_all_of_a_schema_are_those_that_can_be_published(self, connection: AsyncConnection) -> None:
        await make(
            connection,
            "CREATE TABLE sales.orders (id int)",
            "CREATE TABLE sales.lines (id int) PARTITION BY RANGE (id)",
            "CREATE TABLE sales.lines_1 PARTITION OF sales.lines FOR VALUES FROM (1) TO (9)",
            "CREATE UNLOGGED TABLE sales.cache (id int)",
            "CREATE VIEW sales.report AS SELECT 1",
            "CREATE SEQUENCE sales.numbers",
        )
        found = await matching_tables(connection, ["sales.*"])
        assert found == {TableName("sales", "orders"), TableName("sales", "lines")}

    async def test_a_schema_may_be_empty(self, connection: AsyncConnection) -> None:
        assert await matching_tables(connection, ["sales.*"]) == set()

    async def test_the_tables_of_postgresql_are_nobodys(self, connection: AsyncConnection) -> None:
        assert await matching_tables(connection, ["pg_catalog.*", "information_schema.*"]) == set()

    async def test_all_that_is_wrong_is_told_by_name(self, database: Database, connection: AsyncConnection) -> None:
        database.query("CREATE EXTENSION postgres_fdw")
        database.query("CREATE SERVER elsewhere FOREIGN DATA WRAPPER postgres_fdw")
        database.query("CREATE FOREIGN TABLE far (id int) SERVER elsewhere")
        await make(
            connection,
            "CREATE TABLE sales.lines (id int) PARTITION BY RANGE (id)",
            "CREATE TABLE sales.half PARTITION OF sales.lines FOR VALUES FROM (1) TO (9) PARTITION BY RANGE (id)",
            "CREATE TABLE sales.lines_1 PARTITION OF sales.half FOR VALUES FROM (1) TO (5)",
            "CREATE UNLOGGED TABLE cache (id int)",
            "CREATE VIEW report AS SELECT 1",
            "CREATE TEMPORARY TABLE mine (id int)",
            'CREATE TABLE "Upper" (id int)',
        )
        schema = await (await connection.execute("SELECT pg_my_temp_schema()::regnamespace::text")).fetchone()
        assert schema is not None
        patterns = ["public.gone", "nowhere.*", "sales.lines_1", "public.cache", "public.report", "public.far"]
        patterns += [f"{schema[0]}.mine", "pg_catalog.pg_class", "public.Upper"]
        with pytest.raises(SourceError) as refused:
            await matching_tables(connection, patterns)
        assert str(refused.value).removeprefix("tables that cannot be captured: ").split("; ") == [
            "public.gone does not exist",
            "schema nowhere does not exist",
            "sales.lines_1 is a partition: capture sales.lines",
            "public.cache is unlogged, and its changes are in no WAL",
            "public.report is a view",
            "public.far is a foreign table",
            f"{schema[0]}.mine is temporary",
            "pg_catalog.pg_class is a table of PostgreSQL itself",
            "public.upper does not exist",
        ]
        assert "double quotes" in refused.value.hint

    async def test_what_is_no_pattern_is_a_wrong_setting(self, connection: AsyncConnection) -> None:
        with pytest.raises(ConfigError, match="customers"):
            await matching_tables(connection, ["customers"])


class TestIdentity:
    @pytest.mark.parametrize(
        "statements",
        [
            ["CREATE TABLE t (id int PRIMARY KEY)"],
            ["CREATE TABLE t (id int)", "ALTER TABLE t REPLICA IDENTITY FULL"],
            [
                "CREATE TABLE t (id int NOT NULL, b int)",
                "CREATE UNIQUE INDEX t_id ON t (id) INCLUDE (b)",
                "ALTER TABLE t REPLICA IDENTITY USING INDEX t_id",
            ],
            [
                "CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id)",
                "CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (1) TO (9)",
            ],
            [
                "CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id)",
                "CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (1) TO (9)",
                "ALTER TABLE t_1 REPLICA IDENTITY FULL",
            ],
            ["CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id)"],
        ],
        ids=["primary key", "full", "index", "partitions", "a partition that says more", "no partition"],
    )
    async def test_tables_that_say_which_row_changed_are_taken(
        self, connection: AsyncConnection, statements: list[str]
    ) -> None:
        await make(connection, *statements)
        await verify_identity(connection, public("t"))

    @pytest.mark.parametrize(
        ("statements", "what"),
        [
            (["CREATE TABLE t (id int)"], "public.t has no primary key"),
            (
                ["CREATE TABLE t (id int PRIMARY KEY DEFERRABLE)"],
                "public.t has a primary key that is deferrable",
            ),
            (
                ["CREATE TABLE t (id int PRIMARY KEY)", "ALTER TABLE t REPLICA IDENTITY NOTHING"],
                "public.t has REPLICA IDENTITY NOTHING",
            ),
            (
                [
                    "CREATE TABLE t (id int PRIMARY KEY, b int NOT NULL)",
                    "CREATE UNIQUE INDEX t_b ON t (b)",
                    "ALTER TABLE t REPLICA IDENTITY USING INDEX t_b",
                    "DROP INDEX t_b",
                ],
                "public.t has lost the index of its REPLICA IDENTITY",
            ),
            (
                [
                    "CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id)",
                    "CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (1) TO (9)",
                    "ALTER TABLE t REPLICA IDENTITY FULL",
                ],
                "public.t_1 has no REPLICA IDENTITY FULL, which public.t has",
            ),
            (
                [
                    "CREATE TABLE t (id int PRIMARY KEY, b int NOT NULL) PARTITION BY RANGE (id)",
                    "CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (1) TO (9)",
                    "CREATE UNIQUE INDEX t_1_b ON t_1 (b)",
                    "ALTER TABLE t_1 REPLICA IDENTITY USING INDEX t_1_b",
                ],
                "public.t_1 has a REPLICA IDENTITY of b, where public.t has one of id",
            ),
            (
                [
                    "CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id)",
                    "CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (1) TO (9) PARTITION BY RANGE (id)",
                    "CREATE TABLE t_2 PARTITION OF t_1 FOR VALUES FROM (1) TO (5)",
                    "ALTER TABLE t_2 REPLICA IDENTITY NOTHING",
                ],
                "public.t_2 has REPLICA IDENTITY NOTHING",
            ),
            (
                [
                    "CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id)",
                    "CREATE UNLOGGED TABLE t_1 PARTITION OF t FOR VALUES FROM (1) TO (9)",
                ],
                "public.t_1 is unlogged, and its changes are in no WAL",
            ),
        ],
    )
    async def test_those_that_do_not_are_refused(
        self, connection: AsyncConnection, statements: list[str], what: str
    ) -> None:
        await make(connection, *statements)
        with pytest.raises(SourceError) as refused:
            await verify_identity(connection, public("t"))
        assert str(refused.value) == f"tables that cannot be captured: {what}"
        assert "REPLICA IDENTITY FULL" in refused.value.hint

    async def test_all_of_them_are_named(self, connection: AsyncConnection) -> None:
        await make(
            connection, "CREATE TABLE a (id int)", "CREATE TABLE b (id int PRIMARY KEY)", "CREATE TABLE c (id int)"
        )
        with pytest.raises(SourceError, match=r"public\.a has no primary key; public\.c has no primary key") as refused:
            await verify_identity(connection, public("a", "b", "c"))
        assert 'ALTER TABLE "public"."a" REPLICA IDENTITY FULL' in refused.value.hint

    async def test_the_relays_own_tables_are_refused(self, connection: AsyncConnection) -> None:
        with pytest.raises(SourceError, match=r"relay\.checkpoint is the relay's own"):
            await verify_identity(connection, [TableName("relay", "checkpoint")])

    async def test_primary_keys_come_in_their_own_order(self, connection: AsyncConnection) -> None:
        await make(
            connection,
            "CREATE TABLE a (x int, y int, z int, PRIMARY KEY (y, x) INCLUDE (z))",
            "CREATE TABLE b (x int)",
        )
        cursor = await connection.execute("SELECT 'a'::regclass::oid::bigint, 'b'::regclass::oid::bigint")
        ((a, b),) = await cursor.fetchall()
        assert await primary_keys(connection, [a, b]) == {a: ("y", "x")}


class TestExclusions:
    async def test_columns_that_exist_are_fine(self, connection: AsyncConnection) -> None:
        await make(connection, "CREATE TABLE a (id int PRIMARY KEY, ssn text)", "CREATE TABLE b (id int PRIMARY KEY)")
        await verify_exclusions(connection, public("a", "b"), ["ssn", "public.a.ssn"])

    async def test_a_misspelt_one_would_publish_what_it_was_to_hide(self, connection: AsyncConnection) -> None:
        await make(connection, "CREATE TABLE a (id int PRIMARY KEY, ssn text)", "CREATE TABLE b (id int PRIMARY KEY)")
        with pytest.raises(ConfigError) as refused:
            await verify_exclusions(connection, public("a", "b"), ["snn", "public.b.ssn", "public.a.ssn", "a.b"])
        assert str(refused.value) == (
            "exclude_columns: 'a.b' is no column: write column, or schema.table.column;"
            " public.b.ssn is a column of no table that is captured; snn is a column of no table that is captured"
        )

    @pytest.mark.parametrize("identity", ["DEFAULT", "FULL"])
    async def test_a_column_of_the_key_is_refused(self, connection: AsyncConnection, identity: str) -> None:
        await make(connection, "CREATE TABLE a (id int PRIMARY KEY)", f"ALTER TABLE a REPLICA IDENTITY {identity}")
        with pytest.raises(ConfigError, match=r"id is in the key of public\.a"):
            await verify_exclusions(connection, public("a"), ["id"])


async def tables_of(connection: AsyncConnection, name: str) -> frozenset[TableName] | None:
    published = await read_publication(connection, name)
    return None if published is None else published.names


@pytest.fixture
async def shop(connection: AsyncConnection) -> AsyncConnection:
    await make(connection, "CREATE TABLE customers (id int PRIMARY KEY)", "CREATE TABLE orders (id int PRIMARY KEY)")
    return connection


WANTED = Wanted(frozenset({OUTBOX}), public("customers"))
KNOWN = WANTED.append_only | WANTED.changing


class TestPublications:
    async def test_there_are_none_at_first(self, shop: AsyncConnection) -> None:
        assert await read_publication(shop, PUBLICATION) is None

    async def test_the_first_start_creates_both(self, shop: AsyncConnection) -> None:
        changes = await ensure_publications(shop, PUBLICATION, WANTED, None)
        assert changes == Changes((PUBLICATION, TABLES), frozenset(KNOWN), frozenset())
        assert list(changes) == [
            f"created publication {PUBLICATION}",
            f"created publication {TABLES}",
            "published from now on: public.customers, relay.outbox",
        ]
        first, second = await read_publication(shop, PUBLICATION), await read_publication(shop, TABLES)
        assert first is not None
        assert second is not None
        assert (first.actions, first.names) == ({"insert"}, WANTED.append_only)
        assert (second.actions, second.names) == (EVERY_CHANGE, WANTED.changing)
        assert first.via_root is second.via_root is second.generated is True
        assert publication_names(PUBLICATION, WANTED) == (PUBLICATION, TABLES)

    async def test_the_second_is_there_before_it_is_needed(self, shop: AsyncConnection) -> None:
        wanted = Wanted(WANTED.append_only)
        await ensure_publications(shop, PUBLICATION, wanted, None)
        assert await tables_of(shop, TABLES) == frozenset()
        assert publication_names(PUBLICATION, wanted) == (PUBLICATION,)
        changes = await ensure_publications(shop, PUBLICATION, WANTED, WANTED.append_only)
        assert changes == Changes((), WANTED.changing, frozenset())

    async def test_a_second_start_changes_nothing(self, shop: AsyncConnection) -> None:
        await ensure_publications(shop, PUBLICATION, WANTED, None)
        changes = await ensure_publications(shop, PUBLICATION, WANTED, KNOWN)
        assert (changes, list(changes)) == (Changes(), [])

    async def test_what_is_new_is_added_and_what_is_not_wanted_dropped(self, shop: AsyncConnection) -> None:
        await ensure_publications(shop, PUBLICATION, WANTED, None)
        wanted = Wanted(WANTED.append_only, public("orders"))
        changes = await ensure_publications(shop, PUBLICATION, wanted, KNOWN)
        assert changes == Changes((), public("orders"), public("customers"))
        assert await tables_of(shop, TABLES) == public("orders")
        assert list(changes) == ["published from now on: public.orders", "published no longer: public.customers"]

    async def test_when_no_table_is_wanted_the_second_is_emptied(self, shop: AsyncConnection) -> None:
        await ensure_publications(shop, PUBLICATION, WANTED, None)
        changes = await ensure_publications(shop, PUBLICATION, Wanted(WANTED.append_only), KNOWN)
        assert changes.dropped == public("customers")
        assert await tables_of(shop, TABLES) == frozenset()

    async def test_somebody_elses_publication_of_that_name_is_left_alone(self, shop: AsyncConnection) -> None:
        await make(shop, f"CREATE PUBLICATION {TABLES} FOR TABLE customers")
        await ensure_publications(shop, PUBLICATION, Wanted(WANTED.append_only), None)
        assert await tables_of(shop, TABLES) == public("customers")

    async def test_the_applications_housekeeping_of_append_only_tables_still_works(self, shop: AsyncConnection) -> None:
        await make(shop, "CREATE TABLE events (id int)", "INSERT INTO events VALUES (1)")
        await ensure_publications(shop, PUBLICATION, Wanted(public("events"), public("customers")), None)
        await make(shop, "UPDATE events SET id = 2", "DELETE FROM events")

    async def test_a_stored_generated_column_does_not_stop_the_application(self, shop: AsyncConnection) -> None:
        await make(
            shop,
            "CREATE TABLE sums (a int, b int GENERATED ALWAYS AS (a * 2) STORED)",
            "ALTER TABLE sums REPLICA IDENTITY FULL",
            "INSERT INTO sums VALUES (1)",
        )
        await ensure_publications(shop, PUBLICATION, Wanted(WANTED.append_only, public("sums")), None)
        await make(shop, "UPDATE sums SET a = 2", "DELETE FROM sums")

    async def test_a_table_without_identity_does_not_enter(self, shop: AsyncConnection) -> None:
        await make(shop, "CREATE TABLE log (line text)", "INSERT INTO log VALUES ('a')")
        with pytest.raises(SourceError, match=r"public\.log has no primary key"):
            await ensure_publications(shop, PUBLICATION, Wanted(WANTED.append_only, public("log")), None)
        assert await read_publication(shop, TABLES) is None
        assert await read_publication(shop, PUBLICATION) is None
        await make(shop, "UPDATE log SET line = 'b'")

    async def test_odd_names_are_quoted(self, shop: AsyncConnection) -> None:
        odd = TableName("sales", 'Say "hi", now')
        await make(shop, 'CREATE TABLE sales."Say ""hi"", now" (id int PRIMARY KEY)')
        name = 'Odd "publication"'
        await ensure_publications(shop, name, Wanted(frozenset({OUTBOX}), frozenset({odd})), None)
        assert await tables_of(shop, tables_publication(name)) == {odd}


class TestHoles:
    """What may have let rows slip through stops the source, and is told."""

    @pytest.mark.parametrize("name", [PUBLICATION, TABLES])
    async def test_a_publication_that_was_there_and_is_gone(self, shop: AsyncConnection, name: str) -> None:
        await ensure_publications(shop, PUBLICATION, WANTED, None)
        await make(shop, f"DROP PUBLICATION {name}")
        with pytest.raises(PublicationMissing, match=f"publication {name} is gone"):
            await ensure_publications(shop, PUBLICATION, WANTED, KNOWN)
        assert await read_publication(shop, name) is None

    async def test_one_of_which_nothing_was_captured_yet_is_created(self, shop: AsyncConnection) -> None:
        await ensure_publications(shop, PUBLICATION, Wanted(WANTED.append_only), None)
        await make(shop, f"DROP PUBLICATION {TABLES}")
        changes = await ensure_publications(shop, PUBLICATION, WANTED, WANTED.append_only)
        assert changes.created == (TABLES,)

    async def test_a_table_that_was_in_it_and_is_not_any_more(self, shop: AsyncConnection) -> None:
        wanted = Wanted(WANTED.append_only, public("customers", "orders"))
        await ensure_publications(shop, PUBLICATION, wanted, None)
        await make(shop, "DROP TABLE orders", "CREATE TABLE orders (id int PRIMARY KEY)")
        with pytest.raises(PublicationIncomplete, match=r"does not contain the table public\.orders$") as refused:
            await ensure_publications(shop, PUBLICATION, wanted, wanted.append_only | wanted.changing)
        assert "docs/slot-loss.md" in refused.value.hint
        assert await tables_of(shop, TABLES) == public("customers")

    @pytest.mark.parametrize(
        ("statement", "what"),
        [
            (f"ALTER PUBLICATION {TABLES} SET (publish = 'insert, update')", "does not publish DELETEs, TRUNCATEs"),
            (
                f"ALTER PUBLICATION {PUBLICATION} SET (publish = 'insert, update')",
                "publishes UPDATEs, which it should not",
            ),
            (f"ALTER PUBLICATION {PUBLICATION} SET (publish = 'delete')", "does not publish INSERTs"),
            (f"ALTER PUBLICATION {TABLES} SET (publish_via_partition_root = false)", "under their own names"),
            (
                f"ALTER PUBLICATION {TABLES} SET TABLE customers WHERE (id > 1)",
                r"filters the rows of public\.customers",
            ),
            (f"ALTER PUBLICATION {TABLES} SET TABLE customers (id)", r"leaves out columns of public\.customers"),
        ],
    )
    async def test_a_publication_that_was_changed(self, shop: AsyncConnection, statement: str, what: str) -> None:
        await ensure_publications(shop, PUBLICATION, WANTED, None)
        await make(shop, statement)
        with pytest.raises(PublicationIncomplete, match=what):
            await ensure_publications(shop, PUBLICATION, WANTED, KNOWN)

    async def test_a_publication_without_generated_columns(self, shop: AsyncConnection) -> None:
        if shop.info.server_version < 180000:
            assert await read_publication(shop, PUBLICATION) is None  # there is no such setting to get wrong
            return
        await ensure_publications(shop, PUBLICATION, WANTED, None)
        await make(shop, f"ALTER PUBLICATION {TABLES} SET (publish_generated_columns = none)")
        with pytest.raises(PublicationIncomplete, match="leaves out generated columns"):
            await ensure_publications(shop, PUBLICATION, WANTED, KNOWN)

    @pytest.mark.parametrize(
        ("statement", "what"),
        [
            ("FOR ALL TABLES", "is FOR ALL TABLES"),
            ("FOR TABLES IN SCHEMA sales, public", "contains all tables of public, sales"),
        ],
    )
    async def test_a_publication_that_takes_more(
        self, database: Database, shop: AsyncConnection, statement: str, what: str
    ) -> None:
        database.query(
            f"CREATE PUBLICATION {PUBLICATION} {statement} WITH (publish = 'insert', publish_via_partition_root = true)"
        )
        with pytest.raises(PublicationIncomplete, match=what) as refused:
            await ensure_publications(shop, PUBLICATION, Wanted(WANTED.append_only), None)
        assert "publication of its own" in refused.value.hint

    async def test_all_mistakes_of_settings_come_with_the_statement_that_mends_them(
        self, shop: AsyncConnection
    ) -> None:
        await make(shop, f"CREATE PUBLICATION {PUBLICATION} FOR TABLE relay.outbox")
        with pytest.raises(PublicationIncomplete) as refused:
            await ensure_publications(shop, PUBLICATION, Wanted(WANTED.append_only), None)
        assert str(refused.value) == (
            f"publication {PUBLICATION} publishes UPDATEs, DELETEs, TRUNCATEs, which it should not;"
            " publishes partitions under their own names (publish_via_partition_root is off)"
        )
        statement = refused.value.hint.removeprefix("Run: ").partition(";")[0]
        await make(shop, statement)
        await ensure_publications(shop, PUBLICATION, Wanted(WANTED.append_only), None)


class TestRights:
    async def test_whoever_may_not_publish_a_table_is_told_what_its_owner_has_to_run(
        self, database: Database, shop: AsyncConnection
    ) -> None:
        database.query("ALTER TABLE orders OWNER TO orders")
        await ensure_publications(shop, PUBLICATION, WANTED, None)
        wanted = Wanted(WANTED.append_only, public("customers", "orders"))
        with pytest.raises(SourceError, match="must be owner of table orders") as refused:
            await ensure_publications(shop, PUBLICATION, wanted, KNOWN)
        assert f'ALTER PUBLICATION "{TABLES}" ADD TABLE "public"."orders"' in refused.value.hint
        database.query(refused.value.hint.partition(": ")[2])
        assert await ensure_publications(shop, PUBLICATION, wanted, KNOWN) == Changes()

    async def test_a_role_that_may_not_create_anything_works_with_what_is_there(self, database: Database) -> None:
        database.query("CREATE TABLE customers (id int PRIMARY KEY)")
        async with await connect(database.role_dsn("orders"), name="saga-relay test") as connection:
            for wanted in (Wanted(WANTED.append_only), WANTED):
                with pytest.raises(SourceError, match="role orders may not create publication") as refused:
                    await ensure_publications(connection, PUBLICATION, wanted, None)
                database.query(refused.value.hint.partition(": ")[2])
                if not wanted.changing:
                    assert await ensure_publications(connection, PUBLICATION, wanted, None) == Changes()
            assert await ensure_publications(connection, PUBLICATION, WANTED, None) == Changes()


class TestInTheStream:
    """The publications with a real slot, decoded and captured."""

    async def captured(
        self, database: Database, connection: AsyncConnection, *statements: str, tables: frozenset[TableName]
    ) -> list[Message]:
        """The messages of statements on published tables."""
        slot = f"slot_{database.name}"
        wanted = Wanted(WANTED.append_only, tables)
        await ensure_publications(connection, PUBLICATION, wanted, None)
        database.query("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", slot)
        await make(connection, *statements)
        rows = database.query(
            "SELECT lsn::text, data FROM pg_logical_slot_get_binary_changes"
            "(%s, NULL, NULL, 'proto_version', '1', 'publication_names', %s)",
            slot,
            ",".join(publication_names(PUBLICATION, wanted)),
        )
        return await self.messages(connection, [(parse_lsn(str(lsn)), bytes(data)) for lsn, data in rows], tables)  # type: ignore[arg-type]

    async def messages(
        self, connection: AsyncConnection, frames: list[tuple[Lsn, bytes]], tables: frozenset[TableName]
    ) -> list[Message]:
        capture = TableCapture("tables", (), NativeWriter())
        messages: list[Message] = []
        begin: Begin | None = None
        for lsn, data in frames:
            decoded = decode(data)
            if isinstance(decoded, Begin):
                begin = decoded
            elif isinstance(decoded, Relation) and TableName(decoded.namespace, decoded.name) in tables:
                types = await load_types(connection, [column.type_oid for column in decoded.columns])
                keys = await primary_keys(connection, [decoded.oid])
                capture.describe(decoded, types, keys.get(decoded.oid, ()))
            elif begin is not None and isinstance(decoded, Insert | Update | Delete | Truncate):
                origin = Origin("7412", begin.xid, begin.final_lsn, lsn, 0, begin.committed_at, None)
                if isinstance(decoded, Truncate):
                    for oid in decoded.relation_oids:
                        messages += capture.truncated(oid, origin)
                else:
                    messages += capture.messages(decoded, origin)
        return messages

    def said(self, messages: list[Message]) -> list[tuple[str, str, str, Any, Any]]:
        bodies = [json.loads(message.payload) for message in messages]
        return [
            (message.aggregate_type, message.type, message.aggregate_id, body["before"], body["after"])
            for message, body in zip(messages, bodies, strict=True)
        ]

    async def test_every_change_of_a_partitioned_table_comes_under_its_name(
        self, database: Database, connection: AsyncConnection
    ) -> None:
        await make(
            connection,
            "CREATE TABLE lines (id int PRIMARY KEY, n text) PARTITION BY RANGE (id)",
            "CREATE TABLE lines_1 PARTITION OF lines FOR VALUES FROM (1) TO (10)",
            "CREATE TABLE lines_2 (n text, gone int, id int NOT NULL)",
            "ALTER TABLE lines_2 DROP COLUMN gone",
            "ALTER TABLE lines ATTACH PARTITION lines_2 FOR VALUES FROM (10) TO (20)",
        )
        messages = await self.captured(
            database,
            connection,
            "INSERT INTO lines VALUES (1, 'a'), (11, 'b')",
            "UPDATE lines SET n = 'c' WHERE id = 11",
            "UPDATE lines SET id = 2 WHERE id = 1",
            "UPDATE lines SET id = 12 WHERE id = 2",
            "DELETE FROM lines WHERE id = 11",
            "TRUNCATE lines",
            tables=public("lines"),
        )
        assert self.said(messages) == [
            ("public.lines", "inserted", "1", None, {"id": 1, "n": "a"}),
            ("public.lines", "inserted", "11", None, {"id": 11, "n": "b"}),
            ("public.lines", "updated", "11", None, {"id": 11, "n": "c"}),
            ("public.lines", "deleted", "1", {"id": 1}, None),
            ("public.lines", "inserted", "2", None, {"id": 2, "n": "a"}),
            ("public.lines", "deleted", "2", {"id": 2}, None),
            ("public.lines", "inserted", "12", None, {"id": 12, "n": "a"}),
            ("public.lines", "deleted", "11", {"id": 11}, None),
            ("public.lines", "truncated", "", None, None),
        ]
        assert len({message.id for message in messages}) == len(messages)

    async def test_one_truncate_of_several_tables_is_a_message_each(
        self, database: Database, connection: AsyncConnection
    ) -> None:
        await make(
            connection, "CREATE TABLE a (id int PRIMARY KEY)", "CREATE TABLE b (id int PRIMARY KEY REFERENCES a)"
        )
        messages = await self.captured(database, connection, "TRUNCATE a CASCADE", tables=public("a", "b"))
        assert {message.aggregate_type for message in messages} == {"public.a", "public.b"}
        assert len({message.id for message in messages}) == 2

    async def test_a_full_identity_fills_in_what_was_not_sent(
        self, database: Database, connection: AsyncConnection
    ) -> None:
        await make(
            connection,
            "CREATE TABLE docs (id int PRIMARY KEY, title text, body text)",
            "ALTER TABLE docs ALTER body SET STORAGE EXTERNAL",
            "ALTER TABLE docs REPLICA IDENTITY FULL",
            "INSERT INTO docs VALUES (1, 'a', repeat('x', 9000))",
        )
        long = "x" * 9000
        messages = await self.captured(
            database, connection, "UPDATE docs SET title = 'b'", "UPDATE docs SET id = 2", tables=public("docs")
        )
        assert self.said(messages) == [
            (
                "public.docs",
                "updated",
                "1",
                {"id": 1, "title": "a", "body": long},
                {"id": 1, "title": "b", "body": long},
            ),
            ("public.docs", "deleted", "1", {"id": 1, "title": "b", "body": long}, None),
            ("public.docs", "inserted", "2", None, {"id": 2, "title": "b", "body": long}),
        ]

    async def test_a_large_key_that_kept_still_is_no_key_change(
        self, database: Database, connection: AsyncConnection
    ) -> None:
        await make(
            connection,
            "CREATE TABLE big (k text PRIMARY KEY, v int)",
            "ALTER TABLE big ALTER k SET STORAGE EXTERNAL",
            "INSERT INTO big VALUES (repeat('k', 2600), 1)",
        )
        messages = await self.captured(database, connection, "UPDATE big SET v = 2", tables=public("big"))
        key = "k" * 2600
        assert self.said(messages) == [("public.big", "updated", key, {"k": key}, {"k": key, "v": 2})]

    async def test_ddl_in_mid_stream_is_followed(self, database: Database, connection: AsyncConnection) -> None:
        await make(connection, "CREATE TABLE t (id int PRIMARY KEY, a int)")
        messages = await self.captured(
            database,
            connection,
            "INSERT INTO t VALUES (1, 1)",
            "ALTER TABLE t ADD COLUMN b text",
            "INSERT INTO t VALUES (2, 2, 'x')",
            "ALTER TABLE t DROP COLUMN a",
            "ALTER TABLE t RENAME COLUMN b TO c",
            "INSERT INTO t VALUES (3, 'y')",
            "ALTER TABLE t ALTER COLUMN c TYPE int USING 7",
            "INSERT INTO t VALUES (4, 8)",
            tables=public("t"),
        )
        assert [json.loads(message.payload)["after"] for message in messages] == [
            {"id": 1, "a": 1},
            {"id": 2, "a": 2, "b": "x"},
            {"id": 3, "c": "y"},
            {"id": 4, "c": 8},
        ]

    async def test_a_table_that_loses_its_key_can_still_be_inserted_into(
        self, database: Database, connection: AsyncConnection
    ) -> None:
        await make(connection, "CREATE TABLE t (id int PRIMARY KEY)")
        messages = await self.captured(
            database,
            connection,
            "INSERT INTO t VALUES (1)",
            "ALTER TABLE t DROP CONSTRAINT t_pkey",
            "INSERT INTO t VALUES (2)",
            tables=public("t"),
        )
        assert [(message.type, message.aggregate_id) for message in messages] == [("inserted", "1"), ("inserted", "")]
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
            await connection.execute("DELETE FROM t")
