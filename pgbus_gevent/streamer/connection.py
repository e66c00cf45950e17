"""A client on a socket that was taken over from the server, so that it occupies no greenlet, and the writer of that socket.

In the streamer, only this module and ``body_connection`` handle OSError.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Protocol

import gevent

from ..core import chunked as chunks
from ..core.backlog import Backlog
from ..core.client import Client, StreamRequest

_Parts = list[memoryview | bytearray]

_READ, _WRITE = 1, 2  # libev's events
_MAX_INPUT = 4096  # bytes; a client of an event stream sends nothing, so one that sends more is cut off
_LINGER_RESET = struct.pack("ii", 1, 0)


class SocketHandler(Protocol):
    """The methods that a writer calls. The event loop runs both, so they must not wait."""

    def unblocked(self) -> None:
        """The bytes that waited have all been sent."""

    def gone(self, reason: str) -> None:
        """The socket was closed: the client has left, or the last frame has been sent."""


class IoWriter:
    """The only writer of one socket. It sends without waiting, keeps the bytes that the socket did not take, and notices
    when the client leaves.

    It owns ``sock``, a plain non-blocking socket and not one of gevent's, until it closes it. Call :meth:`write` and
    :meth:`write_all` only while :attr:`blocked_since` is None. The methods never yield. The watchers ``_readable`` and
    ``_writable`` run in the event loop, which runs only while every greenlet waits, so never between two lines here.
    """

    __slots__ = (
        "_backlog",
        "_clock",
        "_closing",
        "_handler",
        "_input",
        "_reader",
        "_rest",
        "_sock",
        "_writer",
        "blocked_since",
    )  # fmt: skip

    def __init__(
        self,
        sock: socket.socket,
        handler: SocketHandler,
        *,
        backlog: Backlog | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._sock: socket.socket | None = sock
        self._handler = handler
        self._clock = clock
        self._rest: _Parts | None = None
        self._backlog = backlog or Backlog()
        self._closing = False
        self._input = 0
        self.blocked_since: float | None = None
        self._writer: Any = None
        self._reader: Any = gevent.get_hub().loop.io(sock.fileno(), _READ)
        self._reader.start(self._readable)

    def write(self, data: bytes, now: float) -> None:
        """Send ``data``. Bytes that the socket does not take wait, and set :attr:`blocked_since` to ``now``."""
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
        """Send several pieces of bytes, one after the other, without copying them."""
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
        """Send ``farewell`` after the bytes that wait, and then close."""
        if self._rest is None:
            self.write(farewell, now)
        else:
            self._put_behind(self._rest, farewell)
        self._closing = True
        if self._rest is None:
            self._gone("finished")

    def _put_behind(self, rest: _Parts, data: bytes) -> None:
        """Append ``data`` as a piece of its own: the pieces that wait are shared with other connections, and may be large."""
        last = rest[-1]
        if isinstance(last, bytearray):
            last += data
        else:
            rest.append(bytearray(data))

    def _wait_for(self, rest: _Parts, now: float) -> None:
        self._rest = rest
        self._backlog.hold(self._handler, rest, now)
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
            self.blocked_since = self._clock()  # the client takes bytes; only one that takes none is a slow consumer
            return
        self._let_go()
        _end(self._writer)
        self._writer = None
        if self._closing:
            self._gone("finished")
        else:
            self._handler.unblocked()

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
        # At the end of input the client has left. A client that closed only its sending side looks the same, but none does.
        if not data:
            self._gone(None)
        elif self._input > _MAX_INPUT:
            self._gone("sent data on an event stream")

    def _gone(self, why: OSError | str | None) -> None:
        if self._sock is None:
            return  # reported already
        self.close()
        reason = why if isinstance(why, str) else "client left" if why is None else type(why).__name__
        self._handler.gone(reason)

    def abort(self) -> None:
        """Close, and have the kernel discard the bytes that it still holds for the client."""
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
        # Stop the watchers before the descriptor is closed: the kernel may give its number to a new socket at once, and the
        # watchers would then watch that socket.
        _end(self._reader)
        _end(self._writer)
        self._reader = self._writer = None
        self._let_go()
        sock.close()

    def _let_go(self) -> None:
        """Keep none of the bytes that waited."""
        self._backlog.release(self._handler)
        self._rest = None
        self.blocked_since = None


class ClientHandler(Protocol):
    """The methods that a connection calls, in the event loop; :class:`pgbus_gevent.streamer.clients.Clients` has them."""

    def unblocked(self, client: Client) -> None: ...
    def gone(self, client: Client, reason: str) -> None: ...


class Connection(Client):
    """A client on a socket.

    ``head`` is the response's status line and headers, which are sent before the first frame. ``chunked`` says whether they
    announce HTTP's chunked coding; then each send is one HTTP chunk. ``clients`` is called when the client takes bytes again, and
    when it has left.

    ``send_buffer`` is the size of the kernel's buffer for this socket, in bytes. Without it, the kernel would keep up to 4 MB for
    a client that never reads. ``dead_after`` is how many seconds the kernel waits for a peer that acknowledges nothing.
    """

    __slots__ = ("_chunked", "_clients", "_head", "_writer")

    def __init__(
        self,
        id: str,
        request: StreamRequest,
        sock: socket.socket,
        head: bytes,
        *,
        clients: ClientHandler,
        chunked: bool = False,
        send_buffer: int = 65536,
        dead_after: float = 30.0,
        backlog: Backlog | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        super().__init__(id, request, now=clock())
        self._head = head
        self._chunked = chunked
        tune(sock, send_buffer, dead_after)
        self._clients = clients
        self._writer = IoWriter(sock, self, backlog=backlog, clock=clock)

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
        # Not copied, because all connections share the bytes, and slow ones keep them for long.
        head, self._head = self._head + chunks.size_line(size), b""
        self.bytes_sent += len(head) + size + len(chunks.END)
        self._writer.write_all((head, data, chunks.END), now)

    def finish(self, farewell: bytes, now: float) -> None:
        if self._chunked:
            farewell = chunks.chunk(farewell) + chunks.LAST
        self._writer.finish(self._head + farewell, now)
        self._head = b""

    def abort(self) -> None:
        self._writer.abort()

    def unblocked(self) -> None:
        self._clients.unblocked(self)

    def gone(self, reason: str) -> None:
        self._clients.gone(self, reason)


def tune(sock: socket.socket, send_buffer: int, dead_after: float) -> None:
    """Have a socket not block, and set its options; :class:`Connection` describes them."""
    sock.setblocking(False)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(dead_after * 1000))
    except OSError:
        pass  # the client has left already, as the first read will show


def _drop(parts: _Parts, count: int) -> None:
    """Remove the first ``count`` bytes of ``parts``."""
    while parts and count >= len(parts[0]):
        count -= len(parts.pop(0))
    if count:
        parts[0] = parts[0][count:]


def _end(watcher: Any) -> None:
    if watcher is not None:
        watcher.stop()
        watcher.close()
