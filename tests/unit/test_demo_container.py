"""A Docker engine that is not there."""

import gc
from pathlib import Path

import pytest

from relay.demo.servers.container import EngineMissing, obtain
from relay.demo.servers.host import free_ports


@pytest.fixture
def engine_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Where nobody listens."""
    address = f"unix://{tmp_path}/docker.sock"
    monkeypatch.setenv("DOCKER_HOST", address)
    return address


def test_nobody_at_the_socket_is_no_engine_and_leaves_no_socket_open(engine_at: str) -> None:
    with pytest.raises(EngineMissing, match=f"No Docker engine answers at {engine_at}: No such file or directory"):
        obtain("postgres:17", say=print)
    gc.collect()  # a socket that was left open would be told now, and fail the test


def test_nobody_at_the_port_is_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{free_ports(1)[0]}")
    with pytest.raises(EngineMissing, match="Connection refused"):
        obtain("postgres:17", say=print)
    gc.collect()


def test_an_address_that_is_none_is_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "pigeon://coop")
    with pytest.raises(EngineMissing, match="pigeon"):
        obtain("postgres:17", say=print)
