"""Parses and checks requests: streams, cursors, tokens, bodies. An invalid request raises :class:`Refused`."""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Sequence
from sys import intern
from time import time
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import gevent

from ..core.client import Place, StreamRequest, Subscriber
from ..core.cursor import is_composite, parse_composite, parse_cursor, parse_replay
from ..core.names import PublicNames, Signer, check_event, check_key, check_label, check_name, looks_signed
from ..core.polled import MAX_POLL
from ..database.statements import Publication
from ..errors import BadToken, InvalidArgument, InvalidCursor, TokenExpired
from .responses import Environ, Refused, text

MAX_STREAMS = 32
MAX_FIELDS = 256
"""The most fields of a query. Each of 32 streams may have several."""

NO_SUCH_STREAM = (
    "no such stream: its name is neither signed with this server's secret (pgbus-gevent sign) nor public (--public)"
)

_CONNECTION = re.compile(r"[0-9a-f]{16,64}", re.ASCII)

Query = list[tuple[str, str]]


def path_below(environ: Environ, prefix: str) -> str | None:
    """The path below ``prefix``, in Latin-1 as in WSGI; None if the path is not below it.

    A framework that mounts an application at the prefix moves the prefix from PATH_INFO to SCRIPT_NAME.
    """
    # Bottle decodes PATH_INFO, which drops bytes that are not UTF-8, and keeps the original beside it.
    path = str(environ.get("bottle.raw_path") or environ.get("PATH_INFO", ""))
    script = str(environ.get("SCRIPT_NAME", ""))
    # The prefix may or may not include the path that the whole site is mounted at.
    for written in (path, script + path):
        if written == prefix or written.startswith(f"{prefix}/"):
            return written[len(prefix) :]
    return path if script.endswith(prefix) else None


def text_of(part: str, name: str) -> str:
    """A part of the request, decoded from UTF-8. WSGI passes its bytes as Latin-1."""
    try:
        return part.encode("latin-1").decode("utf-8")
    except UnicodeError:
        raise Refused(text(400, f"the {name} is not UTF-8")) from None


def parse_query(environ: Environ) -> Query:
    """The fields of the query, in order."""
    query = text_of(str(environ.get("QUERY_STRING", "")), "query")
    try:
        return parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS)
    except UnicodeError:
        raise Refused(text(400, "the query is not UTF-8")) from None
    except ValueError:
        raise Refused(text(400, f"the query has more than {MAX_FIELDS} fields")) from None


def parse_form(body: str) -> dict[str, str]:
    """The fields of a posted form. If a field is there several times, the first one counts."""
    try:
        fields = parse_qsl(body, keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError:
        raise Refused(text(400, f"the form has more than {MAX_FIELDS} fields")) from None
    return dict(reversed(fields))


def cookie(environ: Environ, name: str) -> str | None:
    """The value of the first cookie of that name, unchanged (RFC 6265, section 5.4).

    The parser of the standard library, which Bottle uses too, takes time that grows with the square of the header's length.
    """
    for pair in str(environ.get("HTTP_COOKIE", "")).split(";"):
        key, found, value = pair.partition("=")
        if found and key.strip() == name:
            return value.strip()
    return None


class StreamNames:
    """Finds the stream that a client names, by a signed name or by the bare name of a public stream."""

    def __init__(self, signer: Signer, public: PublicNames, wall_clock: Callable[[], float] = time) -> None:
        self._signer = signer
        self._public = public
        self._wall_clock = wall_clock

    def resolve(self, written: str) -> tuple[str, float | None]:
        """The name of the stream, and the time at which the signed name expires. Raises Refused."""
        if looks_signed(written):
            try:
                return self._signer.verify(written, self._wall_clock())
            except TokenExpired as error:
                raise Refused(text(403, str(error))) from None
            except BadToken:
                pass
        # A signed name that does not verify is not taken for a bare name, even if all names are public. Otherwise its bearer would
        # follow a stream that nobody publishes to. All failures get the same answer, so that guessing names reveals nothing.
        elif _checked(written) in self._public:
            return written, None
        raise Refused(text(404, NO_SUCH_STREAM))


def _checked(written: str) -> str:
    try:
        return check_name(written)
    except InvalidArgument as error:
        raise Refused(text(400, str(error))) from None


class Wish(NamedTuple):
    """One stream of a request, not checked yet: its name as written, and the query fields that belong to it."""

    written: str
    fields: Query


def client_number(environ: Environ) -> int:
    """A number for the client that repeats a request: the best that can be done without a cookie."""
    return hash(
        tuple(
            environ.get(key) for key in ("REMOTE_ADDR", "HTTP_USER_AGENT", "SCRIPT_NAME", "PATH_INFO", "QUERY_STRING")
        )
    )


def wishes(query: Query) -> list[Wish]:
    """The streams that a query names, each with the fields between it and the next stream."""
    found: list[Wish] = []
    before: Query = []
    for key, value in query:
        if key == "stream":
            found.append(Wish(value, []))
        else:
            (found[-1].fields if found else before).append((key, value))
    if not found:
        raise Refused(text(400, "name a stream: /streams?stream=…"))
    if len(found) > MAX_STREAMS:
        raise Refused(text(400, f"too many streams: at most {MAX_STREAMS} on one connection, not {len(found)}"))
    found[0].fields.extend(before)
    return found


def stream_request(environ: Environ, wanted: list[Wish], names: StreamNames) -> StreamRequest:
    """The request for one or several streams. It is not authorised yet."""
    # The query is checked even if Last-Event-ID wins over it, so that the client learns of a mistake in it.
    all_since = _since_of_all(wanted)
    cursors, invalid = _last_event_ids(environ, wanted)
    if cursors is None and not invalid:
        cursors = all_since
    places: dict[str, Place] = {}
    for n, wish in enumerate(wanted):
        stream, expires_at = names.resolve(wish.written)
        if stream in places:
            raise Refused(text(400, "the same stream is named twice"))
        place = Place(stream, invalid_cursor=invalid)
        start = _start(wish.fields, named_elsewhere=all_since is not None)
        if cursors is not None and cursors[n] is not None:
            place = place._replace(since=cursors[n])
        elif not invalid:
            place = place._replace(since=start[0], replay=start[1])
        if expires_at is not None:
            place = place._replace(subscriber=Subscriber(expires_at=expires_at))
        places[stream] = place
    fields = [field for wish in wanted for field in wish.fields]
    return StreamRequest(
        tuple(places.values()),
        # Interned, because behind a proxy all clients have the same address.
        address=intern(str(environ.get("REMOTE_ADDR") or "")),
        connection=_connection(fields),
        poll=_poll(fields),
    )


Cursors = Sequence[int | None]


def _last_event_ids(environ: Environ, wanted: list[Wish]) -> tuple[Cursors | None, bool]:
    """The cursors that the client received last, if it sends them, and whether they are malformed.

    They are newer than the URL, because an EventSource always uses its first URL. Browsers send the header. Polyfills may not send
    it to another origin, so they put ``lastEventId`` into the query.
    """
    header = str(environ.get("HTTP_LAST_EVENT_ID", ""))
    try:
        if header:
            return _cursors(header, len(wanted), "Last-Event-ID"), False
        return _from_query(wanted), False
    except InvalidCursor:
        # Any status but 200 would end the EventSource for good.
        return None, True


def _from_query(wanted: list[Wish]) -> Cursors | None:
    """The cursors in ``lastEventId``: one for all streams, as in the id of a frame, or one for each. The last one counts."""
    given = [[value for key, value in wish.fields if key == "lastEventId" and value] for wish in wanted]
    newest = next((values[-1] for values in reversed(given) if values), None)
    if newest is None:
        return None
    if len(wanted) == 1 or is_composite(newest):
        return _cursors(newest, len(wanted), "lastEventId")
    return [parse_cursor(values[-1], "lastEventId") if values else None for values in given]


def _since_of_all(wanted: list[Wish]) -> list[int] | None:
    """The cursors of all streams, if one ``since`` holds them all, as the id of a frame does."""
    given = [value for wish in wanted for key, value in wish.fields if key == "since"]
    if len(wanted) == 1 or not any(is_composite(value) for value in given):
        return None
    if len(given) > 1:
        raise Refused(text(400, "since is given for all streams at once, and once more"))
    try:
        return _cursors(given[0], len(wanted), "since")
    except InvalidCursor as error:
        raise Refused(text(400, str(error))) from None


def _cursors(value: str, streams: int, name: str) -> list[int]:
    return [parse_cursor(value, name)] if streams == 1 else parse_composite(value, streams, name)


def _start(fields: Query, *, named_elsewhere: bool) -> tuple[int | None, int | None]:
    """The cursor in the fields of one stream, or else the number of messages to replay."""
    since = None if named_elsewhere else single(fields, "since")
    replay = single(fields, "replay")
    try:
        count = None if replay is None else parse_replay(replay)
        return (None, count) if since is None else (parse_cursor(since), None)
    except InvalidCursor as error:
        raise Refused(text(400, str(error))) from None


def _connection(fields: Query) -> str | None:
    value = single(fields, "connection")
    if value is not None and not _CONNECTION.fullmatch(value):
        raise Refused(text(400, "connection is not an id that a connection had: 16 to 64 hexadecimal digits"))
    return value


def _poll(fields: Query) -> int | None:
    value = single(fields, "poll")
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= 2 and int(value) <= MAX_POLL):
        raise Refused(text(400, f"poll is the number of seconds to wait for a message, from 0 to {MAX_POLL}"))
    return int(value)


def single(query: Query, name: str) -> str | None:
    """The value of a field that may be given once."""
    values = [value for key, value in query if key == name]
    if len(values) > 1:
        raise Refused(text(400, f"{name} is given {len(values)} times"))
    return values[0] if values else None


def bearer(environ: Environ) -> str | None:
    """The token in ``Authorization: Bearer …``, if the request has one."""
    scheme, _, given = str(environ.get("HTTP_AUTHORIZATION", "")).partition(" ")
    return given.strip() if scheme.lower() == "bearer" else None


def same(given: str | None, token: str) -> bool:
    """Whether ``given`` is ``token``, compared in constant time."""
    return given is not None and hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())


def publication(query: Query) -> tuple[Publication, bool]:
    """The fields of a broadcast, and whether it is ephemeral."""
    # Unknown fields are refused, because a typing error in ``visible_to`` would show the message to everybody.
    for name, _ in query:
        if name not in _PUBLICATION:
            raise Refused(text(400, f"a broadcast has no field {name[:40]!a}: it has {', '.join(_PUBLICATION)}"))
    try:
        found = Publication(
            check_event(single(query, "event")),
            check_label(single(query, "visible_to"), "visible_to"),
            check_label(single(query, "exclude"), "exclude"),
            check_key(single(query, "key")),
        )
    except InvalidArgument as error:
        raise Refused(text(400, str(error))) from None
    ephemeral = single(query, "ephemeral")
    if ephemeral not in _SWITCH:
        raise Refused(text(400, f"ephemeral={ephemeral!a} is neither 1 nor 0"))
    if _SWITCH[ephemeral] and found.key is not None:
        raise Refused(text(400, "an ephemeral message is not stored, so it cannot have a key"))
    return found, _SWITCH[ephemeral]


_PUBLICATION = ("event", "visible_to", "exclude", "key", "ephemeral")
_SWITCH = {None: False, "0": False, "false": False, "no": False, "1": True, "true": True, "yes": True}


def read_body(environ: Environ, *, limit: int, timeout: float) -> str:
    """The body as text; at most ``limit`` bytes, within ``timeout`` seconds."""
    size = _body_size(environ, limit)
    body: bytes | None = None
    try:
        with gevent.Timeout(timeout, False):  # type: ignore[arg-type]  # False: end the block without an exception
            body = _read_all(environ["wsgi.input"], size)
    except TimeoutError:
        pass  # the deadline of the server
    except (OSError, ValueError):
        raise Refused(text(400, "the body ended early, or is malformed")) from None
    if body is None:
        raise Refused(text(408, f"the body did not come within {timeout:g} s"))
    if len(body) > limit:
        raise Refused(text(413, f"the body has more than {limit} bytes"))
    # Not every server complains about a client that leaves early. A part of a body must not be taken for all of it.
    if len(body) < size <= limit:
        raise Refused(text(400, f"the body ended early: its Content-Length is {size}, but {len(body)} bytes came"))
    try:
        return str(body, "utf-8")
    except UnicodeDecodeError:
        raise Refused(text(400, "the body is not UTF-8")) from None


def _read_all(source: Any, size: int) -> bytes:
    """Read ``size`` bytes, or fewer if the input ends. One read of some servers' input returns only what has arrived."""
    parts = []
    while size > 0 and (part := source.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _body_size(environ: Environ, limit: int) -> int:
    """How many bytes to read: one more than allowed if the client does not say how many it sends."""
    length = str(environ.get("CONTENT_LENGTH") or "")
    if not length:
        # If the server does not end the input either, reading might wait for bytes of the next request.
        return limit + 1 if environ.get("wsgi.input_terminated") else 0
    if not (length.isascii() and length.isdigit() and len(length) < 20):
        raise Refused(text(400, "the Content-Length is malformed"))
    if int(length) > limit:
        raise Refused(text(413, f"the body has more than {limit} bytes"))
    return int(length)
