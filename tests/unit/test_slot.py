"""Whether COMMITs would wait for the relay, by what PostgreSQL is set to."""

import pytest

from relay.wal.slot import names_standby

NAME = "saga-relay shop"


@pytest.mark.parametrize(
    "setting",
    [
        "*",
        '"*"',
        '"saga-relay shop"',
        '"Saga-Relay SHOP"',
        'standby_a, "saga-relay shop"',
        'FIRST 1 (standby_a, "saga-relay shop")',
        "FIRST 2 (standby_a, *)",
        "any 1 (*)",
        '2("saga-relay shop",b)',
        '"a, ""quoted"" (one)", *',
    ],
)
def test_a_setting_that_means_the_relay(setting: str) -> None:
    assert names_standby(setting, NAME)


@pytest.mark.parametrize(
    "setting",
    [
        "",
        "standby_a",
        "FIRST 1 (standby_a, standby_b)",
        "ANY 2 (a, b, c)",
        '"saga-relay orders"',
        '"*, or not"',
        'FIRST 1 ("say ""*""")',
        '"saga-relay"',
    ],
)
def test_a_setting_that_does_not(setting: str) -> None:
    assert not names_standby(setting, NAME)
