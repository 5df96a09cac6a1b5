"""Failures, as they are kept and told."""

import json
from datetime import UTC, datetime

import pytest

from relay.messaging.failures import ERROR_MAX_CHARS, Mishap, described, summed_up

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("no\n  way"), "ValueError: no way"),
        (ValueError(), "ValueError"),
        (ValueError("a\0b"), "ValueError: ab"),
        (ValueError("\ud800"), "ValueError: ?"),
    ],
)
def test_an_error_is_one_line_that_every_table_can_hold(error: Exception, text: str) -> None:
    assert described(error) == text


def test_an_error_is_not_kept_at_any_length() -> None:
    assert len(described(ValueError("x" * 10_000))) == ERROR_MAX_CHARS


def test_an_entry_comes_back_as_it_was() -> None:
    mishap = Mishap(AT, 3, "ValueError: no")
    assert Mishap.read(json.loads(json.dumps(mishap.entry))) == mishap


def test_the_same_error_several_times_in_a_row_is_said_once() -> None:
    errors = ["A", "A", "B", "A"]
    history = [Mishap(AT, number, error) for number, error in enumerate(errors, 1)]
    assert summed_up(history) == "attempts 1 to 2: A; attempt 3: B; attempt 4: A"
