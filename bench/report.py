"""The results as tables and as a page. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from bench.matrix import STANDARD, Capture, Case, Kind, LatencyCase, Queue
from bench.run import Results
from bench.saga import IDLE, SagaSample
from bench.statistics import Percentiles, Spread
from bench.throughput import Sample

BEGIN: Final = "<!-- What follows is written by `make bench`. -->"
END: Final = "<!-- What came before is written by `make bench`. -->"

MOST_CPU_US: Final = 15.0
LEAST_OF_BARE: Final = 0.95
LEAST_TIMES_DEBEZIUM: Final = 2.0
MOST_OF_DEBEZIUMS_CPU: Final = 1 / 8
MOST_P50_MS: Final = 2.0
MOST_P99_MS: Final = 8.0
MOST_MEMORY_MB: Final = 80.0
TARGET_RATE: Final = 1000
"""Messages a second at which the latency is to be reached."""

NOT_MEASURED: Final = "not measured"
RELAYS: Final = (Kind.SINK, Kind.RELAY)

Row = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """Something to be reached, and what was found: the worst of the queues, each by its median."""

    what: str
    wanted: str
    found: str
    reached: bool | None
    """None where it was not measured."""

    @property
    def verdict(self) -> str:
        """In words."""
        return {True: "reached", False: "**not reached**", None: NOT_MEASURED}[self.reached]


def targets(results: Results) -> list[Target]:
    """What was promised, beside what was measured of the outbox with 200 B and 10 messages a transaction."""
    relay, bare, peer = (_by_queue(results, kind) for kind in (Kind.RELAY, Kind.BARE, Kind.DEBEZIUM))
    of_bare = [rate(relay[queue]) / rate(bare[queue]) for queue in Queue if relay[queue] and bare[queue]]
    times_peer = [rate(relay[queue]) / rate(peer[queue]) for queue in Queue if relay[queue] and peer[queue]]
    of_peer = [cpu(relay[queue]) / cpu(peer[queue]) for queue in Queue if relay[queue] and peer[queue]]
    costs = [cpu(samples) for samples in relay.values() if samples]
    delays = [
        (Spread.of([sample.confirm.p50 for sample in samples]), Spread.of([sample.confirm.p99 for sample in samples]))
        for case, samples in results.latencies.items()
        if case.rate == TARGET_RATE
    ]
    memory = [
        sample.memory_mb
        for case, samples in results.samples.items()
        for sample in samples
        if case.kind in RELAYS and sample.memory_mb is not None
    ]
    return [
        _at_most("CPU of the relay per message", MOST_CPU_US, costs, "{:.1f} µs"),
        _at_least("rate of the relay, of the bare publisher's", LEAST_OF_BARE, of_bare, "{:.0%}"),
        _at_least("rate of the relay, over Debezium's", LEAST_TIMES_DEBEZIUM, times_peer, "{:.1f} times"),
        _at_most("CPU of the relay per message, of Debezium's", MOST_OF_DEBEZIUMS_CPU, of_peer, "{:.3f}"),
        _at_most("commit → confirm at 1,000/s, p50", MOST_P50_MS, [p50.median for p50, _ in delays], "{:.1f} ms"),
        _at_most("commit → confirm at 1,000/s, p99", MOST_P99_MS, [p99.median for _, p99 in delays], "{:.1f} ms"),
        _at_most("memory of the relay, at its peak in any run", MOST_MEMORY_MB, memory, "{:.1f} MB"),
    ]


def rate(samples: Sequence[Sample]) -> float:
    """The median, in messages a second."""
    return Spread.of([sample.rate for sample in samples]).median


def cpu(samples: Sequence[Sample]) -> float:
    """The median, in µs a message."""
    return Spread.of([sample.cpu_us for sample in samples if sample.cpu_us is not None]).median


def _by_queue(results: Results, kind: Kind) -> dict[Queue, list[Sample]]:
    return {queue: results.samples.get(Case(kind, STANDARD, queue), []) for queue in Queue}


def _at_most(what: str, limit: float, found: Sequence[float], form: str) -> Target:
    wanted = f"≤ {form.format(limit)}"
    if not found:
        return Target(what, wanted, "", None)
    return Target(what, wanted, form.format(max(found)), max(found) <= limit)


def _at_least(what: str, limit: float, found: Sequence[float], form: str) -> Target:
    wanted = f"≥ {form.format(limit)}"
    if not found:
        return Target(what, wanted, "", None)
    return Target(what, wanted, form.format(min(found)), min(found) >= limit)


def tables(results: Results) -> str:
    """Everything that was found, as Markdown."""
    parts = ["### Throughput", "", *_throughput(results), "", "### One large transaction", "", *_large(results)]
    parts += ["", "### Latency", "", *_latency(results)]
    if results.sagas:
        parts += ["", "### Sagas", "", *sagas_report(results)]
    if results.skipped or results.failed:
        parts += ["", "### Left out", ""]
        parts += [f"- {line}" for line in dict.fromkeys(results.skipped)]
        parts += [f"- failed: {line.splitlines()[0]}" for line in results.failed]
    parts += ["", "### Targets", "", *_targets(results)]
    return "\n".join(parts)


def _throughput(results: Results) -> list[str]:
    heads = ("", "queue", "payload", "per transaction", "messages/s", "CPU µs/message", "peak memory, MB")
    cases = [case for case in results.samples if not case.shape.one_transaction]
    rows = [
        (
            case.line,
            case.queue or "",
            f"{case.shape.payload_bytes:,} B",
            f"{case.shape.per_transaction:,}",
            spread([sample.rate for sample in results.samples[case]], "{:,.0f}"),
            spread([sample.cpu_us for sample in results.samples[case] if sample.cpu_us is not None], "{:.1f}"),
            spread([sample.memory_mb for sample in results.samples[case] if sample.memory_mb is not None], "{:,.0f}"),
        )
        for case in sorted(cases, key=_place)
    ]
    return table(heads, rows, numbers_from=2)


def _place(case: Case) -> tuple[bool, int, int]:
    """The outbox's lines first, as the targets are about them."""
    return (case.shape.capture is not Capture.OUTBOX, case.shape.payload_bytes, case.shape.per_transaction)


def _large(results: Results) -> list[str]:
    rows = [
        (
            f"{case.shape.rows:,}",
            f"{case.queue} queue" if case.queue else "sink",
            spread([sample.rate for sample in samples], "{:,.0f}"),
            spread([sample.cpu_us for sample in samples if sample.cpu_us is not None], "{:.1f}"),
            spread([sample.memory_mb for sample in samples if sample.memory_mb is not None], "{:,.1f}"),
        )
        for case, samples in sorted(results.samples.items(), key=lambda line: line[0].shape.rows)
        if case.shape.one_transaction
    ]
    return table(("rows", "into", "messages/s", "CPU µs/message", "peak memory, MB"), rows, numbers_from=2)


def _latency(results: Results) -> list[str]:
    rows: list[Row] = []
    for case in sorted(results.latencies, key=lambda case: (case.rate, case.queue)):
        samples = results.latencies[case]
        rows += [
            _delays(case, "sent to RabbitMQ", [sample.sent for sample in samples]),
            _delays(case, "confirm", [sample.confirm for sample in samples]),
            _delays(case, "consumer", [sample.consumer for sample in samples]),
        ]
    return table(("messages/s", "queue", "commit →", "p50, ms", "p99, ms", "p99.9, ms"), rows, numbers_from=3)


def _delays(case: LatencyCase, until: str, found: Sequence[Percentiles]) -> Row:
    columns = zip(*((each.p50, each.p99, each.p999) for each in found), strict=True)
    return (f"{case.rate:,}", case.queue, until, *(spread(column, "{:.1f}") for column in columns))


def sagas_report(results: Results) -> list[str]:
    """Rates and delays of sagas, and where their CPU time goes."""
    return [*_sagas(results), "", *_saga_costs(results)]


def _sagas(results: Results) -> list[str]:
    rows = [
        (
            "as fast as they are taken" if case.rate is None else f"{case.rate:,} a second",
            f"{case.orders:,}",
            spread([sample.rate for sample in samples], "{:,.0f}"),
            # Who starts more than can be done measures a queue.
            *([""] * 2 if case.rate is None else _took(samples)),
        )
        for case, samples in results.sagas.items()
    ]
    return table(("orders placed", "sagas", "completed/s", "p50, ms", "p99, ms"), rows, numbers_from=1)


def _took(samples: Sequence[SagaSample]) -> Row:
    return tuple(
        spread(times, "{:,.1f}")
        for times in ([sample.took.p50 for sample in samples], [sample.took.p99 for sample in samples])
    )


def _saga_costs(results: Results) -> list[str]:
    """Where the CPU time goes of sagas that are started as fast as they are taken, most of it first."""
    parts = costs_of_sagas(results)
    if not parts:
        return []
    whole = sum(cost.median for cost in parts.values())
    rows = [
        (name, spread_of(cost, "{:.2f}"), f"{cost.median / whole:.0%}")
        for name, cost in sorted(parts.items(), key=lambda part: (part[0] == IDLE, -part[1].median))
    ]
    return table(("as fast as they are taken: CPU of", "ms/saga", "of all cores"), rows, numbers_from=1)


def costs_of_sagas(results: Results) -> dict[str, Spread]:
    """CPU ms a saga, by process, where orders are placed as fast as they are taken."""
    samples = [sample for case, found in results.sagas.items() if case.rate is None for sample in found]
    names = samples[0].cpu_ms if samples else ()
    return {name: Spread.of([sample.cpu_ms[name] for sample in samples]) for name in names}


def _targets(results: Results) -> list[str]:
    rows = [(target.what, target.wanted, target.found, target.verdict) for target in targets(results)]
    return table(("target", "wanted", "found", ""), rows, numbers_from=1)


def spread(values: Iterable[float], form: str) -> str:
    """Median, and in brackets the least and the most; nothing for nothing."""
    values = list(values)
    if not values:
        return ""
    return form.format(values[0]) if len(values) == 1 else spread_of(Spread.of(values), form)


def spread_of(found: Spread, form: str) -> str:
    """Median, and in brackets the least and the most."""
    return f"{form.format(found.median)} ({form.format(found.least)}-{form.format(found.most)})"


def table(heads: Row, rows: Iterable[Row], numbers_from: int) -> list[str]:
    """A Markdown table that can be read as it is, too. Columns from `numbers_from` on stand to the right."""
    rows = list(rows)
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]

    def line(row: Row) -> str:
        cells = (
            cell.rjust(width) if column >= numbers_from else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return f"| {' | '.join(cells)} |"

    rule = ("-" * width if column < numbers_from else "-" * (width - 1) + ":" for column, width in enumerate(widths))
    return [line(heads), f"| {' | '.join(rule)} |", *(line(row) for row in rows)]


def updated(page: str, block: str) -> str:
    """The page with this block in the place of the last one. Raises ValueError when it has no place for it."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{block}\n\n{END}{after}"
