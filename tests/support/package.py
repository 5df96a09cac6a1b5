"""The package as its users get it: a wheel, and environments that have nothing else."""

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / "constraints.txt"

PIP_S = 300.0
"""How long pip may take: it builds, or downloads some 100 MB, on a slow line."""
PROGRAM_S = 60.0

GIT_KNOWS_BETTER = (".git", ".venv", "__pycache__", ".*_cache", ".hypothesis", "dist", "build", ".coverage*")
"""What tools leave in a checkout, and change while it is copied."""


def copy_source(to: Path) -> Path:
    """A copy of the repository, so that nothing is built in it."""
    return Path(shutil.copytree(ROOT, to, ignore=shutil.ignore_patterns(*GIT_KNOWS_BETTER)))


def build_wheel(source: Path, into: Path) -> Path:
    """The wheel of a copy of the repository. What builds it is as old and new as constraints.txt says."""
    pinned = {"PIP_CONSTRAINT": str(CONSTRAINTS), "PIP_BUILD_CONSTRAINT": str(CONSTRAINTS)}
    _pip("wheel", "--no-deps", "--wheel-dir", into, source, environment=os.environ | pinned)
    (wheel,) = into.glob("*.whl")
    return wheel


@dataclass(frozen=True)
class Environment:
    """A virtual environment that has nothing but what is installed, and a directory far from the repository."""

    path: Path

    @classmethod
    def create(cls, path: Path) -> Self:
        """An empty one, without pip too."""
        venv.create(path / "venv", with_pip=False, symlinks=True)
        (path / "work").mkdir()
        return cls(path)

    @property
    def work(self) -> Path:
        """Where its programs run."""
        return self.path / "work"

    def program(self, name: str) -> Path:
        """A program that was installed, or `python`."""
        return self.path / "venv" / "bin" / name

    def install(self, wheel: Path, extra: str | None = None) -> None:
        """The wheel and what it requires, in the versions that the checks run with."""
        wanted = f"{wheel}[{extra}]" if extra else str(wheel)
        _pip("--python", self.program("python"), "install", "--no-compile", "--constraint", CONSTRAINTS, wanted)

    def has(self, distribution: str) -> bool:
        """Whether it has this distribution."""
        return self.run("python", "-c", f"import importlib.metadata as m; m.version({distribution!r})").returncode == 0

    def variables(self, **more: str) -> dict[str, str]:
        """Ours without what tells Python or the relay where we are."""
        foreign = ("RELAY_", "PYTHON", "VIRTUAL_ENV", "COV_")
        return {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | more

    def run(self, name: str, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment to its end."""
        return subprocess.run(
            (self.program(name), *arguments),
            cwd=self.work,
            env=self.variables(**variables),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PROGRAM_S,
        )

    def run_python(self, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a module of the user's own."""
        module = self.work / "users_own.py"
        module.write_text(text, encoding="utf-8")
        return self.run("python", module, *arguments)


def _pip(*arguments: str | Path, environment: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(
        (sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments),
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PIP_S,
    )
    assert done.returncode == 0, f"pip failed:\n{done.stdout}\n{done.stderr}"
