"""Reads an event stream, as bytes come.

By https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation, and a little more than a
browser shows: comments, ``retry`` and whether a frame has an id of its own, which a test or a command wants to see.
"""

from __future__ import annotations

import re
from codecs import getincrementaldecoder
from typing import NamedTuple

_LINE_END = re.compile(r"\r\n|\n|\r")
_RETRY = re.compile(r"[0-9]{1,15}")  # more digits are no time to wait, and int() may refuse them


class ParsedFrame(NamedTuple):
    """What stood between two blank lines.

    ``id`` is the frame's own, None where it has none. ``event`` is ``message`` where the frame names none. ``retry`` is
    in milliseconds. ``comment`` has the comment's lines. ``dispatches`` tells whether a browser would dispatch it.
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
        self._decoder = getincrementaldecoder("utf-8-sig")("replace")
        self._line: list[str] = []  # the parts of the line that has not ended
        self._after_cr = False
        self._clear()

    def _clear(self) -> None:
        self._id: str | None = None
        self._event = ""
        self._data: list[str] = []
        self._retry: int | None = None
        self._comment: list[str] = []

    def feed(self, data: bytes) -> list[ParsedFrame]:
        """The frames that ``data`` completes."""
        frames = []
        for line in self._lines(self._decoder.decode(data)):
            if line:
                self._field(line)
            else:
                frames += self._end()
        return frames

    def _lines(self, text: str) -> list[str]:
        if not text:
            return []
        # A CR ends its line at once; an LF that comes after it in the next piece is still a part of that end.
        if self._after_cr and text[0] == "\n":
            text = text[1:]
        self._after_cr = text.endswith("\r")
        first, *others = _LINE_END.split(text)
        self._line.append(first)
        if not others:
            return []
        lines = ["".join(self._line), *others]
        self._line = [lines.pop()]
        return lines

    def _field(self, line: str) -> None:
        name, colon, value = line.partition(":")
        value = value.removeprefix(" ")
        if colon and not name:
            self._comment.append(value)
        elif name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and _RETRY.fullmatch(value):
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
