"""RabbitMQ with its management API, as a private server."""

import base64
import http.client
import json
import re
import secrets
import socket
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from signal import SIGTERM
from subprocess import Popen
from urllib.parse import quote

from relay.demo.servers.definitions import EVERYTHING, BrokerUser, definitions
from relay.demo.servers.epmd import PortMapper
from relay.demo.servers.host import CONNECT_S, LOOPBACK, ServerMissing, end, environment, find_program, spawn
from relay.demo.servers.server import PrivateServer, Server

SCRIPT = "rabbitmq-server"
ADMIN = "admin"
PLUGINS = ("rabbitmq_management", "rabbitmq_consistent_hash_exchange")
STOP_S = 30.0
"""How long a clean stop may take; queues are written to disk in it."""

HOW_TO_INSTALL = (
    "Install the package rabbitmq-server (Debian, Ubuntu: apt-get install rabbitmq-server;"
    " macOS: brew install rabbitmq), or put rabbitmq-server on the PATH in another way,"
    " or start a Docker engine, and it runs in a container."
)

IDLE_SLEEPS = "+sbwt none +sbwtdcpu none +sbwtdio none"
"""Flags of Erlang: an idle scheduler sleeps, because the machine is shared."""

ERLANG_FLAGS = (
    "-kernel inet_dist_use_interface {127,0,0,1}"  # nodes of one machine only
    " -start_epmd false"  # ours runs already
    f" {IDLE_SLEEPS}"
)

CONFIG = """\
listeners.tcp.1 = {address}:{amqp}
management.tcp.ip = {address}
management.tcp.port = {management}
load_definitions = {definitions}
disk_free_limit.absolute = 50MB
log.file = false
log.console = true
log.console.level = info
"""

AMQP_HEADER = b"AMQP\x00\x00\x09\x01"
METHOD_FRAME = b"\x01"
"""To a client's header a server that is ready answers with a method, Connection.Start. Source: AMQP 0-9-1, 4.2.2."""


class RabbitMQ(Server):
    """RabbitMQ, wherever it runs. It has these users, and `admin`, who may do everything."""

    title = "RabbitMQ"

    def __init__(self, users: Sequence[BrokerUser] = ()) -> None:
        super().__init__()
        self.admin = BrokerUser(
            ADMIN, secrets.token_urlsafe(18), ("administrator",), EVERYTHING, EVERYTHING, EVERYTHING
        )
        self._users = {user.name: user for user in (self.admin, *users)}

    @property
    def management_port(self) -> int:
        """The port of the management API, by HTTP."""
        return self._ports[1]

    @property
    def management_url(self) -> str:
        """Where the management API and its pages are; log in as `admin`."""
        return f"http://{self.host}:{self.management_port}"

    def amqp_url(self, user: str = ADMIN, vhost: str = "/") -> str:
        """An amqp:// URL with the user's password in it."""
        name, password = quote(user, safe=""), quote(self._users[user].password, safe="")
        return f"amqp://{name}:{password}@{self.host}:{self.port}/{quote(vhost, safe='')}"

    def _definitions(self) -> str:
        """Its users and their rights, for a file that it loads at every start."""
        return json.dumps(definitions(self._users.values()))

    def _is_ready(self) -> bool:
        """It knows our users, so that it is no other server, and it speaks AMQP."""
        return self._knows_users() and self._speaks_amqp()

    def _knows_users(self) -> bool:
        login = base64.b64encode(f"{self.admin.name}:{self.admin.password}".encode()).decode()
        api = http.client.HTTPConnection(self.host, self.management_port, timeout=CONNECT_S)
        with closing(api), suppress(OSError, http.client.HTTPException):
            api.request("GET", "/api/permissions", headers={"Authorization": f"Basic {login}"})
            response = api.getresponse()
            if response.status == http.HTTPStatus.OK:
                return self._users.keys() <= {permission["user"] for permission in json.load(response)}
        return False

    def _speaks_amqp(self) -> bool:
        with suppress(OSError), socket.create_connection((self.host, self.port), CONNECT_S) as connection:
            connection.sendall(AMQP_HEADER)
            return connection.recv(1) == METHOD_FRAME
        return False


class PrivateRabbitMQ(RabbitMQ, PrivateServer):
    """RabbitMQ from the PATH, with an epmd of its own."""

    ports_needed = 4
    # epmd notices the end of a node a moment after the node's end.
    remains = re.compile(r"node with name \S+ (is )?already running", re.IGNORECASE)

    def __init__(self, users: Sequence[BrokerUser] = ()) -> None:
        super().__init__(users)
        self._node = f"relay-{secrets.token_hex(6)}@localhost"
        self._program = Path()
        self._epmd: PortMapper | None = None

    def stop(self) -> None:
        """Its epmd ends too. What is durable is kept."""
        if self.running:
            end(self.process, (SIGTERM, STOP_S))
        if self._epmd is not None:
            self._epmd.stop()

    def _discard(self) -> None:
        self.kill()
        self.stop()

    def _set_up(self) -> None:
        program = find_rabbitmq()
        if program is None:
            raise ServerMissing("There is no rabbitmq-server on this machine.", HOW_TO_INSTALL)
        self._program = program
        self._private.make("home")
        self._private.write("home/.erlang.cookie", secrets.token_urlsafe(24), mode=0o400)
        self._private.write("enabled_plugins", f"[{', '.join(PLUGINS)}].\n")
        self._private.write("definitions.json", self._definitions())
        self._private.make("none")  # in the place of the machine's own configuration

    def _configure(self) -> None:
        config = CONFIG.format(
            address=LOOPBACK,
            amqp=self.port,
            management=self.management_port,
            definitions=self.directory / "definitions.json",
        )
        self._private.write("rabbitmq.conf", config)
        if self._epmd is not None:
            self._epmd.stop()
        self._epmd = PortMapper(self._epmd_port, self._account, self.directory)

    @property
    def _epmd_port(self) -> int:
        return self._ports[2]

    def _spawn(self) -> Popen[bytes]:
        assert self._epmd is not None  # noqa: S101  _configure made it
        self._epmd.start()
        return spawn((self._program,), account=self._account, env=self._environment(), cwd=self.directory, log=self.log)

    def _environment(self) -> dict[str, str]:
        """Every place that RabbitMQ reads or writes is named, or it would be one of the machine's own."""
        home, none = self.directory / "home", self.directory / "none"
        paths = {
            "HOME": home,
            "ERL_CRASH_DUMP": home / "erl_crash.dump",
            "RABBITMQ_CONF_ENV_FILE": none / "rabbitmq-env.conf",
            "RABBITMQ_CONFIG_FILE": self.directory / "rabbitmq.conf",
            "RABBITMQ_CONFIG_FILES": none,
            "RABBITMQ_ADVANCED_CONFIG_FILE": none / "advanced.config",
            "RABBITMQ_ENABLED_PLUGINS_FILE": self.directory / "enabled_plugins",
            "RABBITMQ_PLUGINS_EXPAND_DIR": home / "plugins",
            "RABBITMQ_GENERATED_CONFIG_DIR": home / "config",
            "RABBITMQ_MNESIA_BASE": home / "mnesia",
            "RABBITMQ_LOG_BASE": home / "log",
            "RABBITMQ_PID_FILE": home / "pid",
        }
        return environment(
            **{name: str(path) for name, path in paths.items()},
            ERL_AFLAGS=ERLANG_FLAGS,
            ERL_EPMD_ADDRESS=LOOPBACK,
            ERL_EPMD_PORT=str(self._epmd_port),
            RABBITMQ_NODENAME=self._node,
            RABBITMQ_DIST_PORT=str(self._ports[3]),
            RABBITMQ_LOGS="-",
            # The script then becomes the server, not the server's parent: its pid is the server's. Input is not wanted.
            RABBITMQ_ALLOW_INPUT="1",
            RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-noinput",
        )


def find_rabbitmq() -> Path | None:
    """The script that starts the server.

    What Debian has on the PATH is a link to, or a copy of, a wrapper that refuses ordinary users and works in
    /var/lib/rabbitmq. The real script keeps its name when all links are followed, and has `rabbitmq-env` beside it.
    """
    found = find_program(SCRIPT)
    if found is None:
        return None
    candidates = (found, found.resolve().with_name(SCRIPT), Path("/usr/lib/rabbitmq/bin") / SCRIPT)
    scripts = (path.resolve() for path in candidates if path.exists())
    return next((path for path in scripts if path.name == SCRIPT and path.with_name("rabbitmq-env").exists()), None)
