"""The program of docs/streams.md that follows a stream: it outlives what servers, and proxies before them, answer meanwhile."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from time import monotonic

import gevent
import pytest
from gevent.pool import Pool
from gevent.server import StreamServer
from page_parts import block_of
from raw_http import read_head, wait_for

pytestmark = [pytest.mark.docs, pytest.mark.program]

HTML = b"<html><body><h1>Bad Gateway</h1></body></html>"
DATE = "Wed, 21 Oct 2026 07:28:00 GMT"


def answer(status: int, *headers: str, body: bytes = HTML, cut: int = 0) -> bytes:
    """Return an answer whose last ``cut`` bytes are missing."""
    lines = [f"HTTP/1.1 {status} told", "Content-Type: text/html", f"Content-Length: {len(body)}", *headers]
    sent = "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body
    return sent[: len(sent) - cut]


def messages(*texts: str, cursor: int) -> bytes:
    found = [{"id": cursor, "event": None, "data": text, "stream": "demo:news"} for text in texts]
    return answer(200, body=json.dumps({"messages": found, "cursor": cursor, "events": []}).encode())


TROUBLES = {
    "no answer": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-",
    "not HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "half a body": answer(200, body=b'{"messages": [{"id": 1, "data": "torn"}]}', cut=9),
    "half a body without a length": b'HTTP/1.0 200 OK\r\n\r\n{"messages": [{"id": 1, "da',
    "a page instead of JSON": answer(200),
    "a page that is no text": answer(200, body=b"\xff\xfe\x00"),
    "502": answer(502),
    "504": answer(504),
    "500 without a body": answer(500, body=b""),
    "503 with a time": answer(503, "Retry-After: 1"),
    "503 without a time": answer(503),
    "503 with a date": answer(503, f"Retry-After: {DATE}"),
    "429 with a time": answer(429, "Retry-After: 1"),
    "408": answer(408),
}
"""What may come instead of the messages, by what it is."""


class Proxy:
    """A server that gives each connection the next of ``answers``, and keeps those that come after them waiting."""

    def __init__(self, answers: list[bytes]) -> None:
        self._answers = iter(answers)
        self.asked: list[str] = []
        """The query of each request."""
        self.came: list[float] = []
        """When each request came."""
        self._server = StreamServer(("127.0.0.1", 0), self._serve, spawn=Pool())
        self._server.start()
        self.port = int(self._server.server_port)
        self.close = self._server.stop

    def _serve(self, client: socket.socket, _: object) -> None:
        with client:
            head = read_head(client) or b""
            self.came.append(monotonic())
            self.asked.append(head.split()[1].decode().partition("?")[2])
            told = next(self._answers, None)
            if told is None:
                gevent.sleep(600)
            else:
                client.sendall(told)


@contextmanager
def following(folder: Path, answers: list[bytes]) -> Iterator[tuple[Proxy, subprocess.Popen[str]]]:
    """Run the program before such a proxy. Where the page waits for seconds, it waits for a moment."""
    proxy = Proxy(answers)
    text = block_of("docs/streams.md", "follow").replace(":8080", f":{proxy.port}")
    assert text.count('pause = "2"') == text.count("else 10)") == 1
    (folder / "follow.py").write_text(text.replace('pause = "2"', 'pause = "0"').replace("else 10)", "else 0)"))
    process = subprocess.Popen(
        [sys.executable, "follow.py"], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        yield proxy, process
    finally:
        process.kill()
        process.communicate()
        proxy.close(0)


def test_the_program_goes_on_where_it_was_whatever_a_proxy_answers(tmp_path: Path) -> None:
    answers = [messages("tick", cursor=7), *TROUBLES.values(), messages("tock", cursor=9)]
    with following(tmp_path, answers) as (proxy, process):
        wait_for(lambda: len(proxy.asked) > len(answers) or process.poll() is not None, "it has asked once more")
        process.kill()
        shown, errors = process.communicate()
    assert shown.split() == ["tick", "tock"], errors
    assert proxy.asked == [f"since={cursor}&poll=25" for cursor in (0, *[7] * (len(TROUBLES) + 1), 9)]
    assert errors.count("trying again: ") == len(TROUBLES), errors
    pauses = [later - earlier for earlier, later in pairwise(proxy.came[1:])]
    told = [pause for pause, name in zip(pauses, TROUBLES, strict=False) if "with a time" in name]
    assert len(told) == 2 and min(told) > 0.9, "Retry-After counts"


@pytest.mark.parametrize("status", [400, 403, 404])
def test_the_program_ends_if_the_server_will_never_answer_otherwise(status: int, tmp_path: Path) -> None:
    with following(tmp_path, [answer(status)]) as (_, process):
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"HTTP Error {status}" in errors
