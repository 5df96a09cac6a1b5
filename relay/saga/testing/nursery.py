"""The process that the others are forked from: it has everything imported, and no connection, thread or event loop."""

import asyncio
import importlib
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, Final, NoReturn
from uuid import uuid4

from relay.saga.testing.disorder import Disorder
from relay.saga.testing.journal import Journal
from relay.saga.testing.life import Life, connected
from relay.saga.testing.world import World

BOUNDARIES_MAX: Final = 2_000
"""A run with more of them is too long for a crash at each: then begin less."""

PROCESS_S: Final = 60
"""How long a process may take."""

AGAIN: Final = 0.25
"""How often the process after a crash crashes too, at one of its first boundaries."""

AGAIN_WITHIN: Final = 12
CRASHES_MAX: Final = 4
"""So often in one run; then a process is left to finish."""

DONE, CRASHED, FAILED = 0, 70, 71
"""How a process ends."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked for. `only` is the one run that is to be played again, as a failure names it."""

    world: str
    dsns: Mapping[str, str]
    seed: str
    disorders: Mapping[str, float]
    only: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True)
class CrashReport:
    """What was played: runs, the processes that crashed in them, and at how many different boundaries."""

    runs: int
    crashes: int
    boundaries: int


class RunFailed(Exception):
    """A run did not end as it should. `run` is its name, by which it can be played again; `text` says what happened."""

    def __init__(self, run: str, text: str) -> None:
        super().__init__(text)
        self.run = run
        self.text = text


def explore(plan: Plan) -> CrashReport:
    """Play the story again and again, each time with a crash one boundary later, until there is none left.

    Raises RunFailed, and whatever importing the world raises.
    """
    make = _find(plan.world)
    runs = crashes = boundaries = 0
    for kind, disorder in plan.disorders.items():
        for boundary in _boundaries(plan, kind):
            crashed = _Run(plan, kind, disorder, boundary, make).play()
            runs += 1
            crashes += crashed
            if not crashed:
                break
            boundaries += 1
        else:
            if plan.only is None:
                raise RunFailed(f"{plan.seed}/{kind}", f"there are more than {BOUNDARIES_MAX} boundaries: begin less")
    return CrashReport(runs, crashes, boundaries)


class _Run:
    """The story, told once: processes one after the other, until one of them comes to the end."""

    def __init__(self, plan: Plan, kind: str, disorder: float, boundary: int, make: Callable[[], World]) -> None:
        self._plan = plan
        self._kind = kind
        self._disorder = disorder
        self._boundary = boundary
        self._make = make
        self._name = f"{plan.seed}/{kind}/{boundary}"

    def play(self) -> int:
        """How many processes have crashed. Raises RunFailed."""
        with tempfile.TemporaryDirectory(prefix="crash-everywhere-") as folder:
            path = Path(folder) / "journal"
            run = str(uuid4())
            for number in range(CRASHES_MAX + 1):
                status, told = fork(lambda number=number: self._child(run, number, path))  # type: ignore[misc]
                if status == DONE:
                    return number
                if status != CRASHED:
                    story = "\n".join(f"  {line}" for line in Journal(path).story())
                    raise RunFailed(self._name, f"{told or _excuse(status)}\n\nwhat happened:\n{story}")
        raise RunFailed(self._name, "the last process crashed though it was not told to")

    def _child(self, run: str, number: int, path: Path) -> NoReturn:
        """A process: it ends here, and says how."""
        journal = Journal(path)
        fuse = _Fuse(self._crash_at(number), journal)
        # The first process plays the same story in every run, so that each crashes one boundary later than the last.
        seed = f"{self._plan.seed}/{self._kind}" + (f"/{self._boundary}/{number}" if number else "")
        asyncio.run(self._live(run, journal, fuse, seed))
        os._exit(DONE)

    async def _live(self, run: str, journal: Journal, fuse: "_Fuse", seed: str) -> None:
        world = self._make()
        _settle_chance(world, seed)
        async with connected(self._plan.dsns) as connections:
            life = Life(world, connections, journal, fuse, Disorder(Random(seed), self._disorder))
            await life.live(run, f"{self._plan.seed}/{self._kind}")

    def _crash_at(self, number: int) -> int | None:
        if number == 0:
            return self._boundary
        chance = Random(f"{self._name}/{number}/crash")
        if number == CRASHES_MAX or chance.random() >= AGAIN:
            return None
        return chance.randint(1, AGAIN_WITHIN)


class _Fuse:
    """Counts boundaries, and ends the process at one of them: at once, with nothing closed and nothing flushed."""

    def __init__(self, crash_at: int | None, journal: Journal) -> None:
        self._crash_at = crash_at
        self._journal = journal
        self._passed = 0

    def __call__(self, where: str) -> None:
        self._passed += 1
        if self._passed == self._crash_at:
            self._journal.tell(f"CRASH {where}")
            os._exit(CRASHED)


def fork(child: Callable[[], NoReturn]) -> tuple[int, str]:
    """Run a child to its end: its exit status, less than 0 for a signal, and what it said."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        signal.alarm(PROCESS_S)
        try:
            child()
        except BaseException:  # it must not go on as the nursery, whatever happens
            os.write(writing, traceback.format_exc(limit=-20).encode()[-32_000:])
            os._exit(FAILED)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8", errors="replace") as pipe:
        told = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), told


def _settle_chance(world: World, seed: str) -> None:
    """Let the seed decide the jitter of retries too, and with it which timer is due first, whatever the world says."""
    for name, orchestrator in world.orchestrators.items():
        orchestrator._chance.seed(f"{seed} {name}")  # no option: nobody else has a reason to change it later


def _excuse(status: int) -> str:
    if status == -signal.SIGALRM:
        return f"a process took longer than {PROCESS_S} s"
    return f"a process ended with status {status}"


def _boundaries(plan: Plan, kind: str) -> Iterator[int]:
    if plan.only is None:
        return iter(range(1, BOUNDARIES_MAX + 1))
    only_kind, boundary = plan.only
    return iter([boundary] if only_kind == kind else [])


def _find(name: str) -> Callable[[], World]:
    module, _, function = name.partition(":")
    made: Callable[[], World] = getattr(importlib.import_module(module), function)
    return made


def main() -> None:
    """Read a plan from the standard input, and write how it went to the file that it names."""
    asked: dict[str, Any] = json.load(sys.stdin)
    report = Path(asked.pop("report"))
    only = asked.pop("only")
    try:
        result = asdict(explore(Plan(**asked, only=None if only is None else tuple(only))))
    except RunFailed as failure:
        result = {"failed": failure.run, "text": failure.text}
    report.write_text(json.dumps(result), encoding="utf-8")
