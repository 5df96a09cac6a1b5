"""The benchmark's arithmetic, its plan, and its page."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from bench.chart import draw
from bench.latency import LatencySample
from bench.matrix import (
    HUGE_TRANSACTION,
    STANDARD,
    STANDARD_TABLE,
    Capture,
    Case,
    Kind,
    LatencyCase,
    Queue,
    SagaStage,
    Shape,
    Stage,
    short_run,
    whole_matrix,
)
from bench.report import BEGIN, END, Target, spread, table, tables, targets, updated
from bench.run import Results
from bench.statistics import Percentiles, Spread, percentile
from bench.throughput import Sample


def results_that_reach_every_target() -> Results:
    results = Results()
    for queue in Queue:
        results.samples[Case(Kind.BARE, STANDARD, queue)] = [Sample(20_000)]
        results.samples[Case(Kind.RELAY, STANDARD, queue)] = [
            Sample(19_000, 15.0, 60.0),
            Sample(19_500, 12.0, 61.0),
            Sample(10_000, 99.0, 62.0),
        ]
        results.samples[Case(Kind.DEBEZIUM, STANDARD, queue)] = [Sample(9_500, 120.0, 900.0)]
        results.latencies[LatencyCase(queue, 1000)] = [
            LatencySample(Percentiles(0.5, 2.0, 3.0), Percentiles(1.5, 8.0, 9.0), Percentiles(1.0, 7.0, 8.0))
        ]
    return results


def verdicts(results: Results) -> list[bool | None]:
    return [target.reached for target in targets(results)]


def test_a_percentile_is_one_of_the_values_by_the_nearest_rank() -> None:
    values = [float(value) for value in range(1, 1001)]

    assert [percentile(values, share) for share in (500, 990, 999, 1000)] == [500, 990, 999, 1000]
    assert percentile([3.0], 500) == 3.0


def test_there_is_no_percentile_and_no_spread_of_nothing() -> None:
    with pytest.raises(ValueError, match="percentile"):
        percentile([], 500)
    with pytest.raises(ValueError, match="spread"):
        Spread.of([])


def test_percentiles_do_not_depend_on_the_order() -> None:
    assert Percentiles.of([9.0, 1.0, 5.0]) == Percentiles(5.0, 9.0, 9.0)


def test_a_spread_shows_median_least_and_most_and_a_single_value_alone() -> None:
    assert spread([3.0, 1.0, 2.0], "{:.0f}") == "2 (1-3)"
    assert spread([3.0], "{:.0f}") == "3"
    assert spread([], "{:.0f}") == ""


def test_all_targets_are_reached_at_their_very_limits() -> None:
    assert verdicts(results_that_reach_every_target()) == [True] * 7


@pytest.mark.parametrize(
    ("case", "worse", "missed"),
    [
        (Case(Kind.RELAY, STANDARD, Queue.QUORUM), Sample(19_500, 15.1, 60.0), [0, 3]),
        (Case(Kind.RELAY, STANDARD, Queue.CLASSIC), Sample(18_900, 15.0, 60.0), [1, 2]),
        (Case(Kind.RELAY, Shape(200, 1, 100), Queue.CLASSIC), Sample(1, 99.0, 80.1), [6]),
        (Case(Kind.DEBEZIUM, STANDARD, Queue.CLASSIC), Sample(10_000, 119.0, 1.0), [2, 3]),
    ],
)
def test_the_worse_queue_decides_and_memory_counts_in_every_shape(case: Case, worse: Sample, missed: list[int]) -> None:
    results = results_that_reach_every_target()
    results.samples[case] = [worse]

    assert [number for number, reached in enumerate(verdicts(results)) if not reached] == missed


def test_latency_at_another_rate_is_no_target() -> None:
    results = results_that_reach_every_target()
    results.latencies[LatencyCase(Queue.CLASSIC, 100)] = [
        LatencySample(Percentiles(5.0, 6.0, 7.0), Percentiles(50.0, 60.0, 70.0), Percentiles(50.0, 60.0, 70.0))
    ]

    assert verdicts(results) == [True] * 7


def test_what_was_not_measured_is_neither_reached_nor_missed() -> None:
    assert verdicts(Results()) == [None] * 7
    assert Target("CPU", "≤ 1", "", None).verdict == "not measured"


def test_a_missed_target_is_said_and_so_is_what_was_left_out() -> None:
    results = results_that_reach_every_target()
    results.samples[Case(Kind.RELAY, STANDARD, Queue.CLASSIC)] = [Sample(100, 200.0, 60.0)]
    results.skipped = ["Debezium: no Java", "Debezium: no Java"]
    results.failed = ["relay: ended\nits last words"]

    said = tables(results)

    assert "**not reached**" in said
    assert said.count("- Debezium: no Java") == 1
    assert "- failed: relay: ended\n" in said
    assert "last words" not in said


def test_every_case_has_its_line_and_a_large_transaction_a_table_of_its_own() -> None:
    results = results_that_reach_every_target()
    results.samples[Case(Kind.SINK, HUGE_TRANSACTION)] = [Sample(30_000, 14.0, 64.2)]

    throughput, large = tables(results).split("### One large transaction")

    assert "19,000 (10,000-19,500) | 15.0 (12.0-99.0) |" in throughput
    assert "10,000,000" not in throughput
    assert "10,000,000" in large
    assert "64.2" in large


def test_lines_stand_by_payload_and_then_by_messages_a_transaction() -> None:
    results = Results()
    for payload, per_transaction in ((2000, 1), (200, 1000), (200, 10)):
        results.samples[Case(Kind.WAL, Shape(payload, per_transaction, 5000))] = [Sample(1)]

    lines = [line.replace(" ", "") for line in tables(results).splitlines() if "pg_recvlogical" in line]

    assert [line.split("|")[3:5] for line in lines] == [["200B", "10"], ["200B", "1,000"], ["2,000B", "1"]]


def test_what_a_table_gives_stands_below_the_outbox_under_a_name_of_its_own() -> None:
    results = Results()
    for shape in (STANDARD_TABLE, Shape(2000, 1, 5000)):
        for kind in (Kind.RELAY, Kind.DEBEZIUM):
            results.samples[Case(kind, shape, Queue.CLASSIC)] = [Sample(1)]

    lines = [line.split("|")[1].strip() for line in tables(results).splitlines() if "| classic |" in line]

    assert lines == ["relay", "Debezium", "relay, table capture", "Debezium, table capture"]


def test_rates_and_cost_of_a_table_are_no_target_but_its_memory_is() -> None:
    results = results_that_reach_every_target()
    results.samples[Case(Kind.DEBEZIUM, STANDARD_TABLE, Queue.CLASSIC)] = [Sample(99_000, 1.0, 900.0)]
    results.samples[Case(Kind.RELAY, STANDARD_TABLE, Queue.CLASSIC)] = [Sample(1, 99.0, 80.0)]
    assert verdicts(results) == [True] * 7

    results.samples[Case(Kind.RELAY, STANDARD_TABLE, Queue.CLASSIC)] = [Sample(1, 99.0, 80.1)]
    assert verdicts(results) == [True] * 6 + [False]


def test_a_table_lines_up() -> None:
    assert table(("what", "n"), [("a", "1,000")], numbers_from=1) == [
        "| what |     n |",
        "| ---- | ----: |",
        "| a    | 1,000 |",
    ]


def test_only_the_results_of_the_page_are_replaced() -> None:
    page = f"# Title\n\n{BEGIN}\n\nold\n\n{END}\n\nthe end\n"

    assert updated(page, "new") == f"# Title\n\n{BEGIN}\n\nnew\n\n{END}\n\nthe end\n"
    assert updated(updated(page, "newer"), "new") == updated(page, "new")


def test_a_page_without_a_place_for_results_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks the lines"):
        updated("# Title\n", "new")


def test_the_page_of_the_project_has_a_place_for_results() -> None:
    page = (Path(__file__).parents[2] / "docs" / "performance.md").read_text(encoding="utf-8")

    assert "new" in updated(page, "new")


def test_the_same_numbers_draw_the_same_chart(tmp_path: Path) -> None:
    first, second = tmp_path / "first.svg", tmp_path / "second.svg"

    draw(results_that_reach_every_target(), first)
    draw(results_that_reach_every_target(), second)

    assert first.read_bytes() == second.read_bytes()
    assert b"relay, quorum" in first.read_bytes()


def stages_of(plan: Iterable[Stage | SagaStage]) -> list[Stage]:
    """Those of captures."""
    return [stage for stage in plan if isinstance(stage, Stage)]


def test_the_short_run_has_one_payload_and_ten_messages_a_transaction_beside_the_large_one() -> None:
    large, stage = stages_of(short_run(debezium=True, tables=False, sagas=False))

    assert {case.shape for case in stage.cases if not case.shape.one_transaction} == {STANDARD}
    assert [shape.rows for shape in large.shapes] == [1_000_000]
    assert [shape.rows for shape in stage.shapes] == [100_000, 10_000]
    assert {case.queue for case in stage.cases if case.kind is Kind.DEBEZIUM} == set(Queue)
    assert stage.rounds == 3


def test_the_large_transaction_is_repeated_in_the_whole_matrix_only() -> None:
    short, whole = (stages_of(plan(False, False, False))[0] for plan in (short_run, whole_matrix))

    assert short.cases == whole.cases
    assert (short.rounds, whole.rounds) == (1, 3)


@pytest.mark.parametrize(
    ("debezium", "kinds"), [(True, [Kind.RELAY, Kind.DEBEZIUM]), (False, [Kind.RELAY])], ids=["a peer", "none"]
)
def test_a_relay_that_captures_tables_does_so_first_beside_its_peer(debezium: bool, kinds: list[Kind]) -> None:
    stage, *others = stages_of(short_run(debezium, tables=True, sagas=False))

    assert list(stage.cases) == [Case(kind, STANDARD_TABLE, Queue.CLASSIC) for kind in kinds]
    assert not stage.latencies
    assert stage.rounds < others[-1].rounds
    assert others == stages_of(short_run(debezium, tables=False, sagas=False))


def test_the_whole_matrix_has_every_shape_once_and_the_huge_transaction_one_time() -> None:
    stages = stages_of(whole_matrix(debezium=False, tables=True, sagas=True))
    assert [shape for shape in stages[0].shapes if shape.capture is Capture.TABLE] == [STANDARD_TABLE]
    stages = stages[1:]
    shapes = [shape for stage in stages for shape in stage.shapes]

    assert len(shapes) == len(set(shapes))
    assert {(shape.payload_bytes, shape.per_transaction) for shape in shapes if not shape.one_transaction} == {
        (payload, per_transaction) for payload in (200, 2000) for per_transaction in (1, 10, 1000)
    }
    assert stages[-1].shapes == (HUGE_TRANSACTION,)
    assert stages[-1].rounds == 1
    assert not any(case.kind is Kind.DEBEZIUM for stage in stages for case in stage.cases)
