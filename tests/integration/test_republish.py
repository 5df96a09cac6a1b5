"""`relay republish`: a new subscriber gets what is in the outbox, and nobody else gets it again."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from signal import SIGINT

import pytest

from relay.broker.connection import Connection
from tests.conftest import VirtualHost
from tests.support.database import Database
from tests.support.mailbox import QUORUM, Mailbox, mailbox
from tests.support.process import RelayProcess

RUN_S = 60
EVENTS = (
    "INSERT INTO relay.outbox (aggregate_type, aggregate_id, type, payload)"
    " SELECT %s, (n %% 7)::text, %s, to_json(n) FROM generate_series(%s::int, %s::int) AS n"
)


def environment(database: Database, vhost: VirtualHost, user: str | None = None) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
    url = vhost.user_url(user) if user else vhost.url
    return inherited | {
        "RELAY_SOURCE__0__DSN": database.dsn,
        "RELAY_SOURCE__0__NAME": "shop",
        "RELAY_BROKER__URL": url,
    }


async def republish(
    database: Database, vhost: VirtualHost, *options: str, user: str | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "relay", "republish", *options]
    settings = environment(database, vhost, user)
    return await asyncio.to_thread(
        subprocess.run, command, env=settings, capture_output=True, text=True, timeout=RUN_S, check=False
    )


async def declare(vhost: VirtualHost, queue: str, arguments: Mapping[str, str | int] = QUORUM) -> None:
    """A queue that is bound to nothing."""
    connection = await Connection.open(vhost.url, name="test")
    channel = await connection.channel()
    await channel.call(channel.raw.queue_declare, queue, durable=True, arguments=dict(arguments))
    await connection.close()


async def delete(vhost: VirtualHost, queue: str) -> None:
    connection = await Connection.open(vhost.url, name="test")
    channel = await connection.channel()
    await channel.call(channel.raw.queue_delete, queue)
    await connection.close()


async def numbers(vhost: VirtualHost, queue: str, count: int) -> list[int]:
    """What is in a queue, which holds so many messages that have a number as their body, and no more."""
    box = Mailbox(vhost.url, queue)
    collecting = asyncio.create_task(box.collect())
    try:
        deliveries = await box.until_count(count)
        return [json.loads(delivery.body) for delivery in deliveries]
    finally:
        collecting.cancel()
        await asyncio.wait({collecting})


async def test_a_new_subscriber_gets_what_the_others_got_under_the_same_ids(
    database: Database, vhost: VirtualHost
) -> None:
    """The only differences are where it came from, and how its place in the stream is told."""
    async with mailbox(vhost.url) as others, mailbox(vhost.url, "billing", commands_for="nobody") as billing:
        async with RelayProcess(database.dsn, vhost.url, name="shop") as relay:
            await relay.until("streaming")
            database.query(
                "INSERT INTO relay.outbox (aggregate_type, aggregate_id, type, payload, headers, correlation_id)"
                " VALUES ('order', '7', 'OrderCreated', %s, %s, 'c')",
                '{"total":  "12.50", "note": "ünïcode"}',
                '{"traceparent": "00-a-b-01", "n": 3}',
            )
            (first,) = await others.until_count(1)
        done = await republish(database, vhost, "--to", "billing")
        (again,) = await billing.until_count(1)
    assert (done.returncode, done.stdout) == (0, "1 message published to the queue billing\n")
    assert len(others.deliveries) == 1
    assert again.body == first.body
    seq = database.value("SELECT seq FROM relay.outbox")
    assert dict(again.properties.headers) == {
        **first.properties.headers,
        "ce-sequence": f"0000000000000000-{seq:016X}",
    }
    for name in ("message_id", "type", "content_type", "correlation_id", "reply_to", "timestamp", "app_id"):
        assert getattr(again.properties, name) == getattr(first.properties, name), name
    assert (again.exchange, again.routing_key) == ("", "billing")


async def test_thousands_arrive_once_each_in_the_order_of_their_insertion(
    database: Database, vhost: VirtualHost
) -> None:
    database.query(EVENTS, "order", "OrderCreated", 1, 5000)
    await declare(vhost, "billing")
    done = await republish(database, vhost, "--to", "billing")
    assert done.stdout == "5,000 messages published to the queue billing\n"
    assert await numbers(vhost, "billing", 5000) == list(range(1, 5001))


async def test_only_what_is_asked_for_is_published(database: Database, vhost: VirtualHost) -> None:
    database.query(EVENTS, "order", "OrderCreated", 1, 2)
    database.query(EVENTS, "order", "OrderPaid", 3, 4)
    database.query(EVENTS, "order", "OrderShipped", 5, 6)
    database.query(EVENTS, "customer", "Moved", 7, 8)
    database.query(
        "INSERT INTO relay.outbox (kind, aggregate_type, aggregate_id, type, destination, payload)"
        " VALUES ('command', 'order', '7', 'ReserveCredit', 'customers', '9')"
    )
    await declare(vhost, "all")
    for options, expected in {
        (): [1, 2, 3, 4, 5, 6, 7, 8],
        ("--type", "OrderCreated", "--type", "Moved"): [1, 2, 7, 8],
        ("--aggregate-type", "customer"): [7, 8],
        ("--aggregate-type", "customer", "--type", "OrderPaid"): [],
        ("--kind", "command"): [9],
        ("--kind", "command", "--kind", "event", "--type", "ReserveCredit", "--type", "Moved"): [7, 8, 9],
    }.items():
        done = await republish(database, vhost, "--to", "all", *options)
        assert done.returncode == 0, done.stderr
        count = f"{len(expected)} messages" if len(expected) != 1 else "1 message"
        said = f"{count} published to the queue all" if expected else "nothing in the outbox matches"
        assert done.stdout == f"{said}\n"
        assert await numbers(vhost, "all", len(expected)) == expected


async def test_a_span_of_time_is_given_as_times_or_as_ages(database: Database, vhost: VirtualHost) -> None:
    database.query(
        "INSERT INTO relay.outbox (aggregate_type, aggregate_id, type, payload, created_at)"
        " SELECT 'order', '7', 'Aged', to_json(n), now() - n * interval '1 day' FROM generate_series(0, 5) AS n"
    )
    await declare(vhost, "span")
    day_2 = str(database.value("SELECT to_char((created_at AT TIME ZONE 'UTC'), 'YYYY-MM-DD\"T\"HH24:MI:SS.US')"
                               " FROM relay.outbox WHERE payload::text = '2'"))  # fmt: skip
    for options, expected in {
        ("--since", "36h"): [0, 1],
        ("--until", "84h"): [4, 5],
        ("--since", f"{day_2}Z"): [0, 1, 2],
        ("--until", day_2): [3, 4, 5],
        ("--since", "108h", "--until", f"{day_2}+00:00"): [3, 4],
    }.items():
        done = await republish(database, vhost, "--to", "span", *options)
        assert done.returncode == 0, done.stderr
        assert await numbers(vhost, "span", len(expected)) == expected, options


async def test_a_queue_that_is_not_there_is_no_queue(database: Database, vhost: VirtualHost) -> None:
    database.query(EVENTS, "order", "OrderCreated", 1, 2)
    done = await republish(database, vhost, "--to", "biling")
    assert done.returncode == 4
    assert "there is no queue biling on RabbitMQ at " in done.stderr
    assert "docs/republish.md" in done.stderr


async def test_a_user_that_may_not_write_to_the_default_exchange_is_refused_in_rabbitmqs_words(
    database: Database, vhost: VirtualHost
) -> None:
    database.query(EVENTS, "order", "OrderCreated", 1, 2)
    await declare(vhost, "billing")
    done = await republish(database, vhost, "--to", "billing", user="relay")
    assert done.returncode == 4
    assert "amq.default" in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_queue_that_is_full_stops_it_and_it_goes_on_where_it_stopped(
    database: Database, vhost: VirtualHost
) -> None:
    database.query(EVENTS, "order", "OrderCreated", 1, 30)
    full = {"x-queue-type": "classic", "x-max-length": 10, "x-overflow": "reject-publish"}
    await declare(vhost, "billing", full)
    stopped = await republish(database, vhost, "--to", "billing")
    assert stopped.returncode == 4
    assert "the queue billing refused event OrderCreated" in stopped.stderr
    hint = stopped.stderr.split("--from-seq ")[1]
    from_seq = hint[: hint.index(".")]
    arrived = await numbers(vhost, "billing", 10)
    assert arrived == list(range(1, 11))
    await delete(vhost, "billing")
    await declare(vhost, "billing")
    done = await republish(database, vhost, "--to", "billing", "--from-seq", from_seq)
    assert done.returncode == 0, done.stderr
    assert await numbers(vhost, "billing", 20) == list(range(11, 31))


async def test_a_message_that_cannot_be_sent_is_left_out_and_told(database: Database, vhost: VirtualHost) -> None:
    database.query(EVENTS, "order", "OrderCreated", 1, 1)
    database.query(EVENTS, "order", "x" * 256, 2, 2)
    database.query(EVENTS, "order", "OrderCreated", 3, 3)
    await declare(vhost, "billing")
    done = await republish(database, vhost, "--to", "billing")
    assert done.returncode == 1
    assert done.stdout == "2 messages published to the queue billing; 1 message left out, as they cannot be sent\n"
    assert "left out event xxx" in done.stderr
    assert "does not fit into AMQP" in done.stderr
    assert await numbers(vhost, "billing", 2) == [1, 3]


async def test_ctrl_c_tells_how_to_go_on(database: Database, vhost: VirtualHost) -> None:
    database.query(EVENTS, "order", "OrderCreated", 1, 100_000)
    await declare(vhost, "billing")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "relay", "republish", "--to", "billing",
        env=environment(database, vhost), stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    box = Mailbox(vhost.url, "billing")
    collecting = asyncio.create_task(box.collect())
    await box.until_count(1)
    process.send_signal(SIGINT)
    _, said = await asyncio.wait_for(process.communicate(), RUN_S)
    collecting.cancel()
    await asyncio.wait({collecting})
    assert process.returncode == 1
    assert b"published so far; go on with the same options and --from-seq " in said
    assert said.endswith(b"stopped\n")
    assert b"Traceback" not in said


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ((), "Missing option '--to'"),
        (("--to", ""), "should have 1 to 255 bytes"),
        (("--to", "q", "--since", "yesterday"), "should be a time like 2026-11-23T12:00:00Z, or an age like 12h or 7d"),
        (("--to", "q", "--since", "999999999d"), "should be a time like"),
        (("--to", "q", "--source", "orders"), "there is no source orders"),
    ],
)
async def test_options_that_make_no_sense_are_refused(
    database: Database, vhost: VirtualHost, options: tuple[str, ...], complaint: str
) -> None:
    done = await republish(database, vhost, *options)
    assert done.returncode == 2
    assert complaint in done.stderr
