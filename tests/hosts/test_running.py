"""How a process ends that serves until a signal comes."""

from __future__ import annotations

from contextlib import suppress

import gevent
from gevent.event import Event
from support import serving

from pgbus_gevent.hosts.running import stop
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.streamer.task import Task


def test_clients_are_sent_away_even_if_the_tasks_do_not_end_in_time(pgbus_settings: Settings) -> None:
    may_end = Event()

    def stubborn() -> None:
        while not may_end.is_set():
            with suppress(gevent.GreenletExit):
                may_end.wait()

    with serving(pgbus_settings) as server:
        client = server.live("orders")
        for n in range(30):  # to stop one takes a tenth of a second, when the time is over
            task = server.instance.tasks[f"stubborn-{n}"] = Task(
                f"stubborn-{n}", stubborn, on_failure=lambda name: None
            )
            task.start()
        gevent.sleep(0)  # they begin
        stop(server.server._server, [server.instance], grace=0.0)
        assert server.instance.registry.clients() == []
        may_end.set()
        client.wait_closed()
        assert [frame.event for frame in client.frames if frame.dispatches] == ["pgbus:connected", "pgbus:shutdown"]
