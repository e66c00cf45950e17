"""What the parts of the streamer tell of themselves."""

from __future__ import annotations

from typing import Any

import gevent
import pytest
from streamer_parts import Parts, wait_until

from pgbus_gevent.core.events import ListenerDown, ListenerUp, Read, Signal
from pgbus_gevent.errors import DatabaseUnavailable
from pgbus_gevent.streamer import listener
from pgbus_gevent.streamer.listener import Listener


class Session:
    """Breaks at the second look."""

    looks = 0

    def receive(self, timeout: float) -> tuple[list[str], bool]:
        self.looks += 1
        gevent.sleep(0.001)
        if self.looks > 1:
            raise DatabaseUnavailable("terminated by an administrator")
        return [], True

    def hears(self, timeout: float) -> bool:
        return True

    def ping(self) -> None: ...
    def close(self) -> None: ...


def test_the_listener_tells_once_when_it_is_up_and_once_when_it_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when it only lost a notification, nor when it cannot open a session again."""
    monkeypatch.setattr(listener, "_MAX_PAUSE", 0.01)
    sessions: list[Session | None] = [Session(), None, None, Session()]

    def connect() -> Session:
        session = sessions.pop(0) if sessions else None
        if session is None:
            raise DatabaseUnavailable("nobody there")
        return session

    heard: list[Any] = []
    up: Signal[ListenerUp] = Signal()
    down: Signal[ListenerDown] = Signal()
    up.subscribe(heard.append)
    down.subscribe(heard.append)
    part = Listener(
        connect, on_payloads=lambda payloads: None, on_up=lambda: None, on_down=lambda: None, up=up, down=down
    )
    greenlet = gevent.spawn(part.run)
    wait_until(lambda: len(heard) >= 4, "up, down, up, down")
    greenlet.kill()
    assert heard == [ListenerUp(), ListenerDown("terminated by an administrator")] * 2


def test_each_statement_of_the_readers_is_told_with_what_it_brought() -> None:
    parts = Parts(page_size=3)
    reads: list[Read] = []
    parts.events.subscribe(Read, reads.append)
    for _ in range(7):
        parts.publish()
    with parts:
        client = parts.connect(since=0)
        wait_until(lambda: len(client.ids) == 7, "all of it")
        for _ in range(2):
            parts.publish(ring=False)
        parts.look()
        wait_until(lambda: len(client.ids) == 9, "the new ones")
        wait_until(lambda: len(reads) == parts.reader.reads, "each read is told")
    kinds = [read.kind for read in reads]
    assert kinds[0] == "open" and kinds[-1] == "follow" and "page" in kinds
    assert sum(read.rows for read in reads if read.kind == "follow") == 2
    assert all(read.streams == 1 and read.seconds >= 0 for read in reads)
