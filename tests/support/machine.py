"""A machine that has nothing yet: a bare Debian in a container, without privileges and without an init."""

import ast
import io
import os
import secrets
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

ROOT = Path(__file__).parents[2]

IMAGE: Final = "debian:trixie-slim"

TMP: Final = "/tmp:exec,nosuid,nodev,mode=1777,size=50%"  # noqa: S108  the mount of a machine, no file of ours
"""In memory, which spares the servers of the tests the disk, as a Debian 13 with systemd has it too."""

LIFE_S: Final = 2 * 3600
"""When it ends by itself, should nobody be left to end it."""
COMMAND_S: Final = 120.0
"""How long what is no test may take: to start, to copy, to add a user."""

CERTIFICATES: Final = "/etc/host-certificates.crt"
"""Where the certificates lie that pip of the host trusts. Not where Debian's package ca-certificates puts its own."""

PROXIES: Final = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")

PIP_NETWORK: Final = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "retries")
"""How to reach a package index. Whatever else pip is told on the host is about files that are there only."""


@dataclass(frozen=True, slots=True)
class Login:
    """Somebody on the machine, with a copy of the repository."""

    user: str
    home: str

    @property
    def clone(self) -> str:
        return f"{self.home}/saga-relay"


ROOT_LOGIN: Final = Login("root", "/root")


class Machine:
    """Started at the beginning of the block, and gone at its end. What its commands say is printed as they say it."""

    def __init__(self) -> None:
        self._name = f"relay-fresh-{secrets.token_hex(4)}"
        self._environment = {**_proxies(), **pip_environment(_pip_settings())}

    def __enter__(self) -> Self:
        _docker("run", "--detach", "--rm", "--name", self._name, "--tmpfs", TMP, IMAGE, "sleep", str(LIFE_S))
        try:
            if certificates := _certificates():
                _docker("cp", "--follow-link", str(certificates), f"{self._name}:{CERTIFICATES}")
                self._environment["PIP_CERT"] = CERTIFICATES
        except BaseException:  # Ctrl-C as well
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def add_user(self, name: str) -> Login:
        """An ordinary user."""
        login = Login(name, f"/home/{name}")
        self.run(f"useradd --create-home --shell /bin/bash {name}")
        return login

    def copy_repository(self, login: Login) -> None:
        """What a clone would have if everything here were committed."""
        unpack = f"mkdir {login.clone} && tar -x --no-same-owner -C {login.clone}"
        subprocess.run((*self._exec(login), "sh", "-c", unpack), input=_archive(), check=True, timeout=COMMAND_S)

    def make(self, target: str, login: Login, *, within_s: float, **variables: str) -> str:
        """Run make in the clone."""
        return self.run(f"make {target}", login, within_s=within_s, where=login.clone, **variables)

    def run(
        self,
        command: str,
        login: Login = ROOT_LOGIN,
        *,
        within_s: float = COMMAND_S,
        where: str = "/",
        **variables: str,
    ) -> str:
        """Run a line of shell, and return what it says. Fails when it fails, or takes too long."""
        said = []
        print(f"\n{login.user}$ {command}", flush=True)
        with subprocess.Popen(
            (*self._exec(login, where, **variables), "sh", "-c", command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            watch = threading.Timer(within_s, process.kill)  # ends our end of it; the other goes with the machine
            watch.start()
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    print(line, end="", flush=True)
                    said.append(line)
            finally:
                watch.cancel()
        assert process.returncode == 0, f"{login.user}'s `{command}` ended with {process.returncode}: see its output"
        return "".join(said)

    def _exec(self, login: Login, where: str = "/", **variables: str) -> tuple[str, ...]:
        settings = {"HOME": login.home, "USER": login.user, **self._environment, **variables}
        words = [word for name, value in settings.items() for word in ("--env", f"{name}={value}")]
        return ("docker", "exec", "--interactive", "--user", login.user, "--workdir", where, *words, self._name)

    def _remove(self) -> None:
        _docker("rm", "--force", "--volumes", self._name)


def _docker(*arguments: str) -> None:
    done = subprocess.run(
        ("docker", *arguments), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMMAND_S
    )
    assert done.returncode == 0, f"docker {arguments[0]} failed: {done.stderr.strip()}"


def _archive() -> bytes:
    """The files that git knows, and those that it does not ignore, as they are now."""
    listed = subprocess.run(
        ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"),
        cwd=ROOT,
        capture_output=True,
        check=True,
        timeout=COMMAND_S,
    )
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as writer:
        for name in sorted(set(os.fsdecode(listed.stdout).split("\0"))):
            if name and (ROOT / name).exists():  # deleted, and not committed yet, is gone as well
                writer.add(ROOT / name, name, recursive=False)
    return archive.getvalue()


def _proxies() -> dict[str, str]:
    return {name: os.environ[name] for name in PROXIES if name in os.environ}


def _pip_settings() -> dict[str, str]:
    """What pip is told on this machine, wherever it is told."""
    listed = subprocess.run(
        (sys.executable, "-m", "pip", "config", "list"), capture_output=True, text=True, check=True, timeout=COMMAND_S
    )
    return dict(settings_of(listed.stdout))


def settings_of(listed: str) -> Iterator[tuple[str, str]]:
    """The settings in the output of `pip config list`; what the environment says comes last, because it wins.

    A line is like `global.cert='/etc/ssl/certs/ca-certificates.crt'`, or `:env:.cert='…'`.
    """
    for line in sorted(listed.splitlines(), key=lambda line: line.startswith(":env:")):
        name, found, value = line.partition("=")
        if found:
            yield name.rpartition(".")[2], str(ast.literal_eval(value))


def pip_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """What of it makes sense on another machine, as variables. An index in a directory does not."""
    kept = {}
    for name in PIP_NETWORK:
        words = [word for word in settings.get(name, "").split() if not word.startswith(("file:", "/", "."))]
        if words:
            kept["PIP_" + name.upper().replace("-", "_")] = " ".join(words)
    return kept


def _certificates() -> Path | None:
    """The certificates that pip of this machine trusts, if it was told of any."""
    path = _pip_settings().get("cert")
    return Path(path) if path and Path(path).is_file() else None
