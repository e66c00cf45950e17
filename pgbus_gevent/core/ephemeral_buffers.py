"""Buffers of ephemeral messages: those that wait for a pass, and those that are kept for blocked clients.

Ephemeral messages are not stored in the database. A message that is dropped here, because a bound is exceeded, is gone. Nothing
here yields.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice

from .client import Subscription
from .frames import Chunk, Frame, make_chunk

MAX_WAITING = 10_000
"""The most messages, of all streams together, that wait for a pass. Beyond that, new ones are dropped."""

MAX_BYTES = 32 * 1024 * 1024
"""The most bytes in all buffers together, including messages that are kept for blocked clients."""

MAX_KEPT = 8 * 1024 * 1024
"""The most bytes of one stream that are kept for blocked clients. Beyond that, they miss the oldest messages."""


class EphemeralBuffer:
    """The ephemeral messages of one stream. They are numbered.

    Messages from ``first`` up to ``passed`` have been taken by a pass and are kept for the clients that the pass skipped, because
    they took no bytes; the others wait for a pass. ``skipped`` maps each of these subscriptions to the number of its next message.
    """

    __slots__ = ("_all", "_caught_up", "_current", "_frames", "bytes", "first", "passed", "skipped", "stream")

    def __init__(self, buffers: EphemeralBuffers, stream: str, first: int) -> None:
        self._all = buffers
        self.stream = stream
        self._frames: deque[Frame] = deque()
        self.first = self.passed = first
        self._current = first  # the number of the first message that the running pass has taken
        self.skipped: dict[Subscription, int] = {}
        self._caught_up: set[Subscription] = set()  # were skipped, and have got the running pass's messages already
        self.bytes = 0

    @property
    def end(self) -> int:
        """The number after the last message's."""
        return self.first + len(self._frames)

    @property
    def passing(self) -> bool:
        """Whether messages wait for a pass, or for the end of the running pass."""
        return self._current < self.end

    def append(self, frame: Frame) -> None:
        """Add a message, which then waits for a pass."""
        self._frames.append(frame)
        self._all.waiting += 1
        self._grow(len(frame.data))

    def _grow(self, size: int) -> None:
        self.bytes += size
        self._all.bytes += size

    def take(self, max_bytes: int) -> Chunk:
        """Take the next messages for a pass: at least one, and up to ``max_bytes``. Call it only if some wait."""
        chunk = self._chunk(self.passed, self.end, max_bytes)
        self.passed += len(chunk.frames)
        self._all.waiting -= len(chunk.frames)
        return chunk

    def knows(self, subscription: Subscription) -> bool:
        """Whether the pass must skip a subscription, because :meth:`next_for` has brought it these messages or will."""
        return subscription in self.skipped or subscription in self._caught_up

    def skip(self, subscription: Subscription) -> None:
        """Keep the messages that the pass has taken for a client that takes no bytes now."""
        self.skipped[subscription] = self._current

    def took(self) -> None:
        """Note that the pass has gone through all subscriptions with the messages that it took."""
        self._current = self.passed
        self._caught_up.clear()
        self.trim()

    def next_for(self, subscription: Subscription, max_bytes: int) -> tuple[Chunk, int]:
        """Return the next messages for a subscription that was skipped, and how many it has missed before them."""
        missed = max(0, self.first - self.skipped[subscription])
        start = self.skipped[subscription] + missed
        chunk = self._chunk(start, self.passed, max_bytes)
        self.skipped[subscription] = start + len(chunk.frames)
        if self.skipped[subscription] == self.passed:
            del self.skipped[subscription]
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
        """Drop the messages that no client needs, and the oldest ones if a bound is exceeded. The newest always stays."""
        needed = min([self._current, *self.skipped.values()])
        while self.first < needed or (
            self.first + 1 < self.passed and (self.bytes > MAX_KEPT or self._all.bytes > MAX_BYTES)
        ):
            self._grow(-len(self._frames.popleft().data))
            self.first += 1


class EphemeralBuffers:
    """The buffers of all streams of a worker. A stream has a buffer only while ephemeral messages wait or are kept."""

    def __init__(self) -> None:
        self.waiting = 0
        self.bytes = 0
        self._buffers: dict[str, EphemeralBuffer] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._buffers)

    def __iter__(self) -> Iterator[tuple[str, EphemeralBuffer]]:
        return iter(list(self._buffers.items()))

    def buffer(self, stream: str) -> EphemeralBuffer | None:
        """Return the buffer of a stream, or None if it has none."""
        return self._buffers.get(stream)

    def add(self, stream: str, frame: Frame) -> EphemeralBuffer | None:
        """Add a message, and return its buffer. Return None, and drop the message, if too many or too large ones wait."""
        if self.waiting >= MAX_WAITING or (self.bytes and self.bytes + len(frame.data) > MAX_BYTES):
            return None
        if stream not in self._buffers:
            self._buffers[stream] = EphemeralBuffer(self, stream, self._next)
        self._buffers[stream].append(frame)
        return self._buffers[stream]

    def tidy(self, stream: str) -> None:
        """Remove the buffer of a stream once no message waits for a pass or is kept for a client.

        Call it when a client has caught up or left, and at the end of a pass. It does not drop single messages, because that
        takes a search through all subscriptions that were skipped; passes do that.
        """
        buffer = self._buffers.get(stream)
        if buffer is not None and not buffer.passing and not buffer.skipped:
            buffer.trim()
            del self._buffers[stream]
            # A later buffer must not use these numbers again: a number always means the same message.
            self._next = max(self._next, buffer.end)

    def remove(self, subscription: Subscription) -> None:
        """Forget a subscription whose client has left."""
        buffer = self._buffers.get(subscription.log.name)
        if buffer is not None and buffer.skipped.pop(subscription, None) is not None:
            self.tidy(subscription.log.name)
