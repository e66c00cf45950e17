"""How the workers that wait on one listening socket share it: each shows the others what it has, and whether it can serve.

Which of them the kernel wakes first is chance, and a stream stays for hours where chance has put it. A worker that cannot serve
would even get most of them, as it has the fewest: it leaves the port to the others.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from time import monotonic
from typing import Any

from .pywsgi import Server

_SLOTS = 1024  # more workers than one host has, those of the generation before included
_FIELDS = 4  # of a slot: connections, when it was shown, whether it can serve, process
_STALE = 3.0  # seconds; a worker that showed nothing for so long is gone, or hangs
_PAUSE, _LONGEST_PAUSE = 0.002, 0.01
# Seconds that a worker with a little more, and with much more than its share leaves to the others. Not longer, since ordinary
# requests come by the same socket, and need no even shares.
_SLACK = 0.05  # of the smallest load, and
_LEAST_SLACK = 2  # connections: how much more one may have than the one that has the least
_AWAY = 0.1  # seconds between two looks of a worker that cannot serve, while another one can
_LAST_RESORT = 0.02
# Seconds that it leaves to others where it knows of none: another master's worker may be there. Then it takes what is
# left, as clients are to be told, and probes answered.


class LoadBoard:
    """Shared by the processes that are forked after it was made; each writes in a place of its own, :meth:`place`."""

    def __init__(self) -> None:
        self._values: Any = memoryview(mmap.mmap(-1, _SLOTS * _FIELDS * 8)).cast("d")

    def place(self, number: int) -> Place:
        """The place of the worker ``number``; of two whose numbers are 1024 apart, one must be gone."""
        return Place(self._values, number % _SLOTS)


class Place:
    """A worker's own line on the board: what it has, whether it can serve, and when it said so."""

    def __init__(self, values: Any, slot: int) -> None:
        self._values = values
        self._slot = slot

    def show(self, load: float, now: float, able: bool = True) -> None:
        """Tell the others of ``load`` connections, and whether more can be served."""
        start = _FIELDS * self._slot
        self._values[start] = load
        self._values[start + 1] = now
        self._values[start + 2] = able
        self._values[start + 3] = os.getpid()

    def leave(self) -> None:
        """Count no more: who drains takes no connections."""
        self._values[_FIELDS * self._slot + 1] = 0.0

    def others(self, now: float, able: bool = False) -> list[float]:
        """The loads of the other living workers, or of those of them that are ``able``."""
        loads, stamps, ables = (self._values[field::_FIELDS].tolist() for field in range(3))
        return [
            loads[slot]
            for slot, stamp in enumerate(stamps)
            if stamp and now - stamp < _STALE and slot != self._slot and ables[slot] >= able
        ]

    def processes(self) -> set[int]:
        """All that ever had a place."""
        return {int(pid) for pid in self._values[3::_FIELDS].tolist() if pid}

    def pause(self, load: float, now: float) -> float:
        """Seconds for which a worker with ``load`` had better leave a connection to the living worker that has the least."""
        others = self.others(now, able=True)
        if not others:
            return 0.0
        least = min(others)
        excess = (load - least) / max(_LEAST_SLACK, _SLACK * least)
        return min(_LONGEST_PAUSE, _PAUSE * excess) if excess > 1.0 else 0.0


class BalancedServer(Server):
    """Leaves a connection to the other workers for a moment when it has more than its share, and all while it cannot serve.

    For a moment only: whoever should take it may hang. Of those that can serve, though, a living one is known. ``streams`` tells
    how many streams this worker has, ``able`` whether it can serve more.
    """

    def __init__(
        self,
        *arguments: Any,
        place: Place,
        streams: Callable[[], int],
        able: Callable[[], bool] = lambda: True,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self._place = place
        self._streams = streams
        self._able = able
        self._turn_ends = 0.0
        # One at a time, as those that it would take at once are the others' too.
        self.max_accept = 1

    def show(self, now: float) -> bool:
        """Tell the others of this worker; whether it can serve."""
        able = self._able() and not self.full()
        # Those in the pool are on their way to become streams.
        self._place.show(self._streams() + len(self.pool), now, able)
        return able

    @property
    def elsewhere(self) -> bool:
        """Whether clients are better off at another worker, so that no connection is kept for a next request."""
        return not self._able() and bool(self._place.others(monotonic(), able=True))

    def do_read(self) -> Any:
        now = monotonic()
        if not self.show(now):
            if self._place.others(now, able=True):
                return self._hold(_AWAY, self._start_accepting_if_started)
            if now > self._turn_ends:
                return self._hold(_LAST_RESORT, self._take_turn, _LAST_RESORT)
            return super().do_read()
        pause = self._place.pause(self._streams() + len(self.pool), now) if now > self._turn_ends else 0.0
        if pause:
            return self._hold(pause, self._take_turn, _PAUSE)
        self._turn_ends = 0.0
        return super().do_read()

    def _hold(self, pause: float, then: Callable[..., None], *arguments: float) -> None:
        self.stop_accepting()
        self._timer = self.loop.timer(pause)
        self._timer.start(then, *arguments)

    def _take_turn(self, length: float) -> None:
        # For what still waits; what comes later is for the others first again.
        self._turn_ends = monotonic() + length
        self._start_accepting_if_started()

    def _has_heirs(self) -> bool:
        return bool(self._place.others(monotonic())) or _is_held(self.socket, self._place.processes())


def _is_held(sock: Any, but: set[int]) -> bool:
    """Whether another process than these has the listening socket open: a master, who reloads or was replaced by another one."""
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
