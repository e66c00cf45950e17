"""The options of the sockets that a server accepts."""

from __future__ import annotations

import socket
from contextlib import closing

from pgbus_gevent.hosts.listening import DEAD_AFTER, listen, tune


def test_a_connection_whose_other_side_is_dead_does_not_last_and_small_answers_go_out_at_once() -> None:
    with closing(listen("127.0.0.1", 0)) as listener:
        tune(listener)
        with socket.create_connection(listener.getsockname()) as _, closing(listener.accept()[0]) as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == DEAD_AFTER * 1000
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_socket_that_is_not_tcp_is_left_alone() -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        tune(sock)
