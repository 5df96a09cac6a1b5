"""/healthz and /readyz of a real relay, as whoever keeps it running asks them."""

import http.client
import json
from collections.abc import Callable
from typing import Any, NamedTuple

from tests.conftest import VirtualHost
from tests.support.database import Database
from tests.support.link import Link
from tests.support.process import Process
from tests.support.waiting import eventually

EVENT = "INSERT INTO relay.outbox (aggregate_type, aggregate_id, type, payload) VALUES ('order', '7', %s, '{}')"
ANSWER_S = 10.0


class Answer(NamedTuple):
    status: int
    body: dict[str, Any]

    @property
    def source(self) -> dict[str, Any]:
        """What is said of the one source."""
        (source,) = self.body["sources"]
        assert isinstance(source, dict)
        return source


class Relay(Process):
    """`relay run` for one source, listening on any free port unless it is told which."""

    def __init__(self, dsn: str, amqp_url: str, *, listen: str = "127.0.0.1:0") -> None:
        settings = {"RELAY_SOURCE__0__DSN": dsn, "RELAY_BROKER__URL": amqp_url, "RELAY_LOG_FORMAT": "json"}
        super().__init__(["relay", "run"], settings | {"RELAY_HTTP__LISTEN": listen})

    @property
    def listen(self) -> str:
        """Where it listens; it has to have said so."""
        (said,) = self.said("http_listening")
        return f"127.0.0.1:{said['port']}"

    def answers(self, path: str) -> Answer:
        connection = http.client.HTTPConnection(self.listen, timeout=ANSWER_S)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return Answer(response.status, json.loads(response.read()))
        finally:
            connection.close()

    async def until_readyz(self, check: Callable[[Answer], object]) -> Answer:
        """Ask until the answer is as it should be, and return that one."""
        await self.until("http_listening")
        fitting: list[Answer] = []

        def fits() -> bool:
            answer = self.answers("/readyz")
            if check(answer):
                fitting.append(answer)
            return bool(fitting)

        await eventually(fits)
        return fitting[0]


async def test_a_relay_that_streams_is_ready(database: Database, vhost: VirtualHost) -> None:
    async with Relay(database.dsn, vhost.url) as relay:
        await relay.until("streaming")
        ready = await relay.until_readyz(lambda answer: answer.status == 200)
        assert relay.answers("/healthz") == Answer(200, {"status": "alive"})
    assert ready.body["ready"] is True
    assert (ready.source["name"], ready.source["state"], ready.source["reason"]) == (database.name, "active", None)


async def test_while_the_broker_is_away_the_relay_is_alive_and_not_ready_and_says_why(
    database: Database, vhost: VirtualHost
) -> None:
    async with Link(vhost.url, up=False) as link, Relay(database.dsn, link.url) as relay:
        away = await relay.until_readyz(lambda answer: answer.source["state"] == "away")
        assert (away.status, away.body["ready"]) == (503, False)
        assert "RabbitMQ" in away.source["reason"]
        assert relay.answers("/healthz").status == 200
        await link.restore()
        ready = await relay.until_readyz(lambda answer: answer.status == 200)
        assert (ready.source["state"], ready.source["reason"]) == ("active", None)
        await link.cut()
        await relay.until_readyz(lambda answer: answer.status == 503)


async def test_while_postgresql_is_away_the_relay_is_alive_and_not_ready_and_says_why(
    database: Database, vhost: VirtualHost
) -> None:
    async with Link(database.dsn) as link, Relay(link.url, vhost.url) as relay:
        await relay.until("streaming")
        await relay.until_readyz(lambda answer: answer.status == 200)
        await link.cut()
        away = await relay.until_readyz(lambda answer: answer.status == 503)
        assert away.source["state"] == "away"
        assert "PostgreSQL" in away.source["reason"]
        assert relay.answers("/healthz").status == 200


async def test_a_relay_that_stands_by_is_ready_and_takes_over(database: Database, vhost: VirtualHost) -> None:
    async with Relay(database.dsn, vhost.url) as first, Relay(database.dsn, vhost.url) as second:
        states = {}
        for relay in (first, second):
            ready = await relay.until_readyz(lambda answer: answer.status == 200)
            states[ready.source["state"]] = relay
        assert set(states) == {"active", "standby"}
        assert await states["active"].end() == 0
        await states["standby"].until_readyz(lambda answer: answer.source["state"] == "active")


async def test_events_that_nobody_listens_to_are_shown(database: Database, vhost: VirtualHost) -> None:
    async with Relay(database.dsn, vhost.url) as relay:
        await relay.until("streaming")
        for type_ in ("Placed", "Paid", "Placed"):
            database.query(EVENT, type_)
        shown = await relay.until_readyz(
            lambda answer: answer.source["unheard"] == {"order.Placed": 2, "order.Paid": 1}
        )
    assert shown.status == 200


async def test_a_relay_whose_port_is_taken_ends_before_it_touches_anything(
    database: Database, vhost: VirtualHost
) -> None:
    async with Relay(database.dsn, vhost.url) as first:
        await first.until("http_listening")
        async with Relay(database.dsn, vhost.url, listen=first.listen) as second:
            assert await second.status() == 1
    words = " ".join(line["message"] for line in second.said("not_json"))
    assert f"cannot listen on {first.listen}: Address already in use" in words
    assert "[http] listen" in words
    assert second.said("standby") == second.said("active") == []


async def test_an_empty_address_turns_it_off(database: Database, vhost: VirtualHost) -> None:
    async with Relay(database.dsn, vhost.url, listen="") as relay:
        await relay.until("streaming")
        assert relay.said("http_listening") == []


async def test_changes_that_no_capture_is_for_are_counted(database: Database, vhost: VirtualHost) -> None:
    async with Relay(database.dsn, vhost.url) as relay:
        await relay.until("streaming")
        before = (await relay.until_readyz(lambda answer: answer.status == 200)).source["ignored"]
        database.query("SELECT pg_logical_emit_message(true, 'somebody else', 'whatever')")
        await relay.until_readyz(lambda answer: answer.source["ignored"] == before + 1)
