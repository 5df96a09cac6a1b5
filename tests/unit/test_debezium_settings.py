"""Settings of the Debezium envelope, under Debezium's own names."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.capture.debezium.settings import (
    BinaryMode,
    DebeziumSettings,
    DecimalMode,
    HstoreMode,
    IntervalMode,
    Operation,
    TimeMode,
)

PAGE = Path(__file__).parents[2] / "docs" / "envelope-debezium.md"


def told() -> Iterator[tuple[str, list[str], list[str]]]:
    """The table of settings in the documentation: name, what is set in code of the values, and of the default."""
    table = PAGE.read_text(encoding="utf-8").partition("| setting |")[2].partition("\n\n")[0]
    for line in table.splitlines()[2:]:
        name, values, default = (re.findall(r"`([^`]+)`", cell) for cell in line.strip("|").split("|"))
        yield name[0], values, default


def test_the_page_tells_each_setting_with_its_default() -> None:
    defaults = {name: default[0] for name, _, default in told() if default}
    assert DebeziumSettings.parse(defaults) == DebeziumSettings()
    assert sorted([*defaults, "topic.prefix"]) == sorted(name for name, _, _ in told())
    assert len(defaults) + 1 == len(DebeziumSettings.__slots__)


@pytest.mark.parametrize("name", [name for name, _, _ in told() if name.endswith(".mode")])
def test_the_page_tells_each_value_of_a_mode(name: str) -> None:
    (values,) = [values for known, values, _ in told() if known == name]
    for value in values:
        assert DebeziumSettings.parse({name: value}) is not None
    with pytest.raises(ValueError, match="should be") as caught:
        DebeziumSettings.parse({name: "?"})
    assert set(re.split(", | or ", str(caught.value).partition("should be ")[2])) == set(values)


def test_without_settings_they_are_debeziums_defaults() -> None:
    assert DebeziumSettings.parse({}) == DebeziumSettings()


def test_each_has_its_name() -> None:
    settings = DebeziumSettings.parse(
        {
            "decimal.handling.mode": "string",
            "time.precision.mode": "adaptive_time_microseconds",
            "interval.handling.mode": "string",
            "hstore.handling.mode": "map",
            "binary.handling.mode": "base64-url-safe",
            "include.unknown.datatypes": "true",
            "tombstones.on.delete": "false",
            "topic.prefix": "shop",
            "unavailable.value.placeholder": "gone",
            "skipped.operations": "c, u ,d,t",
            "money.fraction.digits": "3",
        }
    )
    assert settings == DebeziumSettings(
        decimal=DecimalMode.STRING,
        time=TimeMode.ADAPTIVE_TIME_MICROSECONDS,
        interval=IntervalMode.STRING,
        hstore=HstoreMode.MAP,
        binary=BinaryMode.BASE64_URL_SAFE,
        include_unknown=True,
        tombstones=False,
        topic_prefix="shop",
        unavailable="gone",
        skipped=frozenset({Operation.CREATE, Operation.UPDATE, Operation.DELETE, Operation.TRUNCATE}),
        money_digits=3,
    )


def test_toml_may_have_them_as_booleans_and_numbers() -> None:
    settings = DebeziumSettings.parse({"tombstones.on.delete": False, "money.fraction.digits": 0})
    assert (settings.tombstones, settings.money_digits) == (False, 0)


def test_large_and_small_letters_are_the_same_as_with_debezium() -> None:
    assert DebeziumSettings.parse({"decimal.handling.mode": "STRING"}).decimal is DecimalMode.STRING


def test_no_operation_is_skipped_with_none() -> None:
    assert DebeziumSettings.parse({"skipped.operations": "none"}).skipped == frozenset()


def test_a_placeholder_may_be_hexadecimal() -> None:
    assert DebeziumSettings.parse({"unavailable.value.placeholder": "hex:c3a9"}).unavailable == "é"


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("decimal.handling.mode", "exact", "decimal.handling.mode should be precise, double or string"),
        (
            "time.precision.mode",
            "structured",
            "time.precision.mode should be adaptive, adaptive_time_microseconds, connect, isostring, microseconds or "
            "nanoseconds",
        ),
        ("interval.handling.mode", True, "interval.handling.mode should be numeric or string"),
        ("hstore.handling.mode", "", "hstore.handling.mode should be json or map"),
        ("binary.handling.mode", "raw", "binary.handling.mode should be bytes, base64, base64-url-safe or hex"),
        ("tombstones.on.delete", "yes", "tombstones.on.delete should be true or false"),
        ("include.unknown.datatypes", 1, "include.unknown.datatypes should be true or false"),
        ("money.fraction.digits", "-1", "money.fraction.digits should be a number from 0 to 18"),
        ("money.fraction.digits", "9" * 5_000, "money.fraction.digits should be a number from 0 to 18"),
        ("money.fraction.digits", "0019", "money.fraction.digits should be a number from 0 to 18"),
        ("topic.prefix", "", "topic.prefix should not be empty"),
        (
            "skipped.operations",
            "t,x",
            "skipped.operations should be some of c, u, d, t with commas between them, or none",
        ),
        (
            "unavailable.value.placeholder",
            "hex:0g",
            "unavailable.value.placeholder should have a text's bytes in UTF-8 as hexadecimal digits after hex:",
        ),
        (
            "decimal.handling.modes",
            "string",
            "decimal.handling.modes is no setting of this envelope: did you mean decimal.handling.mode?",
        ),
    ],
)
def test_a_wrong_one_is_told_in_a_sentence(name: str, value: str | bool | int, told: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the whole text is compared
        DebeziumSettings.parse({name: value})
    assert str(caught.value) == told


def test_a_setting_that_is_not_supported_is_refused_with_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"^slot\.drop\.on\.stop is no setting of this envelope: known are decimal\."):
        DebeziumSettings.parse({"slot.drop.on.stop": "true"})


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(ValueError, match="decimal") as caught:
        DebeziumSettings.parse({"decimal.handling.mode": "x", "tombstones.on.delete": "x", "hstore.mode": "x"})
    assert len(str(caught.value).splitlines()) == 3
