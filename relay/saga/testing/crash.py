"""Sagas against real PostgreSQL, in processes that really exit, at every boundary in turn."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from relay.saga.testing.nursery import CrashReport as CrashReport

DISORDER: Final = 0.3
"""In the second half of the runs: how often a message overtakes others, and how often it comes twice."""

KINDS: Final = {"calm": 0.0, "disorder": DISORDER}

TIMEOUT_S: Final = 900.0
"""How long all of it may take, unless it is said otherwise."""


class CrashFailure(AssertionError):
    """A crash, a repetition or another order has broken what must hold. `seed` plays the same run again."""

    def __init__(self, world: str, seed: str, text: str) -> None:
        again = f"play it again: crash_everywhere({world!r}, dsns=..., seed={seed!r})"
        super().__init__(f"run {seed}: {text.strip()}\n\n{again}")
        self.seed = seed


def crash_everywhere(
    world: str, *, dsns: Mapping[str, str], seed: int | str = 0, timeout_s: float = TIMEOUT_S
) -> CrashReport:
    """Play a story of sagas over and over: each time a process exits one boundary later, and others take it from there.

    `world` is "module:function", which returns a World; `dsns` are of databases with the schema of `relay` and the
    tables of the services, by the names of these. Boundaries lie before each commit, after it and before the
    acknowledgement, and after that. In a first half of the runs messages come in their order; in the second they come
    twice, overtake each other, and timers fire early. The seed decides where: 7, or "7/calm" and "7/disorder" for one
    half. When everything has settled, each saga has to have an end (or be suspended) and a log that agrees with it,
    and the World's invariants have to hold.

    Raises CrashFailure: its `seed`, a text, plays the one run again. It needs an operating system that can fork.
    """
    text, kinds, only = _read(seed)
    with tempfile.TemporaryDirectory(prefix="crash-everywhere-") as folder:
        report = Path(folder) / "report"
        plan = {"world": world, "dsns": dict(dsns), "seed": text, "disorders": kinds, "only": only}
        told = json.dumps({**plan, "report": str(report)})
        # The plan goes through a pipe: what stands in the arguments, everybody on the machine can read.
        ended = subprocess.run(
            [sys.executable, "-c", "from relay.saga.testing.nursery import main; main()"],
            input=told,
            text=True,
            timeout=timeout_s,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        )
        if not report.exists():
            raise RuntimeError(f"the world {world} could not be played: exit status {ended.returncode}, see its output")
        result: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    if "failed" in result:
        raise CrashFailure(world, result["failed"], result["text"])
    return CrashReport(**result)


def _read(seed: int | str) -> tuple[str, Mapping[str, float], tuple[str, int] | None]:
    """A seed; or with a kind of runs; or one run: seed/kind/boundary."""
    match str(seed).split("/"):
        case [text]:
            return text, KINDS, None
        case [text, kind] if kind in KINDS:
            return text, {kind: KINDS[kind]}, None
        case [text, kind, boundary] if kind in KINDS and boundary.isdecimal():
            return text, {kind: KINDS[kind]}, (kind, int(boundary))
    raise ValueError(f"{seed!r} is neither a seed like 7 or 7/calm, nor a run like 7/calm/12")
