"""`relay lag`, with databases that answer what they are told: its table, its JSON, its exit status."""

import json
import os
from dataclasses import fields, replace

import pytest
from click.testing import CliRunner, Result

from relay.cli.lag import render
from relay.cli.main import cli
from relay.errors import ExitCode, RelayError, SourceAway
from relay.wal.lag import Lag
from relay.wal.slot import SlotMissing

KEYS = [
    "source",
    "slot",
    "active",
    "wal_status",
    "current_wal_lsn",
    "confirmed_flush_lsn",
    "lag_bytes",
    "lag_seconds",
    "retained_wal_bytes",
    "safe_wal_bytes",
]
"""A contract: monitoring reads them."""

ORDERS = Lag(
    source="orders",
    slot="relay_orders",
    active=True,
    wal_status="reserved",
    current_wal_lsn="0/1A000060",
    confirmed_flush_lsn="0/1A000000",
    lag_bytes=96,
    lag_seconds=0.25,
    retained_wal_bytes=16_777_216,
    safe_wal_bytes=None,
)
CUSTOMERS = replace(
    ORDERS, source="customers", slot="relay_customers", active=False, lag_seconds=3725.0, safe_wal_bytes=1500
)
"""Nobody is connected, and PostgreSQL keeps so much and no more."""


class Databases:
    """What each source answers, by its name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: dict[str, Lag | RelayError] = {}
        self._monkeypatch = monkeypatch
        for name in [name for name in os.environ if name.upper().startswith("RELAY_")]:
            monkeypatch.delenv(name)
        monkeypatch.setattr("relay.cli.lag.measure", self._measure)

    def answer(self, **answers: Lag | RelayError) -> None:
        self.answers = answers
        for index, name in enumerate(answers):
            self._monkeypatch.setenv(f"RELAY_SOURCE__{index}__DSN", f"postgresql://host/{name}")

    def _measure(self, source: str, dsn: str, slot: str) -> Lag:
        assert (dsn, slot) == (f"postgresql://host/{source}", f"relay_{source}")
        answer = self.answers[source]
        if isinstance(answer, RelayError):
            raise answer
        return answer


@pytest.fixture
def databases(monkeypatch: pytest.MonkeyPatch) -> Databases:
    return Databases(monkeypatch)


def relay_lag(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["lag", *arguments], standalone_mode=False)


def cells(table: str) -> list[list[str]]:
    """The cells of a table: columns begin where their headings do, two blanks apart."""
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in table.splitlines()]


def test_the_table_has_a_line_for_each_source() -> None:
    assert [" | ".join(row) for row in cells(render([ORDERS, CUSTOMERS]))] == [
        "SOURCE | SLOT | ACTIVE | WAL STATUS | CURRENT LSN | CONFIRMED LSN | LAG | LAG S | RETAINED | SAFE",
        "orders | relay_orders | yes | reserved | 0/1A000060 | 0/1A000000 | 96 B | 0.2 | 16.8 MB | unlimited",
        "customers | relay_customers | no | reserved | 0/1A000060 | 0/1A000000 | 96 B | 3725.0 | 16.8 MB | 1.5 kB",
    ]


def test_the_columns_of_the_table_stand_below_each_other() -> None:
    heading, *rows = render([ORDERS, CUSTOMERS]).splitlines()
    for title in ("SLOT", "ACTIVE", "CURRENT LSN", "SAFE"):
        at = heading.index(title)
        assert all(row[at - 1] == " " and row[at] != " " for row in rows)
    assert not any(row.endswith(" ") for row in (heading, *rows))


def test_what_is_not_known_is_a_dash() -> None:
    unknown = replace(
        ORDERS,
        wal_status=None,
        confirmed_flush_lsn=None,
        lag_bytes=None,
        lag_seconds=None,
        retained_wal_bytes=None,
    )
    row = " | ".join(cells(render([unknown]))[1])
    assert row == "orders | relay_orders | yes | - | 0/1A000060 | - | - | - | - | unlimited"


def test_nothing_left_is_not_the_same_as_no_limit() -> None:
    row = cells(render([replace(ORDERS, lag_bytes=0, lag_seconds=0.0, retained_wal_bytes=0, safe_wal_bytes=0)]))[1]
    assert row[-4:] == ["0 B", "0.0", "0 B", "0 B"]


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (16_777_216, "16.8 MB"),
        (2_500_000_000, "2.5 GB"),
        (1_200_000_000_000_000, "1200.0 TB"),
    ],
)
def test_bytes_are_shown_as_a_person_reads_them(count: int, words: str) -> None:
    assert cells(render([replace(ORDERS, lag_bytes=count)]))[1][6] == words


def test_json_has_exactly_the_keys_of_the_contract_in_their_order(databases: Databases) -> None:
    databases.answer(orders=ORDERS)
    (row,) = json.loads(relay_lag("--format", "json").stdout)
    assert list(row) == KEYS == [field.name for field in fields(Lag)]


def test_json_has_the_values_as_they_are(databases: Databases) -> None:
    databases.answer(orders=ORDERS, customers=CUSTOMERS)
    assert json.loads(relay_lag("--format", "json").stdout) == [
        {
            "source": "orders",
            "slot": "relay_orders",
            "active": True,
            "wal_status": "reserved",
            "current_wal_lsn": "0/1A000060",
            "confirmed_flush_lsn": "0/1A000000",
            "lag_bytes": 96,
            "lag_seconds": 0.25,
            "retained_wal_bytes": 16777216,
            "safe_wal_bytes": None,
        },
        {
            "source": "customers",
            "slot": "relay_customers",
            "active": False,
            "wal_status": "reserved",
            "current_wal_lsn": "0/1A000060",
            "confirmed_flush_lsn": "0/1A000000",
            "lag_bytes": 96,
            "lag_seconds": 3725.0,
            "retained_wal_bytes": 16777216,
            "safe_wal_bytes": 1500,
        },
    ]


def test_the_table_is_what_a_person_gets(databases: Databases) -> None:
    databases.answer(orders=ORDERS, customers=CUSTOMERS)
    result = relay_lag()
    assert result.return_value == ExitCode.OK
    assert result.stdout == render([ORDERS, CUSTOMERS]) + "\n"
    assert result.stderr == ""


@pytest.mark.parametrize("error", [SourceAway("away"), SlotMissing("no slot relay_orders")])
def test_a_source_that_fails_does_not_hide_the_others(databases: Databases, error: RelayError) -> None:
    databases.answer(orders=error, customers=CUSTOMERS)
    result = relay_lag()
    assert result.return_value == ExitCode.SOURCE
    assert result.stdout == render([CUSTOMERS]) + "\n"
    assert result.stderr.startswith(f"relay: orders: {error}\n")
    assert error.hint in result.stderr


def test_json_stays_json_when_every_source_fails(databases: Databases) -> None:
    databases.answer(orders=SourceAway("away"))
    result = relay_lag("--format", "json")
    assert result.return_value == ExitCode.SOURCE
    assert json.loads(result.stdout) == []


def test_watching_shows_it_again_and_again(databases: Databases, monkeypatch: pytest.MonkeyPatch) -> None:
    databases.answer(orders=ORDERS)
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        databases.answers["orders"] = replace(ORDERS, lag_bytes=0)
        if len(pauses) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", pause)
    result = relay_lag("--watch", "--format", "json")
    assert [json.loads(line)[0]["lag_bytes"] for line in result.stdout.splitlines()] == [96, 0]
    assert pauses == [2.0, 2.0]
