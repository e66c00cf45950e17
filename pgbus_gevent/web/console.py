"""The operators' console, as a Bottle application: its page, its files, its forms and its tables.

StreamApp calls it for ``/console`` and the paths below. Which parts are Bottle's and which are ours, and why, is in
docs/decisions/0025-console-on-bottle.md.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import bottle

from ..core import sse
from ..core.names import check_name
from ..errors import InvalidArgument
from ..streamer.instance import Instance
from . import requests
from .feed import Feed, frame
from .operator_messages import OperatorMessages, parse_fields
from .operators import COOKIE, SESSION, Operators, is_behind_tls
from .representations import file_answer
from .responses import Answer, Environ, Headers, Refused, StartResponse, json_answer, send, stream_headers, text
from .tables import CONNECTION_COLUMNS, STREAM_COLUMNS, Tables, Wanted

logger = logging.getLogger("pgbus_gevent.console")

_MAX_FORM = 4096
_STATIC = Path(__file__).with_name("static")

_POLICY: Headers = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
        " form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
]
MAX_PUBLISHED = 128 * 1024
"""The most bytes of a request to publish. Pages and programs that publish more have other ways."""

_MODULES = (
    "charts", "feed", "messages", "plot", "publish", "rows", "series", "table", "tables", "words", "workers",
)  # fmt: skip
_FILES = {
    **dict.fromkeys(
        ("console.js", "login.js", *(f"console-{part}.js" for part in _MODULES)), "text/javascript; charset=utf-8"
    ),
    "console.css": "text/css; charset=utf-8",
}
_READ = ("GET", "HEAD")

View = Callable[[Environ], bottle.HTTPResponse]


class Console:
    """The console of one worker; a WSGI application, to which PATH_INFO is the path below the prefix of the streams."""

    def __init__(self, instance: Instance, operators: Operators, feed: Feed) -> None:
        self._instance = instance
        self._operators = operators
        self._feed = feed
        self._tables = Tables(instance.board, filters=instance.filters)
        self._messages = OperatorMessages(instance)
        app = self.app = bottle.Bottle()
        # The server logs an exception, as it does for the rest of StreamApp; Bottle would answer with a page of its own.
        app.config["catchall"] = False
        app.install(_hand_environ)
        app.error(404, _not_found)
        app.error(405, _method_not_allowed)
        app.route("/console", _READ, self._show_page)
        app.route("/console/", _READ, _leave_out_slash)
        for name, kind in _FILES.items():
            app.route(f"/console/{name}", _READ, partial(_show_file, name, kind))
        app.route("/console/feed", _READ, self._show_feed)
        app.route("/console/streams", _READ, self._show_streams)
        app.route("/console/connections", _READ, self._show_connections)
        app.route("/console/retained", _READ, self._show_retained)
        app.route("/console/messages", _READ, self._show_messages)
        app.post("/console/kick", callback=self._kick)
        app.post("/console/publish", callback=self._publish)
        app.post("/console/login", callback=self._log_in)
        app.post("/console/logout", callback=self._log_out)

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        if not environ["PATH_INFO"].isascii():
            # Bottle drops the bytes of a path that are not UTF-8, and would show the page at /console/%FF.
            return send(text(404, "not found"), environ, start_response, [])
        # The application around this one may be in Bottle too. When this call returns, it still needs ``bottle.request``: its
        # mount moves the path back, and its hooks look at the request.
        around = _current_request()
        try:
            return self.app(environ, start_response)  # type: ignore[no-any-return]  # bottle has no types
        finally:
            bottle.request.bind(around)

    # the page and its forms

    def _show_page(self, environ: Environ) -> bottle.HTTPResponse:
        token = requests.single(requests.parse_query(environ), "token")
        try:
            if token is not None:
                return _welcome(environ, "console", self._operators.follow_link(environ, token))
            self._operators.check(environ)
        except Refused as refused:
            if refused.answer.status != 401 or "text/html" not in str(environ.get("HTTP_ACCEPT", "")):
                raise
            return _page(environ, "console-login.html", 401)
        return _page(environ, "console.html", 200)

    def _log_in(self, environ: Environ) -> bottle.HTTPResponse:
        session = self._operators.log_in(environ, self._form(environ).get("token", ""))
        return _redirect("../console?wrong") if session is None else _welcome(environ, "../console", session)

    def _log_out(self, environ: Environ) -> bottle.HTTPResponse:
        self._operators.log_out(environ)
        return _with_cookie(_redirect("../console"), environ, "", 0)

    def _kick(self, environ: Environ) -> bottle.HTTPResponse:
        self._operators.check_post(environ)
        form = self._form(environ)
        self._expect(form.get("worker", ""), environ)
        client = self._instance.registry.client(form.get("connection", ""))
        if client is None:
            raise Refused(text(404, "this worker has no such connection: it has ended, or belongs to another worker"))
        self._instance.clients.end(client, "revoked")
        logger.info("an operator has ended connection %s", client.id)
        return _response(json_answer(200, {"ended": client.id}))

    def _publish(self, environ: Environ) -> bottle.HTTPResponse:
        self._operators.check_post(environ)
        fields = parse_fields(environ, self._body(environ, MAX_PUBLISHED))
        return _response(self._messages.publish(fields))

    def _form(self, environ: Environ) -> dict[str, str]:
        return requests.parse_form(self._body(environ, _MAX_FORM))

    def _body(self, environ: Environ, limit: int) -> str:
        # ``bottle.request.forms`` would wait for a slow body without a deadline.
        return requests.read_body(environ, limit=limit, timeout=self._instance.settings.request_timeout)

    # data for the page

    def _show_feed(self, environ: Environ) -> bottle.HTTPResponse:
        self._operators.check(environ)
        asked = requests.single(requests.parse_query(environ), "worker")
        frames: Iterable[bytes]
        if self._instance.draining or self._feed.is_full:
            frames = [sse.retry(5.0) + b"\n"]
        elif asked and asked != self._instance.roll_call.id:
            # All workers share a port, so the page asks again until it reaches the worker that it wants.
            frames = [frame("elsewhere", {"worker": self._instance.roll_call.id})]
        else:
            # Bottle takes the first frame before it sends the headers. That does not yield, so ``is_full`` still holds.
            cookie = requests.cookie(environ, COOKIE) if requests.bearer(environ) is None else None
            frames = self._feed.frames(cookie)
        return bottle.HTTPResponse(frames, 200, stream_headers(environ))

    def _show_streams(self, environ: Environ) -> bottle.HTTPResponse:
        query = self._query(environ)
        return self._table(self._tables.streams(_wanted(query, STREAM_COLUMNS)))

    def _show_connections(self, environ: Environ) -> bottle.HTTPResponse:
        query = self._query(environ)
        stream = requests.single(query, "stream")
        return self._table(self._tables.connections(_wanted(query, CONNECTION_COLUMNS), stream))

    def _table(self, found: dict[str, Any]) -> bottle.HTTPResponse:
        return _response(json_answer(200, {"worker": self._instance.roll_call.id, **found}, *_POLICY))

    def _show_retained(self, environ: Environ) -> bottle.HTTPResponse:
        return _response(self._messages.retained(self._stream_of(environ)))

    def _show_messages(self, environ: Environ) -> bottle.HTTPResponse:
        return _response(self._messages.latest(self._stream_of(environ)))

    def _stream_of(self, environ: Environ) -> str:
        """The stream that an operator's query names."""
        stream = requests.single(self._query(environ), "stream")
        if not stream:
            raise Refused(text(400, "name a stream: ?stream=…"))
        try:
            return check_name(stream)
        except InvalidArgument as error:
            raise Refused(text(400, str(error))) from None

    def _query(self, environ: Environ) -> requests.Query:
        """The query of an operator's request to this worker."""
        self._operators.check(environ)
        query = requests.parse_query(environ)
        self._expect(requests.single(query, "worker"), environ)
        return query

    def _expect(self, worker: str | None, environ: Environ) -> None:
        if worker and worker != self._instance.roll_call.id:
            own = str(environ.get("SERVER_SOFTWARE", "")).startswith("gevent/")
            # RFC 9110, section 15.5.20: the client may try again on another connection.
            raise Refused(text(421, "this is another worker", *([("connection", "close")] if own else [])))


def _hand_environ(view: View) -> Callable[[], bottle.HTTPResponse]:
    """Give each view the environ of its request, and turn Refused into a response. A plugin of the application.

    All greenlets share ``bottle.request`` and ``bottle.response`` if bottle was imported before gevent patched the process. While a
    view waits for a body or the database, the greenlets of other requests run, and their requests replace both. So
    ``bottle.request`` is read here, before anything has waited, and each view returns an HTTPResponse of its own. Bottle copies it
    to ``bottle.response`` and passes it to ``start_response`` without a wait in between.
    """

    def call() -> bottle.HTTPResponse:
        environ = bottle.request.environ
        try:
            return view(environ)
        except Refused as refused:
            return _response(refused.answer)

    return call


def _current_request() -> dict[str, Any]:
    try:
        return bottle.request.environ  # type: ignore[no-any-return]  # bottle has no types
    except RuntimeError:
        return {}  # this greenlet had no request of Bottle before


def _not_found(error: bottle.HTTPError) -> bottle.HTTPResponse:
    return _response(text(404, "not found"))


def _method_not_allowed(error: bottle.HTTPError) -> bottle.HTTPResponse:
    allowed = error["Allow"].replace(",", ", ")  # as in the other answers of this kind
    return _response(text(405, f"this address takes {allowed}", ("allow", allowed)))


def _response(answer: Answer) -> bottle.HTTPResponse:
    return bottle.HTTPResponse(answer.body, answer.status, answer.headers)


def _redirect(location: str) -> bottle.HTTPResponse:
    """A redirect with a relative location, as a browser sees another path, and perhaps another host, than this process."""
    headers = [("location", location), ("cache-control", "no-store"), ("referrer-policy", "no-referrer")]
    return bottle.HTTPResponse(b"", 303, headers)


def _leave_out_slash(environ: Environ) -> bottle.HTTPResponse:
    return bottle.HTTPResponse(b"", 308, [("location", "../console")])


def _welcome(environ: Environ, location: str, session: str) -> bottle.HTTPResponse:
    return _with_cookie(_redirect(location), environ, session, SESSION)


def _with_cookie(response: bottle.HTTPResponse, environ: Environ, value: str, age: int) -> bottle.HTTPResponse:
    # Without a path the cookie gets that of the console, wherever this is mounted.
    response.set_cookie(COOKIE, value, max_age=age, httponly=True, samesite="strict", secure=is_behind_tls(environ))
    return response


def _page(environ: Environ, name: str, status: int) -> bottle.HTTPResponse:
    # Both pages are the same for everybody. What an operator sees there comes as data, which is not compressed.
    headers = [("content-type", "text/html; charset=utf-8"), ("cache-control", "no-store"), *_POLICY]
    return _response(file_answer(environ, _STATIC / name, headers, status))


def _show_file(name: str, kind: str, environ: Environ) -> bottle.HTTPResponse:
    return _response(
        file_answer(environ, _STATIC / name, [("content-type", kind), ("cache-control", "no-cache"), *_POLICY])
    )


def _wanted(query: requests.Query, columns: tuple[str, ...]) -> Wanted:
    sort = requests.single(query, "sort") or columns[0]
    page = requests.single(query, "page") or "0"
    if sort not in columns:
        raise Refused(text(400, f"sort is one of {', '.join(columns)}"))
    if not (page.isascii() and page.isdigit() and len(page) < 10):
        raise Refused(text(400, "page is a number from 0"))
    down = requests.single(query, "order") == "down"
    return Wanted(sort, down, requests.single(query, "text") or "", int(page))
