"""Taps: what an origin keeps for each connection of an edge, so that the edge hears of new messages.

A tap is level-triggered, like a client: it holds a cursor for each stream that the edge follows, and no messages, except ephemeral
ones. Messages come from the rings. If a ring does not reach back to a cursor, or its log is in doubt, the tap only says that the
stream has moved, and the edge reads it. So a tap has a bound, and a slow edge loses nothing.

:meth:`Tap.take` returns payloads as :mod:`pgbus_gevent.core.wakes` parses them, as if they came from the database.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence

from .frames import Frame
from .stream_log import StreamLog
from .wakes import CONTROL, Ephemeral
from .work import Flag

RESYNC = '["resync"]'
"""The payload that says that messages may be lost, here or in the database: the edge compares all its heads with the table."""

MAX_EPHEMERALS = 10_000
"""The most ephemeral messages that wait in a tap."""

MAX_EPHEMERAL_SIZE = 8 * 1024 * 1024
"""The most characters of ephemeral messages that wait in a tap, unless a single one is larger."""

TAKE_BYTES = 256 * 1024
"""About how many bytes of messages one call of :meth:`Tap.take` returns, and at most how many of one stream."""


TEXTS_SIZE = 1024 * 1024
"""About how many characters of payloads are kept for the other taps of a stream."""


class Texts:
    """The payloads of the newest messages that taps have taken, so that a message for many edges is written once."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, int], tuple[Frame, str, str]] = {}
        self._size = 0

    def __len__(self) -> int:
        """How many messages are kept."""
        return len(self._kept)

    def of(self, stream: str, frame: Frame, appended_at: float | None) -> str:
        """Return the payload of a message. Only the time differs from tap to tap, because not each of them knows it."""
        key = stream, frame.id
        kept = self._kept.get(key)
        if kept is None or kept[0] is not frame:
            kept = self._keep(key, (frame, *_message(stream, frame)))
        _, head, tail = kept
        return f"{head}{json.dumps(appended_at)}{tail}"

    def _keep(self, key: tuple[str, int], kept: tuple[Frame, str, str]) -> tuple[Frame, str, str]:
        self._forget(key)
        self._kept[key] = kept
        self._size += len(kept[2])
        while self._size > TEXTS_SIZE:
            self._forget(next(iter(self._kept)))
        return kept

    def _forget(self, key: tuple[str, int]) -> None:
        if key in self._kept:
            self._size -= len(self._kept.pop(key)[2])


class Tap:
    """The streams that one connection of an edge follows. Nothing here yields, so each method is atomic.

    ``flag`` is set when :meth:`take` has something to return, and when the last of the logs has been opened.
    """

    def __init__(self, flag: Flag) -> None:
        self.flag = flag
        self.texts = Texts()
        self.greeted = False
        """Whether the edge has been told that it follows its streams. From then on it reads them, and must hear of all messages."""
        self.ended = False
        self._cursors: dict[StreamLog, int | None] = {}  # None: the edge has to read the stream
        self._unopened: set[StreamLog] = set()
        self._moved: dict[StreamLog, float | None] = {}  # with the time of the append, as far as it is known
        self._ephemerals: deque[str] = deque()
        self._ephemeral_size = 0
        self._control = self._resync = False

    def __len__(self) -> int:
        """How many streams the tap follows."""
        return len(self._cursors)

    @property
    def opening(self) -> bool:
        """Whether a log has not been opened yet."""
        return bool(self._unopened)

    @property
    def logs(self) -> list[StreamLog]:
        """The logs of the streams."""
        return list(self._cursors)

    def follow(self, log: StreamLog, cursor: int | None) -> None:
        """Follow a stream from ``cursor``, the edge's head of it. None means that the edge does not know the stream yet."""
        if log.is_open:
            self._cursors[log] = log.head if cursor is None else cursor
            self.moved(log)
        else:
            self._cursors[log] = cursor
            self._unopened.add(log)

    def moved(self, log: StreamLog) -> None:
        """Note that the log has new messages, or has been opened."""
        if log in self._unopened:
            self._unopened.discard(log)
            if self._cursors[log] is None and not self.greeted:
                # The edge reads the stream when it has been greeted, so it will have everything up to this head.
                self._cursors[log] = log.head
            if not self._unopened:
                self.flag.set()
        if self._cursors[log] != log.head:
            self._moved.setdefault(log, log.appended_at)
            self.flag.set()

    def rewound(self, log: StreamLog) -> None:
        """Note that the table has lost messages of the stream."""
        self._cursors[log] = None
        self._moved.setdefault(log, None)
        self.flag.set()

    def control(self) -> None:
        """Note that something other than a message has changed, such as a revocation."""
        self._control = True
        self.flag.set()

    def resync(self) -> None:
        """Note that messages may have been lost."""
        self._resync = True
        self.flag.set()

    def ephemeral(self, message: Ephemeral) -> bool:
        """Keep an ephemeral message for the edge. If too many or too large ones wait, drop it and return False."""
        payload = _written(["ephemeral", *message])
        size = len(payload)  # in characters
        full = len(self._ephemerals) >= MAX_EPHEMERALS or self._ephemeral_size + size > MAX_EPHEMERAL_SIZE
        if self._ephemerals and full:
            return False
        self._ephemerals.append(payload)
        self._ephemeral_size += size
        self.flag.set()
        return True

    def end(self) -> None:
        """End the connection, because the worker stops."""
        self.ended = True
        self.flag.set()

    def take(self) -> list[str]:
        """Return payloads to send now. The flag stays set if there are more."""
        self.flag.clear()
        payloads = [*self._signs()]
        size = 0
        # Only the streams that moved before this call. One that has still more is added again, and its turn comes after the others.
        for log in list(self._moved):
            if size >= TAKE_BYTES:
                self.flag.set()
                break
            found = list(self._messages(log, self._moved.pop(log)))
            size += sum(map(len, found))
            payloads += found
        # After the messages, because an edge that has just begun to follow a stream opens its log with them.
        payloads += self._ephemerals
        self._ephemerals.clear()
        self._ephemeral_size = 0
        return payloads

    def _signs(self) -> Iterator[str]:
        if self._resync:
            yield RESYNC
        if self._control:
            yield CONTROL
        self._resync = self._control = False

    def _messages(self, log: StreamLog, appended_at: float | None) -> Iterator[str]:
        cursor = self._cursors[log]
        if cursor == log.head:
            return
        # While the log is in doubt, it may have messages that the table has lost, and the edge may know that already.
        unsure = cursor is None or cursor > log.head or log.in_doubt
        chunk = None if cursor is None or unsure else log.after(cursor, TAKE_BYTES)
        if chunk is None or any(not frame.data for frame in chunk.frames):
            self._cursors[log] = log.head
            yield _written(["moved", log.name])
            return
        for n, frame in enumerate(chunk.frames):
            yield self.texts.of(log.name, frame, None if n else appended_at)
        self._cursors[log] = chunk.cursor
        if chunk.cursor != log.head:
            self._moved[log] = None
            self.flag.set()


class Taps:
    """All taps of a worker, by the logs that they follow. Nothing here yields."""

    def __init__(self) -> None:
        self._taps: dict[Tap, None] = {}
        self._of: dict[StreamLog, dict[Tap, None]] = {}
        self._texts = Texts()
        self.dropped = 0
        """How many ephemeral messages were dropped because edges did not take them."""

    def __len__(self) -> int:
        return len(self._taps)

    def __iter__(self) -> Iterator[Tap]:
        return iter(list(self._taps))

    def add(self, tap: Tap, logs: Mapping[StreamLog, int | None]) -> None:
        """Have ``tap`` follow the logs, each from its cursor."""
        self._taps[tap] = None
        tap.texts = self._texts
        for log, cursor in logs.items():
            self._of.setdefault(log, {})[tap] = None
            tap.follow(log, cursor)

    def remove(self, tap: Tap) -> Iterable[StreamLog]:
        """Remove ``tap``, and return the logs that it followed."""
        if tap not in self._taps:
            return ()
        del self._taps[tap]
        for log in tap.logs:
            taps = self._of[log]
            del taps[tap]
            if not taps:
                del self._of[log]
        return tap.logs

    def moved(self, log: StreamLog) -> None:
        """Tell the taps of a log that it has new messages, or has been opened."""
        for tap in self._of.get(log, ()):
            tap.moved(log)

    def rewound(self, log: StreamLog) -> None:
        """Tell the taps of a log that the table has lost messages of it."""
        for tap in self._of.get(log, ()):
            tap.rewound(log)

    def ephemeral(self, log: StreamLog, message: Ephemeral) -> None:
        """Give an ephemeral message to the taps of its stream."""
        for tap in self._of.get(log, ()):
            self.dropped += not tap.ephemeral(message)

    def control(self) -> None:
        """Tell all taps that something other than a message has changed."""
        for tap in self._taps:
            tap.control()

    def resync(self) -> None:
        """Tell all taps that messages may have been lost."""
        for tap in self._taps:
            tap.resync()


def _message(stream: str, frame: Frame) -> tuple[str, str]:
    """Return the payload of a message, in two parts: what comes before the time of the append, and what comes after it."""
    event, data = _content(frame.data.decode())
    prev_id = frame.prev_id if frame.prev_id >= 0 else None
    head, tail = ["message", stream, frame.id, prev_id], [event, data, frame.visible_to, frame.exclude]
    return f"{_written(head)[:-1]},", f",{_written(tail)[1:]}"


def _content(frame: str) -> tuple[str | None, str]:
    """Return the event and the data of a frame that :func:`pgbus_gevent.core.sse.message` has made."""
    lines = frame.split("\n")
    event = lines.pop(0).removeprefix("event: ") if lines[0].startswith("event: ") else None
    return event, "\n".join(line.removeprefix("data: ") for line in lines if line.startswith("data: "))


def _written(payload: Sequence[object]) -> str:
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":"))
