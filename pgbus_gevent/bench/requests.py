"""The scenario of short requests, one after another on a persistent connection, as a proxy or a publisher sends them."""

from __future__ import annotations

import socket
from contextlib import closing
from time import perf_counter

from .lab import Run
from .load import percentiles
from .program import BenchFailed
from .scenarios import LATENCIES, STREAM, Metrics, Rows, Scenario

TOKEN = "the-publish-token-of-the-benchmark"  # nosec B105 # of servers that only the benchmark starts

_HEALTH = b"GET /pgbus/healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
_BROADCAST = (
    f"POST /pgbus/streams/{STREAM} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\n"
    f"Content-Length: 200\r\n\r\n{'x' * 200}"
).encode()
_TIMEOUT = 10.0  # seconds for one answer
_WARM_UP = 20


def requests(run: Run) -> Rows:
    server = run.serve(publish_token=TOKEN)
    return {
        "healthz": _ask(server.port, _HEALTH, run.messages(2000)),
        "broadcast": _ask(server.port, _BROADCAST, run.messages(2000)),
    }


def _ask(port: int, request: bytes, count: int) -> Metrics:
    with closing(socket.create_connection(("127.0.0.1", port), _TIMEOUT)) as sock:
        for _ in range(_WARM_UP):
            _exchange(sock, request)
        began = perf_counter()
        took = []
        for _ in range(count):
            start = perf_counter()
            _exchange(sock, request)
            took.append(round((perf_counter() - start) * 1e6))
        return {"answers": count, "answers_per_second": count / (perf_counter() - began), **percentiles(took)}


def _exchange(sock: socket.socket, request: bytes) -> None:
    sock.sendall(request)
    answer = b""
    while True:
        data = sock.recv(65536)
        if not data:
            raise BenchFailed("the server closed a persistent connection")
        answer += data
        head, found, body = answer.partition(b"\r\n\r\n")
        if found and len(body) >= _length(head):
            break
    if not answer.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 201 ")):
        raise BenchFailed(f"the server answered {answer[:40]!r}")


def _length(head: bytes) -> int:
    return int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])


REQUESTS = Scenario(
    "requests",
    "health checks, and broadcasts over HTTP, one after another on a persistent connection: from request to answer",
    requests,
    ("answers", "answers_per_second", *LATENCIES),
)
