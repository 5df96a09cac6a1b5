"""What the benchmark has captured: the relay's settings, Debezium's, and the changes that both read."""

from pathlib import Path

import pytest

from bench.backlog import Database
from bench.debezium.peer import engine_settings
from bench.matrix import HUGE_TRANSACTION, STANDARD, STANDARD_TABLE, Capture, Shape
from bench.rows import CUSTOMERS, TABLE, prepared, written
from bench.subject import CAPTURES, NAME, PUBLICATIONS, captures_tables
from relay.capture.debezium import DebeziumSettings
from relay.config import SourceSettings, load
from relay.config.capture import DEFAULT, Envelope, Snapshot, TableCapture
from relay.wal.publication import Wanted, publication_names
from relay.wal.table import TableName

URL = "amqp://bench:secret@127.0.0.1:5672/%2F"
DATABASE = Database("postgresql://relay:p%40ss@127.0.0.1:5433/bench_1", "", "bench_1_template")


def source(monkeypatch: pytest.MonkeyPatch, capture: Capture) -> SourceSettings:
    """What the relay makes of its environment."""
    for name, value in {
        "RELAY_SOURCE__0__DSN": DATABASE.dsn,
        "RELAY_SOURCE__0__NAME": NAME,
        **CAPTURES[capture],
    }.items():
        monkeypatch.setenv(name, value)
    (found,) = load(None).source
    return found


def test_the_relay_captures_the_table_as_debezium_does_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    found = source(monkeypatch, Capture.TABLE)

    (capture,) = found.capture
    assert isinstance(capture, TableCapture)
    assert capture.tables == (TABLE,)
    assert capture.envelope is Envelope.DEBEZIUM
    assert capture.snapshot is Snapshot.NEVER
    assert DebeziumSettings.parse(capture.debezium) == DebeziumSettings()


def test_the_relay_captures_the_outbox_without_being_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert source(monkeypatch, Capture.OUTBOX).capture == DEFAULT


def test_what_reads_beside_the_relay_reads_the_relays_publications(monkeypatch: pytest.MonkeyPatch) -> None:
    found = source(monkeypatch, Capture.TABLE)
    both = Wanted(frozenset(), frozenset({TableName(*TABLE.split("."))}))

    assert tuple(PUBLICATIONS[capture] for capture in Capture) == publication_names(found.publication, both)


def test_debezium_reads_the_table_without_its_router() -> None:
    settings = engine_settings(DATABASE, Capture.TABLE, "run_1", URL)

    assert settings["table.include.list"] == TABLE
    assert settings["publication.name"] == PUBLICATIONS[Capture.TABLE]
    assert settings["sink.format"] == "json"
    assert settings["converter.schemas.enable"] == "false"
    assert not [name for name in settings if name.startswith("transforms")]


def test_debezium_reads_the_outbox_by_its_router() -> None:
    settings = engine_settings(DATABASE, Capture.OUTBOX, "run_1", URL)

    assert settings["table.include.list"] == "relay.outbox"
    assert settings["publication.name"] == PUBLICATIONS[Capture.OUTBOX]
    assert settings["transforms.outbox.type"] == "io.debezium.transforms.outbox.EventRouter"
    assert (settings["sink.format"], "sink.key.header" in settings) == ("text", False)
    assert settings["database.password"] == "p@ss"
    assert (settings["database.port"], settings["database.dbname"]) == ("5433", "bench_1")


def test_only_a_table_has_to_be_there_before_the_relay() -> None:
    statements = prepared(Capture.TABLE)

    assert prepared(Capture.OUTBOX) is None
    assert statements is not None
    assert f"CREATE TABLE {TABLE} (" in statements.as_string()


def test_each_kind_of_backlog_is_written_to_its_own_table() -> None:
    outbox, table = written(STANDARD).as_string(), written(STANDARD_TABLE).as_string()

    assert ("relay.outbox" in outbox, TABLE in outbox) == (True, False)
    assert ("relay.outbox" in table, f"UPDATE {TABLE}" in table) == (False, True)


def test_a_transaction_that_would_change_a_row_twice_is_refused() -> None:
    most = Shape(200, 2 * CUSTOMERS, 2 * CUSTOMERS, Capture.TABLE)
    assert written(most)
    assert written(HUGE_TRANSACTION)

    with pytest.raises(ValueError, match="2,001 changes a transaction"):
        written(Shape(200, 2 * CUSTOMERS + 1, 2 * CUSTOMERS + 1, Capture.TABLE))


def test_a_checkout_without_the_capture_of_tables_is_known(tmp_path: Path) -> None:
    assert not captures_tables(tmp_path)
    assert captures_tables(Path(__file__).parents[2])
