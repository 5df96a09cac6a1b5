"""The wheel, as its users have it: in an empty environment, far from the repository, with real servers."""

import json
import re
import zipfile
from collections.abc import Iterator
from importlib.metadata import PathDistribution
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from relay import __version__
from tests.conftest import VirtualHost
from tests.support.database import Database, Databases
from tests.support.mailbox import mailbox
from tests.support.package import ROOT, Environment, build_wheel, copy_source
from tests.support.process import Process
from tests.support.snippets import fenced

README = (ROOT / "README.md").read_text(encoding="utf-8")

pytestmark = pytest.mark.timeout(600)

EVERY_MODULE = """
import importlib, pkgutil, relay

def fail(name):
    raise ImportError(name)

for module in pkgutil.walk_packages(relay.__path__, "relay.", fail):
    if not module.name.startswith("relay.demo") and not module.name.endswith("__main__"):
        importlib.import_module(module.name)
        print(module.name)
"""

PLACE_AN_ORDER = """
import sys

print(place_order(sys.argv[1], Decimal("12.50")))
"""

# Those that need no servers.
TELL_EVERY_STORY = """
import inspect

for name, test in list(globals().items()):
    if name.startswith("test_") and not inspect.signature(test).parameters:
        test()
        print(name)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_source(tmp_path_factory.mktemp("source") / "saga-relay")


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(source, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheel and what it requires; no extras."""
    environment = Environment.create(tmp_path_factory.mktemp("installed"))
    environment.install(wheel)
    return environment


@pytest.fixture
def empty_database(databases: Databases) -> Iterator[Database]:
    """A database that has a table of the service's own, and nothing of the relay."""
    database = databases.create_empty()
    database.query("CREATE TABLE orders (id uuid PRIMARY KEY, total numeric NOT NULL)")
    database.query("GRANT ALL ON orders TO orders")
    yield database
    databases.drop(database)


def names_in(archive: Path) -> set[str]:
    with zipfile.ZipFile(archive) as opened:
        return set(opened.namelist())


def metadata(wheel: Path) -> Any:
    """What an index shows of it, and pip reads."""
    (info,) = (path for path in zipfile.Path(wheel).iterdir() if path.name.endswith(".dist-info"))
    return PathDistribution(info).metadata


def documented_extras() -> dict[str, list[str]]:
    """What README's table says that each extra brings."""
    table = README[README.index("\n| extra |") :].lstrip().split("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|", table, re.MULTILINE)
    return {extra: re.findall(r"`([^`]+)`", brings) for extra, brings in rows}


# What is in it


def test_it_holds_the_package_and_its_sql_and_nothing_else(source: Path, wheel: Path) -> None:
    code = {path.relative_to(source).as_posix() for path in (source / "relay").rglob("*") if path.is_file()}
    sql = {f"relay/sql/{path.name}" for path in (source / "sql" / "relay").iterdir()}
    assert "relay/py.typed" in code
    names = names_in(wheel)
    assert code | sql <= names
    about = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
    assert names - code - sql == {f"saga_relay-{__version__}.dist-info/{name}" for name in about}


def test_an_index_can_tell_what_it_is(wheel: Path) -> None:
    told = metadata(wheel)
    assert told["Name"] == "saga-relay"
    assert told["Requires-Python"] == ">=3.11", "what README says under Versions"
    assert (told["License-Expression"], told["License-File"]) == ("Apache-2.0", "LICENSE")


def test_its_page_on_an_index_is_the_readme_without_the_links_that_lead_nowhere_there(wheel: Path) -> None:
    told = metadata(wheel)
    page = told.get_payload() or told["Description"]
    assert told["Description-Content-Type"] == "text/markdown"
    assert "## Install" in page
    assert "docs/architecture.md" in page, "it says where to read on"
    links = re.findall(r"\]\(([^)]*)\)", page)
    assert [link for link in links if not link.startswith("https://")] == []


# With what it requires, and no more


def test_everything_that_works_without_the_demo_can_be_imported(source: Path, installed: Environment) -> None:
    done = installed.run("python", "-c", EVERY_MODULE)
    assert done.returncode == 0, done.stderr
    package = {path for path in (source / "relay").rglob("*.py") if "demo" not in path.relative_to(source).parts}
    assert len(done.stdout.split()) == len(package) - len(["relay", "relay.__main__"])


def test_sagas_can_be_told_as_stories(installed: Environment) -> None:
    done = installed.run_python("\n".join([*fenced("saga-testing.md", "python"), TELL_EVERY_STORY]))
    assert done.returncode == 0, done.stderr
    assert "test_credit_that_is_refused_undoes_the_order" in done.stdout


def test_relay_tells_its_verbs(installed: Environment) -> None:
    done = installed.run("relay", "--help")
    assert done.returncode == 0
    verbs = re.findall(r"^  (\w+)  ", done.stdout.partition("Commands:")[2], re.MULTILINE)
    assert {"run", "migrate", "lag", "topology", "parked", "republish", "saga", "dead", "demo"} <= set(verbs)


async def test_what_a_program_commits_is_published_by_the_relay(
    installed: Environment, empty_database: Database, vhost: VirtualHost
) -> None:
    dsn, service_dsn = empty_database.dsn, empty_database.role_dsn("orders")
    migrated = installed.run("relay", "migrate", "--service-role", "orders", RELAY_SOURCE__0__DSN=dsn)
    assert migrated.returncode == 0, migrated.stderr
    assert "0001_messages.sql" in migrated.stdout

    (place_order, *_) = (block for block in fenced("../README.md", "python") if "def place_order(" in block)
    placed = installed.run_python(place_order + PLACE_AN_ORDER, service_dsn)
    assert placed.returncode == 0, placed.stderr
    order = UUID(placed.stdout.strip())

    settings = {"RELAY_SOURCE__0__DSN": dsn, "RELAY_BROKER__URL": vhost.user_url("relay"), "RELAY_HTTP__LISTEN": ""}
    settings["RELAY_LOG_FORMAT"] = "json"
    async with (
        mailbox(vhost.url) as box,
        Process(["run"], settings, program=[installed.program("relay")], cwd=installed.work) as relay,
    ):
        (delivery,) = await box.until_count(1)
        await relay.until("streaming")
        assert await relay.end() == 0
    assert delivery.properties.type == "OrderCreated"
    assert json.loads(delivery.body) == {"order_id": str(order), "total": "12.50"}


def test_the_demo_says_that_it_needs_a_clone_before_it_starts_or_installs_anything(installed: Environment) -> None:
    done = installed.run("relay", "demo")
    assert done.returncode == 1
    assert done.stdout == ""
    complaint, hint = done.stderr.splitlines()
    assert complaint == "relay: the demo's services come with the repository, not with the package"
    assert "make demo" in hint


# Extras


def test_each_extra_brings_what_the_readme_says(wheel: Path, tmp_path: Path) -> None:
    told = metadata(wheel)
    extras = documented_extras()
    assert set(extras) == {"services", "demo"}
    assert set(told.get_all("Provides-Extra")) == set(extras) | {"bench", "dev"}, "these two are for contributors"
    environment = Environment.create(tmp_path)
    for extra, brings in extras.items():
        environment.install(wheel, extra)
        assert brings
        for name in brings:
            assert name in extras or environment.has(name), f"[{extra}] does not bring {name}"
