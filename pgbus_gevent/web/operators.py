"""Who may see the console: whoever has the operator token, and nobody else, wherever a request seems to come from.

A browser gives the token once, and has a session from then on; anything else sends it as a Bearer. Where no token is configured,
``serve`` makes one, and logs a URL with it.
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
from .responses import Answer, Environ, Refused, text
from .sessions import Sessions

__all__ = ["COOKIE", "MADE_TOKEN", "SESSION", "Operators", "make_token"]

COOKIE = "pgbus_console"

SESSION = 12 * 3600
"""Seconds for which a login is good."""

MADE_TOKEN = "_PGBUS_CONSOLE_TOKEN"
"""The variable by which ``serve`` tells its workers of the token that it made: all of them are behind one port."""

_WRONG_TOKEN_PAUSE = 0.3  # seconds


def make_token() -> str:
    """Make a token for this process and those that it starts; it goes with them."""
    token = os.environ[MADE_TOKEN] = secrets.token_urlsafe(32)
    return token


class Operators:
    """Decides by the setting ``operator_token``, or by the token that was made; another token, or secret, ends all sessions."""

    def __init__(self, settings: Settings, queries: OperatorQueries, clock: Callable[[], float] = monotonic) -> None:
        self._configured = settings.operator_token is not None
        token = settings.operator_token or os.environ.get(MADE_TOKEN) or None
        key = (settings.secret[-1] if settings.secret else "").encode()
        fingerprint = hmac.digest(key or b"-", (token or "").encode(), "sha256")
        # The lifetime is looked up each time, for tests of what comes after it.
        self._sessions = Sessions(queries, fingerprint, lambda: SESSION)
        self._door = None if token is None else Door("operator", token, settings.secret, queries, clock)

    @property
    def has_token(self) -> bool:
        """Whether there is any that lets in."""
        return self._door is not None

    def check(self, environ: Environ) -> None:
        """Let an operator pass. Raises Refused: 401 without the token, 403 where there is none, 429 after too many wrong ones."""
        given = requests.bearer(environ)
        if given is not None or not self.holds(requests.cookie(environ, COOKIE)):
            self._expected().check(environ, given)

    def check_post(self, environ: Environ) -> None:
        """Let what an operator does pass, and nothing that another site's page has their browser do. Raises Refused."""
        if requests.bearer(environ) is None:
            _check_origin(environ)
        self.check(environ)

    def check_metrics(self, environ: Environ) -> None:
        """Metrics tell numbers alone: they are for everybody, unless a token was configured."""
        if self._configured:
            self.check(environ)

    def holds(self, cookie: str | None) -> bool:
        """Whether a cookie is that of a session. Raises Refused where there is no token."""
        self._expected()
        return cookie is not None and self._sessions.is_open(cookie)

    def _expected(self) -> Door:
        if self._door is None:
            raise Refused(text(403, "the console needs an operator token: set PGBUS_OPERATOR_TOKEN"))
        return self._door

    # logging in

    def login(self, environ: Environ, body: str) -> Answer:
        """The answer to the form: back to the console, with a session or without."""
        _check_origin(environ)
        try:
            self._expected().check(environ, requests.parse_form(body).get("token", ""))
        except Refused as refused:
            if refused.answer.status != 401:
                raise
            gevent.sleep(_WRONG_TOKEN_PAUSE)
            return _to("../console?wrong")
        return self._welcome(environ, "../console")

    def follow_link(self, environ: Environ, token: str) -> Answer:
        """The answer to the URL that ``serve`` logs: the console without the token in its address, with a session.

        A configured token is not taken so: it is for longer than the history of a browser should know it.
        """
        self._expected().check(environ, None if self._configured else token)
        return self._welcome(environ, "console")

    def _welcome(self, environ: Environ, location: str) -> Answer:
        return _to(location, _cookie(environ, self._sessions.open(), SESSION))

    def logout(self, environ: Environ) -> Answer:
        """End the session, on every worker, and forget the cookie."""
        _check_origin(environ)
        given = requests.cookie(environ, COOKIE)
        if given is not None and not self._sessions.end(given):
            raise Refused(text(503, "the database does not answer: the session has ended at this worker alone"))
        return _to("../console", _cookie(environ, "", 0))


def _to(location: str, *headers: tuple[str, str]) -> Answer:
    return Answer(
        303, b"", [("location", location), ("cache-control", "no-store"), ("referrer-policy", "no-referrer"), *headers]
    )


def _cookie(environ: Environ, value: str, age: int) -> tuple[str, str]:
    # Without a Path: it is then that of the console, wherever this is mounted.
    secure = "; Secure" if _is_behind_tls(environ) else ""
    return "set-cookie", f"{COOKIE}={value}; Max-Age={age}; HttpOnly; SameSite=Strict{secure}"


def _is_behind_tls(environ: Environ) -> bool:
    """Whether the browser came by https. Its own Origin says so, whatever a proxy tells or does not; what a proxy tells can only
    add to that."""
    told = (environ.get("wsgi.url_scheme"), environ.get("HTTP_ORIGIN"), environ.get("HTTP_X_FORWARDED_PROTO"))
    by_proxy = str(environ.get("HTTP_FORWARDED", "")).lower().replace('"', "")  # RFC 7239
    return "proto=https" in by_proxy or any(str(scheme).lower().startswith("https") for scheme in told)


def _check_origin(environ: Environ) -> None:
    """Refuse what a page of another origin has the browser send. What is no browser says neither, and is let through."""
    site, origin = environ.get("HTTP_SEC_FETCH_SITE"), environ.get("HTTP_ORIGIN")
    if site is not None:
        foreign = site not in ("same-origin", "none")
    else:
        foreign = origin is not None and str(origin).partition("://")[2] != environ.get("HTTP_HOST")
    if foreign:
        raise Refused(text(403, "a page of another site may not do that"))
