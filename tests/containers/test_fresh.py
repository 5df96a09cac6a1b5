"""README's first lines, on a machine that has nothing but what README asks for."""

import re
from collections.abc import Iterator
from typing import Final

import pytest

from tests.containers.conftest import ROOT
from tests.support.machine import ROOT_LOGIN, Login, Machine

README = (ROOT / "README.md").read_text(encoding="utf-8")

APT_S: Final = 900.0
DEMO_S: Final = 900.0
"""With the packages that it installs first, on a slow line."""
TESTS_S: Final = 3600.0

INSTALL: Final = "DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -qq --no-install-recommends"
"""At runlevel 1 Debian starts no service that it installs."""

TRACES: Final = """\
for process in /proc/[0-9]*; do
    test $process = /proc/1 || test $process = /proc/$$ || tr '\\0' ' ' < $process/cmdline
done 2>&-
ls -d /tmp/relay-* /var/tmp/relay-* 2>&-
true
"""
"""Tells what servers may leave behind: processes that are alive (a dead one has no command line), and directories."""

pytestmark = pytest.mark.timeout(TESTS_S + DEMO_S)


@pytest.fixture(scope="module")
def machine(engine: None) -> Iterator[Machine]:
    """A bare Debian, with what README says that is needed, and no more."""
    (needed,) = re.findall(r"`apt-get install (git make python3 python3-venv)`", README)
    with Machine() as machine:
        machine.run(f"apt-get update -qq && {INSTALL} {needed} >/dev/null", within_s=APT_S)
        yield machine


@pytest.fixture(scope="module")
def ada(machine: Machine) -> Login:
    """An ordinary user on it, with a clone."""
    login = machine.add_user("ada")
    machine.copy_repository(login)
    return login


def test_root_runs_the_demo_which_installs_rabbitmq_and_leaves_no_server(machine: Machine) -> None:
    machine.copy_repository(ROOT_LOGIN)
    said = machine.make("demo", ROOT_LOGIN, within_s=DEMO_S)
    assert "Installing the Debian package rabbitmq-server" in said
    assert "ok      no order is left PENDING" in said
    assert machine.run(TRACES) == ""


def test_an_ordinary_user_runs_the_demo_where_rabbitmq_is_installed(machine: Machine, ada: Login) -> None:
    machine.run(f"command -v rabbitmq-server || {INSTALL} rabbitmq-server >/dev/null", within_s=APT_S)
    said = machine.make("demo", ada, within_s=DEMO_S)
    assert "Installing" not in said
    assert "ok      no order is left PENDING" in said
    assert machine.run(TRACES) == ""


def test_an_ordinary_user_runs_every_test(machine: Machine, ada: Login) -> None:
    said = machine.make("test", ada, within_s=TESTS_S, CI="true")
    assert re.search(r"\d+ passed", said)
    assert machine.run(TRACES) == ""
