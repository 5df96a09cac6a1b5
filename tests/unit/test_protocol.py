"""Frames of the replication stream, byte by byte as in "Streaming Replication Protocol"."""

import struct
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.wal.lsn import Lsn, parse_lsn
from relay.wal.protocol import EPOCH, Keepalive, ProtocolError, XLogData, parse_frame, status_frame, to_time

lsns = st.integers(0, (1 << 64) - 1)
times = st.integers(-(1 << 63), (1 << 63) - 1)

HERE = "0000 0001 0000 0010"  # 1/10
THERE = "0000 0001 0000 0020"  # 1/20
ONE_SECOND = "0000 0000 000f 4240"  # after the beginning of 2000


def frame(kind: str, *fields: str) -> bytes:
    """A kind, and fields in hexadecimal."""
    return kind.encode() + bytes.fromhex("".join(fields))


def parse(data: bytes) -> XLogData | Keepalive:
    """As from libpq, which lends a view of what it has, and takes it back."""
    lent = bytearray(data)
    parsed = parse_frame(memoryview(lent))
    lent[:] = bytes(len(lent))
    return parsed


def same(one: XLogData | Keepalive, other: XLogData | Keepalive) -> bool:
    """Named tuples of two kinds are equal when their fields are."""
    return type(one) is type(other) and one == other


def test_a_piece_of_the_log_is_two_positions_and_what_the_plugin_wrote() -> None:
    parsed = parse(frame("w", HERE, THERE, ONE_SECOND) + b"payload")
    assert same(parsed, XLogData(parse_lsn("1/10"), parse_lsn("1/20"), b"payload"))


def test_a_piece_of_the_log_may_be_empty() -> None:
    parsed = parse(frame("w", HERE, THERE, ONE_SECOND))
    assert same(parsed, XLogData(parse_lsn("1/10"), parse_lsn("1/20"), b""))


@pytest.mark.parametrize(("flag", "asks"), [("00", False), ("01", True)])
def test_a_keepalive_says_how_far_the_server_is_and_whether_it_wants_an_answer(flag: str, asks: bool) -> None:
    parsed = parse(frame("k", HERE, ONE_SECOND, flag))
    assert same(parsed, Keepalive(parse_lsn("1/10"), reply_requested=asks))


def test_positions_are_unsigned() -> None:
    parsed = parse(frame("k", "ffff ffff ffff ffff", ONE_SECOND, "00"))
    assert same(parsed, Keepalive(parse_lsn("FFFFFFFF/FFFFFFFF"), reply_requested=False))


@pytest.mark.parametrize("length", range(25))
def test_a_truncated_piece_of_the_log_is_refused(length: int) -> None:
    whole = frame("w", HERE, THERE, ONE_SECOND)
    assert len(whole) == 25
    with pytest.raises(ProtocolError, match=f"frame of {length} bytes"):
        parse(whole[:length])


@pytest.mark.parametrize("length", [*range(18), 19])
def test_a_keepalive_of_another_length_is_refused(length: int) -> None:
    whole = frame("k", HERE, ONE_SECOND, "00")
    assert len(whole) == 18
    with pytest.raises(ProtocolError, match=f"frame of {length} bytes"):
        parse((whole + b"\0")[:length])


@given(st.builds(bytes.__add__, st.sampled_from([b"w", b"k", b""]), st.binary(max_size=40)))
def test_any_bytes_are_a_frame_or_refused(data: bytes) -> None:
    if (data[:1] == b"w" and len(data) >= 25) or (data[:1] == b"k" and len(data) == 18):
        assert isinstance(parse(data), XLogData if data[:1] == b"w" else Keepalive)
    else:
        with pytest.raises(ProtocolError):
            parse(data)


@given(lsns, lsns, times, st.binary(max_size=40))
def test_what_is_written_as_a_piece_of_the_log_is_read_as_that(start: int, end: int, at: int, data: bytes) -> None:
    written = b"w" + struct.pack(">QQq", start, end, at) + data
    assert same(parse(written), XLogData(Lsn(start), Lsn(end), data))


@given(lsns, times, st.integers(0, 255))
def test_what_is_written_as_a_keepalive_is_read_as_that(end: int, at: int, flag: int) -> None:
    assert same(parse(b"k" + struct.pack(">QqB", end, at, flag)), Keepalive(Lsn(end), flag > 0))


@given(lsns, times, st.integers(0, 255), st.data())
def test_a_frame_that_is_cut_off_anywhere_is_refused(end: int, at: int, flag: int, data: st.DataObject) -> None:
    for written in (b"w" + struct.pack(">QQq", end, end, at), b"k" + struct.pack(">QqB", end, at, flag)):
        with pytest.raises(ProtocolError):
            parse(written[: data.draw(st.integers(0, len(written) - 1))])


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
