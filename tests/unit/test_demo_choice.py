"""Which kind of server the demo and the tests start, by what there is on the machine."""

from collections.abc import Callable

import pytest

from relay.demo.servers import choice, container
from relay.demo.servers.choice import choose_postgres, choose_rabbitmq
from relay.demo.servers.container import EngineMissing, ImageMissing
from relay.demo.servers.host import ServerMissing
from relay.demo.servers.images import ContainerPostgres, ContainerRabbitMQ
from relay.demo.servers.kind import Kind
from relay.demo.servers.postgres import PrivatePostgres
from relay.demo.servers.rabbitmq import PrivateRabbitMQ

NO_ENGINE = EngineMissing("No Docker engine answers: connection refused")
NO_IMAGE = ImageMissing("The Docker engine cannot get the image rabbitmq:4-management: no route to host")


class Machine:
    """What is there, what was done to it, and what was said about it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.programs = True
        self.container: ServerMissing | None = None
        self.package: ServerMissing | None = None
        self.done: list[str] = []
        self.said: list[str] = []
        monkeypatch.setattr(choice, "postgres_is_there", lambda: self.programs)
        monkeypatch.setattr(choice, "find_rabbitmq", lambda: object() if self.programs else None)
        monkeypatch.setattr(container, "obtain", self._obtain)
        monkeypatch.setattr(choice, "ensure_rabbitmq", self._install)

    def _obtain(self, image: str, say: Callable[[str], None]) -> None:
        self.done.append(f"obtained {image}")
        if self.container is not None:
            raise self.container

    def _install(self, interactive: bool, say: Callable[[str], None]) -> None:
        self.done.append("installed")
        if self.package is not None:
            raise self.package

    def postgres(self, wanted: Kind | None = None) -> object:
        return choose_postgres(wanted, self.said.append)

    def rabbitmq(self, wanted: Kind | None = None) -> object:
        return choose_rabbitmq(wanted, interactive=False, say=self.said.append)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_what_is_installed_is_private_and_no_engine_is_asked(machine: Machine) -> None:
    assert (machine.postgres(), machine.rabbitmq()) == (PrivatePostgres, PrivateRabbitMQ)
    assert machine.done == []


def test_what_is_missing_runs_in_a_container_and_nothing_is_installed(machine: Machine) -> None:
    machine.programs = False
    assert (machine.postgres(), machine.rabbitmq()) == (ContainerPostgres, ContainerRabbitMQ)
    assert machine.done == ["obtained postgres:17", "obtained rabbitmq:4-management"]


def test_without_an_engine_rabbitmq_is_installed_and_nobody_hears_of_engines(machine: Machine) -> None:
    machine.programs, machine.container = False, NO_ENGINE
    assert machine.rabbitmq() is PrivateRabbitMQ
    assert machine.done[-1] == "installed"
    assert machine.said == []


def test_without_an_image_rabbitmq_is_installed_and_the_reason_is_told(machine: Machine) -> None:
    machine.programs, machine.container = False, NO_IMAGE
    assert machine.rabbitmq() is PrivateRabbitMQ
    assert machine.done[-1] == "installed"
    assert machine.said == [str(NO_IMAGE)]


def test_what_cannot_be_had_in_any_way_is_missing(machine: Machine) -> None:
    machine.programs, machine.container = False, NO_ENGINE
    machine.package = ServerMissing("There is no rabbitmq-server on this machine, and you do not want it installed.")
    with pytest.raises(ServerMissing, match="you do not want it installed"):
        machine.rabbitmq()


def test_postgres_that_cannot_be_had_in_a_container_is_looked_for_once_more_by_itself(machine: Machine) -> None:
    machine.programs, machine.container = False, NO_ENGINE
    assert machine.postgres() is PrivatePostgres, "whose start says what to install"


def test_who_wants_containers_gets_them_whatever_is_installed(machine: Machine) -> None:
    assert (machine.postgres("containers"), machine.rabbitmq("containers")) == (ContainerPostgres, ContainerRabbitMQ)


@pytest.mark.parametrize("reason", [NO_ENGINE, NO_IMAGE])
def test_who_wants_containers_gets_nothing_else(machine: Machine, reason: ServerMissing) -> None:
    machine.container = reason
    with pytest.raises(ServerMissing) as missing:
        machine.postgres("containers")
    assert missing.value is reason
    with pytest.raises(ServerMissing) as missing:
        machine.rabbitmq("containers")
    assert missing.value is reason
    assert "installed" not in machine.done


def test_who_wants_private_servers_gets_nothing_else(machine: Machine) -> None:
    machine.programs = False
    assert (machine.postgres("private"), machine.rabbitmq("private")) == (PrivatePostgres, PrivateRabbitMQ)
    assert machine.done == ["installed"]
