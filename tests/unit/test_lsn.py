"""Positions in the write-ahead log, as PostgreSQL prints them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.wal.lsn import NOWHERE, Lsn, LsnError, format_lsn, parse_lsn


@pytest.mark.parametrize(
    ("text", "lsn"),
    [
        ("0/0", 0),
        ("0/1", 1),
        ("1/0", 1 << 32),
        ("16/B374D848", 0x16_B374D848),
        ("FFFFFFFF/FFFFFFFF", (1 << 64) - 1),
    ],
)
def test_a_position_is_read_and_written_as_postgresql_prints_it(text: str, lsn: int) -> None:
    assert parse_lsn(text) == lsn
    assert format_lsn(Lsn(lsn)) == text


def test_lower_case_is_read_too() -> None:
    assert parse_lsn("16/b374d848") == parse_lsn("16/B374D848")


def test_nowhere_is_the_position_before_all_others() -> None:
    assert format_lsn(NOWHERE) == "0/0"


@given(st.integers(0, (1 << 64) - 1))
def test_what_is_written_is_read_back(lsn: int) -> None:
    assert parse_lsn(format_lsn(Lsn(lsn))) == lsn


@pytest.mark.parametrize(
    "text",
    ["", "/", "1", "1/", "/1", "0x1/0", "G/0", "-1/0", "1/2/3", "1 /2", "1/2 ", "1/2\n", "123456789/0", "0/123456789"],
)
def test_other_text_is_refused_and_shown(text: str) -> None:
    with pytest.raises(LsnError) as refused:
        parse_lsn(text)
    assert repr(text) in str(refused.value)
