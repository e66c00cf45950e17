"""How the workers that wait on one listening socket get even shares: each shows the others how many connections it has.

Which of them the kernel wakes first is chance, and a stream stays for hours where chance has put it.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from time import monotonic
from typing import Any

from .pywsgi import Server

_SLOTS = 1024  # more workers than one host has, those of the generation before included
_STALE = 3.0  # seconds; a worker that showed nothing for so long is gone, or hangs
_PAUSE, _LONGEST_PAUSE = 0.002, 0.01
# Seconds that a worker with a little more, and with much more than its share leaves to the others. Not longer, since ordinary
# requests come by the same socket, and need no even shares.
_SLACK = 0.05  # of the smallest load, and
_LEAST_SLACK = 2  # connections: how much more one may have than the one that has the least


class LoadBoard:
    """Shared by the processes that are forked after it was made; each writes in a place of its own, :meth:`place`."""

    def __init__(self) -> None:
        self._values: Any = memoryview(mmap.mmap(-1, _SLOTS * 16)).cast("d")

    def place(self, number: int) -> Place:
        """The place of the worker ``number``; of two whose numbers are 1024 apart, one must be gone."""
        return Place(self._values, number % _SLOTS)


class Place:
    """A worker's own line on the board: what it has, and when it said so."""

    def __init__(self, values: Any, slot: int) -> None:
        self._values = values
        self._slot = slot

    def show(self, load: float, now: float) -> None:
        """Tell the others of ``load`` connections."""
        self._values[2 * self._slot] = load
        self._values[2 * self._slot + 1] = now

    def leave(self) -> None:
        """Count no more: who drains takes no connections."""
        self._values[2 * self._slot + 1] = 0.0

    def pause(self, load: float, now: float) -> float:
        """Seconds for which a worker with ``load`` had better leave a connection to the living worker that has the least."""
        stamps, loads = self._values[1::2].tolist(), self._values[0::2].tolist()
        others = [
            loads[slot] for slot, stamp in enumerate(stamps) if stamp and now - stamp < _STALE and slot != self._slot
        ]
        if not others:
            return 0.0
        least = min(others)
        excess = (load - least) / max(_LEAST_SLACK, _SLACK * least)
        return min(_LONGEST_PAUSE, _PAUSE * excess) if excess > 1.0 else 0.0


class BalancedServer(Server):
    """Leaves a connection to the other workers for a moment when it has more than its share.

    For a moment only: whoever should take it may hang. ``streams`` tells how many streams this worker has.
    """

    def __init__(self, *arguments: Any, place: Place, streams: Callable[[], int], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._place = place
        self._streams = streams
        self._turn_ends = 0.0
        # One at a time, as those that it would take at once are the others' too.
        self.max_accept = 1

    def do_read(self) -> Any:
        now = monotonic()
        # Those in the pool are on their way to become streams.
        load = self._streams() + len(self.pool)
        self._place.show(load, now)
        pause = self._place.pause(load, now) if now > self._turn_ends else 0.0
        if pause:
            self.stop_accepting()
            self._timer = self.loop.timer(pause)
            self._timer.start(self._take_turn)
            return None
        self._turn_ends = 0.0
        return super().do_read()

    def _take_turn(self) -> None:
        # For what still waits; what comes later is for the others first again.
        self._turn_ends = monotonic() + _PAUSE
        self._start_accepting_if_started()
