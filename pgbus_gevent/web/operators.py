"""Decides who may see the console: everybody who has the operator token, no matter where a request seems to come from.

A browser gives the token once and has a session from then on. Other clients send it as a Bearer token. If no token is configured,
``serve`` makes one and logs a URL with it.
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Callable
from time import monotonic

import gevent

from ..database.operators import OperatorQueries
from ..settings.table import Settings
from . import requests
from .guesses import Door
from .responses import Environ, Refused, text
from .sessions import Sessions

__all__ = ["COOKIE", "MADE_TOKEN", "SESSION", "Operators", "is_behind_tls", "make_token"]

COOKIE = "pgbus_console"

SESSION = 12 * 3600
"""Seconds for which a login is valid."""

MADE_TOKEN = "_PGBUS_CONSOLE_TOKEN"  # nosec B105 # the name of a variable
"""The variable in which ``serve`` gives its workers the token that it made. They need the same one, because they share a port."""

_WRONG_TOKEN_PAUSE = 0.3  # seconds


def make_token() -> str:
    """Make a token for this process and the processes that it starts."""
    token = os.environ[MADE_TOKEN] = secrets.token_urlsafe(32)
    return token


class Operators:
    """Checks requests against the setting ``operator_token``, or against the token that ``serve`` made.

    Another token, or another secret, ends all sessions. The methods raise Refused: 401 if the token is missing or wrong, 403 if
    there is none, 429 after too many wrong ones.
    """

    def __init__(self, settings: Settings, queries: OperatorQueries, clock: Callable[[], float] = monotonic) -> None:
        self._configured = settings.operator_token is not None
        token = settings.operator_token or os.environ.get(MADE_TOKEN) or None
        key = (settings.secret[-1] if settings.secret else "").encode()
        fingerprint = hmac.digest(key or b"-", (token or "").encode(), "sha256")
        # The lifetime is looked up each time, so that tests can change it.
        self._sessions = Sessions(queries, fingerprint, lambda: SESSION)
        self._door = None if token is None else Door("operator", (token,), settings.secret, queries, clock)

    @property
    def has_token(self) -> bool:
        """Whether there is a token, configured or made."""
        return self._door is not None

    def check(self, environ: Environ) -> None:
        """Let an operator pass, by Bearer token or by session."""
        given = requests.bearer(environ)
        if given is not None or not self.holds(requests.cookie(environ, COOKIE)):
            self._expected().check(environ, given)

    def check_post(self, environ: Environ) -> None:
        """Let an operator change something, unless a page of another site makes the browser do it (403)."""
        if requests.bearer(environ) is None:
            _check_origin(environ)
        self.check(environ)

    def check_metrics(self, environ: Environ) -> None:
        """Metrics are only numbers, so everybody may read them, unless a token is configured."""
        if self._configured:
            self.check(environ)

    def holds(self, cookie: str | None) -> bool:
        """Whether a cookie belongs to an open session."""
        self._expected()
        return cookie is not None and self._sessions.is_open(cookie)

    def _expected(self) -> Door:
        if self._door is None:
            raise Refused(text(403, "the console needs an operator token: set PGBUS_OPERATOR_TOKEN"))
        return self._door

    # logging in

    def log_in(self, environ: Environ, token: str) -> str | None:
        """The cookie of a new session for the token that the form gave; None if the token is wrong."""
        _check_origin(environ)
        try:
            self._expected().check(environ, token)
        except Refused as refused:
            if refused.answer.status != 401:
                raise
            gevent.sleep(_WRONG_TOKEN_PAUSE)
            return None
        return self._sessions.open()

    def follow_link(self, environ: Environ, token: str) -> str:
        """The cookie of a new session for the token in the URL that ``serve`` logs.

        A configured token is not accepted there, because it is valid for longer than it may stay in the history of a browser.
        """
        self._expected().check(environ, None if self._configured else token)
        return self._sessions.open()

    def log_out(self, environ: Environ) -> None:
        """End the session on every worker. Raises Refused: 503 if the database does not answer."""
        _check_origin(environ)
        given = requests.cookie(environ, COOKIE)
        if given is not None and not self._sessions.end(given):
            raise Refused(text(503, "the database does not answer: the session has ended at this worker alone"))


def is_behind_tls(environ: Environ) -> bool:
    """Whether the browser uses https. Its own Origin says so even if no proxy does; the headers of a proxy can only add to that."""
    schemes = (environ.get("wsgi.url_scheme"), environ.get("HTTP_ORIGIN"), environ.get("HTTP_X_FORWARDED_PROTO"))
    by_proxy = str(environ.get("HTTP_FORWARDED", "")).lower().replace('"', "")  # RFC 7239
    return "proto=https" in by_proxy or any(str(scheme).lower().startswith("https") for scheme in schemes)


def _check_origin(environ: Environ) -> None:
    """Refuse a request that a page of another origin makes the browser send. Clients that are not browsers send neither header."""
    site, origin = environ.get("HTTP_SEC_FETCH_SITE"), environ.get("HTTP_ORIGIN")
    if site is not None:
        foreign = site not in ("same-origin", "none")
    else:
        foreign = origin is not None and str(origin).partition("://")[2] != environ.get("HTTP_HOST")
    if foreign:
        raise Refused(text(403, "a page of another site may not do that"))
