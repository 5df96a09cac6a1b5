"""A broker's users, their rights, and the queues that are there before anybody needs them, as RabbitMQ loads them."""

import base64
import hashlib
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from relay.broker.layout import Arguments, Wanted

NOTHING: Final = "^$"
EVERYTHING: Final = ".*"

VHOST: Final = "/"
"""The one virtual host that there is."""


@dataclass(frozen=True, slots=True)
class BrokerUser:
    """A user of the broker, and what it may do in the virtual host "/": regular expressions, no name by default."""

    name: str
    password: str = field(repr=False)
    tags: tuple[str, ...] = ()
    configure: str = NOTHING
    write: str = NOTHING
    read: str = NOTHING


def definitions(users: Iterable[BrokerUser], wanted: Wanted = Wanted()) -> dict[str, object]:  # noqa: B008  immutable
    """What RabbitMQ loads at every start, in the form of its `export_definitions`. Passwords are in it as hashes."""
    users = tuple(users)
    return {
        "vhosts": [{"name": VHOST}],
        "users": [
            {
                "name": user.name,
                "password_hash": password_hash(user.password),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": ",".join(user.tags),
            }
            for user in users
        ],
        "permissions": [
            {"user": user.name, "vhost": VHOST, "configure": user.configure, "write": user.write, "read": user.read}
            for user in users
        ],
        **_topology(wanted),
    }


def _topology(wanted: Wanted) -> dict[str, Sequence[object]]:
    return {
        "exchanges": [
            {
                "vhost": VHOST,
                "name": exchange.name,
                "type": exchange.type,
                "durable": exchange.durable,
                "auto_delete": exchange.auto_delete,
                "internal": exchange.internal,
                "arguments": _table(exchange.arguments),
            }
            for exchange in wanted.exchanges
        ],
        "queues": [
            {
                "vhost": VHOST,
                "name": queue.name,
                "durable": queue.durable,
                "auto_delete": queue.auto_delete,
                "arguments": _table(queue.arguments),
            }
            for queue in wanted.queues
        ],
        "bindings": [
            {
                "vhost": VHOST,
                "source": binding.source,
                "destination": binding.destination,
                "destination_type": "exchange" if binding.to_exchange else "queue",
                "routing_key": binding.routing_key,
                "arguments": _table(binding.arguments),
            }
            for binding in wanted.all_bindings
        ],
    }


def _table(arguments: Arguments) -> dict[str, object]:
    return dict(arguments)


def password_hash(password: str) -> str:
    """base64 of four bytes of salt and SHA-256 of salt and password. Source: RabbitMQ's documentation, "Passwords"."""
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()
