"""RabbitMQ's management API: what is there, read and never changed.

Source: RabbitMQ's documentation, "Management HTTP API Reference".
"""

import json
import ssl
from base64 import b64encode
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Final, Self, TypeAlias, cast
from urllib.parse import quote, unquote, urlencode, urlsplit

from pika import PlainCredentials, URLParameters

from relay.broker.layout import Argument, Arguments, Binding, Exchange, Found, Queue, arguments_of
from relay.errors import BrokerAway, BrokerError

TIMEOUT_S: Final = 30.0
"""How long one answer may take. A broker with thousands of queues needs some seconds."""

ANSWER_BYTES_MAX: Final = 256 * 1024 * 1024
"""The longest answer that is read: some hundred thousand queues."""

HTTP_PORT: Final = 15672
HTTPS_PORT: Final = 15671

_OVERVIEW: Final = "overview"
"""The one path that is asked without a virtual host."""

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"


class ManagementAway(BrokerAway):
    """The management API cannot be reached, or something else answers in its place."""

    hint = (
        "Enable it on the broker (rabbitmq-plugins enable rabbitmq_management), or say where it is with"
        " broker.management_url."
    )


class ManagementRefused(BrokerError):
    """The management API does not let the user in."""

    hint = (
        "Check the user and the password, and give the user the tag (rabbitmqctl set_user_tags USER management) and"
        " permissions in the virtual host; or name another user in broker.management_url."
    )


class VirtualHostUnknown(BrokerError):
    """The management API does not know the virtual host."""

    hint = "Create it (rabbitmqctl add_vhost), or correct the end of the broker's URL."


@dataclass(frozen=True, slots=True)
class Management:
    """Reads one virtual host. Every method raises a BrokerError with a hint when it cannot."""

    host: str
    port: int
    vhost: str
    user: str
    password: str = field(repr=False)
    path: str = ""
    tls: ssl.SSLContext | None = None

    @classmethod
    def of(cls, broker_url: str, management_url: str | None = None) -> Self:
        """That of a broker: on the same host with the same user, as far as its own URL does not say otherwise."""
        broker = URLParameters(broker_url)
        secure = broker.ssl_options is not None
        credentials = cast(PlainCredentials, broker.credentials)  # a URL can name no others
        own = urlsplit(management_url or "")
        if management_url is not None:
            secure = own.scheme == "https"
        context = broker.ssl_options.context if broker.ssl_options is not None else ssl.create_default_context()
        return cls(
            host=own.hostname or broker.host,
            port=own.port or (HTTPS_PORT if secure else HTTP_PORT),
            vhost=broker.virtual_host,
            user=unquote(own.username) if own.username else credentials.username,
            password=unquote(own.password or "") if own.username else credentials.password,
            path=own.path.rstrip("/"),
            tls=context if secure else None,
        )

    @property
    def address(self) -> str:
        """Where it is, without user and password: fit for logs."""
        return f"{'http' if self.tls is None else 'https'}://{self.host}:{self.port}{self.path}"

    def found(self) -> Found:
        """The exchanges, queues and bindings that there are, and the types of exchange that can be."""
        known = _tables(_table(self._get(_OVERVIEW, columns="exchange_types")).get("exchange_types"))
        basics = {"disable_stats": "true", "enable_queue_totals": "false"}
        exchanges = [_exchange(each) for each in self._list("exchanges", **basics)]
        queues = [_queue(each) for each in self._list("queues", **basics)]
        return Found(
            exchanges={exchange.name: exchange for exchange in exchanges},
            queues={queue.name: queue for queue in queues},
            bindings=frozenset(_binding(each) for each in self._list("bindings")),
            exchange_types=frozenset(_said(each, "name") for each in known if each.get("enabled", True)),
        )

    def totals(self, queues: Iterable[str]) -> dict[str, int | None]:
        """How many messages queues hold, those that a consumer has not answered among them.

        Up to some ten seconds old; None where the broker does not count. Source: RabbitMQ's configuration,
        quorum_tick_interval and collect_statistics_interval, five seconds each.
        """
        counted = {_said(each, "name"): each.get("messages") for each in self._list("queues", columns="name,messages")}
        wanted = {queue: counted.get(queue) for queue in queues}
        return {queue: count if isinstance(count, int) else None for queue, count in wanted.items()}

    def connections(self) -> tuple[str, ...]:
        """The names that clients have given their connections, as far as the user may see those."""
        columns = "user_provided_name,client_properties"
        answer = self._get(f"vhosts/{quote(self.vhost, safe='')}/connections", columns=columns)
        given = (each.get("user_provided_name") for each in _tables(answer))
        return tuple(sorted(name for name in given if isinstance(name, str)))

    def _list(self, things: str, **query: str) -> list[dict[str, Json]]:
        return _tables(self._get(f"{things}/{quote(self.vhost, safe='')}", **query))

    def _get(self, path: str, **query: str) -> Json:
        target = f"{self.path}/api/{path}" + (f"?{urlencode(query)}" if query else "")
        login = b64encode(f"{self.user}:{self.password}".encode()).decode()
        with closing(self._connection()) as connection:
            try:
                connection.request("GET", target, headers={"Authorization": f"Basic {login}"})
                response = connection.getresponse()
                body = response.read(ANSWER_BYTES_MAX)
            except OSError as error:
                raise ManagementAway(self._sentence(error.strerror or str(error))) from error
            except HTTPException as error:
                raise ManagementAway(self._sentence("what answers there does not speak HTTP")) from error
        return self._answer(path, response, body)

    def _connection(self) -> HTTPConnection:
        if self.tls is None:
            return HTTPConnection(self.host, self.port, timeout=TIMEOUT_S)
        return HTTPSConnection(self.host, self.port, timeout=TIMEOUT_S, context=self.tls)

    def _answer(self, path: str, response: HTTPResponse, body: bytes) -> Json:
        try:
            answer: Json = json.loads(body)
        except ValueError:
            answer = None
        said = _table(answer).get("reason") if isinstance(answer, dict) else None
        reason = said if isinstance(said, str) else f"HTTP status {response.status}"
        match response.status:
            case HTTPStatus.OK if answer is not None:
                return answer
            case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
                raise ManagementRefused(self._sentence(f"user {self.user}, virtual host {self.vhost}: {reason}"))
            case HTTPStatus.NOT_FOUND if path != _OVERVIEW and isinstance(said, str):
                raise VirtualHostUnknown(self._sentence(f"virtual host {self.vhost}: {reason}"))
        raise ManagementAway(self._sentence(f"no answer of a management API: {reason}"))

    def _sentence(self, what: str) -> str:
        return f"RabbitMQ's management API at {self.address}: {what}"


def _exchange(answer: Mapping[str, Json]) -> Exchange:
    return Exchange(
        _said(answer, "name"),
        _said(answer, "type"),
        _arguments(answer),
        durable=answer.get("durable") is True,
        auto_delete=answer.get("auto_delete") is True,
        internal=answer.get("internal") is True,
    )


def _queue(answer: Mapping[str, Json]) -> Queue:
    return Queue(
        _said(answer, "name"),
        _arguments(answer),
        durable=answer.get("durable") is True,
        auto_delete=answer.get("auto_delete") is True,
        exclusive=answer.get("exclusive") is True,
    )


def _binding(answer: Mapping[str, Json]) -> Binding:
    return Binding(
        _said(answer, "source"),
        _said(answer, "destination"),
        _said(answer, "routing_key"),
        _arguments(answer),
        to_exchange=answer.get("destination_type") == "exchange",
    )


def _arguments(answer: Mapping[str, Json]) -> Arguments:
    """Arguments that are tables or lists are compared, and shown, as their JSON; nobody can configure such."""
    given = _table(answer.get("arguments"))
    plain: dict[str, Argument] = {
        name: value if isinstance(value, str | int) else json.dumps(value) for name, value in given.items()
    }
    return arguments_of(plain)


def _said(answer: Mapping[str, Json], key: str) -> str:
    value = answer.get(key)
    return value if isinstance(value, str) else ""


def _table(answer: Json) -> dict[str, Json]:
    """An object; RabbitMQ writes an empty one as a list at times."""
    return answer if isinstance(answer, dict) else {}


def _tables(answer: Json) -> list[dict[str, Json]]:
    return [each for each in answer if isinstance(each, dict)] if isinstance(answer, list) else []
