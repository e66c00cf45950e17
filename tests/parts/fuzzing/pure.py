"""Targets that need only Python: names, cursors, the head of a request, notifications, and settings."""

from __future__ import annotations

import base64
import io
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from itsdangerous import Signer as RawSigner
from streamer_parts import FakeClient, added, make_board

from fuzzing.engine import Check, Target, plain
from fuzzing.inputs import Taker
from pgbus_gevent.core import sse
from pgbus_gevent.core.cursor import composite_id, parse_composite, parse_cursor, parse_replay
from pgbus_gevent.core.names import PublicNames, Signer, check_event, check_name, hide_signed, looks_signed
from pgbus_gevent.core.sse_parser import Parser
from pgbus_gevent.core.wakes import Ephemeral, Moved, NewMessage
from pgbus_gevent.core.wakes import parse as parse_wake
from pgbus_gevent.errors import BadToken, InvalidArgument, InvalidCursor, InvalidSetting, PgbusError
from pgbus_gevent.hosts.request_head import BadHead, check_head, read_head, shown_path
from pgbus_gevent.messages import MAX_ID
from pgbus_gevent.settings.table import Settings, entries, variable
from pgbus_gevent.streamer.listener import Listener
from pgbus_gevent.web import requests
from pgbus_gevent.web.responses import Refused

SECRETS = ("an old secret for the fuzzer", "a new secret for the fuzzer")
SIGNER = Signer(SECRETS)
SIGNED = SIGNER.sign("orders").encode()

# names


def names(data: bytes) -> None:
    """A name or a token: it verifies only if we have signed it, and no log shows one."""
    text = data.decode("utf-8", "surrogateescape")
    for check in (check_name, check_event):
        try:
            check(text)
        except InvalidArgument:
            pass
    looks_signed(text)
    shown = hide_signed(data.decode("latin-1"))
    assert SIGNED.decode() not in shown
    shown_path(data.decode("latin-1"))
    for token in (text, _signed(data)):
        try:
            name, expires_at = SIGNER.verify(token, 1e9)
        except BadToken:
            continue
        assert check_name(name) and (expires_at is None or expires_at > 1e9)
    try:
        assert SIGNER.verify(SIGNER.sign(check_name(text)), 1e9) == (text, None)
    except InvalidArgument:
        pass
    _ = text in PublicNames(("demo:*", "d[a-z]?*:*:*", text[:40]))


def _signed(payload: bytes) -> str:
    """A token with the right signature and any payload, as a program with the secret may make it by mistake."""
    raw = base64.urlsafe_b64encode(payload).rstrip(b"=")
    return RawSigner(SECRETS[1], salt="pgbus.stream", key_derivation="django-concat").sign(raw).decode("latin-1")


NAMES = Target(
    "names", plain(names),
    (b"WyJ", b".eJ", SIGNED, SIGNED[:30], b".", b"-", b"_", b"%", b"%25", b"%57%79%4a", b"a" * 30, b'["a",1e999]', b'["a"]', b"[[",
     b"\xff", b"\xed\xa0\x80", b"\0", b"\x85", "é".encode(), b"demo:", b"*", b"[", b"?", b"x" * 255, b"eJ", b"{", b"}",
     b"1" * 40),
    about="names of streams and events, signed names",
)  # fmt: skip

# cursors


def cursors(data: bytes) -> None:
    """Cursors and the parameters of a request for streams: refused with a reason, or read as what was written."""
    take = Taker(data)
    streams = 1 + take.byte() % 33
    text = take.text()
    for parse in (parse_cursor, parse_replay):
        try:
            assert str(parse(text)) == (text.lstrip("0") or "0")
        except InvalidCursor as error:
            assert len(str(error)) < 400
    try:
        found = parse_composite(text, streams)
        index = int(text.partition("~")[0])
        assert parse_composite(composite_id(index, found), streams) == found and all(0 <= n <= MAX_ID for n in found)
    except InvalidCursor:
        pass
    query = "&".join(f"stream=public:{n}" for n in range(take.byte() % 5)) + take.rest().decode("latin-1")
    environ = {"QUERY_STRING": query, "HTTP_LAST_EVENT_ID": text.encode("utf-8", "surrogateescape").decode("latin-1")}
    known = requests.StreamNames(SIGNER, PublicNames(("*",)))
    for ask in (requests.wishes, lambda fields: [requests.Wish("x", fields)]):
        try:
            request = requests.stream_request(environ, ask(requests.parse_query(environ)), known)
        except Refused as refused:
            assert refused.answer.status in (400, 403, 404)
            assert refused.answer.body.count(b"\n") == 1
            continue
        assert 1 <= len(request.places) <= requests.MAX_STREAMS
        for place in request.places:
            assert place.since is None or 0 <= place.since <= MAX_ID
            assert place.replay is None or 0 <= place.replay <= MAX_ID


CURSORS = Target(
    "cursors", plain(cursors),
    (b"0", b"1", b"9" * 16, b"9007199254740991", b"~", b".", b"0~1.2", b"31~", b"-1", b"+", b"1e3", b"\n", b"&since=", b"&replay=",
     b"&lastEventId=", b"&stream=", b"&connection=", b"=", b"&", b"%00", b"%ff", b"%ED%A0%80", b"\xd9\xa3", b"\xff", b";",
     b"\0", b" ",
     b"&since=0~1.2", SIGNED, b"1." * 40, b"0" * 400),
    about="cursors, single and composite, since, replay, Last-Event-ID",
)  # fmt: skip

# the head of a request


def head(data: bytes) -> None:
    """The head of a request is refused, or read as RFC 9112 says, with nothing in it that could be read in two ways."""
    try:
        lines = read_head(io.BytesIO(data), 32 * 1024)
        if not lines:
            return
        line, fields = check_head(lines)
    except BadHead as error:
        assert error.status in (400, 414) and error.reason.isprintable()
        return
    method, target, version = line.decode("latin-1").rstrip("\r\n").split(" ")
    assert method and target.startswith(("/", "?")) and version in ("HTTP/1.0", "HTTP/1.1")
    shown_path(target)
    names = [name for name, _ in fields.pairs]
    assert all(names.count(name) <= 1 for name in ("host", "content-length", "transfer-encoding"))
    assert all("\r" not in value and "\n" not in value and "\0" not in value for _, value in fields.pairs)
    assert all(isinstance(value, str) for _, value in fields.environ())


HEAD = Target(
    "head", plain(head),
    (b"GET ", b"POST ", b"/", b"/pgbus/streams/x", b"?a=b", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b"\r\n", b"\r", b"\n",
     b"Host: t\r\n",
     b"host:t\r\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b": ", b" ", b"\t", b"http://", b"@",
     b"[::1]", b"%",
     b"\xa0", b"\x85", b"\xff", b"\0", b"#", b"Connection: close, x\r\n", b"X: " + b"y" * 200 + b"\r\n", b":80", b"\x1f",
     b"\x0b"),
    about="the head of a request, without a socket",
)  # fmt: skip

# notifications

NOW = 1764000000.0


def notifications(data: bytes) -> None:
    """The payload of a notification: unreadable ones are a reason to look, and nothing invalid reaches a frame."""
    text = data.decode("utf-8", "replace").replace("\0", "")
    wake = parse_wake(text)
    if isinstance(wake, NewMessage | Ephemeral) and wake.data is not None:
        frame = sse.message(wake.data, event=wake.event, id=wake.id if isinstance(wake, NewMessage) else None)
        found = Parser().feed(frame)
        lines = wake.data.replace("\r\n", "\n").replace("\r", "\n")
        assert [(each.event, each.data) for each in found] == [(wake.event or "message", lines)]
    elif isinstance(wake, Moved) and wake.streams is not None:
        assert all(check_name(name) for name in wake.streams)
    board = make_board()
    listener = Listener(None, board, wall_clock=lambda: NOW)  # type: ignore[arg-type]  # nothing is opened
    log = added(board, FakeClient("a", "orders")).log
    log.open(head=10, horizon=0, oldest=10, floor=10, rows=[])
    listener.hear([text, json.dumps(["message", "orders", 20, 10, NOW, None, "x", None, None])])
    ids = log.ids
    assert ids == sorted(ids) and log.head < (NOW + 90_000) * 1e6
    assert board.looks or log.head >= 20


NOTIFICATIONS = Target(
    "notifications", plain(notifications),
    (b'["message", "orders", 11, 10, 1764000000.0, null, "forged", null, null]',
     b'["ephemeral", "orders", 1, null, "x", null, null]',
     b'["large", "orders", 7]', b'["control"]', b'["moved", "orders"]', b'["moved"]', b"[", b"]", b"{", b"}", b",", b'"',
     b"null", b"NaN",
     b"Infinity", b"1e999", b"9" * 30, b"-1", b"\\u0000", b"\\ud800", b"\\r\\n", b"pgbus:x", b"true", b'"orders"', b"20",
     b"10", b"[" * 500),
    most=8000,
    about="the payloads of notifications",
)  # fmt: skip

# settings


@contextmanager
def settings() -> Iterator[Check]:
    """Settings from a TOML file and from the environment: a value is refused by name, and no secret is shown."""
    known = list(entries())
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "pgbus.toml")

        def load(size: int, **how: Any) -> None:
            try:
                found = Settings.load(**how)
            except InvalidSetting as error:
                assert len(str(error)) < 20_000 + 20 * size
                return
            except PgbusError:
                return
            repr(found)
            for name in known:
                getattr(found, name)

        def check(data: bytes) -> None:
            with open(path, "wb") as file:
                file.write(data)
            load(len(data), environ={}, config=path)
            take = Taker(data)
            environ = {}
            for _ in range(1 + take.byte() % 3):
                environ[variable(take.pick(known))] = take.text().replace("\0", "")
            load(len(data), environ=environ)
            load(len(data), environ={}, **{take.pick(known): take.value()})

        yield check


SETTINGS = Target(
    "settings",
    settings,
    (
        *(f"{name} = ".encode() for name in entries()),
        *b'[ ] { } " \' """ = . 1 -1 1e999 nan inf true 10s 5m 1979-05-27 \\u0000 a.b.c [[x]] http://[ https://a.b {a='.split(),
        *b"postgresql://u:p@h/d redis://x:y@[ *=1h, orders=5m ,".split(),
        *(b"\n", b"\xff", "٣".encode(), b"9" * 400, b"x" * 40, b"[" * 300),
    ),
    most=4096,  # the parser of the standard library takes quadratic time for a key with thousands of dots
    about="settings from a file, the environment, and keywords",
)

TARGETS = (NAMES, CURSORS, HEAD, NOTIFICATIONS, SETTINGS)
