"""Points, shapes and vectors of PostgreSQL as text -> JSON as Debezium writes them. All raise ValueError."""

import re
import struct
from base64 import b64encode
from collections.abc import Callable
from typing import Final

from relay.capture.debezium.number import floating, integer, java_float

_POINT = re.compile(r"\(([^,()]+),([^,()]+)\)")
_WKB_POINT: Final = struct.Struct("<BIdd")
_LITTLE_ENDIAN: Final = 1
_POINT_TYPE: Final = 1
"""Source: OGC 06-103r4, Simple Feature Access, "Well-known Binary Representation"."""

_NUMBER = re.compile(r"-?\d[\d.]*(?:e[+-]?\d+)?", re.ASCII)

_EWKB_HEAD: Final = {0: struct.Struct(">II"), 1: struct.Struct("<II")}
"""Behind the byte that tells their order: the type with its flags, and where the flags say so, the SRID."""
_HAS_SRID: Final = 0x20000000
"""Source: PostGIS, doc/ZMSgeoms.txt."""

_SPARSE = re.compile(r"\{([^{}]*)\}/(\d+)", re.ASCII)


def point(text: str) -> str:
    """PostgreSQL's own point: its numbers, and the same in WKB."""
    match = _POINT.fullmatch(text)
    if match is None:
        raise ValueError("it is no point")
    x, y = map(floating, match.groups())
    wkb = _WKB_POINT.pack(_LITTLE_ENDIAN, _POINT_TYPE, *map(float, match.groups()))
    return f'{{"x":{x},"y":{y},"wkb":"{b64encode(wkb).decode()}","srid":null}}'


def shape(text: str) -> str:
    """The text of a line, a path and their like with its numbers in Java's form; Debezium takes it for bytes."""
    return _NUMBER.sub(lambda match: java_float(match[0]), text)


def postgis(text: str) -> str:
    """PostGIS's geometry and geography: its EWKB, which PostGIS prints in hexadecimal, and the SRID that is in it."""
    ewkb = bytes.fromhex(text)
    head = _EWKB_HEAD.get(ewkb[0]) if ewkb else None
    if head is None or len(ewkb) < 1 + head.size:
        raise ValueError("it is no EWKB")
    kind, srid = head.unpack_from(ewkb, 1)
    return f'{{"wkb":"{b64encode(ewkb).decode()}","srid":{srid if kind & _HAS_SRID else "null"}}}'


def vector(text: str) -> str:
    """pgvector's vector and halfvec: an array of numbers."""
    if not (text.startswith("[") and text.endswith("]")):
        raise ValueError("it is no vector")
    return f"[{','.join(map(floating, text[1:-1].split(',')))}]"


def sparse_vector(text: str) -> str:
    """pgvector's sparsevec: its dimensions, and pairs of a place and a number."""
    match = _SPARSE.fullmatch(text)
    if match is None:
        raise ValueError("it is no sparse vector")
    pairs = [pair.partition(":") for pair in match[1].split(",") if pair]
    listed = ",".join(f"[{integer(place)},{floating(number)}]" for place, _, number in pairs)
    return f'{{"dimensions":{match[2]},"vector":[{listed}]}}'


SHAPES: Final[dict[str, Callable[[str], str]]] = dict.fromkeys(
    ("line", "lseg", "box", "path", "polygon", "circle"), shape
)
"""PostgreSQL's shapes, which Debezium has no form for, by name."""
