"""Windows in which a write takes the place of an earlier one: what waits, until when, and what became of it.

A window is open for one group of writes and one length. It opens with the first write and ends so many seconds after that, however
many follow: a timer that each write starts anew would keep a target that never rests from being published at all.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Hashable
from typing import Any, NamedTuple


class Counts(NamedTuple):
    """So far: ``written == replaced + published + dropped + waiting``.

    ``replaced`` gave way to a later write. ``dropped`` were refused, or could not be published for too long. ``failed`` are tries
    to publish that failed; what they held was kept, so it is not among the others.
    """

    written: int = 0
    replaced: int = 0
    published: int = 0
    dropped: int = 0
    failed: int = 0
    waiting: int = 0


class Write(NamedTuple):
    """Something that waits; ``number`` is its place in the order of all writes, ``at`` when it was written."""

    number: int
    at: float
    key: Hashable
    message: Any


class _Window:
    __slots__ = ("due", "name", "writes")

    def __init__(self, name: Hashable, due: float) -> None:
        self.name = name
        self.due = due
        self.writes: dict[Hashable, Write] = {}


_KEPT = object()
# The name of the window of what could not be published.


class Windows:
    """All windows of one publisher. What :meth:`take` hands out is answered with :meth:`done`, or :meth:`keep` where it failed.

    Nothing here yields; threads need a lock around it.
    """

    def __init__(self) -> None:
        self._windows: dict[Hashable, _Window] = {}
        self._dues: list[tuple[float, int, _Window]] = []  # the number keeps windows from being compared
        self._places: dict[Hashable, _Window] = {}
        self._written = self._replaced = self._published = self._dropped = self._failed = self._taken = 0

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __len__(self) -> int:
        """How many wait or are being published."""
        return len(self._places) + self._taken

    @property
    def next_due(self) -> float | None:
        """When the next window ends."""
        return self._dues[0][0] if self._dues else None

    @property
    def counts(self) -> Counts:
        """The numbers as they are now."""
        return Counts(self._written, self._replaced, self._published, self._dropped, self._failed, len(self))

    def write(self, key: Hashable, message: Any, group: Hashable, seconds: float, now: float) -> None:
        """Take ``message`` in place of what waits for ``key``, into the window of its group and length."""
        self._written += 1
        self._place(Write(self._written, now, key, message), (group, seconds), now + seconds)

    def _place(self, write: Write, name: Hashable, due: float) -> None:
        window = self._windows.get(name)
        earlier = self._places.get(write.key)
        if earlier is not None:
            del earlier.writes[write.key]
            self._replaced += 1
            # Who gives one key different lengths is served by the window that ends first: else the value before would wait for
            # longer than was promised for it.
            if earlier.due <= (due if window is None else window.due):
                window = earlier
        if window is None:
            window = self._windows[name] = _Window(name, due)
            insort(self._dues, (due, write.number, window))
        window.writes[write.key] = write
        self._places[write.key] = window

    def take(self, now: float | None = None) -> list[Write]:
        """What windows hold that have ended, or all of them without ``now``; in the order in which it was written."""
        end = len(self._dues) if now is None else bisect_right(self._dues, now, key=lambda due: due[0])
        ended = [window for _, _, window in self._dues[:end]]
        del self._dues[:end]
        for window in ended:
            del self._windows[window.name]
        writes = sorted((write for window in ended for write in window.writes.values()), key=lambda write: write.number)
        for write in writes:
            del self._places[write.key]
        self._taken += len(writes)
        return writes

    def done(self, *, published: int = 0, dropped: int = 0) -> None:
        """So many of those that were taken were published, and so many given up."""
        self._taken -= published + dropped
        self._published += published
        self._dropped += dropped

    def keep(self, writes: list[Write], now: float, *, keep_seconds: float) -> int:
        """Put back what could not be published, but for what has a later value or is too old; how many were so given up."""
        self._failed += 1
        self._taken -= len(writes)
        lost = 0
        for write in writes:
            if write.key in self._places:
                self._replaced += 1
            elif now - write.at >= keep_seconds:
                lost += 1
            else:
                self._place(write, _KEPT, now)
        self._dropped += lost
        return lost
