"""How a source is doing, for whoever asks: whether it is ready, and if not, why."""

from collections import Counter
from enum import StrEnum
from typing import Final

UNHEARD_ROUTES_MAX: Final = 200
"""Routes that are counted one by one: more than most systems have types of event. It bounds memory and the answer."""

OTHER_ROUTES: Final = "(others)"
"""Where all further routes are counted. No routing key of an event looks like it: that has a dot."""


class State(StrEnum):
    """Where a source stands."""

    STARTING = "starting"
    """It is on its way to work: it connects, and at its first start it publishes what is older than its slot."""
    STANDBY = "standby"
    """Another relay works on its slot, and this one takes over when that ends."""
    ACTIVE = "active"
    """It works: it publishes what is committed."""
    AWAY = "away"
    """PostgreSQL or RabbitMQ cannot be reached; it tries again."""
    STOPPED = "stopped"
    """It was told to stop, or had to."""


class SourceStatus:
    """What is known of one source. It lives as long as the process, while sessions come and go.

    Its session and its connection to the broker have news of their own, in any order: a source that streams while the
    broker is lost is away, and active once the broker is found. All of this may be shown to strangers: no secret goes
    in, and nothing of a message but its routing key.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.unheard: Counter[str] = Counter()
        """Events that nobody listened to, by routing key, since the process began. At most UNHEARD_ROUTES_MAX + 1."""
        self.parked = 0
        """Messages that are parked, as far as this process knows."""
        self.in_flight = 0
        """Messages that are published and not yet settled."""
        self.ignored = 0
        """Changes in the stream that no capture is for, since the process began."""
        self._session = State.STARTING
        self._session_reason: str | None = "it has not reached its servers yet"
        self._broker_lost: str | None = None
        self._broker_blocked: str | None = None

    @property
    def state(self) -> State:
        """What the news of session and broker come to."""
        return State.AWAY if self._broker_lost is not None else self._session

    @property
    def reason(self) -> str | None:
        """Why the source is in this state, or why nothing moves although it is active. None when all is well."""
        if self._broker_lost is not None:
            return self._broker_lost
        if self._broker_blocked is not None:
            return f"RabbitMQ takes no messages just now: {self._broker_blocked}"
        return self._session_reason

    @property
    def broker_blocked(self) -> str | None:
        """RabbitMQ's reason for taking no messages just now (`connection.blocked`), as long as that lasts."""
        return self._broker_blocked

    @property
    def ready(self) -> bool:
        """Whether the source works, or would if the relay that does were gone. Being blocked changes nothing."""
        return self.state in (State.ACTIVE, State.STANDBY)

    def became(self, state: State, reason: str | None = None) -> None:
        """The session is in a new state. `reason` is a sentence without secrets, due in states that are not ready.

        One that neither starts nor is active has no connection to the broker, and no trouble with it any more.
        """
        self._session = state
        self._session_reason = reason
        if state not in (State.STARTING, State.ACTIVE):
            self.broker_found()
            self.in_flight = 0

    def broker_lost(self, reason: str) -> None:
        """RabbitMQ cannot be reached; the session goes on. `reason` is a sentence without secrets."""
        self._broker_lost = reason
        self._broker_blocked = None

    def broker_found(self) -> None:
        """There is a connection to RabbitMQ, a new one: it is not blocked."""
        self._broker_lost = self._broker_blocked = None

    def broker_blocks(self, reason: str) -> None:
        """RabbitMQ takes no messages for now. The source stays ready: it waits, which is what it is there for."""
        self._broker_blocked = reason

    def broker_unblocks(self) -> None:
        """RabbitMQ takes messages again."""
        self._broker_blocked = None

    def nobody_heard(self, routing_key: str) -> bool:
        """Count an event that nobody listened to. True when it is the first one that is counted under its key."""
        known = routing_key in self.unheard
        key = routing_key if known or len(self.unheard) < UNHEARD_ROUTES_MAX else OTHER_ROUTES
        self.unheard[key] += 1
        return self.unheard[key] == 1

    def change_ignored(self) -> None:
        """Count a change that no capture is for."""
        self.ignored += 1

    def details(self) -> dict[str, object]:
        """What /readyz shows: docs/http.md lists the keys. Of the unheard routes, the busiest come first."""
        return {
            "name": self.name,
            "state": self.state.value,
            "reason": self.reason,
            "broker_blocked": self.broker_blocked,
            "in_flight": self.in_flight,
            "parked": self.parked,
            "ignored": self.ignored,
            "unheard": dict(self.unheard.most_common()),
        }
