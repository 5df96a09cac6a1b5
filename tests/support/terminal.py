"""Somebody at a terminal, who runs verbs of `relay` that ask the databases of the sources: in this process."""

import os
import sys
from dataclasses import dataclass

import pytest

from relay.cli import main


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def words(self) -> str:
        """All that was said, in one line."""
        return " ".join((self.out + self.err).split())

    @property
    def rows(self) -> list[list[str]]:
        """The lines of a table without its headings, as words."""
        return [line.split() for line in self.out.splitlines()[1:]]


class Terminal:
    """`terminal("saga", "list")`, where the sources of these names have these DSNs, and nothing else is set."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], sources: dict[str, str]
    ) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        for name in [name for name in os.environ if name.upper().startswith("RELAY_")]:
            monkeypatch.delenv(name)
        for number, (name, dsn) in enumerate(sources.items()):
            monkeypatch.setenv(f"RELAY_SOURCE__{number}__DSN", dsn)
            monkeypatch.setenv(f"RELAY_SOURCE__{number}__NAME", name)

    def __call__(self, *arguments: str) -> Ended:
        self._capsys.readouterr()
        self._monkeypatch.setattr(sys, "argv", ["relay", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return Ended(ended.value.code, *self._capsys.readouterr())
