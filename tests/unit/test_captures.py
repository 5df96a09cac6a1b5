"""Which change is a message of which capture, given what pgoutput sends."""

from datetime import UTC, datetime

import pytest

from relay.capture.captures import OUTBOX_TABLE, Captures
from relay.capture.columns import EVENT_STORE
from relay.capture.logical import LogicalCapture
from relay.capture.message import Malformed
from relay.capture.native import NativeWriter
from relay.capture.outbox import COLUMNS, OutboxCapture
from relay.capture.rows import RowCapture
from relay.capture.table import TableCapture
from relay.wal.lsn import Lsn
from relay.wal.pgoutput import Begin, Column, Commit, Delete, Insert, LogicalMessage, Relation, Truncate, Update
from relay.wal.pgtype import PgType
from relay.wal.table import TableName

AT = datetime(2025, 6, 1, 12, tzinfo=UTC)
INT4 = PgType(23, "pg_catalog", "int4")
CUSTOMERS = TableName("public", "customers")
EVENTS = TableName("relay", "event_store")
OID, OTHER = 4001, 5001


def relation(table: TableName, oid: int = OID, columns: tuple[str, ...] = ("id",)) -> Relation:
    return Relation(oid, *table, "d", tuple(Column(name, name == "id", 23, -1) for name in columns))


class Stage:
    """Captures of a table, in the middle of a stream."""

    def __init__(self, table: TableName = CUSTOMERS, since: Lsn | None = None, name: str = "customers") -> None:
        self.ignored = 0
        self.captures = Captures(
            "7601", {table: TableCapture(name, (), NativeWriter())}, [LogicalCapture("logical")],
            {} if since is None else {table: since}, self._ignore,
        )  # fmt: skip
        self.described(relation(table))
        self.begin(100)

    def _ignore(self) -> None:
        self.ignored += 1

    def described(self, one: Relation) -> None:
        if self.captures.describe(one):
            self.captures.learn(one, {23: INT4}, ())

    def begin(self, commit_lsn: int) -> None:
        self.captures.begin(Begin(Lsn(commit_lsn), AT, 42))

    def inserted(self, value: bytes, lsn: int, oid: int = OID) -> list[str]:
        return [message.id for message in self.captures.messages(Insert(oid, (value,)), Lsn(lsn))]


def test_a_change_of_a_captured_table_is_a_message_of_its_capture() -> None:
    (message,) = Stage(name="crm").captures.messages(Insert(OID, (b"7",)), Lsn(90))
    assert (message.capture, message.aggregate_type, message.aggregate_id) == ("crm", "public.customers", "7")


def test_a_change_that_no_capture_is_for_is_counted_and_is_no_message() -> None:
    stage = Stage()
    stage.described(relation(TableName("public", "others"), OTHER))
    assert stage.inserted(b"1", 90, OTHER) == []
    assert stage.captures.messages(Update(OTHER, None, None, (b"1",)), Lsn(91)) == []
    assert stage.captures.messages(Delete(OTHER, (b"1",), None), Lsn(92)) == []
    assert stage.captures.messages(Truncate((OTHER,), False, False), Lsn(93)) == []
    assert stage.captures.messages(LogicalMessage(True, Lsn(94), "theirs", b"{}"), Lsn(94)) == []
    assert stage.captures.messages(LogicalMessage(False, Lsn(95), "relay.outbox", b"{}"), Lsn(95)) == []
    assert stage.ignored == 6


def test_rows_that_a_copy_writes_at_one_lsn_have_ids_of_their_own_and_the_same_ones_again() -> None:
    first, again = Stage(), Stage(name="renamed")
    ids = [*first.inserted(b"1", 90), *first.inserted(b"2", 90), *first.inserted(b"3", 91)]
    assert len(set(ids)) == 3
    assert ids == [*again.inserted(b"1", 90), *again.inserted(b"2", 90), *again.inserted(b"3", 91)]


def test_the_same_lsn_in_the_next_transaction_is_counted_from_the_beginning() -> None:
    one, other = Stage(), Stage()
    one.inserted(b"0", 90)
    one.begin(200)
    other.begin(200)
    assert one.inserted(b"1", 90) == other.inserted(b"1", 90)


def test_what_else_is_captured_does_not_change_an_id() -> None:
    plain, beside = Stage(), Stage()
    beside.described(relation(TableName("public", "others"), OTHER))
    beside.inserted(b"5", 90, OTHER)
    assert plain.inserted(b"1", 90) == beside.inserted(b"1", 90)


def test_a_logical_message_that_ends_where_a_row_lies_does_not_change_its_id_whoever_captures_it() -> None:
    content = b'{"aggregate_type": "order", "aggregate_id": "7", "type": "OrderCreated", "payload": 1}'
    change = LogicalMessage(True, Lsn(90), "relay.outbox", content)
    stage, without = Stage(), Stage()
    without.captures = Captures("7601", {CUSTOMERS: TableCapture("customers", (), NativeWriter())})
    without.described(relation(CUSTOMERS))
    without.begin(100)
    (message,) = stage.captures.messages(change, Lsn(90))
    assert without.captures.messages(change, Lsn(90)) == []
    (row,) = stage.inserted(b"1", 90)
    assert [row] == without.inserted(b"1", 90)
    assert row != message.id


def test_what_committed_before_the_copy_of_a_table_is_in_it_and_passed_over() -> None:
    stage = Stage(since=Lsn(150))
    assert stage.inserted(b"1", 90) == []
    assert stage.captures.messages(Truncate((OID,), False, False), Lsn(91)) == []
    stage.begin(150)
    assert len(stage.inserted(b"2", 140)) == 1
    assert stage.ignored == 0


def test_a_table_that_is_renamed_in_mid_stream_is_still_captured() -> None:
    stage = Stage()
    stage.described(relation(TableName("public", "clients")))
    (message,) = stage.captures.messages(Insert(OID, (b"7",)), Lsn(90))
    assert message.aggregate_type == "public.clients"


def test_another_table_that_takes_the_name_is_captured_too_as_it_is_in_the_publication() -> None:
    stage = Stage()
    stage.described(relation(CUSTOMERS, OTHER))
    assert len(stage.inserted(b"1", 90, OTHER)) == 1


def test_the_hot_path_takes_rows_of_the_outbox_alone() -> None:
    captures = Captures("7601", {OUTBOX_TABLE: OutboxCapture("orders")})
    captures.describe(relation(OUTBOX_TABLE, columns=COLUMNS))
    row = dict.fromkeys(COLUMNS, b"x") | {"kind": b"event"}
    message = captures.of_outbox(Insert(OID, tuple(row.values())))
    assert message is not None
    assert message.capture == "orders"
    assert captures.of_outbox(Insert(OTHER, (b"1",))) is None


def test_an_outbox_that_was_copied_later_leaves_the_hot_path_so_that_its_copy_is_not_told_twice() -> None:
    captures = Captures("7601", {OUTBOX_TABLE: OutboxCapture()}, (), {OUTBOX_TABLE: Lsn(150)})
    captures.describe(relation(OUTBOX_TABLE, columns=COLUMNS))
    row = Insert(OID, tuple((dict.fromkeys(COLUMNS, b"x") | {"kind": b"event"}).values()))
    assert captures.of_outbox(row) is None
    captures.begin(Begin(Lsn(100), AT, 42))
    assert captures.messages(row, Lsn(90)) == []
    captures.begin(Begin(Lsn(200), AT, 43))
    assert len(captures.messages(row, Lsn(190))) == 1


def test_updates_and_deletes_of_an_append_only_table_are_no_messages() -> None:
    captures = Captures("7601", {EVENTS: RowCapture("event_store", EVENT_STORE)})
    names = ("id", "stream_type", "stream_id", "version", "type", "data", "headers", "created_at")
    captures.describe(relation(EVENTS, columns=names))
    captures.begin(Begin(Lsn(100), AT, 42))
    row = tuple(b"1" for _ in names)
    assert captures.messages(Update(OID, None, None, row), Lsn(90)) == []
    assert captures.messages(Delete(OID, row, None), Lsn(91)) == []


def test_a_row_that_is_no_message_says_so_and_the_next_one_is_understood() -> None:
    stage = Stage()
    with pytest.raises(Malformed):
        stage.captures.messages(LogicalMessage(True, Lsn(90), "relay.outbox", b"["), Lsn(90))
    assert len(stage.inserted(b"1", 91)) == 1


def test_the_end_of_the_transaction_before_is_known_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()
    stage.captures.end(Commit(Lsn(100), Lsn(108), AT))
    stage.begin(200)
    seen = []
    monkeypatch.setattr(NativeWriter, "write", lambda _, change: seen.append(change.origin.last_commit_lsn) or [])
    stage.inserted(b"1", 190)
    assert seen == [Lsn(108)]
