"""Logical messages become messages: an outbox without a table."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay.capture.change import Origin
from relay.capture.identity import derived_id
from relay.capture.logical import REQUIRED, LogicalCapture
from relay.capture.message import Kind, Malformed, Message
from relay.capture.outbox import COLUMNS
from relay.capture.timestamp import printed
from relay.wal.lsn import Lsn
from relay.wal.pgoutput import LogicalMessage

ORIGIN = Origin("7300000000000000001", 741, Lsn(200), Lsn(0x16B3748), 0, datetime(2025, 6, 1, 12, tzinfo=UTC), None)

LEAST = {"aggregate_type": "order", "aggregate_id": "7", "type": "OrderCreated", "payload": {"total": "12.50"}}
WHOLE = {
    "id": "0197a0b0-0000-7000-8000-000000000001",
    "kind": "command",
    "aggregate_type": "order",
    "aggregate_id": "naïve ✓",
    "type": "ReserveCredit",
    "destination": "customers",
    "correlation_id": "saga-1",
    "reply_to": "orders",
    "causation_id": "0197a0b0-0000-7000-8000-000000000000",
    "operation": "saga-1/reserve_credit/0",
    "headers": {"traceparent": "00-ab-cd-01"},
    "payload": [1, 2],
    "created_at": "2025-06-01T11:59:59.5+00:00",
}

JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
LAYOUTS = st.sampled_from([(None, None), (0, None), (2, None), (None, (",", ":"))])


def emitted(content: bytes, prefix: str = "relay.outbox", transactional: bool = True) -> LogicalMessage:
    return LogicalMessage(transactional, Lsn(0x16B3748), prefix, content)


def captured(content: bytes | Mapping[str, object]) -> Message:
    """The message of a content, which is one."""
    given_bytes = content if isinstance(content, bytes) else json.dumps(content).encode()
    message = LogicalCapture("wal").message(emitted(given_bytes), ORIGIN)
    assert message is not None
    return message


def refused(content: bytes | Mapping[str, object]) -> Malformed:
    with pytest.raises(Malformed) as raised:
        captured(content)
    return raised.value


def with_payload(raw: str, key: str = "payload") -> bytes:
    return f'{{"aggregate_type": "order", "{key}" : {raw} , "aggregate_id": "7", "type": "T"{_payload(key)}}}'.encode()


def _payload(key: str) -> str:
    return "" if key == "payload" else ', "payload": 1'


def test_a_content_is_a_whole_message() -> None:
    assert captured(WHOLE) == Message(
        id="0197a0b0-0000-7000-8000-000000000001",
        kind=Kind.COMMAND,
        aggregate_type="order",
        aggregate_id="naïve ✓",
        type="ReserveCredit",
        destination="customers",
        correlation_id="saga-1",
        reply_to="orders",
        causation_id="0197a0b0-0000-7000-8000-000000000000",
        operation="saga-1/reserve_credit/0",
        headers=b'{"traceparent": "00-ab-cd-01"}',
        payload=b"[1, 2]",
        created_at="2025-06-01 11:59:59.5+00",
        capture="wal",
    )


def test_what_is_not_given_is_as_in_the_table() -> None:
    assert captured(LEAST) == Message(
        id=derived_id(ORIGIN),
        kind=Kind.EVENT,
        aggregate_type="order",
        aggregate_id="7",
        type="OrderCreated",
        destination=None,
        correlation_id=None,
        reply_to=None,
        causation_id=None,
        operation=None,
        headers=b"{}",
        payload=b'{"total": "12.50"}',
        created_at="2025-06-01 12:00:00+00",
        capture="wal",
    )


def test_a_null_is_as_if_it_had_not_been_given() -> None:
    assert captured(dict.fromkeys(COLUMNS) | LEAST) == captured(LEAST)


def test_every_column_that_a_message_is_made_of_is_a_key() -> None:
    assert tuple(WHOLE) == COLUMNS


@pytest.mark.parametrize(
    ("prefix", "transactional"),
    [("relay.heartbeat", True), ("relay.outbox2", True), ("", True), ("relay.outbox", False)],
)
def test_what_is_not_for_this_capture_is_left_alone(prefix: str, transactional: bool) -> None:
    logical = emitted(json.dumps(LEAST).encode(), prefix, transactional)
    assert LogicalCapture("wal").message(logical, ORIGIN) is None


def test_a_capture_may_have_a_prefix_of_its_own() -> None:
    message = LogicalCapture("wal", prefix="shop").message(emitted(json.dumps(LEAST).encode(), "shop"), ORIGIN)
    assert message == captured(LEAST)


class TestByteForByte:
    @given(JSONS, LAYOUTS, st.booleans(), st.sampled_from(["payload", "headers"]))
    def test_any_json_survives(
        self, value: object, layout: tuple[int | None, tuple[str, str] | None], ascii_only: bool, key: str
    ) -> None:
        value = value if key == "payload" else {"a": value}
        raw = json.dumps(value, indent=layout[0], separators=layout[1], ensure_ascii=ascii_only)
        assert getattr(captured(with_payload(raw, key)), key) == raw.encode()

    @pytest.mark.parametrize(
        "raw",
        [
            "1.0000000000000000001",
            "12345678901234567890123",
            "1E400",
            "-0",
            "null",
            '"\\u0000\\ud800\\/"',
            '{ "a" :\n1,"a":2 }',
            "9" * 5000,
        ],
    )
    def test_what_a_json_library_would_write_in_another_way_survives(self, raw: str) -> None:
        assert captured(with_payload(raw)).payload == raw.encode()
        assert captured(with_payload(f'{{"a": {raw}}}', "headers")).headers == f'{{"a": {raw}}}'.encode()


class TestTexts:
    @pytest.mark.parametrize(("raw", "text"), [("7", "7"), ("7.10", "7.10"), ("-1e3", "-1e3"), ('"\\u00e9"', "é")])
    def test_a_number_is_a_text_as_it_is_written(self, raw: str, text: str) -> None:
        content = b'{"aggregate_type": "order", "aggregate_id": ' + raw.encode() + b', "type": "T", "payload": 1}'
        assert captured(content).aggregate_id == text

    @pytest.mark.parametrize("value", [True, [], {}, "a\0b", "\ud800"])
    @pytest.mark.parametrize("key", [column for column in COLUMNS if column not in ("headers", "payload")])
    def test_anything_else_is_refused(self, key: str, value: object) -> None:
        wrong = refused(LEAST | {key: value})
        assert f"has a {key} that is no text" in str(wrong)
        assert wrong.message.type == ("" if key == "type" else "OrderCreated")


class TestMalformed:
    @pytest.mark.parametrize("key", REQUIRED)
    def test_what_a_message_needs_must_be_there(self, key: str) -> None:
        content = {name: value for name, value in LEAST.items() if name != key}
        wrong = refused(content)
        assert str(wrong) == f"the logical message relay.outbox at 0/16B3748, transaction 741, lacks {key}"
        expected = captured(LEAST)._replace(payload=json.dumps(content).encode())
        assert wrong.message == (expected if key == "payload" else expected._replace(**{key: ""}))

    @pytest.mark.parametrize("key", [key for key in REQUIRED if key != "payload"])
    def test_what_a_message_needs_must_not_be_null(self, key: str) -> None:
        assert f"lacks {key}" in str(refused(LEAST | {key: None}))

    @pytest.mark.parametrize(
        ("change", "complaint"),
        [
            ({"kind": "rumour"}, "is of an unknown kind 'rumour'"),
            ({"kind": "command"}, "is a command without a destination"),
            ({"kind": "reply"}, "is a reply without a destination"),
            ({"headers": []}, "has headers that are no JSON object"),
            ({"headers": "{}"}, "has headers that are no JSON object"),
            ({"created_at": "yesterday"}, "has a created_at that is no time"),
            ({"id": ""}, "has an empty id"),
            ({"seq": 1}, "has keys that are no columns of relay.outbox that a message is made of: 'seq'"),
        ],
    )
    def test_a_value_that_the_table_would_refuse_is_refused(self, change: dict[str, object], complaint: str) -> None:
        wrong = refused(LEAST | change)
        assert complaint in str(wrong)
        assert (wrong.message.aggregate_type, wrong.message.aggregate_id) == ("order", "7")

    def test_of_keys_that_should_not_be_there_some_are_named(self) -> None:
        complaint = str(refused(LEAST | {f"key {number}" + "x" * 1000: number for number in range(9)}))
        assert complaint.endswith("and 4 more")
        assert len(complaint) < 600

    def test_a_key_that_is_there_twice_is_refused(self) -> None:
        wrong = refused(b'{"type": "T", "type": "U", "aggregate_type": "order", "aggregate_id": "7", "payload": 1}')
        assert "has a key twice: 'type'" in str(wrong)
        assert wrong.message.type == "T"

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            (b"", "is no JSON object: expecting value at character 1"),
            (b"[]", "is no JSON object: no object at character 1"),
            (b'{"aggregate_id": "7", "payload": }', "is no JSON object: expecting value at character 34"),
            (b'{"payload": NaN}', "is no JSON object: NaN is no number"),
            (b'{"payload": ' + b"[" * 100_000, "is no JSON object: nested too deep"),
            (b'\xef\xbb\xbf{"payload": 1}', "is no JSON object"),
            ("{}".encode("utf-16"), "is not text in UTF-8"),
            (b'{"type": "\xff"}', "is not text in UTF-8"),
        ],
    )
    def test_what_is_no_json_is_refused(self, content: bytes, complaint: str) -> None:
        wrong = refused(content)
        assert complaint in str(wrong)
        assert wrong.message.payload == content

    def test_what_stands_before_the_mistake_is_kept(self) -> None:
        assert refused(b'{"aggregate_type": "order", "aggregate_id": "7", ').message.lane.aggregate_id == "7"

    def test_its_own_id_and_its_kind_are_kept(self) -> None:
        content = {key: value for key, value in WHOLE.items() if key != "type"}
        message = refused(content).message
        assert message == captured(WHOLE)._replace(type="", payload=json.dumps(content).encode())

    @given(st.binary())
    @example(b"\0")
    def test_any_garbage_is_malformed(self, content: bytes) -> None:
        """No random bytes are a message."""
        assert refused(content).message == Message(
            derived_id(ORIGIN), Kind.EVENT, *("",) * 3, *(None,) * 5, b"{}", content, "2025-06-01 12:00:00+00", "wal"
        )

    @given(
        st.dictionaries(st.sampled_from(COLUMNS), JSONS | st.sampled_from(["event", "\0", "\ud800", "2025-06-01"])),
        st.sampled_from([b"", b"}", b',"a":1}', b" 1", b"\xff"]),
        st.integers(0, 3),
    )
    def test_whatever_nearly_is_one_is_a_message_or_malformed(
        self, content: dict[str, object], tail: bytes, cut: int
    ) -> None:
        """And what is set aside can be stored: text that is text, headers that are an object, a time that is one."""
        written = json.dumps(LEAST | content).encode()
        try:
            message = captured(written[: len(written) - cut] + tail)
        except Malformed as malformed:
            message = malformed.message
        assert message.id
        assert all("\0" not in field and field.encode() for field in message if isinstance(field, str) and field)
        assert isinstance(json.loads(message.headers), dict)
        assert printed(datetime.fromisoformat(message.created_at)) == message.created_at
