"""The real relay between a real PostgreSQL and a real RabbitMQ."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Callable
from signal import SIGKILL, SIGTERM

import psycopg
import pytest

from tests.conftest import VirtualHost
from tests.support.database import Database
from tests.support.mailbox import mailbox
from tests.support.process import RelayProcess
from tests.support.waiting import eventually

PARKED = "SELECT type, reason FROM relay.parked ORDER BY commit_lsn, ordinal"
EVENT = (
    "INSERT INTO relay.outbox (aggregate_type, aggregate_id, type, payload) VALUES ('order', %s, %s, %s) RETURNING id"
)
COMMAND = (
    "INSERT INTO relay.outbox (kind, aggregate_type, aggregate_id, type, destination, payload)"
    " VALUES ('command', 'order', '7', 'ReserveCredit', %s, '{}')"
)


def lag(database: Database) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "relay", "lag", "--format", "json"]
    return subprocess.run(
        command, env={"RELAY_SOURCE__0__DSN": database.dsn}, capture_output=True, text=True, timeout=30, check=False
    )


async def confirmed(database: Database, slot: str) -> None:
    """Wait until PostgreSQL was told that everything is settled."""
    query = "SELECT confirmed_flush_lsn >= %s::pg_lsn FROM pg_replication_slots WHERE slot_name = %s"
    target = str(database.value("SELECT pg_current_wal_lsn()"))
    await eventually(lambda: database.value(query, target, slot))


async def test_a_committed_row_arrives_as_it_was_written(database: Database, vhost: VirtualHost) -> None:
    payload = '{"total":  "12.50", "note": "ünïcode", "b": 1, "a": 12345678901234567890.10}'
    async with mailbox(vhost.url) as box, RelayProcess(database.dsn, vhost.user_url("relay"), name="shop") as relay:
        await relay.until("streaming")
        database.query(
            "INSERT INTO relay.outbox (aggregate_type, aggregate_id, type, payload, headers, correlation_id, reply_to,"
            " causation_id, operation) VALUES ('order', '7', 'OrderCreated', %s, %s, 'c', 'r', 'because', 'saga/step')",
            payload,
            '{"traceparent": "00-a-b-01", "n": 3, "ce-id": "forged"}',
        )
        (delivery,) = await box.until_count(1)
    message_id = str(database.value("SELECT id FROM relay.outbox"))
    created = database.value("SELECT floor(extract(epoch FROM created_at))::bigint FROM relay.outbox")
    time = database.value(
        "SELECT to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS') FROM relay.outbox"
    )
    properties = delivery.properties
    assert delivery.body.decode() == payload
    assert (delivery.exchange, delivery.routing_key) == ("relay.events", "order.OrderCreated")
    assert (properties.message_id, properties.type) == (message_id, "OrderCreated")
    assert (properties.content_type, properties.app_id) == ("application/json", "shop")
    assert (properties.correlation_id, properties.reply_to, properties.timestamp) == ("c", "r", created)
    headers = dict(properties.headers)
    assert str(headers.pop("ce-time")).startswith(str(time))
    assert re.fullmatch("[0-9A-F]{16}-0{16}", str(headers.pop("ce-sequence")))
    assert headers == {
        "traceparent": "00-a-b-01",
        "ce-traceparent": "00-a-b-01",
        "n": 3,
        "ce-id": message_id,
        "ce-source": "shop",
        "ce-type": "OrderCreated",
        "ce-specversion": "1.0",
        "ce-partitionkey": "7",
        "aggregate_type": "order",
        "aggregate_id": "7",
        "causation_id": "because",
        "operation": "saga/step",
    }


async def test_what_is_rolled_back_was_never_there(database: Database, vhost: VirtualHost) -> None:
    async with mailbox(vhost.url) as box, RelayProcess(database.dsn, vhost.url) as relay:
        await relay.until("streaming")
        with psycopg.connect(database.dsn) as connection:
            connection.execute(EVENT, ("1", "Whole", "{}"))
            connection.rollback()
            connection.execute(EVENT, ("1", "Before", "{}"))
            with connection.transaction():
                connection.execute(EVENT, ("1", "Savepoint", "{}"))
                raise psycopg.Rollback
            connection.execute(EVENT, ("1", "After", "{}"))
            connection.commit()
        deliveries = await box.until_count(2)
        await confirmed(database, f"relay_{database.name}")
    assert [delivery.properties.type for delivery in deliveries] == ["Before", "After"]
    assert len(box.deliveries) == 2


async def test_rows_that_were_there_before_the_first_start_come_first(database: Database, vhost: VirtualHost) -> None:
    for number in range(1200):
        database.query(EVENT, "1", "Old", json.dumps(number))
    async with mailbox(vhost.url) as box, RelayProcess(database.dsn, vhost.url) as relay:
        await relay.until("streaming")
        database.query(EVENT, "1", "New", "1200")
        deliveries = await box.until_count(1201)
    assert [json.loads(delivery.body) for delivery in deliveries] == list(range(1201))


async def test_a_crash_during_the_first_start_begins_it_again(database: Database, vhost: VirtualHost) -> None:
    ids = {str(database.query(EVENT, "1", "Old", json.dumps(number))[0][0]) for number in range(50)}
    slot = f"relay_{database.name}"
    # As a relay leaves it that was killed between the slot and the last confirm.
    database.query("INSERT INTO relay.checkpoint (slot, state) VALUES (%s, 'copying')", slot)
    database.query("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", slot)
    async with mailbox(vhost.url) as box, RelayProcess(database.dsn, vhost.url) as relay:
        await relay.until("streaming")
        await box.until_ids(ids)
    assert database.value("SELECT state FROM relay.checkpoint") == "streaming"


async def test_a_slot_that_is_gone_is_never_made_again_in_silence(database: Database, vhost: VirtualHost) -> None:
    slot = f"relay_{database.name}"
    async with RelayProcess(database.dsn, vhost.url) as relay:
        await relay.until("streaming")
        assert await relay.end() == 0
    database.query("SELECT pg_drop_replication_slot(%s)", slot)
    async with RelayProcess(database.dsn, vhost.url) as relay:
        assert await relay.status() == 3
        (stopped,) = relay.said("source_stopped")
    assert slot in stopped["message"]
    assert "slot-loss.md" in stopped["hint"]
    assert database.value("SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s", slot) == 0


async def test_a_publication_that_is_gone_stops_the_source(database: Database, vhost: VirtualHost) -> None:
    async with RelayProcess(database.dsn, vhost.url) as relay:
        await relay.until("streaming")
        assert await relay.end() == 0
    database.query(f"DROP PUBLICATION relay_{database.name}")
    async with RelayProcess(database.dsn, vhost.url) as relay:
        assert await relay.status() == 3


async def test_a_publication_without_the_outbox_is_refused(database: Database, vhost: VirtualHost) -> None:
    database.query(f"CREATE PUBLICATION relay_{database.name} FOR TABLE relay.inbox")
    async with RelayProcess(database.dsn, vhost.url) as relay:
        assert await relay.status() == 3
        (stopped,) = relay.said("source_stopped")
    assert "does not contain" in stopped["message"] or "publish_via_partition_root" in stopped["message"]


async def test_sigterm_lets_what_is_in_flight_arrive(database: Database, vhost: VirtualHost) -> None:
    async with mailbox(vhost.url) as box, RelayProcess(database.dsn, vhost.url) as relay:
        await relay.until("streaming")
        with psycopg.connect(database.dsn) as connection:
            for number in range(5000):
                connection.execute(EVENT, ("1", "Bulk", json.dumps(number)))
        await box.until_count(1)
        assert await relay.end(SIGTERM) == 0
        (stopped,) = relay.said("stopped")
        assert "0 in flight" in stopped["message"]
        await box.until_count(5000)
    async with mailbox(vhost.url, "later") as later, RelayProcess(database.dsn, vhost.url) as relay:
        await relay.until("streaming")
        database.query(EVENT, "1", "Next", "5000")
        (delivery,) = await later.until_count(1)
    assert json.loads(delivery.body) == 5000, "nothing was published again after a clean stop"


async def test_a_second_relay_waits_and_takes_over(database: Database, vhost: VirtualHost) -> None:
    async with (
        mailbox(vhost.url) as box,
        RelayProcess(database.dsn, vhost.url) as first,
        RelayProcess(database.dsn, vhost.url) as second,
    ):
        streaming = [asyncio.create_task(relay.until("streaming")) for relay in (first, second)]
        await asyncio.wait(streaming, return_when=asyncio.FIRST_COMPLETED)
        active, waiting = (first, second) if first.said("streaming") else (second, first)
        await waiting.until("standby")
        await active.end(SIGKILL)
        await waiting.until("streaming")
        database.query(EVENT, "1", "AfterTakeover", "{}")
        await box.until_count(1)
        await asyncio.gather(*streaming)


async def test_an_event_that_nobody_listens_to_is_counted_and_the_stream_goes_on(
    database: Database, vhost: VirtualHost
) -> None:
    async with RelayProcess(database.dsn, vhost.url) as relay:
        await relay.until("streaming")
        for _ in range(3):
            database.query(EVENT, "1", "Unheard", "{}")
        await relay.until("event_unheard")
        await confirmed(database, f"relay_{database.name}")
        database.query(EVENT, "1", "Another", "{}")
        await relay.until("event_unheard", times=2)
        routes = [line["routing_key"] for line in relay.said("event_unheard")]
    assert routes == ["order.Unheard", "order.Another"], "one line a route"


async def test_a_command_that_nobody_takes_is_parked_and_the_stream_goes_on(
    database: Database, vhost: VirtualHost
) -> None:
    async with RelayProcess(database.dsn, vhost.url) as relay, mailbox(vhost.url) as box:
        await relay.until("streaming")
        database.query(COMMAND, "customers")
        database.query(EVENT, "1", "Later", "{}")
        await box.until_count(1)
        await eventually(lambda: database.query(PARKED) == [("ReserveCredit", "unroutable")])
        await confirmed(database, f"relay_{database.name}")
        (said,) = relay.said("parked")
        assert await relay.end() == 0
    assert "customers" in said["message"]


async def test_a_command_that_nobody_takes_stops_a_source_that_is_set_to_stop(
    database: Database, vhost: VirtualHost
) -> None:
    stop = {"BROKER__ON_UNROUTABLE": '{"command": "stop"}'}
    async with RelayProcess(database.dsn, vhost.url, **stop) as relay:
        await relay.until("streaming")
        database.query(COMMAND, "customers")
        assert await relay.status() == 1
        (stopped,) = relay.said("source_stopped")
    assert "ReserveCredit" in stopped["message"]
    assert "customers" in stopped["message"]
    async with mailbox(vhost.url, commands_for="customers") as box, RelayProcess(database.dsn, vhost.url):
        (delivery,) = await box.until_count(1)
    assert delivery.properties.type == "ReserveCredit"


async def test_what_a_queue_refuses_again_and_again_is_parked_and_the_rest_flows(
    database: Database, vhost: VirtualHost
) -> None:
    full = {"x-max-length": 1, "x-overflow": "reject-publish"}
    vhost.server.put(f"queues/{vhost.name}/full", {"durable": True, "arguments": full})
    async with RelayProcess(database.dsn, vhost.url) as relay, mailbox(vhost.url) as box:
        await relay.until("streaming")
        vhost.server.api.post(
            f"/api/bindings/{vhost.name}/e/relay.events/q/full", json={"routing_key": "order.Refused"}
        ).raise_for_status()
        for number in range(10):
            database.query(EVENT, "1", "Refused", json.dumps(number))
        database.query(EVENT, "2", "Heard", "{}")
        await eventually(lambda: ("Refused", "nacked") in database.query(PARKED))
        await eventually(lambda: "Heard" in [delivery.properties.type for delivery in box.deliveries])
        parked = database.query("SELECT payload FROM relay.parked ORDER BY commit_lsn, ordinal")
        await confirmed(database, f"relay_{database.name}")
    numbers = [int(payload) for (payload,) in parked]
    assert numbers == list(range(numbers[0], 10)), "what is parked is the end of the aggregate's messages, in order"


@pytest.mark.parametrize(
    ("kind", "headers", "reason"),
    [("T" * 300, "{}", "unencodable"), ("Big", json.dumps({"big": "x" * 200_000}), "too_large")],
    ids=["type", "headers"],
)
async def test_a_message_that_amqp_cannot_carry_is_parked_and_the_rest_flows(
    database: Database, vhost: VirtualHost, kind: str, headers: str, reason: str
) -> None:
    insert = (
        "INSERT INTO relay.outbox (aggregate_type, aggregate_id, type, payload, headers)"
        " VALUES ('order', '1', %s, '{}', %s)"
    )
    async with RelayProcess(database.dsn, vhost.url) as relay, mailbox(vhost.url) as box:
        await relay.until("streaming")
        database.query(insert, kind, headers)
        database.query(EVENT, "2", "Heard", "{}")
        await box.until_count(1)
        await eventually(lambda: database.query(PARKED) == [(kind, reason)])
        await confirmed(database, f"relay_{database.name}")
        assert await relay.end() == 0


async def test_lag_is_nothing_when_nothing_waits(database: Database, vhost: VirtualHost) -> None:
    async with RelayProcess(database.dsn, vhost.url) as relay:
        await relay.until("streaming")
        database.query(EVENT, "1", "Unheard", "{}")
        await relay.until("event_unheard")
        await confirmed(database, f"relay_{database.name}")
        result = await asyncio.to_thread(lag, database)
    assert result.returncode == 0, result.stderr
    (row,) = json.loads(result.stdout)
    assert list(row) == [
        "source",
        "slot",
        "active",
        "wal_status",
        "current_wal_lsn",
        "confirmed_flush_lsn",
        "lag_bytes",
        "lag_seconds",
        "retained_wal_bytes",
        "safe_wal_bytes",
    ]
    assert row["active"] is True
    assert row["wal_status"] == "reserved"
    assert row["safe_wal_bytes"] is None


async def test_lag_seconds_is_the_age_of_what_waits(database: Database, vhost: VirtualHost) -> None:
    async with RelayProcess(database.dsn, vhost.url) as relay:
        await relay.until("streaming")
        database.query(EVENT, "1", "Unheard", "{}")
        await relay.until("event_unheard")
        await relay.end(SIGKILL)
    database.query("UPDATE relay.checkpoint SET written_at = clock_timestamp() - interval '1 hour'")
    result = await asyncio.to_thread(lag, database)
    (row,) = json.loads(result.stdout)
    assert row["active"] is False
    assert 3600 <= row["lag_seconds"] < 3700


async def test_one_source_that_cannot_be_asked_does_not_hide_the_other(database: Database, vhost: VirtualHost) -> None:
    async with RelayProcess(database.dsn, vhost.url) as relay:
        await relay.until("streaming")
        environment = {
            "RELAY_SOURCE__0__DSN": "postgresql://nobody:secret@127.0.0.1:1/nowhere",
            "RELAY_SOURCE__1__DSN": database.dsn,
        }
        command = [sys.executable, "-m", "relay", "lag"]
        result = await asyncio.to_thread(
            subprocess.run, command, env=environment, capture_output=True, text=True, timeout=30
        )
    assert result.returncode == 3
    assert database.name in result.stdout
    assert "nowhere" in result.stderr
    assert "secret" not in result.stderr + result.stdout


async def test_an_idle_slot_follows_what_other_tables_write(database: Database, vhost: VirtualHost) -> None:
    async with RelayProcess(database.dsn, vhost.url) as relay:
        await relay.until("streaming")
        database.query("CREATE TABLE busy AS SELECT generate_series(1, 10000) AS n")
        await confirmed(database, f"relay_{database.name}")
    assert database.value("SELECT oldest_unconfirmed_commit_at FROM relay.checkpoint") is None


async def test_a_wrong_password_ends_it_with_3_and_does_not_show_it(database: Database, vhost: VirtualHost) -> None:
    dsn = database.dsn.replace("relay-test", "wrong-horse")
    async with RelayProcess(dsn, vhost.url) as relay:
        assert await relay.status() == 3
    assert "wrong-horse" not in json.dumps(relay.lines)


async def test_a_wrong_broker_password_ends_it_with_4_and_does_not_show_it(
    database: Database, vhost: VirtualHost
) -> None:
    url = vhost.user_url("relay").replace(vhost.server.users["relay"].password, "wrong-horse")
    async with RelayProcess(database.dsn, url) as relay:
        assert await relay.status() == 4
    assert "wrong-horse" not in json.dumps(relay.lines)


async def test_a_virtual_host_that_is_not_there_ends_it_with_4(database: Database, vhost: VirtualHost) -> None:
    async with RelayProcess(database.dsn, vhost.server.url_of("nowhere")) as relay:
        assert await relay.status() == 4


async def test_a_database_without_the_schema_says_what_to_run(database: Database, vhost: VirtualHost) -> None:
    async with RelayProcess(database.server.dsn_of("postgres"), vhost.url) as relay:
        assert await relay.status() == 3
        (stopped,) = relay.said("source_stopped")
    assert "relay migrate" in stopped["hint"]


async def test_servers_that_are_away_are_waited_for(database: Database) -> None:
    async with RelayProcess(database.dsn, "amqp://guest:guest@127.0.0.1:1/") as relay:
        await relay.until("reconnecting", times=3)
        assert await relay.end() == 0
    async with RelayProcess("postgresql://127.0.0.1:1/x", "amqp://guest:guest@127.0.0.1:1/") as relay:
        await relay.until("reconnecting", times=3)
        assert await relay.end() == 0


async def test_two_messages_of_one_id_are_told_apart_by_their_route(database: Database, vhost: VirtualHost) -> None:
    """The key of the outbox has created_at in it: an id alone is not unique."""
    async with mailbox(vhost.url), RelayProcess(database.dsn, vhost.url) as relay:
        await relay.until("streaming")
        with psycopg.connect(database.dsn) as connection:
            for _ in range(200):
                connection.execute(EVENT, ("1", "Heard", "{}"))
            row = connection.execute(EVENT, ("1", "Heard", "{}")).fetchone()
            assert row is not None
            connection.execute(
                "INSERT INTO relay.outbox"
                " (id, created_at, kind, aggregate_type, aggregate_id, type, destination, payload)"
                " VALUES (%s, now() + interval '1 s', 'command', 'order', '1', 'Reserve', 'nobody', '{}')",
                row,
            )
        await eventually(lambda: database.query(PARKED) == [("Reserve", "unroutable")])
        await confirmed(database, f"relay_{database.name}")


async def test_the_slot_of_another_database_is_never_dropped(
    make_database: Callable[..., Database], vhost: VirtualHost
) -> None:
    theirs, ours = make_database(), make_database()
    theirs.query("SELECT pg_create_logical_replication_slot('relay_shared', 'pgoutput')")
    ours.query("INSERT INTO relay.checkpoint (slot, state) VALUES ('relay_shared', 'copying')")
    async with RelayProcess(ours.dsn, vhost.url, name="shared") as relay:
        assert await relay.status() == 3
        (stopped,) = relay.said("source_stopped")
    assert theirs.name in stopped["message"]
    assert ours.value("SELECT database FROM pg_replication_slots WHERE slot_name = 'relay_shared'") == theirs.name


async def test_lag_forgets_what_a_killed_relay_had_in_flight(database: Database, vhost: VirtualHost) -> None:
    async with RelayProcess(database.dsn, vhost.url) as relay:
        await relay.until("streaming")
        await relay.end(SIGKILL)
    database.query("UPDATE relay.checkpoint SET oldest_unconfirmed_commit_at = now() - interval '1 hour'")
    async with RelayProcess(database.dsn, vhost.url) as relay:
        await relay.until("streaming")
        await eventually(lambda: database.value("SELECT oldest_unconfirmed_commit_at IS NULL FROM relay.checkpoint"))


async def test_an_exchange_that_was_deleted_stops_the_source_and_is_declared_at_the_next_start(
    database: Database, vhost: VirtualHost
) -> None:
    """Its bindings are gone with it: to declare it again and go on would be to drop events that somebody waits for."""
    async with RelayProcess(database.dsn, vhost.user_url("relay")) as relay:
        await relay.until("streaming")
        vhost.server.delete(f"exchanges/{vhost.name}/relay.events")
        database.query(EVENT, "1", "Heard", "{}")
        assert await relay.status() == 4
        (stopped,) = relay.said("source_stopped")
    assert "the exchange relay.events does not exist" in stopped["message"]
    async with mailbox(vhost.url) as box, RelayProcess(database.dsn, vhost.user_url("relay")):
        await box.until_count(1)


async def test_the_role_may_end_idle_transactions_and_the_backlog_still_arrives(
    database: Database, vhost: VirtualHost
) -> None:
    database.query(
        "INSERT INTO relay.outbox (aggregate_type, aggregate_id, type, payload)"
        " SELECT 'order', n::text, 'Old', '{}' FROM generate_series(1, 5000) AS n"
    )
    database.query(f"ALTER DATABASE {database.name} SET idle_in_transaction_session_timeout = '100ms'")
    async with mailbox(vhost.url) as box, RelayProcess(database.dsn, vhost.url) as relay:
        await relay.until("streaming")
        await box.until_count(5000)


async def test_a_login_that_may_not_replicate_ends_it_with_3(database: Database, vhost: VirtualHost) -> None:
    database.query("GRANT SELECT, INSERT, UPDATE ON relay.checkpoint TO orders")
    database.query(f"CREATE PUBLICATION relay_{database.name} FOR TABLE relay.outbox WITH (publish_via_partition_root)")
    async with RelayProcess(database.role_dsn("orders"), vhost.url) as relay:
        assert await relay.status() == 3
        (stopped,) = relay.said("source_stopped")
    assert "rights" in stopped["hint"]
