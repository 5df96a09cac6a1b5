"""The Debezium envelope, beside what Debezium itself made of the same bytes of the write-ahead log."""

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from relay.capture.change import Op, Origin, Rendered, RowChange, Shape, TableColumn
from relay.capture.debezium import DebeziumSettings, DebeziumWriter
from relay.capture.message import CaptureError
from relay.wal.lsn import NOWHERE, Lsn
from relay.wal.pgoutput import Binary, Row, Unchanged
from relay.wal.pgtype import unknown
from tests.unit.debezium_golden import RUNS, built_in_types, captured_wal, replay, said, schema_types

AT = datetime(2026, 11, 24, 9, 5, 7, 250_123, tzinfo=UTC)
NOW_NS = 1_795_511_107_999_888_777
TYPES = built_in_types()
INT, TEXT, NUMERIC, LSN = TYPES[23], TYPES[25], TYPES[1700], TYPES[3220]
CUSTOMERS = Shape(16400, "public", "customers", (TableColumn("id", INT, -1), TableColumn("na me", TEXT, -1)), key=(0,))


def given_writer(**settings: str) -> DebeziumWriter:
    """Settings are written with underscores for dots."""
    parsed = DebeziumSettings.parse({name.replace("_", "."): value for name, value in settings.items()})
    return DebeziumWriter(parsed, "shop", "golden", "9.9", clock=lambda: NOW_NS)


def change(
    op: Op, before: Row | None = None, after: Row | None = None, *, shape: Shape = CUSTOMERS, last: int | None = 600
) -> RowChange:
    origin = Origin("7412", 812, Lsn(900), Lsn(700), 0, AT, None if last is None else Lsn(last))
    return RowChange(shape, op, before, False, after, origin)


def values(written: Sequence[Rendered]) -> list[Any]:
    return [json.loads(one.payload) if one.payload else None for one in written]


def keys(written: Sequence[Rendered]) -> list[Any]:
    """As the header `key` has them."""
    headers = [json.loads(one.headers) for one in written]
    return [json.loads(header["key"]) if header else None for header in headers]


def comparable(value: str | None) -> str | None:
    """Without what is each program's own: its version, and when it did its work."""
    if value is None:
        return None
    value = re.sub(r'"version":"[^"]*","connector":"[^"]*"', '"version":…,"connector":…', value)
    head, _, tail = value.rpartition(',"op":')
    return f"{head},{tail.partition(',')[0]}"


@pytest.mark.parametrize("run", ["defaults", "readable"])
def test_it_writes_what_debezium_writes_to_the_letter(run: str) -> None:
    settings = DebeziumSettings.parse({**RUNS[run], "skipped.operations": "none"})
    writer = DebeziumWriter(settings, "shop", "golden", "9.9")

    written = list(replay(captured_wal(), writer, schema_types()))

    expected = said(run)
    assert [comparable(message.payload.decode() or None) for message in written] == [
        comparable(one.value) for one in expected
    ]
    headers = [json.loads(message.headers) for message in written]
    assert headers == [{} if one.key is None else {"key": one.key} for one in expected]


def test_the_golden_files_have_what_the_comparison_is_for() -> None:
    """So that it cannot pass over nothing."""
    operations = [json.loads(one.value)["op"] if one.value else None for one in said("defaults")]
    assert len(operations) == 19
    assert set(operations) == {"c", "u", "d", "t", None}


class TestEvents:
    def test_say_where_and_when_they_come_from(self) -> None:
        (value,) = values(given_writer().write(change(Op.INSERT, None, (b"1", b"Ann"))))

        assert value == {
            "before": None,
            "after": {"id": 1, "na me": "Ann"},
            "source": {
                "version": "9.9",
                "connector": "postgresql",
                "name": "shop",
                "ts_ms": 1795511107250,
                "snapshot": "false",
                "db": "golden",
                "sequence": '["600","700"]',
                "ts_us": 1795511107250123,
                "ts_ns": 1795511107250123000,
                "schema": "public",
                "table": "customers",
                "txId": 812,
                "lsn": 700,
                "xmin": None,
                "origin": None,
                "origin_lsn": None,
            },
            "transaction": None,
            "op": "c",
            "ts_ms": 1795511107999,
            "ts_us": 1795511107999888,
            "ts_ns": NOW_NS,
        }

    def test_the_first_transaction_of_a_stream_has_none_before_it(self) -> None:
        (value,) = values(given_writer().write(change(Op.INSERT, None, (b"1", None), last=None)))
        assert value["source"]["sequence"] == '[null,"700"]'

    def test_a_row_of_a_snapshot_is_read_and_has_no_place_in_the_log(self) -> None:
        origin = Origin("7412", 0, NOWHERE, NOWHERE, 0, AT, None)
        row = RowChange(CUSTOMERS, Op.SNAPSHOT, None, False, (b"1", b"Ann"), origin)

        (value,) = values(given_writer().write(row))

        assert (value["op"], value["before"], value["after"]) == ("r", None, {"id": 1, "na me": "Ann"})
        source = value["source"]
        assert (source["snapshot"], source["sequence"], source["txId"], source["lsn"]) == (
            "true",
            "[null,null]",
            None,
            None,
        )

    def test_the_prefix_of_the_settings_is_the_name_of_the_source(self) -> None:
        (value,) = values(given_writer(topic_prefix='"quoted"').write(change(Op.INSERT, None, (b"1", None))))
        assert value["source"]["name"] == '"quoted"'

    def test_a_value_that_was_not_sent_is_the_placeholder(self) -> None:
        written = given_writer().write(change(Op.UPDATE, None, (b"1", Unchanged.TOAST)))
        assert values(written)[0]["after"]["na me"] == "__debezium_unavailable_value"

    def test_columns_of_unknown_types_are_left_out_unless_they_are_wanted(self) -> None:
        shape = Shape(1, "public", "t", (TableColumn("lsn", LSN, -1), TableColumn("odd", unknown(99), -1)), key=(0,))
        insert = change(Op.INSERT, None, (b"0/5", b"x"), shape=shape)

        without, wanted = given_writer().write(insert), given_writer(include_unknown_datatypes="true").write(insert)

        assert values(without)[0]["after"] == {}
        assert keys(without) == [{}]
        assert values(wanted)[0]["after"] == {"lsn": "MC81", "odd": "eA=="}
        assert keys(wanted) == [{"lsn": "MC81"}]

    def test_a_table_that_changes_its_columns_is_followed(self) -> None:
        writer = given_writer()
        (before,) = values(writer.write(change(Op.INSERT, None, (b"1", b"2"))))
        altered = Shape(CUSTOMERS.oid, "public", "customers", (CUSTOMERS.columns[0], TableColumn("n", INT, -1)), (0,))
        (after,) = values(writer.write(change(Op.INSERT, None, (b"1", b"2"), shape=altered)))

        assert (before["after"], after["after"]) == ({"id": 1, "na me": "2"}, {"id": 1, "n": 2})


class TestKeys:
    def test_an_event_has_its_key_as_a_header(self) -> None:
        assert keys(given_writer().write(change(Op.UPDATE, None, (b"1", b"Ann")))) == [{"id": 1}]

    def test_a_table_without_a_key_has_no_such_header(self) -> None:
        shape = Shape(1, "public", "t", CUSTOMERS.columns, key=())
        written = given_writer().write(change(Op.DELETE, (b"1", b"Ann"), shape=shape))
        assert [one.headers for one in written] == [b"{}", b"{}"]

    def test_a_truncation_has_no_key(self) -> None:
        assert keys(given_writer(skipped_operations="none").write(change(Op.TRUNCATE))) == [None]


class TestTombstones:
    def test_follow_a_delete_under_its_key(self) -> None:
        written = given_writer().write(change(Op.DELETE, (b"1", None)))

        assert [one.payload == b"" for one in written] == [False, True]
        assert keys(written) == [{"id": 1}, {"id": 1}]
        assert values(written)[0]["before"] == {"id": 1, "na me": None}

    def test_do_not_when_they_are_off(self) -> None:
        written = given_writer(tombstones_on_delete="false").write(change(Op.DELETE, (b"1", None)))
        assert [value["op"] for value in values(written)] == ["d"]


class TestSkippedOperations:
    def test_a_truncation_is_by_default(self) -> None:
        assert given_writer().write(change(Op.TRUNCATE)) == ()

    def test_none_is_when_told_so(self) -> None:
        (value,) = values(given_writer(skipped_operations="none").write(change(Op.TRUNCATE)))
        assert (value["op"], value["before"], value["after"]) == ("t", None, None)

    def test_a_delete_goes_with_its_tombstone(self) -> None:
        writer = given_writer(skipped_operations="u, d")
        assert writer.write(change(Op.DELETE, (b"1", None))) == ()
        assert writer.write(change(Op.UPDATE, None, (b"1", None))) == ()
        assert len(writer.write(change(Op.INSERT, None, (b"1", None)))) == 1


class TestErrors:
    @pytest.mark.parametrize(
        ("value", "told"),
        [
            (b"secret", "column id of public.customers: a value of type pg_catalog.int4 cannot be read: it is no"),
            (b"\xff", "column id of public.customers: a value of type pg_catalog.int4 cannot be read: it is not UTF-8"),
            (Binary(b"\0"), "column id of public.customers was not sent as text"),
        ],
    )
    def test_a_value_that_is_not_of_its_type_is_told_by_its_place_alone(self, value: bytes | Binary, told: str) -> None:
        with pytest.raises(CaptureError, match=re.escape(told)) as caught:
            given_writer().write(change(Op.INSERT, None, (value, b"Ann")))
        assert "secret" not in str(caught.value)
