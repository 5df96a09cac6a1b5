"""The command line as a person meets it: help, mistakes, secrets, exit statuses."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from relay import __version__
from relay.cli import main
from relay.cli.main import cli
from relay.config import Settings, load
from relay.errors import BrokerAway, ExitCode, RelayError, SourceAway

DSN = "postgresql://127.0.0.1/orders"
AMQP_URL = "amqp://127.0.0.1:5672/"

VERBS = ("run", "lag", "migrate")


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def words(self) -> str:
        """Standard output without its line breaks."""
        return " ".join(self.out.split())


@pytest.fixture
def relay(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """`relay("lag", "--dsn", DSN)`, in an environment without settings."""
    for name in [name for name in os.environ if name.upper().startswith("RELAY_")]:
        monkeypatch.delenv(name)

    def call(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["relay", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return Ended(ended.value.code, *capsys.readouterr())

    return call


@dataclass
class Daemon:
    """Stands in for the daemon: notes its settings, ends as it is told."""

    settings: Settings | None = None
    log: tuple[str, str] | None = None
    ends: ExitCode | RelayError | type[KeyboardInterrupt] = ExitCode.OK

    def run(self, settings: Settings) -> ExitCode:
        self.settings = settings
        if isinstance(self.ends, ExitCode):
            return self.ends
        raise self.ends


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Daemon:
    daemon = Daemon()
    monkeypatch.setattr("relay.cli.run.run_relay", daemon.run)
    monkeypatch.setattr("relay.log.configure", lambda *style_and_level: setattr(daemon, "log", style_and_level))
    return daemon


class TestHelp:
    def test_the_version_is_that_of_the_package(self, relay: Callable[..., Ended]) -> None:
        assert relay("--version") == Ended(0, f"relay, version {__version__}\n", "")

    @pytest.mark.parametrize("flag", ["-h", "--help"])
    def test_every_verb_is_listed_with_the_exit_statuses(self, relay: Callable[..., Ended], flag: str) -> None:
        ended = relay(flag)
        assert ended.code == 0
        for verb in VERBS:
            assert re.search(rf"^  {verb} +[A-Z]", ended.out, re.MULTILINE)
        for code in ExitCode:
            assert re.search(rf"\b{int(code)} ", ended.words.partition("Exit status:")[2])

    @pytest.mark.parametrize("verb", VERBS)
    def test_every_option_of_a_verb_names_its_twin_in_the_environment(
        self, relay: Callable[..., Ended], verb: str
    ) -> None:
        ended = relay(verb, "-h")
        assert ended.code == 0
        options = re.split(r"^  (?=-)", ended.out.partition("Options:\n")[2], flags=re.MULTILINE)[1:]
        without = [option.split()[0] for option in options if "env var: RELAY_" not in " ".join(option.split())]
        assert len(options) > 1
        assert without == ["-h,"]

    @pytest.mark.parametrize("verb", VERBS)
    def test_every_option_of_a_verb_says_what_it_is_for(self, verb: str) -> None:
        command = cli.get_command(click.Context(cli), verb)
        assert command is not None
        options = [option for option in command.params if isinstance(option, click.Option)]
        assert [option.name for option in options if not option.help] == []

    def test_the_addresses_that_the_help_shows_would_be_accepted(self, relay: Callable[..., Ended]) -> None:
        words = relay("run", "-h").words
        dsn = re.search(r"like (postgresql://\S+)\.", words)
        amqp_url = re.search(r"like (amqp://\S+)\.", words)
        assert dsn
        assert amqp_url
        assert load(None, dsn=dsn[1], amqp_url=amqp_url[1]).source[0].name == "orders"


class TestStart:
    def test_a_relay_that_starts_does_not_wait_for_what_only_other_verbs_need(self) -> None:
        looks = (
            "import sys, click; from relay.cli.main import cli; cli.get_command(click.Context(cli), 'run');"
            "print(*sorted(sys.modules))"
        )
        done = subprocess.run([sys.executable, "-c", looks], capture_output=True, text=True, check=True)
        modules = done.stdout.split()
        assert "relay.bootstrap" in modules
        assert [name for name in modules if name.startswith(("relay.saga", "relay.messaging", "relay.demo"))] == []


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            (["nonsense"], "No such command 'nonsense'"),
            (["lagg"], "Did you mean 'lag'?"),
            (["run", "--colour"], "No such option"),
            (["run", "--log-format", "xml"], "'xml' is not one of"),
            (["lag", "--format", "xml"], "'xml' is not one of"),
            (["lag", "--dsn"], "requires an argument"),
            (["lag", "extra"], "unexpected extra argument"),
            (["migrate", "--dsn", DSN, "--sql", "/no/such/folder"], "does not exist"),
            (["run", "--dsn", DSN], "broker.url is missing"),
            (["run"], "source is missing"),
            (["lag"], "source is missing"),
            (["migrate"], "source is missing"),
            (["run", "--dsn", DSN, "--amqp", "http://host/"], "broker.url should look like"),
            (["lag", "--dsn", "what is this"], "source.0.dsn should look like"),
        ],
    )
    @pytest.mark.usefixtures("daemon")
    def test_a_mistake_exits_with_2_and_a_sentence(
        self, relay: Callable[..., Ended], arguments: list[str], complaint: str
    ) -> None:
        ended = relay(*arguments)
        assert ended.code == ExitCode.USAGE
        assert complaint in ended.err
        assert ended.out == ""

    @pytest.mark.parametrize("verb", VERBS)
    def test_a_file_that_is_not_there_exits_with_2(self, relay: Callable[..., Ended], verb: str) -> None:
        ended = relay(verb, "--config", "/no/such/relay.toml", "--dsn", DSN)
        assert ended.code == ExitCode.USAGE
        assert "/no/such/relay.toml: No such file or directory" in ended.err

    @pytest.mark.parametrize("verb", VERBS)
    def test_a_folder_is_no_file(self, relay: Callable[..., Ended], verb: str, tmp_path: Path) -> None:
        assert relay(verb, "--config", str(tmp_path)).code == ExitCode.USAGE

    def test_no_verb_at_all_shows_the_help(self, relay: Callable[..., Ended]) -> None:
        ended = relay()
        assert ended.code == ExitCode.USAGE
        assert "Usage: relay" in ended.err

    def test_every_wrong_setting_is_on_a_line_of_its_own_and_the_hint_below(self, relay: Callable[..., Ended]) -> None:
        lines = relay("run", "--amqp", "http://host/").err.splitlines()
        assert lines[0] == "relay: the settings are wrong or not complete:"
        assert sorted(line.split()[0] for line in lines[1:3]) == ["broker.url", "source"]
        assert lines[3].startswith("  Settings come from")

    @pytest.mark.parametrize("arguments", [["run", "--colour"], ["lag", "--dsn", "what is this"]])
    def test_a_mistake_shows_no_traceback_in_a_real_process(self, arguments: list[str]) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
        ended = subprocess.run(
            [sys.executable, "-m", "relay", *arguments], capture_output=True, text=True, timeout=60, env=environment
        )
        assert ended.returncode == 2
        assert "Traceback" not in ended.stderr
        assert ended.stderr.strip()


class TestRun:
    def test_it_runs_with_the_settings_of_its_flags(self, relay: Callable[..., Ended], daemon: Daemon) -> None:
        assert relay("run", "--dsn", DSN, "--amqp", AMQP_URL) == Ended(0, "", "")
        assert daemon.settings is not None
        assert daemon.settings.model_dump() == load(None, dsn=DSN, amqp_url=AMQP_URL).model_dump()
        assert daemon.log == ("console", "info")

    def test_it_runs_with_the_settings_of_its_environment(
        self, relay: Callable[..., Ended], daemon: Daemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        file = tmp_path / "relay.toml"
        file.write_text(f'[broker]\nurl = "{AMQP_URL}"\n[[source]]\nname = "shop"\ndsn = "{DSN}"')
        monkeypatch.setenv("RELAY_CONFIG", str(file))
        monkeypatch.setenv("RELAY_LOG_FORMAT", "json")
        monkeypatch.setenv("RELAY_LOG_LEVEL", "debug")
        assert relay("run").code == 0
        assert daemon.settings is not None
        assert daemon.settings.source[0].name == "shop"
        assert daemon.log == ("json", "debug")

    @pytest.mark.parametrize("code", list(ExitCode))
    def test_its_exit_status_is_that_of_the_daemon(
        self, relay: Callable[..., Ended], daemon: Daemon, code: ExitCode
    ) -> None:
        daemon.ends = code
        assert relay("run", "--dsn", DSN, "--amqp", AMQP_URL).code == code

    @pytest.mark.parametrize("error", [SourceAway("PostgreSQL is away", "Start it."), BrokerAway("no", "Start it.")])
    def test_an_error_is_a_sentence_a_hint_and_its_exit_status(
        self, relay: Callable[..., Ended], daemon: Daemon, error: RelayError
    ) -> None:
        daemon.ends = error
        ended = relay("run", "--dsn", DSN, "--amqp", AMQP_URL)
        assert ended == Ended(error.exit_code, "", f"relay: {error}\n  Start it.\n")

    def test_an_error_without_a_hint_is_a_sentence(self, relay: Callable[..., Ended], daemon: Daemon) -> None:
        daemon.ends = RelayError("something else")
        assert relay("run", "--dsn", DSN, "--amqp", AMQP_URL) == Ended(1, "", "relay: something else\n")

    def test_ctrl_c_is_no_traceback(self, relay: Callable[..., Ended], daemon: Daemon) -> None:
        daemon.ends = KeyboardInterrupt
        ended = relay("run", "--dsn", DSN, "--amqp", AMQP_URL)
        assert ended.code == ExitCode.FAILURE
        assert "Traceback" not in ended.err


class TestMigrate:
    @pytest.fixture
    def applied(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        names: list[str] = []
        monkeypatch.setattr("relay.cli.migrate.apply", lambda *_, **__: names)
        return names

    def test_it_names_what_it_applied(self, relay: Callable[..., Ended], applied: list[str]) -> None:
        applied += ["relay/0001_messages.sql", "relay/0002_sagas.sql"]
        assert relay("migrate", "--dsn", DSN).out == "orders: relay/0001_messages.sql, relay/0002_sagas.sql\n"

    @pytest.mark.usefixtures("applied")
    def test_it_says_when_there_is_nothing_to_do(self, relay: Callable[..., Ended]) -> None:
        assert relay("migrate", "--dsn", DSN) == Ended(0, "orders: up to date\n", "")

    @pytest.mark.usefixtures("applied")
    def test_it_needs_no_broker(self, relay: Callable[..., Ended]) -> None:
        assert relay("migrate", "--dsn", DSN).code == 0


@pytest.mark.usefixtures("daemon")
class TestSecrets:
    """hunter2 is the password: `ps` shows it on the command line, and nobody else should."""

    @pytest.mark.parametrize(
        ("flag", "value", "twin"),
        [
            ("--dsn", "postgresql://relay:hunter2@host/orders", "RELAY_SOURCE__0__DSN"),
            ("--dsn", "host=h dbname=orders password=hunter2", "RELAY_SOURCE__0__DSN"),
            ("--dsn", "postgresql://host/orders?password=hunter2", "RELAY_SOURCE__0__DSN"),
            ("--amqp", "amqp://relay:hunter2@host/", "RELAY_BROKER__URL"),
        ],
    )
    def test_a_password_on_the_command_line_is_warned_about_and_not_shown(
        self, relay: Callable[..., Ended], flag: str, value: str, twin: str
    ) -> None:
        given = {"--dsn": DSN, "--amqp": AMQP_URL} | {flag: value}
        ended = relay("run", *(word for pair in given.items() for word in pair))
        assert ended.code == 0
        assert ended.err.count("warning") == 1
        assert f"the password in {flag}" in ended.err
        assert twin in ended.err
        assert "hunter2" not in ended.err + ended.out

    def test_two_passwords_are_two_warnings(self, relay: Callable[..., Ended]) -> None:
        ended = relay("run", "--dsn", "postgresql://u:hunter2@h/d", "--amqp", "amqp://u:hunter2@h/")
        assert ended.err.count("warning") == 2

    @pytest.mark.parametrize("amqp_url", [AMQP_URL, "amqp://host:5672/v%40host", "amqps://host:5671/"])
    def test_an_address_without_a_password_is_not_warned_about(
        self, relay: Callable[..., Ended], amqp_url: str
    ) -> None:
        assert relay("run", "--dsn", "postgresql://relay@host:5432/orders", "--amqp", amqp_url) == Ended(0, "", "")

    def test_a_password_in_the_environment_is_not_warned_about(
        self, relay: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RELAY_SOURCE__0__DSN", "postgresql://relay:hunter2@host/orders")
        monkeypatch.setenv("RELAY_BROKER__URL", "amqp://relay:hunter2@host/")
        assert relay("run") == Ended(0, "", "")

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--dsn", "postgresql://relay:hunter2%zz@host/orders", "--amqp", AMQP_URL],
            ["--dsn", "host=h password=hunter2 colour=red", "--amqp", AMQP_URL],
            ["--dsn", DSN, "--amqp", "http://relay:hunter2@host/"],
            ["--dsn", DSN, "--amqp", "amqp://relay:hunter2@host:port/"],
        ],
    )
    def test_a_complaint_about_an_address_does_not_show_it(
        self, relay: Callable[..., Ended], arguments: list[str]
    ) -> None:
        ended = relay("run", *arguments)
        assert ended.code == ExitCode.USAGE
        assert "hunter2" not in ended.err + ended.out
