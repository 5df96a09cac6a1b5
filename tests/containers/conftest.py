"""The Docker engine. Where none answers a test is skipped; in CI it fails."""

import os
import shutil
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.support.compose import Compose

ROOT = Path(__file__).parents[2]

ANSWER_S = 30.0
"""How long an engine may take to say that it is there."""

BUILD_S = 600.0
"""How long the first build may take: it loads packages. Later ones find them in a layer of the image before."""

IMAGE = "saga-relay-test"
"""Not the tag of whoever has a stack running here. It stays, so that the next build is short."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test of the compose stack that fails tells what all containers have said."""
    report = yield
    stack = getattr(item, "funcargs", {}).get("stack")
    if report.failed and isinstance(stack, Compose):
        report.sections.append(("The containers", stack.everything_said()))
    return report


@pytest.fixture(scope="session")
def engine() -> None:
    """A Docker engine that answers, with its command and with compose."""
    try:
        for command in ("info", "compose version"):
            docker(*command.split(), within_s=ANSWER_S)
    except (OSError, subprocess.SubprocessError) as error:
        said = str(getattr(error, "stdout", None) or error).strip().splitlines()[-1]
        reason = f"there is no Docker engine with compose: {said}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def image(engine: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image, built from this checkout as if its owner had cloned it for nobody else to read."""
    clone = tmp_path_factory.mktemp("clone") / "saga-relay"
    shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(".*", "__pycache__"))
    shutil.copy(ROOT / ".dockerignore", clone)
    for path in clone.rglob("*"):
        path.chmod(path.stat().st_mode & 0o700)
    docker("build", "--quiet", "--tag", IMAGE, str(clone), within_s=BUILD_S)
    return IMAGE


def docker(*arguments: str, within_s: float = 60.0) -> str:
    """What a command of Docker says, on either of its outputs. Raises CalledProcessError, or TimeoutExpired."""
    try:
        done = subprocess.run(
            ["docker", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
            timeout=within_s,
        )
    except subprocess.CalledProcessError as failed:
        failed.add_note(failed.stdout)
        raise
    return done.stdout.strip()
