"""JSON is taken apart as text, and what is taken out of it is as it was written."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.capture.json_text import NotJson, find, find_raw, is_plain, members, parse, with_member

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
INDENTS = st.sampled_from([None, 0, 2, "\t"])

EXACT = [
    "1.0000000000000000001",
    "1E400",
    "-0",
    "12345678901234567890123",
    "1e-7",
    '"\\u0041\\/"',
    '{ "a" :1 }',
    "[1 ,2]",
]
"""What a JSON library writes in another way than it was written."""


@given(st.dictionaries(st.text(), VALUES), INDENTS, st.booleans())
def test_members_are_those_of_the_object(given_: dict[str, object], indent: int | str | None, ascii_only: bool) -> None:
    text = json.dumps(given_, indent=indent, ensure_ascii=ascii_only)
    found = list(members(text))
    assert [member.key for member in found] == list(given_)
    assert {member.key: json.loads(member.raw) for member in found} == given_
    assert all(member.raw in text for member in found)


@pytest.mark.parametrize("raw", EXACT)
def test_a_member_is_as_it_is_written(raw: str) -> None:
    (member,) = members(f' \t\r\n{{ "a" : {raw} \n}} ')
    assert member.raw == raw


def test_numbers_stay_texts() -> None:
    assert parse('{"a": [1.10, 1e400]}') == {"a": ["1.10", "1e400"]}


def test_a_key_that_is_there_twice_comes_twice() -> None:
    assert [member[::2] for member in members('{"a": 1, "a": 2}')] == [("a", "1"), ("a", "2")]


@given(st.text())
def test_members_are_refused_exactly_where_json_is(text: str) -> None:
    check_as_json_does(text)


@given(st.text(alphabet='{}[]":,a1 \n\\', max_size=12))
def test_members_are_refused_exactly_where_json_is_also_when_it_is_nearly_json(text: str) -> None:
    check_as_json_does(text)
    check_as_json_does(f'{{"a": {text}}}')
    check_as_json_does(f'{{"a": 1{text}')


def check_as_json_does(text: str) -> None:
    """The oracle: Python's own reader."""
    try:
        expected = json.loads(text)
    except ValueError:
        expected = None
    if isinstance(expected, dict):
        assert {member.key for member in members(text)} == set(expected)
    else:
        with pytest.raises(NotJson):
            list(members(text))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "expecting value at character 1"),
        ("[1]", "no object at character 1"),
        ('{"a" 1}', "no ':' at character 6"),
        ('{"a": }', "expecting value at character 7"),
        ('{"a": 1,}', "expecting value at character 9"),
        ("{1: 2}", "no key in double quotes at character 2"),
        ('{"a": 1 "b": 2}', "no ',' or '}' at character 9"),
        ('{"a": 1} 2', "text after the end at character 10"),
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": ' + "[" * 100_000, "nested too deep"),
    ],
)
def test_a_complaint_says_where(text: str, complaint: str) -> None:
    with pytest.raises(NotJson) as refused:
        list(members(text))
    assert str(refused.value) == complaint


@pytest.mark.parametrize(("text", "complaint"), [("-Infinity", "-Infinity is no number"), ("[" * 100_000, "too deep")])
def test_a_whole_text_is_refused_in_the_same_way(text: str, complaint: str) -> None:
    with pytest.raises(NotJson, match=complaint):
        parse(text)


@pytest.mark.parametrize(
    ("path", "found"),
    [(("a", "b.c"), "7"), (("a",), {"b.c": "7"}), (("a", "x"), None), (("s", "x"), None), (("x", "y", "z"), None)],
)
def test_a_path_leads_to_a_value_or_nowhere(path: tuple[str, ...], found: object) -> None:
    assert find(parse('{"a": {"b.c": 7}, "s": "text"}'), path) == found


@pytest.mark.parametrize("raw", EXACT)
def test_what_a_path_leads_to_is_as_it_is_written(raw: str) -> None:
    assert find_raw(f'{{"a": {{"b": {raw}}}}}', ("a", "b")) == raw


def test_of_a_key_that_is_there_twice_the_last_counts() -> None:
    text = '{"a": {"b": [1]}, "a": {"b": [2]}}'
    assert find(parse(text), ("a", "b")) == ["2"]
    assert find_raw(text, ("a", "b")) == "[2]"


@given(st.dictionaries(st.text(), VALUES), INDENTS, st.text(), st.text())
def test_a_member_is_added_and_counts(
    headers: dict[str, object], indent: int | str | None, key: str, value: str
) -> None:
    added = with_member(json.dumps(headers, indent=indent).encode(), key, value)
    assert json.loads(added) == headers | {key: value}


@pytest.mark.parametrize(
    ("text", "plain"), [("naïve ✓ 🐘", True), ("", True), ("a\0", False), ("\ud800", False), ("é\0", False)]
)
def test_a_plain_text_is_one_for_postgresql(text: str, plain: bool) -> None:
    assert is_plain(text) is plain
