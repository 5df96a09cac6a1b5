"""Parking on a real PostgreSQL: what is set aside is durable, in order, and neither lost nor sent twice by a crash."""

import psycopg
import pytest

from relay.capture.message import Kind
from relay.daemon import replayer
from relay.daemon.parking import PENDING, Parking, ParkingFull
from relay.errors import SourceAway, SourceError
from relay.log import SourceLog
from relay.parking import table
from relay.parking.desk import Desk, Selection
from relay.parking.index import Reason, Verdict
from relay.parking.request import Action
from relay.wal.lsn import NOWHERE, Lsn, Position
from tests.support.database import Database
from tests.support.parking import (
    SLOT,
    Broker,
    Slot,
    ask,
    at,
    done,
    ids,
    message,
    parked,
    remembered,
    session,
    waiting_for_a_lock,
)
from tests.support.waiting import eventually


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def slot(database: Database) -> Slot:
    return Slot(database)


class TestStoring:
    async def test_a_message_is_settled_when_it_is_stored_and_not_before(
        self, database: Database, broker: Broker
    ) -> None:
        with psycopg.connect(database.superuser_dsn) as blocker:
            blocker.execute("LOCK TABLE relay.parked IN EXCLUSIVE MODE")
            async with session(database, broker) as relay:
                relay.park(message(1), message(2))
                await eventually(lambda: waiting_for_a_lock(database))
                assert relay.settled == []
                assert relay.parking.pending == 2
                blocker.rollback()
                await relay.stored()
                assert relay.settled == ["m1", "m2"]
        assert ids(database) == ["m1", "m2"]

    async def test_every_field_and_every_byte_is_kept(self, database: Database, broker: Broker) -> None:
        odd = message(
            1,
            'a"b\\c,{}NULL',
            payload='{ "n":1.50,\n "text": "\\u0000 \\" {,} ü☃" , "n": 2}'.encode(),
            headers=b'{"traceparent" :  "00-1"}',
            correlation_id="saga",
            reply_to="orders",
            causation_id="",
            operation="NULL",
        )
        async with session(database, broker) as relay:
            relay.park(odd)
            await relay.stored()
        async with session(database, broker) as relay:
            assert await done(relay, database, ask(database, Action.REPLAY, Selection(("m1",)))) == (1, 0, 0)
        assert broker.messages == [odd]

    async def test_keys_longer_than_an_index_takes_are_parked(self, database: Database, broker: Broker) -> None:
        async with session(database, broker) as relay:
            relay.park(message(1, "x" * 100_000, destination="y" * 100_000))
            await relay.stored()
        assert ids(database) == ["m1"]

    async def test_reading_stops_while_too_much_is_pending(self, database: Database, broker: Broker) -> None:
        with psycopg.connect(database.superuser_dsn) as blocker:
            blocker.execute("LOCK TABLE relay.parked IN EXCLUSIVE MODE")
            async with session(database, broker, limit=10_000) as relay:
                relay.park(*(message(number) for number in range(PENDING - 1)))
                assert relay.parking.has_room
                relay.park(message(PENDING))
                assert not relay.parking.has_room
                blocker.rollback()
                await relay.stored()
                assert relay.parking.has_room

    async def test_large_messages_stop_reading_sooner(self, database: Database, broker: Broker) -> None:
        async with session(database, broker) as relay:
            relay.park(message(1, payload=b'"%s"' % (b"x" * 9_000_000)), message(2))
            assert not relay.parking.has_room
            await relay.stored()
            assert relay.parking.has_room
        assert database.value("SELECT max(length(payload)) FROM relay.parked") == 9_000_002


class TestReplaying:
    async def test_all_that_waits_behind_a_message_is_replayed_with_it_in_the_order_of_the_stream(
        self, database: Database, broker: Broker
    ) -> None:
        async with session(database, broker) as relay:
            relay.park(message(2), message(1), message(3, "8"), message(4), message(5, kind=Kind.EVENT))
            number = ask(database, Action.REPLAY, Selection(("m4",)))
            assert await done(relay, database, number) == (3, 0, 0)
        assert broker.heard == ["m1", "m2", "m4"]
        assert ids(database) == ["m3", "m5"]
        assert remembered(database) == [("m1", "replayed"), ("m2", "replayed"), ("m4", "replayed")]

    @pytest.mark.parametrize(
        ("selection", "heard"),
        [
            (Selection(("m3",)), ["m3"]),
            (Selection((), ("order", "7")), ["m1", "m2", "m4", "m5"]),
            (Selection((), ("order", "8")), ["m3"]),
            (Selection((), None, Reason.TOO_LARGE), ["m3"]),
            (Selection((), None, Reason.UNROUTABLE), ["m1", "m2", "m4", "m5"]),
            (Selection((), ("order", "7"), Reason.TOO_LARGE), []),
            (Selection(("m1",), ("order", "8")), []),
            (Selection(("nobody",)), []),
        ],
    )
    async def test_a_selection_stands_for_whole_lanes(
        self, database: Database, broker: Broker, selection: Selection, heard: list[str]
    ) -> None:
        async with session(database, broker) as relay:
            relay.park(message(1), message(2, kind=Kind.EVENT), message(4), message(5, kind=Kind.EVENT))
            relay.park(message(3, "8"), reason=Reason.TOO_LARGE)
            await done(relay, database, ask(database, Action.REPLAY, selection))
            with Desk.open("orders", database.dsn, SLOT) as desk:
                left = [entry.id for entry in desk.entries(Selection())]
        assert sorted(broker.heard) == heard
        assert left == [name for name in ("m1", "m2", "m3", "m4", "m5") if name not in heard]

    async def test_what_comes_while_its_lane_is_replayed_leaves_after_it_and_then_the_lane_flows_again(
        self, database: Database, broker: Broker
    ) -> None:
        broker.open.clear()
        async with session(database, broker) as relay:
            relay.park(message(1), message(2))
            await relay.stored()
            number = ask(database, Action.REPLAY, Selection(("m1",)))
            relay.parking.wake()
            await broker.given.wait()
            assert relay.comes(message(3)) is Verdict.PARK
            broker.open.set()
            assert await relay.until_done(number, database) == (3, 0, 0)
            assert relay.comes(message(4)) is Verdict.PUBLISH
        assert broker.heard == ["m1", "m2", "m3", "m4"]
        assert ids(database) == []

    async def test_a_lane_that_fills_as_fast_as_it_is_emptied_comes_to_its_end(
        self, database: Database, broker: Broker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(replayer, "CHUNK", 2)
        coming = iter(range(4, 1000))
        async with session(database, broker) as relay:

            def another_one() -> None:
                if relay.parking.has_room:
                    relay.comes(message(next(coming)))

            broker.then = another_one
            relay.park(message(1), message(2), message(3))
            await relay.stored()
            published, _, left = await done(relay, database, ask(database, Action.REPLAY, Selection(("m1",))))
            assert left == 0
            assert relay.parking.has_room
        assert broker.heard == [f"m{number}" for number in range(1, len(broker.heard) + 1)]
        assert published == len(broker.heard) < 10

    async def test_what_is_refused_stays_parked_with_its_lane_and_the_new_reason(
        self, database: Database, broker: Broker
    ) -> None:
        broker.refuses = {"m2", "m3"}
        async with session(database, broker) as relay:
            relay.park(message(1), message(2), message(3), message(4, "8"))
            await relay.stored()
            number = ask(database, Action.REPLAY, Selection((), None, Reason.UNROUTABLE))
            assert await done(relay, database, number) == (2, 0, 2)
            assert relay.comes(message(5)) is Verdict.PARK
            await relay.stored()
        assert parked(database) == [("m2", "nacked"), ("m3", "nacked"), ("m5", "nacked")]
        assert database.value("SELECT detail FROM relay.parked WHERE id = 'm2'") == "m2 was refused"
        assert database.value("SELECT detail FROM relay.parked_request") == "m2 was refused"

    async def test_what_waits_behind_one_that_is_refused_at_once_does_not_leave_before_it(
        self, database: Database, broker: Broker
    ) -> None:
        broker.refuses = {"m2"}
        async with session(database, broker) as relay:
            relay.park(message(1), message(2), message(3), message(4, "8"))
            await relay.stored()
            number = ask(database, Action.REPLAY, Selection((), None, Reason.UNROUTABLE))
            assert await done(relay, database, number) == (2, 0, 2)
        assert broker.heard == ["m1", "m4"]
        assert ids(database) == ["m2", "m3"]

    async def test_many_lanes_and_a_long_one_are_replayed_in_order(self, database: Database, broker: Broker) -> None:
        async with session(database, broker) as relay:
            relay.park(*(message(number, str(number % 7) if number % 2 else "long") for number in range(700)))
            await relay.stored()
            number = ask(database, Action.REPLAY, Selection((), None, Reason.UNROUTABLE))
            assert await done(relay, database, number) == (700, 0, 0)
        lanes = {one.aggregate_id for one in broker.messages}
        assert len(lanes) == 8
        for lane in lanes:
            numbers = [int(one.id[1:]) for one in broker.messages if one.aggregate_id == lane]
            assert numbers == sorted(numbers)

    async def test_messages_larger_than_a_fetch_are_replayed_one_by_one(
        self, database: Database, broker: Broker
    ) -> None:
        async with session(database, broker) as relay:
            relay.park(*(message(number, payload=b'"%s"' % (b"x" * 5_000_000)) for number in (1, 2, 3)))
            await relay.stored()
            fetched = await table.fetch(relay.parking._connection, SLOT, [at(1), at(2), at(3)])
            assert list(fetched) == [at(1)]
            assert await done(relay, database, ask(database, Action.REPLAY, Selection(("m1",)))) == (3, 0, 0)
        assert broker.heard == ["m1", "m2", "m3"]

    async def test_rows_that_somebody_deleted_by_hand_do_not_hold_their_lane(
        self, database: Database, broker: Broker
    ) -> None:
        async with session(database, broker) as relay:
            relay.park(message(1), message(2), message(3), message(4))
            await relay.stored()
            database.query("DELETE FROM relay.parked WHERE id IN ('m1', 'm3', 'm4')")
            assert await done(relay, database, ask(database, Action.REPLAY, Selection(("m2",)))) == (1, 0, 0)
            assert relay.comes(message(5)) is Verdict.PUBLISH
        assert broker.heard == ["m2", "m5"]


class TestDropping:
    async def test_a_dropped_lane_is_never_published_and_what_comes_then_flows(
        self, database: Database, broker: Broker
    ) -> None:
        async with session(database, broker) as relay:
            relay.park(message(1), message(2), message(3, "8"))
            assert await done(relay, database, ask(database, Action.DROP, Selection(("m2",)))) == (0, 2, 0)
            assert relay.comes(message(4)) is Verdict.PUBLISH
            assert relay.comes(message(5, "8")) is Verdict.PARK
        assert broker.heard == ["m4"]
        assert remembered(database) == [("m1", "dropped"), ("m2", "dropped")]

    async def test_what_came_while_a_lane_was_being_dropped_is_published(
        self, database: Database, broker: Broker
    ) -> None:
        with psycopg.connect(database.superuser_dsn) as blocker:
            async with session(database, broker) as relay:
                relay.park(message(1))
                await relay.stored()
                blocker.execute("SELECT FROM relay.parked FOR UPDATE")
                number = ask(database, Action.DROP, Selection(("m1",)))
                relay.parking.wake()
                await eventually(lambda: waiting_for_a_lock(database))
                assert relay.comes(message(2)) is Verdict.PARK
                blocker.rollback()
                assert await relay.until_done(number, database) == (1, 1, 0)
        assert broker.heard == ["m2"]

    async def test_the_first_of_a_lane_can_be_dropped_alone(self, database: Database, broker: Broker) -> None:
        async with session(database, broker) as relay:
            relay.park(message(1), message(2), message(3, "8"), message(4, "8"))
            number = ask(database, Action.DROP, Selection(("m1", "m4")), first_only=True)
            assert await done(relay, database, number) == (0, 1, 3)
            assert relay.comes(message(5)) is Verdict.PARK
            await relay.stored()
        assert ids(database) == ["m2", "m3", "m4", "m5"]
        assert broker.heard == []


class TestCrashes:
    async def test_who_is_held_up_is_known_again(self, database: Database, broker: Broker) -> None:
        async with session(database, broker) as relay:
            relay.park(message(2), message(4))
            await relay.stored()
        async with session(database, broker) as relay:
            verdicts = [relay.comes(message(number)) for number in (1, 2, 3, 4, 5)]
            assert verdicts == [Verdict.PUBLISH, Verdict.SKIP, Verdict.PARK, Verdict.SKIP, Verdict.PARK]
            assert relay.comes(message(6, "8")) is Verdict.PUBLISH
            await relay.stored()
        assert ids(database) == ["m2", "m3", "m4", "m5"]

    async def test_what_was_not_stored_when_it_crashed_is_not_settled(self, database: Database, broker: Broker) -> None:
        with psycopg.connect(database.superuser_dsn) as blocker:
            blocker.execute("LOCK TABLE relay.parked IN EXCLUSIVE MODE")
            async with session(database, broker) as relay:
                relay.park(message(1))
                await eventually(lambda: waiting_for_a_lock(database))
            assert relay.settled == []
        assert ids(database) == []

    async def test_a_replay_that_a_crash_interrupts_is_seen_through_by_the_next_relay(
        self, database: Database, broker: Broker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(replayer, "CHUNK", 2)
        async with session(database, broker) as relay:
            relay.park(*(message(number) for number in range(1, 7)))
            await relay.stored()
            number = ask(database, Action.REPLAY, Selection(("m1",)))
            broker.stops_after = 4
            relay.parking.wake()
            await eventually(lambda: len(broker.heard) == 4 and not broker.open.is_set())
        assert ids(database) == ["m5", "m6"]
        broker.open.set()
        broker.stops_after = None
        async with session(database, broker) as relay:
            await relay.until_done(number, database)
        assert broker.heard == ["m1", "m2", "m3", "m4", "m5", "m6"]
        assert ids(database) == []

    async def test_what_was_published_and_not_committed_is_published_again(
        self, database: Database, broker: Broker
    ) -> None:
        with psycopg.connect(database.superuser_dsn) as blocker:
            async with session(database, broker) as relay:
                relay.park(message(1), message(2))
                await relay.stored()
                blocker.execute("SELECT FROM relay.parked WHERE id = 'm1' FOR UPDATE")
                number = ask(database, Action.REPLAY, Selection(("m1",)))
                relay.parking.wake()
                await eventually(lambda: waiting_for_a_lock(database))
        async with session(database, broker) as relay:
            assert await relay.until_done(number, database) == (2, 0, 0)
        assert broker.heard == ["m1", "m2", "m1", "m2"]

    async def test_a_drop_that_a_crash_interrupts_drops_nothing_that_came_later(
        self, database: Database, broker: Broker
    ) -> None:
        """It is done but for the last step, and the stream has brought more of the lane."""
        async with session(database, broker) as relay:
            relay.park(message(1), message(2))
            number = ask(database, Action.DROP, Selection(("m1",)))
            await done(relay, database, number)
            relay.park(message(3))
            await relay.stored()
        database.query("UPDATE relay.parked_request SET state = 'taken'")
        async with session(database, broker) as relay:
            assert await relay.until_done(number, database) == (1, 2, 0)
        assert broker.heard == ["m3"]

    async def test_what_an_operator_saw_to_is_remembered_until_the_slot_is_past_it(
        self, database: Database, broker: Broker, slot: "Slot"
    ) -> None:
        first, second = slot.position(), slot.position()
        async with session(database, broker) as relay:
            for number, position in ((1, first), (2, second)):
                relay.parking.park(message(number), position, Reason.NACKED, "", lambda: None)
            await done(relay, database, ask(database, Action.DROP, Selection(("m1",))))
        async with session(database, broker) as relay:
            index = relay.parking.index
            assert not index.empty
            verdicts = [index.verdict(position, message(1).lane) for position in (first, second, slot.position())]
            assert verdicts == [Verdict.SKIP, Verdict.SKIP, Verdict.PUBLISH]
            assert index.empty
        slot.confirm()
        async with session(database, broker) as relay:
            await done(relay, database, ask(database, Action.DROP, Selection(("nobody",))))
            assert len(remembered(database)) == 2, "a crash of PostgreSQL may take the confirmed position back"
        slot.advance()
        async with session(database, broker) as relay:
            assert relay.parking.index.empty
            await eventually(lambda: remembered(database) == [])

    async def test_a_replay_waits_until_the_stream_has_brought_again_what_may_belong_before(
        self, database: Database, broker: Broker, slot: "Slot"
    ) -> None:
        """m2 was in flight when the relay crashed, and nobody knows what became of it."""
        first, second, third = slot.position(), slot.position(), slot.position()
        async with session(database, broker) as relay:
            for number, position in ((1, first), (3, third)):
                relay.parking.park(message(number), position, Reason.NACKED, "", lambda: None)
            await relay.stored()
        number = ask(database, Action.REPLAY, Selection(("m1",)))
        async with session(database, broker) as relay:
            await eventually(lambda: database.value("SELECT lanes IS NOT NULL FROM relay.parked_request"))
            assert broker.heard == []
            index, lane = relay.parking.index, message(1).lane
            assert index.verdict(first, lane) is Verdict.SKIP
            assert index.verdict(second, lane) is Verdict.PARK
            relay.parking.park(message(2), second, Reason.NACKED, "", lambda: None)
            assert index.verdict(third, lane) is Verdict.SKIP
            assert await relay.until_done(number, database) == (3, 0, 0)
        assert broker.heard == ["m1", "m2", "m3"]

    async def test_rows_older_than_the_slot_are_remembered_until_all_of_them_are_published(
        self, database: Database, broker: Broker
    ) -> None:
        database.query("INSERT INTO relay.checkpoint (slot, state) VALUES (%s, 'copying')", SLOT)
        row = Position(Lsn(0), 17)
        async with session(database, broker) as relay:
            relay.parking.park(message(1), row, Reason.NACKED, "", lambda: None)
            await done(relay, database, ask(database, Action.DROP, Selection(("m1",))))
        async with session(database, broker) as relay:
            assert relay.parking.index.verdict(row, message(1).lane) is Verdict.SKIP
        assert len(remembered(database)) == 1
        async with session(database, broker) as relay:
            assert not relay.parking.index.empty
            relay.parking.backlog_done()
            assert relay.parking.index.empty
        database.query("UPDATE relay.checkpoint SET state = 'streaming'")
        async with session(database, broker):
            await eventually(lambda: remembered(database) == [])

    async def test_a_source_that_is_started_anew_keeps_what_is_parked_in_its_order_and_parks_none_of_it_twice(
        self, database: Database, broker: Broker
    ) -> None:
        """Another slot, perhaps another cluster with smaller LSNs: every row of the outbox comes again."""
        insert = (
            "INSERT INTO relay.outbox (kind, aggregate_type, aggregate_id, type, destination, payload)"
            " VALUES ('command', 'order', '7', 'Ship', 'stock', %s) RETURNING id::text, seq, created_at::text"
        )
        rows = [database.query(insert, f'{{"n": {number}}}')[0] for number in (1, 2)]
        messages = [message(number + 1, id=row[0], created_at=row[2]) for number, row in enumerate(rows)]
        gone = message(0)
        async with session(database, broker) as relay:
            for number, one in enumerate((gone, *messages)):
                relay.parking.park(one, at(number), Reason.NACKED, "", lambda: None)
            await relay.stored()
        database.query("UPDATE relay.parked SET commit_lsn = commit_lsn + 1000000000000::numeric")
        database.query("DELETE FROM relay.checkpoint")
        database.query("INSERT INTO relay.checkpoint (slot, state) VALUES (%s, 'copying')", SLOT)
        async with session(database, broker) as relay:
            index, lane = relay.parking.index, gone.lane
            for _, seq, _ in rows:
                assert index.verdict(Position(NOWHERE, int(str(seq))), lane) is Verdict.SKIP
            assert index.verdict(Position(NOWHERE, 10_000), lane) is Verdict.PARK
            relay.parking.backlog_done()
            assert await done(relay, database, ask(database, Action.REPLAY, Selection(("m0",)))) == (3, 0, 0)
        assert broker.heard == ["m0", *(str(row[0]) for row in rows)]

    async def test_a_session_that_follows_waits_until_the_one_before_has_let_go(
        self, database: Database, broker: Broker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("relay.daemon.parking.TURN_S", 0.2)
        async with session(database, broker):
            with pytest.raises(SourceAway):
                await Parking.open(database.dsn, "test", SLOT, 10, SourceLog("orders", SLOT))
            other = await Parking.open(database.dsn, "test", "another_slot", 10, SourceLog("orders", SLOT))
            await other.close()
        async with session(database, broker):
            pass


class TestWhatStopsTheSource:
    async def test_the_table_is_missing(self, database: Database, broker: Broker) -> None:
        database.query("DROP TABLE relay.parked")
        with pytest.raises(SourceError, match=r"relay\.parked") as refused:
            await Parking.open(database.dsn, "test", SLOT, 10, SourceLog("orders", SLOT))
        assert not isinstance(refused.value, SourceAway)
        assert "relay migrate" in refused.value.hint

    async def test_the_table_is_dropped_while_the_relay_runs(self, database: Database, broker: Broker) -> None:
        async with session(database, broker) as relay:
            database.query("DROP TABLE relay.parked")
            relay.park(message(1))
            failure = await relay.failure()
            assert type(failure) is SourceError
            assert "relay migrate" in failure.hint
            assert relay.settled == []

    @pytest.mark.parametrize("right", ["SELECT", "INSERT", "UPDATE", "DELETE"])
    async def test_a_right_is_missing(self, database: Database, right: str) -> None:
        database.query("ALTER TABLE relay.parked OWNER TO postgres")
        database.query("GRANT SELECT, INSERT, UPDATE, DELETE ON relay.parked TO relay")
        parking = await Parking.open(database.dsn, "test", SLOT, 10, SourceLog("orders", SLOT))
        await parking.close()
        database.query(f"REVOKE {right} ON relay.parked FROM relay")
        with pytest.raises(SourceError, match=f"lacks {right} on relay.parked$") as refused:
            await Parking.open(database.dsn, "test", SLOT, 10, SourceLog("orders", SLOT))
        assert "docs/setup.md" in refused.value.hint

    async def test_a_right_is_taken_away_while_the_relay_runs(self, database: Database, broker: Broker) -> None:
        async with session(database, broker) as relay:
            database.query("REVOKE ALL ON relay.parked FROM relay")
            relay.park(message(1))
            failure = await relay.failure()
            assert type(failure) is SourceError
            assert "docs/setup.md" in failure.hint
            assert relay.settled == []

    async def test_the_disk_is_full(self, database: Database, broker: Broker) -> None:
        database.query(
            "CREATE FUNCTION no_space() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$"
        )
        database.query("CREATE TRIGGER no_space BEFORE INSERT ON relay.parked EXECUTE FUNCTION no_space()")
        async with session(database, broker) as relay:
            relay.park(message(1))
            failure = await relay.failure()
            assert type(failure) is SourceError
            assert "No space left on device" in str(failure)
            assert "disk" in failure.hint
            assert relay.settled == []
        assert ids(database) == []

    async def test_a_lost_connection_is_worth_another_try(self, database: Database, broker: Broker) -> None:
        async with session(database, broker) as relay:
            database.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'test'")
            relay.park(message(1))
            assert isinstance(await relay.failure(), SourceAway)
            assert relay.settled == []

    async def test_more_messages_than_the_limit(self, database: Database, broker: Broker) -> None:
        async with session(database, broker, limit=2) as relay:
            relay.park(message(1), message(2))
            await relay.stored()
            assert relay.parking.has_room
            relay.park(message(3, "8"))
            assert not relay.parking.has_room
            assert relay.comes(message(4, "8")) is Verdict.PARK
            failure = await relay.failure()
            assert isinstance(failure, ParkingFull)
            assert "parked_limit" in str(failure)
            assert relay.settled == ["m1", "m2"]
        assert ids(database) == ["m1", "m2"]

    async def test_a_full_table_is_no_reason_to_stop_when_an_operator_makes_room(
        self, database: Database, broker: Broker
    ) -> None:
        async with session(database, broker, limit=2) as relay:
            relay.park(message(1), message(2))
            await relay.stored()
            broker.open.clear()
            number = ask(database, Action.REPLAY, Selection(("m1",)))
            relay.park(message(3, "8"))
            await broker.given.wait()
            assert not relay.parking.has_room
            broker.open.set()
            assert await relay.until_done(number, database) == (2, 0, 0)
            await relay.stored()
            assert relay.parking.has_room
        assert ids(database) == ["m3"]

    async def test_a_full_table_stops_the_source_when_the_request_made_no_room(
        self, database: Database, broker: Broker
    ) -> None:
        broker.refuses = {"m1", "m2"}
        async with session(database, broker, limit=2) as relay:
            relay.park(message(1), message(2))
            await relay.stored()
            ask(database, Action.REPLAY, Selection(("m1",)))
            relay.park(message(3, "8"))
            assert isinstance(await relay.failure(), ParkingFull)

    async def test_what_finds_no_room_behind_a_lane_that_is_replayed_does_not_hold_up_the_replay(
        self, database: Database, broker: Broker
    ) -> None:
        async with session(database, broker, limit=3) as relay:
            relay.park(message(1), message(2, "8"), message(3, "8"))
            await relay.stored()
            ask(database, Action.REPLAY, Selection(("m1",)))
            broker.then = lambda: relay.park(message(4, "9"), message(5), message(6))
            relay.parking.wake()
            assert isinstance(await relay.failure(), ParkingFull)
        assert broker.heard == ["m1"]
        assert ids(database) == ["m2", "m3", "m4"]
        assert database.value("SELECT still_parked FROM relay.parked_request") == 2


class TestRequests:
    async def test_a_request_whose_time_is_over_is_not_taken(self, database: Database, broker: Broker) -> None:
        with Desk.open("orders", database.dsn, SLOT) as desk:
            asked = desk.ask(Action.DROP, Selection(("m1",)), 0.001)
            second = desk.ask(Action.DROP, Selection(("m2",)), 30)
            async with session(database, broker) as relay:
                relay.park(message(1))
                await done(relay, database, second.number)
            assert asked.progress().state == "asked"
            assert asked.withdraw()
        assert ids(database) == ["m1"]

    async def test_a_request_that_is_withdrawn_is_not_taken_and_one_that_is_taken_is_not_withdrawn(
        self, database: Database, broker: Broker
    ) -> None:
        with Desk.open("orders", database.dsn, SLOT) as desk:
            withdrawn = desk.ask(Action.DROP, Selection(("m1",)), 30)
            assert withdrawn.withdraw()
            taken = desk.ask(Action.REPLAY, Selection(("m2",)), 30)
            broker.open.clear()
            async with session(database, broker) as relay:
                relay.park(message(1), message(2, "8"))
                await broker.given.wait()
                assert not taken.withdraw()
                broker.open.set()
                assert await relay.until_done(taken.number, database) == (1, 0, 0)
        assert ids(database) == ["m1"]

    async def test_a_request_of_another_slot_is_not_ours(self, database: Database, broker: Broker) -> None:
        with Desk.open("orders", database.dsn, "another") as desk:
            other = desk.ask(Action.DROP, Selection(("m1",)), 30)
            async with session(database, broker) as relay:
                relay.park(message(1))
                await done(relay, database, ask(database, Action.DROP, Selection(("m2",))))
            assert other.progress().state == "asked"
        assert ids(database) == ["m1"]

    async def test_requests_are_seen_to_one_after_the_other(self, database: Database, broker: Broker) -> None:
        async with session(database, broker) as relay:
            relay.park(message(1), message(2, "8"))
            await relay.stored()
            numbers = [ask(database, Action.REPLAY, Selection((name,))) for name in ("m2", "m1", "m2")]
            assert await done(relay, database, numbers[-1]) == (0, 0, 0)
        assert broker.heard == ["m2", "m1"]

    async def test_old_requests_are_discarded(self, database: Database, broker: Broker) -> None:
        number = ask(database, Action.DROP, Selection(("m1",)), timeout_s=0.001)
        async with session(database, broker) as relay:
            await done(relay, database, ask(database, Action.DROP, Selection(("m2",))))
        database.query("UPDATE relay.parked_request SET expires_at = now() - interval '2 hours', progress_at = now()")
        async with session(database, broker):
            await eventually(lambda: not database.query("SELECT 1 FROM relay.parked_request WHERE id = %s", number))
        assert database.value("SELECT count(*) FROM relay.parked_request") == 1
        database.query("UPDATE relay.parked_request SET progress_at = now() - interval '31 days'")
        async with session(database, broker):
            await eventually(lambda: database.value("SELECT count(*) FROM relay.parked_request") == 0)


async def test_services_may_not_see_what_is_parked(database: Database) -> None:
    with (
        psycopg.connect(database.role_dsn("orders")) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute("SELECT FROM relay.parked")


async def test_a_role_whose_commits_are_not_durable_parks_durably(database: Database, broker: Broker) -> None:
    database.query("ALTER ROLE relay SET synchronous_commit = off")
    try:
        async with session(database, broker) as relay:
            setting = await relay.parking._connection.execute("SHOW synchronous_commit")
            assert await setting.fetchone() == ("on",)
    finally:
        database.query("ALTER ROLE relay RESET synchronous_commit")
