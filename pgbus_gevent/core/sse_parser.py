"""Reads an event stream, as bytes come.

By https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation, and a little more than a browser
shows: comments, ``retry`` and whether a frame has an id of its own, which a test or a command wants to see.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


class ParsedFrame(NamedTuple):
    """What stood between two blank lines.

    ``id`` is the frame's own, None where it has none. ``event`` is ``message`` where the frame names none. ``retry`` is in
    milliseconds. ``comment`` has the comment's lines. ``dispatches`` tells whether a browser would dispatch an event.
    """

    id: str | None = None
    event: str = "message"
    data: str = ""
    retry: int | None = None
    comment: str | None = None
    dispatches: bool = False


class Parser:
    """Incremental: :meth:`feed` it what comes, it gives the frames that are complete."""

    def __init__(self) -> None:
        self._buffer = b""
        self._started = False
        self._clear()

    def _clear(self) -> None:
        self._id: str | None = None
        self._event = ""
        self._data: list[str] = []
        self._retry: int | None = None
        self._comment: list[str] = []

    def feed(self, data: bytes) -> list[ParsedFrame]:
        """The frames that ``data`` completes."""
        self._buffer += data
        if not self._started:
            if len(self._buffer) < len(_BOM) and _BOM.startswith(self._buffer):
                return []
            self._started = True
            self._buffer = self._buffer.removeprefix(_BOM)
        frames = []
        for line in self._lines():
            if line:
                self._field(line)
            else:
                frames += self._end()
        return frames

    def _lines(self) -> list[str]:
        lines = []
        start = 0
        for match in _LINE_END.finditer(self._buffer):
            if match[0] == b"\r" and match.end() == len(self._buffer):
                break  # an LF that belongs to it may be the next byte
            lines.append(self._buffer[start : match.start()].decode("utf-8", "replace"))
            start = match.end()
        self._buffer = self._buffer[start:]
        return lines

    def _field(self, line: str) -> None:
        name, colon, value = line.partition(":")
        if colon:
            value = value.removeprefix(" ")
        if not name:
            self._comment.append(value)
        elif name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self._retry = int(value)

    def _end(self) -> list[ParsedFrame]:
        frame = ParsedFrame(
            id=self._id,
            event=self._event or "message",
            data="\n".join(self._data),
            retry=self._retry,
            comment="\n".join(self._comment) if self._comment else None,
            dispatches=bool(self._data),
        )
        self._clear()
        return [frame] if frame != ParsedFrame() else []
