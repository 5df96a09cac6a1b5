"""What a private server needs of the machine: an account, a directory, free ports, processes that start and end."""

import os
import pwd
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL, Signals

from relay.errors import RelayError

LOOPBACK = "127.0.0.1"

KILL_S = 10.0
"""How long a process may take to disappear after SIGKILL: the kernel frees its memory first."""
COMMAND_S = 120.0
"""How long a helper that ends by itself may take, `initdb` on a slow disk being the longest."""
CONNECT_S = 2.0
"""How long one attempt to talk to a server on this machine may take."""
STRAGGLER_S = 2.0
"""How long the children of a dead server get to notice its death."""
POLL_S = 0.05
"""How often to look for what sends no event: a port, a file, somebody else's child."""

NO_TERMINAL = 0
LOWEST_PORT = 10_240
PORT_TRIES = 200


class ServerMissing(RelayError):
    """A server program that is needed is not installed."""

    hint = "Install it, or name a server that runs already."


class ServerFailed(RelayError):
    """A private server, or a helper that sets it up, failed. The message ends with its last words."""

    hint = "Its last words are above. Usual causes: no room or no rights in the temporary directory, too little memory."


@dataclass(frozen=True, slots=True)
class Account:
    """Who the servers run as. None means: as ourselves."""

    user: int | None = None
    group: int | None = None

    @property
    def extra_groups(self) -> list[int] | None:
        """Another account must not keep our supplementary groups."""
        return None if self.user is None else []

    def own(self, path: Path) -> None:
        """Give a file or directory (not what is in it) to this account."""
        if self.user is not None and self.group is not None:
            os.chown(path, self.user, self.group, follow_symlinks=False)

    def run(self, *command: str | Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run a helper to its end as this account. All that it says is in `stdout`. Raises OSError, TimeoutExpired."""
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=COMMAND_S,
            cwd="/",
            env=environment() if env is None else env,
            user=self.user,
            group=self.group,
            extra_groups=self.extra_groups,
            umask=0o077,
        )

    def reaches(self, *paths: Path) -> bool:
        """Whether it may use these: execute the programs, enter the directories.

        The kernel answers, because modes alone do not tell (access lists, namespaces, mount options).
        """
        return all(self.run("test", "-x", path).returncode == 0 for path in paths)


def server_account() -> Account:
    """The account for servers: PostgreSQL refuses to be root, so root gives it, and RabbitMQ, to `nobody`."""
    if os.geteuid() != 0:
        return Account()
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        raise ServerFailed(
            "PostgreSQL refuses to run as root, and this machine has no user nobody.", "Run it as an ordinary user."
        ) from None
    return Account(nobody.pw_uid, nobody.pw_gid)


def environment(**more: str) -> dict[str, str]:
    """The environment of a server: only what it needs, because ours may hold secrets and settings of other servers."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "TMPDIR") if name in os.environ}
    return {**kept, "PATH": search_path(), "LC_ALL": "C", "TZ": "UTC", **more}


def search_path() -> str:
    """PATH, and where servers are on machines that keep those off an ordinary user's PATH."""
    known = os.environ.get("PATH", os.defpath).split(os.pathsep)
    usual = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
    return os.pathsep.join([*known, *(path for path in usual if path not in known)])


def find_program(name: str) -> Path | None:
    """The program of that name on the search path."""
    found = shutil.which(name, path=search_path())
    return None if found is None else Path(found)


class PrivateDirectory:
    """A directory below the system's temporary directory that only we and the account can enter.

    As root it belongs to root, and the account cannot change what lies in it directly: so it cannot put a link where
    root is about to write. What a server writes goes to directories of `make`.
    """

    def __init__(self, prefix: str, account: Account) -> None:
        self._account = account
        parent = next((path for path in _temporary_directories() if account.reaches(path)), None)
        if parent is None:
            raise ServerFailed(f"The servers cannot enter {tempfile.gettempdir()}.", "Set TMPDIR to one that they can.")
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent)).resolve()
        if account.group is not None:
            os.chown(self.path, -1, account.group)
            self.path.chmod(0o750)

    def make(self, name: str) -> Path:
        """A new directory in it that belongs to the account."""
        path = self.path / name
        path.mkdir(mode=0o700, parents=True)
        self._account.own(path)
        return path

    def write(self, name: str, text: str, mode: int = 0o600) -> Path:
        """A file in it that belongs to the account and that nobody else can read; replaced when it is there."""
        path = self.path / name
        path.unlink(missing_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
        self._account.own(path)
        return path

    def adopt(self, name: str, *trees: Path) -> Path:
        """A new directory in it with copies of trees that the account cannot reach where they are."""
        copies = self.make(name)
        for tree in trees:
            shutil.copytree(tree, copies / tree.name, symlinks=True)
        for path in copies.rglob("*"):
            self._account.own(path)
        return copies

    def remove(self) -> None:
        """End what still runs in it, and remove it with everything in it."""
        self.end_stragglers()
        shutil.rmtree(self.path, ignore_errors=True)
        if self.path.exists():
            raise ServerFailed(f"{self.path} cannot be removed.", "Remove it yourself.")

    def end_stragglers(self) -> None:
        """End what still works in it after its server. Children of a killed server notice, or are killed as well."""
        deadline = time.monotonic() + STRAGGLER_S
        while (pids := list(self._stragglers())) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, SIGKILL)
        deadline = time.monotonic() + KILL_S
        while any(self._stragglers()) and time.monotonic() < deadline:
            time.sleep(POLL_S)

    def _stragglers(self) -> Iterator[int]:
        """Processes of the account that work in this directory and have no terminal (somebody may look around in it).

        Parents and process groups do not tell: a child of a dead server belongs to init, and servers make new sessions.
        Without /proc (not Linux) there are none to be seen.
        """
        user = os.geteuid() if self._account.user is None else self._account.user
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended meanwhile
                here = process.stat().st_uid == user and (process / "cwd").readlink().is_relative_to(self.path)
                if here and _terminal(process) == NO_TERMINAL and process.name != str(os.getpid()):
                    yield int(process.name)


def _terminal(process: Path) -> int:
    """The number of its controlling terminal. Source: proc(5), /proc/pid/stat; the name before it may hold anything."""
    return int((process / "stat").read_text().rpartition(")")[2].split()[4])


def _temporary_directories() -> Iterator[Path]:
    """Root's TMPDIR may be one that only root can enter (pam_tmpdir makes such)."""
    yield Path(tempfile.gettempdir())
    yield from (Path("/tmp"), Path("/var/tmp"))  # noqa: S108  only as the parent of a mkdtemp


def free_ports(count: int) -> list[int]:
    """Different TCP ports of 127.0.0.1 that nobody uses now. Nothing reserves them: their user may come too late.

    They lie outside the range from which the system takes the ports of outgoing connections: a client that keeps
    reconnecting to a stopped server may be given the server's own port, even connect to itself on it, and the server
    could never come back to it.
    """
    with ExitStack() as held:
        return [held.enter_context(closing(_bind_free())).getsockname()[1] for _ in range(count)]


def _bind_free() -> socket.socket:
    end = _outgoing_ports_start()
    if end > LOWEST_PORT:
        dice = random.SystemRandom()  # two demos at once must not share a seed
        for _ in range(PORT_TRIES):
            with suppress(OSError):
                return bound_socket(dice.randrange(LOWEST_PORT, end))
    return bound_socket(0)


def _outgoing_ports_start() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):
        return 32_768  # what Linux has by default; others begin higher


def bound_socket(port: int) -> socket.socket:
    """A TCP socket bound to the port on 127.0.0.1, or to any free one for 0. Raises OSError when it is taken."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((LOOPBACK, port))
    except OSError:
        bound.close()
        raise
    return bound


def spawn(
    command: Sequence[str | Path],
    *,
    account: Account,
    env: Mapping[str, str],
    cwd: Path,
    log: Path,
    stdin: int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start a server in a session of its own, so that a Ctrl-C at the terminal is ours to handle, not its own."""
    with log.open("ab") as output:
        try:
            return subprocess.Popen(
                command,
                stdin=stdin,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=env,
                user=account.user,
                group=account.group,
                extra_groups=account.extra_groups,
                umask=0o077,
                start_new_session=True,
            )
        except OSError as error:
            raise ServerFailed(f"{command[0]} cannot be run: {error.strerror}.") from error


def end(process: subprocess.Popen[bytes], *signals: tuple[Signals, float]) -> None:
    """Send each signal in turn and wait so many seconds after it. Returns when the process is gone.

    At last comes SIGKILL, to its whole group: nobody is left to end its children.
    """
    for signal, wait_s in (*signals, (SIGKILL, KILL_S)):
        if process.poll() is not None:
            return
        if signal == SIGKILL:
            os.killpg(process.pid, signal)  # `spawn` made the group
        else:
            process.send_signal(signal)
        with suppress(subprocess.TimeoutExpired):
            process.wait(wait_s)
            return
    raise ServerFailed(f"Process {process.pid} does not even end by SIGKILL.", "It hangs in the kernel: see dmesg.")


def how_it_ended(status: int) -> str:
    """An exit status in words."""
    return f"was killed by {Signals(-status).name}" if status < 0 else f"ended with status {status}"
