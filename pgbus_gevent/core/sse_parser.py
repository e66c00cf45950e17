"""An incremental parser of event streams.

It follows https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation, and returns more than a
browser shows, for tests and commands: comments, ``retry``, and whether a frame has an id of its own.
"""

from __future__ import annotations

import re
from codecs import getincrementaldecoder
from typing import NamedTuple

_LINE_END = re.compile(r"\r\n|\n|\r")
_RETRY = re.compile(r"[0-9]{1,15}")  # a number with more digits is not a sensible time, and int() may refuse it


class ParsedFrame(NamedTuple):
    """The fields between two blank lines.

    ``id`` is the frame's own id, or None. ``event`` is ``message`` if the frame has no event field. ``retry`` is in milliseconds.
    ``comment`` holds the comment's lines, joined with line feeds, or is None. ``dispatches`` is True if a browser would dispatch
    the frame.
    """

    id: str | None = None
    event: str = "message"
    data: str = ""
    retry: int | None = None
    comment: str | None = None
    dispatches: bool = False


class Parser:
    """Parses bytes as they arrive: :meth:`feed` returns the frames that have become complete."""

    def __init__(self) -> None:
        self._decoder = getincrementaldecoder("utf-8-sig")("replace")
        self._line: list[str] = []  # the parts of the line whose end has not arrived
        self._after_cr = False
        self._clear()

    def _clear(self) -> None:
        self._id: str | None = None
        self._event = ""
        self._data: list[str] = []
        self._retry: int | None = None
        self._comment: list[str] = []

    def feed(self, data: bytes) -> list[ParsedFrame]:
        """Return the frames that ``data`` completes."""
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
        # A CR ends its line at once. If the next piece starts with an LF, that LF belongs to the same line end.
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
