"""Errors: a sentence, a hint, and the exit status that scripts rely on."""

import importlib
import pkgutil
from collections.abc import Iterator

import psycopg
import pytest
from pika.exceptions import ConnectionClosedByBroker, ProbableAccessDeniedError, ProbableAuthenticationError

import relay
from relay.broker.connection import (
    ChannelRefused,
    Disrupted,
    ExchangeMissing,
    LoginRefused,
    VirtualHostRefused,
    _refusal,
)
from relay.broker.connection import address as broker_address
from relay.broker.encoding import Unsendable
from relay.capture.outbox import CaptureError
from relay.daemon.http import CannotListen
from relay.daemon.outlet import Unheard
from relay.daemon.parking import ParkingFull
from relay.daemon.progress import StreamGap
from relay.errors import BrokerAway, BrokerError, ConfigError, ExitCode, RelayError, SourceAway, SourceError
from relay.schema import MigrationFailed
from relay.wal.connection import address, prepared, refusal
from relay.wal.protocol import ProtocolError
from relay.wal.publication import PublicationIncomplete, PublicationMissing
from relay.wal.slot import SlotMissing, SlotUnusable, SynchronousStandby
from relay.wal.stream import SlotBusy

DSN = "postgresql://relay:hunter2@db.example:5433/orders"


def test_the_exit_codes_never_change() -> None:
    assert {code.name: int(code) for code in ExitCode} == {"OK": 0, "FAILURE": 1, "USAGE": 2, "SOURCE": 3, "BROKER": 4}


@pytest.mark.parametrize(
    ("code", "kinds"),
    [
        (ExitCode.FAILURE, [RelayError, CaptureError, CannotListen, MigrationFailed, ParkingFull, Unheard, Unsendable]),
        (ExitCode.USAGE, [ConfigError]),
        (ExitCode.SOURCE, [SourceError, SourceAway, SlotBusy, SlotMissing, SlotUnusable, SynchronousStandby]),
        (ExitCode.SOURCE, [PublicationMissing, PublicationIncomplete, ProtocolError, StreamGap]),
        (ExitCode.BROKER, [BrokerError, BrokerAway, ChannelRefused, Disrupted, ExchangeMissing]),
        (ExitCode.BROKER, [LoginRefused, VirtualHostRefused]),
    ],
)
def test_an_error_knows_its_exit_code(code: ExitCode, kinds: list[type[RelayError]]) -> None:
    assert {kind.exit_code for kind in kinds} == {code}


def test_a_slot_in_use_is_waited_for() -> None:
    assert issubclass(SlotBusy, SourceAway)


def test_a_hint_belongs_to_the_kind_unless_it_is_given() -> None:
    assert SlotMissing("slot a is gone").hint == SlotMissing.hint != ""
    assert SlotMissing("slot a is gone", "Look again.").hint == "Look again."
    assert SlotMissing.hint != "Look again."


def test_an_error_is_its_sentence() -> None:
    assert str(SourceAway("PostgreSQL is away")) == "PostgreSQL is away"


def children(kind: type[RelayError]) -> Iterator[type[RelayError]]:
    for child in kind.__subclasses__():
        yield child
        yield from children(child)


def test_every_error_of_the_relay_says_when_it_is_raised() -> None:
    for module in pkgutil.walk_packages([*relay.__path__], "relay."):
        if module.name.split(".")[1] in {"wal", "capture", "parking", "broker", "daemon"}:
            importlib.import_module(module.name)
    silent = [kind.__qualname__ for kind in children(RelayError) if not (kind.__doc__ or "").strip()]
    assert not silent


class TestPostgreSQLRefuses:
    """What psycopg raises means either: wait, or: stop and say what to do."""

    @pytest.mark.parametrize(
        ("error", "hint"),
        [
            (psycopg.errors.InvalidPassword("no"), "password"),
            (psycopg.errors.InvalidAuthorizationSpecification("no"), "pg_hba.conf"),
            (psycopg.errors.InvalidCatalogName("no"), "database"),
            (psycopg.errors.InsufficientPrivilege("no"), "rights"),
            (psycopg.errors.UndefinedTable("no"), "relay migrate"),
            (psycopg.errors.UndefinedColumn("no"), "relay migrate"),
            (psycopg.OperationalError("FATAL:  must be superuser or replication role to start walsender"), "rights"),
            (psycopg.OperationalError('FATAL:  password authentication failed for user "relay"'), "password"),
            (psycopg.OperationalError('FATAL:  database "orders" does not exist'), "database"),
            (psycopg.OperationalError('FATAL:  no pg_hba.conf entry for host "10.0.0.1"'), "pg_hba.conf"),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value,
    )
    def test_what_waiting_does_not_mend_stops_with_a_hint(self, error: psycopg.Error, hint: str) -> None:
        refused = refusal(error, DSN)
        assert not isinstance(refused, SourceAway)
        assert refused.exit_code is ExitCode.SOURCE
        assert hint in refused.hint

    @pytest.mark.parametrize(
        "error",
        [
            psycopg.errors.AdminShutdown("terminating connection due to administrator command"),
            psycopg.errors.CannotConnectNow("the database system is starting up"),
            psycopg.errors.CrashShutdown("terminating connection because of crash"),
            psycopg.errors.TooManyConnections("sorry, too many clients already"),
            psycopg.errors.ConnectionFailure("server closed the connection unexpectedly"),
            psycopg.OperationalError("connection failed: Connection refused"),
            psycopg.OperationalError("failed to resolve host 'db.example': Name or service not known"),
            psycopg.errors.ConnectionTimeout("connection timeout expired"),
        ],
        ids=lambda error: type(error).__name__,
    )
    def test_a_server_that_is_away_is_waited_for(self, error: psycopg.Error) -> None:
        assert isinstance(refusal(error, DSN), SourceAway)

    def test_the_sentence_is_one_line_that_says_where_and_holds_no_password(self) -> None:
        refused = refusal(psycopg.OperationalError("connection failed:\n\tConnection refused\n"), DSN)
        assert str(refused) == ("PostgreSQL at db.example:5433, database orders: connection failed: Connection refused")

    @pytest.mark.parametrize(
        ("dsn", "where"),
        [
            (DSN, "db.example:5433, database orders"),
            ("host=/run/postgresql dbname=orders", "/run/postgresql:5432, database orders"),
            ("user=ada password=hunter2", "the local socket:5432, database ada"),
            ("", "the local socket:5432, database postgres"),
        ],
    )
    def test_an_address_has_neither_user_nor_password(self, dsn: str, where: str) -> None:
        assert address(dsn) == where

    def test_every_session_speaks_utf8_and_utc_and_keeps_its_own_options(self) -> None:
        session = psycopg.conninfo.conninfo_to_dict(
            prepared(DSN + "?options=-c%20lock_timeout%3D5s", "saga-relay orders")
        )
        assert session["client_encoding"] == "UTF8"
        assert session["application_name"] == "saga-relay orders"
        assert session["connect_timeout"] == "10"
        assert str(session["options"]).startswith("-c lock_timeout=5s -c ")
        assert "-c TimeZone=UTC" in str(session["options"])

    def test_the_patience_of_a_dsn_counts(self) -> None:
        assert psycopg.conninfo.conninfo_to_dict(prepared(DSN + "?connect_timeout=3", "x"))["connect_timeout"] == "3"


def closed(code: int, words: str) -> str:
    """How pika wraps what a broker says while a connection is set up."""
    return repr(ConnectionClosedByBroker(code, words))


class TestRabbitMQRefuses:
    """The broker's side of the same."""

    URL = "amqp://relay:hunter2@mq.example:5673/shop"

    @pytest.mark.parametrize(
        ("reason", "kind"),
        [
            (ProbableAuthenticationError(closed(403, "ACCESS_REFUSED - Login was refused")), LoginRefused),
            (ProbableAuthenticationError("StreamLostError: ('Transport indicated EOF',)"), BrokerAway),
            (ProbableAuthenticationError(closed(320, "CONNECTION_FORCED - shutdown")), BrokerAway),
            (ProbableAccessDeniedError(closed(530, "NOT_ALLOWED - vhost unlimited not found")), VirtualHostRefused),
            (ProbableAccessDeniedError("StreamLostError: ('Transport indicated EOF',)"), BrokerAway),
            (ProbableAccessDeniedError(closed(541, "INTERNAL_ERROR - vhost 'shop' is down")), BrokerAway),
            (ProbableAccessDeniedError(closed(530, "NOT_ALLOWED - connection limit (10) is reached")), BrokerAway),
            (ConnectionRefusedError(111, "Connection refused"), BrokerAway),
        ],
        ids=[
            "login",
            "lost while logging in",
            "shut down while logging in",
            "virtual host",
            "lost while entering",
            "virtual host is starting",
            "too many connections",
            "away",
        ],
    )
    def test_only_what_waiting_does_not_mend_stops(self, reason: BaseException, kind: type[BrokerError]) -> None:
        refused = _refusal(self.URL, reason)
        assert type(refused) is kind
        assert "hunter2" not in str(refused)
        assert "mq.example:5673" in str(refused)

    def test_an_address_has_neither_user_nor_password(self) -> None:
        assert broker_address(self.URL) == "mq.example:5673, virtual host shop"
