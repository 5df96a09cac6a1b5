"""What the stack needs of its PostgreSQL: made once, brought up to date, with passwords that may change."""

from collections.abc import Iterator

import psycopg
import pytest

from relay.demo.access import RELAY, SERVICES, create_role
from relay.demo.provision import provision
from relay.demo.servers.postgres import PrivatePostgres

Applied = dict[str, list[str]]

PASSWORDS = {role: f"{role}-at-first" for role in (RELAY, *SERVICES)}


@pytest.fixture(scope="module")
def server() -> Iterator[PrivatePostgres]:
    """One of our own: the roles have fixed names."""
    with PrivatePostgres(durable=False) as server:
        yield server


@pytest.fixture(scope="module")
def applied_first(server: PrivatePostgres) -> Applied:
    """What the first time has applied."""
    return provision(server.dsn("postgres"), PASSWORDS)


@pytest.fixture
def provisioned(server: PrivatePostgres, applied_first: Applied) -> PrivatePostgres:
    """With the passwords above, whatever a test before has made of it."""
    provision(server.dsn("postgres"), PASSWORDS)
    return server


def connects(server: PrivatePostgres, database: str, role: str, password: str) -> bool:
    try:
        psycopg.connect(server.dsn(database, role, password)).close()
    except psycopg.OperationalError:
        return False
    return True


def test_it_can_be_repeated(provisioned: PrivatePostgres, applied_first: Applied) -> None:
    assert set(applied_first) == set(SERVICES)
    assert applied_first["orders"][0] == "relay/0001_messages.sql"
    assert applied_first["orders"][-1].startswith("orders/")
    assert not any(provision(provisioned.dsn("postgres"), PASSWORDS).values())


def test_a_service_gets_into_its_own_database_alone_and_the_relay_into_all(provisioned: PrivatePostgres) -> None:
    for database in SERVICES:
        guests = [role for role, password in PASSWORDS.items() if connects(provisioned, database, role, password)]
        assert sorted(guests) == sorted([RELAY, database])


def test_a_server_that_logs_what_it_is_told_logs_no_password(provisioned: PrivatePostgres) -> None:
    logged: list[str] = []
    with psycopg.connect(provisioned.dsn("postgres"), autocommit=True) as connection:
        connection.add_notice_handler(lambda said: logged.append(str(said.message_primary)))
        connection.execute("SET log_statement = 'all'")
        connection.execute("SET client_min_messages = 'log'")
        create_role(connection, RELAY, PASSWORDS[RELAY], "LOGIN REPLICATION")

    assert [line for line in logged if "ALTER ROLE" in line]
    assert not [line for line in logged if PASSWORDS[RELAY] in line]
    assert connects(provisioned, "orders", RELAY, PASSWORDS[RELAY])


def test_a_service_may_use_its_tables_and_own_none(provisioned: PrivatePostgres) -> None:
    with psycopg.connect(provisioned.dsn("orders", "orders", PASSWORDS["orders"])) as orders:
        assert orders.execute("SELECT count(*) FROM orders").fetchone() == (0,)
        owners = "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname IN ('public', 'relay')"
        assert orders.execute(owners).fetchall() == [(RELAY,)]


def test_a_changed_password_is_the_only_one_that_counts(provisioned: PrivatePostgres) -> None:
    provision(provisioned.dsn("postgres"), PASSWORDS | {"orders": "renewed", RELAY: "renewed-too"})
    assert connects(provisioned, "orders", "orders", "renewed")
    assert connects(provisioned, "customers", RELAY, "renewed-too")
    assert not connects(provisioned, "orders", "orders", PASSWORDS["orders"])


def test_one_that_was_interrupted_is_completed(provisioned: PrivatePostgres) -> None:
    with psycopg.connect(provisioned.dsn("postgres"), autocommit=True) as superuser:
        superuser.execute("DROP DATABASE customers")
        superuser.execute("CREATE DATABASE customers OWNER relay")
    assert connects(provisioned, "customers", "orders", PASSWORDS["orders"]), "everybody may, at first"
    applied = provision(provisioned.dsn("postgres"), PASSWORDS)
    assert applied["customers"]
    assert not applied["orders"]
    assert not connects(provisioned, "customers", "orders", PASSWORDS["orders"])


def test_a_new_migration_is_applied_to_what_is_there(provisioned: PrivatePostgres) -> None:
    owner = provisioned.dsn("orders", RELAY, PASSWORDS[RELAY])
    with psycopg.connect(owner, autocommit=True) as relay:  # as if it had come with this version
        relay.execute("DROP TABLE public.order_lines")
        relay.execute("DELETE FROM relay.migration WHERE name = '0002_order_lines.sql'")
    assert provision(provisioned.dsn("postgres"), PASSWORDS)["orders"] == ["orders/0002_order_lines.sql"]
    with psycopg.connect(provisioned.dsn("orders", "orders", PASSWORDS["orders"])) as orders:
        assert orders.execute("SELECT count(*) FROM order_lines").fetchone() == (0,)
