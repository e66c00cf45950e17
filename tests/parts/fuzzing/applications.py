"""A target for the application beside the streams: its client gets what it answers, or an error that is logged."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from support import until

from fuzzing.answers import ERRORS, Answer, answer_of, raise_
from fuzzing.engine import Check, Target
from fuzzing.hooks import application
from fuzzing.inputs import Taker
from fuzzing.judged import Noted
from fuzzing.web import END, judge_answers

_STATUSES = (
    "200 OK",
    "204 No Content",
    "304 Not Modified",
    "500 Ours",
    "200",
    "",
    "OK",
    "200 a\r\nb: c",
    "200 é",
    "200 \0",
    "404 x",
)
_HEADERS = (
    ("X", "y"), ("Content-Length", "3"), ("Content-Length", "-1"), ("Content-Length", "x"), ("Transfer-Encoding", "chunked"),
    ("Connection", "close"), ("X", "a\r\nb: c"), ("a\r\nb", "c"), ("X", "é"), ("X", "\u20ac"), ("X", "\ud800"), ("X", ""),
    ("", "x"),
    ("X", "\0"), ("Date", "now"), ("X", "x" * 100_000),
)  # fmt: skip


class _Body:
    """A response body that is asked for pieces, and is closed."""

    def __init__(self, pieces: list[Answer], close: Answer) -> None:
        self._pieces = iter(pieces)
        self.close = close

    def __iter__(self) -> _Body:
        return self

    def __next__(self) -> Any:
        return next(self._pieces)()


def wsgi_of(take: Taker) -> Any:
    """Read a WSGI application from an input."""
    what, status, error = take.byte() % 8, take.pick(_STATUSES), take.pick(ERRORS)
    headers: Any = [take.pick(_HEADERS) for _ in range(take.byte() % 4)]
    answers = [Noted(answer_of(take)) for _ in range(1 + take.byte() % 3)]
    values: dict[int, Answer] = {
        2: answers[0], 3: lambda: [each() for each in answers], 4: lambda: _Body([lambda: b"abc", *answers], lambda: None),
        5: lambda: _Body([lambda: b"abc"], lambda: raise_(error())), 6: lambda: _Body([lambda: raise_(error())], answers[0]),
    }  # fmt: skip

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        if what == 7:
            return [b"it has not started the response"]
        write = start_response(status, answers[0]() if what == 1 else headers)
        if take.left % 2:
            write(b"ab")
        return values.get(what, lambda: [b"abc"])()

    return app


@contextmanager
def applications(url: str) -> Iterator[Check]:
    """Run the application beside the streams, on the server that serves both."""
    with application(url) as each, each.site.watch("public", X_Owner="bob") as bob:
        site = each.site
        bob.next("pgbus:connected", timeout=END)
        streams = site.app
        does: list[Any] = [None]
        site.app = lambda environ, start: (
            streams(environ, start) if environ["PATH_INFO"].startswith("/pgbus") else does[0](environ, start)
        )

        def check(data: bytes) -> None:
            each.forget_complaints()
            does[0] = wsgi_of(Taker(data))
            with socket.create_connection(("127.0.0.1", site.port), END) as sock:
                sock.settimeout(END)
                sock.sendall(b"GET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")
                answer = b""
                try:
                    while got := sock.recv(65536):
                        answer += got
                except ConnectionResetError:
                    pass
            assert not answer or answer.startswith(b"HTTP/1.1 "), answer[:200]
            head = answer.partition(b"\r\n\r\n")[0]
            assert b"\nb: c" not in head.lower(), head  # what is in a value is no header of its own
            if answer.startswith(b"HTTP/1.1 500 Internal"):
                assert any("GET / failed" in text for text in each.logged.texts), answer[:200]
            else:
                judge_answers(answer if b" 500 Ours" not in answer[:20] else b"")
            each.publish("public", {"bob": bob}, ephemeral=True, label="nobody")
            until(lambda: not len(site.server.pool), "no greenlet is left of the request", END)
            each.judge()

        yield check


APPLICATIONS = Target(
    "applications", applications,
    (*(bytes([what, 0, error, 0, 0, kind]) for what in range(8) for error in range(len(ERRORS)) for kind in (0, 3, 13)),
     *(bytes([0, status]) for status in range(len(_STATUSES))), *(bytes([0, 0, 0, 1, header]) for header in range(len(_HEADERS)))),
    most=2000, needs="database", allowed=("GET / failed",),
    about="answers and exceptions of the application beside the streams",
)  # fmt: skip

TARGETS = (APPLICATIONS,)
