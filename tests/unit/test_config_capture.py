"""[[source.capture]] and [broker.routing]: what is understood, and what is said about what is wrong."""

from pathlib import Path

import pytest

from relay.config import Settings, load
from relay.config.capture import DEFAULT, EventStoreCapture, LogicalCapture, OutboxCapture, Snapshot, TableCapture
from relay.errors import ConfigError

HEAD = '[broker]\nurl = "amqp://localhost/"\n{}\n[[source]]\ndsn = "postgresql://localhost/shop"\n'


def loaded(folder: Path, captures: str, broker: str = "") -> Settings:
    file = folder / "relay.toml"
    file.write_text(HEAD.format(broker) + captures, encoding="utf-8")
    return load(file)


def refused(folder: Path, captures: str, broker: str = "") -> str:
    with pytest.raises(ConfigError) as error:
        loaded(folder, captures, broker)
    return str(error.value)


def capture(*lines: str) -> str:
    return "\n".join(("[[source.capture]]", *lines, ""))


def test_without_a_word_the_outbox_and_its_logical_messages_are_captured(tmp_path: Path) -> None:
    (source,) = loaded(tmp_path, "").source
    assert source.capture == DEFAULT
    assert [one.name for one in source.capture] == ["outbox", "logical"]


def test_several_captures_each_of_its_kind(tmp_path: Path) -> None:
    (source,) = loaded(
        tmp_path,
        capture('kind = "outbox"')
        + capture('kind = "logical"', 'envelope = "plain"')
        + capture('kind = "event_store"', 'snapshot = "never"')
        + capture(
            'kind = "table"', 'name = "crm"', 'tables = ["public.customers", "sales.*"]', 'exclude_columns = ["ssn"]'
        ),
    ).source
    assert [type(one) for one in source.capture] == [OutboxCapture, LogicalCapture, EventStoreCapture, TableCapture]
    assert [one.name for one in source.capture] == ["outbox", "logical", "event_store", "crm"]
    assert source.capture[2].snapshot is Snapshot.NEVER  # type: ignore[union-attr]


def test_the_environment_changes_one_setting_of_a_capture_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELAY_SOURCE__0__CAPTURE__1__ENVELOPE", "plain")
    (source,) = loaded(tmp_path, capture('kind = "outbox"') + capture('kind = "logical"')).source
    assert [one.envelope for one in source.capture] == ["cloudevents", "plain"]


def test_all_captures_may_be_one_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_SOURCE__0__CAPTURE", '[{"kind": "logical"}, {"kind": "table", "tables": ["a.b"]}]')
    (source,) = loaded(tmp_path, "").source
    assert [one.name for one in source.capture] == ["logical", "table"]


def test_a_capture_may_be_of_the_environment_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_SOURCE__0__CAPTURE__0__KIND", "table")
    monkeypatch.setenv("RELAY_SOURCE__0__CAPTURE__0__TABLES", '["public.customers"]')
    (source,) = loaded(tmp_path, "").source
    assert isinstance(source.capture[0], TableCapture)
    assert source.capture[0].tables == ("public.customers",)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (['kind = "outbx"'], "source.0.capture.0.kind should be outbox, logical, event_store or table"),
        (['tables = ["a.b"]'], "source.0.capture.0.kind is missing: outbox, logical, event_store or table"),
        (['kind = "logical"', "tabel = 1"], "source.0.capture.0.tabel is no setting"),
        (['kind = "table"'], "source.0.capture.0.tables is missing"),
        (['kind = "table"', "tables = []"], "source.0.capture.0.tables should name a table at least"),
        (['kind = "table"', 'tables = ["sales"]'], "source.0.capture.0.tables 'sales' is no table: write schema.table"),
        (['kind = "table"', 'tables = ["a.b"]', 'exclude_columns = ["a.b"]'], "exclude_columns 'a.b' is no column"),
        (['kind = "table"', 'tables = ["a.b"]', 'snapshot = "x"'], "source.0.capture.0.snapshot: Input should be"),
        (['kind = "outbox"', 'envelope = "debezium"'], "source.0.capture.0.envelope cannot be debezium"),
        (['kind = "outbox"', 'table = "sales.*"'], "source.0.capture.0.table should be one table"),
        (['kind = "outbox"', 'columns = {id = "id"}'], "source.0.capture.0.columns aggregate_type is missing"),
        (['kind = "outbox"', 'routing = {routing_key = "{x}"}'], "routing.routing_key at character 1: no field x"),
        (['kind = "outbox"', "routing = {}"], "routing should have an exchange, a routing_key, or both"),
        (
            [
                'kind = "table"',
                'tables = ["a.b"]',
                'envelope = "debezium"',
                'debezium = {"decimal.handling.mode" = "x"}',
            ],
            "decimal.handling.mode",
        ),
        (
            ['kind = "table"', 'tables = ["a.b"]', 'debezium = {"decimal.handling.mode" = "string"}'],
            'has settings of Debezium, but not envelope = "debezium"',
        ),
    ],
)
def test_a_wrong_capture_is_refused_with_its_place_and_what_it_should_be(
    tmp_path: Path, lines: list[str], said: str
) -> None:
    assert said in refused(tmp_path, capture(*lines))


def test_columns_of_relays_own_outbox_are_what_they_are(tmp_path: Path) -> None:
    columns = 'columns = {aggregate_type = "a", aggregate_id = "b", type = "c", payload = "d"}'
    assert "has columns for relay.outbox" in refused(tmp_path, capture('kind = "outbox"', columns))


def test_two_captures_need_two_names_and_two_prefixes(tmp_path: Path) -> None:
    assert "has two of the name outbox" in refused(tmp_path, capture('kind = "outbox"') * 2)
    twice = capture('kind = "logical"') + capture('kind = "logical"', 'name = "other"')
    assert "has two of kind logical with the same prefix" in refused(tmp_path, twice)


def test_routes_are_by_kind_and_by_type(tmp_path: Path) -> None:
    routing = '[broker.routing]\nevent = {exchange = "{source}.events"}\nOrderViewed = {routing_key = "views"}'
    broker = loaded(tmp_path, "", routing).broker
    assert broker is not None
    assert broker.routing["event"].exchange == "{source}.events"
    assert broker.routing["OrderViewed"].routing_key == "views"


def test_a_mistake_in_a_template_is_shown_with_its_place(tmp_path: Path) -> None:
    said = refused(tmp_path, "", '[broker.routing]\nevent = {routing_key = "orders.{aggregat_type}"}')
    assert "broker.routing.event.routing_key at character 8: no field aggregat_type; fields are " in said
    assert "kinds are written event, command, reply" in refused(
        tmp_path, "", '[broker.routing]\nEvent = {exchange = "x"}'
    )
