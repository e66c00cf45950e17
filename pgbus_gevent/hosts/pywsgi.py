"""gevent's WSGI server, hardened, and able to hand the socket of a connection over."""

from __future__ import annotations

import _socket
import errno
import logging
import socket
import struct
from collections.abc import Iterator
from functools import lru_cache
from http import HTTPStatus
from time import monotonic
from typing import Any

import gevent
from gevent import pywsgi
from gevent.pool import Pool

from ..core.client import StreamRequest
from ..core.hop import READS
from ..core.shown import traceable
from ..web.take_over import TAKE_OVER, Taker, framing, takes_chunks
from .accepting import AcceptingServer
from .closing_server import LAST_CALL
from .listening import listen as listen
from .listening import tune
from .request_body import Body, Patience, SlowClient
from .request_head import BadHead, Fields, check_head, read_head, shown_path

logger = logging.getLogger("pgbus_gevent.server")
access_logger = logging.getLogger("pgbus_gevent.access")

LINGER = 2.0
"""Seconds for which the rest of a refused request is read.

Closing the socket with unread data would reset the connection, and the client could lose the answer."""

TURN = 0.001
"""Seconds for which the requests of one connection are served in a row while other connections wait."""

EMPTY_LINES = 4
"""How many empty lines before a request line are skipped. RFC 9112 asks for at least one."""


# The stubs lack the hooks, and do not know that status and headers are bytes when a response is sent.
_pywsgi: Any = pywsgi
_WSGIHandler: Any = pywsgi.WSGIHandler

# If the socket is handed over, the server sets these headers itself or leaves them out.
_CONNECTION_HEADERS = (b"connection", b"content-encoding", b"content-length", b"transfer-encoding")
_NEXT_TURN = 1e-6  # seconds; with 0, other greenlets would run, but not those that wait for a socket
_RESET = struct.pack("ii", 1, 0)


class Handler(_WSGIHandler):  # type: ignore[misc]
    """Serves the requests of one connection."""

    server: Server
    # Errors of the client or the network, which are no reason to log a traceback.
    ignored_socket_errors = (
        *_WSGIHandler.ignored_socket_errors,
        errno.ETIMEDOUT,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
    )
    socket: Any
    wsgi_input: Any
    response_headers: Any
    command: str | None
    path: str | None
    _orig_status: str | None
    result: Any
    _fields: Fields
    _patience: Patience
    _taker: tuple[Taker, StreamRequest] | None = None
    _turn = 0.0  # when this connection's turn began
    _served = False  # whether this connection had a request before

    # one request

    def handle_one_request(self) -> bool | None:
        """Serve one request. Return True if the connection can take another one."""
        with self.server.room.waits(self.socket):
            try:
                if not self._read_request():
                    return None
            except BadHead as error:
                self._refuse(error)
                return None
            except OSError as error:
                logger.debug("%s left before it had sent a whole head: %s", self._address, error)
                return None
        self.environ = self.get_environ()
        self.application = self.server.application
        self._patience = Patience(self.server.request_timeout)
        self.handle_one_response()
        if self.socket is not None and not self.wsgi_input.complete:
            with self.server.room.waits(self.socket):
                self._linger()
        return None if self.close_connection or self.socket is None else True

    def _read_request(self) -> bool:
        """Read a request's head; False if the connection has ended. Raises BadHead, and OSError if the client is too slow."""
        self.command = self.path = self._orig_status = None  # or those of the previous request might be logged again
        self.response_length = 0
        if not self._wait_for_request():
            return False
        # One deadline for the whole head. With a deadline for each line, a client could send it slowly for ever.
        with gevent.Timeout(self.server.request_timeout, SlowClient()):
            lines = read_head(self.rfile, self.server.max_request_head)
        if not lines:
            return False
        request_line, self._fields = check_head(lines)
        try:
            self.read_request(request_line.decode("latin-1"))
        except ValueError:
            raise BadHead("the head is malformed") from None
        if self._fields.says_close:
            self.close_connection = True
        return True

    def _wait_for_request(self) -> bool:
        """Wait until the client begins a request; False if it ends the connection. Nothing is lost if the handler is killed here.

        Empty lines are skipped (RFC 9112, section 2.2), because some clients send an extra one after a body.
        """
        server = self.server
        idle = server.idle if self._served else server.new
        me = gevent.getcurrent()
        idle.add(me)
        try:
            with gevent.Timeout(LAST_CALL if server.stopping else server.request_timeout, SlowClient()):
                self._take_turns()
                for _ in range(EMPTY_LINES):
                    if self.rfile.peek(1)[:1] != b"\r":
                        break
                    if self.rfile.read(2) != b"\r\n":
                        raise BadHead("a line of the head does not end in CRLF")
                return bool(self.rfile.peek(1))
        finally:
            idle.discard(me)
            self._served = True

    def _take_turns(self) -> None:
        # If the next request has already arrived, nothing here waits, so no other greenlet runs. Without this, a client that sends
        # requests without a pause would occupy the whole process.
        if self._served and monotonic() - self._turn > TURN:
            gevent.sleep(_NEXT_TURN)
            self._turn = monotonic()

    def MessageClass(self, *_: Any) -> Fields:
        return self._fields  # the head was read and checked already

    def _headers(self) -> Iterator[tuple[str, str]]:
        return self._fields.environ()

    def _refuse(self, error: BadHead) -> None:
        self.close_connection = True
        self._orig_status = f"{error.status} {HTTPStatus(error.status).phrase}"
        body = f"{error.reason}\n"
        head = (
            f"HTTP/1.1 {self._orig_status}\r\nContent-Type: text/plain; charset=utf-8\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        try:
            Patience(self.server.request_timeout).wait(self.socket.sendall, (head + body).encode())
        except OSError:
            return
        finally:
            self.log_request()
        self._linger()

    def _linger(self) -> None:
        try:
            with gevent.Timeout(LINGER, False):  # type: ignore[arg-type]  # False: end the block without an exception
                self.socket.shutdown(socket.SHUT_WR)
                while self.socket.recv(65536):
                    gevent.sleep(_NEXT_TURN)
        except OSError:
            pass  # the client has closed the connection, which is what this waits for

    def get_environ(self) -> dict[str, Any]:
        environ: dict[str, Any] = super().get_environ()
        given = self.wsgi_input
        self.wsgi_input = Body(given, patience=self.server.request_timeout)
        if environ["wsgi.input"] is given:
            environ["wsgi.input"] = self.wsgi_input
        # Not for TLS, whose socket is of a subclass: the new owner of the descriptor would send plain text.
        if self.command == "GET" and type(self.socket) is gevent.socket.socket:
            environ[TAKE_OVER] = self
        return environ

    def give_socket(self, taker: Taker, request: StreamRequest) -> None:
        """Hand the socket to ``taker``, which serves ``request`` on it, after the application has returned with final headers."""
        self._taker = taker, request

    # the response

    def finalize_headers(self) -> None:
        if not self.wsgi_input.complete or self.server.stopping or self.server.elsewhere:
            self.close_connection = True
        super().finalize_headers()
        if self.command == "HEAD" and self.provided_content_length is None:
            # Only the application can know the length of the body that a GET would have.
            self.response_use_chunked = False
            self._drop_headers(b"content-length", b"transfer-encoding")
        if self.close_connection and self.code != HTTPStatus.SWITCHING_PROTOCOLS:
            self._drop_headers(b"connection")
            self.response_headers.append((b"Connection", b"close"))

    def _drop_headers(self, *names: bytes) -> None:
        self.response_headers = [header for header in self.response_headers if header[0].lower() not in names]

    def _write(self, data: bytes) -> None:
        if self.command != "HEAD":
            super()._write(data)

    def _sendall(self, data: Any) -> None:
        send = super()._sendall
        if getattr(self.result, "keeps_time", False):
            # This is a stream. The streamer has its own deadlines for its clients.
            send(data)
            return
        try:
            self._patience.send(send, data)
        except SlowClient:
            # Reset the connection. Otherwise the kernel would keep its part of the answer, perhaps megabytes, for minutes.
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            raise

    def process_result(self) -> None:
        # Do this before any decision, because a middleware that is a generator calls the application only now.
        for data in self.result:
            if data:
                self.write(data if type(data) is bytes else memoryview(data))  # raises for text, before the head
        given, self._taker = self._taker, None
        if given is not None and not self.headers_sent and self.code == HTTPStatus.OK:
            self._give_away(*given)
            return
        if self.status and not self.headers_sent:
            self.write(b"")
        if self.response_use_chunked:
            self._sendall(b"0\r\n\r\n")

    def _give_away(self, taker: Taker, request: StreamRequest) -> None:
        """Hand the socket over. The handler then has no socket to close, so it ends, and its greenlet is free."""
        chunked = takes_chunks(self.request_version) and request.poll is None
        head = self._stream_head(chunked)
        self.close_connection = True
        plain: Any = _socket.socket(fileno=self.socket.detach())  # a plain socket, without gevent's watchers
        self.socket = None
        try:
            taker.take_over(request, plain, head, chunked)
        except BaseException:
            plain.close()
            raise

    def _stream_head(self, chunked: bool) -> bytes:
        """The status line and the headers, including those that middleware has added."""
        self._drop_headers(*_CONNECTION_HEADERS)
        headers = [*self.response_headers, *((name.encode(), value.encode()) for name, value in framing(chunked))]
        if self.provided_date is None:
            headers.append((b"date", _date(int(self.time_start))))
        lines = [b"HTTP/1.1 " + self.status, *(name + b": " + value for name, value in headers)]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    # errors and logs

    def run_application(self) -> None:
        try:
            super().run_application()
        except OSError as error:
            if error.args:  # gevent asks for the first one, which an application's own TimeoutError may lack
                raise
            self.handle_error(type(error), error, error.__traceback__)

    def handle_error(self, *error: Any) -> None:
        self._log_error(*error)
        self.result = None  # whose own code may raise
        if self.socket is not None:
            self.close_connection = True
            if not self.response_length:  # not even the head was sent
                self.headers_sent = self.response_use_chunked = False
            self._send_error_response_if_possible(500)

    def _log_error(self, kind: Any, error: Any, traceback: Any) -> None:
        if not (issubclass(kind, gevent.GreenletExit) and self.server.stopping):
            logger.error("%s %s failed", self.command, self._shown_path, exc_info=traceable(error))

    def _handle_client_error(self, ex: Exception) -> None:
        # A malformed body. gevent would log it with a traceback, so any client could fill the log.
        logger.debug("%s: %s", self._address, ex)

    def log_request(self) -> None:
        # The reads of edges would hide all other requests. Those that were refused are shown, because they may be guesses.
        path, status = self._shown_path, str(self._orig_status or "-").partition(" ")[0]
        log = access_logger.debug if path.endswith(READS) and status == "200" else access_logger.info
        log('%s "%s %s" %s', self._address, self.command or "-", path, status)

    @property
    def _address(self) -> str:
        return str(self.client_address[0]) if isinstance(self.client_address, tuple) else "-"

    @property
    def _shown_path(self) -> str:
        return shown_path(self.path or "-")


class Server(AcceptingServer):
    """Serves a WSGI application, and offers it the socket of each request, so that :class:`StreamApp` can take it over.

    ``request_timeout`` is in seconds. It limits how long a request's head may take, how long a connection may be idle before it,
    and how far a client may fall behind a fair pace (:class:`Patience`) in sending the body and reading the answer.
    ``max_request_head`` is the largest head, in bytes. Other options are those of gevent's WSGIServer.
    """

    handler_class = Handler
    # How many connections are accepted in a row. If thousands arrive, live messages must be sent in between.
    max_accept = 20

    def __init__(
        self,
        listener: Any,
        application: Any,
        *,
        request_timeout: float = 10.0,
        max_request_head: int = 32 * 1024,
        **options: Any,
    ) -> None:
        self.request_timeout = request_timeout
        self.max_request_head = max_request_head
        # Without a SERVER_NAME, gevent asks the name service for it, which may take long.
        options.setdefault("environ", {"SERVER_NAME": "localhost"})
        options.setdefault("log", None)
        options.setdefault("error_log", logger)
        # Without a pool, gevent does not keep track of its greenlets, and a stop could not wait for them.
        options.setdefault("spawn", Pool())
        super().__init__(listener, application, **options)

    def init_socket(self) -> None:
        super().init_socket()
        tune(self.socket)


@lru_cache(maxsize=2)
def _date(second: int) -> bytes:
    # Cached, because thousands of clients may connect within one second.
    return bytes(_pywsgi.format_date_time(second))
