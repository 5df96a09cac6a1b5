"""The Debezium envelope of a real server's changes: the types come from its catalog, and not from a list."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection

from relay.capture.debezium import DebeziumSettings, DebeziumWriter
from relay.wal.catalog import load_types
from relay.wal.lsn import Lsn, parse_lsn
from relay.wal.pgoutput import Message, Relation, decode
from relay.wal.pgtype import PgType
from tests.support.database import Database
from tests.unit.debezium_golden import GOLDEN, RUNS, replay, said

SLOT = "debezium_golden"

SESSION = (
    "SET DateStyle = 'ISO'; SET TimeZone = 'UTC'; SET IntervalStyle = 'postgres'; SET extra_float_digits = 1;"
    " SET bytea_output = 'hex'"
)
"""As the relay's replication session has it."""

CHANGES = """
    SELECT lsn::text, data FROM pg_logical_slot_get_binary_changes(
        %s, NULL, NULL, 'proto_version', '1', 'publication_names', 'golden')
"""


def statements(name: str) -> list[str]:
    """Those of one line that begin a transaction and end it stay together."""
    return [text for text in (GOLDEN / name).read_text(encoding="utf-8").split(";\n") if text.strip()]


def changes(database: Database) -> list[tuple[Lsn, Message]]:
    """What the server sends for golden/changes.sql, on the tables of golden/schema.sql."""
    with psycopg.connect(database.superuser_dsn, autocommit=True) as connection:
        connection.execute(SESSION)
        for statement in statements("schema.sql"):
            connection.execute(statement.encode())
        connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (SLOT,))
        for statement in statements("changes.sql"):
            connection.execute(statement.encode())
        rows = connection.execute(CHANGES, (SLOT,)).fetchall()
        return [(parse_lsn(lsn), decode(data)) for lsn, data in rows]


async def types(database: Database, messages: Iterator[Message]) -> Mapping[int, PgType]:
    relations = [message for message in messages if isinstance(message, Relation)]
    async with await AsyncConnection.connect(database.dsn) as connection:
        return await load_types(connection, {column.type_oid for one in relations for column in one.columns})


def comparable(text: str | None) -> Any:
    """Without what is of one server and one run: positions, transactions and times."""
    if text is None:
        return None
    value = json.loads(text)
    source = {name: value["source"][name] for name in ("name", "snapshot", "schema", "table", "xmin", "origin")}
    return {"before": value["before"], "after": value["after"], "op": value["op"], "source": source}


@pytest.mark.parametrize("run", ["defaults", "readable"])
async def test_a_servers_changes_are_written_as_debezium_wrote_them(database: Database, run: str) -> None:
    wal = changes(database)
    known = await types(database, (message for _, message in wal))
    settings = DebeziumSettings.parse({**RUNS[run], "skipped.operations": "none"})
    writer = DebeziumWriter(settings, "shop", database.name, "9.9")

    messages = list(replay(iter(wal), writer, known))

    expected = said(run)
    assert [comparable(message.payload.decode() or None) for message in messages] == [
        comparable(one.value) for one in expected
    ]
    keys = [json.loads(message.headers).get("key") for message in messages]
    assert keys == [one.key for one in expected]


async def test_events_say_which_transaction_and_where(database: Database) -> None:
    """`sequence` has the end of the transaction before and the event's own position, as Debezium's do."""
    wal = changes(database)
    known = await types(database, (message for _, message in wal))
    writer = DebeziumWriter(DebeziumSettings(), "shop", database.name, "9.9")

    sources = [json.loads(one.payload)["source"] for one in replay(iter(wal), writer, known) if one.payload]

    positions = [source["lsn"] for source in sources]
    assert positions == sorted(positions)
    assert {source["db"] for source in sources} == {database.name}
    ends = [json.loads(source["sequence"]) for source in sources]
    assert [own for _, own in ends] == [str(position) for position in positions]
    assert ends[0][0] is None
    assert all(int(end) <= int(own) for end, own in ends[1:])
