"""Requests to the origin of an edge: a few connections for reads, and long ones for new messages."""

from __future__ import annotations

import http.client
import json
import logging
import os
import secrets
import ssl
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import gevent
from gevent.lock import BoundedSemaphore

from ..core.hop import HOP, VERSION_HEADER, VIA_HEADER, written
from ..errors import DatabaseUnavailable, OriginRefused, OriginUnready, PoolTimeout

logger = logging.getLogger("pgbus_gevent.edge")

MAX_ANSWER = 64 * 1024 * 1024
"""The largest answer to a read, in bytes. The parts ask for about 8 MB, but each message comes whole, however large it is."""

MAX_MESSAGE = 1024 * 1024 * 1024
"""The largest answer to a read that asks for a single message, in bytes. PostgreSQL takes texts of up to so many bytes."""

ADDRESS_TIMEOUT = 2.0
"""The longest time, in seconds, for one address of the origin's name: after it, there is time left for another one."""

passed: ContextVar[str] = ContextVar("passed", default="")
"""The ids of the edges that the read has passed which this greenlet answers, separated by commas. Each greenlet has its own."""

PIECE = 64 * 1024
"""The largest part of an answer that is read in one go, in bytes."""

_REFUSALS = {
    401: "its worker token is not one of the origin's: give both the same PGBUS_WORKER_TOKEN",
    403: "the origin takes no edges: set PGBUS_WORKER_TOKEN there, to the token of this edge",
    404: "there is no pgbus-gevent that knows edges at this address: check the path in PGBUS_UPSTREAM, which ends with the"
    " origin's prefix, and the release of the origin",
    413: "a proxy before the origin takes no request of this size: raise its limit",
    426: "the origin's release speaks another version of the protocol between edge and origin: upgrade the older of the two",
    508: "the origin is an edge whose own origin leads back here: correct PGBUS_UPSTREAM of one of them",
    # The right token is let in at any time.
    429: "its worker token is not one of the origin's, or a proxy before the origin limits requests, because too many came from"
    " this address: give both the same PGBUS_WORKER_TOKEN",
}
"""What an answer of the origin means, and what to do, by its status."""


class AnswerTooLarge(OriginRefused):
    """An answer to a read has more bytes than the question allowed."""


class Origin:
    """The origin at ``url``, for a worker that presents ``token``. At most ``size`` reads run at the same time.

    Connections are opened when they are needed, and kept for the next read. TLS certificates are verified with the certificates
    of the system, or with those of SSL_CERT_FILE. All times are in seconds. The methods yield; each greenlet may call them.
    """

    def __init__(self, url: str, token: str, *, connect_timeout: float, pool_timeout: float, size: int) -> None:
        self.url = url
        parts = urlsplit(url)
        self._tls = parts.scheme == "https"
        self._host, self._port = parts.hostname or "", parts.port
        self._path = parts.path.rstrip("/")
        self._headers = {
            "authorization": f"Bearer {token}",
            "content-type": "application/json",
            "user-agent": f"pgbus-gevent/{_release()}",
            VERSION_HEADER: str(HOP),
        }
        self._id = secrets.token_hex(4)
        self._connect_timeout = min(connect_timeout, ADDRESS_TIMEOUT)
        self._pool_timeout = pool_timeout
        self._context: ssl.SSLContext | None = None
        self._room = BoundedSemaphore(size)
        self._idle: list[http.client.HTTPConnection] = []
        self.size = size
        self.in_use = 0
        self.answered = float("-inf")
        """When the origin last answered a read, be it with a refusal, on the monotonic clock."""
        self.refusal = ""
        """Why the origin refused the last question of the pulse; empty if it did not."""
        self._cause = ""  # why it refused the last request, without the 429 that follow a refusal
        self.failures = 0
        """How many requests got no answer, or one that could not be used."""

    @property
    def id(self) -> str:
        """What this process calls itself in requests. A process that has forked has another id than its parent."""
        return f"{self._id}{os.getpid():x}"

    # reads

    def ask(self, path: str, question: Mapping[str, Any], *, timeout: float, most: int | None = None) -> Any:
        """Send a question, and return the answer, of up to ``most`` bytes, or :data:`MAX_ANSWER` if it is None.

        Asking twice must do no harm, because a question is sent again if the connection that was kept for it proves to be closed.

        Raises :class:`DatabaseUnavailable` if the answer does not begin within ``timeout``, or stops for so long, and
        :class:`OriginRefused`, of which :class:`AnswerTooLarge` is one.
        """
        if not self._room.acquire(timeout=self._pool_timeout):
            raise PoolTimeout(self._pool_timeout, self.size)
        self.in_use += 1
        try:
            return self._answer(path, question, timeout, most or MAX_ANSWER)
        except (DatabaseUnavailable, OriginRefused) as error:
            self.failures += 1
            if isinstance(error, OriginRefused):
                self.answered = monotonic()
            # The other connections may be dead as well, and each would take a whole timeout to prove it.
            self.discard_idle()
            raise
        finally:
            self.in_use -= 1
            self._room.release()

    def _answer(self, path: str, question: Mapping[str, Any], timeout: float, most: int) -> Any:
        body = written(question)
        late = DatabaseUnavailable(f"the origin did not answer within {timeout:g} s")
        with gevent.Timeout(timeout, late):
            while self._idle:
                connection = self._idle.pop()
                try:
                    response = self._send(connection, path, body)
                    break
                except (OSError, http.client.HTTPException):
                    connection.close()  # the origin or a proxy had closed it; the next one is tried, and at last a new one
                except BaseException:
                    connection.close()
                    raise
            else:
                connection = self._connect()
                response = self._sent(connection, path, body)
        return self._read(connection, response, timeout, most)

    def _read(
        self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse, timeout: float, most: int
    ) -> Any:
        kept = False
        try:
            data = _body(response, timeout, most)
            self._check(response, data)
            found = json.loads(data)
            self.answered = monotonic()
            kept = not response.will_close and response.isclosed()
            return found
        except (OSError, http.client.HTTPException) as error:
            raise DatabaseUnavailable(f"the origin's answer broke off: {error or type(error).__name__}") from None
        except (ValueError, RecursionError):
            raise OriginRefused("what answers there is not pgbus-gevent: its answer is not JSON") from None
        finally:
            if kept:
                self._idle.append(connection)
            else:
                connection.close()

    def _check(self, response: http.client.HTTPResponse, data: bytes) -> None:
        """Raise the error that the status of an answer stands for, unless it is 200."""
        status = response.status
        if status == 200:
            self._cause = ""
            return
        said = data[:300].decode("utf-8", "replace").strip()
        if status == 503 and response.getheader(VERSION_HEADER):  # said by the origin, and not by a proxy before it
            raise OriginUnready(said.partition("\n")[0])
        if status in (408, 500, 502, 503, 504):
            raise DatabaseUnavailable(f"the origin answered {status}: {said}")
        if status != 429 or not self._cause:
            meaning = _REFUSALS.get(status, "check the address in PGBUS_UPSTREAM")
            self._cause = f"{meaning} (it answered {status}: {said.splitlines()[0] if said else ''})"
        # A 429 that follows another refusal does not say why: it comes because this edge has asked again.
        raise OriginRefused(self._cause, known=self._cause == self.refusal)

    # new messages

    def open(
        self, path: str, question: Mapping[str, Any], *, timeout: float, silence: float
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Send a question whose answer does not end, and return the connection and the answer, to read and to close.

        Reading raises TimeoutError after ``silence`` seconds without a byte. Raises as :meth:`ask` does.
        """
        body = written(question)
        late = DatabaseUnavailable(f"the origin did not answer within {timeout:g} s")
        try:
            with gevent.Timeout(timeout, late):
                connection = self._connect(silence)
                try:
                    response = self._sent(connection, path, body)
                    if response.status != 200:
                        self._check(response, response.read(1000))
                    self._cause = ""
                    return connection, response
                except BaseException:
                    connection.close()
                    raise
        except (DatabaseUnavailable, OriginRefused):
            self.failures += 1
            raise

    # connections

    def _connect(self, silence: float | None = None) -> http.client.HTTPConnection:
        """A new connection. After ``silence`` seconds without a byte, reading from it raises TimeoutError."""
        if self._tls:
            self._context = self._context or ssl.create_default_context()
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                self._host, self._port, timeout=self._connect_timeout, context=self._context
            )
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=self._connect_timeout)
        try:
            connection.connect()
        except ssl.SSLCertVerificationError as error:
            connection.close()
            raise DatabaseUnavailable(
                f"the certificate of the origin does not verify ({error.verify_message}): correct it, or name the file of its"
                " authority in SSL_CERT_FILE"
            ) from None
        except OSError as error:
            connection.close()
            raise DatabaseUnavailable(f"cannot reach the origin: {error or type(error).__name__}") from None
        except BaseException:
            connection.close()
            raise
        connection.sock.settimeout(silence)
        return connection

    def _sent(self, connection: http.client.HTTPConnection, path: str, body: bytes) -> http.client.HTTPResponse:
        """Send a question on a new connection, and return the answer."""
        try:
            return self._send(connection, path, body)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise DatabaseUnavailable(f"the origin did not answer: {error or type(error).__name__}") from None
        except BaseException:
            connection.close()
            raise

    def _send(self, connection: http.client.HTTPConnection, path: str, body: bytes) -> http.client.HTTPResponse:
        via = ",".join(filter(None, (passed.get(), self.id)))
        connection.request("POST", f"{self._path}{path}", body, {**self._headers, VIA_HEADER: via})
        return connection.getresponse()

    def discard_idle(self) -> None:
        """Close the connections that are kept. The same name may lead to another origin now."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def close(self) -> None:
        """Close all connections that are kept. Idempotent."""
        self.discard_idle()


def _body(response: http.client.HTTPResponse, timeout: float, most: int) -> bytes:
    """The whole body of an answer. Each piece has ``timeout`` seconds: the answer may be large, and the network slow."""
    data = bytearray()
    while True:
        with gevent.Timeout(timeout, DatabaseUnavailable(f"the origin's answer stopped for {timeout:g} s")):
            piece = response.read(PIECE)
        if not piece:
            break
        data += piece
        if len(data) > most:
            raise AnswerTooLarge(f"its answer to a read has more than {most} bytes")
    if response.length:
        # The standard library ends such a body without an error.
        raise http.client.IncompleteRead(b"", response.length)
    return bytes(data)


def _release() -> str:
    """The version of the package, read from its module, which no lower layer may import."""
    return str(sys.modules[__name__.partition(".")[0]].__version__)
