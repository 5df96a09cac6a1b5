"""/healthz and /readyz over real sockets: what is answered, and to whom not."""

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest

from relay.daemon import http as http_module
from relay.daemon.http import CONNECTIONS_MAX, HEAD_MAX_BYTES, CannotListen, Http
from relay.daemon.status import SourceStatus, State
from relay.errors import ExitCode

PATIENCE_S = 4.0
"""Less than REQUEST_S: what a test waits for does not happen just because time is up."""

ANY_PORT = "127.0.0.1:0"


class Answer(NamedTuple):
    """What came back. Names of headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Caller:
    """Somebody who has connected."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def says(self, words: bytes) -> None:
        self._writer.write(words)
        await self._writer.drain()

    def says_no_more(self) -> None:
        self._writer.write_eof()

    async def dawdles(self) -> None:
        """Say a little now and then: the connection is never idle. Raises ConnectionError when it breaks."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                await self.says(b"a")
                await asyncio.sleep(0.01)

    async def hears(self) -> bytes:
        """Everything up to the end of the connection; nothing if it is broken."""
        async with asyncio.timeout(PATIENCE_S):
            try:
                return await self._reader.read()
            except ConnectionError:
                return b""

    async def hears_a_line(self) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            return await self._reader.readline()

    async def is_answered(self) -> Answer:
        head, _, body = (await self.hears()).partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        return Answer(int(first.split()[1]), headers, body)

    def hangs_up(self) -> None:
        self._writer.transport.abort()


class Relay:
    """A relay as seen from outside: its sources and its address."""

    def __init__(self, http: Http, *sources: SourceStatus) -> None:
        self.orders, self.customers = sources
        self._address = http.address
        self._callers: list[Caller] = []

    async def is_called(self) -> Caller:
        assert self._address is not None
        caller = Caller(*await asyncio.open_connection(*self._address))
        self._callers.append(caller)
        return caller

    async def is_asked(self, target: str, method: str = "GET") -> Answer:
        caller = await self.is_called()
        await caller.says(f"{method} {target} HTTP/1.1\r\nHost: relay\r\n\r\n".encode())
        return await caller.is_answered()

    def is_left(self) -> None:
        for caller in self._callers:
            caller.hangs_up()


@pytest.fixture
async def relay() -> AsyncIterator[Relay]:
    """A relay with two sources, both of which work."""
    sources = SourceStatus("orders"), SourceStatus("customers")
    for source in sources:
        source.became(State.ACTIVE)
    async with Http(ANY_PORT, sources) as http:
        relay = Relay(http, *sources)
        yield relay
        relay.is_left()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody may take longer than a moment."""
    monkeypatch.setattr(http_module, "REQUEST_S", 0.2)


class TestAlive:
    async def test_a_relay_whose_loop_answers_is_alive(self, relay: Relay) -> None:
        answer = await relay.is_asked("/healthz")
        assert (answer.status, answer.json) == (200, {"status": "alive"})

    async def test_it_is_alive_whatever_its_sources_wait_for(self, relay: Relay) -> None:
        relay.orders.became(State.AWAY, "PostgreSQL is away")
        assert (await relay.is_asked("/healthz")).status == 200

    async def test_the_answer_is_json_that_nobody_keeps_and_the_last_on_its_connection(self, relay: Relay) -> None:
        headers = (await relay.is_asked("/healthz")).headers
        assert headers["content-type"] == "application/json"
        assert headers["cache-control"] == "no-store"
        assert headers["connection"] == "close"
        assert headers["date"].endswith("GMT")


class TestReady:
    async def test_a_relay_is_ready_when_every_source_is_active_or_stands_by(self, relay: Relay) -> None:
        relay.customers.became(State.STANDBY, "another relay works on slot relay_customers")
        answer = await relay.is_asked("/readyz")
        assert answer.status == 200
        assert answer.json == {"ready": True, "sources": [relay.orders.details(), relay.customers.details()]}
        assert [source["state"] for source in answer.json["sources"]] == ["active", "standby"]

    async def test_one_source_that_is_not_ready_is_enough_and_its_reason_is_shown(self, relay: Relay) -> None:
        relay.customers.became(State.AWAY, "RabbitMQ at mq.example:5672 is away")
        answer = await relay.is_asked("/readyz")
        assert answer.status == 503
        assert answer.json["ready"] is False
        reasons = [(source["name"], source["reason"]) for source in answer.json["sources"]]
        assert reasons == [("orders", None), ("customers", "RabbitMQ at mq.example:5672 is away")]

    async def test_every_answer_is_of_the_moment(self, relay: Relay) -> None:
        assert (await relay.is_asked("/readyz")).status == 200
        relay.orders.became(State.STOPPED, "the publication is gone")
        assert (await relay.is_asked("/readyz")).status == 503

    async def test_a_relay_that_the_broker_blocks_is_ready_and_shows_the_reason(self, relay: Relay) -> None:
        relay.orders.broker_blocks("low on memory")
        answer = await relay.is_asked("/readyz")
        assert answer.status == 200
        assert "low on memory" in answer.json["sources"][0]["reason"]

    async def test_what_follows_a_question_mark_changes_nothing(self, relay: Relay) -> None:
        assert (await relay.is_asked("/readyz?verbose=1")).status == 200


class TestHead:
    @pytest.mark.parametrize("target", ["/healthz", "/readyz", "/metrics"])
    async def test_head_has_the_status_and_the_headers_of_get_and_no_body(self, relay: Relay, target: str) -> None:
        whole = await relay.is_asked(target)
        head = await relay.is_asked(target, "HEAD")
        assert (head.status, head.body) == (whole.status, b"")
        assert head.headers | {"date": ""} == whole.headers | {"date": ""}
        assert int(head.headers["content-length"]) == len(whole.body) > 0


class TestWhatIsNotThere:
    @pytest.mark.parametrize("target", ["/", "/healthz/", "/readyz/orders", "/HEALTHZ", "*", "/../healthz"])
    async def test_other_paths_are_not_found(self, relay: Relay, target: str) -> None:
        answer = await relay.is_asked(target)
        assert (answer.status, answer.json) == (404, {"error": "there are /healthz and /readyz"})

    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "get"])
    async def test_other_methods_are_refused_with_those_that_are_allowed(self, relay: Relay, method: str) -> None:
        answer = await relay.is_asked("/readyz", method)
        assert answer.status == 405
        assert answer.headers["allow"] == "GET, HEAD"

    async def test_who_sends_a_body_after_the_answer_still_hears_it_to_the_end(self, relay: Relay) -> None:
        caller = await relay.is_called()
        await caller.says(b"POST /healthz HTTP/1.1\r\nHost: relay\r\nContent-Length: 40960\r\n\r\n")
        assert await caller.hears_a_line() == b"HTTP/1.1 405 Method Not Allowed\r\n"
        for _ in range(10):
            await caller.says(b"x" * 4096)
        assert (await caller.hears()).endswith(b'{"error": "only GET and HEAD"}\n')

    async def test_a_body_without_end_is_not_read_without_end(self, relay: Relay) -> None:
        caller = await relay.is_called()
        await caller.says(b"POST /healthz HTTP/1.1\r\nHost: relay\r\nTransfer-Encoding: chunked\r\n\r\n")

        async def talks_on() -> None:
            while True:
                await caller.says(b"1000\r\n" + b"x" * 4096 + b"\r\n")

        with pytest.raises(ConnectionError):
            await asyncio.wait_for(talks_on(), PATIENCE_S)


class TestStrangers:
    """Whatever comes in, the next one is served."""

    @pytest.mark.parametrize(
        ("words", "status"),
        [
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
            (b"GET /healthz\r\n\r\n", 400),
            (b"GET /healthz HTTP/1.1\r\n\r\n", 400),
            (b"GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", 400),
            (b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 2 * HEAD_MAX_BYTES, 431),
            (b"A" * 2 * HEAD_MAX_BYTES, 431),
            (b"GET /healthz HTTP/1.0\r\n\r\n", 200),
        ],
        ids=["TLS", "no version", "no host", "no length", "not ASCII", "long headers", "long line", "HTTP/1.0"],
    )
    async def test_what_is_no_request_gets_an_answer_without_a_trace(
        self, relay: Relay, words: bytes, status: int
    ) -> None:
        caller = await relay.is_called()
        await caller.says(words)
        answer = await caller.is_answered()
        assert answer.status == status
        assert b"Traceback" not in answer.body
        assert b"h11" not in answer.body
        assert (await relay.is_asked("/healthz")).status == 200

    async def test_a_request_may_come_byte_by_byte(self, relay: Relay) -> None:
        caller = await relay.is_called()
        for byte in b"GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n":
            await caller.says(bytes([byte]))
        assert (await caller.is_answered()).status == 200

    async def test_who_hangs_up_without_a_word_is_not_answered(self, relay: Relay) -> None:
        caller = await relay.is_called()
        caller.says_no_more()
        assert await caller.hears() == b""

    async def test_who_stops_in_the_middle_of_a_request_is_told_so(self, relay: Relay) -> None:
        caller = await relay.is_called()
        await caller.says(b"GET /heal")
        caller.says_no_more()
        assert (await caller.is_answered()).status == 400

    async def test_who_breaks_the_connection_leaves_no_trace(
        self, relay: Relay, caplog: pytest.LogCaptureFixture
    ) -> None:
        for words in (b"", b"GET /he", b"GET /readyz HTTP/1.1\r\nHost: relay\r\n\r\n"):
            caller = await relay.is_called()
            await caller.says(words)
            caller.hangs_up()
        assert (await relay.is_asked("/healthz")).status == 200
        assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []

    @pytest.mark.usefixtures("hasty")
    async def test_who_does_not_come_to_the_point_is_left(self, relay: Relay) -> None:
        caller = await relay.is_called()
        await caller.says(b"GET /healthz HTTP/1.1\r\nX-Slow: ")

        dawdling = asyncio.create_task(caller.dawdles())
        assert await caller.hears() == b""
        with pytest.raises(ConnectionError):
            await dawdling

    @pytest.mark.usefixtures("hasty")
    async def test_who_is_answered_and_does_not_go_is_left(self, relay: Relay) -> None:
        caller = await relay.is_called()
        await caller.says(b"GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n")
        assert (await caller.is_answered()).status == 200
        with pytest.raises(ConnectionError):
            await caller.dawdles()

    async def test_who_comes_is_served_however_many_others_hang_on(self, relay: Relay) -> None:
        hanging = [await relay.is_called() for _ in range(CONNECTIONS_MAX)]
        for caller in hanging:
            await caller.says(b"GET /healthz HTTP/1.1\r\n")
        assert (await relay.is_asked("/healthz")).status == 200

    async def test_the_one_that_is_open_longest_goes_and_only_that(self, relay: Relay) -> None:
        hanging = [await relay.is_called() for _ in range(CONNECTIONS_MAX)]
        assert (await relay.is_asked("/healthz")).status == 200
        assert await hanging[0].hears() == b""
        for caller in hanging[1:]:
            await caller.says(b"GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n")
            assert (await caller.is_answered()).status == 200

    async def test_a_crowd_that_comes_at_once_is_bounded_too(self, relay: Relay) -> None:
        crowd = await asyncio.gather(*(relay.is_called() for _ in range(3 * CONNECTIONS_MAX)))
        assert (await relay.is_asked("/healthz")).status == 200
        heard = await asyncio.gather(*(still_served(caller) for caller in crowd))
        assert heard.count(True) == CONNECTIONS_MAX - 1  # the last one made room for who asked


async def still_served(caller: Caller) -> bool:
    try:
        await caller.says(b"GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n")
    except ConnectionError:
        return False
    return (await caller.hears()).startswith(b"HTTP/1.1 200 ")


class TestAddress:
    async def test_the_port_that_was_found_is_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        async with Http(ANY_PORT, []) as http:
            assert http.address is not None
            host, port = http.address
        (said,) = [record for record in caplog.records if getattr(record, "action", None) == "http_listening"]
        assert (host, port) == ("127.0.0.1", said.__dict__["port"])
        assert port > 0
        assert said.getMessage() == f"/healthz and /readyz are on 127.0.0.1:{port}"

    async def test_an_empty_address_is_off(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        async with Http("", []) as http:
            assert http.address is None
        assert [record for record in caplog.records if hasattr(record, "action")] == []

    async def test_a_port_in_use_is_an_error_that_says_how_to_go_on(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            listen = f"127.0.0.1:{taken.getsockname()[1]}"
            with pytest.raises(CannotListen, match=f"cannot listen on {listen}: Address already in use") as raised:
                await Http(listen, []).__aenter__()
        assert raised.value.exit_code is ExitCode.FAILURE
        assert "[http] listen" in raised.value.hint

    async def test_an_address_of_another_machine_is_an_error(self) -> None:
        with pytest.raises(CannotListen, match=r"cannot listen on 192\.0\.2\.1:0: Cannot assign requested address"):
            await Http("192.0.2.1:0", []).__aenter__()  # reserved for documentation: RFC 5737

    async def test_a_name_that_nobody_knows_is_an_error(self) -> None:
        with pytest.raises(CannotListen, match=r"cannot listen on relay\.invalid:0: "):
            await Http("relay.invalid:0", []).__aenter__()  # never exists: RFC 2606

    async def test_it_listens_on_ipv6_too(self, caplog: pytest.LogCaptureFixture) -> None:
        if not has_ipv6():
            pytest.skip("there is no IPv6 here")
        caplog.set_level(logging.INFO)
        async with Http("[::1]:0", []) as http:
            assert http.address is not None
            assert http.address[0] == "::1"
        assert f"on [::1]:{http_port(caplog)}" in caplog.text

    async def test_nothing_listens_once_it_is_left_and_who_was_there_is_hung_up_on(self) -> None:
        async with Http(ANY_PORT, []) as http:
            assert http.address is not None
            address = http.address
            caller = Caller(*await asyncio.open_connection(*address))
            await caller.says(b"GET /healthz HTTP/1.1\r\n")
        assert await caller.hears() == b""
        caller.hangs_up()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*address)

    async def test_who_was_accepted_just_before_it_closed_is_hung_up_on_too(self) -> None:
        async with Http(ANY_PORT, []) as http:
            pass
        theirs, ours = socket.socketpair()
        caller = Caller(*await asyncio.open_connection(sock=theirs))
        http._welcome(*await asyncio.open_connection(sock=ours))  # the loop may do that after the closing
        assert await caller.hears() == b""
        caller.hangs_up()


def http_port(caplog: pytest.LogCaptureFixture) -> int:
    (port,) = [record.__dict__["port"] for record in caplog.records if "port" in record.__dict__]
    return int(port)


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True
