"""The WSGI application that serves streams, broadcasts, health, metrics and the console."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from time import monotonic

from ..core import events, sse
from ..core.client import ANYBODY, Place, StreamRequest, Subscriber
from ..core.identity import Identities
from ..core.names import PublicNames, Signer, check_data
from ..core.traces import sampled
from ..database.statements import Publication
from ..errors import DatabaseError, DatabaseUnavailable, InvalidArgument, PoolTimeout
from ..publishing.observed import Observer
from ..streamer.instance import Instance
from ..streamer.limits import refusal_retry
from ..streamer.starting import Starter
from . import requests
from .backstage import backstage_of
from .edges import WakeBody, wake_headers
from .element import element, source_map
from .hooks import Authorize, Hook
from .received import Received
from .responses import (
    POLL_HEADERS,
    Answer,
    Environ,
    Headers,
    Refused,
    StartResponse,
    accepts_stream,
    json_answer,
    polled,
    preflight_headers,
    send,
    status_line,
    stream_headers,
    text,
)
from .returners import Returners
from .take_over import TAKE_OVER, Offer, take_socket

__all__ = ["Authorize", "StreamApp"]

logger = logging.getLogger("pgbus_gevent.web")

Found = Answer | StreamRequest | WakeBody
View = Callable[[Environ], Found]

IDENTITY = "pgbus-identity"
"""The response header with the identity that a client would follow the stream as."""

_READ = ("GET", "HEAD")
_START_WAIT = 1.0  # seconds that a request waits for the first start of the instance, if it is not for a stream


class StreamApp:
    """Serves the streams of ``instance`` under its prefix, and answers 404 elsewhere. Mount it at the root or at the prefix.

    ``authorize(environ, stream)`` is called when the name of the stream is verified. True or a :class:`Subscriber` lets the client
    in, False refuses it. If the hook raises, returns anything else, or takes longer than ``request_timeout``, the client is refused
    too, with a log line. The first request starts the instance if nothing has started it before.
    """

    def __init__(self, instance: Instance, authorize: Authorize | None = None) -> None:
        settings = instance.settings
        self.instance = instance
        instance.stream_apps.add(self)
        self.prefix = settings.prefix
        self._hook = None if authorize is None else Hook(authorize, settings.request_timeout)
        self._settings = settings
        self._starter = Starter(instance.start, patience=settings.away_after)
        self._identities = Identities(settings.secret)
        self._names = requests.StreamNames(Signer(settings.secret), PublicNames(settings.public))
        self._returners = Returners()
        self._observer = Observer(instance.events)
        self._received = Received(lambda: instance.draining)
        self._backstage = backstage_of(instance)
        self._publishers = self._backstage.publishers
        self._routes: dict[str, tuple[tuple[str, ...], View]] = {
            "/healthz": (_READ, self._health),
            "/readyz": (_READ, self._readiness),
            "/streams": (_READ, self._subscribe_by_query),
            "/pgbus.js": (_READ, element),
            "/pgbus.js.map": (_READ, source_map),
            **self._backstage.routes,
        }

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        asked_at = monotonic()
        self._start(environ)
        extra = self._cors(environ)
        path = requests.path_below(environ, self.prefix)
        if path is None:
            return send(text(404, "not found"), environ, start_response, extra)
        if f"{path}/".startswith("/console/"):
            return self._backstage.console({**environ, "PATH_INFO": path}, start_response)
        try:
            found = self._route(path, environ)
        except Refused as refused:
            found = refused.answer
        if isinstance(found, StreamRequest):
            return self._stream(found._replace(asked_at=asked_at), environ, start_response, extra)
        if isinstance(found, WakeBody):
            start_response(status_line(200), wake_headers(stream_headers(environ)))
            return found
        return send(found, environ, start_response, extra)

    def _start(self, environ: Environ) -> None:
        """Start the instance with the first request. In a forked worker, that is after the fork.

        A request for a stream waits for the start as long as for a database that is away. The health check does not wait.
        """
        if self._is_started():
            return
        self._starter.begin()
        path = requests.path_below(environ, self.prefix) or ""
        if path != "/healthz":
            self._starter.wait(self._settings.away_after if path.startswith("/streams") else _START_WAIT)

    def _is_started(self) -> bool:
        return self.instance.draining or any(task.running or task.failed for task in self.instance.tasks.values())

    def serves(self, path: str) -> bool:
        """Whether a PATH_INFO lies under the prefix."""
        return path == self.prefix or path.startswith(f"{self.prefix}/")

    def subscriber(self, environ: Environ, stream: str) -> Subscriber | None:
        """The subscriber that a page of the application would follow ``stream`` as; None if the hook refuses."""
        if self._hook is None:
            return ANYBODY
        try:
            return self._hook.subscriber(environ, Place(stream))
        except Refused:
            return None

    # routes

    def _route(self, path: str, environ: Environ) -> Found:
        methods, view = self._routes.get(path) or self._named_stream(path)
        if environ["REQUEST_METHOD"] == "OPTIONS" and self._is_from_configured_origin(environ):
            return Answer(204, b"", [("allow", ", ".join([*methods, "OPTIONS"])), ("cache-control", "no-store")])
        if environ["REQUEST_METHOD"] not in methods:
            allowed = ", ".join(methods)
            return text(405, f"this address takes {allowed}", ("allow", allowed))
        return view(environ)

    def _named_stream(self, path: str) -> tuple[tuple[str, ...], View]:
        if not path.startswith("/streams/"):
            raise Refused(text(404, "not found"))
        return (*_READ, "POST"), partial(self._stream_view, path.removeprefix("/streams/"))

    def _health(self, environ: Environ) -> Answer:
        parts = {task.name: "running" if task.running else "stopped" for task in self.instance.tasks.values()}
        status = "ok" if self.instance.alive else "failed" if self._is_started() else "starting"
        return json_answer(503 if status == "failed" else 200, {"status": status, "parts": parts})

    def _readiness(self, environ: Environ) -> Answer:
        reason, detail = self.instance.unready, self.instance.pulse.trouble
        state = {"status": "ready"} if reason is None else {"status": "unready", "reason": reason}
        if reason == "unavailable" and detail:
            state["detail"] = detail
        if self.instance.listener.deaf:
            state["listen"] = self.instance.listener.deaf
        if self._settings.upstream is None:
            state["steward"] = self.instance.steward.state
        if (watch := self.instance.standby_watch) is not None:
            # The fault may quote PostgreSQL, and everybody sees this; the log has it.
            state["standby"] = "not used; the log says why" if watch.fault else "used"
        if (redis := self.instance.redis) is not None:
            state["redis"] = "used" if redis.wakes.on_redis else "not used, PostgreSQL is; the log says why"
        return json_answer(200 if reason is None else 503, state)

    def _stream_view(self, raw_name: str, environ: Environ) -> Found:
        if environ["REQUEST_METHOD"] == "POST":
            self._check_publisher(environ)
            return self._broadcast(environ, requests.text_of(raw_name, "path"))
        wish = requests.Wish(requests.text_of(raw_name, "path"), requests.parse_query(environ))
        return self._subscribe(environ, [wish])

    # publishing

    def _check_publisher(self, environ: Environ) -> None:
        if self._settings.upstream is not None:
            raise Refused(text(403, "this server is an edge, which only delivers: broadcast at its origin"))
        if self._publishers is None:
            raise Refused(text(403, "broadcasting over HTTP is off: set PGBUS_PUBLISH_TOKEN to turn it on"))
        self._publishers.check(environ, requests.bearer(environ))

    def _broadcast(self, environ: Environ, written: str) -> Answer:
        stream, _ = self._names.resolve(written)
        publication, ephemeral = requests.publication(requests.parse_query(environ))
        body = requests.read_body(environ, limit=self._settings.max_body, timeout=self._settings.request_timeout)
        try:
            trace = sampled(environ.get("HTTP_TRACEPARENT"))
            return json_answer(201, {"id": self._publish(stream, check_data(body), publication, ephemeral, trace)})
        except InvalidArgument as error:
            return text(400, str(error))
        except (DatabaseUnavailable, PoolTimeout) as error:
            logger.warning("broadcast over HTTP failed: %s", error)
            return text(503, "the database is not available now", ("retry-after", "5"))
        except DatabaseError as error:
            logger.error("broadcast over HTTP failed: %s", error)
            return text(500, "the database refused the broadcast; the server's log says why")

    def _publish(
        self, stream: str, data: str, publication: Publication, ephemeral: bool, trace: str | None
    ) -> int | None:
        queries = self.instance.database.queries
        with self._observer.broadcast(stream):
            if ephemeral:
                queries.broadcast_ephemeral(stream, data, publication)
                return None
            return queries.broadcast(stream, data, publication, trace)

    # streams

    def _subscribe_by_query(self, environ: Environ) -> Found:
        return self._subscribe(environ, requests.wishes(requests.parse_query(environ)))

    def _subscribe(self, environ: Environ, wanted: list[requests.Wish]) -> Found:
        request = requests.stream_request(environ, wanted, self._names)
        if self._hook is not None:
            request = self._hook.authorized(environ, request, recheck=bool(self._settings.recheck))
        received = requests.single([field for wish in wanted for field in wish.fields], "received")
        if received is not None:
            return self._received.answer(environ, received)
        refusal = self._refusal(request)
        if refusal is not None and environ["REQUEST_METHOD"] == "GET" and accepts_stream(environ):
            self._returners.hold(requests.client_number(environ), lambda: self._refusal(request) in (None, "restart"))
            refusal = self._refusal(request)
        if refusal is None:
            return self._framed(request) if request.poll is not None and accepts_stream(environ) else request
        self.instance.events.emit(events.Refused(refusal))
        return _refuse(environ, refusal, self._identity(environ, request))

    def _framed(self, request: StreamRequest) -> StreamRequest:
        """A poll for which a client of streams is answered with frames, and before it misses heartbeats."""
        return request._replace(framed=True, poll=min(request.poll or 0, 2 * self._settings.heartbeat))

    def _refusal(self, request: StreamRequest) -> str | None:
        return self.instance.clients.refusal(request.owner, request.address)

    def _identity(self, environ: Environ, request: StreamRequest) -> Headers:
        """The identity that ``pgbus:connected`` would have, if a HEAD with ``?identity`` asks for it."""
        if environ["REQUEST_METHOD"] != "HEAD" or not any(
            key == "identity" for key, _ in requests.parse_query(environ)
        ):
            return []
        identity = self._identities.of(*(place.subscriber for place in request.places))
        return [] if identity is None else [(IDENTITY, identity)]

    def _stream(
        self, request: StreamRequest, environ: Environ, start_response: StartResponse, extra: Headers
    ) -> Iterable[bytes]:
        polls = request.poll is not None
        kind = POLL_HEADERS if polls and not request.framed else stream_headers(environ)
        headers = [*kind, *self._identity(environ, request), *extra]
        if environ["REQUEST_METHOD"] == "HEAD":
            start_response(status_line(200), headers)
            return []
        clients = self.instance.clients
        offer: Offer | None = environ.get(TAKE_OVER)
        if offer is not None:
            start_response(status_line(200), headers)
            offer.give_socket(clients, request)
            return []
        taken = take_socket(environ, start_response, headers, whole=polls)
        if taken is not None:
            clients.take_over(request, *taken)
            return []
        if polls:
            return send(polled(clients.poll(request).wait(), kind), environ, start_response, extra)
        start_response(status_line(200), headers)
        return clients.body(request)

    def _cors(self, environ: Environ) -> Headers:
        """The CORS headers for a configured origin. Errors have them too, because the page could not read the error otherwise."""
        if not self._settings.cors_origins or self._is_for_operators(environ):
            return []
        headers = [("vary", "origin")]
        if self._is_from_configured_origin(environ):
            headers += [
                ("access-control-allow-origin", str(environ["HTTP_ORIGIN"])),
                ("access-control-allow-credentials", "true"),
                *(preflight_headers(environ) if environ["REQUEST_METHOD"] == "OPTIONS" else ()),
                *((("access-control-expose-headers", IDENTITY),) if environ["REQUEST_METHOD"] == "HEAD" else ()),
            ]
        return headers

    def _is_from_configured_origin(self, environ: Environ) -> bool:
        return environ.get("HTTP_ORIGIN") in self._settings.cors_origins

    def _is_for_operators(self, environ: Environ) -> bool:
        """Whether the path is for operators. Pages of other origins get no access there, even if they may read streams."""
        path = requests.path_below(environ, self.prefix) or ""
        return path.startswith(("/console", "/metrics"))


def _refuse(environ: Environ, reason: str, identity: Headers) -> Answer:
    """Refuse for a passing reason. The status is 200 for an EventSource, because it reconnects after no other status."""
    retry = refusal_retry()
    if accepts_stream(environ):
        return Answer(200, sse.shutdown(reason, retry), [*stream_headers(environ), *identity])
    status = 429 if reason == "too-many-connections" else 503
    return text(status, f"not now: {reason}", ("retry-after", str(round(retry))), *identity)
