"""JSON as text: values are found in it and taken out as they are written, so that no number is bent."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, NoReturn

_SPACES: Final = frozenset(" \t\n\r")
"""What RFC 8259 calls whitespace."""
_UNPLAIN: Final = re.compile("[\\0\\ud800-\\udfff]")


class NotJson(ValueError):
    """The text is not JSON, or nested too deep to be read. The message says where, and nothing of what it holds."""


class Member(NamedTuple):
    """A member of an object."""

    key: str
    value: object
    """Numbers as the text that they are written in, so `raw` tells them from strings."""
    raw: str
    """The value as it is written."""


def parse(text: str) -> object:
    """Read a whole text; numbers become the text that they are written in. Raises NotJson."""
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise _not_json(error) from None


def members(text: str) -> Iterator[Member]:
    """The members of the object that the text is, in their order, also those whose key comes twice.

    Raises NotJson, and when the text is JSON but no object.
    """
    try:
        yield from _members(text)
    except (ValueError, RecursionError) as error:
        raise _not_json(error) from None


def find(document: object, path: Sequence[str]) -> object:
    """What a path of keys leads to in a document that was parsed, None when it leads nowhere."""
    for key in path:
        if type(document) is not dict:
            return None
        document = document.get(key)
    return document


def find_raw(text: str, path: Sequence[str]) -> str:
    """What `find` finds, as it is written; the path has to lead somewhere. Of keys that are alike the last counts."""
    for key in path:
        text = {member.key: member.raw for member in members(text)}[key]
    return text


def with_member(text: bytes, key: str, value: str) -> bytes:
    """An object with a text added at its end, where it counts more than a member of the same name before it."""
    head = text.rstrip()[:-1].rstrip()
    comma = "" if head.endswith(b"{") else ", "
    return head + f"{comma}{json.dumps(key)}: {json.dumps(value)}}}".encode()


def is_plain(text: str) -> bool:
    """Whether it is a text for PostgreSQL and AMQP: JSON can write down a zero byte, and halves of a character."""
    return _UNPLAIN.search(text) is None


def _members(text: str) -> Iterator[Member]:
    """Written out, because there is one of these for each logical message."""
    at = _after_space(text, 0)
    if text[at : at + 1] != "{":
        _DECODER.decode(text)
        raise json.JSONDecodeError("no object", text, at)
    at = _after_space(text, at + 1)
    more = text[at : at + 1] != "}"
    while more:
        key, end = _value(text, at)
        if text[at] != '"' or not isinstance(key, str):
            raise json.JSONDecodeError("no key in double quotes", text, at)
        at = _after_space(text, end)
        if text[at : at + 1] != ":":
            raise json.JSONDecodeError("no ':'", text, at)
        at = _after_space(text, at + 1)
        value, end = _value(text, at)
        yield _new(Member, (key, value, text[at:end]))
        at = _after_space(text, end)
        more = text[at : at + 1] == ","
        at = _after_space(text, at + 1) if more else at
    if text[at : at + 1] != "}":
        raise json.JSONDecodeError("no ',' or '}'", text, at)
    end = _after_space(text, at + 1)
    if end != len(text):
        raise json.JSONDecodeError("text after the end", text, end)


def _after_space(text: str, at: int) -> int:
    while text[at : at + 1] in _SPACES:
        at += 1
    return at


def _not_json(error: ValueError | RecursionError) -> NotJson:
    if isinstance(error, json.JSONDecodeError):
        return NotJson(f"{error.msg[:1].lower()}{error.msg[1:]} at character {error.pos + 1}")
    return NotJson("nested too deep" if isinstance(error, RecursionError) else str(error))


def _refuse(constant: str) -> NoReturn:
    """NaN and the infinities are Python's idea."""
    raise ValueError(f"{constant} is no number")


_DECODER: Final = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_refuse)
_value: Final = _DECODER.raw_decode
_new: Final = tuple.__new__
"""Makes a named tuple in half the time of its own constructor, which is Python."""
