"""Text of PostgreSQL becomes JSON that means the same. The round trip of every type is in tests/integration."""

import json
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay.capture.message import CaptureError
from relay.capture.values import (
    INFINITE,
    Items,
    Moment,
    Unreadable,
    array_items,
    composite_items,
    encoder,
    hstore_items,
    interval_parts,
    moment,
)
from relay.wal.pgtype import Category, Field, PgType, unknown

OIDS = {
    "bool": 16,
    "bytea": 17,
    "name": 19,
    "int8": 20,
    "int2": 21,
    "int4": 23,
    "text": 25,
    "oid": 26,
    "xid": 28,
    "cid": 29,
    "json": 114,
    "point": 600,
    "box": 603,
    "float4": 700,
    "float8": 701,
    "money": 790,
    "inet": 869,
    "bpchar": 1042,
    "varchar": 1043,
    "date": 1082,
    "time": 1083,
    "timestamp": 1114,
    "timestamptz": 1184,
    "interval": 1186,
    "timetz": 1266,
    "bit": 1560,
    "numeric": 1700,
    "uuid": 2950,
    "jsonb": 3802,
    "int4range": 3904,
    "xid8": 5069,
}


def base(name: str) -> PgType:
    return PgType(OIDS[name], "pg_catalog", name, delimiter=";" if name == "box" else ",")


def array(element: PgType) -> PgType:
    return PgType(9001, "pg_catalog", f"_{element.name}", Category.ARRAY, element)


def domain(of: PgType, modifier: int = -1) -> PgType:
    return PgType(9002, "public", "restricted", Category.DOMAIN, of, modifier=modifier)


def composite(**fields: PgType) -> PgType:
    return PgType(9003, "public", "place", Category.COMPOSITE, fields=tuple(Field(*field) for field in fields.items()))


HSTORE = PgType(9004, "extensions", "hstore")
MOOD = PgType(9005, "public", "mood", Category.ENUM)
SPAN = PgType(9006, "public", "span", Category.RANGE, base("int4"))
SPANS = PgType(9007, "public", "spans", Category.MULTIRANGE, SPAN)


def to_json(kind: PgType, text: str) -> str:
    return encoder(kind)(text.encode()).decode()


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("bool", "t", "true"),
        ("bool", "f", "false"),
        ("int2", "-32768", "-32768"),
        ("int4", "2147483647", "2147483647"),
        ("oid", "4294967295", "4294967295"),
        ("xid", "4294967295", "4294967295"),
        ("cid", "0", "0"),
        ("int8", "9007199254740993", '"9007199254740993"'),
        ("xid8", "18446744073709551615", '"18446744073709551615"'),
        ("numeric", "1.50", '"1.50"'),
        ("numeric", "NaN", '"NaN"'),
        ("money", "-$1,234.50", '"-$1,234.50"'),
        ("float8", "0.1", "0.1"),
        ("float8", "1e+20", "1e+20"),
        ("float8", "5e-324", "5e-324"),
        ("float8", "-0", "-0.0"),
        ("float4", "3.4028235e+38", "3.4028235e+38"),
        ("float4", "NaN", '"NaN"'),
        ("float8", "-Infinity", '"-Infinity"'),
        ("text", "", '""'),
        ("text", 'say "hi"\\\n\x01', '"say \\"hi\\"\\\\\\n\\u0001"'),
        ("varchar", "naïve 🐘", '"naïve 🐘"'),
        ("bpchar", "ab   ", '"ab   "'),
        ("uuid", "0197f2b0-1111-7222-8333-444455556666", '"0197f2b0-1111-7222-8333-444455556666"'),
        ("inet", "10.0.0.1/8", '"10.0.0.1/8"'),
        ("bit", "0101", '"0101"'),
        ("point", "(1.5,-0)", '"(1.5,-0)"'),
        ("int4range", "[1,10)", '"[1,10)"'),
        ("bytea", "\\x", '""'),
        ("bytea", "\\xdeadbeef", '"3q2+7w=="'),
        ("date", "2024-02-29", '"2024-02-29"'),
        ("date", "0044-03-15 BC", '"-0043-03-15"'),
        ("date", "0001-12-31 BC", '"0000-12-31"'),
        ("date", "4714-11-24 BC", '"-4713-11-24"'),
        ("date", "10000-01-01", '"+10000-01-01"'),
        ("date", "5874897-12-31", '"+5874897-12-31"'),
        ("date", "infinity", '"infinity"'),
        ("date", "-infinity", '"-infinity"'),
        ("time", "23:59:59.123456", '"23:59:59.123456"'),
        ("time", "24:00:00", '"24:00:00"'),
        ("timetz", "08:09:10+02", '"08:09:10+02:00"'),
        ("timetz", "08:09:10.5-03:30", '"08:09:10.5-03:30"'),
        ("timetz", "00:00:00+15:59:59", '"00:00:00+15:59:59"'),
        ("timestamp", "2024-02-29 12:34:56.789012", '"2024-02-29T12:34:56.789012"'),
        ("timestamp", "0044-03-15 12:00:00 BC", '"-0043-03-15T12:00:00"'),
        ("timestamp", "294276-12-31 23:59:59.999999", '"+294276-12-31T23:59:59.999999"'),
        ("timestamp", "-infinity", '"-infinity"'),
        ("timestamptz", "2024-02-29 12:34:56+00", '"2024-02-29T12:34:56Z"'),
        ("timestamptz", "0044-03-15 12:00:00.5+00 BC", '"-0043-03-15T12:00:00.5Z"'),
        ("timestamptz", "infinity", '"infinity"'),
        ("interval", "1 year 2 mons 3 days 04:05:06.5", '"P1Y2M3DT4H5M6.5S"'),
        ("interval", "-1 years -2 mons +3 days -04:05:06", '"P-1Y-2M3DT-4H-5M-6S"'),
        ("interval", "00:00:00", '"PT0S"'),
        ("interval", "1 mon", '"P1M"'),
        ("interval", "00:01:00", '"PT1M"'),
        ("interval", "-00:00:00.000001", '"PT-0.000001S"'),
        ("interval", "-infinity", '"-infinity"'),
        ("json", '{ "a" : 1.50,\n "a": null }', '{ "a" : 1.50,\n "a": null }'),
        ("jsonb", "12345678901234567890.10", "12345678901234567890.10"),
    ],
)
def test_a_value_is_written_like_this(name: str, text: str, expected: str) -> None:
    assert to_json(base(name), text) == expected


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        (array(base("int4")), "{}", "[]"),
        (array(base("int4")), "{1,NULL,-3}", "[1,null,-3]"),
        (array(base("int8")), "{9007199254740993}", '["9007199254740993"]'),
        (array(base("int4")), "{{1,2},{3,NULL}}", "[[1,2],[3,null]]"),
        (array(base("int4")), "[0:1][-1:-1]={{1},{2}}", "[[1],[2]]"),
        (array(base("text")), '{a,"NULL",NULL,"","x\\"\\\\y"}', '["a","NULL",null,"","x\\"\\\\y"]'),
        (array(base("box")), "{(2,2),(1,1);(3,3),(0,0)}", '["(2,2),(1,1)","(3,3),(0,0)"]'),
        (array(base("timestamptz")), '{"2024-02-29 12:00:00+00"}', '["2024-02-29T12:00:00Z"]'),
        (array(base("jsonb")), '{"{\\"a\\": [1, null]}",NULL}', '[{"a": [1, null]},null]'),
        (array(base("bytea")), '{"\\\\xff"}', '["/w=="]'),
        (domain(base("bool")), "t", "true"),
        (domain(array(domain(base("numeric"), (10 << 16 | 2) + 4))), "{1.50}", '["1.50"]'),
        (MOOD, 'so "so"', '"so \\"so\\""'),
        (SPAN, "empty", '"empty"'),
        (SPANS, "{[1,3),[5,)}", '"{[1,3),[5,)}"'),
        (HSTORE, "", "{}"),
        (HSTORE, '"a"=>"1", "b"=>NULL, "c"=>"NULL"', '{"a":"1","b":null,"c":"NULL"}'),
        (composite(), "()", "{}"),
        (composite(a=base("text")), "()", '{"a":null}'),
        (composite(a=base("text"), b=base("int4")), '("",)', '{"a":"","b":null}'),
        (composite(a=base("text")), '("x ""y"" \\\\z")', '{"a":"x \\"y\\" \\\\z"}'),
        (
            array(composite(id=base("int8"), tags=array(base("text")))),
            '{"(7,\\"{a,\\"\\"b c\\"\\"}\\")",NULL}',
            '[{"id":"7","tags":["a","b c"]},null]',
        ),
        (unknown(16400), "{1}", '"{1}"'),
    ],
)
def test_a_value_of_parts_is_written_like_this(kind: PgType, text: str, expected: str) -> None:
    assert to_json(kind, text) == expected


def test_an_attribute_that_was_added_since_is_left_out() -> None:
    assert to_json(composite(a=base("int4"), added=base("text")), "(1)") == '{"a":1}'


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (base("bool"), "true"),
        (base("int4"), "1.5"),
        (base("int4"), "٣"),
        (base("float8"), "inf"),
        (base("bytea"), "abc"),
        (base("bytea"), "\\xa"),
        (base("date"), "29.02.2024"),
        (base("date"), "2024-02-29 00:00:00"),
        (base("time"), "08:09"),
        (base("timetz"), "08:09:10"),
        (base("timestamp"), "2024-02-29"),
        (base("timestamp"), "2024-02-29 12:00:00+00"),
        (base("timestamptz"), "2024-02-29 12:00:00"),
        (base("timestamptz"), "2024-02-29 12:00:00+02"),
        (base("interval"), "P1D"),
        (base("interval"), ""),
        (array(base("int4")), "{1,2"),
        (array(base("int4")), "{1}{2}"),
        (array(base("int4")), "{a}"),
        (array(base("int4")), "{{{{{{{1}}}}}}}"),
        (HSTORE, '"a"=>1'),
        (HSTORE, '"a"=>"1", '),
        (composite(a=base("int4")), "(1,2)"),
        (composite(a=base("int4")), "(1"),
        (composite(a=base("int4")), "(1))"),
        (composite(), "(1)"),
    ],
)
def test_text_that_is_not_of_its_type_is_refused_by_the_types_name(kind: PgType, text: str) -> None:
    with pytest.raises(Unreadable, match=rf"type {kind.namespace}\.{kind.name} cannot be read") as refusal:
        to_json(kind, text)
    assert "exclude_columns" in refusal.value.hint


def test_a_refusal_does_not_show_the_value() -> None:
    with pytest.raises(Unreadable) as refusal:
        to_json(array(base("int4")), "{1,secret}")
    assert "secret" not in f"{refusal.value} {refusal.value.hint}"


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(Unreadable, match=r"type pg_catalog\.text is not UTF-8"):
        encoder(base("text"))(b"\xff")


KINDS = [
    *(base(name) for name in OIDS if name not in ("json", "jsonb")),
    *(array(base("int4")), array(array(base("box"))), composite(a=base("text"), b=array(base("date")))),
    *(HSTORE, MOOD, domain(base("interval"))),
]


@given(st.sampled_from(KINDS), st.text(st.sampled_from('{}()[]",;\\=>NUL 0123456789-+:.etfBCxyearmonsdinfty')))
@example(base("float8"), "01")
@example(base("interval"), " 1 day")
@example(base("int4"), "1\n")
def test_whatever_comes_is_json_or_refused(kind: PgType, text: str) -> None:
    try:
        written = to_json(kind, text)
    except CaptureError:
        return
    json.loads(written)


# -- text that is made by PostgreSQL's rules is read as what it was made from -----------------------------------------

words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12) | st.sampled_from(
    ["NULL", "null", "", '"', "\\", '\\"', "{}", "(,)", "a,b", "a;b", " ", '"=>"', "\n"]
)
nullable = st.none() | words


def shaped(sizes: list[int]) -> "st.SearchStrategy[Items]":
    """Arrays of these dimensions."""
    inner: st.SearchStrategy[str | Items | None] = nullable if len(sizes) == 1 else shaped(sizes[1:])
    return st.lists(inner, min_size=sizes[0], max_size=sizes[0])


arrays: st.SearchStrategy[Items] = st.lists(st.integers(1, 3), min_size=1, max_size=6).flatmap(shaped) | st.just([])


def escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def printed_array(items: Items, delimiter: str) -> str:
    """As array_out of PostgreSQL does it."""

    def item(value: "str | Items | None") -> str:
        if value is None:
            return "NULL"
        if isinstance(value, list):
            return printed_array(value, delimiter)
        if value == "" or value.upper() == "NULL" or set(value) & {*'"\\{} \t\n\r\v\f', delimiter}:
            return f'"{escaped(value)}"'
        return value

    return f"{{{delimiter.join(map(item, items))}}}"


def printed_composite(items: list[str | None]) -> str:
    """As record_out of PostgreSQL does it."""

    def item(value: str | None) -> str:
        if value is None:
            return ""
        if value == "" or set(value) & set('"\\(), \t\n\r\v\f'):
            return '"' + value.replace("\\", "\\\\").replace('"', '""') + '"'
        return value

    return f"({','.join(map(item, items))})"


def printed_hstore(items: dict[str, str | None]) -> str:
    """As hstore_out does it."""
    values = {key: "NULL" if value is None else f'"{escaped(value)}"' for key, value in items.items()}
    return ", ".join(f'"{escaped(key)}"=>{value}' for key, value in values.items())


@given(arrays, st.sampled_from([",", ";", "|"]))
def test_an_array_is_read(items: Items, delimiter: str) -> None:
    assert array_items(printed_array(items, delimiter), delimiter) == items


@given(st.lists(nullable, min_size=1))
def test_a_composite_value_is_read(items: list[str | None]) -> None:
    assert composite_items(printed_composite(items)) == items


@given(st.dictionaries(words, nullable))
def test_an_hstore_is_read(items: dict[str, str | None]) -> None:
    assert hstore_items(printed_hstore(items)) == items


@given(st.lists(st.lists(nullable, min_size=2, max_size=2), min_size=1))
def test_composites_in_an_array_in_a_composite_are_read(rows: list[list[str | None]]) -> None:
    inner = composite(a=base("text"), b=base("text"))
    text = printed_composite([printed_array([printed_composite(row) for row in rows], ",")])
    assert json.loads(to_json(composite(rows=array(inner)), text)) == {
        "rows": [dict(zip("ab", row, strict=True)) for row in rows]
    }


def printed_interval(months: int, days: int, micros: int) -> str:
    """As interval_out does it in the style postgres: once something is negative, what is not shows a plus."""
    parts: list[str] = []
    years, rest = abs(months) // 12, abs(months) % 12
    sign = -1 if months < 0 else 1
    negative = False
    for number, unit in ((sign * years, "year"), (sign * rest, "mon"), (days, "day")):
        if number:
            plus = "+" if negative and number > 0 else ""
            parts.append(f"{plus}{number} {unit}{'' if number == 1 else 's'}")
            negative = number < 0
    if micros or not parts:
        seconds, fraction = divmod(abs(micros), 1_000_000)
        minus = "-" if micros < 0 else "+" if negative else ""
        digits = f".{fraction:06}".rstrip("0") if fraction else ""
        parts.append(f"{minus}{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{digits}")
    return " ".join(parts)


INT4 = st.integers(-(2**31), 2**31 - 1)
INT8 = st.integers(-(2**63), 2**63 - 1)


@given(INT4, INT4, INT8)
@example(0, 0, 0)
@example(-14, 3, -14_706_000_000)
def test_an_interval_is_read(months: int, days: int, micros: int) -> None:
    assert interval_parts(printed_interval(months, days, micros)) == (months, days, micros)


@given(INT4, INT4, INT8)
def test_an_interval_keeps_the_sign_of_each_part(months: int, days: int, micros: int) -> None:
    iso = json.loads(to_json(base("interval"), printed_interval(months, days, micros)))
    date, _, time = iso.removeprefix("P").partition("T")
    assert sum(int(number) * months_a for number, months_a in parts_of(date, {"Y": 12, "M": 1, "D": 0})) == months
    assert sum(int(number) for number, days_a in parts_of(date, {"Y": 0, "M": 0, "D": 1}) if days_a) == days
    whole = {"H": 3_600_000_000, "M": 60_000_000, "S": 1_000_000}
    assert sum(micros_of(number, micros_a) for number, micros_a in parts_of(time, whole)) == micros


def parts_of(text: str, units: dict[str, int]) -> list[tuple[str, int]]:
    """Numbers of an ISO duration, with the weight of each."""
    parts: list[tuple[str, int]] = []
    number = ""
    for character in text:
        if character in units:
            parts.append((number, units[character]))
            number = ""
        else:
            number += character
    assert not number
    return parts


def micros_of(number: str, weight: int) -> int:
    whole, _, fraction = number.partition(".")
    micros = int(whole.removeprefix("-")) * weight + int(fraction.ljust(6, "0"))
    return -micros if number.startswith("-") else micros


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-02-29", Moment(2024, 2, 29, "", "")),
        ("0001-12-31 BC", Moment(0, 12, 31, "", "")),
        ("10000-01-02 03:04:05.5", Moment(10000, 1, 2, "03:04:05.5", "")),
        ("0044-03-15 12:00:00+00 BC", Moment(-43, 3, 15, "12:00:00", "+00")),
        ("2024-02-29 12:00:00-03:30", Moment(2024, 2, 29, "12:00:00", "-03:30")),
    ],
)
def test_a_moment_is_taken_apart(text: str, expected: Moment) -> None:
    assert moment(text) == expected


@pytest.mark.parametrize("text", sorted(INFINITE))
@pytest.mark.parametrize("read", [moment, interval_parts])
def test_what_is_infinite_has_no_parts(read: Callable[[str], object], text: str) -> None:
    with pytest.raises(ValueError, match="it is no"):
        read(text)
