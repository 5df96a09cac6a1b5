"""A change of a table becomes one JSON body, and its key the id of its aggregate."""

import json
from datetime import UTC, datetime

import pytest

from relay.capture.change import Op, Origin, RowChange, Shape, TableColumn
from relay.capture.message import CaptureError
from relay.capture.native import NativeWriter, aggregate_id
from relay.capture.values import Unreadable
from relay.wal.lsn import Lsn
from relay.wal.pgoutput import Binary, Row, Unchanged
from relay.wal.pgtype import PgType

INT4 = PgType(23, "pg_catalog", "int4")
INT8 = PgType(20, "pg_catalog", "int8")
TEXT = PgType(25, "pg_catalog", "text")
ORIGIN = Origin("7", 740, Lsn(200), Lsn(100), 0, datetime(2025, 6, 1, tzinfo=UTC), None)


def table(*columns: tuple[str, PgType], key: tuple[int, ...] = (0,), oid: int = 4001) -> Shape:
    return Shape(oid, "public", "docs", tuple(TableColumn(name, kind, -1) for name, kind in columns), key)


DOCS = table(("id", INT8), ("title", TEXT), ("body", TEXT))


def written(
    op: Op,
    before: Row | None = None,
    after: Row | None = None,
    *,
    whole: bool = False,
    shape: Shape = DOCS,
    writer: NativeWriter | None = None,
) -> str:
    (rendered,) = (writer or NativeWriter()).write(RowChange(shape, op, before, whole, after, ORIGIN))
    assert rendered.headers == b"{}"
    json.loads(rendered.payload)
    return rendered.payload.decode()


def test_an_insert_has_the_new_row() -> None:
    assert written(Op.INSERT, after=(b"7", b"a", None)) == (
        '{"op":"insert","before":null,"after":{"id":"7","title":"a","body":null},"unchanged":[]}'
    )


def test_a_row_of_a_snapshot_looks_like_an_insert() -> None:
    assert written(Op.SNAPSHOT, after=(b"7", b"a", b"b")) == (
        '{"op":"snapshot","before":null,"after":{"id":"7","title":"a","body":"b"},"unchanged":[]}'
    )


def test_an_update_without_an_old_row_has_none() -> None:
    assert written(Op.UPDATE, after=(b"7", b"a", b"b")) == (
        '{"op":"update","before":null,"after":{"id":"7","title":"a","body":"b"},"unchanged":[]}'
    )


def test_a_whole_old_row_is_written_whole() -> None:
    assert written(Op.UPDATE, (b"7", None, b"x"), (b"7", b"a", b"b"), whole=True) == (
        '{"op":"update","before":{"id":"7","title":null,"body":"x"},'
        '"after":{"id":"7","title":"a","body":"b"},"unchanged":[]}'
    )


def test_an_old_row_of_which_the_key_is_known_has_nothing_but_the_key() -> None:
    assert written(Op.DELETE, (b"7", None, None)) == ('{"op":"delete","before":{"id":"7"},"after":null,"unchanged":[]}')


def test_a_truncation_has_no_rows() -> None:
    assert written(Op.TRUNCATE) == '{"op":"truncate","before":null,"after":null,"unchanged":[]}'


def test_an_unchanged_value_is_left_out_and_named() -> None:
    toasted: Row = (b"7", Unchanged.TOAST, Unchanged.TOAST)
    assert written(Op.UPDATE, after=toasted) == (
        '{"op":"update","before":null,"after":{"id":"7"},"unchanged":["title","body"]}'
    )


def test_a_name_is_written_as_json() -> None:
    shape = table(('the "no"', INT4), ("naïve", TEXT))
    assert written(Op.INSERT, after=(b"1", b"x"), shape=shape) == (
        '{"op":"insert","before":null,"after":{"the \\"no\\"":1,"naïve":"x"},"unchanged":[]}'
    )


def test_rows_are_written_by_the_newest_shape_of_their_table() -> None:
    writer = NativeWriter()
    written(Op.INSERT, after=(b"1",), shape=table(("id", INT4)), writer=writer)
    altered = written(Op.INSERT, after=(b"1", b"x"), shape=table(("id", INT8), ("new", TEXT)), writer=writer)
    assert '"after":{"id":"1","new":"x"}' in altered


def test_tables_do_not_mix() -> None:
    writer = NativeWriter()
    written(Op.INSERT, after=(b"1",), shape=table(("id", INT4)), writer=writer)
    assert '"after":{"no":"1"}' in written(Op.INSERT, after=(b"1",), shape=table(("no", INT8), oid=4002), writer=writer)


def test_a_value_that_cannot_be_read_is_told_by_its_column() -> None:
    with pytest.raises(Unreadable, match=r"^column id of public\.docs: a value of type pg_catalog\.int4 ") as refusal:
        written(Op.INSERT, after=(b"x",), shape=table(("id", INT4)))
    assert refusal.value.hint


def test_a_value_in_binary_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"column title of public\.docs was not sent as text"):
        written(Op.INSERT, after=(b"7", Binary(b"a"), None))


@pytest.mark.parametrize(
    ("key", "row", "expected"),
    [
        ((0,), (b"7", b"a", b"b"), "7"),
        ((1,), (b"7", b"50%/a", b"b"), "50%/a"),
        ((0, 1), (b"7", b"50%/a", b"b"), "7/50%25%2Fa"),
        ((0, 1), (b"7", None, b"b"), "7/"),
        ((0,), (None, b"a", b"b"), ""),
        ((), (b"7", b"a", b"b"), ""),
    ],
)
def test_the_key_of_a_row_is_the_id_of_its_aggregate(key: tuple[int, ...], row: Row, expected: str) -> None:
    assert aggregate_id(table(("id", INT8), ("title", TEXT), ("body", TEXT), key=key), row) == expected


@pytest.mark.parametrize("value", [Unchanged.TOAST, Binary(b"7")])
def test_a_key_that_was_not_sent_is_refused(value: Unchanged | Binary) -> None:
    with pytest.raises(CaptureError, match=r"column id of public\.docs is part of the key and was not sent as text"):
        aggregate_id(DOCS, (value, b"a", b"b"))


def test_a_key_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(Unreadable, match=r"column id of public\.docs is part of the key and not UTF-8"):
        aggregate_id(DOCS, (b"\xff", b"a", b"b"))
