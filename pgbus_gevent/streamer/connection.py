"""A client whose socket is ours, taken over from the server so that it costs no greenlet, and the writer of that socket.

Only this module and the WSGI body know of OSError.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Protocol

import gevent

from ..core import chunked as chunks
from ..core.client import Client, StreamRequest

_Parts = list[memoryview | bytearray]

_READ, _WRITE = 1, 2  # libev's events
_MAX_INPUT = 4096  # a client of an event stream has nothing to say; one that goes on talking is cut off
_LINGER_RESET = struct.pack("ii", 1, 0)


class Owner(Protocol):
    """Who is told what becomes of a socket. Both methods are called in the hub, where nothing may wait."""

    def drained(self) -> None:
        """The last of what waited has gone out."""

    def gone(self, reason: str) -> None:
        """The client has left."""


class IoWriter:
    """The one writer of one socket: sends without waiting, keeps what the socket did not take, sees the client leave.

    It owns ``sock`` (taken out of gevent's hands, so a plain non-blocking one) from here to its close. :meth:`write` may only be
    called while nothing waits (:attr:`blocked_since`).
    """

    __slots__ = (
        "_clock", "_closing", "_input", "_owner", "_reader", "_rest", "_sock", "_writer", "blocked_since",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, owner: Owner, *, clock: Callable[[], float] = monotonic) -> None:
        self._sock: socket.socket | None = sock
        self._owner = owner
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
            self._owner.drained()

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
        self._owner.gone(reason)

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


class Keeper(Protocol):
    """Who is told what becomes of a connection, in the hub; :class:`pgbus_gevent.streamer.clients.Clients` is."""

    def drained(self, client: Client) -> None: ...
    def gone(self, client: Client, reason: str) -> None: ...


class Connection(Client):
    """``head`` is the response's status line and headers, which go out before the first frame; ``chunked`` whether they announce
    chunks, one for each write.

    ``clients`` is told when it can take more again, and when the client has left. ``send_buffer`` is the kernel's for this
    socket, in bytes: by itself it would take 4 MB for a client that never reads. ``dead_after`` bounds, in seconds, how long the
    kernel goes on with a peer that acknowledges nothing.
    """

    __slots__ = ("_chunked", "_clients", "_head", "_writer")

    def __init__(
        self,
        id: str,
        request: StreamRequest,
        sock: socket.socket,
        head: bytes,
        *,
        clients: Keeper,
        chunked: bool = False,
        send_buffer: int = 65536,
        dead_after: float = 30.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        super().__init__(id, request, now=clock())
        self._head = head
        self._chunked = chunked
        _tune(sock, send_buffer, dead_after)
        self._clients = clients
        self._writer = IoWriter(sock, self, clock=clock)

    @property
    def blocked_since(self) -> float | None:
        return self._writer.blocked_since

    def send(self, data: bytes, now: float) -> None:
        self.last_sent = now
        if self._chunked:
            size = len(data)
            if size > chunks.COPIED:
                self._send_large(size, data, now)
                return
            data = chunks.chunk(data)
        if self._head:
            data, self._head = self._head + data, b""
        self.bytes_sent += len(data)
        self._writer.write(data, now)

    def _send_large(self, size: int, data: bytes, now: float) -> None:
        # As it is: all connections share it, the slow ones for long.
        head, self._head = self._head + chunks.head(size), b""
        self.bytes_sent += len(head) + size + len(chunks.END)
        self._writer.write_all((head, data, chunks.END), now)

    def finish(self, farewell: bytes, now: float) -> None:
        if self._chunked:
            farewell = chunks.chunk(farewell) + chunks.LAST
        self._writer.finish(self._head + farewell, now)
        self._head = b""

    def abort(self) -> None:
        self._writer.abort()

    def drained(self) -> None:
        self._clients.drained(self)

    def gone(self, reason: str) -> None:
        self._clients.gone(self, reason)


def _tune(sock: socket.socket, send_buffer: int, dead_after: float) -> None:
    sock.setblocking(False)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(dead_after * 1000))
    except OSError:
        pass  # the client has left already, which the first read tells


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
