"""The product's HTTP side: a plain WSGI application."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from ..core import sse
from ..core.client import StreamRequest, Subscriber
from ..core.names import PublicNames, Signer, check_data, check_event
from ..database.queries import Publication
from ..errors import DatabaseError, DatabaseUnavailable, InvalidArgument
from ..streamer.instance import Instance, refusal_retry
from . import requests
from .responses import (
    STREAM_HEADERS,
    Answer,
    Environ,
    Headers,
    Refused,
    StartResponse,
    event_stream,
    json_answer,
    send,
    status_line,
    text,
)

logger = logging.getLogger("pgbus_gevent.web")

TAKE_OVER = "pgbus_gevent.take_over"
"""The environ key under which our server offers its socket: a function that takes what to call with the socket and the head."""

Authorize = Callable[[Environ, str], "bool | Subscriber"]


class StreamApp:
    """Serves the streams of ``instance`` under its prefix, and 404 beside it.

    ``authorize(environ, stream)`` is asked once a name was verified: False refuses, True or a :class:`Subscriber` lets in.
    A hook that raises refuses too, with a log line.
    """

    def __init__(self, instance: Instance, authorize: Authorize | None = None) -> None:
        settings = instance.settings
        self.instance = instance
        self.prefix = settings.prefix
        self._authorize = authorize
        self._settings = settings
        self._names = requests.StreamNames(Signer(settings.secret), PublicNames(settings.public))

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        extra = self._cors(environ)
        try:
            found = self._route(environ)
        except Refused as refused:
            found = refused.answer
        if isinstance(found, StreamRequest):
            return self._stream(found, environ, start_response, extra)
        return send(found, environ, start_response, extra)

    def serves(self, path: str) -> bool:
        """Whether a PATH_INFO lies under the prefix."""
        return path == self.prefix or path.startswith(self.prefix + "/")

    # routes

    def _route(self, environ: Environ) -> Answer | StreamRequest:
        path = str(environ.get("PATH_INFO", ""))
        if not self.serves(path):
            return text(404, "not found")
        path = path[len(self.prefix) :]
        if path == "/healthz":
            _allow(environ, "GET, HEAD")
            return self._health()
        if path == "/readyz":
            _allow(environ, "GET, HEAD")
            return self._readiness()
        if path == "/streams":
            _allow(environ, "GET, HEAD")
            query = requests.parse_query(environ)
            written = requests.written_streams(query)
            if len(written) > 1:
                return text(400, "too many streams: this version serves one on a connection")
            return self._subscribe(environ, written[0], query)
        if path.startswith("/streams/"):
            _allow(environ, "GET, HEAD, POST")
            written_name = requests.path_text(path[len("/streams/") :])
            query = requests.parse_query(environ)
            if environ["REQUEST_METHOD"] == "POST":
                return self._broadcast(environ, written_name, query)
            return self._subscribe(environ, written_name, query)
        return text(404, "not found")

    def _health(self) -> Answer:
        parts = {task.name: "running" if task.running else "stopped" for task in self.instance.tasks}
        alive = self.instance.alive
        return json_answer(200 if alive else 503, {"status": "ok" if alive else "failed", "parts": parts})

    def _readiness(self) -> Answer:
        reason = self.instance.unready
        if reason is None:
            return json_answer(200, {"status": "ready"})
        return json_answer(503, {"status": "unready", "reason": reason})

    def _broadcast(self, environ: Environ, written: str, query: requests.Query) -> Answer:
        token = self._settings.publish_token
        if token is None:
            return text(403, "broadcasting over HTTP is off: set PGBUS_PUBLISH_TOKEN to turn it on")
        if not requests.bears(environ, token):
            return text(401, "the publish token is missing or wrong", ("www-authenticate", "Bearer"))
        stream, _ = self._names.resolve(written)
        body = requests.read_body(environ, limit=self._settings.max_body, timeout=self._settings.request_timeout)
        fields = {name: requests.single(query, name) for name in ("event", "visible_to", "exclude", "key", "ephemeral")}
        ephemeral = fields.pop("ephemeral") in ("1", "true", "yes")
        queries = self.instance.database.queries
        try:
            publication = Publication(check_event(fields.pop("event")), **fields)
            check_data(body)
            if not ephemeral:
                return json_answer(201, {"id": queries.broadcast(stream, body, publication)})
            queries.broadcast_ephemeral(stream, body, publication)
            return json_answer(201, {"id": None})
        except InvalidArgument as error:
            return text(400, str(error))
        except DatabaseUnavailable as error:
            return text(503, str(error), ("retry-after", "5"))
        except DatabaseError as error:
            logger.error("broadcast over HTTP failed: %s", error)
            return text(500, "the database refused the broadcast; the server's log says why")

    # streams

    def _subscribe(self, environ: Environ, written: str, query: requests.Query) -> Answer | StreamRequest:
        request = requests.stream_request(environ, written, query, self._names)
        request = self._authorized(environ, request)
        refusal = self.instance.refusal
        return request if refusal is None else _refuse(environ, refusal)

    def _authorized(self, environ: Environ, request: StreamRequest) -> StreamRequest:
        if self._authorize is None:
            return request
        try:
            subscriber = self._authorize(environ, request.stream)
        except Exception:
            logger.exception("the authorize hook raised for stream %r: refused", request.stream)
            subscriber = False
        if isinstance(subscriber, Subscriber):
            times = [at for at in (request.expires_at, subscriber.expires_at) if at is not None]
            return request._replace(
                owner=subscriber.owner,
                context=subscriber.context,
                member=subscriber.member,
                expires_at=min(times, default=None),
            )
        if subscriber is not True:
            raise Refused(text(403, "you may not watch this stream"))
        return request

    def _stream(
        self, request: StreamRequest, environ: Environ, start_response: StartResponse, extra: Headers
    ) -> Iterable[bytes]:
        headers = [*STREAM_HEADERS, *extra]
        if environ["REQUEST_METHOD"] == "HEAD":
            start_response(status_line(200), headers)
            return []
        take_over = environ.get(TAKE_OVER)
        if take_over is not None:
            start_response(status_line(200), headers)
            take_over(lambda sock, head: self.instance.take_over(request, sock, head))
            return []
        if str(environ.get("SERVER_SOFTWARE", "")).startswith("gevent/"):
            headers.append(("connection", "close"))  # other servers have their own way, and may refuse ours
        body = self.instance.body(request)
        start_response(status_line(200), headers)
        return body

    def _cors(self, environ: Environ) -> Headers:
        """For configured origins only, exact, and on errors too: else the page cannot tell what is wrong."""
        if not self._settings.cors_origins:
            return []
        headers = [("vary", "origin")]
        origin = environ.get("HTTP_ORIGIN")
        if origin in self._settings.cors_origins:
            headers += [
                ("access-control-allow-origin", str(origin)),
                ("access-control-allow-credentials", "true"),
            ]
        return headers


def _allow(environ: Environ, methods: str) -> None:
    if environ["REQUEST_METHOD"] not in methods.split(", "):
        raise Refused(text(405, f"this address takes {methods}", ("allow", methods)))


def _refuse(environ: Environ, reason: str) -> Answer:
    """Refuse for a passing reason, so that an EventSource comes back by itself."""
    retry = refusal_retry()
    if "text/event-stream" in environ.get("HTTP_ACCEPT", ""):
        return event_stream(sse.shutdown(reason, retry))
    return text(503, f"not now: {reason}", ("retry-after", str(round(retry))))
