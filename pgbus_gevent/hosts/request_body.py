"""The body of an HTTP/1 request, as gevent reads it, but with an end to every wait and to what an error can be."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from gevent import pywsgi

_pywsgi: Any = pywsgi  # the stubs do not know what is not public
_Input: Any = _pywsgi.Input


class SlowClient(TimeoutError):
    """What was waited for did not come in time."""

    def __init__(self) -> None:
        super().__init__(errno.ETIMEDOUT, "the client did not send in time")


class Body(_Input):  # type: ignore[misc]
    """``wsgi.input`` in the place of gevent's ``given``; no wait for a part of it is longer than ``timeout`` seconds.

    Reading raises :class:`SlowClient` then, ConnectionResetError where the client leaves before the end, and gevent's
    own error, which ends the request with 400, for malformed chunks. What is left is never read as a request.
    """

    def __init__(self, given: Any, *, connection: Any, timeout: float) -> None:
        super().__init__(given.rfile, given.content_length, given.socket, given.chunked_input)
        self._connection = connection
        self._timeout = timeout

    @property
    def complete(self) -> bool:
        """Whether it was read to its end."""
        if self.chunked_input:
            return bool(self.chunk_length == 0 and not self._chunked_input_error)
        return bool(self.position >= (self.content_length or 0))

    def _do_read(self, length: int | None = None, use_readline: bool = False) -> bytes:
        return self._in_time(super()._do_read, length, use_readline)

    def _chunked_read(self, length: int | None = None, use_readline: bool = False) -> bytes:
        return self._in_time(super()._chunked_read, length, use_readline)

    def _in_time(self, read: Callable[..., bytes], *arguments: Any) -> bytes:
        self._connection.settimeout(self._timeout)
        try:
            return read(*arguments)
        except _pywsgi._InvalidClientInput:
            raise
        except TimeoutError:
            raise SlowClient from None
        except OSError:
            raise ConnectionResetError(errno.ECONNRESET, "the client left before the body was there") from None
        except ValueError:
            raise _pywsgi._InvalidClientInput("a chunk without a size") from None
        finally:
            self._connection.settimeout(None)

    def _discard(self) -> None:
        # gevent would read what is left, however long that takes; the handler closes the connection instead.
        pass
