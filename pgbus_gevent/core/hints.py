"""Ephemeral messages on their way: those that wait for their pass, and those that clients which are behind have yet to be sent.

Nothing of them is stored, so what goes over a bound is gone. Nothing here yields.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice

from .client import Subscription
from .stream_log import Chunk, Frame, make_chunk

MAX_WAITING = 10_000
"""Messages of all streams that wait for their pass; beyond that new ones are dropped."""

MAX_BYTES = 32 * 1024 * 1024
"""Bytes of all of them, those that are kept for clients that are behind included."""

MAX_KEPT = 8 * 1024 * 1024
"""Bytes of one stream that are kept for clients that are behind; beyond that these miss the oldest."""


class HintLog:
    """Those of one stream, numbered: from ``first`` up to ``passed`` they are kept for who is behind, the others wait.

    ``behind`` has the number that comes next for each who is.
    """

    __slots__ = ("_caught_up", "_current", "_frames", "_hints", "behind", "bytes", "first", "passed", "stream")

    def __init__(self, hints: Hints, stream: str, first: int) -> None:
        self._hints = hints
        self.stream = stream
        self._frames: deque[Frame] = deque()
        self.first = self.passed = first
        self._current = first  # where the pass has begun with what it has taken
        self.behind: dict[Subscription, int] = {}
        self._caught_up: set[Subscription] = set()  # who was behind and has got that already
        self.bytes = 0

    @property
    def end(self) -> int:
        """The number after the last one's."""
        return self.first + len(self._frames)

    @property
    def passing(self) -> bool:
        """Whether some wait for a pass, or for the end of one."""
        return self._current < self.end

    def append(self, frame: Frame) -> None:
        """One more waits for a pass."""
        self._frames.append(frame)
        self._hints.waiting += 1
        self._grow(len(frame.data))

    def _grow(self, size: int) -> None:
        self.bytes += size
        self._hints.bytes += size

    def take(self, max_bytes: int) -> Chunk:
        """The next ones for a pass, at least one. Only where some wait."""
        chunk = self._chunk(self.passed, self.end, max_bytes)
        self.passed += len(chunk.frames)
        self._hints.waiting -= len(chunk.frames)
        return chunk

    def knows(self, subscription: Subscription) -> bool:
        """Whether somebody gets, or got, what the pass has taken in another way: it was behind when that came."""
        return subscription in self.behind or subscription in self._caught_up

    def falls_behind(self, subscription: Subscription) -> None:
        """It takes no bytes now: what the pass has taken is kept for it."""
        self.behind[subscription] = self._current

    def took(self) -> None:
        """The pass has given what it took to everybody."""
        self._current = self.passed
        self._caught_up.clear()
        self.trim()

    def next_for(self, subscription: Subscription, max_bytes: int) -> tuple[Chunk, int]:
        """What somebody who is behind gets next, and how many it has missed before that."""
        missed = max(0, self.first - self.behind[subscription])
        start = self.behind[subscription] + missed
        chunk = self._chunk(start, self.passed, max_bytes)
        self.behind[subscription] = start + len(chunk.frames)
        if self.behind[subscription] == self.passed:
            del self.behind[subscription]
            if self._current < self.passed:
                self._caught_up.add(subscription)
        return chunk, missed

    def _chunk(self, start: int, end: int, max_bytes: int) -> Chunk:
        frames: list[Frame] = []
        size = 0
        for frame in islice(self._frames, start - self.first, end - self.first):
            size += len(frame.data)
            if frames and size > max_bytes:
                break
            frames.append(frame)
        return make_chunk(frames)

    def trim(self) -> None:
        """Drop what nobody is behind on, and the oldest of what is more than may be kept; the newest stays whatever its size."""
        needed = min([self._current, *self.behind.values()])
        while self.first < needed or (
            self.first + 1 < self.passed and (self.bytes > MAX_KEPT or self._hints.bytes > MAX_BYTES)
        ):
            self._grow(-len(self._frames.popleft().data))
            self.first += 1


class Hints:
    """Those of all streams of a worker."""

    def __init__(self) -> None:
        self.waiting = 0
        self.bytes = 0
        self._logs: dict[str, HintLog] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._logs)

    def __iter__(self) -> Iterator[tuple[str, HintLog]]:
        return iter(list(self._logs.items()))

    def log(self, stream: str) -> HintLog | None:
        """Those of a stream; None where nothing is on its way."""
        return self._logs.get(stream)

    def add(self, stream: str, frame: Frame) -> HintLog | None:
        """Have one wait for its pass; None where it is dropped, as too much does."""
        if self.waiting >= MAX_WAITING or (self.bytes and self.bytes + len(frame.data) > MAX_BYTES):
            return None
        if stream not in self._logs:
            self._logs[stream] = HintLog(self, stream, self._next)
        self._logs[stream].append(frame)
        return self._logs[stream]

    def tidy(self, stream: str) -> None:
        """Somebody has caught up, or left, or a pass has ended: let all go once nobody needs it.

        Before that only passes drop something, as to look who is behind most costs the more the more are.
        """
        log = self._logs.get(stream)
        if log is not None and not log.passing and not log.behind:
            log.trim()
            del self._logs[stream]
            # Numbers are not given twice, so that none of an earlier log is taken for one of a later one.
            self._next = max(self._next, log.end)

    def forget(self, subscription: Subscription) -> None:
        """The client has left."""
        log = self._logs.get(subscription.log.name)
        if log is not None and log.behind.pop(subscription, None) is not None:
            self.tidy(subscription.log.name)
