"""A target that lets an origin answer anything to an edge: reads, and the connection on which new messages come."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import gevent
from gevent.server import StreamServer
from streamer_parts import FakeClient, added, make_board

from fuzzing.engine import Check, Target
from pgbus_gevent.core.rows import OpenQuestion, Row
from pgbus_gevent.edge.origin import Origin
from pgbus_gevent.edge.reads import OriginReads
from pgbus_gevent.edge.session import WakeSession
from pgbus_gevent.errors import DatabaseError
from pgbus_gevent.messages import MAX_ID
from pgbus_gevent.streamer.listener import Listener

_WAITS = 50


class _Answers:
    """A server that answers each request with the same bytes, and closes."""

    def __init__(self) -> None:
        self.answer = b""
        self._server = StreamServer(("127.0.0.1", 0), self._serve)
        self._server.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/pgbus"

    def _serve(self, sock: Any, _: object) -> None:
        with suppress(OSError):
            asked = b""
            while b"\r\n\r\n" not in asked and (piece := sock.recv(65536)):
                asked += piece
            for start in range(0, len(self.answer), 9000):
                sock.sendall(self.answer[start : start + 9000])
            sock.shutdown(1)
            while sock.recv(65536):
                pass

    def close(self) -> None:
        self._server.stop(1)


def _is_row(row: Row) -> bool:
    texts = (row.event, row.visible_to, row.exclude)
    return (
        type(row.id) is int
        and 0 <= row.id <= MAX_ID
        and type(row.data) is str
        and all(each is None or type(each) is str for each in texts)
        and (row.prev_id is None or type(row.prev_id) is int)
    )


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_ID


def _read(reads: OriginReads, kind: int) -> None:
    """Make a read. What it returns must be as the streamer expects it."""
    if kind == 0:
        openings = reads.openings([OpenQuestion("orders", 5, None)], limit=10, size=1000)
        assert len(openings) == 1
        assert all(map(_is_row, openings[0].rows)) and all(map(_is_id, openings[0][:5])), openings
    elif kind == 1:
        pages = reads.pages([("orders", 5)], limit=10, size=1000)
        assert len(pages) == 1
        assert all(map(_is_row, pages[0].rows)) and all(map(_is_id, (pages[0].horizon, *pages[0][3:]))), pages
    elif kind == 2:
        newest, moved = reads.moved({"orders": 5})
        assert _is_id(newest) and all(type(name) is str and _is_id(id) for name, id in moved.items()), moved
    elif kind == 3:
        [(horizon, count, total)] = reads.inventory([("orders", 1, 5)])
        assert all(type(each) is int for each in (horizon, count, total))
    elif kind == 4:
        found = reads.revocations()
        assert all(type(id) is int and type(owner) is str for id, owner in found.rows)
    else:
        assert isinstance(reads.clock(), float)


def _listen(origin: Origin) -> None:
    board = make_board()
    listener = Listener(None, board)  # type: ignore[arg-type]  # the session is opened here
    log = added(board, FakeClient("a", "orders")).log
    log.open(head=10, horizon=0, oldest=10, floor=10, rows=[])
    session = WakeSession(origin, board.registry)
    try:
        for _ in range(_WAITS):
            payloads, _lost = session.receive(0.1)
            listener.hear(payloads)
            session.ping()
    finally:
        session.close()


@contextmanager
def origin() -> Iterator[Check]:
    """Whatever an origin answers, an edge gets what it asked for, or one of the errors after which it asks again."""
    answers = _Answers()
    made = Origin(answers.url, "a-token-of-the-worker", connect_timeout=20.0, pool_timeout=20.0, size=2)
    reads = OriginReads(made)

    def check(data: bytes) -> None:
        kind, raw, body = data[0:1] or b"\0", data[1:2], data[2:]
        what = kind[0] % 7
        answers.answer = body
        if raw != b"\xff":
            media = b"text/event-stream" if what == 6 else b"application/json"
            head = b"HTTP/1.1 200 OK\r\nContent-Type: " + media + b"\r\nConnection: close\r\n\r\n"
            greeting = b'event: pgbus:hop\ndata: {"hop": 1}\n\n' if what == 6 else b""
            answers.answer = head + greeting + body
        try:
            if what == 6:
                _listen(made)
            else:
                _read(reads, what)
        except DatabaseError:
            pass
        made.discard_idle()
        gevent.sleep(0)
        assert made.in_use == 0

    try:
        yield check
    finally:
        made.close()
        answers.close()


ORIGIN = Target(
    "origin", origin,
    (*(bytes([kind, 0]) for kind in range(7)), *(bytes([kind, 255]) for kind in range(7)), b"HTTP/1.1 200 OK\r\n",
     b"HTTP/1.1 503 x\r\n",
     b"HTTP/1.1 100 Continue\r\n\r\n", b"pgbus-hop: 1\r\n", b"Content-Length: 5\r\n", b"Content-Length: -1\r\n",
     b"Content-Length: 99999999999999\r\n",
     b"Transfer-Encoding: chunked\r\n", b"\r\n", b"5\r\n", b"5;a=b\r\n", b"0\r\n\r\n", b"ffffffffffffffffff\r\n",
     b"0\r\nX: y\r\n\r\n",
     b"[[5, 0, 0, 0, 0, []]]", b"[[[], 0, false, 0, 0]]", b"[5, {}]", b"[[0, 0, 0]]", b'[[], ["h", 1]]', b'{"at": 1}',
     b'[[[[6, null, "x", null, null, 5]], 0, false, 5, 0]]', b"[", b"]", b"{", b"}", b",", b"null", b"1e999", b"NaN",
     b"-1", b'"x"', b"true", b"9" * 30,
     b"[" * 3000, b"data: ", b"\n\n", b'["ephemeral", "orders", [], null, "x", null, null]',
     b'["ephemeral", "orders", {}', b"event: pgbus:hop\n",
     b"event: pgbus:shutdown\ndata: {}\n\n", b": heartbeat nan\n", b": heartbeat 1e999\n",
     b'["message", "orders", 11, 10, null, null, "x", null, null]'),
    most=40_000,
    about="answers of an edge's origin: heads, chunks, JSON of any shape, event streams",
)  # fmt: skip

TARGETS = (ORIGIN,)
