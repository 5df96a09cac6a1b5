"""The decoder of pgoutput: against PostgreSQL's own bytes, against hand-written ones, and against everything else."""

import json
import struct
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.wal.lsn import Lsn, parse_lsn
from relay.wal.pgoutput import (
    Begin,
    Binary,
    Column,
    Commit,
    Delete,
    Insert,
    LogicalMessage,
    Message,
    Origin,
    Relation,
    Row,
    Truncate,
    Type,
    Unchanged,
    Update,
    Value,
    decode,
)
from relay.wal.protocol import EPOCH, ProtocolError

GOLDEN = Path(__file__).parent / "golden" / "pgoutput-v1-pg18.jsonl"
"""What PostgreSQL 18 wrote about tables of every common type: {lsn, xid, hex} on each line."""


def golden() -> list[bytes]:
    return [bytes.fromhex(json.loads(line)["hex"]) for line in GOLDEN.read_text().splitlines()]


def same(one: Message, other: Message) -> bool:
    """Named tuples of two kinds are equal when their fields are."""
    return type(one) is type(other) and one == other


def hexed(*fields: str | bytes) -> bytes:
    """A message, written by hand: text is hexadecimal, bytes stand for themselves."""
    return b"".join(bytes.fromhex(field) if isinstance(field, str) else field for field in fields)


# An encoder, for round trips only: it shares nothing with the decoder.


def encode(message: Message) -> bytes:
    match message:
        case Begin(lsn, at, xid):
            return b"B" + struct.pack(">QqI", lsn, micros(at), xid)
        case Commit(lsn, end, at):
            return b"C" + struct.pack(">BQQq", 0, lsn, end, micros(at))
        case Origin(lsn, name):
            return b"O" + struct.pack(">Q", lsn) + text(name)
        case Relation(oid, namespace, name, identity, columns):
            head = struct.pack(">I", oid) + schema(namespace) + text(name) + identity.encode()
            return b"R" + head + struct.pack(">H", len(columns)) + b"".join(map(column, columns))
        case Type(oid, namespace, name):
            return b"Y" + struct.pack(">I", oid) + schema(namespace) + text(name)
        case Insert(oid, new):
            return b"I" + struct.pack(">I", oid) + rows(N=new)
        case Update(oid, key, old, new):
            return b"U" + struct.pack(">I", oid) + rows(K=key, O=old, N=new)
        case Delete(oid, key, old):
            return b"D" + struct.pack(">I", oid) + rows(K=key, O=old)
        case Truncate(oids, cascade, restart_identity):
            return b"T" + struct.pack(f">IB{len(oids)}I", len(oids), cascade | restart_identity << 1, *oids)
        case LogicalMessage(transactional, lsn, prefix, content):
            return b"M" + struct.pack(">BQ", transactional, lsn) + text(prefix) + counted(content)


def micros(at: datetime) -> int:
    return (at - EPOCH) // timedelta(microseconds=1)


def text(value: str) -> bytes:
    return value.encode() + b"\0"


def schema(name: str) -> bytes:
    return text("" if name == "pg_catalog" else name)


def counted(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def column(value: Column) -> bytes:
    return struct.pack(">B", value.is_key) + text(value.name) + struct.pack(">Ii", value.type_oid, value.type_modifier)


def rows(**by_kind: Row | None) -> bytes:
    return b"".join(
        kind.encode() + struct.pack(">H", len(row)) + b"".join(map(cell, row))
        for kind, row in by_kind.items()
        if row is not None
    )


def cell(value: Value) -> bytes:
    match value:
        case None:
            return b"n"
        case Unchanged.TOAST:
            return b"u"
        case Binary(data):
            return b"b" + counted(data)
        case bytes():
            return b"t" + counted(value)
    raise AssertionError(value)


u16, u32, u64 = (st.integers(0, (1 << bits) - 1) for bits in (16, 32, 64))
lsns = u64.map(Lsn)
times = st.datetimes(timezones=st.just(UTC))
names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
schemas = names.filter(bool)  # an empty one stands for pg_catalog
values = st.one_of(st.none(), st.just(Unchanged.TOAST), st.binary(max_size=30), st.binary(max_size=30).map(Binary))
tuples = st.lists(values, max_size=8).map(tuple)
columns = st.builds(Column, names, st.booleans(), u32, st.integers(-(1 << 31), (1 << 31) - 1))
old_images = st.one_of(st.tuples(st.none(), tuples), st.tuples(tuples, st.none()))
"""Either a key or the whole old row."""
messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(Begin, lsns, times, u32),
    st.builds(Commit, lsns, lsns, times),
    st.builds(Origin, lsns, names),
    st.builds(Relation, u32, schemas, names, st.sampled_from("dnfi"), st.lists(columns, max_size=6).map(tuple)),
    st.builds(Type, u32, schemas, names),
    st.builds(Insert, u32, tuples),
    st.builds(lambda oid, old, new: Update(oid, *old, new), u32, st.just((None, None)) | old_images, tuples),
    st.builds(lambda oid, old: Delete(oid, *old), u32, old_images),
    st.builds(Truncate, st.lists(u32, max_size=6).map(tuple), st.booleans(), st.booleans()),
    st.builds(LogicalMessage, st.booleans(), lsns, names, st.binary(max_size=40)),
)


class TestWhatPostgreSQLWrote:
    """The golden capture: no byte of it is left over, and none of it can be missing."""

    def test_every_message_is_decoded(self) -> None:
        counts = Counter(type(decode(data)) for data in golden())
        assert counts == {
            Begin: 14,
            Commit: 14,
            Insert: 8,
            Relation: 6,
            Update: 4,
            Type: 3,
            Delete: 2,
            Truncate: 1,
        }

    def test_every_byte_is_accounted_for(self) -> None:
        """What was understood is enough to write the same bytes again."""
        for data in golden():
            assert encode(decode(data)) == data

    def test_one_byte_too_many_is_refused(self) -> None:
        for data in golden():
            with pytest.raises(ProtocolError):
                decode(data + b"\0")

    def test_truncation_at_any_byte_is_refused(self) -> None:
        for data in golden():
            for length in range(len(data)):
                with pytest.raises(ProtocolError):
                    decode(data[:length])

    def test_a_transaction_is_framed_by_matching_ends(self) -> None:
        decoded = [decode(data) for data in golden()]
        begin = next(m for m in decoded if isinstance(m, Begin))
        commit = next(m for m in decoded if isinstance(m, Commit))
        assert begin.final_lsn == commit.commit_lsn < commit.end_lsn
        assert begin.xid == 185759
        assert begin.committed_at == commit.committed_at

    def test_the_row_of_every_type_has_a_value_for_every_column(self) -> None:
        decoded = [decode(data) for data in golden()]
        table = next(m for m in decoded if isinstance(m, Relation) and m.name == "everything")
        first = next(m for m in decoded if isinstance(m, Insert) and m.relation_oid == table.oid)
        row = dict(zip((c.name for c in table.columns), first.new, strict=True))
        assert [c.name for c in table.columns if c.is_key] == ["id"]
        assert row["id"] == b"9007199254740993"
        assert row["vc"] == "naïve ✓".encode()
        assert row["t"] == b'line\nbreak "quoted" \\'
        assert row["iv"] == b"1 year 2 mons 3 days 04:05:06.5"

    def test_an_untouched_toasted_body_is_absent_and_not_null(self) -> None:
        decoded = [decode(data) for data in golden()]
        documents = next(m for m in decoded if isinstance(m, Relation) and m.name == "documents")
        update = next(m for m in decoded if isinstance(m, Update) and m.relation_oid == documents.oid)
        assert update.new == (b"1", b"toast, body untouched", Unchanged.TOAST)

    def test_rolled_back_rows_are_not_there(self) -> None:
        everything = b"".join(golden())
        assert b"kept" in everything
        assert b"rolled back" not in everything
        assert b"undone" not in everything


OID = "0000 4001"
LSN = "0000 0001 0000 0010"  # 1/10
ONE_SECOND = "0000 0000 000f 4240"
AT = EPOCH + timedelta(seconds=1)
ROW_7 = hexed("0001", b"t", "0000 0001", b"7")  # one column of text
ROW_8 = hexed("0001", b"t", "0000 0001", b"8")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(
            hexed(b"B", LSN, ONE_SECOND, "0000 002a"),
            Begin(parse_lsn("1/10"), AT, 42),
            id="begin",
        ),
        pytest.param(
            hexed(b"C", "00", LSN, "0000 0001 0000 0020", ONE_SECOND),
            Commit(parse_lsn("1/10"), parse_lsn("1/20"), AT),
            id="commit",
        ),
        pytest.param(hexed(b"O", LSN, b"upstream\0"), Origin(parse_lsn("1/10"), "upstream"), id="origin"),
        pytest.param(
            hexed(b"R", OID, b"public\0", b"accounts\0", b"f", "0002")
            + hexed("01", b"id\0", "0000 0017", "ffff ffff", "00", b"balance\0", "0000 06a4", "000c 0006"),
            Relation(
                0x4001, "public", "accounts", "f", (Column("id", True, 23, -1), Column("balance", False, 1700, 786438))
            ),
            id="relation",
        ),
        pytest.param(
            hexed(b"R", OID, b"\0", b"pg_class\0", b"n", "0000"),
            Relation(0x4001, "pg_catalog", "pg_class", "n", ()),
            id="relation without columns, of pg_catalog",
        ),
        pytest.param(hexed(b"Y", OID, b"public\0", b"mood\0"), Type(0x4001, "public", "mood"), id="type"),
        pytest.param(hexed(b"Y", OID, b"\0", b"int4\0"), Type(0x4001, "pg_catalog", "int4"), id="type of pg_catalog"),
        pytest.param(
            hexed(
                b"I", OID, b"N", "0004", b"t", "0000 0002", b"hi", b"n", b"t", "0000 0000", b"b", "0000 0002", "cafe"
            ),
            Insert(0x4001, (b"hi", None, b"", Binary(b"\xca\xfe"))),
            id="insert of text, null, the empty string, binary",
        ),
        pytest.param(hexed(b"I", OID, b"N", "0000"), Insert(0x4001, ()), id="insert without columns"),
        pytest.param(
            hexed(b"U", OID, b"N", "0002", b"u", b"t", "0000 0001", b"x"),
            Update(0x4001, None, None, (Unchanged.TOAST, b"x")),
            id="update that leaves a TOAST value untouched",
        ),
        pytest.param(
            hexed(b"U", OID, b"K", ROW_7, b"N", ROW_8), Update(0x4001, (b"7",), None, (b"8",)), id="update of the key"
        ),
        pytest.param(
            hexed(b"U", OID, b"O", ROW_7, b"N", ROW_8),
            Update(0x4001, None, (b"7",), (b"8",)),
            id="update, identity full",
        ),
        pytest.param(hexed(b"D", OID, b"K", ROW_7), Delete(0x4001, (b"7",), None), id="delete by key"),
        pytest.param(hexed(b"D", OID, b"O", ROW_7), Delete(0x4001, None, (b"7",)), id="delete, identity full"),
        pytest.param(hexed(b"T", "0000 0001", "00", OID), Truncate((0x4001,), False, False), id="truncate"),
        pytest.param(hexed(b"T", "0000 0001", "01", OID), Truncate((0x4001,), True, False), id="truncate cascade"),
        pytest.param(
            hexed(b"T", "0000 0002", "02", OID, "0000 4002"),
            Truncate((0x4001, 0x4002), False, True),
            id="truncate two, restart identity",
        ),
        pytest.param(hexed(b"T", "0000 0000", "03"), Truncate((), True, True), id="truncate, both flags"),
        pytest.param(
            hexed(b"M", "01", LSN, b"heartbeat\0", "0000 0003", b"a\0b"),
            LogicalMessage(True, parse_lsn("1/10"), "heartbeat", b"a\0b"),
            id="logical message",
        ),
        pytest.param(
            hexed(b"M", "00", LSN, b"\0", "0000 0000"),
            LogicalMessage(False, parse_lsn("1/10"), "", b""),
            id="logical message outside of a transaction",
        ),
    ],
)
def test_a_message_written_by_hand(data: bytes, message: Message) -> None:
    assert same(decode(data), message)
    for length in range(len(data)):
        with pytest.raises(ProtocolError):
            decode(data[:length])
    with pytest.raises(ProtocolError, match=r"1 bytes too many|unexpected kind of tuple"):
        decode(data + b"\0")


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        pytest.param(b"", "unknown pgoutput message b''", id="nothing at all"),
        pytest.param(b"Z123", "unknown pgoutput message b'Z' of 4 bytes", id="unknown kind of message"),
        pytest.param(hexed(b"I", OID, b"K", ROW_7), "kind of tuple b'K' at byte 5", id="insert of a key"),
        pytest.param(
            hexed(b"I", OID, b"N", "0001", b"x"), "kind of column b'x' at byte 8", id="unknown kind of column"
        ),
        pytest.param(hexed(b"U", OID, b"X", ROW_7), "kind of tuple b'X' at byte 5", id="unknown kind of tuple"),
        pytest.param(
            hexed(b"I", OID, b"N", "0001", b"t", "ffff ffff"), "truncated: it needs", id="length beyond the end"
        ),
        pytest.param(
            hexed(b"I", OID, b"N", "0002", b"t", "ffff ffff", b"n"),
            "of 14 bytes is truncated",
            id="length beyond the end, and a column after it",
        ),
        pytest.param(
            hexed(b"U", OID, b"K", "0001", b"t", "0000 00ff", b"N", ROW_8),
            "is truncated",
            id="length beyond the end, and a row after it",
        ),
        pytest.param(hexed(b"T", "ffff ffff", "00", OID), "truncated", id="more tables than there are bytes"),
        pytest.param(hexed(b"O", LSN, b"\xff\0"), "not UTF-8", id="name in another encoding"),
        pytest.param(hexed(b"O", LSN, b"endless"), "truncated at byte 9", id="name without an end"),
        pytest.param(hexed(b"B", LSN, "7fff ffff ffff ffff", "0000 002a"), "no time", id="commit after Python's time"),
    ],
)
def test_a_message_that_cannot_be_is_refused_with_the_place(data: bytes, complaint: str) -> None:
    with pytest.raises(ProtocolError, match=complaint):
        decode(data)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(hexed(b"D", OID, b"N", ROW_7), id="delete with a new row and nothing else"),
        pytest.param(hexed(b"D", OID, b"K", ROW_7, b"N", ROW_8), id="delete with a new row"),
        pytest.param(hexed(b"D", OID, b"K", ROW_7, b"O", ROW_8), id="delete with key and old row"),
        pytest.param(hexed(b"U", OID, b"K", ROW_7, b"O", ROW_7, b"N", ROW_8), id="update with key and old row"),
        pytest.param(hexed(b"U", OID, b"N", ROW_7, b"K", ROW_8), id="update with the key after the new row"),
        pytest.param(hexed(b"U", OID, b"N", ROW_7, b"N", ROW_8), id="update with two new rows"),
        pytest.param(hexed(b"U", OID, b"K", ROW_7), id="update without a new row"),
        pytest.param(hexed(b"D", OID), id="delete without a row"),
    ],
)
def test_tuples_that_the_message_cannot_have_are_refused(data: bytes) -> None:
    """The documentation: "either K or O, but never both", then, in an Update only, N."""
    with pytest.raises(ProtocolError):
        decode(data)


@given(messages)
def test_what_is_encoded_is_decoded(message: Message) -> None:
    assert same(decode(encode(message)), message)


@given(messages, st.data())
def test_any_message_cut_off_anywhere_is_refused(message: Message, data: st.DataObject) -> None:
    encoded = encode(message)
    length = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(ProtocolError):
        decode(encoded[:length])


@given(st.sampled_from(b"BCORYIUDTM") | st.integers(0, 255), st.binary(max_size=80))
def test_any_bytes_are_a_message_or_refused(kind: int, body: bytes) -> None:
    refused_or_decoded(bytes([kind]) + body)


@given(messages, st.data())
def test_any_message_with_a_wrong_byte_is_a_message_or_refused(message: Message, data: st.DataObject) -> None:
    encoded = bytearray(encode(message))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    refused_or_decoded(bytes(encoded))


@given(messages, st.binary(min_size=1, max_size=20))
def test_any_message_with_more_behind_it_is_refused(message: Message, more: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(encode(message) + more)


@given(st.sampled_from(golden()), st.data())
def test_what_postgresql_wrote_with_any_bytes_exchanged_is_a_message_or_refused(
    message: bytes, data: st.DataObject
) -> None:
    start, end = sorted((data.draw(st.integers(0, len(message))), data.draw(st.integers(0, len(message)))))
    end = min(end, start + 8)
    refused_or_decoded(message[:start] + data.draw(st.binary(max_size=8)) + message[end:])


def refused_or_decoded(data: bytes) -> None:
    """Rows are never understood but for a part: what was decoded writes the same bytes again."""
    with suppress(ProtocolError):
        message = decode(data)
        assert isinstance(message, Message)
        if isinstance(message, Insert | Update | Delete):
            assert encode(message) == data
