"""The life of a server of our own in a container: what a private server promises, kept by a Docker engine."""

import os
import secrets
import socket
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Final
from urllib.parse import SplitResult, urlsplit

import docker
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.models.containers import Container
from docker.types import Ulimit
from requests.exceptions import RequestException
from testcontainers.core.config import ConnectionMode, testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.docker_client import DockerClient, get_docker_host

from relay.demo.servers.host import KILL_S, LOOPBACK, POLL_S, ServerFailed, ServerMissing, how_it_ended
from relay.demo.servers.server import LOG_LINES, PORT_TAKEN, START_S, PortTaken, Server

USUAL_ADDRESS: Final = "unix:///var/run/docker.sock"

ENGINE_S: Final = 5
"""How long an engine may take to say that it is there."""

REQUEST_S: Final = 60
"""How long it may be silent while it does what it was asked for."""

ENGINE_HINT: Final = "The Docker engine says so; its log may say more."

SIGNAL_STATUS: Final = 128
"""A container that a signal ended has this and the signal's number as its exit status."""

OWNER: Final = "saga-relay.pid"
"""The label of each container with the process that started it, and removes it unless it is killed."""

ON_THIS_MACHINE: Final = ("localhost", LOOPBACK)

_STARTING: Final = threading.Lock()
"""testcontainers starts a reaper before the first container of a process, and must not begin that twice at once."""


class EngineMissing(ServerMissing):
    """No Docker engine answers."""

    hint = "Start one, or name it by DOCKER_HOST. You need the right to use it."


class ImageMissing(ServerMissing):
    """The Docker engine does not have an image, and cannot pull it."""

    hint = (
        "`docker pull` tells more. Without testcontainers/ryuk, which removes the containers of a process that was"
        " killed, it goes with TESTCONTAINERS_RYUK_DISABLED=true."
    )


@contextmanager
def engine(silence_s: int = REQUEST_S) -> Iterator[docker.DockerClient]:
    """The Docker engine that testcontainers would use. Raises EngineMissing."""
    address = get_docker_host() or USUAL_ADDRESS
    try:
        _knock(urlsplit(address))
        client = DockerClient(timeout=silence_s).client
    except OSError as error:
        raise EngineMissing(f"No Docker engine answers at {address}: {error.strerror or error}") from error
    except DockerException as error:
        raise EngineMissing(f"No Docker engine answers at {address}: {error}") from error
    try:
        yield client
    finally:
        client.close()


def _knock(address: SplitResult) -> None:
    """Raises OSError if nobody listens at the socket. docker's client would, too, but forget to close its own."""
    if address.scheme in ("unix", "http+unix"):
        with socket.socket(socket.AF_UNIX) as door:
            door.settimeout(ENGINE_S)
            door.connect(address.path)


def obtain(image: str, say: Callable[[str], None]) -> None:
    """See to it that an engine answers and has the image, and its reaper's. Raises EngineMissing, ImageMissing."""
    with engine(ENGINE_S):
        pass
    # Somebody may have named a registry of their own, which testcontainers puts before the name.
    images = [f"{testcontainers_config.hub_image_name_prefix}{image}"]
    if not testcontainers_config.ryuk_disabled:
        images.append(f"{testcontainers_config.hub_image_name_prefix}{testcontainers_config.ryuk_image}")
    with engine() as client:
        for name in images:
            try:
                _pull(client, name, say)
            except (DockerException, RequestException) as error:
                raise ImageMissing(f"The Docker engine cannot get the image {name}: {error}") from error


def _pull(client: docker.DockerClient, name: str, say: Callable[[str], None]) -> None:
    try:
        client.images.get(name)
    except ImageNotFound:
        say(f"pulling the image {name}; this may take some minutes")
        client.images.pull(name)


class ContainerServer(Server):
    """A server in a container of an official image. Its data lies in the container, and goes with it.

    Its ports are those of 127.0.0.1, unless the engine is elsewhere, or we are in a container ourselves.
    """

    image: ClassVar[str]
    ports_inside: ClassVar[tuple[int, ...]]
    """What it listens on in the container, in the order of `_ports`."""
    limits: ClassVar[tuple[Ulimit, ...]] = ()
    """Of its processes, where those that the engine sets do not do."""

    def __init__(self) -> None:
        super().__init__()
        self._box: DockerContainer | None = None
        self._name = ""
        self._host = LOOPBACK

    # What the two servers answer differently

    @abstractmethod
    def _fill(self, box: DockerContainer) -> None:
        """Say what runs in the container."""

    # What they have in common

    @property
    def where(self) -> str:
        return f"{self.title} in a container ({self.image})"

    @property
    def container(self) -> str | None:
        return self._name or None

    @property
    def host(self) -> str:
        return self._host

    @property
    def running(self) -> bool:
        """Also false when the engine does not answer."""
        try:
            return self._box is not None and self._state()["Running"] is True
        except (DockerException, RequestException):
            return False

    @property
    def ending(self) -> str:
        try:
            status = int(self._state()["ExitCode"])
        except (DockerException, RequestException) as error:
            return f"is out of sight ({error})"
        return how_it_ended(SIGNAL_STATUS - status if status > SIGNAL_STATUS else status)

    def kill(self) -> None:
        self._end()

    def _prepare(self) -> None:
        obtain(self.image, say=lambda _: None)

    def _configure(self) -> None:
        """A container for these ports: those of one that exists cannot be changed."""
        self._remove()
        self._name = f"relay-{self.title.lower()}-{secrets.token_hex(6)}"
        labels = {OWNER: str(os.getpid())}
        self._box = DockerContainer(self.image, name=self._name, labels=labels, ulimits=list(self.limits))
        self._fill(self._box)
        for inside, port in zip(self.ports_inside, self._ports, strict=True):
            # testcontainers hands it on to the engine's client, which takes an address as well.
            self._box.ports[f"{inside}/tcp"] = (LOOPBACK, port) if _is_near(self._box) else port  # type: ignore[assignment]

    def _launch(self) -> None:
        deadline = time.monotonic() + START_S
        with self._told("start"):
            self._start_container()
        while not self._is_ready():
            if not self.running:
                raise self._failure(f"{self.ending} instead of starting", self._last_words())
            if time.monotonic() > deadline:
                said = self._last_words()
                self.kill()
                raise self._failure(f"was not ready within {START_S:.0f} s", said)
            time.sleep(POLL_S)

    def _start_container(self) -> None:
        assert self._box is not None  # noqa: S101  _configure made it
        if self._was_ready:
            self._inside.start()
            return
        with _STARTING:
            self._box.start()
        host = self._box.get_container_host_ip()
        self._host = LOOPBACK if host in ON_THIS_MACHINE else host
        if not self._box.get_docker_client().get_connection_mode().use_mapped_port:
            self._ports = list(self.ports_inside)

    def _end(self, *signals: tuple[str, float]) -> None:
        """As `host.end`: send each signal in turn and wait so many seconds after it; at last comes SIGKILL."""
        with self._told("be stopped"):
            for signal, wait_s in (*signals, ("SIGKILL", KILL_S)):
                if not self.running or self._ends_by(signal, wait_s):
                    return
        raise ServerFailed(f"The container {self._name} does not even end by SIGKILL.", ENGINE_HINT)

    def _ends_by(self, signal: str, wait_s: float) -> bool:
        try:
            self._inside.kill(signal)
        except APIError:  # it has just ended by itself
            return not self.running
        return self._ends_within(wait_s)

    def _ends_within(self, wait_s: float) -> bool:
        try:
            self._inside.wait(timeout=wait_s)
        except RequestException:
            return not self.running
        return True

    def _remove(self) -> None:
        """By its name: whoever was interrupted does not know yet whether there is a container."""
        if self._box is None:
            return
        client = self._box.get_docker_client().client
        try:
            client.containers.get(self._name).remove(force=True, v=True)
        except NotFound:
            pass
        except (DockerException, RequestException) as error:
            hint = f"Remove it yourself: docker rm --force --volumes {self._name}"
            raise ServerFailed(f"The container {self._name} cannot be removed: {error}", hint) from error
        finally:
            client.close()
            self._box = None

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """An engine that refuses is told as any other trouble with a server."""
        try:
            yield
        except (DockerException, RequestException) as error:
            kind = PortTaken if PORT_TAKEN.search(str(error)) else ServerFailed
            raise kind(f"{self.title} cannot {what} in its container: {error}", ENGINE_HINT) from error

    @property
    def _inside(self) -> Container:
        if self._box is None:
            raise self._not_started()
        return self._box.get_wrapped_container()

    def _state(self) -> dict[str, Any]:
        """Source: Docker's Engine API, "Inspect a container", State."""
        self._inside.reload()
        state: dict[str, Any] = self._inside.attrs["State"]
        return state

    def _last_words(self) -> str:
        return self._inside.logs(tail=LOG_LINES).decode(errors="replace")


def _is_near(box: DockerContainer) -> bool:
    """Whether its 127.0.0.1 is ours."""
    client = box.get_docker_client()
    return client.get_connection_mode() is ConnectionMode.docker_host and client.host() in ON_THIS_MACHINE
