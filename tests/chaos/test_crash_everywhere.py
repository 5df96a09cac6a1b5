"""The crash-everywhere runner: what is right survives a crash at each boundary, what is not is caught, by a seed."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from relay.saga.testing import CrashFailure, crash_everywhere
from tests.support import crash_worlds
from tests.support.database import Database
from tests.support.snippets import fenced

SEED = 7

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def dsns(make_database: Callable[..., Database], monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, str]]:
    """Makes databases of its own for each world."""

    def make() -> dict[str, str]:
        databases = {name: make_database() for name in crash_worlds.TABLES}
        for name, tables in crash_worlds.TABLES.items():
            databases[name].query(tables)
            databases[name].query(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {name}")
        monkeypatch.setenv(crash_worlds.LEAK_DSN, databases["customers"].role_dsn("customers"))
        return {name: database.role_dsn(name) for name, database in databases.items()}

    return make


def world(name: str) -> str:
    return f"{crash_worlds.__name__}:{name}"


def test_a_correct_saga_survives_a_crash_at_every_boundary(dsns: Callable[[], dict[str, str]]) -> None:
    report = crash_everywhere(world("right"), dsns=dsns(), seed=SEED)

    # Two orders: to begin; for each, two commands and replies, and one to sell or to undo; three boundaries a message.
    assert report.boundaries > 2 * (2 + 3 * 12)
    assert report.runs == report.boundaries + 2, "the last run of each half needs no crash"
    assert report.crashes > report.boundaries, "some processes crash again"


@pytest.mark.parametrize(
    ("broken", "kind", "complaint"),
    [
        ("leaky", "calm", "reserved, for orders of"),
        ("forgetful", "calm", "held and"),
        ("trusting", "disorder", "out of date"),
    ],
)
def test_a_broken_one_is_caught_and_its_seed_plays_it_again(
    dsns: Callable[[], dict[str, str]], broken: str, kind: str, complaint: str
) -> None:
    with pytest.raises(CrashFailure, match=complaint) as caught:
        crash_everywhere(world(broken), dsns=dsns(), seed=f"{SEED}/{kind}")
    seed = caught.value.seed
    assert seed.startswith(f"{SEED}/{kind}/")
    assert f"seed='{seed}'" in str(caught.value)

    with pytest.raises(CrashFailure, match=complaint) as again:
        crash_everywhere(world(broken), dsns=dsns(), seed=seed)
    assert again.value.seed == seed
    assert "CRASH " in str(again.value)


def test_a_seed_also_decides_which_of_two_sagas_is_tried_again_first(dsns: Callable[[], dict[str, str]]) -> None:
    """The waits between attempts are of chance, and nobody has to give the orchestrator a seed for that."""

    def order(seed: str) -> str:
        with pytest.raises(CrashFailure) as caught:
            crash_everywhere(world("restless"), dsns=dsns(), seed=seed)
        (told,) = re.findall(r"they knocked in the order ([abc]{15})\b", str(caught.value))
        return str(told)

    assert order("7/calm/9") == order("7/calm/9")
    assert order("7/calm/9") != order("8/calm/9")


def test_the_world_of_the_documentation_holds(
    make_database: Callable[..., Database], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "page_on_testing.py").write_text("\n".join(fenced("saga-testing.md", "python")), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    tables = {
        "orders": "CREATE TABLE orders (id uuid PRIMARY KEY, amount numeric, state text)",
        "customers": "CREATE TABLE credit (reserved numeric); INSERT INTO credit VALUES (0)",
    }
    databases = {name: make_database() for name in tables}
    for name, database in databases.items():
        database.query(f"{tables[name]}; GRANT ALL ON ALL TABLES IN SCHEMA public TO {name}")

    dsns = {name: database.role_dsn(name) for name, database in databases.items()}
    assert crash_everywhere("page_on_testing:world", dsns=dsns, seed=SEED).boundaries >= 2 * (2 + 4 * 3)


def test_a_message_to_nobody_is_told(dsns: Callable[[], dict[str, str]]) -> None:
    with pytest.raises(CrashFailure, match="the world has no service inventory"):
        crash_everywhere(world("stuck"), dsns=dsns(), seed=SEED)


def test_a_world_that_cannot_be_made_is_told(dsns: Callable[[], dict[str, str]]) -> None:
    with pytest.raises(RuntimeError, match="could not be played"):
        crash_everywhere("tests.support.crash_worlds:nowhere", dsns=dsns())


@pytest.mark.parametrize("seed", ["7/storm", "7/storm/3", "7/calm/x"])
def test_a_seed_that_is_none_is_refused(seed: str) -> None:
    with pytest.raises(ValueError, match="neither a seed like 7"):
        crash_everywhere(world("right"), dsns={}, seed=seed)
