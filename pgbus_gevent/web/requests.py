"""What a request asks for, checked: streams, cursors, bodies. Whatever makes no sense raises :class:`Refused`."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from time import time
from typing import Any
from urllib.parse import parse_qsl

import gevent

from ..core.client import StreamRequest
from ..core.cursor import parse_cursor, parse_replay
from ..core.names import PublicNames, Signer, check_name
from ..errors import BadToken, InvalidArgument, InvalidCursor, TokenExpired
from .responses import Environ, Refused, text

MAX_STREAMS = 32

Query = list[tuple[str, str]]


def parse_query(environ: Environ) -> Query:
    """The query's fields, in order."""
    try:
        return parse_qsl(
            environ.get("QUERY_STRING", ""), keep_blank_values=True, errors="strict", max_num_fields=4 * MAX_STREAMS
        )
    except ValueError:
        raise Refused(text(400, "the query is not UTF-8, or has too many fields")) from None


def path_text(path: str) -> str:
    """A part of PATH_INFO as the text it is: WSGI hands the bytes over as Latin-1."""
    try:
        return path.encode("latin-1").decode("utf-8")
    except UnicodeError:
        raise Refused(text(400, "the path is not UTF-8")) from None


class StreamNames:
    """Tells which stream a client may mean by what it wrote: a signed name, or a public one as it is."""

    def __init__(self, signer: Signer, public: PublicNames, wall_clock: Callable[[], float] = time) -> None:
        self._signer = signer
        self._public = public
        self._wall_clock = wall_clock

    def resolve(self, written: str) -> tuple[str, float | None]:
        """The stream's name, and when the right to it expires."""
        expired: TokenExpired | None = None
        try:
            return self._signer.verify(written, self._wall_clock())
        except TokenExpired as error:
            expired = error
        except BadToken:
            pass
        try:
            name = check_name(written)
        except InvalidArgument as error:
            raise Refused(text(400, str(error))) from None
        if name in self._public:
            return name, None
        if expired is not None:
            raise Refused(text(403, str(expired)))
        # Nothing of the name: whoever tries names learns neither which exist nor which are well signed.
        raise Refused(text(404, "no such stream: a stream name is signed, or public by configuration"))


def stream_request(environ: Environ, written: str, query: Query, names: StreamNames) -> StreamRequest:
    """The request for one stream; not authorised yet."""
    stream, expires_at = names.resolve(written)
    since = replay = None
    invalid = False
    try:
        since_text, replay_text = single(query, "since"), single(query, "replay")
        since = None if since_text is None else parse_cursor(since_text)
        replay = None if replay_text is None else parse_replay(replay_text)
    except InvalidCursor as error:
        raise Refused(text(400, str(error))) from None
    last_event_id = environ.get("HTTP_LAST_EVENT_ID", "")
    if last_event_id:
        # It is newer than the URL, which an EventSource keeps using as it was.
        replay = None
        try:
            since = parse_cursor(last_event_id, "Last-Event-ID")
        except InvalidCursor:
            # Any status but 200 would end the EventSource for good.
            since, invalid = None, True
    return StreamRequest(
        stream,
        since=since,
        replay=None if since is not None else replay,
        invalid_cursor=invalid,
        address=str(environ.get("REMOTE_ADDR") or ""),
        expires_at=expires_at,
    )


def written_streams(query: Query) -> list[str]:
    """The streams that a query names."""
    found = [value for key, value in query if key == "stream"]
    if not found:
        raise Refused(text(400, "name a stream: /streams?stream=…"))
    if len(found) > MAX_STREAMS:
        raise Refused(text(400, f"too many streams: at most {MAX_STREAMS} on one connection, {len(found)} were asked for"))
    return found


def single(query: Query, name: str) -> str | None:
    """A field that may be there once."""
    values = [value for key, value in query if key == name]
    if len(values) > 1:
        raise Refused(text(400, f"{name} is given {len(values)} times"))
    return values[0] if values else None


def bears(environ: Environ, token: str) -> bool:
    """Whether the request has ``Authorization: Bearer <token>``."""
    scheme, _, given = str(environ.get("HTTP_AUTHORIZATION", "")).partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), token.encode())


def read_body(environ: Environ, *, limit: int, timeout: float) -> str:
    """The body as text; at most ``limit`` bytes, within ``timeout`` seconds."""
    length = environ.get("CONTENT_LENGTH") or ""
    if length and int(length) > limit:
        raise Refused(text(413, f"the body has {int(length)} bytes, at most {limit} are taken"))
    body: Any = None
    with gevent.Timeout(timeout, False):  # type: ignore[arg-type]  # False: end the block without an exception
        body = environ["wsgi.input"].read(int(length) if length else limit + 1)
    if body is None:
        raise Refused(text(408, f"the body did not come within {timeout:g} s"))
    if len(body) > limit:
        raise Refused(text(413, f"the body has more than {limit} bytes"))
    try:
        return str(body, "utf-8")
    except UnicodeDecodeError:
        raise Refused(text(400, "the body is not UTF-8")) from None
