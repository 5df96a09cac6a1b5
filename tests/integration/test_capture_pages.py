"""What the pages on outboxes and logical messages show, typed into a real server: the messages that come of it."""

import re
import tomllib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import cast

import psycopg
import pytest
from psycopg import sql

from relay.capture.change import Origin
from relay.capture.columns import Columns, parse
from relay.capture.logical import LogicalCapture
from relay.capture.message import Kind, Message
from relay.capture.rows import RowCapture
from relay.wal.lsn import Lsn, parse_lsn
from relay.wal.pgoutput import Begin, Insert, LogicalMessage, Relation, decode
from tests.support.database import Database

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str, language: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def typed(page: str, beginning: str) -> str:
    """The block of SQL that begins like this."""
    (block,) = (block for block in blocks(page, "sql") if block.startswith(beginning))
    return block


def columns_of(name: str) -> Columns:
    """Those of the capture that the page gives this name."""
    captures = [
        each for text in blocks("capture-outbox.md", "toml") for each in tomllib.loads(text)["source"]["capture"]
    ]
    (columns,) = (capture["columns"] for capture in captures if capture.get("name") == name)
    return parse(columns)


class Log:
    """What is written from here on, as the relay would read it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._slot = f"{database.name}_pages"
        database.query("CREATE PUBLICATION pages FOR ALL TABLES WITH (publish = 'insert')")
        database.query("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", self._slot)

    def messages(self, rows: RowCapture, logical: LogicalCapture) -> Iterator[Message]:
        begun = None
        for number, (lsn, data) in enumerate(self._changes()):
            change = decode(data)
            if isinstance(change, Begin):
                begun = change
            elif isinstance(change, Relation):
                if change.name in ("message", "outbox"):
                    rows.describe(change)
            elif begun is not None:
                origin = Origin(
                    "7300000000000000001", begun.xid, begun.final_lsn, lsn, number, begun.committed_at, None
                )
                if isinstance(change, Insert):
                    yield rows.message(change.new, origin)
                elif isinstance(change, LogicalMessage) and (message := logical.message(change, origin)) is not None:
                    yield message

    def _changes(self) -> list[tuple[Lsn, bytes]]:
        """In a session that prints values as the relay's does."""
        query = sql.SQL(
            "SELECT lsn::text, data FROM pg_logical_slot_get_binary_changes({}, NULL, NULL,"
            " 'proto_version', '1', 'publication_names', 'pages', 'messages', 'true')"
        )
        with psycopg.connect(self._database.superuser_dsn, options="-c TimeZone=UTC -c DateStyle=ISO") as connection:
            rows = connection.execute(query.format(sql.Literal(self._slot))).fetchall()
        return [(parse_lsn(cast(str, lsn)), bytes(data)) for lsn, data in rows]


@pytest.fixture
def log(database: Database) -> Log:
    database.query("CREATE TABLE public.orders (id bigint, viewed int)")
    database.query("CREATE SCHEMA eventuate")
    return Log(database)


def of_rows(log: Log, name: str) -> Message:
    (message,) = log.messages(RowCapture(name, columns_of(name)), LogicalCapture("logical"))
    return message


def of_logical(log: Log) -> Message:
    (message,) = log.messages(RowCapture("none", columns_of("debezium")), LogicalCapture("logical"))
    return message


def test_a_table_of_ones_own(database: Database, log: Log) -> None:
    database.query(typed("capture-outbox.md", "CREATE TABLE public.message"))
    database.query(typed("capture-outbox.md", "INSERT INTO public.message"))
    message = of_rows(log, "shop")
    assert (message.id, message.aggregate_type, message.aggregate_id) == ("1", "order", "7")
    assert (message.type, message.correlation_id) == ("OrderCreated", "saga-1")
    assert (message.headers, message.payload) == (b'{"trace": {"correlation-id": "saga-1"}}', b'{"total": 12.50}')
    assert datetime.fromisoformat(message.created_at) == database.value("SELECT at FROM public.message")


def test_debeziums_layout(database: Database, log: Log) -> None:
    database.query(typed("capture-outbox.md", "CREATE TABLE public.outbox"))
    database.query(typed("capture-outbox.md", "INSERT INTO public.outbox"))
    message = of_rows(log, "debezium")
    assert message.id == str(database.value("SELECT id FROM public.outbox"))
    assert (message.aggregate_type, message.aggregate_id, message.type) == ("Order", "1", "OrderCreated")
    assert message.payload == b'{"id": 1, "totalPrice": 39.98}'


def test_a_row_that_is_deleted_at_once_is_published_all_the_same(database: Database, log: Log) -> None:
    """As Debezium's own extensions do it."""
    database.query(typed("capture-outbox.md", "CREATE TABLE public.outbox"))
    insert = typed("capture-outbox.md", "INSERT INTO public.outbox")
    with database.connection.transaction():
        database.query(insert)
        database.query("DELETE FROM public.outbox")
    assert of_rows(log, "debezium").type == "OrderCreated"


def test_eventuates_layout(database: Database, log: Log) -> None:
    database.query(typed("capture-outbox.md", "CREATE TABLE eventuate.message"))
    database.query(typed("capture-outbox.md", "INSERT INTO eventuate.message"))
    message = of_rows(log, "eventuate")
    assert message.id == "00000183c7c93c05-f2d3907995f30000"
    assert (message.aggregate_type, message.aggregate_id) == ("shop.domain.Order", "1")
    assert (message.type, message.created_at) == ("shop.domain.OrderPlaced", "2022-10-11 16:03:17.65+00")
    assert (message.payload, message.headers) == (
        b'{"total":12.50}',
        str(database.value("SELECT headers FROM eventuate.message")).encode(),
    )


def test_a_logical_message(database: Database, log: Log) -> None:
    for statement in typed("capture-logical.md", "BEGIN;").split(";\n"):
        database.query(statement)
    message = of_logical(log)
    assert (message.kind, message.aggregate_type, message.aggregate_id) == (Kind.EVENT, "order", "7")
    assert (message.type, message.payload) == ("OrderViewed", b'{"by": 42}')


def test_a_logical_message_that_postgresql_composes(database: Database, log: Log) -> None:
    database.query(typed("capture-logical.md", "SELECT pg_logical_emit_message"))
    message = of_logical(log)
    assert (message.kind, message.destination, message.aggregate_id) == (Kind.COMMAND, "customers", "7")
    assert message.payload == b'{"amount":  1.0000000000000000001}'


def test_a_logical_message_that_is_rolled_back_never_was(database: Database, log: Log) -> None:
    database.query(typed("capture-logical.md", "BEGIN;").replace("COMMIT", "ROLLBACK"))
    database.query(typed("capture-logical.md", "SELECT pg_logical_emit_message"))
    assert of_logical(log).type == "ReserveCredit"
