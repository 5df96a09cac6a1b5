"""Rows of a table that somebody else laid out become messages, by configuration alone."""

import json
import re
import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.capture.change import Origin
from relay.capture.columns import EVENT_STORE, FIELDS, OUTBOX, Columns, parse
from relay.capture.identity import derived_id
from relay.capture.message import CaptureError, Kind, Malformed, Message
from relay.capture.outbox import to_message
from relay.capture.rows import RowCapture
from relay.capture.timestamp import printed
from relay.wal.lsn import NOWHERE, Lsn
from relay.wal.pgoutput import Binary, Column, Relation, Row, Unchanged, Value

# Numbers of types, as PostgreSQL sends them.
BYTEA, INT8, INT2, TEXT, JSON, VARCHAR, DATE, TIMESTAMP, TIMESTAMPTZ, UUID, JSONB = (
    17,
    20,
    21,
    25,
    114,
    1043,
    1082,
    1114,
    1184,
    2950,
    3802,
)

ORIGIN = Origin("7300000000000000001", 741, Lsn(200), Lsn(100), 0, datetime(2025, 6, 1, 12, tzinfo=UTC), None)
COPY = ORIGIN._replace(xid=0, commit_lsn=NOWHERE, lsn=NOWHERE)
"""Where rows come from that are older than the slot."""

DEBEZIUM = {"id": UUID, "aggregatetype": VARCHAR, "aggregateid": VARCHAR, "type": VARCHAR, "payload": JSONB}
"""The table that Debezium's outbox event router expects."""
DEBEZIUM_COLUMNS = {
    "id": "id",
    "aggregate_type": "aggregatetype",
    "aggregate_id": "aggregateid",
    "type": "type",
    "payload": "payload",
}

EVENTUATE = {
    "id": VARCHAR,
    "destination": TEXT,
    "headers": TEXT,
    "payload": TEXT,
    "published": INT2,
    "message_partition": INT2,
    "creation_time": INT8,
}
"""Eventuate Tram's table of messages in PostgreSQL."""
EVENTUATE_COLUMNS = {
    "id": "id",
    "aggregate_type": "headers.event-aggregate-type",
    "aggregate_id": "headers.event-aggregate-id",
    "type": "headers.event-type",
    "headers": "headers",
    "payload": "payload",
    "created_at": "creation_time",
}
EVENTUATE_HEADERS = (
    b'{"PARTITION_ID":"1","event-aggregate-type":"shop.domain.Order","DATE":"Tue, 11 Oct 2022 16:03:17 GMT",'
    b'"event-aggregate-id":"1","event-type":"shop.domain.OrderPlaced","DESTINATION":"shop.domain.Order",'
    b'"ID":"00000183c7c93c05-f2d3907995f30000"}'
)
EVENTUATE_ROW = {
    "id": b"00000183c7c93c05-f2d3907995f30000",
    "destination": b"shop.domain.Order",
    "headers": EVENTUATE_HEADERS,
    "payload": b'{"total":12.50}',
    "published": b"0",
    "message_partition": None,
    "creation_time": b"1665504197650",
}

PLAIN = {
    "id": TEXT,
    "kind": TEXT,
    "a": TEXT,
    "b": TEXT,
    "t": TEXT,
    "to": TEXT,
    "h": JSON,
    "data": JSONB,
    "at": TIMESTAMPTZ,
    "n": INT8,
}
PLAIN_COLUMNS = {
    "id": "id",
    "kind": "kind",
    "aggregate_type": "a",
    "aggregate_id": "b",
    "type": "t",
    "destination": "to",
    "headers": "h",
    "payload": "data",
    "created_at": "at",
    "version": "n",
}
PLAIN_ROW: dict[str, Value] = {
    "id": b"m-1",
    "kind": b"command",
    "a": b"order",
    "b": "naïve ✓".encode(),
    "t": b"ReserveCredit",
    "to": b"customers",
    "h": b'{"traceparent": "00-ab-cd-01"}',
    "data": b'{"b": 1,   "a": 2.50}',
    "at": b"2025-06-01 11:59:59.5+00",
    "n": None,
}

SENT = st.binary(max_size=8).filter(lambda value: b"\0" not in value)
"""What PostgreSQL may send for a text in any encoding; it has a zero byte in none."""
NEARLY = [
    b"",
    b"{",
    b"{}",
    b"[]",
    b"null",
    b'{"a": "\\ud800"}',
    b"event",
    b"reply",
    b"infinite",
    b"1",
    b"2025-06-01",
    b"\\x7b",
]


def table(types: Mapping[str, int], name: str = "outbox") -> Relation:
    return Relation(4001, "public", name, "d", tuple(Column(column, False, oid, -1) for column, oid in types.items()))


def capture(types: Mapping[str, int], columns: Mapping[str, str] | Columns) -> RowCapture:
    """A capture that has been told of its table."""
    made = RowCapture("shop", columns if isinstance(columns, Columns) else parse(columns))
    made.describe(table(types))
    return made


def plain(change: Mapping[str, Value], types: Mapping[str, int] | None = None) -> Message:
    """The message of PLAIN_ROW with other values, in a table with other types."""
    row: Row = tuple((PLAIN_ROW | dict(change)).values())
    return capture(PLAIN | dict(types or {}), PLAIN_COLUMNS).message(row, ORIGIN)


def refused(change: Mapping[str, Value], types: Mapping[str, int] | None = None) -> Malformed:
    with pytest.raises(Malformed) as raised:
        plain(change, types)
    return raised.value


class TestLayouts:
    def test_debezium(self) -> None:
        row = (b"406c07f3-26f0-4eea-a50c-109940064b8f", b"Order", b"1", b"OrderCreated", b'{"id": 1, "total": 39.980}')
        assert capture(DEBEZIUM, DEBEZIUM_COLUMNS).message(row, ORIGIN) == Message(
            id="406c07f3-26f0-4eea-a50c-109940064b8f",
            kind=Kind.EVENT,
            aggregate_type="Order",
            aggregate_id="1",
            type="OrderCreated",
            destination=None,
            correlation_id=None,
            reply_to=None,
            causation_id=None,
            operation=None,
            headers=b"{}",
            payload=b'{"id": 1, "total": 39.980}',
            created_at="2025-06-01 12:00:00+00",
            capture="shop",
        )

    def test_eventuate(self) -> None:
        assert capture(EVENTUATE, EVENTUATE_COLUMNS).message(tuple(EVENTUATE_ROW.values()), ORIGIN) == Message(
            id="00000183c7c93c05-f2d3907995f30000",
            kind=Kind.EVENT,
            aggregate_type="shop.domain.Order",
            aggregate_id="1",
            type="shop.domain.OrderPlaced",
            destination=None,
            correlation_id=None,
            reply_to=None,
            causation_id=None,
            operation=None,
            headers=EVENTUATE_HEADERS,
            payload=b'{"total":12.50}',
            created_at="2022-10-11 16:03:17.65+00",
            capture="shop",
        )

    def test_eventuate_with_columns_of_json(self) -> None:
        """Eventuate's other layout."""
        made = capture(EVENTUATE | {"headers": JSON, "payload": JSON}, EVENTUATE_COLUMNS)
        assert made.message(tuple(EVENTUATE_ROW.values()), ORIGIN).type == "shop.domain.OrderPlaced"

    def test_eventuate_row_that_is_no_event(self) -> None:
        """Its commands have other headers. They cannot be told apart by configuration, and are set aside."""
        row = tuple((EVENTUATE_ROW | {"headers": b'{"command_type":"x.Reserve"}'}).values())
        with pytest.raises(Malformed, match=r"has no aggregate_type: headers\.event-aggregate-type is null or missing"):
            capture(EVENTUATE, EVENTUATE_COLUMNS).message(row, ORIGIN)

    def test_event_store(self) -> None:
        types = {
            "id": UUID,
            "stream_type": TEXT,
            "stream_id": TEXT,
            "version": INT8,
            "type": TEXT,
            "data": JSON,
            "headers": JSON,
            "created_at": TIMESTAMPTZ,
        }
        row = (b"e-1", b"order", b"7", b"3", b"OrderPaid", b'{"paid":  1}', b'{"a": 1}', b"2025-06-01 12:00:00+00")
        message = capture(types, EVENT_STORE).message(row, ORIGIN)
        assert (message.id, message.aggregate_type, message.aggregate_id) == ("e-1", "order", "7")
        assert (message.type, message.payload) == ("OrderPaid", b'{"paid":  1}')
        assert json.loads(message.headers) == {"a": 1, "version": "3"}

    def test_a_table_like_relay_outbox_gives_the_same_message(self) -> None:
        values: dict[str, bytes | None] = {
            "id": b"0197a0b0-0000-7000-8000-000000000001",
            "kind": b"reply",
            "aggregate_type": b"order",
            "aggregate_id": b"7",
            "type": b"CreditReserved",
            "destination": b"orders",
            "correlation_id": b"saga-1",
            "reply_to": b"nobody",
            "causation_id": b"0197a0b0-0000-7000-8000-000000000000",
            "operation": b"saga-1/reserve_credit/0",
            "headers": b'{"a": 1}',
            "payload": b"[1, 2.50]",
            "created_at": b"2025-06-01 12:00:00+00",
        }
        types = dict.fromkeys(values, TEXT) | {"headers": JSON, "payload": JSON, "created_at": TIMESTAMPTZ}
        message = capture(types, OUTBOX).message(tuple(values.values()), ORIGIN)
        assert message._replace(capture="outbox") == to_message(list(values.values()))

    def test_a_table_with_the_least_of_it_is_an_outbox_too(self) -> None:
        types = {"aggregate_type": TEXT, "aggregate_id": INT8, "type": TEXT, "payload": JSONB}
        message = capture(types, OUTBOX).message((b"order", b"7", b"OrderCreated", b"{}"), ORIGIN)
        assert (message.kind, message.aggregate_id, message.id) == (Kind.EVENT, "7", derived_id(ORIGIN))


class TestDescription:
    def test_a_table_without_its_columns_is_refused_by_their_names(self) -> None:
        made = RowCapture("shop", parse(PLAIN_COLUMNS))
        with pytest.raises(CaptureError, match=r"^public\.outbox lacks the column kind, data$") as raised:
            made.describe(table({name: oid for name, oid in PLAIN.items() if name not in ("kind", "data")}))
        assert "`columns` of the capture shop" in raised.value.hint
        assert "id, a, b, t, to, h, at, n" in raised.value.hint

    def test_the_newest_description_counts(self) -> None:
        made = capture(PLAIN, PLAIN_COLUMNS)
        before = made.message(tuple(PLAIN_ROW.values()), ORIGIN)
        backwards = tuple(reversed(PLAIN))
        made.describe(table({"more": TEXT} | {name: PLAIN[name] for name in backwards}))
        assert made.message((b"?", *(PLAIN_ROW[name] for name in backwards)), ORIGIN) == before

    def test_a_row_before_any_description_is_refused(self) -> None:
        with pytest.raises(CaptureError, match="the capture shop has a row of a table that was not described"):
            RowCapture("shop", parse(PLAIN_COLUMNS)).message(tuple(PLAIN_ROW.values()), ORIGIN)


class TestFields:
    def test_a_row_is_a_whole_message(self) -> None:
        assert plain({}) == Message(
            id="m-1",
            kind=Kind.COMMAND,
            aggregate_type="order",
            aggregate_id="naïve ✓",
            type="ReserveCredit",
            destination="customers",
            correlation_id=None,
            reply_to=None,
            causation_id=None,
            operation=None,
            headers=b'{"traceparent": "00-ab-cd-01"}',
            payload=b'{"b": 1,   "a": 2.50}',
            created_at="2025-06-01 11:59:59.5+00",
            capture="shop",
        )

    @pytest.mark.parametrize("oid", [TEXT, VARCHAR, JSON, JSONB, INT8])
    @pytest.mark.parametrize("payload", [b'{"a":  1.10}', b"null", b"", b"12", b"not \xff even text"])
    def test_a_payload_is_not_touched(self, payload: bytes, oid: int) -> None:
        assert plain({"data": payload}, {"data": oid}).payload == payload

    @given(st.binary())
    def test_a_payload_of_bytea_is_its_bytes(self, payload: bytes) -> None:
        assert plain({"data": b"\\x" + payload.hex().encode()}, {"data": BYTEA}).payload == payload

    @pytest.mark.parametrize("printed", [b"abc\\000", b"\\x7", b"\\xzz", b"\xff"])
    def test_a_bytea_that_is_not_printed_in_hex_is_refused(self, printed: bytes) -> None:
        assert "not printed in hex" in str(refused({"data": printed}, {"data": BYTEA}))

    @pytest.mark.parametrize(
        ("printed", "oid", "expected"),
        [
            (b"2025-06-01 12:00:00.123456+00", TIMESTAMPTZ, "2025-06-01 12:00:00.123456+00"),
            (b"infinity", TIMESTAMPTZ, "infinity"),
            (b"2025-06-01 12:00:00.5", TIMESTAMP, "2025-06-01 12:00:00.5+00"),
            (b"2025-06-01", DATE, "2025-06-01 00:00:00+00"),
            (b"1665504197650", INT8, "2022-10-11 16:03:17.65+00"),
            (b"2025-06-01T14:00:00+02:00", TEXT, "2025-06-01 12:00:00+00"),
            (None, TIMESTAMPTZ, "2025-06-01 12:00:00+00"),
        ],
    )
    def test_created_at_is_as_postgresql_prints_it(self, printed: bytes | None, oid: int, expected: str) -> None:
        assert plain({"at": printed}, {"at": oid}).created_at == expected

    @pytest.mark.parametrize(
        ("headers", "oid"), [(None, JSON), (b"{}", JSON), (b"{}", TEXT), (b' { "a" : [] } ', TEXT)]
    )
    def test_headers_are_not_touched(self, headers: bytes | None, oid: int) -> None:
        assert plain({"h": headers}, {"h": oid}).headers == (headers or b"{}")

    @pytest.mark.parametrize("oid", [JSON, TEXT])
    @pytest.mark.parametrize("headers", [b"[]", b" 7", b"null", b'"{}"', b"\xff"])
    def test_headers_that_are_no_object_are_refused(self, headers: bytes, oid: int) -> None:
        wrong = refused({"h": headers}, {"h": oid})
        assert "headers that are no JSON object" in str(wrong) or "not text in UTF-8" in str(wrong)
        assert wrong.message.headers == b"{}"

    @pytest.mark.parametrize("headers", [b"{", b"", b"{'a': 1}", b'{"a": NaN}', b'{"a": 1} x'])
    def test_headers_in_a_text_are_read_to_their_end(self, headers: bytes) -> None:
        assert "has no JSON in headers" in str(refused({"h": headers}, {"h": TEXT}))

    @pytest.mark.parametrize(
        ("headers", "expected"),
        [
            (None, b'{"version": "5"}'),
            (b"{ }", b'{"version": "5"}'),
            (b'{"a": 1.10}', b'{"a": 1.10, "version": "5"}'),
        ],
    )
    def test_a_version_is_a_header(self, headers: bytes | None, expected: bytes) -> None:
        assert plain({"h": headers, "n": b"5"}).headers == expected

    def test_a_null_kind_is_an_event(self) -> None:
        assert plain({"kind": None, "to": None}).kind is Kind.EVENT

    def test_literals_are_the_same_for_every_row(self) -> None:
        columns = {"kind": "'event'", "aggregate_type": "'order'", "aggregate_id": "b", "type": "'it''s'"}
        columns |= {"payload": "'{}'", "headers": "'{\"a\": 1}'"}
        message = capture({"b": TEXT}, columns).message((b"7",), ORIGIN)
        assert (message.kind, message.aggregate_type, message.aggregate_id) == (Kind.EVENT, "order", "7")
        assert (message.type, message.payload, message.headers) == ("it's", b"{}", b'{"a": 1}')


WITHOUT_ID = {field: expression for field, expression in PLAIN_COLUMNS.items() if field != "id"}


class TestIds:
    def message(self, origin: Origin, change: Mapping[str, Value] | None = None) -> Message:
        return capture(PLAIN, WITHOUT_ID).message(tuple((PLAIN_ROW | dict(change or {})).values()), origin)

    def test_a_row_without_one_gets_one_by_its_place(self) -> None:
        assert self.message(ORIGIN).id == derived_id(ORIGIN)

    def test_a_row_of_a_copy_gets_one_by_what_it_holds(self) -> None:
        """Whatever its place in the copy, so that a second copy repeats the first."""
        there = COPY._replace(ordinal=7, committed_at=datetime(2030, 1, 1, tzinfo=UTC))
        assert self.message(COPY).id == self.message(there).id

    @pytest.mark.parametrize("change", [{"b": b"8"}, {"data": b"{}"}, {"h": b"{}"}, {"n": b"5"}, {"h": None}])
    def test_rows_of_a_copy_that_differ_get_different_ones(self, change: Mapping[str, Value]) -> None:
        assert self.message(COPY).id != self.message(COPY, change).id

    def test_a_column_that_is_not_captured_changes_nothing(self) -> None:
        assert self.message(COPY).id == self.message(COPY, {"id": b"m-2"}).id

    def test_the_order_of_the_columns_changes_nothing(self) -> None:
        backwards = capture(dict(reversed(PLAIN.items())), dict(reversed(WITHOUT_ID.items())))
        assert backwards.message(tuple(reversed(PLAIN_ROW.values())), COPY).id == self.message(COPY).id

    @pytest.mark.parametrize(("given_id", "complaint"), [(None, "has no id: id is null"), (b"", "has an empty id")])
    def test_an_id_that_is_empty_is_refused(self, given_id: bytes | None, complaint: str) -> None:
        wrong = refused({"id": given_id})
        assert complaint in str(wrong)
        assert wrong.message.id == derived_id(ORIGIN)


DOCUMENT = {"doc": JSONB, "body": JSON}
DOCUMENT_COLUMNS = {"aggregate_type": "'order'", "aggregate_id": "doc.a.b", "type": "'T'", "payload": "body"}


class TestPaths:
    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (b'"7"', "7"),
            (b'"na\\u00efve"', "naïve"),
            (b'""', ""),
            (b"7", "7"),
            (b"1.0000000000000000001", "1.0000000000000000001"),
            (b"12345678901234567890", "12345678901234567890"),
            (b"true", "true"),
            (b"false", "false"),
            (b"[1.10,  null]", "[1.10,  null]"),
            (b'{"x" : 1e400}', '{"x" : 1e400}'),
        ],
    )
    def test_a_value_of_a_document_is_its_text(self, value: bytes, text: str) -> None:
        row = (b'{"a": {"b": ' + value + b"}}", b"{}")
        assert capture(DOCUMENT, DOCUMENT_COLUMNS).message(row, ORIGIN).aggregate_id == text

    @pytest.mark.parametrize("document", [None, b"{}", b'{"a": 7}', b'{"a": {"b": null}}', b"[]", b"7"])
    def test_a_path_that_leads_nowhere_is_null(self, document: bytes | None) -> None:
        with pytest.raises(Malformed, match=r"has no aggregate_id: doc\.a\.b is null or missing"):
            capture(DOCUMENT, DOCUMENT_COLUMNS).message((document, b"{}"), ORIGIN)
        optional = DOCUMENT_COLUMNS | {"aggregate_id": "'7'", "correlation_id": "doc.a.b"}
        assert capture(DOCUMENT, optional).message((document, b"{}"), ORIGIN).correlation_id is None

    @pytest.mark.parametrize("value", [b'"a\\u0000"', b'"\\ud800"'])
    def test_what_json_can_say_and_postgresql_cannot_is_refused(self, value: bytes) -> None:
        with pytest.raises(Malformed, match="that is no text") as raised:
            capture(DOCUMENT, DOCUMENT_COLUMNS).message((b'{"a": {"b": ' + value + b"}}", b"{}"), ORIGIN)
        assert raised.value.message.aggregate_id == ""

    def test_a_document_that_is_no_json_is_refused(self) -> None:
        with pytest.raises(Malformed, match="has no JSON in doc: expecting value at character 1"):
            capture({"doc": TEXT, "body": JSON}, DOCUMENT_COLUMNS).message((b"?", b"{}"), ORIGIN)

    @pytest.mark.parametrize(
        ("value", "payload"),
        [(b'{"x" : 1.10}', b'{"x" : 1.10}'), (b'"a\\u0000b"', b"a\0b"), (b'"{}"', b"{}"), (b"1e400", b"1e400")],
    )
    def test_a_payload_may_be_a_part_of_a_document(self, value: bytes, payload: bytes) -> None:
        columns = DOCUMENT_COLUMNS | {"aggregate_id": "'7'", "payload": "doc.body"}
        assert capture(DOCUMENT, columns).message((b'{"body": ' + value + b"}", None), ORIGIN).payload == payload

    def test_a_payload_with_half_a_character_is_refused(self) -> None:
        columns = DOCUMENT_COLUMNS | {"aggregate_id": "'7'", "payload": "doc.body"}
        with pytest.raises(Malformed, match="half a character in its payload"):
            capture(DOCUMENT, columns).message((b'{"body": "\\ud800"}', None), ORIGIN)

    @pytest.mark.parametrize(("value", "fine"), [(b'{"a" : 1.10}', True), (b"7", False), (b'"{"', False)])
    def test_headers_may_be_a_part_of_a_document(self, value: bytes, fine: bool) -> None:
        made = capture(DOCUMENT, DOCUMENT_COLUMNS | {"aggregate_id": "'7'", "headers": "doc.h"})
        row = (b'{"h": ' + value + b"}", b"{}")
        if fine:
            assert made.message(row, ORIGIN).headers == value
        else:
            with pytest.raises(Malformed, match="headers"):
                made.message(row, ORIGIN)


class TestMalformed:
    @pytest.mark.parametrize(
        ("column", "field"), [("a", "aggregate_type"), ("b", "aggregate_id"), ("t", "type"), ("data", "payload")]
    )
    def test_what_a_message_needs_must_not_be_null(self, column: str, field: str) -> None:
        wrong = refused({column: None})
        assert str(wrong) == f"the row of public.outbox with id m-1 has no {field}: {column} is null or missing"
        assert wrong.message == plain({})._replace(**{field: b"" if field == "payload" else ""})

    def test_an_unknown_kind_is_refused(self) -> None:
        wrong = refused({"kind": b"rumour"})
        assert "is of an unknown kind 'rumour'" in str(wrong)
        assert wrong.message == plain({})._replace(kind=Kind.EVENT)

    @pytest.mark.parametrize("kind", [b"command", b"reply"])
    def test_what_is_addressed_needs_an_address(self, kind: bytes) -> None:
        wrong = refused({"kind": kind, "to": None})
        assert f"is a {kind.decode()} without a destination" in str(wrong)
        assert wrong.message.kind == kind.decode()

    @pytest.mark.parametrize(("at", "oid"), [(b"yesterday", TEXT), (b"99999999999999999", INT8)])
    def test_a_time_that_is_none_is_refused(self, at: bytes, oid: int) -> None:
        wrong = refused({"at": at}, {"at": oid})
        assert "has a created_at that is no time" in str(wrong)
        assert wrong.message.created_at == "2025-06-01 12:00:00+00"

    @pytest.mark.parametrize("value", [b"\xff", Binary(b"7"), Unchanged.TOAST], ids=["latin", "binary", "absent"])
    @pytest.mark.parametrize("column", [column for column in PLAIN if column != "data"])
    def test_a_value_that_is_no_text_is_refused_and_never_guessed(self, column: str, value: Value) -> None:
        assert "text" in str(refused({column: value}))

    @pytest.mark.parametrize("value", [Binary(b"7"), Unchanged.TOAST], ids=["binary", "absent"])
    def test_a_payload_that_is_not_sent_is_refused(self, value: Value) -> None:
        wrong = refused({"data": value})
        assert "payload that is not sent as text" in str(wrong)
        assert wrong.message == plain({})._replace(payload=b"")

    def test_an_error_shows_the_beginning_of_an_id_only(self) -> None:
        assert len(str(refused({"id": b"7" * 10_000, "t": None}))) < 200

    @given(
        st.dictionaries(st.sampled_from(list(PLAIN)), st.none() | SENT | st.sampled_from(NEARLY), max_size=3),
        st.sampled_from([TEXT, JSON, BYTEA, INT8]),
    )
    def test_whatever_a_row_holds_it_is_a_message_or_malformed(self, row: dict[str, bytes | None], oid: int) -> None:
        """And what is set aside can be stored: text that is text, headers that are an object."""
        try:
            message = plain(row, dict.fromkeys(("h", "data", "at"), oid))
        except Malformed as malformed:
            message = malformed.message
        assert message.id
        assert all("\0" not in field and field.encode() for field in message if isinstance(field, str) and field)
        assert message.headers.decode().lstrip().startswith("{")
        assert printed(datetime.fromisoformat(message.created_at)) == message.created_at


class TestThePage:
    """docs/capture-outbox.md shows what is tested here."""

    PAGE = Path(__file__).parents[2] / "docs/capture-outbox.md"

    def columns(self, name: str) -> dict[str, str]:
        """The columns of the capture of this name."""
        examples = re.findall(r"^```toml\n(.*?)^```$", self.PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        captures = [capture for example in examples for capture in tomllib.loads(example)["source"]["capture"]]
        (columns,) = (capture["columns"] for capture in captures if capture.get("name") == name)
        return dict(columns)

    @pytest.mark.parametrize(("name", "columns"), [("debezium", DEBEZIUM_COLUMNS), ("eventuate", EVENTUATE_COLUMNS)])
    def test_the_layouts_of_others(self, name: str, columns: dict[str, str]) -> None:
        assert self.columns(name) == columns

    def test_a_table_of_ones_own(self) -> None:
        types = {"no": INT8, "order": INT8, "what": TEXT, "meta": JSONB, "body": JSONB, "at": TIMESTAMPTZ}
        meta = b'{"trace": {"correlation-id": "saga-1"}}'
        row = (b"1", b"7", b"OrderCreated", meta, b'{"total": 12.50}', b"2025-06-01 12:00:00+00")
        message = capture(types, self.columns("shop")).message(row, ORIGIN)
        assert (message.id, message.aggregate_type, message.aggregate_id) == ("1", "order", "7")
        assert (message.type, message.correlation_id) == ("OrderCreated", "saga-1")
        assert (message.headers, message.payload) == (meta, b'{"total": 12.50}')

    def test_every_field_is_told(self) -> None:
        told = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", self.PAGE.read_text(encoding="utf-8"), re.MULTILINE)
        assert {field for cell in told for field in re.findall(r"\w+", cell)} == set(FIELDS)
