"""Whether what arrived is what was committed: the promises of the relay, checked from outside."""

from collections import defaultdict
from collections.abc import Iterable

from relay.broker.properties import Delivery
from tests.support.database import Database


def committed_messages(database: Database) -> list[tuple[str, str]]:
    """Id and aggregate of every committed message, in insertion order."""
    rows = database.query("SELECT id::text, aggregate_id FROM relay.outbox ORDER BY seq")
    return [(str(message_id), str(aggregate)) for message_id, aggregate in rows]


def assert_delivered(committed: Iterable[tuple[str, str]], deliveries: list[Delivery], rolled_back: set[str]) -> None:
    """Every committed message arrived, no rolled-back one did, and each aggregate's came in order.

    Duplicates are allowed after a crash: what counts is the first occurrence.
    """
    arrived = list(dict.fromkeys(str(delivery.properties.message_id) for delivery in deliveries))
    expected = [message_id for message_id, _ in committed]
    assert not (lost := set(expected) - set(arrived)), f"{len(lost)} committed messages were lost"
    assert not (ghosts := set(arrived) - set(expected)), f"{len(ghosts)} messages arrived that were never committed"
    assert not set(arrived) & rolled_back
    aggregate_of = dict(committed)
    assert _by_aggregate(arrived, aggregate_of) == _by_aggregate(expected, aggregate_of), "an aggregate is out of order"


def assert_effects_single(database: Database) -> None:
    """The inbox let each message take effect exactly once."""
    missing = database.value("SELECT count(*) FROM relay.outbox WHERE id::text NOT IN (SELECT message_id FROM effect)")
    repeated = database.value(
        "SELECT count(*) FROM (SELECT FROM effect GROUP BY message_id HAVING count(*) > 1) AS repeated"
    )
    assert (missing, repeated) == (0, 0), f"{missing} effects are missing, {repeated} happened more than once"


def _by_aggregate(ids: list[str], aggregate_of: dict[str, str]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = defaultdict(list)
    for message_id in ids:
        grouped[aggregate_of[message_id]].append(message_id)
    return grouped
