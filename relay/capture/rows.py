"""Rows of a table that somebody else laid out -> messages: an outbox of any shape, a table of events. Pure."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeAlias

from relay.capture import json_text, timestamp
from relay.capture.change import Origin
from relay.capture.columns import FIELDS, REQUIRED, VERSION, Columns, Literal, Taken
from relay.capture.identity import derived_id, snapshot_id
from relay.capture.message import CaptureError, Kind, Malformed, Message
from relay.wal.lsn import NOWHERE
from relay.wal.pgoutput import Relation, Row, Value

_SLOTS: Final = {field: slot for slot, field in enumerate(FIELDS)}
"""Where a field stands while a message is made."""

_ID: Final = _SLOTS["id"]
_KIND: Final = _SLOTS["kind"]
_AGGREGATE_TYPE: Final = _SLOTS["aggregate_type"]
_AGGREGATE_ID: Final = _SLOTS["aggregate_id"]
_TYPE: Final = _SLOTS["type"]
_DESTINATION: Final = _SLOTS["destination"]
_CORRELATION_ID: Final = _SLOTS["correlation_id"]
_REPLY_TO: Final = _SLOTS["reply_to"]
_CAUSATION_ID: Final = _SLOTS["causation_id"]
_OPERATION: Final = _SLOTS["operation"]
_HEADERS: Final = _SLOTS["headers"]
_PAYLOAD: Final = _SLOTS["payload"]
_CREATED_AT: Final = _SLOTS["created_at"]
_VERSION: Final = _SLOTS[VERSION]

# Numbers of types, from PostgreSQL's pg_type.dat, where they never change.
_BYTEA: Final = 17
_DATE: Final = 1082
_TIMESTAMP: Final = 1114
_TIMESTAMPTZ: Final = 1184
_OF_JSON: Final = frozenset({114, 3802})
"""json and jsonb."""

_TIMES: Final[Mapping[int, Callable[[str], str]]] = {
    _TIMESTAMPTZ: str,
    _TIMESTAMP: timestamp.of_timestamp,
    _DATE: timestamp.of_date,
}
"""What brings a time into the form of a message. In any other type it is read."""

_HEX: Final = "\\x"
"""How bytea begins with bytea_output = hex."""
_NO_HEADERS: Final = b"{}"
_KINDS: Final[Mapping[str | None, Kind]] = {None: Kind.EVENT} | {kind.value: kind for kind in Kind}
_SHOWN: Final = 60
"""How many characters of an id or a kind an error shows."""

_Texts: TypeAlias = "list[str | None]"
"""What is known of a message, by slot. Headers and payload only where they are no column of their own."""


class _Wrong(Exception):
    """The row is no message. What is wrong with it, for a person."""


@dataclass(frozen=True, slots=True)
class _Document:
    """A column of JSON, or of text that should be JSON, and what is taken out of it."""

    column: str
    position: int
    paths: tuple[tuple[int, tuple[str, ...]], ...]
    """The slots, and the keys that lead to their values."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """How a row of this shape becomes a message. Made once for each description of the table."""

    table: str
    blank: tuple[str | None, ...]
    """The literals, by slot."""
    texts: tuple[tuple[int, int], ...]
    """Slots whose text is a column's, and its position."""
    documents: tuple[_Document, ...]
    headers: int | None
    """The position of the column that is passed on as it is, None where headers are a literal or in a document."""
    headers_are_json: bool
    """PostgreSQL has made sure of it. In a column of text there may be anything."""
    payload: int | None
    """As with headers."""
    payload_is_bytea: bool
    required: tuple[tuple[int, str], ...]
    """Slots that must not stay empty, and where their values come from, in words."""
    time: Callable[[str], str]
    """Brings created_at into the form of Message.created_at. Raises ValueError."""
    positions: tuple[int, ...]
    """Of all columns that are used, in the order of their names."""


class RowCapture:
    """Turns the rows of one table into messages, by the newest description of the table."""

    def __init__(self, name: str, columns: Columns) -> None:
        """`name`: of the capture."""
        self.name = name
        self.columns = columns
        self._plan: _Plan | None = None

    def describe(self, relation: Relation) -> None:
        """The table looks like this from here on. Raises CaptureError when a column is missing."""
        existing = [column.name for column in relation.columns]
        columns = self.columns.within(existing)
        missing = [column for column in columns.names if column not in existing]
        if missing:
            hint = f"Put it back, or correct `columns` of the capture {self.name}. There are {', '.join(existing)}."
            table = f"{relation.namespace}.{relation.name}"
            raise CaptureError(f"{table} lacks the column {', '.join(missing)}", hint)
        self._plan = _plan(columns, relation)

    def message(self, row: Row, origin: Origin) -> Message:
        """The message of a row of the table as it was described. Payload and headers are the row's, byte for byte.

        Without a column for its id, it is derived from `origin`; where that names no commit, as for the rows of a copy,
        from all values that are captured of the row: rows that are alike in all of them get the same.
        Raises Malformed, with what could be read of the row.
        """
        plan = self._plan
        if plan is None:
            raise CaptureError(f"the capture {self.name} has a row of a table that was not described")
        try:
            return self._message(plan, row, origin)
        except _Wrong as wrong:
            rest = self._rest(plan, row, origin)
            raise Malformed(f"the row of {plan.table} with id {rest.id[:_SHOWN]} {wrong}", rest) from None

    def _message(self, plan: _Plan, row: Row, origin: Origin) -> Message:
        texts: _Texts = list(plan.blank)
        for slot, position in plan.texts:
            texts[slot] = _text(row[position], slot)
        parsed: dict[int, object] = {}
        for document in plan.documents:
            text = _text(row[document.position], document.column)
            if text is not None:
                parsed[document.position] = found = _parse(text, document.column)
                for slot, path in document.paths:
                    texts[slot] = _at(path, found, text, slot)
        headers = _headers(plan, row, texts, parsed)
        payload = _payload(plan, row, texts)
        for slot, source in plan.required:
            if texts[slot] is None and not (slot == _PAYLOAD and payload is not None):
                raise _Wrong(f"has no {FIELDS[slot]}: {source} is null or missing")
        if texts[_ID] == "":
            raise _Wrong("has an empty id")
        kind = _kind(texts)
        if kind is not Kind.EVENT and texts[_DESTINATION] is None:
            raise _Wrong(f"is a {kind} without a destination")
        return self._made(plan, row, origin, texts, kind, headers, payload or b"", _time(plan, texts, origin))

    def _rest(self, plan: _Plan, row: Row, origin: Origin) -> Message:
        """What can be read of a row that is no message. What cannot is empty, or as if it had not been given."""
        texts: _Texts = list(plan.blank)
        for slot, position in plan.texts:
            with suppress(_Wrong):
                texts[slot] = _text(row[position], slot)
        for document in plan.documents:
            for slot, path in document.paths:
                with suppress(_Wrong):
                    text = _text(row[document.position], document.column) or "null"
                    texts[slot] = _at(path, _parse(text, document.column), text, slot)
        headers, payload = _NO_HEADERS, b""
        kind, created_at = Kind.EVENT, timestamp.printed(origin.committed_at)
        with suppress(_Wrong):
            headers = _headers(plan, row, texts, {})
        with suppress(_Wrong):
            payload = _payload(plan, row, texts) or b""
        with suppress(_Wrong):
            created_at = _time(plan, texts, origin)
        with suppress(_Wrong):
            kind = _kind(texts)
        return self._made(plan, row, origin, texts, kind, headers, payload, created_at)

    def _made(
        self,
        plan: _Plan,
        row: Row,
        origin: Origin,
        texts: _Texts,
        kind: Kind,
        headers: bytes,
        payload: bytes,
        created_at: str,
    ) -> Message:
        return Message(
            texts[_ID] or _made_id(plan, row, origin),
            kind,
            texts[_AGGREGATE_TYPE] or "",
            texts[_AGGREGATE_ID] or "",
            texts[_TYPE] or "",
            texts[_DESTINATION],
            texts[_CORRELATION_ID],
            texts[_REPLY_TO],
            texts[_CAUSATION_ID],
            texts[_OPERATION],
            headers,
            payload,
            created_at,
            self.name,
        )


def _plan(columns: Columns, relation: Relation) -> _Plan:
    positions = {column.name: position for position, column in enumerate(relation.columns)}
    types = {column.name: column.type_oid for column in relation.columns}
    blank: _Texts = [None] * len(FIELDS)
    whole: dict[int, str] = {}
    """Slots that take a column as it is."""
    paths: dict[str, list[tuple[int, tuple[str, ...]]]] = {}
    for field, expression in columns.expressions.items():
        slot = _SLOTS[field]
        match expression:
            case Literal(text):
                blank[slot] = text
            case Taken(column, ()):
                whole[slot] = column
            case Taken(column, path):
                paths.setdefault(column, []).append((slot, path))
    headers, payload, created_at = (whole.get(slot) for slot in (_HEADERS, _PAYLOAD, _CREATED_AT))
    return _Plan(
        table=f"{relation.namespace}.{relation.name}",
        blank=tuple(blank),
        texts=tuple((slot, positions[column]) for slot, column in whole.items() if slot not in (_HEADERS, _PAYLOAD)),
        documents=tuple(_Document(column, positions[column], tuple(taken)) for column, taken in paths.items()),
        headers=None if headers is None else positions[headers],
        headers_are_json=headers is not None and types[headers] in _OF_JSON,
        payload=None if payload is None else positions[payload],
        payload_is_bytea=payload is not None and types[payload] == _BYTEA,
        required=tuple(
            (_SLOTS[field], str(expression))
            for field, expression in columns.expressions.items()
            if field in REQUIRED or field == "id"
        ),
        time=timestamp.read if created_at is None else _TIMES.get(types[created_at], timestamp.read),
        positions=tuple(positions[column] for column in sorted(columns.names)),
    )


def _text(value: Value, of: int | str) -> str | None:
    """The text of a column; `of`: its name, or the slot that it is for."""
    if value is None:
        return None
    try:
        return _bytes(value, of).decode()
    except UnicodeDecodeError:
        raise _Wrong(f"has a value for {_named(of)} that is not text in UTF-8") from None


def _bytes(value: Value, of: int | str) -> bytes:
    if type(value) is not bytes:
        raise _Wrong(f"has a value for {_named(of)} that is not sent as text")
    return value


def _named(of: int | str) -> str:
    return of if isinstance(of, str) else FIELDS[of]


def _parse(text: str, column: str) -> object:
    try:
        return json_text.parse(text)
    except json_text.NotJson as error:
        raise _Wrong(f"has no JSON in {column}: {error}") from None


def _at(path: tuple[str, ...], document: object, text: str, slot: int) -> str | None:
    """What a path leads to: a string's text, and anything else as it is written; None for null and for nothing."""
    match json_text.find(document, path):
        case None:
            return None
        case str(found):
            pass
        case bool(yes):
            return "true" if yes else "false"
        case _:
            return json_text.find_raw(text, path)
    if slot != _PAYLOAD and not json_text.is_plain(found):
        raise _Wrong(f"has a value for {FIELDS[slot]} that is no text: a zero byte, or half a character")
    return found


def _kind(texts: _Texts) -> Kind:
    kind = _KINDS.get(texts[_KIND])
    if kind is None:
        raise _Wrong(f"is of an unknown kind {(texts[_KIND] or '')[:_SHOWN]!r}")
    return kind


def _headers(plan: _Plan, row: Row, texts: _Texts, parsed: Mapping[int, object]) -> bytes:
    """The headers as they are written, with the version behind them where there is one."""
    if plan.headers is None:
        headers = (texts[_HEADERS] or "{}").encode()
        is_object = isinstance(_parse(headers.decode(), "headers"), dict)
    else:
        value = row[plan.headers]
        headers = _NO_HEADERS if value is None else _bytes(value, _HEADERS)
        is_object = headers == _NO_HEADERS or _is_object(plan, headers, parsed.get(plan.headers))
    if not is_object:
        raise _Wrong("has headers that are no JSON object")
    version = texts[_VERSION]
    return headers if version is None else json_text.with_member(headers, VERSION, version)


def _is_object(plan: _Plan, headers: bytes, parsed: object) -> bool:
    """`parsed`: the same, where it had to be read already; else None."""
    text = _text(headers, _HEADERS) or ""
    if plan.headers_are_json:
        return text.lstrip().startswith("{")
    return isinstance(_parse(text, "headers") if parsed is None else parsed, dict)


def _payload(plan: _Plan, row: Row, texts: _Texts) -> bytes | None:
    if plan.payload is None:
        text = texts[_PAYLOAD]
        try:
            return None if text is None else text.encode()
        except UnicodeEncodeError:
            raise _Wrong("has half a character in its payload") from None
    value = row[plan.payload]
    if value is None:
        return None
    payload = _bytes(value, _PAYLOAD)
    return _unhex(payload) if plan.payload_is_bytea else payload


def _unhex(payload: bytes) -> bytes:
    try:
        text = payload.decode()
        if text.startswith(_HEX):
            return bytes.fromhex(text.removeprefix(_HEX))
    except ValueError:
        pass
    raise _Wrong("has a bytea as its payload that is not printed in hex")


def _time(plan: _Plan, texts: _Texts, origin: Origin) -> str:
    text = texts[_CREATED_AT]
    if text is None:
        return timestamp.printed(origin.committed_at)
    try:
        return plan.time(text)
    except ValueError:
        raise _Wrong("has a created_at that is no time: neither ISO 8601 nor milliseconds since 1970") from None


def _made_id(plan: _Plan, row: Row, origin: Origin) -> str:
    if origin.commit_lsn != NOWHERE:
        return derived_id(origin)
    values = (row[position] for position in plan.positions)
    content = b"\0".join(b"t" + value if type(value) is bytes else b"n" for value in values)
    return snapshot_id(origin.system_identifier, plan.table, "", content)
