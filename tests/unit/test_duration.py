"""Durations as people write them."""

import pytest

from relay.duration import seconds


@pytest.mark.parametrize(
    ("text", "duration_s"),
    [("500ms", 0.5), ("1s", 1), ("90s", 90), ("30m", 1800), ("2h", 7200), ("7d", 604_800), ("0s", 0)],
)
def test_a_number_and_a_unit(text: str, duration_s: float) -> None:
    assert seconds(text) == duration_s


@pytest.mark.parametrize("text", ["", "5", "s", "1.5s", "-1s", "1 s", "1s ", "1S", "1min", "1h30m", "٣s"])
def test_anything_else_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match="should be a time like 500ms, 90s, 30m, 12h or 7d"):
        seconds(text)


@pytest.mark.parametrize("text", ["1000000000d", "9" * 400 + "s"])
def test_what_no_clock_can_count_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="less than a billion days"):
        seconds(text)
