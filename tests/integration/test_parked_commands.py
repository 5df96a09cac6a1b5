"""`relay parked` with a database, and with a relay that does what it asks."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator

import pytest

from relay.capture.message import Kind, Message
from relay.daemon import replayer
from relay.parking.desk import Selection
from relay.parking.index import Reason
from relay.parking.request import Action
from relay.wal.lsn import Position
from tests.conftest import VirtualHost
from tests.support.database import Database
from tests.support.link import Link
from tests.support.mailbox import mailbox
from tests.support.parking import (
    SLOT,
    Broker,
    Ended,
    Operator,
    ask,
    asked,
    done,
    ended,
    ids,
    listening,
    message,
    remembered,
    session,
)
from tests.support.process import RelayProcess
from tests.support.waiting import eventually


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
async def operator(database: Database) -> AsyncIterator[Operator]:
    operator = Operator(database)
    yield operator
    await operator.leave()


class TestCommands:
    async def test_what_is_parked_is_listed_without_a_relay(
        self, database: Database, broker: Broker, operator: Operator
    ) -> None:
        async with session(database, broker) as relay:
            relay.park(message(1), message(2), message(3, kind=Kind.EVENT))
            relay.park(message(4, "8/b"), reason=Reason.TOO_LARGE)
            await relay.stored()
        listed = await operator("list")
        assert (listed.code, listed.err) == (0, "")
        lines = [line.split() for line in listed.out.splitlines()]
        assert lines[0] == ["SOURCE", "POSITION", "ID", "TYPE", "AGGREGATE", "DESTINATION", "REASON", "FIRST", "PARKED"]
        shown = "orders 0/100+0 m1 command Ship order/7 stock unroutable yes"
        assert " ".join(lines[1]).startswith(shown)
        assert [(line[2], line[-3]) for line in lines[1:]] == [
            ("m1", "yes"),
            ("m2", "no"),
            ("m3", "yes"),
            ("m4", "yes"),
        ]
        for arguments, found in [
            (("--reason", "too_large"), ["m4"]),
            (("--aggregate", "order/7"), ["m1", "m2", "m3"]),
            (("--aggregate", "order/8/b"), ["m4"]),
            (("--aggregate", "order/8"), []),
            (("--limit", "1"), ["m1"]),
        ]:
            as_json = await operator("list", "--format", "json", *arguments)
            assert [entry["id"] for entry in json.loads(as_json.out)] == found
        assert "3 more are parked" in as_json.err

    async def test_a_message_is_shown_byte_for_byte(
        self, database: Database, broker: Broker, operator: Operator
    ) -> None:
        async with session(database, broker) as relay:
            relay.park(message(1, payload='{ "n":1.50,\n "text": "ü☃" , "n": 2}'.encode()), detail="no queue at all")
            await relay.stored()
        shown = await operator("show", "m1")
        assert shown.code == 0
        assert shown.out.endswith('payload\n{ "n":1.50,\n "text": "ü☃" , "n": 2}\n')
        assert "no queue at all" in shown.out
        (sheet,) = json.loads((await operator("show", "m1", "--format", "json")).out)
        assert sheet["payload"] == '{ "n":1.50,\n "text": "ü☃" , "n": 2}'
        assert sheet["parked_seconds"] >= 0
        missing = await operator("show", "m2")
        assert (missing.code, missing.out) == (1, "")
        assert "m2" in missing.err

    @pytest.mark.parametrize("verb", ["replay", "drop"])
    async def test_a_dry_run_shows_exactly_what_would_happen_and_changes_nothing(
        self, database: Database, broker: Broker, operator: Operator, verb: str
    ) -> None:
        async with session(database, broker) as relay:
            relay.park(message(1), message(2), message(3, "8"), message(4, kind=Kind.EVENT))
            await relay.stored()
            preview = await operator(verb, "m2", "--dry-run")
            assert preview.code == 0
            assert [line.split()[2] for line in preview.out.splitlines()[1:-1]] == ["m1", "m2"]
            assert "2 messages would be" in preview.out.splitlines()[-1]
            assert database.query("SELECT 1 FROM relay.parked_request") == []
            before = set(ids(database))
            await done(relay, database, ask(database, Action(verb), Selection(("m2",))))
            assert before - set(ids(database)) == {"m1", "m2"}

    async def test_replaying_says_what_came_of_it_and_may_be_repeated(
        self, database: Database, broker: Broker, operator: Operator
    ) -> None:
        async with session(database, broker) as relay, listening(database, relay):
            relay.park(message(1), message(2))
            await relay.stored()
            assert await operator("replay", "m1") == Ended(0, "2 messages published\n", "")
            assert await operator("replay", "m1") == Ended(0, "nothing is parked that matches\n", "")
        assert broker.heard == ["m1", "m2"]

    async def test_what_stays_parked_is_a_failure_with_its_detail(
        self, database: Database, broker: Broker, operator: Operator
    ) -> None:
        broker.refuses = {"m2"}
        async with session(database, broker) as relay, listening(database, relay):
            relay.park(message(1), message(2))
            await relay.stored()
            replayed = await operator("replay", "--aggregate", "order/7")
        assert (replayed.code, replayed.out) == (1, "1 message published\n")
        assert "1 message still parked: m2 was refused" in replayed.err

    async def test_dropping_the_first_alone(self, database: Database, broker: Broker, operator: Operator) -> None:
        async with session(database, broker) as relay, listening(database, relay):
            relay.park(message(1), message(2))
            await relay.stored()
            refused = await operator("drop", "m2", "--first")
            assert refused.code == 1
            assert "m2 waits behind another message of order 7" in refused.err
            preview = await operator("drop", "m1", "--first", "--dry-run")
            assert preview.out.splitlines()[-1] == "1 message would be dropped"
            dropped = await operator("drop", "m1", "--first")
            assert dropped == Ended(0, "1 message dropped; 1 message behind still parked\n", "")
            assert await operator("drop", "--reason", "unroutable") == Ended(0, "1 message dropped\n", "")
        assert remembered(database) == [("m1", "dropped"), ("m2", "dropped")]

    async def test_with_no_relay_the_request_is_withdrawn(
        self, database: Database, broker: Broker, operator: Operator
    ) -> None:
        async with session(database, broker) as relay:
            relay.park(message(1))
            await relay.stored()
        nobody = await operator("replay", "m1", "--timeout", "0.5")
        assert (nobody.code, nobody.out) == (1, "")
        assert "no relay has taken the request within 0.5 s" in nobody.err
        assert database.query("SELECT 1 FROM relay.parked_request") == []

    async def test_a_relay_that_starts_in_time_takes_the_request(
        self, database: Database, broker: Broker, operator: Operator
    ) -> None:
        async with session(database, broker) as relay:
            relay.park(message(1))
            await relay.stored()
        waiting = await operator.start("replay", "m1")
        await asked(database)
        async with session(database, broker):
            assert await ended(waiting) == Ended(0, "1 message published\n", "")

    async def test_ctrl_c_withdraws_the_request(self, database: Database, broker: Broker, operator: Operator) -> None:
        async with session(database, broker) as relay:
            relay.park(message(1))
            await relay.stored()
        waiting = await operator.start("drop", "m1")
        await asked(database)
        waiting.send_signal(signal.SIGINT)
        interrupted = await ended(waiting)
        assert (interrupted.code, interrupted.out) == (1, "")
        assert interrupted.err.split("\n") == ["the request is withdrawn", "", "stopped", ""]
        assert database.query("SELECT 1 FROM relay.parked_request") == []

    async def test_a_relay_that_makes_no_progress_is_told_of_and_sees_it_through_later(
        self, database: Database, broker: Broker, operator: Operator
    ) -> None:
        broker.open.clear()
        async with session(database, broker) as relay, listening(database, relay):
            relay.park(message(1))
            await relay.stored()
            stalled = await operator("replay", "m1", "--timeout", "0.5")
            assert stalled.code == 1
            assert "a relay has taken request 1, and nothing has moved for 0.5 s" in stalled.err
            broker.open.set()
            assert await relay.until_done(1, database) == (1, 0, 0)

    async def test_progress_of_others_and_of_its_own_is_worth_waiting_for(
        self, database: Database, broker: Broker, operator: Operator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two operators at once, and a broker that takes longer for all of it than either of them waits."""
        monkeypatch.setattr(replayer, "CHUNK", 1)
        timeout_s, messages = 1.5, 6

        async def slow(one: Message, position: Position) -> None:
            await asyncio.sleep(timeout_s / 3)
            broker.messages.append(one)

        monkeypatch.setattr(broker, "replay", slow)
        async with session(database, broker) as relay, listening(database, relay):
            relay.park(*(message(number) for number in range(messages)), message(10, "8"))
            await relay.stored()
            first = await operator.start("replay", "m0", "--timeout", str(timeout_s))
            await asked(database)
            second = await operator.start("replay", "m10", "--timeout", str(timeout_s))
            assert await ended(first) == Ended(0, "6 messages published\n", "")
            assert await ended(second) == Ended(0, "1 message published\n", "")

    async def test_a_database_that_is_not_migrated_is_a_trouble_of_the_source(
        self, database: Database, operator: Operator
    ) -> None:
        database.query("DROP TABLE relay.parked")
        for arguments in (("list",), ("show", "m1"), ("replay", "m1")):
            failed = await operator(*arguments)
            assert failed.code == 3
            assert "relay migrate" in failed.err


COMMAND = (
    "INSERT INTO relay.outbox (kind, aggregate_type, aggregate_id, type, destination, payload)"
    " SELECT 'command', 'order', aggregate, 'Ship', 'stock', json_build_object('n', n)"
    " FROM generate_series(%s::int, %s::int) AS n, unnest(ARRAY['7', '8']) AS aggregate"
)


class TestWithARelay:
    async def test_once_the_queue_is_there_all_arrives_in_order_and_new_messages_follow(
        self, database: Database, vhost: VirtualHost, operator: Operator
    ) -> None:
        async with RelayProcess(database.dsn, vhost.url, name="orders") as relay:
            await relay.until("streaming")
            database.query(COMMAND, 1, 300)
            await eventually(lambda: database.value("SELECT count(*) FROM relay.parked") == 600)
            refused = await operator("replay", "--aggregate", "order/7")
            assert refused.code == 1
            assert "300 messages still parked: no queue is bound" in refused.err
            async with mailbox(vhost.url, commands_for="stock") as box:
                replaying = await operator.start("replay", "--reason", "unroutable")
                database.query(COMMAND, 301, 330)
                replayed = await ended(replaying)
                assert (replayed.code, replayed.err) == (0, "")
                database.query(COMMAND, 331, 340)
                deliveries = await box.until_count(680)
                assert await relay.end() == 0
        ids = database.query("SELECT id::text, aggregate_id FROM relay.outbox ORDER BY seq")
        for aggregate in ("7", "8"):
            written = [name for name, written_by in ids if written_by == aggregate]
            arrived = [one.properties.message_id for one in deliveries if one.properties.message_id in set(written)]
            assert arrived == written
        assert database.value("SELECT count(*) FROM relay.parked") == 0

    async def test_a_relay_that_is_killed_while_it_replays_is_followed_by_one_that_sees_it_through(
        self, database: Database, vhost: VirtualHost, operator: Operator
    ) -> None:
        async with RelayProcess(database.dsn, vhost.url, name="orders") as relay:
            await relay.until("streaming")
            database.query(COMMAND, 1, 1000)
            await eventually(lambda: database.value("SELECT count(*) FROM relay.parked") == 2000)
            async with mailbox(vhost.url, commands_for="stock") as box:
                replaying = await operator.start("replay", "--reason", "unroutable")
                await box.until_count(300)
                await relay.end(signal.SIGKILL)
                async with RelayProcess(database.dsn, vhost.url, name="orders") as next_relay:
                    assert await ended(replaying) == Ended(0, "2000 messages published\n", "")
                    await next_relay.until("parked_request_done")
                written = {str(row[0]) for row in database.query("SELECT id FROM relay.outbox")}
                deliveries = await box.until_ids(written)
        first = list(dict.fromkeys(one.properties.message_id for one in deliveries))
        ids = database.query("SELECT id::text, aggregate_id FROM relay.outbox ORDER BY seq")
        for aggregate in ("7", "8"):
            order = [name for name, written_by in ids if written_by == aggregate]
            assert [name for name in first if name in set(order)] == order
        assert len(deliveries) <= 2000 + replayer.CHUNK

    async def test_a_first_start_waits_for_the_broker_whatever_operators_ask_meanwhile(
        self, database: Database, vhost: VirtualHost, broker: Broker, operator: Operator
    ) -> None:
        """A slot that is made too soon, and its snapshot, would be held for as long as the broker is away."""
        async with session(database, broker) as earlier:
            earlier.park(message(1))
            await earlier.stored()
        database.query("UPDATE relay.checkpoint SET state = 'copying'")
        async with Link(vhost.url, up=False) as link, RelayProcess(database.dsn, link.url, name="orders") as relay:
            await relay.until("reconnecting")
            assert await operator("drop", "m1") == Ended(0, "1 message dropped\n", "")
            assert database.query("SELECT slot_name FROM pg_replication_slots WHERE slot_name = %s", SLOT) == []
            await link.restore()
            await relay.until("streaming")
