"""The Instance of the process, and its counter."""

from __future__ import annotations

from collections.abc import Iterator

import gevent
import pytest
from support import Serving, greenlets, raw_client, serving, until

from pgbus_gevent import streamer
from pgbus_gevent.bus import Bus
from pgbus_gevent.core.client import Subscriber
from pgbus_gevent.errors import DatabaseError
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.streamer.instance import Instance
from pgbus_gevent.web.stream_app import StreamApp


@pytest.fixture(autouse=True)
def no_instance(pgbus_database: str) -> Iterator[None]:
    """Have no Instance before the test, and leave none that is connected to the test's database."""
    streamer.reset()
    yield
    streamer.reset()


def test_fifty_greenlets_that_race_get_one_instance_started_once(pgbus_settings: Settings) -> None:
    made: list[Instance] = []

    class Counting(Instance):
        def __init__(self, settings: Settings) -> None:
            made.append(self)
            super().__init__(settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streamer, "Instance", Counting)

        def ask() -> Instance:
            try:
                return streamer.current(settings=pgbus_settings)
            except RuntimeError:
                return streamer.current()

        racing = [gevent.spawn(ask) for _ in range(50)]
        gevent.joinall(racing, timeout=20, raise_error=True)
    assert len({id(greenlet.value) for greenlet in racing}) == len(made) == 1
    assert len(greenlets("pgbus-dispatcher")) == len(greenlets("pgbus-listener")) == 1
    assert made[0].alive
    until(lambda: made[0].listener.live, "it listens")
    assert streamer.stream_counter() is made[0].counter


def test_reset_ends_it_and_the_next_one_is_new(pgbus_settings: Settings) -> None:
    first = streamer.current(settings=pgbus_settings)
    streamer.reset()
    assert first.draining
    until(lambda: greenlets("pgbus-") == [], "its greenlets end")
    assert streamer.stream_counter().total == (0, 0, 0)
    streamer.reset()

    second = streamer.current(settings=pgbus_settings)
    assert second is not first and second.alive


def test_options_that_come_too_late_are_an_error(pgbus_settings: Settings) -> None:
    streamer.current(settings=pgbus_settings)
    with pytest.raises(RuntimeError, match="reset"):
        streamer.current(settings=pgbus_settings)


def test_the_next_use_tries_again_after_a_start_that_failed(pgbus_settings: Settings) -> None:
    with pytest.raises(DatabaseError):
        streamer.current(database_url="postgresql://127.0.0.1:1/nowhere", secret="x" * 16)
    assert greenlets("pgbus-") == []
    assert streamer.current(settings=pgbus_settings).alive


def test_set_current_puts_an_instance_in_place(pgbus_instance: Instance) -> None:
    streamer.set_current(pgbus_instance)
    assert streamer.current() is pgbus_instance
    assert streamer.stream_counter() is pgbus_instance.counter
    streamer.set_current(None)
    assert streamer.stream_counter() is not pgbus_instance.counter


def test_the_counter_is_balanced_however_connections_end(pgbus_settings: Settings, pgbus_bus: Bus) -> None:
    def app(instance: Instance) -> StreamApp:
        instance.filters.register("those who stall", lambda context, stream: context is None)
        return StreamApp(instance, lambda environ, stream: Subscriber(context=environ.get("HTTP_X_ROLE")))

    # What fills the sockets is not for the clients that stay. Otherwise they would be ended too if the process stood still for
    # the deadline while bytes wait for them.
    with serving(pgbus_settings, app=app, write_deadline=0.5, send_buffer=4096) as server:
        streamer.set_current(server.instance)
        counter = streamer.stream_counter()
        closing = [server.live(f"s:{n}") for n in range(4)]
        closing += [server.live("s:0") for _ in range(3)]
        staying = [server.live("s:0", headers={"X-Role": "stays"}) for _ in range(2)]
        slow = [raw_client(server.url, "s:0") for _ in range(5)]
        until(lambda: counter.total.active_connections == 14, "all are connected")
        assert counter["s:0"].active_connections == 11
        for client in closing:
            client.close()
        for _ in range(10):
            pgbus_bus.stream("s:0").broadcast("x" * 50_000, visible_to="those who stall")
            pgbus_bus.stream("s:0").broadcast("for all")
        until(lambda: counter.total.active_connections == 2, "only those that stay are left")
        assert all(len(client.messages) <= 10 for client in staying)
        until(lambda: all(len(client.messages) == 10 for client in staying), "they have all")
        assert counter["s:0"].broadcasts == 20, "each broadcast counts once, for any number of clients"
        end(server)
        assert counter.total == (20, 0, 14)
        assert counter.streams == {}
        for sock in slow:
            sock.close()


def end(server: Serving) -> None:
    streamer.set_current(None)
    server.instance.shutdown()
