"""What is known of a source, and when that counts as ready."""

import json

import pytest

from relay.daemon.status import OTHER_ROUTES, UNHEARD_ROUTES_MAX, SourceStatus, State


def test_a_source_that_has_just_begun_is_not_ready_and_says_why() -> None:
    status = SourceStatus("orders")
    assert status.state is State.STARTING
    assert not status.ready
    assert status.details()["reason"] == "it has not reached its servers yet"


@pytest.mark.parametrize(
    ("state", "ready"),
    [
        (State.STARTING, False),
        (State.STANDBY, True),
        (State.ACTIVE, True),
        (State.AWAY, False),
        (State.STOPPED, False),
    ],
)
def test_only_an_active_source_and_one_that_stands_by_are_ready(state: State, ready: bool) -> None:
    status = SourceStatus("orders")
    status.became(state, "because")
    assert status.ready is ready


def test_a_source_that_works_again_forgets_why_it_did_not() -> None:
    status = SourceStatus("orders")
    status.became(State.AWAY, "RabbitMQ is away")
    assert status.details()["reason"] == "RabbitMQ is away"
    status.became(State.ACTIVE)
    assert status.details()["reason"] is None


class TestTheBrokerIsLost:
    """The session streams on without it; the source does not work."""

    def test_a_source_without_a_broker_is_away_until_there_is_one(self) -> None:
        status = SourceStatus("orders")
        status.became(State.ACTIVE)
        status.broker_lost("RabbitMQ is away")
        assert (status.state, status.reason, status.ready) == (State.AWAY, "RabbitMQ is away", False)
        status.broker_found()
        assert (status.state, status.reason, status.ready) == (State.ACTIVE, None, True)

    def test_a_session_that_streams_without_a_broker_is_away_all_the_same(self) -> None:
        status = SourceStatus("orders")
        status.broker_lost("RabbitMQ is away")
        status.became(State.ACTIVE)
        assert status.state is State.AWAY

    def test_a_broker_makes_no_source_active_that_has_not_got_so_far(self) -> None:
        status = SourceStatus("orders")
        status.broker_lost("RabbitMQ is away")
        status.became(State.STARTING, "it is about to stream")
        status.broker_found()
        assert (status.state, status.reason) == (State.STARTING, "it is about to stream")

    @pytest.mark.parametrize("state", [State.STANDBY, State.AWAY, State.STOPPED])
    def test_the_trouble_ends_with_the_session_that_had_it(self, state: State) -> None:
        status = SourceStatus("orders")
        status.broker_lost("RabbitMQ is away")
        status.became(state, "PostgreSQL is away")
        assert (status.state, status.reason) == (state, "PostgreSQL is away")
        status.became(State.ACTIVE)
        assert status.ready


class TestBlockedByTheBroker:
    """Back-pressure: nothing is wrong with the relay, but who looks wants to know."""

    @pytest.fixture
    def status(self) -> SourceStatus:
        status = SourceStatus("orders")
        status.became(State.ACTIVE)
        status.broker_blocks("low on memory")
        return status

    def test_a_blocked_source_is_ready_and_shows_the_reason(self, status: SourceStatus) -> None:
        assert status.ready
        assert status.details()["reason"] == "RabbitMQ takes no messages just now: low on memory"
        assert status.details()["broker_blocked"] == "low on memory"

    def test_it_shows_nothing_once_the_broker_takes_messages_again(self, status: SourceStatus) -> None:
        status.broker_unblocks()
        assert status.details()["reason"] is None
        assert status.details()["broker_blocked"] is None

    def test_a_lost_connection_is_not_blocked_any_more(self, status: SourceStatus) -> None:
        status.broker_lost("RabbitMQ is away")
        assert status.details()["reason"] == "RabbitMQ is away"
        assert status.details()["broker_blocked"] is None
        status.broker_found()
        assert status.details()["broker_blocked"] is None

    def test_the_block_ends_with_the_session(self, status: SourceStatus) -> None:
        status.became(State.AWAY, "PostgreSQL is away")
        assert status.details()["reason"] == "PostgreSQL is away"
        status.became(State.ACTIVE)
        assert status.details()["broker_blocked"] is None

    def test_a_broker_that_blocks_a_source_on_its_way_to_work_still_does_when_it_is_there(self) -> None:
        status = SourceStatus("orders")
        status.broker_blocks("low on disk")
        assert not status.ready
        status.became(State.ACTIVE)
        assert status.details()["reason"] == "RabbitMQ takes no messages just now: low on disk"


class TestUnheardEvents:
    """Events that nobody listens to are dropped, but not in silence."""

    def test_the_first_on_a_route_is_told_apart_from_those_after_it(self) -> None:
        status = SourceStatus("orders")
        news = [status.nobody_heard(route) for route in ("order.Placed", "order.Placed", "order.Paid", "order.Placed")]
        assert news == [True, False, True, False]
        assert status.unheard == {"order.Placed": 3, "order.Paid": 1}

    def test_the_busiest_routes_are_shown_first(self) -> None:
        status = SourceStatus("orders")
        for route in ("order.Placed", "order.Paid", "order.Paid"):
            status.nobody_heard(route)
        shown = json.loads(json.dumps(status.details()))["unheard"]
        assert list(shown.items()) == [("order.Paid", 2), ("order.Placed", 1)]

    def test_routes_beyond_the_bound_are_counted_together_and_are_news_once(self) -> None:
        status = SourceStatus("orders")
        for number in range(UNHEARD_ROUTES_MAX):
            assert status.nobody_heard(f"order.Type{number}")
        assert status.nobody_heard("order.OneMore")
        assert not status.nobody_heard("order.AndAnother")
        assert not status.nobody_heard("order.Type0")
        assert len(status.unheard) == UNHEARD_ROUTES_MAX + 1
        assert (status.unheard[OTHER_ROUTES], status.unheard["order.Type0"]) == (2, 2)


def test_the_details_are_what_json_can_say_and_hold_every_number() -> None:
    status = SourceStatus("orders")
    status.became(State.STANDBY, "another relay works on slot relay_orders")
    status.parked = 2
    status.in_flight = 5
    assert json.loads(json.dumps(status.details())) == {
        "name": "orders",
        "state": "standby",
        "reason": "another relay works on slot relay_orders",
        "broker_blocked": None,
        "in_flight": 5,
        "parked": 2,
        "ignored": 0,
        "unheard": {},
    }
