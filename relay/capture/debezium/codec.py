"""The type of a column -> what writes its values as Debezium does. docs/envelope-debezium.md has the table."""

from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable
from hashlib import md5
from json import JSONEncoder
from typing import Final, NamedTuple, TypeAlias
from uuid import UUID

from relay.capture.debezium import geometry, moment, number
from relay.capture.debezium.settings import BinaryMode, DebeziumSettings, HstoreMode, TimeMode
from relay.capture.values import Items, array_items, hstore_items, json_string
from relay.wal.pgtype import Category, PgType

Write: TypeAlias = "Callable[[str], str]"
"""The text of a value -> JSON. Raises ValueError when the text is not of its type."""

CATALOG: Final = "pg_catalog"
"""The schema of the types that are built in. Those of extensions are known by name, wherever they are."""

_NO_MODIFIER: Final = -1


_to_json: Final = JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Codec(NamedTuple):
    """How values of a column are written."""

    write: Write
    unavailable: str
    """JSON that stands for a value that PostgreSQL did not send."""
    unavailable_item: str
    """The same as the one item of an array of this type; empty where such arrays have the placeholder's bytes."""


def codec(kind: PgType, modifier: int, settings: DebeziumSettings) -> Codec | None:
    """What writes the values of a column of this type with this modifier, None when the column is left out.

    Built once a column; the calls of `write` are what has to be fast.
    """
    return _Codecs(settings).of(kind, modifier)


class _Codecs:
    """The codecs of one set of settings."""

    def __init__(self, settings: DebeziumSettings) -> None:
        self._settings = settings
        self._text = json_string(settings.unavailable)

    def of(self, kind: PgType, modifier: int) -> Codec | None:
        while kind.category is Category.DOMAIN and kind.element is not None:
            modifier = kind.modifier if modifier == _NO_MODIFIER else modifier
            kind = kind.element
        if kind.category is Category.ARRAY and kind.element is not None:
            return self._array(kind.element, modifier)
        known = self._known(kind, modifier)
        return known or self._unknown(kind)

    def _array(self, element: PgType, modifier: int) -> Codec | None:
        """Of types that Debezium has no array of, domains among them, the items are bytes as those of unknown types."""
        is_known = element.category is not Category.DOMAIN and element.name not in _UNKNOWN_IN_ARRAYS
        items = self._known(element, modifier) if is_known else None
        items = items or self._unknown(element)
        if items is None:
            return None
        unavailable = f"[{items.unavailable_item}]" if items.unavailable_item else self._numbers()
        return Codec(_array_of(items.write, element.delimiter), unavailable, unavailable)

    def _numbers(self) -> str:
        """The bytes of the placeholder, as Java counts them: from -128 to 127."""
        return f"[{','.join(str(byte - 256 if byte > 127 else byte) for byte in self._settings.unavailable.encode())}]"

    def _known(self, kind: PgType, modifier: int) -> Codec | None:
        if kind.category is Category.ENUM:
            return Codec(json_string, self._text, self._text)
        if kind.namespace != CATALOG:
            return self._of_extension(kind.name) if kind.category is Category.BASE else None
        if kind.name in _TEXTS:
            return Codec(json_string, self._text, self._text)
        if kind.name in _NUMBERS:
            return Codec(_NUMBERS[kind.name], self._text, "")
        return self._of_catalog(kind.name, modifier)

    def _of_catalog(self, name: str, modifier: int) -> Codec | None:
        settings, text = self._settings, self._text
        match name:
            case "bool":
                return Codec(number.boolean, text, text)
            case "numeric":
                return Codec(number.numeric(modifier, settings), text, text)
            case "money":
                return Codec(number.money(settings), text, text)
            case "bytea":
                return Codec(_bytea(settings.binary), self._bytes(), self._bytes())
            case "bit" | "varbit":
                return Codec(_boolean_bit if modifier == 1 else _bits, text, text)
            case "uuid":
                return Codec(json_string, text, f'"{_uuid_of(settings.unavailable)}"')
            case "point":
                return Codec(geometry.point, text, text)
            case "interval":
                return Codec(moment.intervals(settings), text, text)
            case _:
                return self._of_time(name, modifier)

    def _of_time(self, name: str, modifier: int) -> Codec | None:
        settings, text = self._settings, self._text
        item = text if settings.time is TimeMode.ISOSTRING else ""
        match name:
            case "date":
                return Codec(moment.dates(settings), text, item)
            case "time":
                return Codec(moment.times(modifier, settings), text, item)
            case "timestamp":
                return Codec(moment.timestamps(modifier, settings), text, item)
            case "timetz":
                return Codec(moment.timetz, text, text)
            case "timestamptz":
                return Codec(moment.timestamptz(modifier), text, text)
            case _:
                return None

    def _of_extension(self, name: str) -> Codec | None:
        text = self._text
        if name in _EXTENSION_TEXTS:
            return Codec(json_string, text, text)
        if name in _EXTENSION_SHAPES:
            return Codec(_EXTENSION_SHAPES[name], text, text)
        if name != "hstore":
            return None
        pairs = _to_json({self._settings.unavailable: self._settings.unavailable})
        if self._settings.hstore is HstoreMode.MAP:
            return Codec(_hstore_map, pairs, pairs)
        return Codec(lambda value: json_string(_hstore_map(value)), json_string(pairs), json_string(pairs))

    def _unknown(self, kind: PgType) -> Codec | None:
        """The text's bytes, if such types are wanted at all."""
        if not self._settings.include_unknown:
            return None
        encode = _BINARY[self._settings.binary]
        text = geometry.SHAPES.get(kind.name, str) if kind.namespace == CATALOG else str
        return Codec(lambda value: f'"{encode(text(value).encode())}"', self._bytes(), self._bytes())

    def _bytes(self) -> str:
        """The placeholder where others are bytes: in base64 only where consumers decode it anyway."""
        if self._settings.binary is BinaryMode.BYTES:
            return f'"{_base64(self._settings.unavailable.encode())}"'
        return self._text


def _array_of(write: Write, delimiter: str) -> Write:
    def items(values: Items) -> str:
        return f"[{','.join([item(value) for value in values])}]"

    def item(value: "str | Items | None") -> str:
        if value is None:
            return "null"
        return items(value) if isinstance(value, list) else write(value)

    return lambda text: items(array_items(text, delimiter))


def _base64(data: bytes) -> str:
    return b64encode(data).decode()


_BINARY: Final[dict[BinaryMode, Callable[[bytes], str]]] = {
    BinaryMode.BYTES: _base64,
    BinaryMode.BASE64: _base64,
    BinaryMode.BASE64_URL_SAFE: lambda data: urlsafe_b64encode(data).decode(),
    BinaryMode.HEX: bytes.hex,
}


def _bytea(mode: BinaryMode) -> Write:
    encode = _BINARY[mode]

    def write(text: str) -> str:
        if not text.startswith("\\x"):
            raise ValueError("it is not in hexadecimal")
        return f'"{encode(bytes.fromhex(text[2:]))}"'

    return write


def _boolean_bit(text: str) -> str:
    """Of a column of one bit. A varbit(1) may have none."""
    if text not in _BOOLEAN_BITS:
        raise ValueError("it is not one bit")
    return _BOOLEAN_BITS[text]


_BOOLEAN_BITS: Final = {"0": "false", "1": "true", "": "null"}


def _bits(text: str) -> str:
    """The bits as bytes, the last bit first, without zero bytes at the end. Source: java.util.BitSet.toByteArray."""
    if text.strip("01"):
        raise ValueError("it is no string of bits")
    bits = int(text or "0", 2)
    return f'"{_base64(bits.to_bytes((bits.bit_length() + 7) // 8, "little"))}"'


def _hstore_map(text: str) -> str:
    return _to_json(hstore_items(text))


def _uuid_of(text: str) -> UUID:
    """The UUID that Java's UUID.nameUUIDFromBytes makes of a text."""
    return UUID(bytes=md5(text.encode(), usedforsecurity=False).digest(), version=3)


_STRINGS: Final = frozenset({"text", "varchar", "bpchar", "char", "name", "json", "jsonb", "xml", "tsvector"})
_ADDRESSES: Final = frozenset({"inet", "cidr", "macaddr", "macaddr8"})
_RANGES: Final = frozenset({"int4range", "int8range", "numrange", "tsrange", "tstzrange", "daterange"})
_TEXTS: Final = _STRINGS | _ADDRESSES | _RANGES
"""Types whose text is sent."""

_NUMBERS: Final[dict[str, Write]] = {
    "int2": number.integer,
    "int4": number.integer,
    "int8": number.integer,
    "oid": number.integer,
    "float4": number.floating,
    "float8": number.floating,
}

_EXTENSION_TEXTS: Final = frozenset({"citext", "ltree", "isbn"})
_EXTENSION_SHAPES: Final[dict[str, Write]] = {
    "geometry": geometry.postgis,
    "geography": geometry.postgis,
    "vector": geometry.vector,
    "halfvec": geometry.vector,
    "sparsevec": geometry.sparse_vector,
}

_UNKNOWN_IN_ARRAYS: Final = frozenset({"money", "name", "interval", "varbit", "xml", "point"})
"""Debezium knows the types, and not their arrays."""
