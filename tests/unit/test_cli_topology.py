"""`relay topology` as a person meets it: settings, help, what it says, exit statuses. No server is asked."""

import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import click
import pytest

from relay.broker.layout import HASH_TYPE, Binding, Change, Found, Thing
from relay.broker.management import HTTP_PORT, HTTPS_PORT, Management, ManagementAway
from relay.cli import main
from relay.cli.topology import topology
from relay.config import load
from relay.errors import ConfigError, ExitCode

PAGE = Path(__file__).parents[2] / "docs/topology.md"
VERBS = ("plan", "apply", "verify")
TYPES = frozenset({"direct", "topic", "fanout", "headers", HASH_TYPE})

SOURCE = """
[broker]
url = "amqp://relay:hunter2@mq.example:5673/shop"
[[source]]
dsn = "postgresql://db.example/orders"
"""
QUEUES = """
[[topology.exchange]]
name = "orders.events"
type = "topic"
[[topology.queue]]
name = "audit"
bindings = [{exchange = "orders.events", routing_key = "order.*"}]
[[topology.partitioned]]
name = "billing"
partitions = 2
bindings = [{exchange = "relay.events", routing_key = "order.#"}]
"""


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


class Broker:
    """Stands in for the management API: tells what it is given."""

    def __init__(self) -> None:
        self.there = Found(exchange_types=TYPES)
        self.away: ManagementAway | None = None

    def found(self) -> Found:
        if self.away is not None:
            raise self.away
        return self.there

    def make(self, file: Path, *more: Binding) -> None:
        """Everything that a file asks for."""
        layout = load(file).topology.layout()
        self.there = Found(
            {exchange.name: exchange for exchange in layout.exchanges},
            {queue.name: queue for queue in layout.queues},
            frozenset((*layout.all_bindings, *more)),
            TYPES,
        )


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    broker = Broker()
    monkeypatch.setattr("relay.cli.topology.Management.of", lambda *_: broker)
    return broker


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "relay.toml"
    file.write_text(SOURCE + QUEUES, encoding="utf-8")
    return file


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("RELAY_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def relay(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """`relay("plan", "--config", file)`."""

    def call(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["relay", "topology", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return Ended(ended.value.code, *capsys.readouterr())

    return call


Relay = Callable[..., Ended]


class TestHelp:
    @pytest.mark.parametrize("verb", VERBS)
    def test_every_option_says_what_it_is_for(self, relay: Relay, verb: str) -> None:
        options = [option for option in topology.commands[verb].params if isinstance(option, click.Option)]
        assert {option.opts[0] for option in options} == {"--config", "--amqp", "--format"}
        assert all(option.help for option in options)
        assert relay(verb, "-h").code == 0


class TestPlan:
    def test_it_lists_what_is_missing_and_exits_0(self, relay: Relay, broker: Broker, file: Path) -> None:
        ended = relay("plan", "--config", file)
        assert ended.code == ExitCode.OK
        lines = [line.split() for line in ended.out.splitlines()]
        assert lines[0] == ["CHANGE", "WHAT", "NAME", "DETAIL"]
        assert ["create", "exchange", "billing", "x-consistent-hash"] in lines
        assert ["create", "queue", "billing.1", "quorum"] in lines
        assert "create  binding   orders.events -> audit with 'order.*'" in ended.out
        assert ended.err == ""

    def test_it_says_when_nothing_differs(self, relay: Relay, broker: Broker, file: Path) -> None:
        broker.make(file)
        assert relay("plan", "--config", file).out.startswith("nothing differs\n")

    def test_it_says_which_routes_end_nowhere_once_all_is_made(self, relay: Relay, broker: Broker, file: Path) -> None:
        out = relay("plan", "--config", file).out
        nowhere = out.partition("These routes end nowhere:\n")[2]
        assert nowhere == (
            "  kind command: relay.commands with '{destination}': no queue is bound for it\n"
            "  kind reply: relay.replies with '{destination}': no queue is bound for it\n"
        )

    def test_routes_of_types_and_captures_are_among_them(self, relay: Relay, broker: Broker, file: Path) -> None:
        file.write_text(
            SOURCE
            + '[[source.capture]]\nkind = "outbox"\nrouting = {exchange = "cdc", routing_key = "{aggregate_type}"}\n'
            + '[broker.routing]\nOrderViewed = {routing_key = "views"}\nOrderPaid = {exchange = "orders.events",'
            + ' routing_key = "order.paid"}\n'
            + QUEUES,
            encoding="utf-8",
        )
        out = relay("plan", "--config", file).out
        assert "  capture outbox: cdc with '{aggregate_type}': there is no such exchange\n" in out
        assert "  type OrderViewed: " in out
        assert "OrderPaid" not in out

    def test_it_tells_who_else_listens(self, relay: Relay, broker: Broker, file: Path) -> None:
        broker.make(file, Binding("relay.events", "orders", "#"), Binding("relay.commands", "customers", "customers"))
        assert "Listening, but not configured here: customers, orders\n" in relay("plan", "--config", file).out

    def test_it_says_what_to_do_about_what_is_wrong(self, relay: Relay, broker: Broker, file: Path) -> None:
        broker.make(file)
        broker.there = replace(broker.there, exchange_types=TYPES - {HASH_TYPE})
        ended = relay("plan", "--config", file)
        assert ended.code == ExitCode.OK
        assert "rabbitmq-plugins enable rabbitmq_consistent_hash_exchange" in ended.out

    def test_json_is_one_object_with_exactly_these_keys(self, relay: Relay, broker: Broker, file: Path) -> None:
        broker.make(file, Binding("relay.events", "audit", "#"), Binding("relay.events", "orders", "#"))
        ended = relay("plan", "--config", file, "--format", "json")
        assert json.loads(ended.out) == {
            "in_sync": False,
            "differences": [
                {
                    "change": "extra",
                    "what": "binding",
                    "name": "relay.events -> audit with '#'",
                    "detail": "not configured",
                    "hint": "Add it to the configuration, or unbind it by hand.",
                }
            ],
            "ends_nowhere": [
                {
                    "route": f"kind {kind}",
                    "exchange": exchange,
                    "routing_key": "{destination}",
                    "why": "no queue is bound for it",
                }
                for kind, exchange in (("command", "relay.commands"), ("reply", "relay.replies"))
            ],
            "not_configured": ["orders"],
        }


class TestVerify:
    def test_it_is_silent_when_nothing_differs(self, relay: Relay, broker: Broker, file: Path) -> None:
        broker.make(file)
        assert relay("verify", "--config", file) == Ended(0, "", "")

    def test_it_exits_1_with_what_differs(self, relay: Relay, broker: Broker, file: Path) -> None:
        broker.make(file, Binding("relay.events", "audit", "#"))
        ended = relay("verify", "--config", file)
        assert ended.code == ExitCode.FAILURE
        assert "extra   binding  relay.events -> audit with '#'" in ended.out

    def test_a_program_gets_its_json_either_way(self, relay: Relay, broker: Broker, file: Path) -> None:
        assert json.loads(relay("verify", "--config", file, "--format", "json").out)["in_sync"] is False
        broker.make(file)
        ended = relay("verify", "--config", file, "--format", "json")
        assert (ended.code, json.loads(ended.out)["in_sync"]) == (0, True)


class TestApply:
    def test_with_nothing_to_do_it_connects_to_nobody(self, relay: Relay, broker: Broker, file: Path) -> None:
        broker.make(file, Binding("relay.events", "audit", "#"))
        ended = relay("apply", "--config", file)
        assert ended.code == ExitCode.OK
        assert "extra   binding" in ended.out
        assert json.loads(relay("apply", "--config", file, "--format", "json").out)["applied"] == []


class TestDocs:
    def test_the_file_that_is_shown_is_loaded_and_makes_what_the_page_says(self, tmp_path: Path) -> None:
        (shown,) = re.findall(r"^```toml\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        file = tmp_path / "relay.toml"
        file.write_text(SOURCE + shown, encoding="utf-8")
        layout = load(file).topology.layout()
        assert {queue.name for queue in layout.queues} == {
            *("audit", "audit.dead", "billing.dead", "billing.0", "billing.1", "billing.2", "billing.3")
        }

    @pytest.mark.parametrize("enum", [Change, Thing])
    def test_every_word_of_a_difference_is_told(self, enum: type[Change] | type[Thing]) -> None:
        told = (PAGE.parent / "cli.md").read_text(encoding="utf-8").partition("## relay topology")[2]
        assert all(f"`{each}`" in told for each in enum)


class TestMistakes:
    @pytest.mark.parametrize("verb", VERBS)
    def test_a_broker_that_is_away_exits_with_4(self, relay: Relay, broker: Broker, file: Path, verb: str) -> None:
        broker.away = ManagementAway("no answer")
        ended = relay(verb, "--config", file)
        assert (ended.code, ended.out) == (ExitCode.BROKER, "")
        assert "broker.management_url" in ended.err

    @pytest.mark.parametrize(
        ("written", "complaint"),
        [
            ('[[topology.queue]]\nname = ""', "topology.queue.0.name should have 1 to 240 bytes"),
            ('[[topology.queue]]\nname = "amq.q"', "topology.queue.0.name should not begin with amq."),
            ('[[topology.queue]]\nname = "q"\ntype = "stream"', "topology.queue.0.type"),
            ('[[topology.queue]]\nname = "q"\ndelivery_limit = 0', "topology.queue.0.delivery_limit"),
            (
                '[[topology.queue]]\nname = "q"\ntype = "classic"\ndelivery_limit = 5',
                "topology.queue.0 has a delivery_limit, which only a quorum queue keeps",
            ),
            (
                '[[topology.queue]]\nname = "q"\nbindings = [{routing_key = "a"}]',
                "topology.queue.0.bindings.0.exchange",
            ),
            ('[[topology.queue]]\nname = "q"\nbinding = []', "topology.queue.0.binding is no setting"),
            ('[[topology.exchange]]\nname = "e"\ntype = "hash"', "topology.exchange.0.type"),
            ('[[topology.exchange]]\nname = "relay.events"\ntype = "topic"', "which is the relay's own"),
            ('[[topology.partitioned]]\nname = "p"\npartitions = 0\nbindings = [{exchange = "e"}]', "partitions"),
            ('[[topology.partitioned]]\nname = "p"\npartitions = 257\nbindings = [{exchange = "e"}]', "partitions"),
            ('[[topology.partitioned]]\nname = "p"\npartitions = 2\nbindings = []', "bindings"),
            ('[[topology.partitioned]]\nname = "p"\npartitions = 2\nbindings = [{exchange = "p"}]', "bound to itself"),
            (
                '[[topology.queue]]\nname = "p.1"\n'
                '[[topology.partitioned]]\nname = "p"\npartitions = 2\nbindings = [{exchange = "e"}]',
                "topology has two queues of the name p.1",
            ),
            ('[[topology.queue]]\nname = "q"\n[[topology.queue]]\nname = "q.dead"', "two queues of the name q.dead"),
            (
                '[[topology.exchange]]\nname = "p"\ntype = "topic"\n'
                '[[topology.partitioned]]\nname = "p"\npartitions = 2\nbindings = [{exchange = "e"}]',
                "topology has two exchanges of the name p",
            ),
        ],
    )
    def test_a_wrong_setting_exits_with_2(
        self, relay: Relay, broker: Broker, tmp_path: Path, written: str, complaint: str
    ) -> None:
        file = tmp_path / "relay.toml"
        file.write_text(SOURCE + written, encoding="utf-8")
        ended = relay("plan", "--config", file)
        assert ended.code == ExitCode.USAGE
        assert complaint in ended.err

    @pytest.mark.parametrize("url", ["mq.example", "amqp://mq.example", "http://", "http://h:port", "http://u:a/b@h"])
    def test_a_management_url_that_is_none(self, monkeypatch: pytest.MonkeyPatch, file: Path, url: str) -> None:
        monkeypatch.setenv("RELAY_BROKER__MANAGEMENT_URL", url)
        with pytest.raises(ConfigError, match=r"broker\.management_url should look like"):
            load(file)


class TestManagement:
    def test_it_is_on_the_brokers_host_with_the_brokers_user(self) -> None:
        found = Management.of("amqp://relay:hunter%202@mq.example:5673/%2Fshop")
        assert (found.address, found.vhost) == (f"http://mq.example:{HTTP_PORT}", "/shop")
        assert (found.user, found.password) == ("relay", "hunter 2")

    def test_it_is_encrypted_where_the_broker_is(self) -> None:
        found = Management.of("amqps://relay:x@mq.example/")
        assert (found.address, found.vhost) == (f"https://mq.example:{HTTPS_PORT}", "/")

    def test_its_own_url_comes_first(self) -> None:
        found = Management.of("amqps://relay:x@mq.example/shop", "http://ops:p%40ss@web.example:8080/mq/")
        assert (found.address, found.vhost) == ("http://web.example:8080/mq", "shop")
        assert (found.user, found.password) == ("ops", "p@ss")

    def test_its_own_url_may_leave_the_user_out(self) -> None:
        found = Management.of("amqp://relay:x@mq.example/", "https://web.example")
        assert (found.address, found.user, found.password) == (f"https://web.example:{HTTPS_PORT}", "relay", "x")

    def test_nothing_of_it_shows_a_password(self) -> None:
        found = Management.of("amqp://relay:hunter2@mq.example/", "http://ops:hunter3@web.example")
        assert "hunter" not in f"{found} {found!r} {found.address}"
