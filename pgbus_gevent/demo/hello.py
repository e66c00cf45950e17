"""What visitors publish to ``demo:hello``: by the form on the board, or over HTTP with the demo's own token.

The token is for programs such as curl. Everybody who sees the page sees the token, so it allows no more than the form: a short
text, to this one stream, at a bounded pace. It is not the setting ``publish_token``, and opens no other stream.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import bottle

from ..core.names import check_data
from ..web import requests, responses
from . import pages
from .local import WSGIApp
from .rates import Rates

if TYPE_CHECKING:
    from pgbus_gevent import Bus

STREAM = "demo:hello"
"""The stream for visitors: its messages appear on the board."""
MAX_TEXT = 280
"""The most characters of a text."""

_PATH = "/demo/publish"
_PUBLISH = "select pgbus.broadcast(%s, %s)"
_NEEDS_TOKEN = responses.text(
    403,
    f"over HTTP, the demo takes messages for {STREAM} alone, and needs the demo's token: the page at / shows it, in the command for"
    " curl. To publish to other streams, set PGBUS_PUBLISH_TOKEN",
)


def token_of(secret: str) -> str:
    """Return the demo's token. It follows from the secret of the server, so all workers have the same one, also after a restart."""
    digest = hmac.digest(secret.encode(), b"the publish token of the demo", "sha256")
    return f"demo-{base64.urlsafe_b64encode(digest[:18]).decode()}"


def admit(rates: Rates, what: str = "messages") -> None:
    """Count the message, or what else ``rates`` counts, of the present request. Raises the HTTP response if there are too many."""
    if not rates.admit(str(bottle.request.environ.get("REMOTE_ADDR") or "")):
        refused = pages.refusal(429, f"too fast: at most {rates.each.per_second:g} {what} a second, from one address")
        refused.set_header("Retry-After", "1")
        raise refused


class Hello:
    """The two ways to publish. ``secrets`` are those of the server: the token of each is valid, and that of the last is shown."""

    def __init__(self, bus: Bus, rates: Rates, secrets: Sequence[str]) -> None:
        self._bus = bus
        self._rates = rates
        self._has_other_tokens = bool(bus.settings.publish_token)
        self._tokens = [token_of(secret) for secret in secrets]
        self.over_http = False
        """Whether the token is of use: the application was passed to :meth:`publishing`."""

    @property
    def token(self) -> str | None:
        """The token to show on the page, if there is one and it is of use."""
        return self._tokens[-1] if self._tokens and self.over_http else None

    def add(self, app: bottle.Bottle) -> None:
        """Add the routes to an application."""
        app.post("/demo/hello")(self.publish_form)
        app.post(_PATH)(self.publish_body)

    def publishing(self, app: WSGIApp, demo: WSGIApp, prefix: str) -> WSGIApp:
        """Return ``app`` with the address at which the server takes messages to this stream, for those who have the demo's token.

        ``demo`` is the application of :meth:`add`. Requests without that token go to ``app``, which asks for a publish token. If
        the server has none, they are refused here, and told where the demo's token is shown.
        """
        streams = f"{prefix}/streams/"
        self.over_http = True

        def with_token(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            path = str(environ.get("PATH_INFO", ""))
            if environ.get("REQUEST_METHOD") != "POST" or not path.startswith(streams):
                return app(environ, start_response)
            if path == streams + STREAM and self._holds_token(environ):
                return demo({**environ, "PATH_INFO": _PATH}, start_response)
            if self._tokens and not self._has_other_tokens:
                return responses.send(_NEEDS_TOKEN, environ, start_response, [])
            return app(environ, start_response)

        return with_token

    def publish_form(self) -> bottle.HTTPResponse:
        """Publish the text that the form has posted."""
        text = pages.posted().get("text")
        if not isinstance(text, str):
            raise pages.refusal(400, "there is no text")
        return self._publish(text)

    def publish_body(self) -> bottle.HTTPResponse:
        """Publish the body of the request. The options of other broadcasts over HTTP are not for this token."""
        if not self._holds_token(bottle.request.environ):
            raise pages.refusal(401, "the demo's token is missing or wrong")
        if bottle.request.query_string:
            raise pages.refusal(400, "the demo's token is for plain texts, without a query")
        return self._publish(pages.posted_text())

    def _publish(self, text: str) -> bottle.HTTPResponse:
        if not 0 < len(text.strip()) <= MAX_TEXT:
            raise pages.refusal(400, f"the text must have 1 to {MAX_TEXT} characters")
        admit(self._rates)
        with pages.publishing(self._bus) as database_cursor:
            database_cursor.execute(_PUBLISH, (STREAM, check_data(text.strip())))
            (id,) = database_cursor.fetchone()
        return pages.json_answer({"id": id}, 201)

    def _holds_token(self, environ: dict[str, Any]) -> bool:
        given = requests.bearer(environ)
        return given is not None and any(requests.same(given.strip(), token) for token in self._tokens)
