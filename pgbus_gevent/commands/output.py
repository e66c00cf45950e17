"""The output of commands: tables, the messages of ``tail``, and a writer to stdout that blocks no other greenlet."""

from __future__ import annotations

import errno
import os
import select
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence

import gevent
from gevent import monkey
from gevent.event import Event

from ..core.shown import json_line, visible
from ..core.sse_parser import ParsedFrame

ROOM = 256 * 1024
"""Bytes that may wait to be written. If there are more, the followers wait too."""

_LOOK = 0.5  # seconds between two checks that stdout still has a reader

_ID_WIDTH = 16  # digits of an id, because the sequence starts at the time in microseconds


def as_json(stream: str, frame: ParsedFrame) -> str:
    """Return a message as one line of JSON. ``id`` is null for an ephemeral message, ``event`` for one without an event."""
    entry = {
        "stream": stream,
        "id": None if frame.id is None else int(frame.id),
        "event": _event(frame),
        "data": frame.data,
    }
    return json_line(entry)


def as_text(streams: Iterable[str]) -> Callable[[str, ParsedFrame], str]:
    """Return a function that formats messages for people. It leaves out the stream if there is only one."""
    names = [visible(stream) for stream in streams]
    longest = max(map(width, names)) if len(names) > 1 else 0

    def render(stream: str, frame: ParsedFrame) -> str:
        name = visible(stream)
        named = name + " " * (longest - width(name) + 1) if longest else ""
        head = f"{frame.id or '-':{_ID_WIDTH}} {named}{visible(_event(frame) or '-')} "
        first, *others = frame.data.split("\n")
        return "\n".join([head + visible(first), *(" " * width(head) + visible(line) for line in others)])

    return render


def width(text: str) -> int:
    """Return how many columns ``text`` takes on a terminal."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    marks = sum(unicodedata.category(character) in ("Mn", "Me", "Cf") for character in text)
    return len(text) + wide - marks


def _event(frame: ParsedFrame) -> str | None:
    # For a browser, "message" is the same as no event.
    return None if frame.event == "message" else frame.event


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]], *, right: tuple[int, ...]) -> list[str]:
    """Return lines with aligned columns. ``right`` are the indexes of the columns that are aligned to the right."""
    rows = [tuple(map(visible, row)) for row in rows]
    widths = [max(map(width, column)) for column in zip(head, *rows, strict=True)]
    lines = []
    for row in (head, *rows):
        pads = [" " * (full - width(cell)) for cell, full in zip(row, widths, strict=True)]
        cells = [pad + cell if n in right else cell + pad for n, (cell, pad) in enumerate(zip(row, pads, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines


class Output:
    """Writes lines to stdout. Any greenlet may :meth:`put` lines; one greenlet runs :meth:`run`.

    A thread does the writing, because a reader that pauses (``less``, a stopped terminal) must not block the listener and the
    heartbeat. ``on_error`` is called with the error that ended the writing, such as BrokenPipeError if the reader has ended.
    """

    def __init__(self, *, on_error: Callable[[OSError], None]) -> None:
        self._on_error = on_error
        self._parts: list[bytes] = []
        self._size = 0
        self._work = Event()
        self._room = Event()
        self._room.set()

    def wait_for_room(self) -> None:
        """Wait until less than ``ROOM`` bytes wait to be written."""
        while self._size >= ROOM:
            self._room.clear()
            self._room.wait()

    def put(self, text: str) -> None:
        """Write ``text`` and a line end, soon. Never yields."""
        data = text.encode() + b"\n"
        self._parts.append(data)
        self._size += len(data)
        self._work.set()

    def run(self) -> None:
        """Write all lines, until writing fails."""
        try:
            descriptor = _stdout()
            while True:
                while not self._parts:
                    self._work.clear()
                    if not self._work.wait(_LOOK):
                        _expect_reader(descriptor)
                data = b"".join(self._parts)
                self._parts.clear()
                self._size = 0
                self._room.set()
                _write(descriptor, data)
        except OSError as error:
            self._on_error(error)


def _stdout() -> int:
    if sys.stdout is None:
        # Descriptor 1 may belong to a connection by now.
        raise OSError(errno.EBADF, "stdout is closed")
    return sys.stdout.fileno()


def _write(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        done = gevent.get_hub().threadpool.apply(_attempt, (descriptor, rest))
        if isinstance(done, OSError):
            raise done
        rest = rest[done:]


def _attempt(descriptor: int, data: memoryview) -> int | OSError:
    """Write, in the thread. The error is returned, because the hub would print a traceback if it were raised."""
    try:
        return os.write(descriptor, data)
    except OSError as error:
        return error


def _expect_reader(descriptor: int) -> None:
    """Raise BrokenPipeError if stdout has no reader any more. Without this, it would be noticed only at the next message."""
    poll = monkey.get_original("select", "poll")()
    poll.register(descriptor, 0)
    if any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0)):
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
