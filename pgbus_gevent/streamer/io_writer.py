"""The one writer of one socket: sends without waiting, keeps what the socket did not take, sees the client leave.

Its callbacks run in the hub, where nothing may wait. Only this module and the WSGI body know of OSError.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import gevent

Owner = TypeVar("Owner")

_Parts = list[memoryview | bytearray]

_READ, _WRITE = 1, 2  # libev's events
_MAX_INPUT = 4096  # a client of an event stream has nothing to say; one that goes on talking is cut off
_LINGER_RESET = struct.pack("ii", 1, 0)


class IoWriter(Generic[Owner]):
    """Owns ``sock`` (taken out of gevent's hands, so a plain non-blocking one) from here to its close.

    ``on_drained`` is called with ``owner`` when the last of what waited has gone out, ``on_gone`` with it and a reason when the
    client has left; both in the hub. Whoever calls :meth:`write` must see to it that nothing waits (:attr:`blocked_since`).
    """

    __slots__ = (
        "_clock", "_closing", "_input", "_on_drained", "_on_gone", "_owner", "_reader", "_rest", "_sock", "_writer",
        "blocked_since",
    )  # fmt: skip

    def __init__(
        self,
        sock: socket.socket,
        owner: Owner,
        *,
        on_drained: Callable[[Owner], None],
        on_gone: Callable[[Owner, str], None],
        clock: Callable[[], float],
    ) -> None:
        self._sock: socket.socket | None = sock
        # Not a bound method of the owner's for each of the two: of ten thousand connections that would be 1.3 MB.
        self._owner = owner
        self._on_drained = on_drained
        self._on_gone = on_gone
        self._clock = clock
        self._rest: _Parts | None = None
        self._closing = False
        self._input = 0
        self.blocked_since: float | None = None
        self._writer: Any = None
        self._reader: Any = gevent.get_hub().loop.io(sock.fileno(), _READ)
        self._reader.start(self._readable)

    def write(self, data: bytes, now: float) -> None:
        """Send; what the socket does not take waits, and :attr:`blocked_since` says so."""
        sock = self._sock
        if sock is None:
            return
        try:
            sent = sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._gone(error)
            return
        if sent < len(data):
            self._wait_for([memoryview(data)[sent:]], now)

    def write_all(self, parts: Sequence[bytes], now: float) -> None:
        """The same for several pieces in a row, none of which is copied."""
        sock = self._sock
        if sock is None:
            return
        try:
            sent = sock.sendmsg(parts)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._gone(error)
            return
        rest: _Parts = [memoryview(part) for part in parts]
        _drop(rest, sent)
        if rest:
            self._wait_for(rest, now)

    def finish(self, farewell: bytes, now: float) -> None:
        """Send ``farewell`` behind what waits, then close."""
        if self._rest is None:
            self.write(farewell, now)
        else:
            self._put_behind(self._rest, farewell)
        self._closing = True
        if self._rest is None:
            self._gone("finished")

    def _put_behind(self, rest: _Parts, data: bytes) -> None:
        """In a piece of its own: what waits already is shared with other connections, and may be large."""
        last = rest[-1]
        if isinstance(last, bytearray):
            last += data
        else:
            rest.append(bytearray(data))

    def _wait_for(self, rest: _Parts, now: float) -> None:
        self._rest = rest
        self.blocked_since = now
        assert self._sock is not None
        self._writer = gevent.get_hub().loop.io(self._sock.fileno(), _WRITE)
        self._writer.start(self._writable)

    def _writable(self) -> None:
        if self._sock is None or self._rest is None:
            return
        try:
            sent = self._sock.sendmsg(self._rest)
        except BlockingIOError:
            return
        except OSError as error:
            self._gone(error)
            return
        _drop(self._rest, sent)
        if self._rest:
            self.blocked_since = self._clock()  # it does take bytes: the deadline is for who takes none
            return
        self._rest = None
        self.blocked_since = None
        _end(self._writer)
        self._writer = None
        if self._closing:
            self._gone("finished")
        else:
            self._on_drained(self._owner)

    def _readable(self) -> None:
        if self._sock is None:
            return
        try:
            data = self._sock.recv(_MAX_INPUT)
        except BlockingIOError:
            return
        except OSError as error:
            self._gone(error)
            return
        self._input += len(data)
        # End of input is a client that left: a half-closed one cannot be told from it, and would wait for nothing.
        if not data:
            self._gone(None)
        elif self._input > _MAX_INPUT:
            self._gone("sent data on an event stream")

    def _gone(self, why: OSError | str | None) -> None:
        if self._sock is None:
            return  # reported already
        self.close()
        reason = why if isinstance(why, str) else "client left" if why is None else type(why).__name__
        self._on_gone(self._owner, reason)

    def abort(self) -> None:
        """Close and let the kernel drop what it still holds for a client that does not read."""
        if self._sock is not None:
            try:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            except OSError:
                pass
        self.close()

    def close(self) -> None:
        """Close. May be called again."""
        sock, self._sock = self._sock, None
        if sock is None:
            return
        # Before the descriptor: its number may be another connection's a moment later, and the watchers would be too.
        _end(self._reader)
        _end(self._writer)
        self._reader = self._writer = None
        self._rest = None
        self.blocked_since = None
        sock.close()


def _drop(parts: _Parts, count: int) -> None:
    """Take so many bytes off the front."""
    while parts and count >= len(parts[0]):
        count -= len(parts.pop(0))
    if count:
        parts[0] = parts[0][count:]


def _end(watcher: Any) -> None:
    if watcher is not None:
        watcher.stop()
        watcher.close()
