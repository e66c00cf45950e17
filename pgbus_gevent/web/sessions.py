"""Logins at the console. They are stored in the database, so that they are valid on every worker.

An operator may open the console because the database is away. Then a worker goes by the sessions that it remembers itself.
"""

from __future__ import annotations

import hmac
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256
from time import monotonic
from typing import TypeVar

import gevent

from ..database.operators import OperatorQueries
from ..errors import DatabaseError

logger = logging.getLogger("pgbus_gevent.console")

REMEMBERED = 1000
"""The most sessions that a worker remembers itself."""

_TIMEOUT = 1.0  # seconds until an answer of the database is given up

T = TypeVar("T")


def asked(question: Callable[[], T]) -> T | None:
    """The answer of the database to a question about logins or tokens; None if it does not answer in time."""
    try:
        with gevent.Timeout(_TIMEOUT, False):  # type: ignore[arg-type]  # False: end the block without an exception
            return question()
    except DatabaseError as error:
        logger.info(
            "the database was not asked about a login or a wrong token, so this worker goes by those that it knows: %s",
            error,
        )
    return None


def _has_run(statement: Callable[[], None]) -> bool:
    """Whether the database has run a statement in time."""

    def done() -> bool:
        statement()
        return True

    return asked(done) or False


class Sessions:
    """Sessions that were opened with the token whose hash is ``token``.

    The methods yield while they ask the database, and the greenlets of other requests with the same cookie run meanwhile. The
    answer of the database that comes last decides what this worker remembers, which counts only while the database is away.
    """

    def __init__(self, queries: OperatorQueries, token: bytes, lifetime: Callable[[], float]) -> None:
        self._queries = queries
        self._token = token
        self._lifetime = lifetime
        self._remembered: OrderedDict[bytes, float] = OrderedDict()  # the times at which sessions expire
        self._kept_here: set[bytes] = set()  # sessions that the database did not take

    def open(self) -> str:
        """Open a session, and return the value of its cookie."""
        number = secrets.token_urlsafe(32)
        cookie = f"{number}.{self._mark(number)}"
        id = _hash(cookie)
        if not _has_run(lambda: self._queries.open_session(id, self._token, self._lifetime())):
            self._kept_here.add(id)
        self._remember(id)
        return cookie

    def is_open(self, cookie: str) -> bool:
        """Whether a cookie belongs to a session that has not ended."""
        number, _, mark = cookie.partition(".")
        if not hmac.compare_digest(mark.encode("utf-8", "replace"), self._mark(number).encode()):
            return False  # made up. Anybody can send such a cookie, so the database is not asked about it.
        id = _hash(cookie)
        found = None
        if id not in self._kept_here:
            found = asked(lambda: self._queries.session_is_open(id, self._token, self._lifetime()))
        if found is None:
            return self._remembered.get(id, 0.0) > monotonic()
        if found:
            self._remember(id)
        else:
            self._forget(id)
        return found

    def end(self, cookie: str) -> bool:
        """End a session on every worker. False if the database did not answer, so that it has ended on this worker alone."""
        id = _hash(cookie)
        here = id in self._kept_here
        self._forget(id)
        return here or _has_run(lambda: self._queries.end_session(id))

    def _mark(self, number: str) -> str:
        return hmac.digest(self._token, number.encode("utf-8", "replace"), "sha256").hex()[:16]

    def _remember(self, id: bytes) -> None:
        self._remembered.setdefault(id, monotonic() + self._lifetime())
        while len(self._remembered) > REMEMBERED:
            self._forget(next(iter(self._remembered)))

    def _forget(self, id: bytes) -> None:
        self._remembered.pop(id, None)
        self._kept_here.discard(id)


def _hash(cookie: str) -> bytes:
    return sha256(cookie.encode("utf-8", "replace")).digest()
