"""All measurements of a plan, one after the other."""

import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bench.backlog import Backlog, Database, Databases
from bench.debezium.peer import Debezium
from bench.helper import MeasurementFailed
from bench.latency import Latency, LatencySample
from bench.matrix import (
    HUGE_DISK_GB,
    HUGE_TRANSACTION,
    STANDARD,
    Capture,
    Case,
    Kind,
    LatencyCase,
    Queue,
    SagaCase,
    SagaStage,
    Shape,
    Stage,
)
from bench.saga import WARM_UP, SagaSample
from bench.saga import measure as measure_sagas
from bench.servers import BrokerMaker
from bench.shop import Shop
from bench.throughput import Sample, Throughput
from relay.demo.servers.postgres import PrivatePostgres

Say = Callable[[str], None]


@dataclass(slots=True)
class Results:
    """What was found, and what was not."""

    samples: dict[Case, list[Sample]] = field(default_factory=lambda: defaultdict(list))
    latencies: dict[LatencyCase, list[LatencySample]] = field(default_factory=lambda: defaultdict(list))
    sagas: dict[SagaCase, list[SagaSample]] = field(default_factory=lambda: defaultdict(list))
    skipped: list[str] = field(default_factory=list)
    """A sentence for each thing that was left out."""
    failed: list[str] = field(default_factory=list)
    """A sentence for each measurement that did not come to its end."""


class Run:
    """Measures everything `rounds` times, in turns: whatever the machine does beside it, every line gets its share.

    What would not be over by `deadline` (of the monotonic clock, in s), going by the round before, does not begin.
    """

    def __init__(
        self,
        server: PrivatePostgres,
        relay: Path,
        brokers: BrokerMaker,
        debezium: Debezium | None,
        say: Say,
        deadline: float,
    ) -> None:
        self.results = Results()
        self._databases = Databases(server, relay)
        self._throughput = Throughput(server, relay, brokers)
        self._latency = Latency(relay, brokers)
        self._shop = partial(Shop, server, relay, brokers, self._databases)
        self._debezium = debezium
        self._say = say
        self._deadline = deadline
        self._took_s: dict[str, float] = {}

    def measure(self, stages: Iterable[Stage | SagaStage]) -> None:
        """Every stage, one after the other."""
        for stage in stages:
            if isinstance(stage, SagaStage):
                self._sagas(stage)
                continue
            if HUGE_TRANSACTION in stage.shapes and _free_gb() < HUGE_DISK_GB:
                self.leave_out(f"{stage.cases[0]}: it takes {HUGE_DISK_GB:g} GB of disk for a while")
                continue
            with ExitStack() as stack:
                self._stage(stage, stack)

    def profile(self, file: Path) -> None:
        """Where the relay's time goes: into the sink, under cProfile, whose findings `file` gets."""
        with self._databases.backlog(STANDARD) as backlog:
            self._throughput.sink(backlog, profile=file)

    def leave_out(self, what: str) -> None:
        """Something is not measured: the report says so."""
        self.results.skipped.append(what)
        self._say(f"skipped: {what}")

    def _stage(self, stage: Stage, stack: ExitStack) -> None:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-bench-")))
        backlogs: dict[Shape, Backlog] = {}
        for shape in stage.shapes:
            size = f"{shape.rows:,} rows of {shape.payload_bytes} B, {shape.per_transaction:,} a transaction"
            self._say(f"writing to the {shape.capture}: {size}")
            backlogs[shape] = stack.enter_context(self._databases.backlog(shape))
        delayed = {queue: stack.enter_context(self._databases.database(Capture.OUTBOX)) for queue in stage.latencies}
        recorded = {shape: directory / f"messages-{number}" for number, shape in enumerate(stage.shapes)}
        for shape in {case.shape for case in stage.cases if case.kind is Kind.BARE}:
            self._say("recording the messages that the relay makes of them")
            self._throughput.sink(backlogs[shape], recorded[shape])
        for number in range(1, stage.rounds + 1):
            self._say(f"round {number} of {stage.rounds}")
            for queue, database in delayed.items():
                self._delays(database, queue)
            for case in stage.cases:
                self._one(case, backlogs[case.shape], recorded[case.shape])

    def _sagas(self, stage: SagaStage) -> None:
        with self._attempt("CreateOrder") as begins:
            if not begins:
                return
            self._say("starting the services of CreateOrder")
            with self._shop() as shop:
                measure_sagas(shop, WARM_UP, None)
                for number in range(1, stage.rounds + 1):
                    self._say(f"round {number} of {stage.rounds}")
                    for case in stage.cases:
                        sample = measure_sagas(shop, case.orders, case.rate)
                        self.results.sagas[case].append(sample)
                        took = f"within {sample.took.p50:.1f} ms (p50), {sample.took.p99:.1f} ms (p99)"
                        self._say(f"{case}: {sample.rate:,.0f}/s completed, {took}")

    def _one(self, case: Case, backlog: Backlog, recorded: Path) -> None:
        with self._attempt(str(case)) as begins:
            if begins:
                sample = self._sample(case, backlog, recorded)
                self.results.samples[case].append(sample)
                price = "" if sample.cpu_us is None else f", {sample.cpu_us:.1f} µs of CPU each"
                self._say(f"{case}: {sample.rate:,.0f}/s{price}")

    def _sample(self, case: Case, backlog: Backlog, recorded: Path) -> Sample:
        match case:
            case Case(Kind.WAL):
                return self._throughput.wal(backlog)
            case Case(Kind.SINK):
                return self._throughput.sink(backlog)
            case Case(Kind.BARE, _, Queue() as queue):
                return self._throughput.bare(backlog, queue, recorded)
            case Case(Kind.RELAY, _, Queue() as queue):
                return self._throughput.relay(backlog, queue)
            case Case(Kind.DEBEZIUM, _, Queue() as queue) if self._debezium is not None:
                return self._debezium.measure(backlog, queue)
        raise ValueError(f"there is no way to measure {case}")

    def _delays(self, database: Database, queue: Queue) -> None:
        with self._attempt(f"latency, {queue} queue") as begins:
            if begins:
                for case, sample in self._latency.measure(database, queue).items():
                    self.results.latencies[case].append(sample)
                    confirm = sample.confirm
                    self._say(f"{case}: confirmed within {confirm.p50:.1f} ms (p50), {confirm.p99:.1f} ms (p99)")

    @contextmanager
    def _attempt(self, what: str) -> Iterator[bool]:
        """Whether a measurement may begin. It takes down how long it took, and that it failed."""
        begun = time.monotonic()
        if begun + self._took_s.get(what, 0.0) > self._deadline:
            self.leave_out(f"{what}: a repeat, for lack of time")
            yield False
            return
        try:
            yield True
        except MeasurementFailed as error:
            self.results.failed.append(f"{what}: {error}")
            self._say(f"FAILED: {what}: {error}")
        self._took_s[what] = time.monotonic() - begun


def _free_gb() -> float:
    return shutil.disk_usage(tempfile.gettempdir()).free / 1e9
