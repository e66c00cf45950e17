"""A client on a socket that the streamer owns."""

from __future__ import annotations

import random
import socket
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from streamer_parts import Noted, plain, tcp_pair, wait_until

from pgbus_gevent.core import chunked
from pgbus_gevent.core.client import Place, StreamRequest
from pgbus_gevent.streamer.connection import Connection

HEAD = b"HTTP/1.1 200 OK\r\n\r\n"
MORE_THAN_FITS = b"x" * 4 * 1024 * 1024


class Connected:
    """A connection over TCP, with the client's end."""

    def __init__(self, *, client_left: bool = False, **options: Any) -> None:
        ours, self.peer = tcp_pair()
        self.peer.settimeout(60.0)
        if client_left:
            self.peer.close()
        self.sock = plain(ours)
        self.noted = Noted()
        self.unblocked, self.gone = self.noted.unblocks, self.noted.leavings
        self.connection = Connection(
            "c0ffee",
            StreamRequest((Place("orders"),)),
            self.sock,
            HEAD,
            clients=self.noted,
            clock=lambda: 100.0,
            **options,
        )

    def receive(self, size: int) -> bytes:
        found = b""
        while len(found) < size and (data := self.peer.recv(size - len(found))):
            found += data
        return found

    def received_until_reset(self) -> bytes:
        found = b""
        try:
            while data := self.peer.recv(65536):
                found += data
        except ConnectionResetError:
            pass
        return found

    def close(self) -> None:
        self.connection.abort()
        self.peer.close()


@pytest.fixture
def connected() -> Iterator[Connected]:
    made = Connected()
    yield made
    made.close()


def test_the_head_goes_out_with_the_first_frame_and_once(connected: Connected) -> None:
    connected.connection.send(b"data: a\n\n", 101.0)
    connected.connection.send(b"data: b\n\n", 102.0)
    assert connected.receive(len(HEAD) + 18) == HEAD + b"data: a\n\ndata: b\n\n"


def test_a_client_that_is_sent_away_at_once_gets_the_head_too(connected: Connected) -> None:
    connected.connection.finish(b"bye\n\n", 101.0)
    assert connected.receive(1000) == HEAD + b"bye\n\n"


def test_the_last_frame_has_no_head_before_it(connected: Connected) -> None:
    connected.connection.send(b"data: a\n\n", 101.0)
    connected.connection.finish(b"bye\n\n", 102.0)
    assert connected.receive(1000) == HEAD + b"data: a\n\nbye\n\n"
    assert connected.gone == [(connected.connection, "finished")]


@pytest.mark.parametrize("size", [1, chunked.COPIED, chunked.COPIED + 1, 50_000])
def test_each_write_is_a_chunk_and_the_last_one_comes_with_the_farewell(size: int) -> None:
    connected = Connected(chunked=True)
    try:
        data = random.randbytes(size)
        connected.connection.send(data, 101.0)
        wait_until(lambda: connected.connection.blocked_since is None)
        connected.connection.send(b"extra\n\n", 102.0)
        connected.connection.finish(b"bye\n\n", 103.0)
        head = HEAD + b"%x\r\n" % size
        tail = b"\r\n7\r\nextra\n\n\r\n5\r\nbye\n\n\r\n0\r\n\r\n"
        assert connected.receive(len(head) + size + len(tail) + 1) == head + data + tail
        wait_until(lambda: connected.gone)
        assert connected.connection.bytes_sent >= len(head) + size
    finally:
        connected.close()


def test_a_client_that_is_cut_off_gets_no_last_chunk() -> None:
    connected = Connected(chunked=True)
    connected.connection.send(b"data: a\n\n", 101.0)
    connected.connection.abort()
    assert b"0\r\n\r\n" not in connected.received_until_reset()
    connected.close()


def test_slow_clients_share_the_bytes_that_wait_and_the_last_frame_copies_none() -> None:
    message = b"x" * 1_000_000
    slow = [Connected(chunked=True) for _ in range(20)]
    try:
        for connected in slow:
            connected.connection.send(b"first", 101.0)
        tracemalloc.start()
        for connected in slow:
            connected.connection.send(message, 102.0)
            assert connected.connection.blocked_since
            connected.connection.finish(b"bye\n\n", 103.0)
        kept, _ = tracemalloc.get_traced_memory()
        assert kept < 100_000
    finally:
        tracemalloc.stop()
        for connected in slow:
            connected.close()


def test_it_knows_when_it_was_opened_and_last_sent_to(connected: Connected) -> None:
    connection = connected.connection
    assert (connection.opened_at, connection.last_sent) == (100.0, 100.0)
    connection.send(b"x", 107.0)
    assert connection.last_sent == 107.0
    connection.send(b"x", 108.0)
    assert connection.last_sent == 108.0


def test_it_is_blocked_while_bytes_wait_and_reports_when_they_are_sent(connected: Connected) -> None:
    assert connected.connection.blocked_since is None
    connected.connection.send(MORE_THAN_FITS, 101.0)
    assert connected.connection.blocked_since == 101.0
    assert connected.receive(len(HEAD) + len(MORE_THAN_FITS)) == HEAD + MORE_THAN_FITS
    wait_until(lambda: connected.unblocked)
    assert connected.unblocked == [connected.connection]
    assert connected.connection.blocked_since is None


def test_a_client_that_leaves_is_reported_with_the_connection(connected: Connected) -> None:
    connected.peer.close()
    wait_until(lambda: connected.gone)
    assert connected.gone == [(connected.connection, "client left")]


def test_a_client_that_has_left_already_is_found_so() -> None:
    connected = Connected(client_left=True)
    wait_until(lambda: connected.gone)
    assert connected.gone == [(connected.connection, "client left")]


def test_an_abort_closes_it_without_a_word(connected: Connected) -> None:
    connected.connection.send(MORE_THAN_FITS, 101.0)
    connected.connection.abort()
    assert connected.sock.fileno() == -1
    assert connected.connection.blocked_since is None
    assert connected.gone == []


def test_the_kernel_is_told_to_keep_little_to_send_at_once_and_to_give_up_on_the_dead() -> None:
    connected = Connected(send_buffer=32768, dead_after=25.0)
    try:
        assert not connected.sock.getblocking()
        assert connected.sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 2 * 32768
        assert connected.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            assert connected.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 25_000
    finally:
        connected.close()


def test_a_client_that_never_reads_costs_the_kernel_no_more_than_its_buffer() -> None:
    small, large = Connected(send_buffer=32768), Connected(send_buffer=1024 * 1024)
    try:
        taken = []
        for connected in (small, large):
            connected.connection.send(MORE_THAN_FITS, 101.0)
            rest = connected.connection._writer._rest
            assert rest is not None
            taken.append(len(HEAD) + len(MORE_THAN_FITS) - sum(map(len, rest)))
        assert taken[0] < taken[1]
    finally:
        small.close()
        large.close()


def test_a_unix_socket_will_do_as_well() -> None:
    ours, peer = socket.socketpair()
    noted = Noted()
    connection = Connection(
        "c0ffee",
        StreamRequest((Place("orders"),)),
        ours,
        HEAD,
        clients=noted,
    )
    connection.send(b"x", 101.0)
    assert peer.recv(1000) == HEAD + b"x"
    peer.close()
    wait_until(lambda: noted.leavings)
