"""What a request asks for, checked: streams, cursors, bodies. Whatever makes no sense raises :class:`Refused`."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from sys import intern
from time import time
from urllib.parse import parse_qsl

import gevent

from ..core.client import StreamRequest
from ..core.cursor import parse_cursor, parse_replay
from ..core.names import PublicNames, Signer, check_event, check_name, looks_signed
from ..database.queries import Publication
from ..errors import BadToken, InvalidArgument, InvalidCursor, TokenExpired
from .responses import Environ, Refused, text

MAX_STREAMS = 32

Query = list[tuple[str, str]]


def path_below(environ: Environ, prefix: str) -> str | None:
    """The path under ``prefix``, in Latin-1 as WSGI has it; None for one that is not under it.

    A framework that mounts an application at the prefix moves it from PATH_INFO to SCRIPT_NAME.
    """
    # Bottle puts text into PATH_INFO, without the bytes that are no UTF-8, and keeps the original beside it.
    path = str(environ.get("bottle.raw_path") or environ.get("PATH_INFO", ""))
    script = str(environ.get("SCRIPT_NAME", ""))
    # The prefix may or may not count what the whole site lies under.
    for written in (path, script + path):
        if written == prefix or written.startswith(f"{prefix}/"):
            return written[len(prefix) :]
    return path if script.endswith(prefix) else None


def text_of(part: str, what: str) -> str:
    """A part of the request as the text that it is: WSGI hands the bytes over as Latin-1."""
    try:
        return part.encode("latin-1").decode("utf-8")
    except UnicodeError:
        raise Refused(text(400, f"the {what} is not UTF-8")) from None


def parse_query(environ: Environ) -> Query:
    """The query's fields, in order."""
    query = text_of(str(environ.get("QUERY_STRING", "")), "query")
    try:
        return parse_qsl(query, keep_blank_values=True, errors="strict")
    except UnicodeError:
        raise Refused(text(400, "the query is not UTF-8")) from None


class StreamNames:
    """Tells which stream a client may mean by what it wrote: a signed name, or a public one as it is."""

    def __init__(self, signer: Signer, public: PublicNames, wall_clock: Callable[[], float] = time) -> None:
        self._signer = signer
        self._public = public
        self._wall_clock = wall_clock

    def resolve(self, written: str) -> tuple[str, float | None]:
        """The stream's name, and when the right to it expires."""
        if looks_signed(written):
            try:
                return self._signer.verify(written, self._wall_clock())
            except TokenExpired as error:
                raise Refused(text(403, str(error))) from None
            except BadToken:
                pass
        # A signed name of somebody else's is no name, whatever is public: its bearer would wait at a stream that nobody
        # publishes to. And who tries names learns neither which exist nor which are well signed.
        elif _checked(written) in self._public:
            return written, None
        raise Refused(text(404, "no such stream: a stream name is signed, or public by configuration"))


def _checked(written: str) -> str:
    try:
        return check_name(written)
    except InvalidArgument as error:
        raise Refused(text(400, str(error))) from None


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
        # Behind a proxy it is the same text for all.
        address=intern(str(environ.get("REMOTE_ADDR") or "")),
        expires_at=expires_at,
    )


def written_streams(query: Query) -> list[str]:
    """The streams that a query names, as they are written there."""
    found = [value for key, value in query if key == "stream"]
    if not found:
        raise Refused(text(400, "name a stream: /streams?stream=…"))
    if len(found) > MAX_STREAMS:
        raise Refused(text(400, f"too many streams: at most {MAX_STREAMS} on one connection, not {len(found)}"))
    return found


def single(query: Query, name: str) -> str | None:
    """A field that may be there once."""
    values = [value for key, value in query if key == name]
    if len(values) > 1:
        raise Refused(text(400, f"{name} is given {len(values)} times"))
    return values[0] if values else None


def bears(environ: Environ, token: str) -> bool:
    """Whether the request has ``Authorization: Bearer <token>``; how long that takes tells nothing about the token."""
    scheme, _, given = str(environ.get("HTTP_AUTHORIZATION", "")).partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), token.encode())


def publication(query: Query) -> tuple[Publication, bool]:
    """The fields of a broadcast, and whether it is ephemeral."""
    try:
        event = check_event(single(query, "event"))
    except InvalidArgument as error:
        raise Refused(text(400, str(error))) from None
    found = Publication(event, *(_label(query, name) for name in ("visible_to", "exclude", "key")))
    ephemeral = single(query, "ephemeral")
    if ephemeral not in _SWITCH:
        raise Refused(text(400, f"ephemeral={ephemeral!a} is neither 1 nor 0"))
    if _SWITCH[ephemeral] and found.key is not None:
        raise Refused(text(400, "an ephemeral message is not stored, so it cannot have a key"))
    return found, _SWITCH[ephemeral]


_SWITCH = {None: False, "0": False, "false": False, "no": False, "1": True, "true": True, "yes": True}


def _label(query: Query, name: str) -> str | None:
    value = single(query, name)
    if value is not None and (not value or "\0" in value):
        raise Refused(text(400, f"{name} is empty, or has a NUL character in it: leave it out, or give a text"))
    return value


def read_body(environ: Environ, *, limit: int, timeout: float) -> str:
    """The body as text; at most ``limit`` bytes, within ``timeout`` seconds."""
    size = _body_size(environ, limit)
    body: bytes | None = None
    try:
        with gevent.Timeout(timeout, False):  # type: ignore[arg-type]  # False: end the block without an exception
            body = environ["wsgi.input"].read(size) if size else b""
    except TimeoutError:
        pass  # the server's own deadline
    except (OSError, ValueError):
        raise Refused(text(400, "the body ended early, or is malformed")) from None
    if body is None:
        raise Refused(text(408, f"the body did not come within {timeout:g} s"))
    if len(body) > limit:
        raise Refused(text(413, f"the body has more than {limit} bytes"))
    try:
        return str(body, "utf-8")
    except UnicodeDecodeError:
        raise Refused(text(400, "the body is not UTF-8")) from None


def _body_size(environ: Environ, limit: int) -> int:
    """How many bytes to read: one more than is taken where the client does not say how many come."""
    length = str(environ.get("CONTENT_LENGTH") or "")
    if not length:
        # Without either, a server may wait for bytes of the next request.
        return limit + 1 if environ.get("wsgi.input_terminated") else 0
    if not (length.isascii() and length.isdigit()):
        raise Refused(text(400, "the Content-Length is malformed"))
    if int(length) > limit:
        raise Refused(text(413, f"the body has more than {limit} bytes"))
    return int(length)
