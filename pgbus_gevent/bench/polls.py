"""The scenario of clients that poll, beside as many with a stream."""

from __future__ import annotations

from time import monotonic, sleep

from .lab import Run, Server
from .program import BenchFailed
from .scenarios import STREAM, Rows, Scenario

_WARM_UP = 10
_TIMEOUT = 60.0  # seconds until the server has taken all polls
_WAIT = 60  # seconds that each poll waits


def polls(run: Run) -> Rows:
    """Measure what a poll that waits costs, and what a stream costs. Raises :class:`BenchFailed`."""
    count = run.clients(5000)
    server = run.serve()
    streams = server.requests([STREAM])
    asking = [
        each.replace(" HTTP/1.1", f"?poll={_WAIT} HTTP/1.1").replace("text/event-stream", "*/*") for each in streams
    ]
    requests = {"stream": streams, "poll": asking}
    expected = 0
    rows: Rows = {}
    for name, some in requests.items():
        expected += _WARM_UP
        _connect(run, server, f"first {name}", some, _WARM_UP, expected)  # so that one-time allocations are not counted
        before, start = server.memory(), run.cpu(server)
        expected += count
        _connect(run, server, name, some, count, expected)
        rows[name] = {
            "clients": count,
            "open_cpu_s": (run.cpu(server) - start).server,
            "kb_per_client": (server.memory() - before) / 1024 / count,
        }
    return rows


def _connect(run: Run, server: Server, group: str, requests: list[str], count: int, expected: int) -> None:
    run.connect(server, group, count, requests, greeted="poll" not in group)
    deadline = monotonic() + _TIMEOUT
    while server.counters()["connections"] < expected:
        if monotonic() > deadline:
            raise BenchFailed(f"the server has not taken {count} clients within {_TIMEOUT:g} s")
        sleep(0.05)


POLLS = Scenario(
    "polls",
    "N clients that poll, beside N with a stream: the server's memory for each that waits, and the CPU to open them",
    polls,
    ("clients", "open_cpu_s", "kb_per_client"),
)
