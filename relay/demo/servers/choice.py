"""Which kind of server to start: a private one, or one in a container."""

from collections.abc import Callable

from relay.demo.servers.binaries import postgres_is_there
from relay.demo.servers.host import ServerMissing
from relay.demo.servers.install import ensure_rabbitmq
from relay.demo.servers.kind import Kind
from relay.demo.servers.postgres import Postgres, PrivatePostgres
from relay.demo.servers.rabbitmq import PrivateRabbitMQ, RabbitMQ, find_rabbitmq

Say = Callable[[str], None]


def choose_postgres(wanted: Kind | None, say: Say) -> type[Postgres]:
    """A private one where its programs are there, else a container where a Docker engine answers.

    Raises ServerMissing when `containers` are wanted and cannot be had. A private one says itself what it lacks.
    """
    if wanted == "private" or (wanted is None and postgres_is_there()):
        return PrivatePostgres
    from relay.demo.servers.images import ContainerPostgres  # takes a moment, which few need

    return ContainerPostgres if _obtained(ContainerPostgres.image, wanted, say) else PrivatePostgres


def choose_rabbitmq(wanted: Kind | None, interactive: bool, say: Say) -> type[RabbitMQ]:
    """A private one where the program is there, else a container where a Docker engine answers, else it is installed.

    In this order because a package stays on the machine and takes root to install, and a container does neither.
    Raises ServerMissing, with what to do.
    """
    if wanted != "containers" and find_rabbitmq() is not None:
        return PrivateRabbitMQ
    if wanted != "private":
        from relay.demo.servers.images import ContainerRabbitMQ

        if _obtained(ContainerRabbitMQ.image, wanted, say):
            return ContainerRabbitMQ
    ensure_rabbitmq(interactive, say)
    return PrivateRabbitMQ


def _obtained(image: str, wanted: Kind | None, say: Say) -> bool:
    """Whether a container of the image can be started. Nobody is told of an engine that was not asked for."""
    from relay.demo.servers.container import EngineMissing, obtain

    try:
        obtain(image, say)
    except ServerMissing as error:
        if wanted is not None:
            raise
        if not isinstance(error, EngineMissing):
            say(str(error))
        return False
    return True
