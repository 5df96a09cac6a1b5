"""Ids that sort by time."""

import time
from uuid import RFC_4122

from relay.messaging.uuid7 import uuid7


def test_it_is_of_version_7_and_begins_with_the_milliseconds_since_1970() -> None:
    before_ms = time.time_ns() // 1_000_000
    made = uuid7()
    after_ms = time.time_ns() // 1_000_000

    assert (made.version, made.variant) == (7, RFC_4122)
    assert before_ms <= made.int >> 80 <= after_ms


def test_no_two_are_the_same() -> None:
    assert len({uuid7() for _ in range(10_000)}) == 10_000
