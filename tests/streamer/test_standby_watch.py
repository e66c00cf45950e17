"""The check of a standby, on servers that answer as the test says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from streamer_parts import make_board

from pgbus_gevent.core.standby import Mark, State
from pgbus_gevent.streamer.standby_watch import StandbyWatch

MARK = 1 << 28 | 7


class Server:
    """A server, as each session with it shows it."""

    queries: Any = None

    def __init__(self, shown: State) -> None:
        self.shown = shown

    def state(self) -> State:
        return self.shown


class Servers:
    """A URL that leads to the first server that is a standby, or else to the last one. The session is kept."""

    def __init__(self, *servers: Server) -> None:
        self._servers = servers
        self._kept: Server | None = None

    def mark(self) -> Mark:
        return Mark(MARK, 100, 0.1, 1, monotonic())

    @contextmanager
    def session(self) -> Iterator[Server]:
        standbys = [server for server in self._servers if server.shown.recovering]
        self._kept = self._kept or [*standbys, self._servers[-1]][0]
        yield self._kept

    def discard_idle(self) -> None:
        self._kept = None


def test_after_a_promotion_another_server_of_the_url_is_read() -> None:
    promoted, other = Server(State(True, 100, MARK)), Server(State(True, 100, MARK))
    watch = StandbyWatch(Servers(promoted, other), make_board())
    watch.check()
    assert watch.fault == ""
    promoted.shown = State(False, None, MARK)
    watch.check()
    assert "was promoted" in watch.fault
    watch.check()
    assert watch.fault == ""
