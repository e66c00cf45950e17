"""A line passes bytes on, unless it was told to hold, forget, delay or cut."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from gevent.server import StreamServer

from pgbus_gevent.testing.chaos.lines import Lines
from pgbus_gevent.testing.chaos.processes import Part

pytestmark = pytest.mark.program


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[Lines]:
    part = Part([sys.executable, "-m", "pgbus_gevent.testing.chaos.lines"], tmp_path / "log", {}, talks=True)
    part.start()
    yield Lines(part)
    part.kill()
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.fixture
def port(lines: Lines) -> Iterator[int]:
    """The port of the line ``echo``, which leads to a server that sends everything back."""
    server = StreamServer(("127.0.0.1", 0), _echo)
    server.start()
    yield lines.open("echo", "127.0.0.1", ("127.0.0.1", server.server_port))
    server.stop()


def _echo(sock: socket.socket, _: object) -> None:
    while data := sock.recv(1000):
        sock.sendall(data)


def connect(port: int) -> socket.socket:
    one = socket.create_connection(("127.0.0.1", port), 30)
    assert ask(one) == b"hello"
    return one


def ask(one: socket.socket) -> bytes:
    one.sendall(b"hello")
    return one.recv(1000)


def is_silent(one: socket.socket) -> bool:
    one.settimeout(0.3)
    try:
        ask(one)
    except TimeoutError:
        return True
    finally:
        one.settimeout(30)
    return False


def test_a_held_line_takes_bytes_and_passes_them_on_later(lines: Lines, port: int) -> None:
    with connect(port) as one:
        lines.hold("echo", True)
        assert is_silent(one)
        lines.hold("echo", False)
        assert one.recv(1000) == b"hello"


def test_a_half_open_connection_stays_silent_and_others_do_not(lines: Lines, port: int) -> None:
    with connect(port) as one:
        lines.half_open("echo", 1.0)
        assert is_silent(one)
        with connect(port):
            pass


def test_a_slow_line_delays_each_way(lines: Lines, port: int) -> None:
    with connect(port) as one:
        lines.slow("echo", delay=0.2)
        began = time.monotonic()
        assert ask(one) == b"hello"
        assert time.monotonic() - began >= 0.4


def test_a_cut_is_a_reset(lines: Lines, port: int) -> None:
    with connect(port) as one:
        lines.cut("echo")
        with pytest.raises(ConnectionResetError):
            one.recv(1000)


def test_a_line_can_be_led_elsewhere(lines: Lines, port: int) -> None:
    with connect(port):
        lines.lead("echo", ("127.0.0.1", 1))
        with socket.create_connection(("127.0.0.1", port), 30) as other:
            try:
                assert other.recv(1000) == b""
            except ConnectionResetError:
                pass  # the same answer, in another form
