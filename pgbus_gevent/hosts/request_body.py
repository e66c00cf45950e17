"""The body of an HTTP/1 request, read strictly by RFC 9112, and the time that slow clients get."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import gevent
from gevent import pywsgi

LEAST_RATE = 4096
"""Bytes per second. A client that is slower uses up its patience."""

PIECE = 16 * 1024
"""How many bytes are read or sent before the patience is checked."""

_CHUNKS = 64  # chunks that are read before other greenlets run
_MAX_SIZE_LINE = 1024  # bytes of the line that begins a chunk, with its extensions
_MAX_EXTRAS = 16 * 1024  # bytes of extensions and trailers of one body, which are read and not used

_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})([ \t]*;[^\x00-\x08\x0a-\x1f\x7f]*)?\r\n")
_TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\x00-\x08\x0a-\x1f\x7f]*\r\n")

# gevent's own exception, which its handler answers with 400.
_Malformed: Any = pywsgi._InvalidClientInput  # type: ignore[attr-defined]


class SlowClient(TimeoutError):
    """The client did not send or read in time."""

    def __init__(self) -> None:
        super().__init__(errno.ETIMEDOUT, "the client was too slow")


class Patience:
    """How long the server still waits for one client: ``seconds`` at first, and never more.

    Waiting uses up the patience, and each :data:`LEAST_RATE` bytes give a second of it back. A client that stops or is very slow
    soon has none left. A client with a fair pace always has some, however much it sends or reads.
    """

    __slots__ = ("_limit", "left")

    def __init__(self, seconds: float) -> None:
        self._limit = self.left = seconds

    def wait(self, what: Callable[..., Any], *arguments: Any) -> Any:
        """Call ``what``, and return its result. Raises :class:`SlowClient` if that takes longer than the patience lasts."""
        began = monotonic()
        with gevent.Timeout(max(self.left, 0.001), SlowClient()):
            found = what(*arguments)
        self.left -= monotonic() - began
        return found

    def reward(self, size: int) -> None:
        """Give patience back for ``size`` bytes that were sent or received."""
        self.left = min(self._limit, self.left + size / LEAST_RATE)

    def send(self, send: Callable[[Any], Any], data: Any) -> None:
        """Pass ``data`` to ``send``, which blocks, in pieces. Raises :class:`SlowClient`."""
        rest = memoryview(data)
        for start in range(0, len(rest), PIECE):
            piece = rest[start : start + PIECE]
            self.wait(send, piece)
            self.reward(len(piece))


class Body:
    """The file ``wsgi.input``. It replaces gevent's, ``given``, and has ``patience`` in seconds.

    Reading raises :class:`SlowClient` when the patience is used up, and ConnectionResetError if the client leaves before the end.
    For malformed chunks it raises gevent's own error, which ends the request with 400. An unread rest is never parsed as a request.
    """

    def __init__(self, given: Any, *, patience: float) -> None:
        self._file = given.rfile
        self._continue = given._send_100_continue
        self._chunked = bool(given.chunked_input)
        self._left = 0 if self._chunked else given.content_length or 0  # bytes of the body, or of the current chunk
        self._done = not self._chunked and not self._left
        self._begun = False  # whether the first chunk has begun
        self._extras = 0  # bytes of extensions and trailers so far
        self._framing = 0  # bytes around the chunks so far
        self._patience = Patience(patience)

    @property
    def complete(self) -> bool:
        """Whether the body was read to its end."""
        return self._done

    def read(self, size: int | None = None) -> bytes:
        """Read ``size`` bytes, or fewer if the body ends; all of it by default."""
        return b"".join(self._parts(size, line=False))

    def readline(self, size: int | None = None) -> bytes:
        """Read the next line, or ``size`` bytes of it."""
        return b"".join(self._parts(size, line=True))

    def readlines(self, hint: int | None = None) -> list[bytes]:
        """Read the remaining lines."""
        return list(self)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")

    def _parts(self, size: int | None, *, line: bool) -> Iterator[bytes]:
        """Yield ``size`` bytes in parts, or all if it is None or negative; with ``line``, at most up to the end of a line."""
        wanted = PIECE if size is None or size < 0 else size
        while wanted > 0 and not self._done:
            part = self._in_time(min(wanted, PIECE), line)
            wanted = PIECE if size is None or size < 0 else wanted - len(part)
            yield part
            if line and part.endswith(b"\n"):
                return

    def _in_time(self, size: int, line: bool) -> bytes:
        """The next bytes: at least one, unless the body has ended."""
        before = self._framing
        try:
            part: bytes = self._patience.wait(self._next, size, line)
        except (SlowClient, _Malformed):
            raise
        except (OSError, ValueError):
            raise ConnectionResetError(errno.ECONNRESET, "the client left before it had sent the whole body") from None
        self._patience.reward(len(part) + self._framing - before)
        if self._chunked:
            gevent.sleep()  # chunks that have already arrived are much work for few bytes, and nothing else here yields
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
        """Whether the body goes on. If the current chunk is used up, this begins the next one."""
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
            raise _Malformed("a chunk is longer than its size")
        self._begun = True
        match = _SIZE_LINE.fullmatch(self._line())
        if match is None:
            raise _Malformed("a chunk has no size, or a malformed extension")
        self._spend(len(match[2] or b""))
        self._left = int(match[1], 16)
        if not self._left:
            while (line := self._line()) != b"\r\n":
                if not _TRAILER.fullmatch(line):
                    raise _Malformed("a trailer is malformed")
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
            raise _Malformed(f"chunk extensions and trailers have more than {_MAX_EXTRAS} bytes")

    def _discard(self) -> None:
        # gevent's handler calls this to read the rest of the body, however long that takes. Our handler closes the connection.
        pass
