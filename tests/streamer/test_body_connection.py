"""A client behind a server that iterates over its response body. The server is a greenlet of the tests."""

from __future__ import annotations

from collections.abc import Iterator

import gevent
import pytest
from gevent.event import Event
from streamer_parts import Noted, wait_until

from pgbus_gevent.core.client import Place, StreamRequest
from pgbus_gevent.streamer.body_connection import BodyConnection
from pgbus_gevent.streamer.turns import breathe


class Server:
    """Writes each part of the body to a client, which takes it while ``takes`` is set, and closes the body at the end."""

    def __init__(self) -> None:
        self.now = 100.0
        self.noted = Noted()
        self.unblocked, self.gone = self.noted.unblocks, self.noted.leavings
        self.body = BodyConnection(
            "c0ffee",
            StreamRequest((Place("orders"),)),
            clients=self.noted,
            clock=lambda: self.now,
        )
        self.takes = Event()
        self.takes.set()
        self.written: list[bytes] = []
        self.error: BaseException | None = None
        self.greenlet = gevent.spawn(self._serve)

    def _serve(self) -> None:
        try:
            for chunk in self.body:
                self.takes.wait()
                self.written.append(chunk)
        except OSError as error:
            self.error = error
        finally:
            self.body.close()

    def get_stuck(self) -> None:
        """Let the client stop reading while a part is being written to it."""
        self.takes.clear()
        self.body.send(b"stuck", self.now)
        wait_until(lambda: not self.body._parts)
        assert self.body.blocked_since == self.now


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.greenlet.kill()


def test_each_send_is_written_at_once(server: Server) -> None:
    for n in range(3):
        server.body.send(b"%d" % n, server.now)
        wait_until(lambda n=n: len(server.written) == n + 1)  # type: ignore[misc]
    assert server.written == [b"0", b"1", b"2"]


def test_bytes_that_are_sent_before_the_server_begins_wait_for_it() -> None:
    server = Server()
    server.body.send(b"a", 101.0)
    assert server.body.blocked_since == 101.0
    wait_until(lambda: server.written == [b"a"])
    server.greenlet.kill()


def test_something_waits_until_the_server_asks_for_the_next_chunk(server: Server) -> None:
    server.get_stuck()
    breathe()
    assert (server.unblocked, server.body.blocked_since) == ([], 100.0)
    server.takes.set()
    wait_until(lambda: server.unblocked)
    assert server.unblocked == [server.body]
    assert server.body.blocked_since is None


def test_a_client_that_takes_nothing_stays_blocked_since_its_last_byte(server: Server) -> None:
    server.get_stuck()
    for _ in range(10):
        server.now += 5.0
        server.body.send(b"x", server.now)
    assert server.body.blocked_since == 100.0


def test_a_client_that_takes_a_chunk_has_the_deadline_anew(server: Server) -> None:
    server.get_stuck()
    server.body.send(b"x", server.now)
    server.now = 150.0
    server.takes.set()
    server.takes.clear()
    wait_until(lambda: server.written)
    wait_until(lambda: server.body.blocked_since == 150.0)


def test_the_last_frame_goes_behind_the_bytes_that_wait(server: Server) -> None:
    server.get_stuck()
    server.body.reason = "restart"
    server.body.finish(b"bye", server.now)
    server.takes.set()
    wait_until(lambda: server.greenlet.dead)
    assert server.written == [b"stuck", b"bye"]
    assert server.unblocked == []


def test_a_server_that_is_stuck_in_a_write_is_thrown_out_of_it(server: Server) -> None:
    server.get_stuck()
    server.body.reason = "slow-consumer"
    server.body.abort()
    wait_until(lambda: server.greenlet.dead)
    assert isinstance(server.error, BrokenPipeError)
    assert server.written == []
    assert server.gone == [(server.body, "client left")]


def test_a_server_that_waits_for_a_chunk_gets_the_end(server: Server) -> None:
    breathe()
    server.body.reason = "revoked"
    server.body.abort()
    wait_until(lambda: server.greenlet.dead)
    assert (server.written, server.error) == ([], None)


def test_a_body_that_is_aborted_before_the_server_begins_is_empty() -> None:
    server = Server()
    server.body.send(b"a", server.now)
    server.body.reason = "restart"
    server.body.abort()
    wait_until(lambda: server.greenlet.dead)
    assert (server.written, server.error) == ([], None)


def test_a_client_that_leaves_is_reported_when_the_server_closes_the_body(server: Server) -> None:
    breathe()
    server.greenlet.kill()
    assert server.gone == [(server.body, "client left")]


def test_an_abort_after_the_server_closed_the_body_kills_no_greenlet() -> None:
    server = Server()
    server.body.send(b"a", server.now)
    body = server.body
    assert next(body) == b"a"
    body.close()
    body.abort()
    breathe()
    server.greenlet.kill()
