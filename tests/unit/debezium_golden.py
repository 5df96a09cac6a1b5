"""What Debezium 3.6.3 said, kept in golden/: reading it, and the types that it is about."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from relay.capture.change import Origin
from relay.capture.debezium import DebeziumWriter
from relay.capture.message import Message
from relay.capture.table import TableCapture
from relay.wal.lsn import Lsn, parse_lsn
from relay.wal.pgoutput import Begin, Commit, Delete, Insert, Relation, Truncate, Update, decode
from relay.wal.pgoutput import Message as WalMessage
from relay.wal.pgtype import Category, PgType

GOLDEN: Final = Path(__file__).parent / "golden"

RUNS: Final[dict[str, dict[str, str]]] = {
    "defaults": {},
    "readable": {
        "decimal.handling.mode": "string",
        "time.precision.mode": "isostring",
        "interval.handling.mode": "string",
        "hstore.handling.mode": "json",
        "include.unknown.datatypes": "true",
    },
    "connect": {
        "decimal.handling.mode": "double",
        "time.precision.mode": "connect",
        "hstore.handling.mode": "map",
        "binary.handling.mode": "base64",
        "include.unknown.datatypes": "true",
        "unavailable.value.placeholder": "gone é",
    },
    "micro": {
        "time.precision.mode": "microseconds",
        "binary.handling.mode": "hex",
        "include.unknown.datatypes": "true",
        "money.fraction.digits": "4",
    },
    "b64": {
        "binary.handling.mode": "base64",
        "include.unknown.datatypes": "true",
        "decimal.handling.mode": "double",
    },
    "url": {
        "binary.handling.mode": "base64-url-safe",
        "include.unknown.datatypes": "true",
        "time.precision.mode": "nanoseconds",
    },
    "atm": {
        "time.precision.mode": "adaptive_time_microseconds",
        "include.unknown.datatypes": "true",
        "decimal.handling.mode": "string",
        "hstore.handling.mode": "map",
        "money.fraction.digits": "0",
        "interval.handling.mode": "numeric",
    },
}
"""The settings of the runs of Debezium that golden/debezium-types.jsonl is of. Its two other files are of the first."""

ABSENT: Final = "no such column"
"""What a run has where Debezium leaves a column out."""


@dataclass(frozen=True)
class Sample:
    """A value of a column, and what Debezium made of it in each run; `text` is None for one that was not sent."""

    column: str
    type: PgType
    modifier: int
    text: str | None
    debezium: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.column} {self.text or 'unchanged'}"[:60]


def samples() -> Iterator[Sample]:
    """All that golden/debezium-types.jsonl has."""
    for line in _lines("debezium-types.jsonl"):
        row = json.loads(line)
        said = {run: one.get("value", ABSENT) for one in row["debezium"] for run in one["with"].split()}
        yield Sample(row["column"], _type(row["type"]), row["modifier"], row["text"], said)


def _lines(name: str) -> list[str]:
    """Not by splitlines: a value has a U+2028 in it."""
    return (GOLDEN / name).read_text(encoding="utf-8").rstrip("\n").split("\n")


def _type(given: dict[str, Any]) -> PgType:
    return PgType(
        given["oid"],
        given["namespace"],
        given["name"],
        Category(given["category"]),
        _type(given["element"]) if "element" in given else None,
        given.get("delimiter", ","),
        given.get("modifier", -1),
    )


def built_in_types() -> dict[int, PgType]:
    return {sample.type.oid: sample.type for sample in samples() if sample.type.namespace == "pg_catalog"}


def schema_types() -> dict[int, PgType]:
    """The types of golden/schema.sql, with the oids that they had in golden/pgoutput-v1-pg18.jsonl."""
    known = built_in_types()
    return known | {
        16725: PgType(16725, "public", "mood", Category.ENUM),
        16732: PgType(16732, "public", "positive", Category.DOMAIN, known[23]),
        16597: PgType(16597, "public", "hstore"),
    }


@dataclass(frozen=True)
class Said:
    """A message of Debezium, as golden/ has it: its key and value are text."""

    key: str | None
    value: str | None


def said(run: str) -> list[Said]:
    """What Debezium made of golden/changes.sql, in its own spelling."""
    return [_said(line) for line in _lines(f"debezium-{run}.jsonl")]


def _said(line: str) -> Said:
    """The lines are objects of three members, written with a blank behind each colon and comma of the outermost one."""
    _, _, rest = line.partition('"key": ')
    key, _, value = rest[:-1].partition(', "value": ')
    return Said(*(None if text == "null" else text for text in (key, value)))


def captured_wal() -> Iterator[tuple[Lsn, WalMessage]]:
    """golden/pgoutput-v1-pg18.jsonl: what PostgreSQL sent, and where it lay."""
    for line in _lines("pgoutput-v1-pg18.jsonl"):
        frame = json.loads(line)
        yield parse_lsn(frame["lsn"]), decode(bytes.fromhex(frame["hex"]))


def replay(
    wal: Iterator[tuple[Lsn, WalMessage]], writer: DebeziumWriter, types: Mapping[int, PgType]
) -> Iterator[Message]:
    """The messages of a stream, through the capture of tables. The one table with FULL has the primary key `id`."""
    capture = TableCapture("tables", (), writer)
    begin, last = None, None
    for lsn, message in wal:
        match message:
            case Begin():
                begin = message
            case Commit(_, end_lsn, _):
                last = end_lsn
            case Relation():
                capture.describe(message, types, ("id",))
            case Insert() | Update() | Delete() | Truncate() if begin is not None:
                origin = Origin("7412", begin.xid, begin.final_lsn, lsn, 0, begin.committed_at, last)
                if isinstance(message, Truncate):
                    for oid in message.relation_oids:
                        yield from capture.truncated(oid, origin)
                else:
                    yield from capture.messages(message, origin)
