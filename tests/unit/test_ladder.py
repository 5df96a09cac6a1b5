"""Which servers the tests use, and which tests use them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.servers import wanted_kind

ROOT = Path(__file__).parents[2]

SOME_TESTS = ("tests/integration/test_inbox.py", "tests/integration/test_servers.py", "tests/unit/test_lsn.py")
"""With servers of the session, with servers of their own, with none."""


@pytest.fixture(autouse=True)
def _no_wishes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("RELAY_TEST_")]:
        monkeypatch.delenv(name)


def collected(**environment: str) -> list[str]:
    """The tests of SOME_TESTS that would run."""
    asked = subprocess.run(
        (sys.executable, "-m", "pytest", "--collect-only", "--quiet", "-p", "no:cacheprovider", *SOME_TESTS),
        cwd=ROOT,
        env={**os.environ, "PYTEST_ADDOPTS": "", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return [line for line in asked.stdout.splitlines() if "::" in line]


def test_elsewhere_everything_runs_but_what_starts_containers() -> None:
    tests = collected()
    assert {test.partition("::")[0] for test in tests} == set(SOME_TESTS)
    assert not [test for test in tests if "container" in test]


def test_with_containers_runs_what_uses_the_servers_of_the_session_or_starts_containers() -> None:
    tests = collected(RELAY_TEST_SERVERS="containers")
    assert {test.partition("::")[0] for test in tests} == set(SOME_TESTS[:2])
    assert all("container" in test for test in tests if "test_servers" in test)


def test_nothing_is_wanted_unless_it_is_said() -> None:
    assert wanted_kind() is None


def test_an_unknown_kind_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_TEST_SERVERS", "podman")
    with pytest.raises(pytest.UsageError, match="'podman': it may be private or containers"):
        wanted_kind()


def test_a_kind_and_a_server_that_is_there_exclude_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_TEST_SERVERS", "private")
    monkeypatch.setenv("RELAY_TEST_PG_DSN", "postgresql://somewhere")
    with pytest.raises(pytest.UsageError, match="RELAY_TEST_PG_DSN names one"):
        wanted_kind()
