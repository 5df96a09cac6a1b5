"""What a message looks like on the wire: CloudEvents in binary mode or plain, and headers that AMQP can carry."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika.frame import Header
from pika.spec import BasicProperties

from relay.broker.properties import HeaderValue, Properties
from relay.capture.envelope import CLOUDEVENTS, ENVELOPES, PLAIN, TIMES, Envelope
from relay.capture.message import HeadersError, Kind, Message
from relay.wal.lsn import NOWHERE, Lsn, Position

COMMAND = Message(
    id="0197a0b0-0000-7000-8000-000000000001",
    kind=Kind.COMMAND,
    aggregate_type="order",
    aggregate_id="7",
    type="ReserveCredit",
    destination="customers",
    correlation_id="saga-1",
    reply_to="orders",
    causation_id="0197a0b0-0000-7000-8000-000000000000",
    operation="saga-1/reserve_credit/0",
    headers=b'{"traceparent": "00-ab-cd-01", "tracestate": "vendor=1", "attempt": 2}',
    payload=b'{"amount":   "12.50"}',
    created_at="2025-06-01 12:00:00.5+00",
)

POSITION = Position(Lsn(0x16_B374D848), 3)
SEQUENCE = "00000016B374D848-0000000000000003"

both = pytest.mark.parametrize("form", [CLOUDEVENTS, PLAIN], ids=["cloudevents", "plain"])


def envelope(message: Message, source: str, form: Envelope = CLOUDEVENTS, position: Position = POSITION) -> Properties:
    """Both parts of it, as they leave together."""
    constant, own = form.common(message, source), form.varying(message, position)
    texts: dict[str, HeaderValue] = dict(zip(own.names, own.texts, strict=True))
    assert len({*constant.headers, *own.headers, *texts}) == len(constant.headers) + len(own.headers) + len(own.names)
    return replace(
        constant,
        message_id=own.message_id,
        correlation_id=own.correlation_id,
        reply_to=own.reply_to,
        timestamp=own.timestamp,
        headers={**constant.headers, **own.headers, **texts},
    )


@both
def test_every_field_has_its_property(form: Envelope) -> None:
    properties = envelope(COMMAND, "shop", form)
    assert properties.message_id == COMMAND.id
    assert properties.type == "ReserveCredit"
    assert properties.content_type == "application/json"
    assert properties.correlation_id == "saga-1"
    assert properties.reply_to == "orders"
    assert properties.app_id == "shop"
    assert properties.timestamp == 1748779200


def test_the_headers_are_those_of_the_relay_and_those_of_the_row() -> None:
    assert envelope(COMMAND, "shop").headers == {
        "ce-id": COMMAND.id,
        "ce-source": "shop",
        "ce-type": "ReserveCredit",
        "ce-specversion": "1.0",
        "ce-time": "2025-06-01T12:00:00.5Z",
        "ce-partitionkey": "7",
        "ce-sequence": SEQUENCE,
        "ce-traceparent": "00-ab-cd-01",
        "ce-tracestate": "vendor=1",
        "aggregate_type": "order",
        "aggregate_id": "7",
        "causation_id": COMMAND.causation_id,
        "operation": "saga-1/reserve_credit/0",
        "traceparent": "00-ab-cd-01",
        "tracestate": "vendor=1",
        "attempt": 2,
    }


def test_a_plain_message_has_nothing_of_cloudevents() -> None:
    assert envelope(COMMAND, "shop", PLAIN).headers == {
        "aggregate_type": "order",
        "aggregate_id": "7",
        "causation_id": COMMAND.causation_id,
        "operation": "saga-1/reserve_credit/0",
        "traceparent": "00-ab-cd-01",
        "tracestate": "vendor=1",
        "attempt": 2,
    }


def test_a_message_of_debeziums_form_brings_its_key_in_a_header() -> None:
    changed = COMMAND._replace(headers=json.dumps({"key": '{"id":7}'}).encode(), causation_id=None, operation=None)
    properties = envelope(changed, "shop", ENVELOPES["debezium"])
    assert properties.headers == {"aggregate_type": "order", "aggregate_id": "7", "key": '{"id":7}'}


def test_the_names_of_a_configuration_are_those_of_the_envelopes() -> None:
    assert set(ENVELOPES) == {"cloudevents", "plain", "debezium"}
    assert ENVELOPES["cloudevents"] is CLOUDEVENTS
    assert ENVELOPES["plain"] is PLAIN


def test_what_a_message_has_not_is_left_out() -> None:
    event = COMMAND._replace(
        kind=Kind.EVENT, correlation_id=None, reply_to=None, causation_id=None, operation=None, headers=b"{}"
    )
    properties = envelope(event, "shop")
    assert (properties.correlation_id, properties.reply_to) == (None, None)
    assert set(properties.headers) == {
        "ce-id", "ce-source", "ce-type", "ce-specversion", "ce-time", "ce-partitionkey", "ce-sequence",
        "aggregate_type", "aggregate_id",
    }  # fmt: skip
    assert set(envelope(event, "shop", PLAIN).headers) == {"aggregate_type", "aggregate_id"}


OWN = {"traceparent", "tracestate", "attempt"}


@pytest.mark.parametrize("name", sorted(envelope(COMMAND, "shop").headers.keys() - OWN))
def test_a_row_cannot_replace_the_headers_of_the_relay(name: str) -> None:
    forged = COMMAND._replace(headers=json.dumps({name: "forged", "traceparent": "00-1", "tracestate": "a=1"}).encode())
    assert envelope(forged, "shop").headers[name] != "forged"


@pytest.mark.parametrize("name", sorted(envelope(COMMAND, "shop", PLAIN).headers.keys() - OWN))
def test_a_row_cannot_replace_the_headers_of_a_plain_message_either(name: str) -> None:
    forged = COMMAND._replace(headers=json.dumps({name: "forged"}).encode())
    assert envelope(forged, "shop", PLAIN).headers[name] != "forged"


@pytest.mark.parametrize("name", ["ce-id", "ce-source", "ce-type", "ce-time", "ce-partitionkey", "ce-sequence"])
def test_a_row_cannot_speak_for_the_relay_in_capitals_nor_where_it_is_silent(name: str) -> None:
    """Readers of CloudEvents take CE-ID for ce-id, and the last one counts."""
    silent = COMMAND._replace(aggregate_id="", created_at="infinity")
    forged = silent._replace(headers=json.dumps({name: "forged", name.upper(): "forged"}).encode())
    assert envelope(forged, "shop").headers == envelope(silent._replace(headers=b"{}"), "shop").headers


def test_a_row_may_bring_attributes_of_its_own() -> None:
    own = {"ce-subject": "order 7", "ce-traceparent": "00-its-own-01", "ce-region": "eu"}
    headers = envelope(COMMAND._replace(headers=json.dumps(own).encode()), "shop").headers
    assert {name: headers[name] for name in own} == own


@pytest.mark.parametrize("traceparent", [None, "", 7, ["00-ab-cd-01"]])
def test_a_trace_that_is_no_text_is_none(traceparent: HeaderValue) -> None:
    headers = {"traceparent": traceparent, "tracestate": "vendor=1"}
    said = envelope(COMMAND._replace(headers=json.dumps(headers).encode()), "shop").headers
    assert said["traceparent"] == traceparent
    assert not {"ce-traceparent", "ce-tracestate"} & said.keys()


def test_a_trace_may_come_without_a_state() -> None:
    said = envelope(COMMAND._replace(headers=b'{"traceparent": "00-ab-cd-01"}'), "shop").headers
    assert said["ce-traceparent"] == "00-ab-cd-01"
    assert "ce-tracestate" not in said


def test_a_message_of_no_aggregate_has_no_partition_key() -> None:
    """Attributes of CloudEvents are never empty."""
    said = envelope(COMMAND._replace(aggregate_id=""), "shop").headers
    assert "ce-partitionkey" not in said
    assert said["aggregate_id"] == ""


LAST_LSN = (1 << 64) - 1
LAST_SEQ = (1 << 63) - 1
positions = st.builds(Position, st.integers(0, LAST_LSN).map(Lsn), st.integers(0, LAST_SEQ))


@given(positions, positions)
def test_sequences_sort_as_the_stream_does(one: Position, other: Position) -> None:
    said = [str(envelope(COMMAND, "shop", position=position).headers["ce-sequence"]) for position in (one, other)]
    assert (said[0] < said[1]) == (one < other)
    assert (said[0] == said[1]) == (one == other)


def test_rows_that_are_older_than_the_stream_come_first() -> None:
    older = envelope(COMMAND, "shop", position=Position(NOWHERE, LAST_SEQ)).headers["ce-sequence"]
    assert older == "0000000000000000-7FFFFFFFFFFFFFFF"
    assert str(older) < SEQUENCE


@pytest.mark.parametrize(
    ("created_at", "timestamp"),
    [
        ("1970-01-01 00:00:00+00", 0),
        ("2025-06-01 12:00:00+00", 1748779200),
        ("2025-06-01 12:00:00.999999+00", 1748779200),
    ],
)
@both
def test_the_timestamp_is_in_whole_seconds(created_at: str, timestamp: int, form: Envelope) -> None:
    assert envelope(COMMAND._replace(created_at=created_at), "shop", form).timestamp == timestamp


@pytest.mark.parametrize(
    ("created_at", "time"),
    [
        ("2025-06-01 12:00:00+00", "2025-06-01T12:00:00Z"),
        ("2025-06-01 12:00:00.5+00", "2025-06-01T12:00:00.5Z"),
        ("2025-06-01 12:00:00.999999+00", "2025-06-01T12:00:00.999999Z"),
        ("1969-12-31 23:59:59+00", "1969-12-31T23:59:59Z"),
        ("0001-01-01 00:00:00+00", "0001-01-01T00:00:00Z"),
        ("9999-12-31 23:59:59.999999+00", "9999-12-31T23:59:59.999999Z"),
        # Not as PostgreSQL prints it.
        ("2025-06-01T12:00:00Z", "2025-06-01T12:00:00Z"),
        ("2025-06-01 14:00:00+02", "2025-06-01T12:00:00Z"),
        ("2025-06-01 14:00:00,5+00", "2025-06-01T14:00:00.500000Z"),
        ("2025-W22-7 12:00:00+00", "2025-06-01T12:00:00Z"),
        ("2025-06-01 12:00:00", "2025-06-01T12:00:00Z"),
        ("2025-06-01 12:00+00", "2025-06-01T12:00:00Z"),
        ("2025-06-01", "2025-06-01T00:00:00Z"),
    ],
)
def test_the_time_is_told_as_the_internet_tells_it(created_at: str, time: str) -> None:
    assert envelope(COMMAND._replace(created_at=created_at), "shop").headers["ce-time"] == time


NO_TIMES = [
    "infinity",
    "-infinity",
    "0044-03-15 12:00:00+00 BC",
    "294276-12-31 23:59:59.999999+00",
    "0001-01-01 00:00:00+01",
    "",
]


@both
@pytest.mark.parametrize("created_at", [*NO_TIMES, "1969-12-31 23:59:59+00"])  # AMQP's timestamp has no sign
def test_a_message_of_a_time_that_amqp_cannot_tell_leaves_without_one(created_at: str, form: Envelope) -> None:
    assert envelope(COMMAND._replace(created_at=created_at), "shop", form).timestamp is None


@pytest.mark.parametrize("created_at", NO_TIMES)
def test_an_event_of_a_time_that_the_internet_cannot_tell_leaves_without_one(created_at: str) -> None:
    assert "ce-time" not in envelope(COMMAND._replace(created_at=created_at), "shop").headers


@both
def test_headers_that_every_message_has_are_named_once_for_all_of_them(form: Envelope) -> None:
    """The encoder knows them again because it is the very same tuple."""
    other = COMMAND._replace(id="another", aggregate_id="8", headers=b"{}", operation=None, created_at="2026-01-01")
    assert form.varying(other, POSITION).names is form.varying(COMMAND, POSITION).names


@both
def test_headers_of_one_message_do_not_turn_up_in_the_next(form: Envelope) -> None:
    bare = COMMAND._replace(headers=b"{}", causation_id=None, operation=None)
    before = envelope(bare, "shop", form)
    for other in (COMMAND, bare._replace(operation=""), bare._replace(created_at="", aggregate_id="")):
        assert envelope(other, "shop", form) != before
        assert envelope(bare, "shop", form) == before


def test_more_times_than_are_remembered_are_told_right() -> None:
    for second in (*range(2 * TIMES), *range(2 * TIMES)):
        created_at = str(datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=second))
        said = envelope(COMMAND._replace(created_at=created_at), "shop")
        assert said.timestamp == second
        assert datetime.fromisoformat(str(said.headers["ce-time"])).timestamp() == second


def test_what_messages_of_a_kind_have_in_common_says_nothing_of_one_of_them() -> None:
    other = COMMAND._replace(
        id="0197a0b0-0000-7000-8000-000000000002",
        aggregate_id="8",
        correlation_id=None,
        reply_to=None,
        causation_id=None,
        operation=None,
        headers=b'{"ce-source": "forged", "own": 1}',
        payload=b"{}",
        created_at="",
    )
    for form in (CLOUDEVENTS, PLAIN):
        assert form.common(other, "shop") == form.common(COMMAND, "shop")
    assert PLAIN.common(COMMAND, "shop").headers == {"aggregate_type": "order"}
    assert CLOUDEVENTS.common(COMMAND, "shop") == Properties(
        message_id=None,
        type="ReserveCredit",
        app_id="shop",
        headers={"ce-source": "shop", "ce-type": "ReserveCredit", "ce-specversion": "1.0", "aggregate_type": "order"},
    )


@both
@pytest.mark.parametrize(
    ("headers", "complaint"),
    [
        (b'{"deep": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deep"),
        (b'["no", "object"]', "no JSON object"),
        (b'{"half', "not JSON in UTF-8"),
        (b'{"latin": "\xe9"}', "not JSON in UTF-8"),
    ],
    ids=["too deep", "a list", "cut off", "another encoding"],
)
def test_headers_that_cannot_be_understood_are_refused_with_the_name_of_the_message(
    headers: bytes, complaint: str, form: Envelope
) -> None:
    with pytest.raises(HeadersError, match=f"the headers of command ReserveCredit {COMMAND.id} .* {complaint}"):
        form.varying(COMMAND._replace(headers=headers), POSITION)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
integers = st.integers(-(1 << 63), (1 << 63) - 1)
header_values = st.recursive(
    st.none() | st.booleans() | texts | integers,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@both
@given(headers=st.dictionaries(texts, header_values, max_size=3))
def test_any_headers_of_a_row_arrive_as_they_were_written(headers: dict[str, HeaderValue], form: Envelope) -> None:
    the_relays = envelope(COMMAND._replace(headers=b"{}"), "shop", form).headers
    properties = envelope(COMMAND._replace(headers=json.dumps(headers).encode()), "shop", form)
    assert over_the_wire(dict(properties.headers)) == {**headers, **the_relays}


messages = st.builds(
    Message,
    id=texts,
    kind=st.sampled_from(Kind),
    aggregate_type=texts,
    aggregate_id=texts,
    type=texts,
    destination=st.none() | texts,
    correlation_id=st.none() | texts,
    reply_to=st.none() | texts,
    causation_id=st.none() | texts,
    operation=st.none() | texts,
    headers=st.dictionaries(texts | st.sampled_from(["ce-id", "ce-type", "aggregate_type", "operation"]), header_values)
    .map(json.dumps)
    .map(str.encode),
    payload=st.just(b"{}"),
    created_at=st.datetimes(timezones=st.just(UTC)).map(str),
)


@given(messages, texts, positions)
def test_both_parts_together_are_the_message(message: Message, source: str, position: Position) -> None:
    """CloudEvents, written down once more: the row's headers first, and the relay's over them."""
    optional = {
        "causation_id": message.causation_id,
        "operation": message.operation,
        "ce-partitionkey": message.aggregate_id or None,
    }
    properties = envelope(message, source, position=position)
    assert properties.headers == {
        **json.loads(message.headers),
        "ce-id": message.id,
        "ce-source": source,
        "ce-type": message.type,
        "ce-specversion": "1.0",
        "ce-time": message.created_at[:-6].replace(" ", "T") + "Z",
        "ce-sequence": f"{position.commit_lsn:016X}-{position.ordinal:016X}",
        "aggregate_type": message.aggregate_type,
        "aggregate_id": message.aggregate_id,
        **{name: value for name, value in optional.items() if value is not None},
    }
    assert (properties.message_id, properties.type, properties.app_id) == (message.id, message.type, source)
    assert (properties.correlation_id, properties.reply_to) == (message.correlation_id, message.reply_to)


@pytest.mark.parametrize(
    ("written", "arrived"),
    [
        (b'{"weight": 1.50}', {"weight": "1.50"}),
        (b'{"rates": [0.10, -2.5e-3]}', {"rates": ["0.10", "-2.5e-3"]}),
        (b'{"nested": {"huge": 1e400}}', {"nested": {"huge": "1e400"}}),
        (b'{"big": 9223372036854775808}', {"big": "9223372036854775808"}),
        (b'{"endless": ' + b"9" * 5000 + b"}", {"endless": "9" * 5000}),
    ],
    ids=["fraction", "fractions in a list", "beyond a float", "beyond 64 bits", "beyond Python's patience"],
)
def test_a_number_for_which_amqp_has_no_exact_type_arrives_as_it_was_written(
    written: bytes, arrived: dict[str, HeaderValue]
) -> None:
    headers = over_the_wire(dict(envelope(COMMAND._replace(headers=written), "shop").headers))
    assert {name: headers[name] for name in arrived} == arrived


def over_the_wire(headers: dict[str, Any]) -> dict[str, Any]:
    """Written and read by pika."""
    frame = Header(1, 0, BasicProperties(headers=headers))
    arrived = BasicProperties()
    arrived.decode(frame.marshal()[7 + 12 :])
    return arrived.headers
