"""The compose stack under a name of its own, on free ports: docker-compose.yml as its users run it."""

import json
import os
import secrets
import subprocess
import time
from pathlib import Path
from typing import Any, Final

from relay.demo.access import SERVICES
from relay.demo.servers.host import LOOPBACK, free_ports

ROOT: Final = Path(__file__).parents[2]

COMMAND_S: Final = 480.0
"""How long one command may take: the build and the start of everything, on a machine that does other things too."""

LAST_LINES: Final = "200"
"""Of each log, for whoever has to find out why something failed."""

KINDS: Final = ("container", "volume", "network")
"""What a stack is made of."""


class Failed(AssertionError):
    """A command that should have succeeded did not."""


class Compose:
    """`docker compose` for one stack."""

    def __init__(self, image: str) -> None:
        self.project = f"relay-test-{secrets.token_hex(4)}"
        ports = dict(zip(SERVICES, free_ports(len(SERVICES)), strict=True))
        self.urls = {name: f"http://{LOOPBACK}:{port}" for name, port in ports.items()}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("COMPOSE_", "LOAD_"))}
        chosen = {f"{name.upper()}_PORT": str(port) for name, port in ports.items()}
        # By its option the name would have compose look at labels only, and not at the file, when it removes things.
        self._environment = inherited | chosen | {"COMPOSE_PROJECT_NAME": self.project, "SAGA_RELAY_IMAGE": image}

    def up(self, *options: str) -> None:
        """Start everything and wait until it is healthy. Raises Failed, with what was logged meanwhile."""
        try:
            self.run("up", "--wait", *options)
        except Failed as failed:
            raise Failed(f"{failed}\n{self.everything_said()}") from None

    def run(self, *arguments: str) -> str:
        """What a command says. Raises Failed, with everything that it said."""
        done = self.attempt(*arguments)
        if done.returncode:
            raise Failed(f"docker compose {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def attempt(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """A command that may fail, but not hang."""
        try:
            return subprocess.run(
                ["docker", "compose", "--ansi", "never", *arguments],
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=COMMAND_S,
            )
        except subprocess.TimeoutExpired as late:
            raise Failed(
                f"docker compose {' '.join(arguments)}: not done within {COMMAND_S:g} s\n{late.stderr}"
            ) from None

    def inside(self, service: str, *command: str) -> str:
        """What a command in the container of a service says."""
        return self.run("exec", "--no-TTY", service, *command)

    def inspect(self, service: str) -> dict[str, Any]:
        """What the engine knows of the container of a service, whether it runs or not."""
        ident = self.run("ps", "--all", "--quiet", service).strip()
        (found,) = json.loads(subprocess.check_output(["docker", "inspect", ident]))
        assert isinstance(found, dict)
        return found

    def states(self) -> dict[str, tuple[str, str | None, int]]:
        """Of each container: whether it runs, whether it is healthy, and its exit status."""
        states = {}
        for service in self.run("ps", "--all", "--services").split():
            state = self.inspect(service)["State"]
            states[service] = (state["Status"], state.get("Health", {}).get("Status"), state["ExitCode"])
        return states

    def words(self, service: str, since: str | None = None) -> str:
        """What a service has logged. (compose itself would put codes for a terminal between the lines.)"""
        command = ["docker", "logs", *(("--since", since) if since else ()), self.inspect(service)["Id"]]
        return subprocess.check_output(command, stderr=subprocess.STDOUT, text=True)

    def everything_said(self) -> str:
        """The ends of the logs of all containers, also of those that have ended."""
        return self.attempt("--profile", "load", "logs", "--tail", LAST_LINES).stdout

    def down(self) -> None:
        """Stop everything and remove it, whatever a test has left."""
        self.run("--profile", "load", "down", "--volumes")

    def remains(self) -> dict[str, list[str]]:
        """What is there of it."""
        label = f"label=com.docker.compose.project={self.project}"
        everything = {"container": ["--all"]}
        return {
            kind: subprocess.check_output(
                ["docker", kind, "ls", "--quiet", *everything.get(kind, []), "--filter", label], text=True
            ).split()
            for kind in KINDS
        }


def now() -> str:
    """This moment, as `docker logs --since` takes it."""
    return str(time.time())
