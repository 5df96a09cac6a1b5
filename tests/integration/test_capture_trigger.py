"""Trigger capture: a change of a captured table is a message of the outbox, in the same transaction."""

import json

import psycopg
import pytest

from tests.support.database import Database

CUSTOMERS = "CREATE TABLE public.customers (id int PRIMARY KEY, name text, password text)"
VIRTUAL_COLUMNS_SINCE = 180000
"""The version of PostgreSQL."""


class Shop:
    """A database in which `orders` has tables, and `customers` writes to them without any right of the relay's."""

    def __init__(self, database: Database) -> None:
        self.database = database
        database.query("GRANT CREATE, USAGE ON SCHEMA public TO orders")
        database.query("GRANT USAGE ON SCHEMA public TO customers")
        for kind in ("TABLES", "FUNCTIONS"):
            database.query(f"REVOKE ALL ON ALL {kind} IN SCHEMA relay FROM customers")
        database.query("REVOKE ALL ON SCHEMA relay FROM customers")

    def own(self, *statements: str) -> list[tuple[object, ...]]:
        """As the owner of the tables, in one transaction."""
        return self._execute("orders", statements)

    def write(self, *statements: str) -> list[tuple[object, ...]]:
        """As somebody who may write to the tables, and nothing else, in one transaction."""
        self.own("GRANT ALL ON ALL TABLES IN SCHEMA public TO customers")
        return self.guest(*statements)

    def guest(self, *statements: str) -> list[tuple[object, ...]]:
        """As somebody who has no more rights than were given before, in one transaction."""
        return self._execute("customers", statements)

    def _execute(self, role: str, statements: tuple[str, ...]) -> list[tuple[object, ...]]:
        with psycopg.connect(self.database.role_dsn(role)) as conn:
            for statement in statements:
                cursor = conn.execute(statement)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []

    def messages(self) -> list[tuple[str, str, dict[str, object]]]:
        """What was sent, and forget it: aggregate id, type, payload."""
        rows = self.database.query("SELECT aggregate_id, type, payload FROM relay.outbox ORDER BY seq")
        self.database.query("TRUNCATE relay.outbox")
        return rows  # type: ignore[return-value]

    def said(self) -> list[tuple[str, str]]:
        """Aggregate ids and types alone."""
        return [message[:2] for message in self.messages()]

    def after(self) -> dict[str, object]:
        """The row after the one change that was sent."""
        ((_, _, payload),) = self.messages()
        return payload["after"]  # type: ignore[return-value]


@pytest.fixture
def shop(database: Database) -> Shop:
    return Shop(database)


@pytest.fixture
def customers(shop: Shop) -> Shop:
    """With a captured table."""
    shop.own(CUSTOMERS, "SELECT relay.capture_table('public.customers')")
    return shop


def row(number: int, name: str | None = None, password: str | None = None) -> dict[str, object]:
    return {"id": number, "name": name, "password": password}


class TestEveryChange:
    def test_an_insert(self, customers: Shop) -> None:
        customers.write("INSERT INTO customers VALUES (1, 'Ann')")
        assert customers.messages() == [
            ("1", "inserted", {"op": "insert", "before": None, "after": row(1, "Ann")}),
        ]

    def test_an_update(self, customers: Shop) -> None:
        customers.write("INSERT INTO customers VALUES (1, 'Ann')", "UPDATE customers SET name = 'Bob'")
        assert customers.messages()[1:] == [
            ("1", "updated", {"op": "update", "before": row(1, "Ann"), "after": row(1, "Bob")}),
        ]

    def test_a_delete(self, customers: Shop) -> None:
        customers.write("INSERT INTO customers VALUES (1, 'Ann')", "DELETE FROM customers")
        assert customers.messages()[1:] == [
            ("1", "deleted", {"op": "delete", "before": row(1, "Ann"), "after": None}),
        ]

    def test_a_truncation(self, customers: Shop) -> None:
        customers.write("INSERT INTO customers VALUES (1, 'Ann')", "TRUNCATE customers")
        assert customers.messages()[1:] == [
            ("", "truncated", {"op": "truncate", "before": None, "after": None}),
        ]

    def test_a_change_of_the_key_is_two(self, customers: Shop) -> None:
        customers.write("INSERT INTO customers VALUES (1, 'Ann')", "UPDATE customers SET id = 2")
        assert customers.messages()[1:] == [
            ("1", "deleted", {"op": "delete", "before": row(1, "Ann"), "after": None}),
            ("2", "inserted", {"op": "insert", "before": None, "after": row(2, "Ann")}),
        ]

    def test_every_row_of_a_statement_in_its_order(self, customers: Shop) -> None:
        customers.write("INSERT INTO customers SELECT n FROM generate_series(1, 50) AS n")
        assert customers.said() == [(str(number), "inserted") for number in range(1, 51)]

    def test_a_copy(self, customers: Shop) -> None:
        customers.write("SELECT")  # for the right to write
        with (
            psycopg.connect(customers.database.role_dsn("customers")) as conn,
            conn.cursor().copy("COPY customers FROM STDIN") as copy,
        ):
            copy.write_row((1, "Ann", None))
            copy.write_row((2, "Bob", None))
        assert customers.said() == [("1", "inserted"), ("2", "inserted")]

    def test_an_upsert_is_what_it_did(self, customers: Shop) -> None:
        upsert = "INSERT INTO customers VALUES (1, '{}') ON CONFLICT (id) DO UPDATE SET name = EXCLUDED.name"
        customers.write(upsert.format("Ann"), upsert.format("Bob"))
        assert customers.said() == [("1", "inserted"), ("1", "updated")]

    def test_an_update_that_changes_nothing_says_nothing(self, customers: Shop) -> None:
        customers.write("INSERT INTO customers VALUES (1, 'Ann')", "UPDATE customers SET name = 'Ann'")
        assert customers.said() == [("1", "inserted")]

    def test_what_a_foreign_key_brings_about_comes_after_its_cause(self, customers: Shop) -> None:
        customers.own(
            "CREATE TABLE addresses (id int PRIMARY KEY, customer int REFERENCES customers ON DELETE CASCADE)",
            "SELECT relay.capture_table('addresses', aggregate_type => 'address')",
            "INSERT INTO customers VALUES (1)",
            "INSERT INTO addresses VALUES (7, 1)",
        )
        customers.messages()
        customers.write("DELETE FROM customers")
        assert customers.said() == [("1", "deleted"), ("7", "deleted")]

    def test_what_a_trigger_of_the_application_brings_about_comes_after_its_cause(self, customers: Shop) -> None:
        customers.own(
            "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN UPDATE customers SET name = 'touched' WHERE id = NEW.id; RETURN NULL; END $$",
            "CREATE TRIGGER a_touch AFTER INSERT ON customers FOR EACH ROW EXECUTE FUNCTION touch()",
        )
        customers.write("INSERT INTO customers VALUES (1, 'Ann')")
        assert customers.said() == [("1", "inserted"), ("1", "updated")]


class TestOneTransaction:
    def test_what_is_rolled_back_is_not_sent(self, customers: Shop) -> None:
        with psycopg.connect(customers.database.role_dsn("orders")) as conn:
            conn.execute("INSERT INTO customers VALUES (1)")
            conn.rollback()
        assert customers.messages() == []

    def test_what_a_savepoint_takes_back_is_not_sent(self, customers: Shop) -> None:
        customers.write(
            "INSERT INTO customers VALUES (1)",
            "SAVEPOINT before",
            "INSERT INTO customers VALUES (2)",
            "ROLLBACK TO SAVEPOINT before",
            "INSERT INTO customers VALUES (3)",
        )
        assert customers.said() == [("1", "inserted"), ("3", "inserted")]

    def test_the_message_has_the_transaction_of_the_change(self, customers: Shop) -> None:
        customers.write("INSERT INTO customers VALUES (1)")
        same = "SELECT o.txid::xid = c.xmin FROM relay.outbox AS o, customers AS c"
        assert customers.database.value(same) is True


class TestRights:
    def test_who_writes_needs_no_right_on_the_outbox(self, customers: Shop) -> None:
        assert customers.database.value("SELECT has_schema_privilege('customers', 'relay', 'USAGE')") is False
        assert customers.database.value("SELECT has_table_privilege('customers', 'relay.outbox', 'INSERT')") is False
        customers.write("INSERT INTO customers VALUES (1)", "TRUNCATE customers")
        assert customers.said() == [("1", "inserted"), ("", "truncated")]

    @pytest.mark.parametrize(
        "statement",
        [
            "SELECT relay.capture_table('own')",
            "CREATE TRIGGER t AFTER INSERT ON own FOR EACH ROW EXECUTE FUNCTION relay.capture_row('a', '{id}', '{}')",
            "CREATE TRIGGER t AFTER TRUNCATE ON own EXECUTE FUNCTION relay.capture_truncate('a')",
            "SELECT relay.send_capture('order', '7', 'inserted', 'insert', 'null', 'null')",
        ],
    )
    def test_who_may_not_write_messages_cannot_have_a_trigger_do_it(self, shop: Shop, statement: str) -> None:
        shop.database.query("GRANT CREATE ON SCHEMA public TO customers")
        shop.database.query("GRANT USAGE ON SCHEMA relay TO customers")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied for function"):
            shop.guest("CREATE TABLE own (id int PRIMARY KEY)", statement)

    def test_a_service_cannot_capture_the_table_of_somebody_else(self, shop: Shop) -> None:
        shop.database.query("CREATE TABLE public.foreign_one (id int PRIMARY KEY)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied for table foreign_one"):
            shop.own("SELECT relay.capture_table('public.foreign_one')")

    @pytest.mark.parametrize("column", ["money_type", "money_type[]", "wallet", "pocket"])
    def test_nobody_s_code_runs_with_the_rights_of_the_capture(self, customers: Shop, column: str) -> None:
        customers.own(
            "CREATE TYPE money_type AS (amount int)",
            "CREATE TYPE wallet AS (name text, content money_type)",
            "CREATE DOMAIN pocket AS money_type",
            f"ALTER TABLE customers ADD purse {column}",
            "CREATE FUNCTION steal(money_type) RETURNS json LANGUAGE sql AS $$ SELECT to_json(current_user::text) $$",
        )
        customers.write("INSERT INTO customers VALUES (1)")
        assert customers.after()["purse"] is None

        customers.own("CREATE CAST (money_type AS json) WITH FUNCTION steal(money_type)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match=r"public\.money_type has a cast to json"):
            customers.write("INSERT INTO customers VALUES (2)")
        with pytest.raises(psycopg.errors.InvalidParameterValue, match=r"public\.money_type, whose cast to json"):
            customers.own("SELECT relay.capture_table('customers')")
        assert customers.messages() == []

    def test_a_cast_that_does_not_concern_the_table_does_not_concern_its_capture(self, customers: Shop) -> None:
        customers.own(
            "CREATE TYPE money_type AS (amount int)",
            "CREATE TYPE mood AS ENUM ('fine')",
            "CREATE FUNCTION steal(money_type) RETURNS json LANGUAGE sql AS $$ SELECT to_json(1) $$",
            "CREATE CAST (money_type AS json) WITH FUNCTION steal(money_type)",
            "ALTER TABLE customers ADD mood mood",
        )
        customers.write("INSERT INTO customers VALUES (1, 'Ann', NULL, 'fine')")
        assert customers.after()["mood"] == "fine"

    def test_the_cast_of_an_extension_is_trusted(self, customers: Shop) -> None:
        customers.database.query("CREATE EXTENSION hstore SCHEMA public")
        customers.own("ALTER TABLE customers ADD extra hstore")
        customers.write("INSERT INTO customers VALUES (1, 'Ann', NULL, 'a=>1')")
        assert customers.after()["extra"] == {"a": "1"}

    def test_a_search_path_leads_nowhere(self, customers: Shop) -> None:
        customers.database.query("GRANT CREATE ON SCHEMA public TO customers")
        customers.write(
            "CREATE FUNCTION public.to_json(customers) RETURNS json LANGUAGE sql AS $$ SELECT '1'::json $$",
            "CREATE FUNCTION public.concat(text, text) RETURNS text LANGUAGE sql AS $$ SELECT 'x' $$",
            "SET search_path = public, pg_catalog",
            "INSERT INTO customers VALUES (1, 'Ann')",
        )
        assert customers.after() == row(1, "Ann")


class TestOptions:
    def test_the_aggregate_type_is_the_table_unless_it_is_given(self, shop: Shop) -> None:
        shop.own(CUSTOMERS, "SELECT relay.capture_table('customers')")
        shop.write("INSERT INTO customers VALUES (1)", "TRUNCATE customers")
        shop.own("SELECT relay.capture_table('customers', aggregate_type => 'customer')")
        shop.write("INSERT INTO customers VALUES (2)", "TRUNCATE customers")
        types = [name for (name,) in shop.database.query("SELECT aggregate_type FROM relay.outbox ORDER BY seq")]
        assert types == ["public.customers"] * 2 + ["customer"] * 2

    def test_messages_are_events(self, customers: Shop) -> None:
        customers.write("INSERT INTO customers VALUES (1)")
        assert customers.database.query("SELECT kind, destination, headers::text FROM relay.outbox") == [
            ("event", None, "{}")
        ]

    def test_columns_that_are_left_out_never_show(self, shop: Shop) -> None:
        shop.own(CUSTOMERS, "SELECT relay.capture_table('customers', exclude => ARRAY['password'])")
        shop.write(
            "INSERT INTO customers VALUES (1, 'Ann', 'secret')",
            "UPDATE customers SET name = 'Bob', password = 'secret, too'",
            "UPDATE customers SET id = 2",
            "DELETE FROM customers",
        )
        said = shop.messages()
        assert [kind for _, kind, _ in said] == ["inserted", "updated", "deleted", "inserted", "deleted"]
        assert "password" not in json.dumps(said)
        assert "secret" not in json.dumps(said)

    def test_a_change_of_what_is_left_out_alone_says_nothing(self, shop: Shop) -> None:
        shop.own(CUSTOMERS, "SELECT relay.capture_table('customers', exclude => ARRAY['password'])")
        shop.write("INSERT INTO customers VALUES (1, 'Ann', 'secret')", "UPDATE customers SET password = 'other'")
        assert shop.said() == [("1", "inserted")]

    def test_a_key_of_several_columns(self, shop: Shop) -> None:
        shop.own(
            "CREATE TABLE lines (line int, id text, PRIMARY KEY (id, line))", "SELECT relay.capture_table('lines')"
        )
        shop.write("INSERT INTO lines VALUES (1, 'a/b'), (2, '50%'), (3, '')")
        assert [name for name, _ in shop.said()] == ["1/a%2Fb", "2/50%25", "3/"]

    def test_a_key_of_one_column_stays_as_it_is(self, shop: Shop) -> None:
        shop.own("CREATE TABLE paths (path text PRIMARY KEY)", "SELECT relay.capture_table('paths')")
        shop.write("INSERT INTO paths VALUES ('a/50%')")
        assert shop.said() == [("a/50%", "inserted")]

    def test_a_key_that_is_given_stands_in_its_own_order(self, shop: Shop) -> None:
        shop.own(
            "CREATE TABLE visits (place text, guest int)",
            "SELECT relay.capture_table('visits', key => ARRAY['guest', 'place'])",
        )
        shop.write("INSERT INTO visits VALUES ('here', 1), (NULL, 2)", "UPDATE visits SET place = 'x' WHERE guest = 1")
        assert shop.said() == [("1/here", "inserted"), ("2/", "inserted"), ("1/here", "deleted"), ("1/x", "inserted")]

    def test_columns_that_an_index_merely_includes_are_no_key(self, shop: Shop) -> None:
        shop.own(
            "CREATE TABLE wide (note text, id int, PRIMARY KEY (id) INCLUDE (note))",
            "SELECT relay.capture_table('wide')",
        )
        shop.write("INSERT INTO wide VALUES ('a', 1)", "UPDATE wide SET note = 'b'")
        assert shop.said() == [("1", "inserted"), ("1", "updated")]

    def test_the_key_reads_as_postgresql_prints_it(self, shop: Shop) -> None:
        shop.own(
            "CREATE TABLE slots (at timestamptz, free bool, size numeric, raw bytea,"
            " PRIMARY KEY (at, free, size, raw))",
            "SELECT relay.capture_table('slots')",
        )
        shop.write(
            "SET timezone = 'Asia/Tokyo'",
            r"INSERT INTO slots VALUES ('2024-02-29 12:00:00.5+02', true, 1.50, '\xff')",
        )
        assert shop.said() == [(r"2024-02-29 10:00:00.5+00/t/1.50/\xff", "inserted")]

    def test_names_may_be_odd(self, shop: Shop) -> None:
        shop.own(
            """CREATE TABLE "T.a'b" ("I d" int PRIMARY KEY, "pa""ss,{x}" text, "keep\\" text)""",
            """SELECT relay.capture_table('"T.a''b"', exclude => ARRAY['pa"ss,{x}'])""",
        )
        shop.write("""INSERT INTO "T.a'b" VALUES (1, 'secret', 'kept')""")
        assert shop.database.value("SELECT aggregate_type FROM relay.outbox") == "public.T.a'b"
        assert shop.messages() == [
            ("1", "inserted", {"op": "insert", "before": None, "after": {"I d": 1, "keep\\": "kept"}})
        ]

    def test_a_capture_that_is_repeated_is_replaced(self, customers: Shop) -> None:
        customers.own(
            "SELECT relay.capture_table('customers', key => ARRAY['name'])", "SELECT relay.capture_table('customers')"
        )
        customers.write("INSERT INTO customers VALUES (1, 'Ann')")
        assert customers.said() == [("1", "inserted")]

    def test_a_table_that_is_released_is_captured_no_longer(self, customers: Shop) -> None:
        assert customers.own("SELECT relay.release_table('customers')") == [(True,)]
        assert customers.own("SELECT relay.release_table('customers')") == [(False,)]
        customers.write("INSERT INTO customers VALUES (1)", "TRUNCATE customers")
        assert customers.messages() == []

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            ("'relay.outbox'", "relay.outbox is one of the relay's own tables"),
            ("'relay.inbox', key => ARRAY['consumer']", "relay.inbox is one of the relay's own tables"),
            ("'seen'", "public.seen is not a table"),
            ("NULL", "is not a table"),
            ("'passing'", "passing is a temporary table"),
            ("'y2026'", "public.y2026 is a partition: capture public.years"),
            ("'keyless'", "public.keyless has no primary key: say what tells its rows apart, key =>"),
            ("'keyless', key => ARRAY[]::text[]", "public.keyless cannot be captured with an empty key"),
            ("'customers', key => ARRAY['id', 'nome']", "public.customers has no column nome"),
            ("'customers', key => ARRAY['id', NULL]", "public.customers has no column null"),
            ("'customers', key => ARRAY['ctid']", "public.customers has no column ctid"),
            ("'customers', exclude => ARRAY['passwort']", "public.customers has no column passwort"),
            ("'customers', exclude => ARRAY['id']", "cannot be captured without a column of its key"),
            ("'customers', key => ARRAY['id', 'id']", "a column that is named twice"),
            ("'customers', key => ARRAY['name'], exclude => ARRAY['name']", "a column that is named twice"),
        ],
    )
    def test_what_cannot_be_captured_is_refused(self, shop: Shop, arguments: str, reason: str) -> None:
        shop.database.query("GRANT TEMPORARY ON DATABASE " + shop.database.name + " TO orders")
        with pytest.raises(psycopg.errors.InvalidParameterValue) as refused:
            shop.own(
                CUSTOMERS,
                "CREATE TABLE keyless (a int)",
                "CREATE VIEW seen AS SELECT 1 AS one",
                "CREATE TEMPORARY TABLE passing (id int PRIMARY KEY)",
                "CREATE TABLE years (id int PRIMARY KEY) PARTITION BY RANGE (id)",
                "CREATE TABLE y2026 PARTITION OF years DEFAULT",
                f"SELECT relay.capture_table({arguments})",
            )
        assert reason in str(refused.value)


class TestValues:
    @pytest.mark.parametrize(
        ("column", "value", "text"),
        [
            ("bigint", "9007199254740993", "9007199254740993"),
            ("numeric", "12345678901234567890.12345678901234567890", "12345678901234567890.12345678901234567890"),
            ("numeric(10,2)", "1", "1.00"),
            ("numeric", "NaN", '"NaN"'),
            ("float8", "-Infinity", '"-Infinity"'),
            ("float8", "0.1", "0.1"),
            ("bool", "yes", "true"),
            ("bytea", r"\xdeadbeef", r'"\\xdeadbeef"'),
            ("timestamptz", "2024-02-29 12:00:00.123456+02", '"2024-02-29T10:00:00.123456+00:00"'),
            ("timestamptz", "infinity", '"infinity"'),
            ("timestamp", "2024-02-29 12:00", '"2024-02-29T12:00:00"'),
            ("date", "2024-02-29", '"2024-02-29"'),
            ("interval", "1 day 02:00", '"P1DT2H"'),
            ("json", '{"a" : 1.0, "a": [\n]}', '{"a" : 1.0, "a": [\n]}'),
            ("json", r'"\u0000"', r'"\u0000"'),
            ("jsonb", '{"a" : 1.0}', '{"a": 1.0}'),
            ("int[]", "{{1,2},{NULL,3}}", "[[1,2],[null,3]]"),
            ("daterange", "[2024-01-01,2024-02-01)", '"[2024-01-01,2024-02-01)"'),
            ("uuid", "01a2057a-f347-7c3f-82ba-70ab9fdefeaa", '"01a2057a-f347-7c3f-82ba-70ab9fdefeaa"'),
        ],
    )
    @pytest.mark.parametrize("exclude", ["", ", exclude => ARRAY['other']"], ids=["whole", "in part"])
    def test_they_are_postgresql_s_own_json_whatever_the_session_prints(
        self, shop: Shop, column: str, value: str, text: str, exclude: str
    ) -> None:
        shop.own(
            f"CREATE TABLE one (id int PRIMARY KEY, v {column}, other int)",
            f"SELECT relay.capture_table('one'{exclude})",
        )
        shop.write(
            "SET timezone = 'Asia/Tokyo'",
            "SET datestyle = 'German, DMY'",
            "SET extra_float_digits = -5",
            "SET bytea_output = 'escape'",
            f"INSERT INTO one VALUES (1, $v${value}$v$, 2)",
        )
        other = "" if exclude else ',"other":2'
        expected = f'{{"op":"insert","before":null,"after":{{"id":1,"v":{text}{other}}}}}'
        assert shop.database.value("SELECT payload::text FROM relay.outbox") == expected

    def test_a_generated_column_is_there_with_its_value_or_not_at_all(self, shop: Shop) -> None:
        has_virtual = shop.database.connection.info.server_version >= VIRTUAL_COLUMNS_SINCE
        shop.own(
            "CREATE TABLE sums (id int PRIMARY KEY, stored int GENERATED ALWAYS AS (id + 1) STORED,"
            f" other int GENERATED ALWAYS AS (id + 2) {'VIRTUAL' if has_virtual else 'STORED'})",
            "SELECT relay.capture_table('sums')",
        )
        shop.write("INSERT INTO sums VALUES (1)")
        assert shop.after() == {"id": 1, "stored": 2, **({} if has_virtual else {"other": 3})}


class TestPartitions:
    @pytest.fixture
    def orders(self, shop: Shop) -> Shop:
        """A table of two partitions, the second with its columns in another order."""
        shop.own(
            "CREATE TABLE orders (region text, id int, note text, PRIMARY KEY (id, region)) PARTITION BY LIST (region)",
            "CREATE TABLE orders_north PARTITION OF orders FOR VALUES IN ('north')",
            "CREATE TABLE orders_south (note text, id int NOT NULL, gone int, region text NOT NULL)",
            "ALTER TABLE orders_south DROP gone",
            "ALTER TABLE orders ATTACH PARTITION orders_south FOR VALUES IN ('south')",
            "SELECT relay.capture_table('orders', exclude => ARRAY['note'])",
        )
        return shop

    def test_their_rows_come_under_the_name_and_the_key_of_the_root(self, orders: Shop) -> None:
        orders.write("INSERT INTO orders VALUES ('north', 1, 'x')", "INSERT INTO orders_south VALUES ('x', 2, 'south')")
        names = orders.database.query("SELECT DISTINCT aggregate_type FROM relay.outbox")
        assert names == [("public.orders",)]
        assert orders.messages() == [
            ("north/1", "inserted", {"op": "insert", "before": None, "after": {"region": "north", "id": 1}}),
            ("south/2", "inserted", {"op": "insert", "before": None, "after": {"region": "south", "id": 2}}),
        ]

    def test_a_row_that_moves_is_another_row(self, orders: Shop) -> None:
        orders.write("INSERT INTO orders VALUES ('north', 1)", "UPDATE orders SET region = 'south'")
        assert orders.said()[1:] == [("north/1", "deleted"), ("south/1", "inserted")]

    def test_a_partition_that_comes_later_is_captured_too(self, orders: Shop) -> None:
        orders.own("CREATE TABLE orders_rest PARTITION OF orders DEFAULT")
        orders.write("INSERT INTO orders VALUES ('west', 1)", "TRUNCATE orders")
        assert orders.said() == [("west/1", "inserted"), ("", "truncated")]

    def test_the_release_is_that_of_the_partitions_too(self, orders: Shop) -> None:
        assert orders.own("SELECT relay.release_table('orders')") == [(True,)]
        orders.write("INSERT INTO orders VALUES ('north', 1)")
        assert orders.messages() == []


class TestLaterChangesOfTheTable:
    def test_columns_come_and_go(self, customers: Shop) -> None:
        customers.own("ALTER TABLE customers ADD age int", "ALTER TABLE customers DROP name")
        customers.write("INSERT INTO customers (id, age) VALUES (1, 49)")
        assert customers.after() == {"id": 1, "password": None, "age": 49}

    def test_a_primary_key_is_followed_under_another_name(self, customers: Shop) -> None:
        customers.own("ALTER TABLE customers RENAME id TO number")
        customers.write("INSERT INTO customers VALUES (1)")
        assert customers.said() == [("1", "inserted")]

    def test_what_is_left_out_does_not_come_back_under_another_name(self, customers: Shop) -> None:
        customers.own(
            "SELECT relay.capture_table('customers', exclude => ARRAY['password'])",
            "ALTER TABLE customers RENAME password TO secret",
        )
        with pytest.raises(
            psycopg.errors.UndefinedColumn, match=r"public\.customers no longer has a column"
        ) as refused:
            customers.write("INSERT INTO customers VALUES (1, 'Ann', 'x')")
        assert "{password}" in (refused.value.diag.message_hint or "")

        customers.own("SELECT relay.capture_table('customers', exclude => ARRAY['secret'])")
        customers.write("INSERT INTO customers VALUES (1, 'Ann', 'x')")
        assert customers.after() == {"id": 1, "name": "Ann"}

    def test_without_the_key_nothing_is_written(self, customers: Shop) -> None:
        customers.own("ALTER TABLE customers DROP CONSTRAINT customers_pkey")
        with pytest.raises(psycopg.errors.UndefinedColumn, match=r"public\.customers no longer has the primary key"):
            customers.write("INSERT INTO customers VALUES (1)")

        customers.own("SELECT relay.capture_table('customers', key => ARRAY['name'])")
        customers.own("ALTER TABLE customers DROP name")
        with pytest.raises(psycopg.errors.UndefinedColumn, match=r"public\.customers no longer has a column"):
            customers.write("INSERT INTO customers VALUES (1)")
        assert customers.messages() == []

    def test_the_aggregate_type_stays_when_the_table_is_renamed(self, customers: Shop) -> None:
        customers.own("ALTER TABLE customers RENAME TO clients")
        customers.write("INSERT INTO clients VALUES (1)")
        assert customers.database.value("SELECT aggregate_type FROM relay.outbox") == "public.customers"
