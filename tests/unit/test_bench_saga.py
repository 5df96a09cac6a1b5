"""The benchmark's part about sagas: who places orders, what counts as whose CPU time, and what the page says of it."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import buyers
from bench.backlog import ServiceDatabase
from bench.buyers import CUSTOMERS, START_S, OrderRefused, body_bytes, customer_id, request
from bench.chart import draw
from bench.helper import MeasurementFailed
from bench.machine import TICKS_PER_S, Used, trees_cpu_s, used
from bench.matrix import SAGA_RATES, SAGA_STAGE, SagaCase, SagaStage, short_run, whole_matrix
from bench.report import tables
from bench.run import Results
from bench.saga import IDLE, OTHERS, SagaSample, cpu_ms, sample
from bench.shop import CUSTOMER_SERVICE, ORDERS, relay_settings, service_settings
from bench.statistics import Percentiles
from bench.subject import Subject, has_sagas
from relay.config import load
from services.customers.__main__ import CustomersSettings
from services.orders.__main__ import OrdersSettings
from services.orders.api import NewOrder
from services.settings import read

ROOT = Path(__file__).parents[2]
AMQP_URL = "amqp://bench:secret@127.0.0.1:5672/%2F"
ACCEPTED = b"HTTP/1.1 202 Accepted\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
UNLIMITED = SagaCase(1_000)


def stat(pid: int, parent: int, *ticks: int) -> str:
    """/proc/pid/stat with user, system, children's user and children's system time."""
    fields = ["S", str(parent), *["0"] * 9, *map(str, ticks), "20", "0"]
    return f"{pid} (a (name) with) ) {' '.join(fields)}\n"


def results_with_sagas() -> Results:
    results = Results()
    for rate, orders_ms in ((90.0, 8.0), (100.0, 6.0), (110.0, 7.0)):
        took = Percentiles(4_000.0, 9_000.0, 9_900.0)
        results.sagas[UNLIMITED].append(SagaSample(rate, took, {"orders": orders_ms, "relay": 1.0, IDLE: 12.0}))
    results.sagas[SagaCase(200, 50)] = [SagaSample(49.9, Percentiles(12.5, 25.0, 40.0), {"orders": 9.0})]
    return results


def test_the_time_of_what_a_process_has_started_is_its_own_and_nobody_elses() -> None:
    stats = {
        1: stat(1, 0, 1000, 1000, 1000, 1000),
        10: stat(10, 1, 1, 2, 4, 8),
        11: stat(11, 10, 16, 32, 0, 0),
        12: stat(12, 11, 64, 0, 0, 0),
        20: stat(20, 1, 5, 0, 0, 0),
    }

    assert trees_cpu_s(stats, [10, 20]) == {10: 127 / TICKS_PER_S, 20: 5 / TICKS_PER_S}
    with pytest.raises(KeyError):
        trees_cpu_s(stats, [30])


def test_this_machine_tells_what_its_processes_have_used() -> None:
    before = used({"tests": os.getpid()})
    subprocess.run((sys.executable, "-c", "sum(range(3_000_000))"), check=True)
    after = used({"tests": os.getpid()})

    assert after.by_name["tests"] > before.by_name["tests"]
    assert after.busy > before.busy
    assert after.idle >= before.idle


def test_what_no_process_of_ours_has_used_is_shown_beside_them() -> None:
    before = Used({"orders": 1.0, "relay": 2.0}, busy=10.0, idle=5.0)
    after = Used({"orders": 3.0, "relay": 2.5}, busy=13.0, idle=6.0)

    assert cpu_ms(before, after, 1_000) == {"orders": 2.0, "relay": 0.5, OTHERS: 0.5, IDLE: 1.0}


def test_the_rate_counts_from_the_first_start_to_the_last_end() -> None:
    found = sample([(10.0, 10.5), (10.25, 12.0), (11.0, 11.125)], {})

    assert found.rate == 1.5
    assert found.took == Percentiles(500.0, 1750.0, 1750.0)


def test_an_order_is_one_that_the_service_takes_and_customers_order_in_turn() -> None:
    bodies = [request(number).partition(b"\r\n\r\n")[2] for number in range(CUSTOMERS + 1)]
    orders = [NewOrder.model_validate_json(body) for body in bodies]

    assert len({order.customer_id for order in orders}) == CUSTOMERS
    assert orders[0].customer_id == orders[-1].customer_id == customer_id(1)
    assert not orders[0].lines
    assert f"content-length: {len(bodies[0])}\r\n".encode() in request(0)


def test_only_an_order_that_was_taken_counts() -> None:
    assert body_bytes(ACCEPTED.removesuffix(b"{}")) == 2
    with pytest.raises(OrderRefused, match="503 Service Unavailable"):
        body_bytes(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\n")


async def place(orders: int, rate: float | None, answer: bytes) -> list[float]:
    """Place orders with a server that gives always the same answer; when each came to it, in s."""
    came_at: list[float] = []
    serving: list[asyncio.Task[object] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.current_task())
        try:
            while (head := await reader.readuntil(b"\r\n\r\n")).startswith(b"POST /orders "):
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                json.loads(await reader.readexactly(length))
                came_at.append(asyncio.get_running_loop().time())
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port: int = server.sockets[0].getsockname()[1]
        try:
            await buyers.place_all(port, orders, rate)
        finally:
            await asyncio.gather(*filter(None, serving))
    return came_at


async def test_every_order_is_placed_once_and_then_it_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(await place(100, None, ACCEPTED)) == 100
    assert [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()] == ["ready", "complete"]


async def test_orders_at_a_pace_do_not_come_before_their_time() -> None:
    begun_at = asyncio.get_running_loop().time()
    came_at = await place(30, 200.0, ACCEPTED)

    assert all(at >= begun_at + START_S + number / 200.0 for number, at in enumerate(sorted(came_at)))


async def test_a_refused_order_ends_the_measurement() -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(OrderRefused, match="500")):
        await place(1, None, ACCEPTED.replace(b"202", b"500"))


def test_a_process_says_by_its_log_how_far_it_is() -> None:
    script = "import json, sys; print('not JSON', json.dumps({'action': 'x'}), file=sys.stderr)"
    script += "; print(json.dumps({'action': 'listening'}), json.dumps({}), sep='\\n', file=sys.stderr)"
    script += "; print(json.dumps({'action': 'consuming'}), file=sys.stderr); sys.exit(3)"
    process = subprocess.Popen((sys.executable, "-c", script), stderr=subprocess.PIPE, text=True)

    with Subject("orders", process) as subject:
        subject.until("consuming")
        with pytest.raises(MeasurementFailed, match=r"(?s)orders ended before it said 'streaming'.*not JSON"):
            subject.until("streaming")


def test_relay_and_services_understand_their_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    databases = {
        service: ServiceDatabase(f"postgresql://relay@h/{service}", "", f"postgresql://{service}@h/{service}", service)
        for service in (ORDERS, CUSTOMER_SERVICE)
    }
    settings = relay_settings(databases, AMQP_URL)
    for service, port in ((ORDERS, 8001), (CUSTOMER_SERVICE, 8002)):
        settings |= service_settings(service, databases[service], AMQP_URL, port)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)

    sources = load(None).source
    assert [(source.name, source.slot) for source in sources] == [(ORDERS, ORDERS), (CUSTOMER_SERVICE,) * 2]
    assert read(OrdersSettings).address == ("127.0.0.1", 8001)
    assert read(CustomersSettings).address == ("127.0.0.1", 8002)
    assert read(CustomersSettings).log_format == "json"


def test_sagas_come_first_where_the_demo_has_some() -> None:
    for plan in (short_run, whole_matrix):
        stages = plan(debezium=False, tables=True, sagas=True)
        assert stages[0] is SAGA_STAGE
        assert stages[1:] == plan(debezium=False, tables=True, sagas=False)
        assert not any(isinstance(stage, SagaStage) for stage in stages[1:])
    assert has_sagas(ROOT)
    assert not has_sagas(ROOT / "docs")


def test_throughput_is_measured_without_a_pace_and_latency_at_each() -> None:
    assert [case.rate for case in SAGA_STAGE.cases] == [None, *SAGA_RATES]


def test_the_page_shows_rates_delays_and_costs_most_of_it_first_and_what_was_idle_last() -> None:
    said = tables(results_with_sagas()).partition("### Sagas")[2]

    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in said.splitlines() if "|" in line]
    assert ["as fast as they are taken", "1,000", "100 (90-110)", "", ""] in rows
    assert ["50 a second", "200", "50", "12.5", "25.0"] in rows
    assert [row for row in rows if row[0] in ("orders", "relay", IDLE)] == [
        ["orders", "7.00 (6.00-8.00)", "35%"],
        ["relay", "1.00 (1.00-1.00)", "5%"],
        [IDLE, "12.00 (12.00-12.00)", "60%"],
    ]


def test_without_sagas_the_page_and_the_chart_have_no_part_about_them(tmp_path: Path) -> None:
    with_sagas, without = tmp_path / "with.svg", tmp_path / "without.svg"
    draw(results_with_sagas(), with_sagas)
    draw(Results(), without)

    assert "Sagas" not in tables(Results())
    assert b"CPU of a saga" in with_sagas.read_bytes()
    assert b"CPU of a saga" not in without.read_bytes()
