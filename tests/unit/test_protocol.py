"""Frames of the replication stream, byte by byte as in "Streaming Replication Protocol"."""

import struct
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.wal.lsn import Lsn, parse_lsn
from relay.wal.protocol import EPOCH, Keepalive, ProtocolError, XLogData, parse_frame, status_frame, to_time

HERE = "0000 0001 0000 0010"  # 1/10
THERE = "0000 0001 0000 0020"  # 1/20
ONE_SECOND = "0000 0000 000f 4240"  # after the beginning of 2000


def frame(kind: str, *fields: str) -> bytes:
    """A kind, and fields in hexadecimal."""
    return kind.encode() + bytes.fromhex("".join(fields))


def test_a_piece_of_the_log_is_two_positions_and_what_the_plugin_wrote() -> None:
    parsed = parse_frame(frame("w", HERE, THERE, ONE_SECOND) + b"payload")
    assert parsed == XLogData(parse_lsn("1/10"), parse_lsn("1/20"), b"payload")


def test_a_piece_of_the_log_may_be_empty() -> None:
    assert parse_frame(frame("w", HERE, THERE, ONE_SECOND)) == XLogData(parse_lsn("1/10"), parse_lsn("1/20"), b"")


@pytest.mark.parametrize(("flag", "asks"), [("00", False), ("01", True)])
def test_a_keepalive_says_how_far_the_server_is_and_whether_it_wants_an_answer(flag: str, asks: bool) -> None:
    assert parse_frame(frame("k", HERE, ONE_SECOND, flag)) == Keepalive(parse_lsn("1/10"), reply_requested=asks)


def test_positions_are_unsigned() -> None:
    parsed = parse_frame(frame("k", "ffff ffff ffff ffff", ONE_SECOND, "00"))
    assert parsed == Keepalive(parse_lsn("FFFFFFFF/FFFFFFFF"), reply_requested=False)


@pytest.mark.parametrize("length", range(25))
def test_a_truncated_piece_of_the_log_is_refused(length: int) -> None:
    whole = frame("w", HERE, THERE, ONE_SECOND)
    assert len(whole) == 25
    with pytest.raises(ProtocolError, match=f"frame of {length} bytes"):
        parse_frame(whole[:length])


@pytest.mark.parametrize("length", [*range(18), 19])
def test_a_keepalive_of_another_length_is_refused(length: int) -> None:
    whole = frame("k", HERE, ONE_SECOND, "00")
    assert len(whole) == 18
    with pytest.raises(ProtocolError, match=f"frame of {length} bytes"):
        parse_frame((whole + b"\0")[:length])


@given(st.builds(bytes.__add__, st.sampled_from([b"w", b"k", b""]), st.binary(max_size=40)))
def test_any_bytes_are_a_frame_or_refused(data: bytes) -> None:
    if (data[:1] == b"w" and len(data) >= 25) or (data[:1] == b"k" and len(data) == 18):
        assert isinstance(parse_frame(data), XLogData if data[:1] == b"w" else Keepalive)
    else:
        with pytest.raises(ProtocolError):
            parse_frame(data)


def test_a_status_update_has_one_position_in_all_three_places() -> None:
    sent = status_frame(parse_lsn("1/10"), EPOCH + timedelta(seconds=1))
    assert sent == frame("r", HERE, HERE, HERE, ONE_SECOND, "00")
    assert len(sent) == 1 + 8 + 8 + 8 + 8 + 1


def test_a_status_update_may_ask_for_an_answer() -> None:
    assert status_frame(Lsn(0), EPOCH, reply_requested=True)[-1:] == b"\1"


@given(st.integers(0, (1 << 64) - 1), st.datetimes(timezones=st.just(UTC)))
def test_a_status_update_carries_any_position_and_any_time(lsn: int, now: datetime) -> None:
    kind, written, flushed, applied, micros, reply = struct.unpack(">cQQQqB", status_frame(Lsn(lsn), now))
    assert (kind, written, flushed, applied, reply) == (b"r", lsn, lsn, lsn, 0)
    assert to_time(micros) == now


def test_time_is_counted_from_2000_in_utc() -> None:
    assert to_time(0) == datetime(2000, 1, 1, tzinfo=UTC)
    assert to_time(-1) == datetime(1999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)


@pytest.mark.parametrize("micros", [(1 << 63) - 1, -(1 << 63)])
def test_a_time_that_python_cannot_tell_is_refused(micros: int) -> None:
    with pytest.raises(ProtocolError, match="no time"):
        to_time(micros)
