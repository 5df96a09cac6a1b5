"""A relay and a broker that does not take everything, or nothing for a while."""

from collections.abc import Iterator

import pytest

from tests.support.database import Database
from tests.support.mailbox import mailbox
from tests.support.picky import MESSAGE_BYTES_MAX, PickyBroker
from tests.support.process import RelayProcess
from tests.support.waiting import eventually

EVENTS = (
    "INSERT INTO relay.outbox (aggregate_type, aggregate_id, type, payload)"
    " SELECT 'order', n::text, 'Moved', to_json(n) FROM generate_series(%s::int, %s::int) AS n"
)
BIG = (
    "INSERT INTO relay.outbox (aggregate_type, aggregate_id, type, payload)"
    " VALUES ('order', 'big', 'Big', to_json(repeat('x', %s::int))), ('order', 'big', 'Behind', '{}')"
)


@pytest.fixture(scope="module")
def broker() -> Iterator[PickyBroker]:
    with PickyBroker() as broker:
        yield broker


async def test_a_body_that_the_broker_closes_the_channel_over_is_found_and_parked_and_all_others_arrive(
    database: Database, broker: PickyBroker
) -> None:
    """The relay's own limit is higher than the broker's: it has to find out which one it was."""
    url = broker.amqp_url()
    async with mailbox(url) as box, RelayProcess(database.dsn, url) as relay:
        await relay.until("streaming")
        database.query(EVENTS, 1, 50)
        database.query(BIG, MESSAGE_BYTES_MAX + 1)
        database.query(EVENTS, 51, 100)
        others = {str(number).encode() for number in range(1, 101)}
        await box.until(lambda deliveries: others <= {delivery.body for delivery in deliveries})
        await eventually(
            lambda: (
                database.query("SELECT type, reason FROM relay.parked ORDER BY commit_lsn, ordinal")
                == [("Big", "too_large"), ("Behind", "too_large")]
            )
        )
        detail = database.value("SELECT detail FROM relay.parked WHERE type = 'Big'")
        assert await relay.end() == 0
    assert {delivery.body for delivery in box.deliveries} == others, "some came twice, and nothing else came"
    assert "larger than configured max size" in str(detail)


async def test_while_the_broker_takes_no_messages_the_relay_waits_and_says_so(
    database: Database, broker: PickyBroker
) -> None:
    url = broker.amqp_url()
    async with mailbox(url) as box, RelayProcess(database.dsn, url) as relay:
        await relay.until("streaming")
        async with broker.short_of_memory():
            database.query(EVENTS, 1, 10)
            await relay.until("broker_blocked")
            database.query(EVENTS, 11, 5000)
        await relay.until("broker_unblocked")
        deliveries = await box.until_count(5000)
        assert await relay.end() == 0
    assert [int(delivery.body) for delivery in deliveries] == list(range(1, 5001)), "in order, and none twice"
    assert relay.said("reconnecting") == []
