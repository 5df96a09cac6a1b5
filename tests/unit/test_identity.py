"""Ids that are derived are a contract: consumers tell copies apart by them. Their values are written down here."""

from datetime import UTC, datetime
from hashlib import sha1
from uuid import UUID, uuid5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.capture.change import Origin
from relay.capture.identity import NAMESPACE, derived_id, snapshot_id
from relay.wal.lsn import Lsn, parse_lsn

ORIGIN = Origin(
    system_identifier="7300000000000000001",
    xid=741,
    commit_lsn=parse_lsn("0/16B3748"),
    lsn=parse_lsn("0/16B3700"),
    ordinal=0,
    committed_at=datetime(2025, 6, 1, 12, tzinfo=UTC),
    last_commit_lsn=None,
)

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
"""What PostgreSQL takes for text."""


def test_the_namespace_is_as_it_was() -> None:
    assert UUID("9870ee2d-4d34-4345-bc1d-9830409b790d") == NAMESPACE


@pytest.mark.parametrize(
    ("origin", "part", "expected"),
    [
        (ORIGIN, 0, "e522dd6a-6616-5dc3-9a59-9400254066bf"),
        (ORIGIN, 1, "6d6db414-eeba-5876-a7f0-3aefe13992f3"),
        (ORIGIN, "public.orders", "58af9211-3d49-511b-8182-ff76d7c24b96"),
        (ORIGIN._replace(ordinal=41), 0, "4be4dac5-ef7b-56ab-894c-7b27ebb59231"),
        (
            ORIGIN._replace(commit_lsn=parse_lsn("16/B374D848"), xid=4294967295),
            0,
            "1b83b97c-f622-587f-8870-937ea1ee8eb8",
        ),
    ],
)
def test_a_derived_id_is_as_it_was(origin: Origin, part: int | str, expected: str) -> None:
    assert derived_id(origin, part) == expected


@pytest.mark.parametrize(
    ("table", "key", "payload", "expected"),
    [
        ("public.customers", "7", b'{"op": "snapshot"}', "d4adff64-8f81-5f5d-a470-5e2dd205cd03"),
        ("public.customers", "8", b'{"op": "snapshot"}', "e77ce6b0-fa8f-5f47-91d0-85bb8b22aaf9"),
        ("sales.naïve", "a/b", b"\x00\xff", "7d5c6008-fe5c-5fb2-ba07-a02a6f1beb68"),
    ],
)
def test_the_id_of_a_row_of_a_snapshot_is_as_it_was(table: str, key: str, payload: bytes, expected: str) -> None:
    assert snapshot_id("7300000000000000001", table, key, payload) == expected


def test_anybody_can_make_the_same_id_from_the_same_facts() -> None:
    """As the docstring says, with the standard library of any language."""
    name = "7300000000000000001/23803720/741/23803648/0"
    assert derived_id(ORIGIN) == str(uuid5(NAMESPACE, name))
    assert derived_id(ORIGIN, 2) == str(uuid5(NAMESPACE, f"{name}/2"))
    row = b"\0".join((b"snapshot", b"7300000000000000001", b"public.customers", b"7", b"{}"))
    made = UUID(bytes=sha1(NAMESPACE.bytes + row, usedforsecurity=False).digest()[:16], version=5)
    assert snapshot_id("7300000000000000001", "public.customers", "7", b"{}") == str(made)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 10**9))
def test_every_id_is_a_uuid_of_version_5(lsn: int, xid: int, ordinal: int) -> None:
    made = UUID(derived_id(ORIGIN._replace(lsn=Lsn(lsn), xid=xid, ordinal=ordinal)))
    assert made == uuid5(NAMESPACE, f"7300000000000000001/23803720/{xid}/{lsn}/{ordinal}")
    assert (made.version, made.variant) == (5, "specified in RFC 4122")


@pytest.mark.parametrize(
    "other",
    [
        ORIGIN._replace(system_identifier="7300000000000000002"),
        ORIGIN._replace(commit_lsn=Lsn(1)),
        ORIGIN._replace(xid=742),
        ORIGIN._replace(lsn=Lsn(1)),
        ORIGIN._replace(ordinal=1),
    ],
    ids=["cluster", "commit", "transaction", "change", "ordinal"],
)
def test_another_change_has_another_id(other: Origin) -> None:
    assert derived_id(other) != derived_id(ORIGIN)


def test_what_a_replay_may_tell_otherwise_does_not_matter() -> None:
    """After a reconnect a stream begins elsewhere, and knows no transaction before the first."""
    again = ORIGIN._replace(committed_at=datetime(2030, 1, 1, tzinfo=UTC), last_commit_lsn=Lsn(7))
    assert derived_id(again) == derived_id(ORIGIN)


def test_parts_of_one_change_have_ids_of_their_own() -> None:
    parts: list[int | str] = [0, 1, 2, "public.orders", "public.customers"]
    assert len({derived_id(ORIGIN, part) for part in parts}) == len(parts)


@given(st.lists(st.tuples(TEXTS, TEXTS, TEXTS, st.binary()), min_size=2, max_size=2, unique=True))
def test_rows_that_differ_have_ids_that_differ(rows: list[tuple[str, str, str, bytes]]) -> None:
    one, other = rows
    assert snapshot_id(*one) != snapshot_id(*other)


def test_a_row_of_a_snapshot_never_has_the_id_of_a_change() -> None:
    assert snapshot_id("7300000000000000001", "", "", b"") != derived_id(ORIGIN)
