"""Values in the Debezium envelope: as Debezium 3.6.3 wrote the same ones, but for differences that are listed here."""

import json
from base64 import b64decode
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.capture.debezium.codec import Codec, codec
from relay.capture.debezium.number import java_float, unscaled
from relay.capture.debezium.settings import DebeziumSettings
from relay.wal.pgtype import Category, Field, PgType
from tests.unit.debezium_golden import ABSENT, RUNS, Sample, built_in_types, samples

SAMPLES: Final = list(samples())
TYPES: Final = built_in_types()
SETTINGS: Final = {run: DebeziumSettings.parse(settings) for run, settings in RUNS.items()}
TEXT_TIMES: Final = "readable"
"""The run whose times are texts."""

NO_64_BITS: Final = {"infinity": 2**63 - 1, "-infinity": -(2**63)}

SAME_IN_EVERY_RUN: Final[dict[tuple[str, str], Any]] = {
    # Debezium loses them: null, or an object's address.
    ("name", "na me"): "na me",
    ("integer[]", "{{1,2},{3,4}}"): [[1, 2], [3, 4]],
    ("text[]", "{{a,b},{c,d}}"): [["a", "b"], ["c", "d"]],
    ("mood[]", "{happy,NULL,sad}"): ["happy", None, "sad"],
    ("bit(3)[]", "{101}"): ["BQ=="],
    ("bit(1)[]", "{1}"): [True],
}

BY_RUN: Final[dict[tuple[str, str], dict[str, Any]]] = {
    # One NaN, and Debezium drops the array.
    ("numeric[]", "{1.5,100,NULL,NaN}"): {
        "defaults": [{"scale": 1, "value": "Dw=="}, {"scale": 0, "value": "ZA=="}, None, None],
        "readable": ["1.5", "100", None, "NAN"],
        "connect": [1.5, 100.0, None, "NaN"],
    },
    # Debezium reads them through java.sql.Time and Date: milliseconds, the Julian calendar, no years BC.
    ("time[]", "{12:34:56.789012}"): {
        "defaults": [45296789012],
        "readable": ["12:34:56.789012Z"],
        "connect": [45296789],
        "url": [45296789012000],
    },
    ("date[]", '{"0044-03-15 BC"}'): {"defaults": [-735160], "readable": ["-0043-03-15Z"]},
    ("date[]", "{infinity,-infinity}"): {
        "defaults": [-2147472692, -2147472691],
        "readable": ["-5877611-06-21Z", "-5877611-06-22Z"],
    },
    # Debezium makes them the shortest ones.
    ("interval", "infinity"): {"defaults": NO_64_BITS["infinity"], "readable": "infinity"},
    ("interval", "-infinity"): {"defaults": NO_64_BITS["-infinity"], "readable": "-infinity"},
    # Debezium takes the scale for 2046.
    ("numeric(5,-2)", "1234600"): {"defaults": "Etao", "readable": "1234600", "connect": 1234600.0},
    ("numeric(5,-2)", "0"): {"defaults": "AA==", "readable": "0", "connect": 0.0},
    # Debezium makes empty arrays of them; here they count as types that it does not know.
    ("int2vector", "1 2 3"): {"defaults": ABSENT, "readable": "MSAyIDM=", "micro": "3120322033"},
    ("oidvector", "1 2"): {"defaults": ABSENT, "readable": "MSAy", "micro": "312032"},
    # Debezium leaves them out even where unknown types are wanted.
    ("money[]", "{$1.50}"): {"defaults": ABSENT, "readable": ["JDEuNTA="], "micro": ["24312e3530"]},
    ("name[]", "{a}"): {"defaults": ABSENT, "readable": ["YQ=="], "micro": ["61"]},
    ("interval[]", '{"1 day"}'): {"defaults": ABSENT, "readable": ["MSBkYXk="], "micro": ["3120646179"]},
    ("bit varying[]", "{101}"): {"defaults": ABSENT, "readable": ["MTAx"], "micro": ["313031"]},
    ("point[]", '{"(1,2)"}'): {"defaults": ABSENT, "readable": ["KDEsMik="], "micro": ["28312c3229"]},
}
"""Where ours is not Debezium's. A run that is not named has what another one of the same kind has."""

DIFFERENT: Final = {*SAME_IN_EVERY_RUN, *BY_RUN}

AS_DEBEZIUM: Final = [one for one in SAMPLES if one.text is not None and (one.column, one.text) not in DIFFERENT]
NOT_SENT: Final = [one for one in SAMPLES if one.text is None]


def ours(sample: Sample, run: str) -> Any:
    found = codec(sample.type, sample.modifier, SETTINGS[run])
    if found is None:
        return ABSENT
    return json.loads(found.unavailable if sample.text is None else found.write(sample.text))


def same(one: Any, other: Any) -> bool:
    """As JSON; the pairs of an hstore have no order, not even inside a string."""
    if isinstance(one, str) and isinstance(other, str) and one.startswith("{") and other.startswith("{"):
        return one == other or bool(json.loads(one) == json.loads(other))
    return type(one) is type(other) and bool(one == other)


@pytest.mark.parametrize("sample", AS_DEBEZIUM, ids=str)
def test_a_value_is_written_as_debezium_writes_it(sample: Sample) -> None:
    assert sample.debezium.keys() == RUNS.keys()
    for run, expected in sample.debezium.items():
        assert same(ours(sample, run), expected), run


@pytest.mark.parametrize("sample", [one for one in SAMPLES if (one.column, one.text) in SAME_IN_EVERY_RUN], ids=str)
def test_a_value_that_debezium_loses_is_kept(sample: Sample) -> None:
    expected = SAME_IN_EVERY_RUN[sample.column, sample.text or ""]
    for run, lost in sample.debezium.items():
        assert lost is None or lost == expected or "[Ljava.lang" in str(lost) or lost == [None, None]
        assert ours(sample, run) == expected


@pytest.mark.parametrize(
    ("sample", "run"),
    [
        pytest.param(sample, run, id=f"{sample} {run}")
        for sample in SAMPLES
        for run in BY_RUN.get((sample.column, sample.text or ""), ())
    ],
)
def test_a_value_that_debezium_bends_is_kept(sample: Sample, run: str) -> None:
    assert ours(sample, run) == BY_RUN[sample.column, sample.text or ""][run]


def test_the_list_of_differences_is_of_values_that_do_differ() -> None:
    by_name = {(one.column, one.text): one for one in SAMPLES}
    assert by_name.keys() >= DIFFERENT
    assert [
        name for name in DIFFERENT if all(ours(by_name[name], run) == by_name[name].debezium[run] for run in RUNS)
    ] == []


@pytest.mark.parametrize("sample", NOT_SENT, ids=str)
def test_a_value_that_was_not_sent_is_never_null(sample: Sample) -> None:
    """Debezium has a placeholder for some types; for others it writes null, and so would overwrite what is there."""
    for run, expected in sample.debezium.items():
        written = ours(sample, run)
        if expected is not None:
            assert same(written, expected), run
        else:
            assert written in placeholders(SETTINGS[run].unavailable), run


def placeholders(text: str) -> list[Any]:
    """What may stand where Debezium has null: the text, or an array that holds it, or its bytes as numbers."""
    signed = [byte - 256 if byte > 127 else byte for byte in text.encode()]
    pair = {text: text}
    pairs = json.dumps(pair, ensure_ascii=False, separators=(",", ":"))
    items = [text, pair, pairs, "X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ=="]
    return [*items, *([item] for item in items), signed]


# What the runs have not.


def written(kind: PgType, text: str, modifier: int = -1, **settings: str) -> Any:
    return json.loads(found(kind, modifier, **settings).write(text))


def found(kind: PgType, modifier: int = -1, **settings: str) -> Codec:
    parsed = DebeziumSettings.parse({name.replace("_", "."): value for name, value in settings.items()})
    made = codec(kind, modifier, parsed)
    assert made is not None
    return made


def test_a_domain_over_an_enum_is_its_text() -> None:
    """Debezium does not start where there is one."""
    mood = PgType(1, "public", "mood", Category.ENUM)
    assert written(PgType(2, "public", "temper", Category.DOMAIN, mood), "sad") == "sad"


def test_a_zone_with_seconds_is_taken_off() -> None:
    """Debezium cannot read it."""
    assert written(TYPES[1266], "08:09:10.5+02:03:04") == "06:06:06.5Z"


@pytest.mark.parametrize(
    ("text", "wkb", "srid"),
    [
        ("0101000020E6100000000000000000F03F0000000000000040", "AQEAACDmEAAAAAAAAAAA8D8AAAAAAAAAQA==", 4326),
        ("0101000000000000000000F03F0000000000000040", "AQEAAAAAAAAAAADwPwAAAAAAAABA", None),
        ("0020000001000010E63FF00000000000004000000000000000", "ACAAAAEAABDmP/AAAAAAAABAAAAAAAAAAA==", 4326),
    ],
)
@pytest.mark.parametrize("name", ["geometry", "geography"])
def test_postgis_is_its_ewkb_as_debezium_takes_it_apart(name: str, text: str, wkb: str, srid: int | None) -> None:
    """The bytes and the number are those of Debezium's PostgisGeometry for the same texts."""
    assert written(PgType(1, "postgis", name), text) == {"wkb": wkb, "srid": srid}


def test_xml_is_its_text() -> None:
    assert written(PgType(142, "pg_catalog", "xml"), "<a/>") == "<a/>"


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("$1,234,567.89", "1234567.89"),
        ("-12,34 €", "-12.34"),
        ("($5.00)", "-5.00"),
        ("1.234 Ft", "1234"),
        ("£0.05", "0.05"),
    ],
)
def test_money_is_read_in_any_country(text: str, amount: str) -> None:
    assert written(TYPES[790], text, decimal_handling_mode="string") == amount


def test_money_is_rounded_to_the_decimal_places_that_are_set() -> None:
    assert written(TYPES[790], "$2.50", money_fraction_digits="0") == "Aw=="
    most = written(TYPES[790], "$92,233,720,368,547,758.07", money_fraction_digits="18")
    assert integer(most) == 9223372036854775807 * 10**16


def test_a_composite_is_left_out_unless_unknown_types_are_wanted() -> None:
    pair = PgType(1, "public", "pair", Category.COMPOSITE, fields=(Field("a", TYPES[23]),))
    assert codec(pair, -1, DebeziumSettings()) is None
    assert written(pair, "(1)", include_unknown_datatypes="true") == "KDEp"


def test_a_type_of_the_user_is_not_taken_for_a_built_in_one_of_that_name() -> None:
    assert codec(PgType(99, "public", "int4"), -1, DebeziumSettings()) is None
    assert codec(PgType(99, "public", "geometry", Category.COMPOSITE), -1, DebeziumSettings()) is None


WRONG: Final[Mapping[int, str]] = {
    16: "yes",
    17: "abc",
    20: "1.5",
    23: "",
    600: "(1)",
    701: "1,5",
    790: "free",
    1082: "2024-2-30",
    1083: "1:2:3",
    1114: "2024-01-01",
    1184: "2024-01-01 00:00:00",
    1186: "soon",
    1266: "12:00:00",
    1560: "102",
    1700: "1e5",
}


@pytest.mark.parametrize("decimal", ["precise", "double", "string"])
@pytest.mark.parametrize("time", ["adaptive", "isostring", "nanoseconds", "connect"])
@pytest.mark.parametrize("oid", WRONG)
def test_a_text_that_is_not_of_its_type_is_refused(oid: int, decimal: str, time: str) -> None:
    made = found(TYPES[oid], decimal_handling_mode=decimal, time_precision_mode=time)
    with pytest.raises(ValueError, match=r"^[^'\"]+$"):
        made.write(WRONG[oid])


@pytest.mark.parametrize(
    ("oid", "modifier", "text"),
    [(1700, (10 << 16 | 2) + 4, "1.555"), (1560, 1, "10"), (1082, -1, "2024-01-01 00:00:00"), (1114, 3, "2024-01-01")],
)
def test_a_text_that_is_not_of_its_column_is_refused(oid: int, modifier: int, text: str) -> None:
    with pytest.raises(ValueError, match=r"^it "):
        found(TYPES[oid], modifier).write(text)


def test_digits_that_the_column_does_not_tell_of_are_not_dropped() -> None:
    """So it is while a type is altered, and the column's description is older than the value."""
    assert written(TYPES[1184], "2024-02-29 12:34:56.789+00", modifier=0) == "2024-02-29T12:34:56.789Z"


@pytest.mark.parametrize("name", ["geometry", "vector", "sparsevec"])
def test_a_text_that_is_not_of_its_extension_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="it is no"):
        found(PgType(1, "public", name)).write("00")


@given(st.decimals(allow_nan=False, allow_infinity=False, places=9))
def test_a_numeric_survives(number: Decimal) -> None:
    text = f"{number:f}"
    whole = written(TYPES[1700], text)
    assert Fraction(integer(whole["value"]), 10 ** whole["scale"]) == Fraction(number)
    modifier = (40 << 16 | 9) + 4
    assert Fraction(integer(written(TYPES[1700], text, modifier)), 10**9) == Fraction(number)
    assert written(TYPES[1700], text, decimal_handling_mode="string") == text


@given(st.integers())
def test_an_integer_of_any_size_is_in_as_few_bytes_as_hold_it(number: int) -> None:
    data = b64decode(unscaled(str(number)).strip('"'))
    assert int.from_bytes(data, "big", signed=True) == number
    assert len(data) == 1 or int.from_bytes(data[1:], "big", signed=True) != number


def test_a_numeric_may_have_more_digits_than_python_reads() -> None:
    digits = "9" * 5_000
    assert integer(written(TYPES[1700], digits)["value"]) == 10**5_000 - 1


def integer(base64: str) -> int:
    return int.from_bytes(b64decode(base64), "big", signed=True)


@pytest.mark.parametrize(("text", "form"), [("1e-3", "0.001"), ("12e4", "120000.0"), ("-0", "-0.0"), ("1e7", "1.0E7")])
def test_a_float_of_another_spelling_has_javas_form(text: str, form: str) -> None:
    assert java_float(text) == form


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_survives_its_way_into_javas_form(number: float) -> None:
    text = java_float(repr(number))
    assert float(text) == number
    assert "." in text
    assert ("E" in text) == (number != 0 and not 1e-3 <= abs(number) < 1e7)
