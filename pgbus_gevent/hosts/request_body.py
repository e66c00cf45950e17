"""The body of an HTTP/1 request, by the letter of RFC 9112, and how much patience its sender and the reader of the answer get."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import gevent
from gevent import pywsgi

LEAST_RATE = 4096
"""Bytes a second below which a client uses up its patience."""

PIECE = 16 * 1024
"""Bytes after which the patience is looked at."""

_CHUNKS = 64  # after which others have their turn
_MAX_SIZE_LINE = 1024  # bytes of the line that begins a chunk, its extensions included
_MAX_EXTRAS = (
    16 * 1024
)  # bytes of extensions and trailers of one body: whoever sends them pays for nothing that is used

_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})([ \t]*;[^\x00-\x08\x0a-\x1f\x7f]*)?\r\n")
_TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\x00-\x08\x0a-\x1f\x7f]*\r\n")

# gevent's own, for which its handler answers 400.
_Malformed: Any = pywsgi._InvalidClientInput  # type: ignore[attr-defined]


class SlowClient(TimeoutError):
    """What was waited for did not come in time."""

    def __init__(self) -> None:
        super().__init__(errno.ETIMEDOUT, "the client was too slow")


class Patience:
    """How long one client may still be waited for: ``seconds`` at first, and never more.

    Waiting uses it up, and bytes give it back, a second for each :data:`LEAST_RATE`. So one that stops, or trickles, is at its
    end soon, and one that goes on at a fair pace never, however much it has to send or to read.
    """

    __slots__ = ("_limit", "left")

    def __init__(self, seconds: float) -> None:
        self._limit = self.left = seconds

    def wait(self, what: Callable[..., Any], *arguments: Any) -> Any:
        """What ``what`` returns. Raises :class:`SlowClient` when the patience is at its end before."""
        began = monotonic()
        with gevent.Timeout(max(self.left, 0.001), SlowClient()):
            found = what(*arguments)
        self.left -= monotonic() - began
        return found

    def reward(self, size: int) -> None:
        """So many bytes have come through."""
        self.left = min(self._limit, self.left + size / LEAST_RATE)

    def send(self, send: Callable[[Any], Any], data: Any) -> None:
        """Hand ``data`` to ``send``, which waits. Raises :class:`SlowClient`."""
        rest = memoryview(data)
        for start in range(0, len(rest), PIECE):
            piece = rest[start : start + PIECE]
            self.wait(send, piece)
            self.reward(len(piece))


class Body:
    """``wsgi.input`` in the place of gevent's ``given``, with ``patience`` seconds of it.

    Reading raises :class:`SlowClient` when these are over, ConnectionResetError where the client leaves before the end, and
    gevent's own error, which ends the request with 400, for malformed chunks. What is left is never read as a request.
    """

    def __init__(self, given: Any, *, patience: float) -> None:
        self._file = given.rfile
        self._continue = given._send_100_continue
        self._chunked = bool(given.chunked_input)
        self._left = 0 if self._chunked else given.content_length or 0  # of the body, or of the chunk
        self._done = not self._chunked and not self._left
        self._begun = False  # the first chunk has
        self._extras = 0
        self._framing = 0  # bytes around the chunks so far
        self._patience = Patience(patience)

    @property
    def complete(self) -> bool:
        """Whether it was read to its end."""
        return self._done

    def read(self, size: int | None = None) -> bytes:
        """So many bytes; fewer at the end alone."""
        return b"".join(self._parts(size, line=False))

    def readline(self, size: int | None = None) -> bytes:
        """The next line, or so many bytes of it."""
        return b"".join(self._parts(size, line=True))

    def readlines(self, hint: int | None = None) -> list[bytes]:
        """The lines that are left."""
        return list(self)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")

    def _parts(self, size: int | None, *, line: bool) -> Iterator[bytes]:
        """What is asked for; up to the end of a line, or all of it."""
        wanted = PIECE if size is None or size < 0 else size
        while wanted > 0 and not self._done:
            part = self._in_time(min(wanted, PIECE), line)
            wanted = PIECE if size is None or size < 0 else wanted - len(part)
            yield part
            if line and part.endswith(b"\n"):
                return

    def _in_time(self, size: int, line: bool) -> bytes:
        """The next bytes, one at least, but for the end."""
        before = self._framing
        try:
            part: bytes = self._patience.wait(self._next, size, line)
        except (SlowClient, _Malformed):
            raise
        except (OSError, ValueError):
            raise ConnectionResetError(errno.ECONNRESET, "the client left before the body was there") from None
        self._patience.reward(len(part) + self._framing - before)
        if self._chunked:
            gevent.sleep()  # many chunks that are there already are much work for few bytes
        return part

    def _next(self, size: int, line: bool) -> bytes:
        read = self._file.readline if line else self._file.read1
        parts = []
        for _ in range(_CHUNKS):
            if size <= 0 or not self._more():
                break
            data = read(min(size, self._left))
            if not data:
                raise ConnectionResetError
            parts.append(data)
            size -= len(data)
            self._left -= len(data)
            self._done = not self._left and not self._chunked
            if not self._chunked or (line and data.endswith(b"\n")):
                break
        return b"".join(parts)

    def _more(self) -> bool:
        """Whether there is more of the body; the next chunk is begun where that is needed."""
        if self._done:
            return False
        if self._continue is not None:
            self._continue, tell = None, self._continue
            tell()
        if self._chunked and not self._left:
            self._next_chunk()
        return not self._done

    def _next_chunk(self) -> None:
        if self._begun and self._line() != b"\r\n":
            raise _Malformed("a chunk is longer than it says")
        self._begun = True
        match = _SIZE_LINE.fullmatch(self._line())
        if match is None:
            raise _Malformed("a chunk without a size, or with a malformed extension")
        self._spend(len(match[2] or b""))
        self._left = int(match[1], 16)
        if not self._left:
            while (line := self._line()) != b"\r\n":
                if not _TRAILER.fullmatch(line):
                    raise _Malformed("a malformed trailer")
                self._spend(len(line))
            self._done = True

    def _line(self) -> bytes:
        line: bytes = self._file.readline(_MAX_SIZE_LINE)
        if not line:
            raise ConnectionResetError
        self._framing += len(line)
        return line

    def _spend(self, size: int) -> None:
        self._extras += size
        if self._extras > _MAX_EXTRAS:
            raise _Malformed("too many chunk extensions and trailers")

    def _discard(self) -> None:
        # gevent's handler would have what is left read, however long that takes; ours closes the connection instead.
        pass
