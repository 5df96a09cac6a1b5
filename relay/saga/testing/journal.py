"""What outlives the processes of a run, beside the databases: which messages are acknowledged, and what was done."""

import os
from pathlib import Path
from typing import Final, NamedTuple

TOLD_LINES: Final = 30
"""So much of the story is told when a run fails: its end."""


class Since(NamedTuple):
    """The last row of the outbox before a run, and the database's time, as PostgreSQL writes it."""

    seq: int
    time: str


class Journal:
    """A file of lines. Each is written at once, so that it is there however the process ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._acknowledged: set[str] = set()
        self._again: set[str] = set()
        self.since: dict[str, Since] = {}
        """Where the run begins, in each database."""
        for line in self._lines():
            self._apply(*line.partition(" ")[::2])

    def acknowledge(self, key: str) -> None:
        """A message is done with."""
        self._write("acknowledged", key)

    def hand_out_again(self, key: str) -> None:
        """A message will be delivered a second time, though it was handled."""
        self._write("again", key)

    def begin_after(self, database: str, seq: int, time: str) -> None:
        """Rows of the outbox up to this one, and sagas from before this time, are of earlier runs."""
        self._write("since", f"{database} {seq} {time}")

    def tell(self, text: str) -> None:
        """Note what was done, for people."""
        self._write("-", text)

    def is_acknowledged(self, key: str) -> bool:
        """Whether a message is done with."""
        return key in self._acknowledged

    def was_handed_out_again(self, key: str) -> bool:
        """Whether a message was delivered twice, or will be."""
        return key in self._again

    def story(self) -> list[str]:
        """The end of what was done, for people."""
        told = [line.removeprefix("- ") for line in self._lines() if line.startswith("- ")]
        return ["..."] * (len(told) > TOLD_LINES) + told[-TOLD_LINES:]

    def _lines(self) -> list[str]:
        return self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []

    def _write(self, mark: str, text: str) -> None:
        self._apply(mark, text)
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, f"{mark} {' '.join(text.split())}\n".encode())
        finally:
            os.close(file)

    def _apply(self, mark: str, text: str) -> None:
        match mark:
            case "acknowledged":
                self._acknowledged.add(text)
            case "again":
                self._again.add(text)
            case "since":
                database, seq, time = text.split(" ", 2)
                self.since[database] = Since(int(seq), time)
