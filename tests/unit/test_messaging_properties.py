"""Properties survive being stored, whatever AMQP lets a header be."""

import json
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.broker.properties import Properties
from relay.messaging.properties import from_json, to_json

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
names = texts | st.sampled_from(["base64", "time", "decimal", "float", "table"])
scalars = (
    texts
    | st.binary(max_size=8)
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.booleans()
    | st.none()
    | st.datetimes(timezones=st.just(UTC))
    | st.decimals(allow_nan=False, allow_infinity=False)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=8
)
optional = st.none() | texts


@given(
    st.builds(
        Properties,
        message_id=optional,
        type=optional,
        content_type=optional,
        correlation_id=optional,
        reply_to=optional,
        timestamp=st.none() | st.integers(0, 2**63 - 1),
        app_id=optional,
        headers=st.dictionaries(names, values, max_size=4),
    )
)
def test_they_come_back_as_they_were(properties: Properties) -> None:
    assert from_json(json.loads(to_json(properties))) == properties


def test_what_is_absent_stays_absent() -> None:
    """The defaults of Properties are for those who send."""
    properties = Properties(None, content_type=None)
    assert from_json(json.loads(to_json(properties))) == properties


def test_a_table_that_looks_like_bytes_is_no_bytes() -> None:
    properties = Properties("m", headers={"x": {"base64": "AAAA"}, "y": b"\0\0\0"})
    assert from_json(json.loads(to_json(properties))).headers == properties.headers


def test_usual_headers_are_stored_as_they_read() -> None:
    headers = {"operation": "s/a/action", "n": 1, "nested": {"list": [True, None]}}
    assert json.loads(to_json(Properties("m", headers=headers)))["headers"] == headers


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_json_has_not(value: float) -> None:
    text = to_json(Properties("m", headers={"x": value}))
    assert "NaN" not in text
    assert "Infinity" not in text
    assert repr(from_json(json.loads(text)).headers["x"]) == repr(value)


def test_times_and_decimals_are_readable() -> None:
    headers = {"at": datetime(2025, 1, 2, tzinfo=UTC), "price": Decimal("1.50")}
    said = json.loads(to_json(Properties("m", headers=headers)))["headers"]  # type: ignore[arg-type]
    assert said == {"at": {"time": "2025-01-02T00:00:00+00:00"}, "price": {"decimal": "1.50"}}
