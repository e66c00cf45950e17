"""Balances connections among workers that accept from one listening socket.

Each worker shows the others how many connections it has, and whether it can serve. The kernel wakes an arbitrary worker for a new
connection, and a stream then stays with it for hours. A worker that cannot serve has the fewest connections, so it would even get
most of the new ones. Therefore it leaves them to the others.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from time import monotonic
from typing import Any

from .pywsgi import Server

_SLOTS = 1024  # more workers than one machine has, also during a reload
_FIELDS = 4  # fields of a slot: connections, time of the entry, whether the worker can serve, process id
_STALE = 3.0  # seconds after which a worker without a new entry counts as gone, or as hanging
_PAUSE, _LONGEST_PAUSE = 0.002, 0.01
# Seconds for which a worker with a little more than its share, or with much more, leaves connections to the others. The pauses are
# short because ordinary requests use the same socket, and need no even shares.
_SLACK = 0.05  # how much more than the smallest load a worker may have, as a fraction of that load
_LEAST_SLACK = 2  # the same in connections; the larger of the two counts
_AWAY = 0.1  # seconds between two looks of a worker that cannot serve while another worker can
_LAST_RESORT = 0.02
# Seconds for which a worker that cannot serve leaves connections to others even if it knows of none, because another master may
# have workers. After that it accepts the rest, so that clients are asked to come back later, and health checks are answered.


class LoadBoard:
    """Memory that is shared by all processes forked after it was made. Each process writes only to its own :meth:`slot`."""

    def __init__(self) -> None:
        self._values: Any = memoryview(mmap.mmap(-1, _SLOTS * _FIELDS * 8)).cast("d")

    def slot(self, number: int) -> Slot:
        """The slot of the worker ``number``. Of two workers whose numbers differ by 1024, one must have ended."""
        return Slot(self._values, number % _SLOTS)


class Slot:
    """A worker's slot on the board: its connections, whether it can serve, and the time of that entry."""

    def __init__(self, values: Any, index: int) -> None:
        self._values = values
        self._index = index

    def show(self, load: float, now: float, able: bool = True) -> None:
        """Tell the other workers that this one has ``load`` connections, and whether it is able to serve more.

        ``now`` is the monotonic time in seconds, also in the other methods.
        """
        start = _FIELDS * self._index
        self._values[start] = load
        self._values[start + 1] = now
        self._values[start + 2] = able
        self._values[start + 3] = os.getpid()

    def leave(self) -> None:
        """Remove this worker from the board, because a worker that drains takes no connections."""
        self._values[_FIELDS * self._index + 1] = 0.0

    def others(self, now: float, able: bool = False) -> list[float]:
        """The loads of the other living workers; with ``able``, only of those that can serve."""
        loads, stamps, ables = (self._values[field::_FIELDS].tolist() for field in range(3))
        return [
            loads[index]
            for index, stamp in enumerate(stamps)
            if stamp and now - stamp < _STALE and index != self._index and ables[index] >= able
        ]

    def processes(self) -> set[int]:
        """The ids of all processes that ever had a slot."""
        return {int(pid) for pid in self._values[3::_FIELDS].tolist() if pid}

    def pause(self, load: float, now: float) -> float:
        """Seconds for which a worker with ``load`` connections leaves new ones to the living worker that has the fewest."""
        others = self.others(now, able=True)
        if not others:
            return 0.0
        least = min(others)
        excess = (load - least) / max(_LEAST_SLACK, _SLACK * least)
        return min(_LONGEST_PAUSE, _PAUSE * excess) if excess > 1.0 else 0.0


class BalancedServer(Server):
    """A server that shares its listening socket fairly with the other workers.

    If it has more than its share, it leaves each connection to the others for a moment; not for longer, because the other worker
    may hang. While it cannot serve and another living worker can, it leaves all of them. ``streams`` returns how many streams this
    worker has, and ``able`` whether it can serve more.
    """

    def __init__(
        self,
        *arguments: Any,
        slot: Slot,
        streams: Callable[[], int],
        able: Callable[[], bool] = lambda: True,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self._slot = slot
        self._streams = streams
        self._able = able
        self._turn_ends = 0.0
        # Accept one at a time, because the other workers shall get their share of connections that arrive together.
        self.max_accept = 1

    def show(self, now: float) -> bool:
        """Show the other workers the state of this one, and return whether it can serve."""
        able = self._able() and not self.full()
        # Connections in the pool count too, because they may become streams.
        self._slot.show(self._streams() + len(self.pool), now, able)
        return able

    @property
    def elsewhere(self) -> bool:
        """Whether another worker can serve clients and this one cannot, so that connections are closed after each answer."""
        return not self._able() and bool(self._slot.others(monotonic(), able=True))

    def do_read(self) -> Any:
        now = monotonic()
        if not self.show(now):
            if self._slot.others(now, able=True):
                return self._hold(_AWAY, self._start_accepting_if_started)
            if now > self._turn_ends:
                return self._hold(_LAST_RESORT, self._take_turn, _LAST_RESORT)
            return super().do_read()
        pause = self._slot.pause(self._streams() + len(self.pool), now) if now > self._turn_ends else 0.0
        if pause:
            return self._hold(pause, self._take_turn, _PAUSE)
        self._turn_ends = 0.0
        return super().do_read()

    def _hold(self, pause: float, then: Callable[..., None], *arguments: float) -> None:
        self.stop_accepting()
        self._timer = self.loop.timer(pause)
        self._timer.start(then, *arguments)

    def _take_turn(self, length: float) -> None:
        # Accept the connections that still wait. Connections that arrive after this turn are left to the others first again.
        self._turn_ends = monotonic() + length
        self._start_accepting_if_started()

    def _has_heirs(self) -> bool:
        return bool(self._slot.others(monotonic())) or _is_held(self.socket, self._slot.processes())


def _is_held(sock: Any, but: set[int]) -> bool:
    """Whether a process not in ``but`` has the listening socket open, such as the workers of another master during an upgrade."""
    link = f"socket:[{os.fstat(sock.fileno()).st_ino}]"
    others = (int(name) for name in os.listdir("/proc") if name.isdigit())
    return any(_has_open(pid, link) for pid in others if pid not in but)


def _has_open(pid: int, link: str) -> bool:
    folder = f"/proc/{pid}/fd"
    try:
        return any(_target(f"{folder}/{name}") == link for name in os.listdir(folder))
    except OSError:
        return False  # it has ended, or is another user's


def _target(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
