"""HTTP/2 from the client's side, with the library h2: one connection for all requests, and event sources over it."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import gevent
from gevent.event import Event
from gevent.lock import RLock
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)
from h2.exceptions import ProtocolError
from httpx_sse._decoders import SSEDecoder, SSELineDecoder
from support import PATIENCE

Connect = Callable[[], Any]


class Lost(OSError):
    """The connection has ended, or takes no more requests."""


class Exchange:
    """A request and the answer to it. ``on_data`` is called with each part of the body as it arrives."""

    def __init__(self, on_data: Callable[[bytes], object] | None) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.begun = Event()
        self.ended = Event()
        self._on_data = on_data

    def take(self, data: bytes) -> None:
        if self._on_data is None:
            self.body += data
        else:
            self._on_data(data)

    def end(self) -> None:
        self.begun.set()
        self.ended.set()

    def wait(self) -> Exchange:
        """Return itself with the whole answer. Raises Lost if there is none."""
        assert self.ended.wait(PATIENCE), "no whole answer"
        if not self.status:
            raise Lost
        return self


class Connection:
    """One connection to ``host``. It must be HTTP/2, by ALPN."""

    def __init__(self, connect: Connect, host: str, context: ssl.SSLContext) -> None:
        self.closed = False
        self.leaving = False  # the server has said that it takes no more requests
        self._host = host
        self._exchanges: dict[int, Exchange] = {}
        self._lock = RLock()
        raw = connect()
        try:
            raw.settimeout(PATIENCE)
            self._tls = context.wrap_socket(raw, server_hostname=host)
        except BaseException:
            raw.close()
            raise
        self._tls.settimeout(None)
        assert self._tls.selected_alpn_protocol() == "h2"
        self._h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(2**24)
        self._flush()
        self._reader = gevent.spawn(self._read)

    def request(
        self,
        path: str,
        method: str = "GET",
        body: bytes = b"",
        on_data: Callable[[bytes], object] | None = None,
        **headers: str,
    ) -> Exchange:
        """Send a request. An underscore in a header's name stands for a hyphen. Raises Lost if the connection takes none."""
        named = [(name.replace("_", "-"), value) for name, value in headers.items()]
        pseudo = [(":method", method), (":scheme", "https"), (":authority", self._host), (":path", path)]
        with self._lock:
            if self.closed or self.leaving:
                raise Lost
            try:
                number = self._h2.get_next_available_stream_id()
                exchange = self._exchanges[number] = Exchange(on_data)
                self._h2.send_headers(number, pseudo + named, end_stream=not body)
                if body:
                    self._h2.send_data(number, body, end_stream=True)
            except ProtocolError as error:
                raise Lost from error
            self._flush()
        return exchange

    def ask(self, path: str, method: str = "GET", body: bytes = b"", **headers: str) -> Exchange:
        """Return the whole answer to a request."""
        return self.request(path, method, body, **headers).wait()

    def cancel(self, exchange: Exchange) -> None:
        """End an exchange from this side, if it has not ended. After a farewell of the server, h2 can send nothing more."""
        with self._lock:
            for number, found in list(self._exchanges.items()):
                if found is exchange and not self.closed:
                    del self._exchanges[number]
                    with suppress(ProtocolError):
                        self._h2.reset_stream(number, ErrorCodes.CANCEL)
            self._flush()
        exchange.end()

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data:
            self._tls.sendall(data)

    def _read(self) -> None:
        try:
            while data := self._tls.recv(65536):
                with self._lock:
                    for event in self._h2.receive_data(data):
                        self._take(event)
                    self._flush()
        except (OSError, ProtocolError):
            pass  # the event sources come back
        finally:
            self.closed = True
            self._tls.close()
            for exchange in self._exchanges.values():
                exchange.end()

    def _take(self, event: Any) -> None:
        if isinstance(event, ConnectionTerminated):
            self.leaving = True
            return
        exchange = self._exchanges.get(getattr(event, "stream_id", 0))
        if isinstance(event, DataReceived):
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        if exchange is None:
            return
        if isinstance(event, ResponseReceived):
            exchange.headers = dict(event.headers)
            exchange.status = int(exchange.headers.pop(":status"))
            exchange.begun.set()
        elif isinstance(event, DataReceived):
            exchange.take(event.data)
        elif isinstance(event, (StreamEnded, StreamReset)):
            del self._exchanges[event.stream_id]
            exchange.end()

    def close(self) -> None:
        self._reader.kill()


class Origin:
    """A site, as a browser knows it: one connection, and a new one when that is gone."""

    def __init__(self, connect: Connect, host: str, context: ssl.SSLContext) -> None:
        self._how = connect, host, context
        self._connection: Connection | None = None
        self._leaving: list[Connection] = []
        self._lock = RLock()

    def connection(self) -> Connection:
        """Return a connection that takes requests. Raises OSError if there is none."""
        with self._lock:
            found = self._connection
            if found is None or found.closed or found.leaving:
                if found is not None and not found.closed:
                    self._leaving.append(found)
                self._connection = found = Connection(*self._how)
            return found

    def close(self) -> None:
        for each in filter(None, [self._connection, *self._leaving]):
            each.close()


class EventSource:
    """An EventSource over HTTP/2 that comes back ``haste`` times sooner than it is told.

    :attr:`ids` has the ids of all messages. :attr:`connections` counts the openings. :attr:`reasons` are those of the farewells.
    :attr:`stopped` says why a browser's EventSource would have given up; it is empty as long as it would not.
    """

    def __init__(self, origin: Origin, path: str, haste: float = 10.0) -> None:
        self.ids: list[int] = []
        self.data: list[str] = []
        self.reasons: list[str] = []
        self.comments = 0
        self.connections = 0
        self.stopped = ""
        self.headers: dict[str, str] = {}
        self._origin = origin
        self._path = path
        self._haste = haste
        self._retry = 2000
        self._cursor = ""
        self._greenlet = gevent.spawn(self._run)

    def _run(self) -> None:
        while not self.stopped:
            try:
                self._open()
            except OSError:
                pass  # it comes back after any failure of the network
            gevent.sleep(self._retry / 1000 / self._haste)

    def _open(self) -> None:
        lines, events = SSELineDecoder(), SSEDecoder()

        def take(data: bytes) -> None:
            for line in lines.decode(data.decode()):
                self.comments += line.startswith(":")
                event = events.decode(line)
                if event is not None:
                    self._take(event)

        connection = self._origin.connection()
        cursor = {"last_event_id": self._cursor} if self._cursor else {}
        exchange = connection.request(self._path, on_data=take, accept="text/event-stream", **cursor)
        try:
            exchange.begun.wait()
            self.headers = exchange.headers
            kind = exchange.headers.get("content-type", "")
            if exchange.status and (exchange.status != 200 or not kind.startswith("text/event-stream")):
                self.stopped = f"{exchange.status} {kind}"
            exchange.ended.wait()
        finally:
            connection.cancel(exchange)

    def _take(self, event: Any) -> None:
        if event.retry is not None:
            self._retry = event.retry
        if event.id:
            self._cursor = event.id
        if event.event == "pgbus:connected":
            self.connections += 1
        elif event.event == "pgbus:shutdown":
            self.reasons.append(event.json()["reason"])
        elif event.event == "pgbus:gap-detected":
            self.stopped = event.data
        elif event.data:
            self.ids.append(int(event.id))
            self.data.append(event.data)

    def close(self) -> None:
        self._greenlet.kill()
