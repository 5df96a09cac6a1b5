"""What pg_logical_emit_message writes -> messages: an outbox without a table. Pure."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

from relay.capture import json_text, timestamp
from relay.capture.change import Origin
from relay.capture.columns import REQUIRED
from relay.capture.identity import derived_id
from relay.capture.json_text import Member
from relay.capture.message import Kind, Malformed, Message
from relay.capture.outbox import COLUMNS
from relay.wal.lsn import format_lsn
from relay.wal.pgoutput import LogicalMessage

PREFIX: Final = "relay.outbox"

_AS_WRITTEN: Final = ("headers", "payload")
_NOTHING: Final[Mapping[str, None]] = dict.fromkeys(column for column in COLUMNS if column not in _AS_WRITTEN)
"""The texts of a message, before they are read."""
_NO_HEADERS: Final = b"{}"
_NUMBER: Final = "-0123456789"
"""How numbers begin."""
_SHOWN: Final = 60
"""How many characters of a key or a kind an error shows."""
_KEYS_SHOWN: Final = 5
"""How many keys that should not be there an error names."""


class _Wrong(Exception):
    """The content is no message. What is wrong with it, for a person."""


class LogicalCapture:
    """Turns transactional logical messages with one prefix into messages."""

    def __init__(self, name: str, prefix: str = PREFIX) -> None:
        """`name`: of the capture."""
        self.name = name
        self.prefix = prefix

    def message(self, logical: LogicalMessage, origin: Origin) -> Message | None:
        """The message of a logical message; None when it has another prefix, or belongs to no transaction.

        Its content is a JSON object whose keys are the columns of relay.outbox. Payload and headers are taken out of it
        byte for byte. What is not given is as in the table: an event without headers, made when its transaction
        committed; its id is derived from `origin`.
        Raises Malformed, with what could be read; its payload is the whole content, which is nowhere else.
        """
        if not logical.transactional or logical.prefix != self.prefix:
            return None
        members: dict[str, Member] = {}
        try:
            _read(logical.content, members)
            return self._message(members, origin)
        except _Wrong as wrong:
            where = f"the logical message {self.prefix} at {format_lsn(origin.lsn)}, transaction {origin.xid},"
            raise Malformed(f"{where} {wrong}", self._rest(members, logical.content, origin)) from None

    def _message(self, members: Mapping[str, Member], origin: Origin) -> Message:
        texts: dict[str, str | None] = dict(_NOTHING)
        for key, member in members.items():
            if key not in _AS_WRITTEN:
                texts[key] = _text(member)
        missing = [key for key in REQUIRED if (texts[key] is None if key in texts else key not in members)]
        if missing:
            raise _Wrong(f"lacks {', '.join(missing)}")
        if texts["id"] == "":
            raise _Wrong("has an empty id")
        kind = _kind(texts)
        if kind is not Kind.EVENT and texts["destination"] is None:
            raise _Wrong(f"is a {kind} without a destination")
        payload = members["payload"].raw.encode()
        return self._made(texts, origin, kind, _headers(members), payload, _created_at(texts, origin))

    def _rest(self, members: Mapping[str, Member], content: bytes, origin: Origin) -> Message:
        """What can be read of what is no message. What cannot is empty, or as if it had not been given."""
        texts: dict[str, str | None] = dict(_NOTHING)
        for key in texts.keys() & members.keys():
            with suppress(_Wrong):
                texts[key] = _text(members[key])
        kind, headers, created_at = Kind.EVENT, _NO_HEADERS, timestamp.printed(origin.committed_at)
        with suppress(_Wrong):
            kind = _kind(texts)
        with suppress(_Wrong):
            headers = _headers(members)
        with suppress(_Wrong):
            created_at = _created_at(texts, origin)
        return self._made(texts, origin, kind, headers, content, created_at)

    def _made(
        self,
        texts: Mapping[str, str | None],
        origin: Origin,
        kind: Kind,
        headers: bytes,
        payload: bytes,
        created_at: str,
    ) -> Message:
        return Message(
            texts["id"] or derived_id(origin),
            kind,
            texts["aggregate_type"] or "",
            texts["aggregate_id"] or "",
            texts["type"] or "",
            texts["destination"],
            texts["correlation_id"],
            texts["reply_to"],
            texts["causation_id"],
            texts["operation"],
            headers,
            payload,
            created_at,
            self.name,
        )


def _read(content: bytes, members: dict[str, Member]) -> None:
    """Fill `members`, by their keys; also when something is wrong, as far as it goes. Of a key that is there twice, the
    first is kept."""
    twice: list[str] = []
    try:
        for member in json_text.members(content.decode()):
            if members.setdefault(member.key, member) is not member:
                twice.append(member.key)
    except UnicodeDecodeError:
        raise _Wrong("is not text in UTF-8") from None
    except json_text.NotJson as error:
        raise _Wrong(f"is no JSON object: {error}") from None
    unknown = [key for key in members if key not in COLUMNS]
    if twice:
        raise _Wrong(f"has a key twice: {_shown(twice)}")
    if unknown:
        raise _Wrong(f"has keys that are no columns of relay.outbox that a message is made of: {_shown(unknown)}")


def _text(member: Member) -> str | None:
    """A string, or a number as it is written: PostgreSQL would take both for a column of text."""
    if member.raw == "null":
        return None
    if member.raw[0] in _NUMBER:
        return member.raw
    if not isinstance(member.value, str):
        raise _Wrong(f"has a {member.key} that is no text")
    if not json_text.is_plain(member.value):
        raise _Wrong(f"has a {member.key} that is no text: a zero byte, or half a character")
    return member.value


def _kind(texts: Mapping[str, str | None]) -> Kind:
    kind = texts["kind"]
    if kind is None:
        return Kind.EVENT
    try:
        return Kind(kind)
    except ValueError:
        raise _Wrong(f"is of an unknown kind {kind[:_SHOWN]!r}") from None


def _headers(members: Mapping[str, Member]) -> bytes:
    headers = members.get("headers")
    if headers is None or headers.raw == "null":
        return _NO_HEADERS
    if not isinstance(headers.value, dict):
        raise _Wrong("has headers that are no JSON object")
    return headers.raw.encode()


def _created_at(texts: Mapping[str, str | None], origin: Origin) -> str:
    text = texts["created_at"]
    if text is None:
        return timestamp.printed(origin.committed_at)
    try:
        return timestamp.read(text)
    except ValueError:
        raise _Wrong("has a created_at that is no time: neither ISO 8601 nor milliseconds since 1970") from None


def _shown(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _KEYS_SHOWN} more" if len(keys) > _KEYS_SHOWN else ""
    return ", ".join(repr(key[:_SHOWN]) for key in keys[:_KEYS_SHOWN]) + more
