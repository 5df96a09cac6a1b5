"""PostgreSQL and RabbitMQ in containers of the official images."""

from typing import Final

import psycopg
from docker.types import Ulimit
from testcontainers.core.container import DockerContainer

from relay.demo.servers.container import ContainerServer
from relay.demo.servers.host import CONNECT_S
from relay.demo.servers.postgres import FAST_STOP_S, IMMEDIATE_STOP_S, SUPERUSER, Postgres, StopMode
from relay.demo.servers.rabbitmq import IDLE_SLEEPS, PLUGINS, STOP_S, RabbitMQ

SCRIPTS: Final = "/docker-entrypoint-initdb.d"
"""Where the image of PostgreSQL looks for what else is to be done to new data."""

RABBITMQ_DIRECTORY: Final = "/etc/rabbitmq"

FILES_MAX: Final = 16_384
"""Files and sockets at once. Erlang's memory grows with what is allowed, and some engines allow a thousand million."""

RABBITMQ_CONFIG: Final = f"""\
load_definitions = {RABBITMQ_DIRECTORY}/definitions.json
disk_free_limit.absolute = 50MB
"""


class ContainerPostgres(Postgres, ContainerServer):
    """PostgreSQL 17."""

    image = "postgres:17"
    ports_inside = (5432,)

    def stop(self, mode: StopMode = "fast") -> None:
        gently = [("SIGINT", FAST_STOP_S)] if mode == "fast" else []
        self._end(*gently, ("SIGQUIT", IMMEDIATE_STOP_S))

    def _fill(self, box: DockerContainer) -> None:
        box.with_envs(
            POSTGRES_USER=SUPERUSER,
            POSTGRES_PASSWORD=self.password,
            POSTGRES_INITDB_ARGS="--encoding UTF8 --locale C --no-sync",
        )
        # Run once, when the data has been set up. It says what is wrong with a setting; then PostgreSQL starts anew.
        quoted = {name: value.replace("'", "''") for name, value in self._settings.items()}
        script = "".join(f"ALTER SYSTEM SET {name} = '{value}';\n" for name, value in quoted.items())
        box.with_copy_into_container(script.encode(), f"{SCRIPTS}/settings.sql")

    def _is_ready(self) -> bool:
        """It knows our password. While the image sets up the data it runs for a moment, without listening to us."""
        try:
            psycopg.connect(self.dsn("postgres"), connect_timeout=int(CONNECT_S)).close()
        except psycopg.OperationalError:
            return False
        return True


class ContainerRabbitMQ(RabbitMQ, ContainerServer):
    """RabbitMQ 4."""

    image = "rabbitmq:4-management"
    ports_needed = 2
    ports_inside = (5672, 15672)
    limits = (Ulimit(name="nofile", soft=FILES_MAX, hard=FILES_MAX),)

    def stop(self) -> None:
        """By its own tool: the first process of the container may be a shell, which keeps SIGTERM to itself."""
        if self.running:
            with self._told("be stopped"):
                self._inside.exec_run(["rabbitmqctl", "shutdown"], detach=True)
            if not self._ends_within(STOP_S):
                self.kill()

    def _fill(self, box: DockerContainer) -> None:
        box.with_env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", IDLE_SLEEPS)
        files = {
            "enabled_plugins": f"[{', '.join(PLUGINS)}].\n",
            "conf.d/90-relay.conf": RABBITMQ_CONFIG,
            "definitions.json": self._definitions(),
        }
        for name, text in files.items():
            box.with_copy_into_container(text.encode(), f"{RABBITMQ_DIRECTORY}/{name}")
