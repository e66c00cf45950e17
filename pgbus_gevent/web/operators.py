"""Who may see the console: those with the operator token, and those who sit at the machine where it is for this machine alone.

A browser gives the token once, and has a signed cookie from then on; anything else sends it as a Bearer.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from ipaddress import ip_address
from time import monotonic

import gevent
from itsdangerous import BadSignature, TimestampSigner

from ..config import Settings
from . import requests
from .responses import Answer, Environ, Refused, text

COOKIE = "pgbus_console"

SESSION = 12 * 3600
"""Seconds for which a login is good."""

TRIES = 10
"""Wrong tokens that are looked at within a minute, from everybody together."""

_FORWARDED = (
    "HTTP_FORWARDED", "HTTP_VIA", "HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_HOST", "HTTP_X_FORWARDED_PROTO", "HTTP_X_REAL_IP",
)  # fmt: skip
_WRONG_TOKEN_PAUSE = 0.3  # seconds


class Operators:
    """Decides from the settings ``operator_token``, ``host`` and ``secret``."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = monotonic) -> None:
        self._token = settings.operator_token
        self._bound_to_loopback = _is_loopback(settings.host)
        # Another token, or another secret, and all logins end.
        key = "\n".join([self._token or "", *settings.secret[-1:]])
        self._signer = TimestampSigner(key, salt="pgbus-console", digest_method=sha256) if self._token else None
        self._clock = clock
        self._failures: list[float] = []

    def check(self, environ: Environ) -> None:
        """Let an operator pass. Raises Refused: 401 without the token, 403 where no token would help."""
        if self.is_local(environ):
            return
        if self._token is None:
            raise Refused(
                text(403, "the console is for this machine alone: set PGBUS_OPERATOR_TOKEN to open it to its bearer")
            )
        if not (requests.bears(environ, self._token) or self._has_cookie(environ)):
            raise Refused(text(401, "the operator token is missing or wrong", ("www-authenticate", "Bearer")))

    def check_post(self, environ: Environ) -> None:
        """Let what an operator does pass, and nothing that another site's page has their browser do. Raises Refused."""
        if self._token is None or not requests.bears(environ, self._token):
            _check_origin(environ)
        self.check(environ)

    def check_metrics(self, environ: Environ) -> None:
        """Metrics tell numbers alone: only where there is a token, and who asks is not at this machine, it is needed."""
        if self._token is not None:
            self.check(environ)

    def is_local(self, environ: Environ) -> bool:
        """Whether the request is from this machine, to a server that is for this machine, and not through a proxy.

        The Host is looked at too: a site may have its own name resolve to this machine, and then its pages could read here. Older
        nginx, which by itself adds no header that would tell of it, speaks HTTP/1.0.
        """
        return (
            self._bound_to_loopback
            and _is_loopback(str(environ.get("REMOTE_ADDR") or ""))
            and _is_loopback(_host(environ))
            and environ.get("SERVER_PROTOCOL") != "HTTP/1.0"
            and not any(name in environ for name in _FORWARDED)
        )

    @property
    def has_token(self) -> bool:
        return self._token is not None

    # logging in

    def login(self, environ: Environ, body: str) -> Answer:
        """The answer to the form: back to the console, with the cookie or without."""
        _check_origin(environ)
        if self._token is None or self._signer is None:
            raise Refused(text(403, "there is no operator token: set PGBUS_OPERATOR_TOKEN"))
        now = self._clock()
        self._failures = [at for at in self._failures if now - at < 60.0]
        if len(self._failures) >= TRIES:
            raise Refused(text(429, "too many wrong tokens: wait a minute", ("retry-after", "60")))
        given = requests.parse_form(body).get("token", "")
        if not requests.same(given.strip(), self._token):
            self._failures.append(now)
            gevent.sleep(_WRONG_TOKEN_PAUSE)
            return _back("?wrong")
        return _back("", self._cookie(environ, self._signer.sign("operator").decode(), SESSION))

    def logout(self, environ: Environ) -> Answer:
        """Forget the cookie."""
        _check_origin(environ)
        return _back("", self._cookie(environ, "", 0))

    def _cookie(self, environ: Environ, value: str, age: int) -> tuple[str, str]:
        proto = str(environ.get("HTTP_X_FORWARDED_PROTO", environ.get("wsgi.url_scheme", "http")))
        secure = "; Secure" if proto.startswith("https") else ""
        # Without a Path: it is then that of the console, wherever this is mounted.
        return "set-cookie", f"{COOKIE}={value}; Max-Age={age}; HttpOnly; SameSite=Strict{secure}"

    def _has_cookie(self, environ: Environ) -> bool:
        given = requests.cookie(environ, COOKIE)
        if given is None or self._signer is None:
            return False
        try:
            return self._signer.unsign(given.encode("utf-8", "replace"), max_age=SESSION) == b"operator"
        except BadSignature:
            return False


def _back(query: str, *headers: tuple[str, str]) -> Answer:
    return Answer(303, b"", [("location", f"../console{query}"), ("cache-control", "no-store"), *headers])


def _check_origin(environ: Environ) -> None:
    """Refuse what a page of another origin has the browser send. What is no browser says neither, and is let through."""
    site, origin = environ.get("HTTP_SEC_FETCH_SITE"), environ.get("HTTP_ORIGIN")
    if site is not None:
        foreign = site not in ("same-origin", "none")
    else:
        foreign = origin is not None and str(origin).partition("://")[2] != environ.get("HTTP_HOST")
    if foreign:
        raise Refused(text(403, "a page of another site may not do that"))


def _host(environ: Environ) -> str:
    name, _, port = str(environ.get("HTTP_HOST") or "").rpartition(":")
    host = name if name and port.isdigit() else f"{name}:{port}" if name else port
    return host.removeprefix("[").removesuffix("]").lower()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
