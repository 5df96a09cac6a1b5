"""Settings: which one counts, what is derived, and what is said about those that are wrong. Never a secret."""

import os
import traceback
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from relay.config import Settings, load
from relay.errors import ConfigError, ExitCode

DSN = "postgresql://relay:hunter2@127.0.0.1/orders"
AMQP_URL = "amqp://relay:hunter2@127.0.0.1:5672/"

TWO_SOURCES = """
[broker]
url = "amqp://file/"

[[source]]
name = "first"
dsn = "postgresql://file/one"

[[source]]
name = "second"
dsn = "postgresql://file/two"
slot = "second_slot"
"""


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("RELAY_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def two_sources(tmp_path: Path) -> Path:
    return written(tmp_path, TWO_SOURCES)


def written(folder: Path, toml: str) -> Path:
    file = folder / "relay.toml"
    file.write_text(toml)
    return file


def dsns(settings: Settings) -> list[str]:
    return [source.dsn.get_secret_value() for source in settings.source]


def broker_url(settings: Settings) -> str | None:
    return settings.broker.url.get_secret_value() if settings.broker else None


def refusal(file: Path | None = None, **flags: Any) -> ConfigError:
    with pytest.raises(ConfigError) as refused:
        load(file, **flags)
    assert refused.value.exit_code is ExitCode.USAGE
    return refused.value


def complaints(error: ConfigError) -> list[str]:
    return [line.strip() for line in str(error).splitlines()[1:]]


class TestWhichOneCounts:
    """A flag beats the environment, which beats the file, which beats the default."""

    def test_the_file_beats_the_default(self, two_sources: Path) -> None:
        settings = load(two_sources)
        assert dsns(settings) == ["postgresql://file/one", "postgresql://file/two"]
        assert [source.slot for source in settings.source] == ["relay_first", "second_slot"]
        assert broker_url(settings) == "amqp://file/"

    def test_the_environment_beats_the_file(self, two_sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RELAY_SOURCE__0__DSN", "postgresql://environment/one")
        monkeypatch.setenv("RELAY_BROKER__URL", "amqp://environment/")
        settings = load(two_sources)
        assert dsns(settings) == ["postgresql://environment/one", "postgresql://file/two"]
        assert broker_url(settings) == "amqp://environment/"

    def test_a_flag_beats_the_environment(self, two_sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RELAY_SOURCE__0__DSN", "postgresql://environment/one")
        monkeypatch.setenv("RELAY_BROKER__URL", "amqp://environment/")
        settings = load(two_sources, dsn="postgresql://flag/one", amqp_url="amqp://flag/")
        assert dsns(settings) == ["postgresql://flag/one", "postgresql://file/two"]
        assert broker_url(settings) == "amqp://flag/"

    def test_one_source_may_have_a_setting_from_each(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = written(tmp_path, '[[source]]\nname = "shop"\ndsn = "postgresql://file/a"\nslot = "from_file"')
        monkeypatch.setenv("RELAY_SOURCE__0__PUBLICATION", "from_environment")
        (source,) = load(file, dsn="postgresql://flag/a").source
        assert source.dsn.get_secret_value() == "postgresql://flag/a"
        assert (source.name, source.slot, source.publication) == ("shop", "from_file", "from_environment")

    def test_a_twin_with_an_index_overlays_that_source_of_the_file(
        self, two_sources: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RELAY_SOURCE__1__DSN", "postgresql://environment/two")
        first, second = load(two_sources).source
        assert first.dsn.get_secret_value() == "postgresql://file/one"
        assert second.dsn.get_secret_value() == "postgresql://environment/two"
        assert (second.name, second.slot) == ("second", "second_slot")

    def test_a_twin_with_a_new_index_is_a_source_more(self, two_sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RELAY_SOURCE__2__DSN", "postgresql://environment/three")
        assert [source.name for source in load(two_sources).source] == ["first", "second", "three"]

    def test_no_file_is_needed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RELAY_SOURCE__0__DSN", DSN)
        monkeypatch.setenv("RELAY_BROKER__URL", AMQP_URL)
        settings = load(None, needs_broker=True)
        assert (dsns(settings), broker_url(settings)) == ([DSN], AMQP_URL)

    def test_more_than_ten_sources_stay_in_order(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for index in range(12):
            monkeypatch.setenv(f"RELAY_SOURCE__{index}__DSN", f"postgresql://host/db{index}")
        assert [source.name for source in load(None).source] == [f"db{index}" for index in range(12)]

    def test_the_environment_of_other_programs_is_not_ours(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BROKER__URL", "nonsense")
        monkeypatch.setenv("SOURCE", "nonsense")
        monkeypatch.setenv("RELAY_LOG_FORMAT", "json")
        assert load(None, dsn=DSN).broker is None


class TestWhatIsDerived:
    @pytest.mark.parametrize(
        ("dsn", "name"),
        [
            ("postgresql://host/orders", "orders"),
            ("host=localhost dbname=orders", "orders"),
            ("postgresql://host/Order-Service", "order_service"),
            ("postgresql://ada@host", "ada"),
            ("host=localhost", "postgres"),
        ],
    )
    def test_a_source_is_named_after_its_database(self, dsn: str, name: str) -> None:
        (source,) = load(None, dsn=dsn).source
        assert (source.name, source.slot, source.publication) == (name, f"relay_{name}", f"relay_{name}")

    def test_slot_and_publication_are_named_after_the_source(self, tmp_path: Path) -> None:
        file = written(tmp_path, f'[[source]]\nname = "shop"\ndsn = "{DSN}"')
        (source,) = load(file).source
        assert (source.slot, source.publication) == ("relay_shop", "relay_shop")

    def test_what_is_given_is_not_derived(self, tmp_path: Path) -> None:
        file = written(tmp_path, f'[[source]]\nname = "a"\ndsn = "{DSN}"\nslot = "s"\npublication = "Pub lic"')
        (source,) = load(file).source
        assert (source.slot, source.publication) == ("s", "Pub lic")

    def test_the_tree_is_frozen(self) -> None:
        settings = load(None, dsn=DSN)
        with pytest.raises(ValidationError):
            settings.source[0].name = "other"  # type: ignore[misc]


class TestWhatIsWrong:
    def test_all_mistakes_are_reported_at_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = written(
            tmp_path,
            """
            colour = "red"
            [broker]
            url = "http://host"
            [[source]]
            name = "Not A Name"
            dsn = "what is this"
            [[source]]
            name = "second"
            slot = "no-dashes"
            """,
        )
        monkeypatch.setenv("RELAY_SOURCE__1__PUBLICATION", "")
        assert sorted(complaints(refusal(file))) == [
            "broker.url should look like amqp://user:password@host:5672/vhost",
            "colour is no setting",
            "source.0.dsn should look like postgresql://user:password@host:5432/database",
            "source.0.name should have 1 to 50 lower-case letters, digits and underscores",
            "source.1.dsn is missing",
            "source.1.publication should have 1 to 63 bytes",
            "source.1.slot should have 1 to 63 lower-case letters, digits and underscores",
        ]

    def test_nothing_at_all_is_two_mistakes(self) -> None:
        assert complaints(refusal(needs_broker=True)) == ["source is missing", "broker.url is missing"]

    def test_a_verb_without_a_broker_does_not_ask_for_one(self) -> None:
        assert complaints(refusal()) == ["source is missing"]
        assert load(None, dsn=DSN).broker is None

    def test_a_broker_that_is_missing_is_reported_once(self) -> None:
        assert complaints(refusal(dsn=DSN, needs_broker=True)) == ["broker.url is missing"]

    def test_a_broker_without_a_url_is_reported_once(self, tmp_path: Path) -> None:
        file = written(tmp_path, "[broker]")
        assert complaints(refusal(file, dsn=DSN, needs_broker=True)) == ["broker.url is missing"]

    def test_the_hint_says_where_settings_come_from(self, two_sources: Path) -> None:
        assert "--config" in refusal().hint
        two_sources.write_text("[broker]")
        assert str(two_sources) in refusal(two_sources).hint
        assert "RELAY_SOURCE__0__DSN" in refusal(two_sources).hint

    @pytest.mark.parametrize(
        "url",
        [
            "http://host/",
            "host",
            "",
            "amqp://host:port/",
            "amqp://host:99999/",
            "amqp://[::1/",
            "amqp://host/?heartbeat=often",
            "amqp://host/?colour=red",
            "amqp://host/?ssl_options=(",
            "amqps://host/?ssl_options={'ca_certs':'/no/such/file'}",
        ],
    )
    def test_what_is_no_url_of_a_broker_is_refused(self, url: str) -> None:
        (complaint,) = complaints(refusal(dsn=DSN, amqp_url=url))
        assert complaint.startswith("broker.url ")

    @pytest.mark.parametrize(
        "dsn",
        [
            "host=/run/postgresql dbname=orders",
            "host=a,b port=5432,5433 dbname=orders",
            "host=a,b port=5432 dbname=orders",
            "postgresql:///orders",
            "postgresql://[::1]:5432/orders",
            "postgresql://relay:p%40ss%2Fword@host/orders?sslmode=require",
            "service=orders",
            "password='a b@c/d' dbname=orders",
        ],
    )
    def test_what_libpq_accepts_is_accepted(self, dsn: str) -> None:
        assert dsns(load(None, dsn=dsn)) == [dsn]

    @pytest.mark.parametrize(
        "dsn", ["what is this", "postgresql://a b/c", "dbname='open", "colour=red", "", " ", "postgresql://u:p%ss@h/d"]
    )
    def test_what_is_no_dsn_is_refused(self, dsn: str) -> None:
        (complaint,) = complaints(refusal(dsn=dsn))
        assert complaint.startswith("source.0.dsn ")

    @pytest.mark.parametrize(
        "dsn",
        ["host=127.0.0.1 port=often", "postgresql://h:99999/d", "host=a,b port=5432,x"],
        ids=["no number", "beyond 65535", "one of several"],
    )
    def test_a_port_that_is_none_is_refused_and_not_tried_for_ever(self, dsn: str) -> None:
        assert complaints(refusal(dsn=dsn))

    @pytest.mark.parametrize("twice", ["one", "two"])
    def test_two_sources_of_one_name_are_refused(self, tmp_path: Path, twice: str) -> None:
        source = f'[[source]]\ndsn = "postgresql://host/{twice}"\n'
        (complaint,) = complaints(refusal(written(tmp_path, source * 2)))
        assert complaint == f"source has two of the name {twice}: give them a name each"

    @pytest.mark.parametrize(
        ("toml", "complaint"),
        [
            ('source = "x"', "source should be a table"),
            ("[source]\ndsn = 'x'", "source should be [[source]] tables in a file, or numbered from 0"),
            ("broker = 5", "broker should be a table"),
            ("source = [5]", "source.0 should be a table"),
            ("source = []", "source is missing"),
            ("[broker]\nurl = 'amqp://h'\non_unroutable = 'park'", "broker.on_unroutable should be a table"),
            (
                "[broker]\nurl = 'amqp://h'\non_unroutable = {Command = 'park'}",
                "broker.on_unroutable has Command: kinds",
            ),
            ("[broker]\nurl = 'amqp://h'\non_unroutable = {command = 'drop'}", "broker.on_unroutable.command: Input"),
            ("[broker]\nurl = 'amqp://h'\nmax_message_bytes = 0", "broker.max_message_bytes: Input should be greater"),
            ("[http]\nlisten = 'here'", "http.listen should look like 127.0.0.1:8088"),
            ("[[source]]\ndsn = 'dbname=x'\noutbox_retention = '7'", "source.0.outbox_retention should be a time like"),
            ("[[source]]\ndsn = 'dbname=x'\noutbox_retention = '0d'", "source.0.outbox_retention should be longer"),
            ("[[source]]\ndsn = 'dbname=x'\nordering = 'loose'", "source.0.ordering: Input should be 'pipelined' or"),
        ],
    )
    def test_tables_of_the_wrong_shape_are_refused(self, tmp_path: Path, toml: str, complaint: str) -> None:
        assert any(line.startswith(complaint) for line in complaints(refusal(written(tmp_path, toml))))

    def test_a_file_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        missing = tmp_path / "missing.toml"
        assert str(refusal(missing)) == f"{missing}: No such file or directory"

    @pytest.mark.parametrize("content", [b"[broker", b"\xff\xfe"], ids=["syntax", "encoding"])
    def test_a_file_that_is_no_toml_is_named(self, tmp_path: Path, content: bytes) -> None:
        file = tmp_path / "relay.toml"
        file.write_bytes(content)
        assert str(refusal(file)).startswith(f"{file} is not TOML")

    def test_a_variable_that_should_be_json_is_explained(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RELAY_SOURCE", "{not json")
        assert "RELAY_SOURCE__0__DSN" in str(refusal(dsn=DSN))


class TestSecrets:
    """hunter2 is the password. It is in none of the ways in which a setting or a complaint can be shown."""

    def test_settings_do_not_show_it(self) -> None:
        settings = load(None, dsn=DSN, amqp_url=AMQP_URL)
        for shown in (repr(settings), str(settings), repr(settings.model_dump()), settings.model_dump_json()):
            assert "hunter2" not in shown
        assert repr(settings).count("**********") == 2

    @pytest.mark.parametrize(
        ("dsn", "amqp_url"),
        [
            ("host=127.0.0.1 password=hunter2 colour=red", AMQP_URL),
            ("postgresql://relay:hunter2@127.0.0.1:port space/orders", AMQP_URL),
            ("postgresql://relay:hunter2%zz@127.0.0.1/orders", AMQP_URL),
            ("password='hunter2", AMQP_URL),
            ("hunter2", AMQP_URL),
            (DSN, "http://relay:hunter2@127.0.0.1/"),
            (DSN, "amqp://relay:hunter2@127.0.0.1:port/"),
            (DSN, "amqp://relay:hunter2@127.0.0.1/?heartbeat=hunter2"),
            (DSN, "hunter2"),
        ],
    )
    def test_a_complaint_does_not_show_it(self, dsn: str, amqp_url: str) -> None:
        assert "hunter2" not in everything_about(refusal(dsn=dsn, amqp_url=amqp_url))

    @pytest.mark.parametrize(
        "toml",
        [
            "[broker]\nurl = 'http://relay:hunter2@host/'",
            "[[source]]\ndsn = 'password=hunter2 colour=red'",
            "[[source]]\npassword = 'hunter2'",
            "[[source]]\ndsn = ['hunter2']",
            "[[source]]\ndsn = 'dbname=a'\nname = 'hunter2 is my name'",
            "broker = 'hunter2'",
            "source = 'hunter2'",
            "[[source]]\ndsn = 'password=hunter2",
        ],
    )
    def test_a_complaint_about_a_file_does_not_show_it(self, tmp_path: Path, toml: str) -> None:
        assert "hunter2" not in everything_about(refusal(written(tmp_path, toml)))

    @pytest.mark.parametrize("name", ["RELAY_SOURCE", "RELAY_BROKER", "RELAY_BROKER__URL", "RELAY_SOURCE__0__DSN"])
    def test_a_complaint_about_the_environment_does_not_show_it(
        self, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.setenv(name, "{hunter2")
        assert "hunter2" not in everything_about(refusal())

    @pytest.mark.parametrize(
        "dsn", ["postgresql://relay:hun@ter2@host/orders", "postgresql://relay:hun/ter2@host/orders"]
    )
    def test_a_password_that_should_have_been_percent_encoded_is_no_part_of_an_address(self, dsn: str) -> None:
        """libpq takes the rest of it for host or database, which are shown in logs."""
        assert "ter2" not in everything_about(refusal(dsn=dsn))


def everything_about(error: ConfigError) -> str:
    """What a log, a terminal or a crash report could show of it."""
    chain: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        chain += [str(cause), repr(cause)]
        cause = cause.__cause__ or cause.__context__
    return "\n".join([*chain, error.hint, *traceback.format_exception(error)])
