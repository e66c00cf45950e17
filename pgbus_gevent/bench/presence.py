"""The scenario of presence: all members of a stream come at once."""

from __future__ import annotations

from .lab import Run
from .scenarios import STREAM, Rows, Scenario

_LIMIT = 180.0  # seconds for all to connect and to hear of one another
_QUIET = 3.0  # seconds without an announcement, after which none is expected any more


def presence(run: Run) -> Rows:
    count = run.clients(1000)
    server = run.serve(presence=["bench:*"])
    start = run.cpu(server)
    [request] = server.requests([STREAM])
    members = [request.replace("\r\n\r\n", f"\r\nX-Member: m{n:05}\r\n\r\n") for n in range(count)]
    opening = {"group": "all", "port": server.port, "count": count, "requests": members}
    run.receive(None, _LIMIT, open=[opening], quiet=_QUIET, marker=server.marker, mark="event: presence", timed=False)
    got = run.received(_LIMIT)
    used = run.cpu(server) - start
    group = got["groups"]["all"]
    return {
        "": {
            "clients": count,
            "announcements": group["frames"],
            "mb": group["bytes"] / 1e6,
            "seconds": got["seconds"] - _QUIET,
            "cpu_s": used.server,
            "database_cpu_s": used.database,
            "load_cpu_s": got["cpu"],
        }
    }


PRESENCE = Scenario(
    "presence",
    "N members that join one stream at once: what all of them hear of one another",
    presence,
    ("clients", "announcements", "mb", "seconds", "cpu_s", "database_cpu_s", "load_cpu_s"),
)
