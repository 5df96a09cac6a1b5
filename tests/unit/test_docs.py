"""The documentation says what the software does: options, settings, exit codes, log actions, files, links, examples."""

import ast
import importlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import get_args

import click
import pytest

from relay.broker.topology import EXCHANGES
from relay.capture.outbox import COLUMNS
from relay.cli.main import VERBS, cli
from relay.config import BrokerSettings, CaptureSettings, HttpSettings, Settings, SourceSettings, TopologySettings, load
from relay.demo.servers import binaries
from relay.errors import ExitCode
from relay.messaging import dead
from relay.saga import history
from relay.saga.record import Status
from relay.wal.lag import Lag

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])

SETTINGS_TWINS = {"--dsn": "RELAY_SOURCE__0__DSN", "--amqp": "RELAY_BROKER__URL"}
"""Flags that are settings: their twins are read with the other settings, not by click."""

CONVENTIONS = {"-h", "--help", "--version"}
"""Options that every click program has."""

LOGGING = ("relay/daemon", "relay/wal", "relay/messaging", "relay/saga")
"""What writes log lines, of the relay and of services."""

CREATED_BY_THE_SERVER = {"seq", "txid"}
"""Columns of the outbox that no message is made of."""


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def fenced(text: str, language: str) -> list[str]:
    """The blocks of code in a language."""
    return re.findall(rf"^ *```{language}\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)


def section(text: str, title: str) -> str:
    """What stands below a heading of the second level."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"there is no section {title}"
    return found[1]


def table(text: str, heading: str) -> list[list[str]]:
    """The rows of the tables whose first heading is this one. A `|` of a cell is written `\\|`."""
    rows: list[list[str]] = []
    inside = False
    for line in text.splitlines():
        if not line.lstrip().startswith("|"):
            inside = False
            continue
        cells = [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
        if cells[0] == heading:
            inside = True
        elif inside and not set(cells[0]) <= set("-: "):
            rows.append(cells)
    return rows


def code(cell: str) -> list[str]:
    """What is set in code in a cell."""
    return re.findall(r"`([^`]+)`", cell)


def options(verb: click.Command) -> dict[str, str | None]:
    """A verb's options and their twins; those of a group are the options of all its verbs."""
    if isinstance(verb, click.Group):
        return {flag: name for command in verb.commands.values() for flag, name in options(command).items()}
    return {
        flag: SETTINGS_TWINS.get(flag, str(option.envvar) if option.envvar else None)
        for option in verb.params
        if isinstance(option, click.Option)
        for flag in option.opts
    }


def settings() -> Iterator[str]:
    """Every setting of the tree, sources numbered N."""
    assert set(Settings.model_fields) == {"broker", "http", "topology", "source"}
    yield from (f"broker.{name}" for name in BrokerSettings.model_fields)
    yield from (f"http.{name}" for name in HttpSettings.model_fields)
    yield from (f"topology.{name}" for name in TopologySettings.model_fields)
    yield from (f"source.N.{name}" for name in SourceSettings.model_fields)


def capture_keys() -> set[str]:
    """Whatever a capture of any kind may have."""
    return {name for kind in get_args(get_args(CaptureSettings)[0]) for name in kind.model_fields}


def twin(setting: str, number: int = 0) -> str:
    return "RELAY_" + setting.replace(".", "__").replace("N", str(number)).upper()


def sources(*packages: str) -> Iterator[ast.Module]:
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield ast.parse(path.read_text(encoding="utf-8"))


def actions(module: ast.Module) -> Iterator[str]:
    """The actions of log lines: what a dict has under "action", and what a SourceLog, called `_log`, is given."""
    for node in ast.walk(module):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "action":
                    yield from _text(value)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _is_source_log(node.func.value):
            yield from _text(node.args[0])


def _is_source_log(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "_log"


def _text(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value


def names_of(kind: type) -> list[str]:
    """The fields of a dataclass: the keys that it has as JSON."""
    return [field.name for field in fields(kind)]


def command(verb: str) -> click.Command:
    found = cli.get_command(click.Context(cli), verb)
    assert found is not None
    return found


def constants(module: ast.Module) -> set[str]:
    return {node.value for node in ast.walk(module) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


class TestCommandLine:
    @pytest.mark.parametrize("verb", VERBS)
    def test_every_option_of_a_verb_and_its_twin_are_told_and_no_others(self, verb: str) -> None:
        told = {
            code(option)[0].split()[0]: next(iter(code(environment)), None)
            for option, environment, *_ in table(section(page("docs/cli.md"), f"relay {verb}"), "option")
        }
        assert told == options(command(verb))

    def test_the_choices_of_an_option_are_told(self) -> None:
        cells = {row[0] for row in table(page("docs/cli.md"), "option")}
        for verb in VERBS:
            for option in command(verb).params:
                if isinstance(option.type, click.Choice):
                    assert f"`{option.opts[0]} {'|'.join(option.type.choices)}`" in cells

    def test_no_page_knows_an_option_of_the_relay_that_does_not_exist(self) -> None:
        existing = {flag for verb in VERBS for flag in options(command(verb))} | CONVENTIONS
        for path in PAGES:
            commands = re.findall(
                r"\brelay (?:run|lag|parked|saga|dead|republish|topology|migrate|demo)\b[^`\n#;&]*",
                path.read_text(encoding="utf-8"),
            )
            used = {flag for command in commands for flag in re.findall(r"(?<!\S)--?[a-z][a-z-]*", command)}
            assert used <= existing, path.name

    def test_no_page_knows_a_variable_that_does_not_exist(self) -> None:
        twins = {name for verb in VERBS for name in options(command(verb)).values()}
        known = twins | {binaries.VARIABLE} | {twin(setting, number) for setting in settings() for number in (0, 1)}
        known |= {f"RELAY_SOURCE__0__CAPTURE__{number}__{key.upper()}" for key in capture_keys() for number in (0, 1)}
        tests = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("tests/**/*.py"))
        for path in PAGES:
            for name in set(re.findall(r"(?<![\w$])RELAY_[A-Z0-9_]+", path.read_text(encoding="utf-8"))):
                assert name in known or (name.startswith("RELAY_TEST_") and name in tests), f"{path.name}: {name}"

    def test_every_verb_of_the_pages_exists(self) -> None:
        for path in PAGES:
            text = path.read_text(encoding="utf-8")
            commands = [*fenced(text, "sh"), *re.findall(r"`(relay [^`]+)`", text)]
            used = {verb for command in commands for verb in re.findall(r"^relay (\w+)", command, re.MULTILINE)}
            assert used <= set(VERBS), path.name

    def test_every_exit_code_is_told(self) -> None:
        told = {(int(number), name) for number, name, _ in table(page("docs/cli.md"), "code")}
        assert told == {(int(status), status.name) for status in ExitCode}

    def test_the_keys_of_a_lag_are_told(self) -> None:
        lag = section(page("docs/cli.md"), "relay lag")
        keys = [field.name for field in fields(Lag)]
        assert [key for row in table(lag, "key") for key in code(row[0])] == keys
        assert [list(source) for source in json.loads(fenced(lag, "json")[0])] == [keys]

    def test_the_keys_of_a_saga_are_told(self) -> None:
        saga = section(page("docs/cli.md"), "relay saga")
        listed = [key for row in table(saga, "key") for key in code(row[0])]
        assert listed == ["source", *names_of(history.Entry)]
        shown = {code(row[0])[0]: code(row[2]) for row in table(saga, "key of `show`")}
        assert [*names_of(history.Entry), *shown] == names_of(history.Sheet)
        for key, kind in (
            ("steps", history.StepLine),
            ("timers", history.Timer),
            ("locks", history.Lock),
            ("timeline", history.Event),
        ):
            assert [name for name in shown[key] if name in names_of(kind)] == names_of(kind), key

    def test_every_status_of_a_saga_is_told(self) -> None:
        (row,) = (row for row in table(section(page("docs/cli.md"), "relay saga"), "option") if "--status" in row[0])
        assert code(row[2])[: len(Status)] == [status.value for status in Status]

    def test_the_keys_of_a_dead_message_are_told(self) -> None:
        text = section(page("docs/cli.md"), "relay dead")
        listed = [key for row in table(text, "key") for key in code(row[0])]
        assert listed == ["source", *names_of(dead.Entry)]
        added = set(names_of(dead.Sheet)) - set(listed)
        assert added <= set(code(text.partition("### JSON")[2]))

    def test_the_keys_of_a_demo_that_is_kept_are_told(self) -> None:
        demo = section(page("docs/cli.md"), "relay demo")
        (example,) = fenced(demo, "json")
        assert {key for row in table(demo, "key") for key in code(row[0])} == set(json.loads(example))


class TestLog:
    def told(self) -> set[str]:
        return {action for row in table(page("docs/cli.md"), "action") for action in code(row[0])}

    def test_every_action_of_the_relay_is_told(self) -> None:
        emitted = {action for module in sources(*LOGGING) for action in actions(module)}
        assert emitted
        assert emitted <= self.told()

    def test_every_action_that_is_told_exists(self) -> None:
        existing = set().union(*map(constants, sources(*LOGGING, "services")))
        assert self.told() <= existing


class TestConfiguration:
    def test_every_setting_is_told_with_its_twin_and_no_others(self) -> None:
        told = {
            code(setting)[0]: code(environment)[0]
            for setting, _, environment, *_ in table(page("docs/configuration.md"), "setting")
        }
        assert told == {setting: twin(setting) for setting in settings()}

    def test_every_key_of_a_capture_is_told_and_no_others(self) -> None:
        told = {code(row[0])[0] for row in table(page("docs/configuration.md"), "key of a capture")}
        assert told == capture_keys()

    @pytest.mark.parametrize("name", ["docs/configuration.md", "README.md"])
    def test_the_files_shown_are_loaded(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for variable in [variable for variable in os.environ if variable.startswith("RELAY_")]:
            monkeypatch.delenv(variable)
        for number, text in enumerate(fenced(page(name), "toml")):
            file = tmp_path / f"{number}.toml"
            file.write_text(text, encoding="utf-8")
            shown = load(file, needs_broker=True)
            assert [source.name for source in shown.source] == ["orders", "customers"]
            assert [source.slot for source in shown.source] == ["relay_orders", "relay_customers"]
            assert [source.publication for source in shown.source] == ["relay_orders", "relay_customers"]

    def test_every_variable_of_the_services_exists(self) -> None:
        from services.settings import ServiceSettings

        told = [name for row in table(page("docs/configuration.md"), "variable") for name in code(row[0])]
        names = [name.upper() for name in ServiceSettings.model_fields]
        assert sorted(told) == sorted(
            f"{service}_{name}" for service in ("ORDERS", "CUSTOMERS", "INVENTORY") for name in names
        )


class TestDocker:
    def test_every_container_of_the_stack_is_told(self) -> None:
        services = page("docker-compose.yml").partition("\nservices:\n")[2].partition("\nconfigs:\n")[0]
        told = [code(row[0])[0] for row in table(page("docs/docker.md"), "container")]
        assert sorted(told) == sorted(re.findall(r"^  (\w+):$", services, re.MULTILINE))

    def test_every_variable_of_the_stack_is_told_with_its_default(self) -> None:
        told = [
            (name, default)
            for row in table(page("docs/docker.md"), "variable")
            for name, default in zip(code(row[0]), code(row[1]), strict=True)
        ]
        assert sorted(told) == sorted(re.findall(r"\$\{(\w+):-([^}]+)\}", page("docker-compose.yml")))


class TestMessages:
    def test_every_column_of_the_outbox_is_told(self) -> None:
        written = fenced(page("docs/messages.md"), "sql")[0]
        assert "relay.outbox" in written
        told = [column for row in table(page("docs/messages.md"), "column") for column in code(row[0])]
        assert sorted(told) == sorted({*COLUMNS, *CREATED_BY_THE_SERVER})

    def test_every_exchange_is_told(self) -> None:
        told = {code(row[1])[0]: row[2] for row in table(page("docs/messages.md"), "kind")}
        assert told == {name: kind for name, kind in EXCHANGES.items() if name != "relay.dead"}
        assert "`relay.dead` (direct)" in page("docs/messages.md")


class TestExamples:
    @pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
    def test_python_is_python_and_what_it_imports_exists(self, path: Path) -> None:
        for text in fenced(path.read_text(encoding="utf-8"), "python"):
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ImportFrom) and node.module:
                    module = importlib.import_module(node.module)
                    assert all(hasattr(module, name.name) for name in node.names), node.module

    @pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
    def test_json_is_json(self, path: Path) -> None:
        for text in fenced(path.read_text(encoding="utf-8"), "json"):
            json.loads(text)

    def test_the_saga_of_the_readme_is_that_of_the_order_service(self) -> None:
        (shown,) = (text for text in fenced(page("README.md"), "python") if "Orchestrator" in text)
        real = (ROOT / "services/orders/saga.py").read_text(encoding="utf-8")
        assert statements(shown) == statements(real)


def statements(text: str) -> list[str]:
    """A module without its docstrings."""
    module = ast.parse(text)
    for node in ast.walk(module):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [
                line for line in node.body if not (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))
            ]
    return [ast.dump(line) for line in module.body]


class TestReferences:
    @pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
    def test_links_lead_somewhere(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if target.startswith(("http://", "https://")):
                continue
            name, _, anchor = target.partition("#")
            file = (path.parent / name).resolve() if name else path
            assert file.exists(), target
            if anchor:
                assert anchor in anchors(file.read_text(encoding="utf-8")), target

    def test_every_page_that_the_relay_names_exists(self) -> None:
        named = {
            name
            for path in ROOT.glob("relay/**/*.py")
            for name in re.findall(r"docs/[\w-]+\.md", path.read_text(encoding="utf-8"))
        }
        assert named
        assert all((ROOT / name).exists() for name in named)

    @pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
    def test_every_target_of_make_exists(self, path: Path) -> None:
        existing = set(re.findall(r"^([a-z-]+):", page("Makefile"), re.MULTILINE))
        text = path.read_text(encoding="utf-8")
        lines = [line for block in fenced(text, "sh") for line in block.splitlines()] + re.findall(r"`([^`\n]+)`", text)
        assert {target for line in lines for target in re.findall(r"^make ([a-z-]+)", line)} <= existing

    def test_every_target_of_make_is_told(self) -> None:
        targets = set(re.findall(r"^([a-z-]+):.*##", page("Makefile"), re.MULTILINE)) - {"help"}
        assert {target for target in targets if f"make {target}" not in page("CONTRIBUTING.md")} == set()


def anchors(text: str) -> set[str]:
    """The anchors that headings get: lower case, no punctuation, hyphens for spaces."""
    without_code = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", without_code, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
