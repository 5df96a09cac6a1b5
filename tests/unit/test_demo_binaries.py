"""Where PostgreSQL's programs are looked for."""

from pathlib import Path

import pytest

from relay.demo.servers import binaries
from relay.demo.servers.binaries import find_postgres, postgres_is_there
from relay.demo.servers.host import Account, ServerFailed, ServerMissing


@pytest.fixture(autouse=True)
def _no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RELAY_PG_BIN", raising=False)


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The directories of a system that has no wheel."""
    directories: list[Path] = []
    monkeypatch.setattr(binaries, "_system_directories", lambda: iter(directories))
    monkeypatch.setattr(binaries, "WHEEL", "no_such_wheel")
    return directories


def found() -> Path:
    return find_postgres(Account(), adopt=lambda *_: Path())


def installed(directory: Path, version: str) -> Path:
    """Programs that know their version, and nothing else."""
    directory.mkdir(parents=True)
    for name in ("initdb", "postgres"):
        program = directory / name
        program.write_text(f"#!/bin/sh\necho '{name} (PostgreSQL) {version}'\n")
        program.chmod(0o755)
    return directory


def test_the_directory_that_is_named_goes_before_all_others(
    tmp_path: Path, system: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    system.append(installed(tmp_path / "18", "18.1"))
    named = installed(tmp_path / "15", "15.9 (Debian 15.9-0+deb12u1)")
    monkeypatch.setenv("RELAY_PG_BIN", str(named))
    assert found() == named


def test_it_goes_before_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found() != tmp_path / "15"
    monkeypatch.setenv("RELAY_PG_BIN", str(installed(tmp_path / "15", "15.9")))
    assert found() == tmp_path / "15"


@pytest.mark.parametrize("version", ["14.9", None])
def test_a_directory_without_a_postgresql_that_is_new_enough_is_refused(
    tmp_path: Path, system: list[Path], monkeypatch: pytest.MonkeyPatch, version: str | None
) -> None:
    system.append(installed(tmp_path / "18", "18.1"))
    named = installed(tmp_path / "named", version) if version else tmp_path / "named"
    monkeypatch.setenv("RELAY_PG_BIN", str(named))
    assert postgres_is_there(), "somebody says so"
    with pytest.raises(ServerFailed, match=rf"RELAY_PG_BIN names {named}, .* PostgreSQL 15 or newer"):
        found()


def test_an_empty_name_is_none(tmp_path: Path, system: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    system.append(installed(tmp_path / "17", "17.2"))
    monkeypatch.setenv("RELAY_PG_BIN", "")
    assert found() == tmp_path / "17"


def test_the_newest_of_the_system_is_taken(tmp_path: Path, system: list[Path]) -> None:
    system += [installed(tmp_path / version, f"{version}.1") for version in ("9", "16", "17", "15")]
    assert found() == tmp_path / "17"
    assert postgres_is_there()


@pytest.mark.parametrize("versions", [(), ("14",)])
def test_a_system_without_one_that_is_new_enough_has_none(
    tmp_path: Path, system: list[Path], versions: tuple[str, ...]
) -> None:
    system += [installed(tmp_path / version, f"{version}.1") for version in versions]
    assert not postgres_is_there()
    with pytest.raises(ServerMissing, match="no PostgreSQL 15 or newer"):
        found()
