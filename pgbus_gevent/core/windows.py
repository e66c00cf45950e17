"""Windows of coalescing, in which a later write replaces an earlier one with the same key.

A window belongs to one group of writes and one length. It opens with the first write and ends after its length, however many
writes follow. If each write prolonged it, a target that is written all the time would never be published.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Hashable
from typing import Any, NamedTuple


class Counts(NamedTuple):
    """The counts of writes so far: ``written == replaced + published + dropped + waiting``.

    ``replaced`` writes gave way to a later one. ``dropped`` writes were refused, or could not be published for too long.
    ``failed`` counts tries to publish that failed. Their writes were kept, so this count is not part of the sum.
    """

    written: int = 0
    replaced: int = 0
    published: int = 0
    dropped: int = 0
    failed: int = 0
    waiting: int = 0


class Write(NamedTuple):
    """A write that waits. ``number`` gives the order of all writes, and ``at`` is when it was written, in monotonic seconds."""

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
# The name of the window for writes whose publication failed.


class Windows:
    """All windows of one publisher. After :meth:`take`, call :meth:`done`, or :meth:`keep` if publishing failed.

    Nothing here yields. Threads need a lock around it.
    """

    def __init__(self) -> None:
        self._windows: dict[Hashable, _Window] = {}
        self._dues: list[tuple[float, int, _Window]] = []  # the number keeps windows from being compared
        self._waiting: dict[Hashable, _Window] = {}
        self._written = self._replaced = self._published = self._dropped = self._failed = self._taken = 0

    def __contains__(self, key: object) -> bool:
        return key in self._waiting

    def __len__(self) -> int:
        """How many writes wait or are being published."""
        return len(self._waiting) + self._taken

    @property
    def next_due(self) -> float | None:
        """When the next window ends, in monotonic seconds, or None."""
        return self._dues[0][0] if self._dues else None

    @property
    def counts(self) -> Counts:
        """The counts so far."""
        return Counts(self._written, self._replaced, self._published, self._dropped, self._failed, len(self))

    def write(self, key: Hashable, message: Any, group: Hashable, seconds: float, now: float) -> None:
        """Put ``message`` into the window of its group and its length in seconds, in place of a write that waits for ``key``."""
        self._written += 1
        self._put(Write(self._written, now, key, message), (group, seconds), now + seconds)

    def _put(self, write: Write, name: Hashable, due: float) -> None:
        window = self._windows.get(name)
        earlier = self._waiting.get(write.key)
        if earlier is not None:
            del earlier.writes[write.key]
            self._replaced += 1
            # If a key has windows of different lengths, the one that ends first is used. Otherwise the write could be delayed
            # longer than the earlier call asked for.
            if earlier.due <= (due if window is None else window.due):
                window = earlier
        if window is None:
            window = self._windows[name] = _Window(name, due)
            insort(self._dues, (due, write.number, window))
        window.writes[write.key] = write
        self._waiting[write.key] = window

    def take(self, now: float | None = None) -> list[Write]:
        """Take the writes of the windows that have ended, or of all windows without ``now``, in the order of writing."""
        end = len(self._dues) if now is None else bisect_right(self._dues, now, key=lambda due: due[0])
        ended = [window for _, _, window in self._dues[:end]]
        del self._dues[:end]
        for window in ended:
            del self._windows[window.name]
        writes = sorted((write for window in ended for write in window.writes.values()), key=lambda write: write.number)
        for write in writes:
            del self._waiting[write.key]
        self._taken += len(writes)
        return writes

    def done(self, *, published: int = 0, dropped: int = 0) -> None:
        """Count how many of the writes that were taken have been published, and how many dropped."""
        self._taken -= published + dropped
        self._published += published
        self._dropped += dropped

    def keep(self, writes: list[Write], now: float, *, keep_seconds: float) -> int:
        """Put back writes that could not be published. Return how many were dropped because they are older than
        ``keep_seconds``. A write is not put back if a later one for its key waits.
        """
        self._failed += 1
        self._taken -= len(writes)
        lost = 0
        for write in writes:
            if write.key in self._waiting:
                self._replaced += 1
            elif now - write.at >= keep_seconds:
                lost += 1
            else:
                self._put(write, _KEPT, now)
        self._dropped += lost
        return lost
