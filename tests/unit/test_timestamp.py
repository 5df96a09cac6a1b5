"""The time of a message is in the form in which PostgreSQL prints it."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.capture.timestamp import of_date, of_timestamp, printed, read

NOON = datetime(2025, 6, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (NOON, "2025-06-01 12:00:00+00"),
        (NOON.replace(microsecond=500_000), "2025-06-01 12:00:00.5+00"),
        (NOON.replace(microsecond=10), "2025-06-01 12:00:00.00001+00"),
        (NOON.replace(second=10), "2025-06-01 12:00:10+00"),
        (NOON.replace(year=44), "0044-06-01 12:00:00+00"),
        (NOON.astimezone(timezone(timedelta(hours=2))), "2025-06-01 12:00:00+00"),
    ],
)
def test_a_time_is_printed_as_postgresql_does(moment: datetime, text: str) -> None:
    assert printed(moment) == text


@given(st.datetimes(timezones=st.just(UTC)))
def test_what_is_printed_is_the_time(moment: datetime) -> None:
    assert datetime.fromisoformat(printed(moment)) == moment
    assert read(printed(moment)) == printed(moment)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2025-06-01T12:00:00Z", "2025-06-01 12:00:00+00"),
        ("2025-06-01T14:00:00.250+02:00", "2025-06-01 12:00:00.25+00"),
        ("2025-06-01 12:00:00", "2025-06-01 12:00:00+00"),
        ("2025-06-01", "2025-06-01 00:00:00+00"),
        ("1665504197650", "2022-10-11 16:03:17.65+00"),
        ("0", "1970-01-01 00:00:00+00"),
        ("-1", "1969-12-31 23:59:59.999+00"),
    ],
)
def test_a_time_is_read_from_iso_8601_and_from_milliseconds(text: str, expected: str) -> None:
    assert read(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "Tue, 11 Oct 2022 16:03:17 GMT",
        "999999999999999",
        "1" * 5000,
        "1612010112345678",
        "2025-W01-1",
        "0001-01-01T00:00:00+14:00",
    ],
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2025-06-01 12:00:00.5", "2025-06-01 12:00:00.5+00"),
        ("0044-03-15 12:00:00 BC", "0044-03-15 12:00:00+00 BC"),
        ("infinity", "infinity"),
        ("-infinity", "-infinity"),
    ],
)
def test_a_timestamp_without_a_zone_is_in_utc(text: str, expected: str) -> None:
    assert of_timestamp(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2025-06-01", "2025-06-01 00:00:00+00"),
        ("0044-03-15 BC", "0044-03-15 00:00:00+00 BC"),
        ("infinity", "infinity"),
    ],
)
def test_a_date_is_its_beginning(text: str, expected: str) -> None:
    assert of_date(text) == expected
