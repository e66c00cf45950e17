"""The first client of a stream: nothing that is published once it is connected, or while it connects, is lost.

A worker listens on the channel of a stream only once the stream has a client. These tests make that moment longer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import gevent
import pytest
from gevent.event import Event
from support import PATIENCE, Serving, serving, until

from pgbus_gevent.bus import Bus
from pgbus_gevent.database import Database
from pgbus_gevent.database.notifications import ListenSession
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.streamer import listener


class Slow(Database):
    """A database whose sessions run :attr:`before` and :attr:`after` around each LISTEN for streams."""

    before: Callable[[], object] = staticmethod(lambda: None)
    after: Callable[[], object] = staticmethod(lambda: None)
    listens = 0

    def listen(self) -> ListenSession:
        session = super().listen()
        really = session.follow

        def follow(streams: Collection[str] | None) -> None:
            self.before()
            really(streams)
            self.listens += 1
            self.after()

        session.follow = follow  # type: ignore[method-assign]
        return session


@pytest.fixture
def database(pgbus_settings: Settings) -> Slow:
    return Slow(pgbus_settings)


@pytest.fixture
def server(database: Slow, pgbus_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serving]:
    """A server that follows only the streams of its clients, and not for long after the last one has left."""
    monkeypatch.setattr(listener, "NARROW_INTERVAL", 0.01)
    # The interval is long, so a sweep does not find what the listener missed.
    with serving(pgbus_settings, parts={"database": database}, catch_up_interval=60.0) as found:
        found.instance.board.follow_all = False
        until(lambda: not found.instance.listener._follows_all, "it has narrowed")
        yield found


def test_an_ephemeral_message_right_after_the_first_frame_arrives(
    server: Serving, database: Slow, pgbus_bus: Bus
) -> None:
    database.before = lambda: gevent.sleep(0.01)
    for n in range(100):
        stream = pgbus_bus.stream(f"s{n}")
        client = server.live(stream.name)
        stream.broadcast(str(n), ephemeral=True)
        assert client.next(timeout=PATIENCE).data == str(n)
        client.close()
    assert database.listens >= 100


def test_a_message_that_is_committed_between_the_listen_and_the_look_arrives_once(
    server: Serving, database: Slow, pgbus_bus: Bus
) -> None:
    for n in range(20):
        stream = pgbus_bus.stream(f"s{n}")
        stream.broadcast("before")
        watermark = stream.last_id()
        database.before = lambda stream=stream: stream.broadcast("before the LISTEN")  # type: ignore[misc]
        database.after = lambda stream=stream: stream.broadcast("after it")  # type: ignore[misc]
        client = server.live(stream.name, since=watermark)
        database.before = database.after = lambda: None
        stream.broadcast("last")
        until(lambda: len(client.messages) >= 3 and client.messages[-1].data == "last", "all arrive")  # noqa: B023
        assert [frame.data for frame in client.messages] == ["before the LISTEN", "after it", "last"]
        client.close()


def test_clients_that_come_together_are_followed_by_a_few_statements(server: Serving, database: Slow) -> None:
    begun = Event()
    database.before = begun.wait
    before = database.listens
    clients = [server.client(f"together:{n}") for n in range(100)]
    until(lambda: len(server.instance.registry) == 100, "all wait")
    begun.set()
    for client in clients:
        client.next("pgbus:connected", timeout=PATIENCE)
    assert database.listens - before < 10


def test_a_client_does_not_wait_for_a_session_that_is_lost_while_it_connects(server: Serving, database: Slow) -> None:
    def cut() -> None:
        database.before = lambda: gevent.sleep(60.0)  # no other session gets as far as to listen
        server.instance.listener._board.following.session._connection.close()  # type: ignore[union-attr]

    database.before = cut
    server.live("orders")
    assert not server.instance.listener.live
