"""The writer, on real sockets that fill up, break, and are closed by the peer."""

from __future__ import annotations

import gc
import os
import random
import socket
import struct
import tracemalloc
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from streamer_parts import plain, tcp_pair, wait_until

from pgbus_gevent.core.backlog import Backlog
from pgbus_gevent.streamer.connection import IoWriter
from pgbus_gevent.streamer.turns import breathe

MORE_THAN_FITS = 4 * 1024 * 1024
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Written:
    """A writer and its peer."""

    def __init__(self, *, tcp: bool = False, backlog: Backlog | None = None) -> None:
        ours, self.peer = tcp_pair() if tcp else socket.socketpair()
        self.peer.settimeout(60.0)
        self.now = 100.0
        self.unblocked_count = 0
        self.reasons: list[str] = []
        self.callers: set[Any] = set()
        self.sock = plain(ours)
        self.fd = self.sock.fileno()
        self.writer = IoWriter(self.sock, self, backlog=backlog, clock=lambda: self.now)

    def unblocked(self) -> None:
        self.callers.add(gevent.getcurrent())
        self.unblocked_count += 1

    def gone(self, reason: str) -> None:
        self.callers.add(gevent.getcurrent())
        self.reasons.append(reason)

    def fill(self, size: int = MORE_THAN_FITS) -> bytes:
        """Write more than the socket takes."""
        data = random.randbytes(size)
        self.writer.write(data, self.now)
        assert self.writer.blocked_since == self.now
        return data

    def receive(self, size: int, piece: int = 65536) -> bytes:
        """Read exactly this many bytes at the peer."""
        found = bytearray()
        while len(found) < size:
            data = self.peer.recv(min(piece, size - len(found)))
            assert data, f"the end came after {len(found)} of {size} bytes"
            found += data
        return bytes(found)

    def at_the_end(self) -> bool:
        """Whether the peer reads the end of the stream."""
        return self.peer.recv(1) == b""

    @property
    def freed(self) -> bool:
        return bool(self.sock.fileno() == -1)

    def close(self) -> None:
        self.writer.close()
        self.peer.close()


@pytest.fixture
def written() -> Iterator[Written]:
    made = Written()
    yield made
    made.close()


@pytest.fixture
def over_tcp() -> Iterator[Written]:
    made = Written(tcp=True)
    yield made
    made.close()


def settle() -> None:
    """Let the event loop do everything that is due."""
    for _ in range(5):
        breathe()


# Writing


def test_bytes_that_fit_are_sent_at_once(written: Written) -> None:
    written.writer.write(b"abc", written.now)
    assert written.writer.blocked_since is None
    assert written.receive(3) == b"abc"
    settle()
    assert written.unblocked_count == 0


def test_bytes_that_do_not_fit_are_sent_as_the_peer_reads_and_none_differs(written: Written) -> None:
    data = written.fill()
    assert written.receive(len(data)) == data
    wait_until(lambda: written.unblocked_count)
    assert written.writer.blocked_since is None
    assert (written.unblocked_count, written.reasons) == (1, [])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    sizes=st.lists(st.integers(1, 700_000), min_size=1, max_size=5),
    pieces=st.lists(st.integers(1, 300_000), min_size=1, max_size=5),
)
def test_however_much_the_peer_reads_at_a_time_the_bytes_are_the_same(sizes: list[int], pieces: list[int]) -> None:
    written = Written()
    expected, received = bytearray(), bytearray()
    try:
        for n, size in enumerate(sizes):
            data = random.randbytes(size)
            written.writer.write(data, written.now)
            expected += data
            while written.writer.blocked_since is not None:
                received += written.peer.recv(pieces[n % len(pieces)])
                breathe()
        received += written.receive(len(expected) - len(received))
        assert received == expected
    finally:
        written.close()


@pytest.mark.slow
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    sizes=st.lists(st.lists(st.integers(0, 300_000), min_size=1, max_size=4), min_size=1, max_size=4),
    piece=st.integers(1, 200_000),
)
def test_several_pieces_and_a_last_frame_behind_them_come_in_order(sizes: list[list[int]], piece: int) -> None:
    written = Written()
    expected, received = bytearray(), bytearray()
    try:
        for each in sizes:
            parts = [random.randbytes(size) for size in each]
            written.writer.write_all(parts, written.now)
            expected += b"".join(parts)
            while written.writer.blocked_since is not None:
                received += written.peer.recv(piece)
                breathe()
        written.writer.finish(b"bye", written.now)
        received += written.receive(len(expected) + 3 - len(received))
        assert received == expected + b"bye"
    finally:
        written.close()


def test_it_is_blocked_since_the_peer_last_took_something(written: Written) -> None:
    data = written.fill()
    written.now = 150.0
    settle()
    assert written.writer.blocked_since == 100.0
    written.receive(len(data) // 4)
    wait_until(lambda: written.writer.blocked_since == 150.0)


def test_the_backlog_has_the_bytes_that_wait_until_they_are_sent_or_given_up() -> None:
    backlog, shared = Backlog(), bytes(MORE_THAN_FITS)
    first, second = Written(backlog=backlog), Written(backlog=backlog)
    try:
        for each in (first, second):
            each.writer.write(shared, each.now)
        assert backlog.bytes == MORE_THAN_FITS, "they share the bytes"
        first.writer.abort()
        assert backlog.bytes == MORE_THAN_FITS
        second.receive(MORE_THAN_FITS)
        wait_until(lambda: second.unblocked_count == 1)
        assert backlog.bytes == 0
    finally:
        first.close()
        second.close()


def test_its_callbacks_run_in_the_hub(written: Written) -> None:
    data = written.fill()
    written.receive(len(data))
    wait_until(lambda: written.unblocked_count)
    written.peer.close()
    wait_until(lambda: written.reasons)
    assert written.callers == {gevent.get_hub()}


# The end, from our side


def test_the_last_frame_is_followed_by_the_end(written: Written) -> None:
    written.writer.finish(b"bye", written.now)
    assert written.receive(3) == b"bye"
    assert written.at_the_end()
    assert written.reasons == ["finished"]
    assert written.freed


def test_the_last_frame_goes_behind_the_bytes_that_wait(written: Written) -> None:
    data = written.fill()
    written.writer.finish(b"bye", written.now)
    assert written.reasons == []
    assert written.receive(len(data) + 3) == data + b"bye"
    assert written.at_the_end()
    wait_until(lambda: written.reasons)
    assert (written.reasons, written.unblocked_count) == (["finished"], 0)
    assert written.freed


@pytest.mark.parametrize("whole", [True, False], ids=["in one piece", "in several"])
def test_a_last_frame_copies_none_of_the_bytes_that_wait(whole: bool) -> None:
    shared = random.randbytes(MORE_THAN_FITS)
    slow = [Written() for _ in range(10)]
    for each in slow:
        each.writer.write(shared, each.now) if whole else each.writer.write_all((b"head", shared, b"end"), each.now)
    tracemalloc.start()
    try:
        for each in slow:
            each.writer.finish(b"bye", each.now)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < MORE_THAN_FITS / 10
    for each in slow:
        each.close()


def test_an_abort_does_not_wait_for_anything(over_tcp: Written) -> None:
    over_tcp.fill(16 * MORE_THAN_FITS)
    over_tcp.writer.abort()
    assert over_tcp.freed
    assert over_tcp.writer.blocked_since is None
    with pytest.raises(ConnectionResetError):
        while over_tcp.peer.recv(65536):
            pass
    settle()
    assert (over_tcp.reasons, over_tcp.unblocked_count) == ([], 0)


def test_closing_it_again_does_nothing(written: Written) -> None:
    for _ in range(2):
        written.writer.close()
        written.writer.abort()
    assert written.freed
    assert written.reasons == []


def test_after_the_end_nothing_is_written_and_nothing_is_reported(written: Written) -> None:
    written.writer.close()
    written.writer.write(b"x", written.now)
    written.writer.finish(b"bye", written.now)
    assert written.reasons == []
    assert written.peer.recv(10) == b""


# The end, from the client's side


def test_a_client_that_closes_is_reported_once_and_its_descriptor_freed(written: Written) -> None:
    written.peer.close()
    wait_until(lambda: written.reasons)
    settle()
    assert written.reasons == ["client left"]
    assert written.freed


def test_a_half_closed_client_has_left(written: Written) -> None:
    written.peer.shutdown(socket.SHUT_WR)
    wait_until(lambda: written.reasons)
    assert written.reasons == ["client left"]
    assert written.at_the_end()


def test_a_reset_is_reported_once(over_tcp: Written) -> None:
    over_tcp.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    over_tcp.peer.close()
    wait_until(lambda: over_tcp.reasons)
    settle()
    assert over_tcp.reasons == ["ConnectionResetError"]
    assert over_tcp.freed


@pytest.mark.parametrize("how", ["close", "half", "reset"])
def test_a_client_that_leaves_while_something_waits_is_reported_once(over_tcp: Written, how: str) -> None:
    over_tcp.fill(16 * MORE_THAN_FITS)
    if how == "reset":
        over_tcp.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    over_tcp.peer.shutdown(socket.SHUT_WR) if how == "half" else over_tcp.peer.close()
    wait_until(lambda: over_tcp.reasons)
    settle()
    assert len(over_tcp.reasons) == 1
    assert over_tcp.freed
    assert (over_tcp.unblocked_count, over_tcp.writer.blocked_since) == (0, None)


@pytest.mark.parametrize("what", ["write", "finish"])
def test_a_client_that_turns_out_to_have_left_is_reported_once(written: Written, what: str) -> None:
    written.peer.close()
    getattr(written.writer, what)(b"x", written.now)
    assert written.reasons == ["BrokenPipeError"]
    written.writer.finish(b"bye", written.now)
    settle()
    assert written.reasons == ["BrokenPipeError"]
    assert written.freed


def test_a_client_may_say_a_little(written: Written) -> None:
    for _ in range(4):
        written.peer.sendall(b"x" * 1024)
        settle()
    assert written.reasons == []
    written.writer.write(b"abc", written.now)
    assert written.receive(3) == b"abc"


def test_a_client_that_goes_on_talking_is_cut_off(written: Written) -> None:
    with pytest.raises(OSError):
        for _ in range(1000):
            written.peer.sendall(b"x" * 512)
            breathe()
    assert written.reasons == ["sent data on an event stream"]
    assert written.freed


# What is left behind


@pytest.mark.parametrize("end", ["peer closes", "finish", "abort", "blocked and aborted", "blocked and peer closes"])
def test_nothing_is_left_of_many(end: str) -> None:
    loop = gevent.get_hub().loop
    gc.collect()  # otherwise the garbage of an earlier test could close its descriptors in the middle of this one
    settle()
    descriptors, watchers = len(os.listdir("/proc/self/fd")), loop.activecnt
    many = [Written() for _ in range(50)]
    for written in many:
        if end.startswith("blocked"):
            written.fill(500_000)
        if end.endswith("peer closes"):
            written.peer.close()
        elif end == "finish":
            written.writer.finish(b"bye", written.now)
        else:
            written.writer.abort()
    wait_until(lambda: all(written.freed for written in many))
    for written in many:
        written.peer.close()
    settle()
    assert (len(os.listdir("/proc/self/fd")), loop.activecnt) == (descriptors, watchers)


def test_the_next_connection_with_the_same_descriptor_is_not_taken_for_it() -> None:
    first = Written()
    first.fill()
    first.writer.abort()
    first.peer.close()
    second = Written()
    try:
        assert {second.fd, second.peer.fileno()} & {first.fd}
        data = second.fill()
        assert second.receive(len(data)) == data
        wait_until(lambda: second.unblocked_count)
        second.peer.close()
        wait_until(lambda: second.reasons)
        assert (first.unblocked_count, first.reasons) == (0, [])
    finally:
        second.close()
