"""`python -m bench`, which `make bench` runs: measure, print, and write docs/performance.md and its chart."""

import argparse
import math
import platform
import pstats
import subprocess
import sys
import time
from contextlib import nullcontext
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from signal import SIGTERM, default_int_handler, signal
from typing import Final

import psycopg

from bench.chart import draw
from bench.debezium.peer import Debezium, Peer, find_peer
from bench.machine import this_machine
from bench.matrix import SAGA_STAGE, short_run, whole_matrix
from bench.report import sagas_report, tables, targets, updated
from bench.run import Run
from bench.servers import IMAGE, BrokerMaker, broker_maker, postgres
from bench.subject import captures_tables, has_sagas
from relay.demo.servers.postgres import PrivatePostgres

BUDGET_S: Final = 14.5 * 60
"""The short run has to end within 15 minutes: by then its last measurement is over, and it cleans up."""

PROFILE_LINES: Final = 30

QUOTE: Final = '"'

ROOT: Final = Path(__file__).parent.parent
PAGE: Final = ROOT / "docs" / "performance.md"
CHART: Final = PAGE.with_suffix(".svg")
CHART_LINK: Final = f"![Rate, CPU time and latency, as in the tables below]({CHART.name})"


def main() -> int:
    """Measure. Returns the exit status: 1 when a measurement failed; a target that was missed is no failure."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--full", action="store_true", help="the whole matrix, which takes forty minutes")
    parser.add_argument("--relay", type=Path, default=ROOT, help="the checkout whose relay is measured")
    parser.add_argument("--only-sagas", action="store_true", help="measure sagas only, and print what was found")
    parser.add_argument("--print-only", action="store_true", help="leave docs/performance.md as it is")
    parser.add_argument("--rabbitmq-image", default=IMAGE, help="the container, where a Docker engine answers")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="only profile the relay, for pstats")
    arguments = parser.parse_args()
    signal(SIGTERM, default_int_handler)  # so that servers and containers go as after Ctrl-C
    begun = time.monotonic()

    def say(words: str) -> None:
        print(f"{time.monotonic() - begun:6.0f} s  {words}", flush=True)

    peer = find_peer()
    found = peer if isinstance(peer, Peer) else None
    brokers = broker_maker(arguments.rabbitmq_image)
    with postgres() as server, nullcontext() if found is None else Debezium(found, brokers) as debezium:
        deadline = math.inf if arguments.full else begun + BUDGET_S
        run = Run(server, arguments.relay.resolve(), brokers, debezium, say, deadline)
        if arguments.profile is not None:
            run.profile(arguments.profile.resolve())
            pstats.Stats(str(arguments.profile)).sort_stats("tottime").print_stats(PROFILE_LINES)
            return 0
        if isinstance(peer, str):
            run.leave_out(f"Debezium: {peer}")
        has_tables = captures_tables(arguments.relay)
        if not has_tables:
            run.leave_out("table capture: the relay that is measured has none")
        sagas = has_sagas(arguments.relay)
        if not sagas:
            run.leave_out("CreateOrder: the demo of the relay that is measured has none")
        if arguments.only_sagas:
            run.measure((SAGA_STAGE,) if sagas else ())
            print("", *sagas_report(run.results), sep="\n")
            return 1 if run.results.failed else 0
        versions = [_postgresql(server), _rabbitmq(brokers), *_libraries(), *([] if found is None else _java(found))]
        run.measure((whole_matrix if arguments.full else short_run)(found is not None, has_tables, sagas))
    block = f"{_header(arguments.full, versions)}\n\n{tables(run.results)}"
    print(f"\n{block}\n")
    if not arguments.print_only:
        PAGE.write_text(updated(PAGE.read_text(encoding="utf-8"), f"{CHART_LINK}\n\n{block}"), encoding="utf-8")
        draw(run.results, CHART)
    missed = "; ".join(target.what for target in targets(run.results) if target.reached is False)
    say(f"targets missed: {missed or 'none'}")
    return 1 if run.results.failed else 0


def _header(full: bool, versions: list[str]) -> str:
    machine = this_machine()
    which = "the whole matrix (`make bench FULL=1`)" if full else "the short run (`make bench`)"
    shape = f"{machine.cores} cores of {machine.processor}, {machine.memory_gb:.0f} GB of memory, {machine.system}"
    return f"{datetime.now(UTC):%Y-%m-%d}, {which}, on {shape}.\n{', '.join(versions)}."


def _postgresql(server: PrivatePostgres) -> str:
    with psycopg.connect(server.dsn("postgres")) as connection:
        return f"PostgreSQL {connection.info.parameter_status('server_version')}"


def _rabbitmq(brokers: BrokerMaker) -> str:
    with brokers() as broker:
        return f"RabbitMQ {broker.version} ({broker.place})"


def _libraries() -> list[str]:
    names = {"saga-relay": "saga-relay", "pika": "pika", "psycopg": "psycopg"}
    return [f"Python {platform.python_version()}", *(f"{words} {version(name)}" for name, words in names.items())]


def _java(peer: Peer) -> list[str]:
    """Java says its version like this: `openjdk version "17.0.15" 2025-04-15`."""
    said = subprocess.run((peer.java, "-version"), capture_output=True, text=True, check=True).stderr
    return [f"Debezium {peer.version}", f"Java {said.split(QUOTE)[1]}"]


if __name__ == "__main__":
    sys.exit(main())
