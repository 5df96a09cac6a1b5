"""The numbered files of DDL, and their order."""

import re
from pathlib import Path

import pytest

from relay.errors import ConfigError, ExitCode
from relay.schema import Migration, migrations, sql_folder


def folder(tmp_path: Path, *names: str) -> Path:
    for name in names:
        (tmp_path / name).write_text("SELECT 1")
    return tmp_path


def test_migrations_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    given = folder(tmp_path, "0010_later.sql", "0002_second.sql", "0001_first.sql")
    assert list(migrations(given, "orders")) == [
        Migration("orders", name, given / name) for name in ("0001_first.sql", "0002_second.sql", "0010_later.sql")
    ]


def test_other_files_are_no_migrations(tmp_path: Path) -> None:
    given = folder(tmp_path, "0001_first.sql", "README.md", "seed.sql", "0002_second.sql.orig")
    assert [step.name for step in migrations(given, "orders")] == ["0001_first.sql"]


@pytest.mark.parametrize("names", [(), ("seed.sql",)], ids=["empty", "without numbers"])
def test_a_folder_without_migrations_is_a_mistake_of_the_one_who_named_it(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError, match="holds no numbered migrations") as refused:
        migrations(folder(tmp_path, *names), "orders")
    assert refused.value.exit_code is ExitCode.USAGE


def test_the_relay_brings_its_own_numbered_without_gaps() -> None:
    names = [step.name for step in migrations(sql_folder(), "relay")]
    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))
    assert all(re.fullmatch(r"\d{4}_[a-z_]+\.sql", name) for name in names)


def test_no_migration_ends_the_transaction_that_it_is_applied_in() -> None:
    for step in migrations(sql_folder(), "relay"):
        outside_of_strings = re.sub(r"\$\$.*?\$\$|'[^']*'|--[^\n]*", "", step.path.read_text(), flags=re.DOTALL)
        assert not re.search(r"\b(COMMIT|ROLLBACK|CONCURRENTLY|VACUUM)\b", outside_of_strings, re.IGNORECASE), step.name
