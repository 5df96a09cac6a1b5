"""The results as a chart: the same numbers give the same bytes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.matrix import STANDARD, Case, Kind, Queue
from bench.report import MOST_CPU_US, MOST_P50_MS, MOST_P99_MS, TARGET_RATE, costs_of_sagas
from bench.run import Results
from bench.saga import IDLE
from bench.statistics import Spread

WIDTH_IN: Final = 10.0
HEIGHT_IN: Final = 7.0
SAGAS_HEIGHT_IN: Final = 3.0
"""Of the part about sagas, where some were measured."""

COLOURS: Final = {
    Kind.WAL: "#9aa0a6",
    Kind.SINK: "#7fb3d5",
    Kind.BARE: "#9aa0a6",
    Kind.RELAY: "#1f6fb2",
    Kind.DEBEZIUM: "#d9822b",
}
TARGET_COLOUR: Final = "#b03030"
SAGA_COLOURS: Final = {"relay": COLOURS[Kind.RELAY], IDLE: "#e4e6e8"}
OTHER_COLOUR: Final = "#7fb3d5"

ID_SALT: Final = "saga-relay"
"""Otherwise the ids in the file are different each time."""

Bar = tuple[str, Spread, str]


def draw(results: Results, path: Path) -> None:
    """Rate, CPU time and latency of the lines that the targets are about, and the CPU time of a saga."""
    sagas = _saga_costs(results)
    with matplotlib.rc_context(
        {
            "svg.hashsalt": ID_SALT,
            "svg.fonttype": "none",
            "font.family": "sans-serif",
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    ):
        figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN + SAGAS_HEIGHT_IN * bool(sagas)), layout="constrained")
        grid = figure.add_gridspec(2 + bool(sagas), 2)
        rates, costs, delays = (figure.add_subplot(part) for part in (grid[0, :], grid[1, 0], grid[1, 1]))
        _bars(rates, _rates(results), "{:,.0f}")
        rates.set_title("messages/s")
        _bars(costs, _costs(results), "{:.1f}")
        costs.set_title("CPU of the publishing process, µs a message")
        _target(costs, MOST_CPU_US)
        _delays(delays, results)
        delays.set_title(f"commit → confirm at {TARGET_RATE:,} messages/s, ms")
        if sagas:
            saga_costs = figure.add_subplot(grid[2, :])
            _bars(saga_costs, sagas, "{:.2f}")
            saga_costs.set_title("CPU of a saga, ms, as many as the machine takes")
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _rates(results: Results) -> list[Bar]:
    return [
        (_label(case), Spread.of([sample.rate for sample in samples]), COLOURS[case.kind])
        for case, samples in results.samples.items()
        if case.shape == STANDARD
    ]


def _costs(results: Results) -> list[Bar]:
    found = {
        case: [sample.cpu_us for sample in samples if sample.cpu_us is not None]
        for case, samples in results.samples.items()
        if case.shape == STANDARD
    }
    return [(_label(case), Spread.of(costs), COLOURS[case.kind]) for case, costs in found.items() if costs]


def _saga_costs(results: Results) -> list[Bar]:
    costs = costs_of_sagas(results).items()
    return [(name, cost, SAGA_COLOURS.get(name, OTHER_COLOUR)) for name, cost in costs]


def _label(case: Case) -> str:
    return f"{case.kind}, {case.queue}" if case.queue else case.kind


def _bars(axes: Axes, bars: Sequence[Bar], form: str) -> None:
    """Medians as bars, with a line from the least to the most."""
    for place, (_, spread, colour) in enumerate(bars):
        axes.barh(place, spread.median, color=colour, height=0.7)
        axes.plot([spread.least, spread.most], [place, place], color="black", linewidth=1)
        axes.annotate(
            form.format(spread.median), (spread.most, place), xytext=(4, 0), textcoords="offset points", va="center"
        )
    axes.set_yticks(range(len(bars)), [label for label, _, _ in bars])
    axes.invert_yaxis()
    axes.margins(x=0.12)


def _delays(axes: Axes, results: Results) -> None:
    """Percentiles side by side, one group a queue."""
    colours = {"p50": "#1f6fb2", "p99": "#7fb3d5", "p99.9": "#c6dbef"}
    found = {case.queue: samples for case, samples in results.latencies.items() if case.rate == TARGET_RATE}
    bars: list[Bar] = []
    for queue in Queue:
        for name, colour in colours.items():
            values = [
                {"p50": sample.confirm.p50, "p99": sample.confirm.p99, "p99.9": sample.confirm.p999}[name]
                for sample in found.get(queue, [])
            ]
            if values:
                bars.append((f"{queue}, {name}", Spread.of(values), colour))
    _bars(axes, bars, "{:.1f}")
    _target(axes, MOST_P50_MS)
    _target(axes, MOST_P99_MS)


def _target(axes: Axes, limit: float) -> None:
    axes.axvline(limit, color=TARGET_COLOUR, linestyle="--", linewidth=1)
