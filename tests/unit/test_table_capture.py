"""Changes of plain tables become messages, and whoever applies them has the table."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.capture.change import Origin, Rendered, RowChange
from relay.capture.message import CaptureError, Kind, Message
from relay.capture.native import NativeWriter
from relay.capture.table import TableCapture
from relay.errors import ConfigError
from relay.wal.lsn import Lsn
from relay.wal.pgoutput import Column, Delete, Insert, Relation, Row, Unchanged, Update
from relay.wal.pgtype import PgType

OID = 16400
INT, TEXT = 23, 25
TYPES = {INT: PgType(INT, "pg_catalog", "int4"), TEXT: PgType(TEXT, "pg_catalog", "text")}
AT = datetime(2026, 11, 24, 9, 5, 7, 250_000, tzinfo=UTC)
ORIGIN = Origin("7412", 812, Lsn(900), Lsn(700), 0, AT, None)
GONE = Unchanged.TOAST
FIELDS = attrgetter("type", "aggregate_id")


class Spy:
    """A writer that keeps what it is given, and makes so many of each change."""

    def __init__(self, *parts: int) -> None:
        self.changes: list[RowChange] = []
        self._parts = list(parts)

    def write(self, change: RowChange) -> Sequence[Rendered]:
        self.changes.append(change)
        count = self._parts.pop(0) if self._parts else 1
        return [Rendered(b"{}", b"%d" % number) for number in range(count)]


def customers(identity: str = "d", *columns: str, name: str = "customers", key: str = "id") -> Relation:
    """A table as pgoutput describes it: with FULL each column is marked as key."""
    names = ("id", "name", "body", *columns)
    kinds = [INT if column == "id" else TEXT for column in names]
    marked = {"d": {key}, "i": {key}, "f": set(names), "n": set()}[identity]
    described = tuple(Column(column, column in marked, kind, -1) for column, kind in zip(names, kinds, strict=True))
    return Relation(OID, "public", name, identity, described)


def capture(
    relation: Relation | None = None,
    *,
    exclude: Sequence[str] = (),
    writer: Spy | NativeWriter | None = None,
    primary_key: Sequence[str] = ("id",),
) -> TableCapture:
    made = TableCapture("tables", exclude, writer or NativeWriter())
    made.describe(relation or customers(), TYPES, primary_key)
    return made


def body(message: Message) -> Any:
    return json.loads(message.payload)


class TestMessages:
    def test_an_insert(self) -> None:
        (message,) = capture().messages(Insert(OID, (b"7", b"Ann", None)), ORIGIN)
        assert message == Message(
            id=message.id,
            kind=Kind.EVENT,
            aggregate_type="public.customers",
            aggregate_id="7",
            type="inserted",
            destination=None,
            correlation_id=None,
            reply_to=None,
            causation_id=None,
            operation=None,
            headers=b"{}",
            payload=b'{"op":"insert","before":null,"after":{"id":7,"name":"Ann","body":null},"unchanged":[]}',
            created_at="2026-11-24 09:05:07.25+00",
            capture="tables",
        )

    def test_an_update_of_which_only_the_new_row_is_known(self) -> None:
        (message,) = capture().messages(Update(OID, None, None, (b"7", b"Ann", b"b")), ORIGIN)
        assert FIELDS(message) == ("updated", "7")
        assert body(message) == {
            "op": "update",
            "before": None,
            "after": {"id": 7, "name": "Ann", "body": "b"},
            "unchanged": [],
        }

    def test_an_update_of_which_the_whole_old_row_is_known(self) -> None:
        change = Update(OID, None, (b"7", b"Ann", b"b"), (b"7", b"Bob", b"b"))
        (message,) = capture(customers("f")).messages(change, ORIGIN)
        assert FIELDS(message) == ("updated", "7")
        assert body(message)["before"] == {"id": 7, "name": "Ann", "body": "b"}

    def test_a_delete_of_which_the_key_is_known(self) -> None:
        (message,) = capture().messages(Delete(OID, (b"7", None, None), None), ORIGIN)
        assert FIELDS(message) == ("deleted", "7")
        assert body(message) == {"op": "delete", "before": {"id": 7}, "after": None, "unchanged": []}

    def test_a_delete_of_which_the_whole_row_is_known(self) -> None:
        (message,) = capture(customers("f")).messages(Delete(OID, None, (b"7", b"Ann", None)), ORIGIN)
        assert FIELDS(message) == ("deleted", "7")
        assert body(message)["before"] == {"id": 7, "name": "Ann", "body": None}

    def test_a_truncation(self) -> None:
        (message,) = capture().truncated(OID, ORIGIN)
        assert FIELDS(message) == ("truncated", "")
        assert body(message) == {"op": "truncate", "before": None, "after": None, "unchanged": []}

    def test_a_row_of_a_snapshot(self) -> None:
        (message,) = capture().snapshot_row(OID, (b"7", b"Ann", None), "7412", AT)
        assert FIELDS(message) == ("snapshot", "7")
        assert message.created_at == "2026-11-24 09:05:07.25+00"
        assert body(message) == {
            "op": "snapshot",
            "before": None,
            "after": {"id": 7, "name": "Ann", "body": None},
            "unchanged": [],
        }

    def test_tables_that_are_not_described_are_ignored(self) -> None:
        assert capture().messages(Insert(OID + 1, (b"7",)), ORIGIN) == []
        assert capture().truncated(OID + 1, ORIGIN) == []


class TestKeys:
    @pytest.mark.parametrize(
        ("identity", "change"),
        [
            ("d", Update(OID, (b"7", None, None), None, (b"8", b"Ann", b"b"))),
            ("f", Update(OID, None, (b"7", b"Ann", b"b"), (b"8", b"Ann", b"b"))),
        ],
    )
    def test_a_changed_key_is_a_row_deleted_and_another_inserted(self, identity: str, change: Update) -> None:
        deleted, inserted = capture(customers(identity)).messages(change, ORIGIN)
        assert (FIELDS(deleted), FIELDS(inserted)) == (("deleted", "7"), ("inserted", "8"))
        assert body(deleted)["before"]["id"] == 7
        assert body(inserted) == {
            "op": "insert",
            "before": None,
            "after": {"id": 8, "name": "Ann", "body": "b"},
            "unchanged": [],
        }
        assert deleted.id != inserted.id

    def test_a_key_that_comes_along_without_having_changed_is_an_update(self) -> None:
        """PostgreSQL sends the old key as well when it is stored out of line; the new row then leaves it out."""
        relation = customers(key="name")
        (message,) = capture(relation).messages(Update(OID, (None, b"Ann", None), None, (b"8", GONE, b"b")), ORIGIN)
        assert FIELDS(message) == ("updated", "Ann")
        assert body(message)["after"] == {"id": 8, "name": "Ann", "body": "b"}

    def test_a_key_of_several_columns(self) -> None:
        relation = customers()
        columns = tuple(Column(one.name, one.name != "body", one.type_oid, -1) for one in relation.columns)
        made = capture(Relation(OID, "public", "customers", "i", columns))
        (message,) = made.messages(Insert(OID, (b"7", b"a/b", None)), ORIGIN)
        assert message.aggregate_id == "7/a%2Fb"

    def test_a_full_identity_is_told_by_the_primary_key(self) -> None:
        spy = Spy()
        capture(customers("f"), writer=spy, primary_key=("name", "id")).messages(
            Insert(OID, (b"7", b"Ann", b"b")), ORIGIN
        )
        assert spy.changes[0].shape.key == (0, 1)

    @pytest.mark.parametrize("primary_key", [(), ("elsewhere",)])
    def test_without_a_key_every_row_is_of_one_aggregate(self, primary_key: Sequence[str]) -> None:
        made = capture(customers("f"), primary_key=primary_key)
        change = Update(OID, None, (b"7", b"Ann", b"b"), (b"8", b"Bob", b"c"))
        (message,) = made.messages(change, ORIGIN)
        assert FIELDS(message) == ("updated", "")
        assert body(message)["before"] == {"id": 7, "name": "Ann", "body": "b"}

    def test_a_table_that_lost_its_key_still_has_inserts(self) -> None:
        (message,) = capture(customers("n")).messages(Insert(OID, (b"7", b"Ann", None)), ORIGIN)
        assert FIELDS(message) == ("inserted", "")


class TestPartitionsOfAnotherIdentity:
    """pgoutput describes the root, and sends what the partition's replica identity gives."""

    def test_a_writer_is_given_no_more_than_the_key(self) -> None:
        spy = Spy()
        capture(writer=spy).messages(Delete(OID, (b"7", b"Ann", b"b"), None), ORIGIN)
        assert (spy.changes[0].before, spy.changes[0].before_is_whole) == ((b"7", None, None), False)

    def test_more_than_the_key_is_left_out(self) -> None:
        made = capture()
        (updated,) = made.messages(Update(OID, (b"7", b"Ann", b"b"), None, (b"7", b"Bob", b"b")), ORIGIN)
        (deleted,) = made.messages(Delete(OID, (b"7", b"Bob", b"b"), None), ORIGIN)
        assert (FIELDS(updated), FIELDS(deleted)) == (("updated", "7"), ("deleted", "7"))
        assert body(updated)["before"] == body(deleted)["before"] == {"id": 7}

    def test_a_root_without_identity_knows_no_key(self) -> None:
        (message,) = capture(customers("n")).messages(Delete(OID, (b"7", None, None), None), ORIGIN)
        assert FIELDS(message) == ("deleted", "")
        assert body(message)["before"] is None

    def test_a_value_that_was_not_sent_does_not_become_a_null_that_stands_for_nothing_known(self) -> None:
        spy = Spy()
        change = Update(OID, None, (b"7", None, None), (b"8", b"Ann", GONE))
        capture(customers("f"), writer=spy).messages(change, ORIGIN)
        deleted, inserted = spy.changes
        assert not deleted.before_is_whole
        assert inserted.after == (b"8", b"Ann", GONE)


class TestUnchanged:
    def test_a_value_that_was_not_sent_is_marked(self) -> None:
        (message,) = capture().messages(Update(OID, None, None, (b"7", b"Ann", GONE)), ORIGIN)
        assert body(message)["after"] == {"id": 7, "name": "Ann"}
        assert body(message)["unchanged"] == ["body"]

    def test_it_is_marked_in_the_row_under_a_new_key_too(self) -> None:
        _, inserted = capture().messages(Update(OID, (b"7", None, None), None, (b"8", b"Ann", GONE)), ORIGIN)
        assert body(inserted)["after"] == {"id": 8, "name": "Ann"}
        assert body(inserted)["unchanged"] == ["body"]

    @pytest.mark.parametrize("new_id", [b"7", b"8"])
    def test_it_is_filled_in_from_a_whole_old_row(self, new_id: bytes) -> None:
        change = Update(OID, None, (b"7", b"Ann", b"long"), (new_id, b"Bob", GONE))
        message = capture(customers("f")).messages(change, ORIGIN)[-1]
        assert body(message)["after"] == {"id": int(new_id), "name": "Bob", "body": "long"}
        assert body(message)["unchanged"] == []


class TestExclusion:
    @pytest.mark.parametrize("exclude", [["name"], ["public.customers.name"], ["name", "public.customers.body"]])
    def test_excluded_columns_are_nowhere(self, exclude: list[str]) -> None:
        made = capture(customers("f"), exclude=exclude)
        row: Row = (b"7", b"secret", b"b")
        messages = [
            *made.messages(Insert(OID, row), ORIGIN),
            *made.messages(Update(OID, None, row, (b"8", b"secret", b"c")), ORIGIN),
            *made.messages(Delete(OID, None, row), ORIGIN),
            *made.snapshot_row(OID, row, "7412", AT),
        ]
        assert len(messages) == 5
        assert not any(b"secret" in message.payload or b"name" in message.payload for message in messages)

    def test_a_column_is_excluded_where_it_is_meant(self) -> None:
        made = capture(exclude=["public.orders.name", '"Public".customers.name', "NAME.x.name"])
        (message,) = made.messages(Insert(OID, (b"7", b"Ann", None)), ORIGIN)
        assert body(message)["after"]["name"] == "Ann"

    def test_one_column_may_be_left(self) -> None:
        made = capture(exclude=["name", "body"])
        (message,) = made.messages(Insert(OID, (b"7", b"Ann", None)), ORIGIN)
        assert body(message)["after"] == {"id": 7}

    def test_the_place_of_the_key_moves_with_the_columns(self) -> None:
        made = capture(customers(key="body"), exclude=["id"])
        (message,) = made.messages(Delete(OID, (None, None, b"k"), None), ORIGIN)
        assert FIELDS(message) == ("deleted", "k")
        assert body(message)["before"] == {"body": "k"}

    @pytest.mark.parametrize("relation", [customers(), customers("f"), customers("i")])
    def test_a_column_of_the_key_cannot_be_left_out(self, relation: Relation) -> None:
        with pytest.raises(
            CaptureError, match=r"public\.customers is told by id, which exclude_columns leaves out"
        ) as no:
            capture(relation, exclude=["id", "body"])
        assert "replica identity" in no.value.hint

    @pytest.mark.parametrize("exclude", ["", "a.b", "public.customers.*", "*", 'a."b', "a b"])
    def test_what_is_no_column_is_refused(self, exclude: str) -> None:
        with pytest.raises(ConfigError, match="exclude_columns of capture tables"):
            TableCapture("tables", [exclude], NativeWriter())


class TestIds:
    def test_they_tell_place_and_nothing_else(self) -> None:
        change = Insert(OID, (b"7", b"Ann", None))
        (one,) = capture().messages(change, ORIGIN)
        (again,) = capture(exclude=["name"]).messages(change, ORIGIN._replace(committed_at=AT.replace(year=2027)))
        (next_one,) = capture().messages(change, ORIGIN._replace(ordinal=1))
        assert one.id == again.id != next_one.id
        assert str(UUID(one.id)) == one.id

    def test_each_part_of_a_change_has_its_own(self) -> None:
        change = Update(OID, (b"7", None, None), None, (b"8", b"Ann", None))
        messages = capture(writer=Spy(2, 1)).messages(change, ORIGIN)
        assert [FIELDS(message) for message in messages] == [("deleted", "7"), ("deleted", "7"), ("inserted", "8")]
        assert len({message.id for message in messages}) == 3

    def test_the_second_half_of_a_key_change_keeps_its_id_in_another_envelope(self) -> None:
        change = Update(OID, (b"7", None, None), None, (b"8", b"Ann", None))
        *_, with_tombstone = capture(writer=Spy(2, 1)).messages(change, ORIGIN)
        *_, without = capture(writer=Spy(1, 1)).messages(change, ORIGIN)
        assert with_tombstone.id == without.id

    def test_a_truncation_of_several_tables_is_told_by_their_names(self) -> None:
        (first,) = capture().truncated(OID, ORIGIN)
        (other,) = capture(customers(name="orders")).truncated(OID, ORIGIN)
        (later_among_them,) = capture().truncated(OID, ORIGIN._replace(ordinal=3))
        assert first.id == later_among_them.id != other.id
        assert len({message.id for message in capture(writer=Spy(2)).truncated(OID, ORIGIN)}) == 2

    def test_a_row_of_a_snapshot_keeps_its_id_while_it_stays_the_same(self) -> None:
        def taken(row: Row, writer: Spy | NativeWriter, at: datetime = AT) -> str:
            return capture(writer=writer).snapshot_row(OID, row, "7412", at)[0].id

        row: Row = (b"7", b"Ann", None)
        assert taken(row, NativeWriter()) == taken(row, Spy(), AT.replace(year=2027))
        others = [(b"7", b"Ann", b""), (b"7", None, b"Ann"), (b"8", b"Ann", None)]
        assert len({taken(other, Spy()) for other in [row, *others]}) == 4


class TestDescriptions:
    def test_a_column_that_is_added_is_followed(self) -> None:
        made = capture()
        made.describe(customers("d", "phone"), TYPES, ("id",))
        (message,) = made.messages(Insert(OID, (b"7", b"Ann", None, b"112")), ORIGIN)
        assert body(message)["after"]["phone"] == "112"

    def test_a_table_that_is_renamed_goes_by_its_new_name(self) -> None:
        made = capture()
        made.describe(customers(name="clients"), TYPES, ("id",))
        (message,) = made.messages(Insert(OID, (b"7", b"Ann", None)), ORIGIN)
        assert message.aggregate_type == "public.clients"

    def test_a_row_that_does_not_fit_is_refused(self) -> None:
        with pytest.raises(CaptureError, match=r"a row of public\.customers has 2 values, where 3 columns"):
            capture().messages(Insert(OID, (b"7", b"Ann")), ORIGIN)

    def test_the_same_description_again_is_the_same_shape(self) -> None:
        spy = Spy()
        made = capture(writer=spy)
        for _ in range(2):
            made.messages(Insert(OID, (b"7", b"Ann", None)), ORIGIN)
            made.describe(customers(), TYPES, ("id",))
        assert spy.changes[0].shape is spy.changes[1].shape

    def test_a_type_that_is_gone_is_text(self) -> None:
        made = TableCapture("tables", (), NativeWriter())
        made.describe(customers(), {INT: TYPES[INT]}, ("id",))
        (message,) = made.messages(Insert(OID, (b"7", b"Ann", None)), ORIGIN)
        assert body(message)["after"]["name"] == "Ann"


LONG = "long"
Values = dict[str, Any]


class Table:
    """A table of PostgreSQL, and what pgoutput says of its changes. A body that begins with `long` is out of line."""

    def __init__(self, *, full: bool) -> None:
        self._full = full
        self.rows: dict[int, Values] = {}

    def insert(self, row: Values) -> Insert:
        self.rows[row["id"]] = row
        return Insert(OID, self._row(row))

    def update(self, key: int, changed: Values) -> Update:
        old = self.rows.pop(key)
        new = old | changed
        self.rows[new["id"]] = new
        sent = list(self._row(new))
        if "body" not in changed and str(new["body"]).startswith(LONG):
            sent[2] = GONE
        if self._full:
            return Update(OID, None, self._row(old), tuple(sent))
        return Update(OID, None if new["id"] == key else self._key(key), None, tuple(sent))

    def delete(self, key: int) -> Delete:
        old = self.rows.pop(key)
        return Delete(OID, None, self._row(old)) if self._full else Delete(OID, self._key(key), None)

    def _row(self, row: Values) -> Row:
        return tuple(None if row[name] is None else str(row[name]).encode() for name in ("id", "name", "body"))

    def _key(self, key: int) -> Row:
        return (b"%d" % key, None, None)


class Copy:
    """Whoever applies the messages, and nothing else."""

    def __init__(self) -> None:
        self.rows: dict[str, Values] = {}

    def apply(self, message: Message) -> None:
        key, said = message.aggregate_id, body(message)
        assert (said["before"] or {}).items() <= self.rows.get(key, {}).items()
        match message.type:
            case "truncated":
                self.rows.clear()
            case "deleted":
                del self.rows[key]
            case "updated":
                assert set(said["unchanged"]) == {"id", "name", "body"} - said["after"].keys()
                self.rows[key] |= said["after"]
            case "inserted" | "snapshot":
                assert key not in self.rows
                self.rows[key] = said["after"]


keys = st.integers(1, 4)
texts = st.one_of(st.none(), st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=3))
bodies = st.one_of(texts, st.sampled_from([LONG, f"{LONG}er"]))
changes_of_a_row = st.fixed_dictionaries({}, optional={"id": keys, "name": texts, "body": bodies})
statements = st.one_of(
    st.tuples(st.just("insert"), st.fixed_dictionaries({"id": keys, "name": texts, "body": bodies})),
    st.tuples(st.just("update"), keys, changes_of_a_row),
    st.tuples(st.just("delete"), keys),
    st.tuples(st.just("truncate")),
)


def run(statement: tuple[Any, ...], table: Table, capturing: TableCapture) -> list[Message]:
    """What a statement makes of the table, and what is said of it; nothing where PostgreSQL would refuse it."""
    verb, *rest = statement
    if verb == "truncate":
        table.rows.clear()
        return capturing.truncated(OID, ORIGIN)
    if verb == "insert" and rest[0]["id"] not in table.rows:
        return capturing.messages(table.insert(rest[0]), ORIGIN)
    if verb == "delete" and rest[0] in table.rows:
        return capturing.messages(table.delete(rest[0]), ORIGIN)
    if verb == "update" and rest[0] in table.rows and rest[1].get("id", rest[0]) not in table.rows.keys() - {rest[0]}:
        return capturing.messages(table.update(*rest), ORIGIN)
    return []


@given(st.lists(statements, max_size=12), st.booleans())
def test_whoever_applies_the_messages_has_the_table(plan: list[tuple[Any, ...]], full: bool) -> None:
    table, copy = Table(full=full), Copy()
    capturing = capture(customers("f" if full else "d"))
    for statement in plan:
        for message in run(statement, table, capturing):
            copy.apply(message)
        real = {str(key): row for key, row in table.rows.items()}
        if not full:  # nobody told a large value that kept still while its key changed: it is absent, and never wrong
            for key, row in real.items():
                if str(row["body"]).startswith(LONG) and "body" not in copy.rows[key]:
                    real[key] = {"id": row["id"], "name": row["name"]}
        assert copy.rows == real
