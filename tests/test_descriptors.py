"""At the limit of open files: as many streams as fit, and health checks are answered all the same."""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack
from pathlib import Path

from support import until
from test_serve import SECRET, serving

LIMIT = 120
MOST = LIMIT // 2
REQUEST = b"GET /pgbus/streams/orders HTTP/1.1\r\nHost: test\r\nAccept: text/event-stream\r\n\r\n"


def first_of(sock: socket.socket) -> bytes:
    """What a server sends first that tells how it went."""
    data = b""
    sock.settimeout(10)
    while b"event: " not in data and (more := sock.recv(4096)):
        data += more
    return data


def test_at_the_limit_of_open_files_newcomers_are_told_and_health_checks_are_answered(
    tmp_path: Path, pgbus_database: str
) -> None:
    own = {"PGBUS_DATABASE_URL": pgbus_database, "PGBUS_SECRET": SECRET}
    (tmp_path / "app.py").write_text(
        "def application(environ, start_response):\n    start_response('200 OK', [])\n    return []\n"
    )
    with (
        serving(tmp_path, "app:application", "--public", "*", limit=LIMIT, **own) as served,
        ExitStack() as stack,
    ):
        assert f"{MOST} connections are taken at the most" in served.stderr

        def come() -> socket.socket:
            sock = stack.enter_context(socket.create_connection((served.host, served.port)))
            sock.sendall(REQUEST)
            return sock

        clients = [come() for _ in range(MOST)]
        assert all(b"pgbus:connected" in first_of(client) for client in clients)
        for _ in range(30):
            assert b'{"reason":"overloaded"}' in first_of(come())
        assert served.get("/pgbus/healthz").status == 200
        readiness = served.get("/pgbus/readyz")
        assert (readiness.status, json.loads(readiness.body)["reason"]) == (503, "overloaded")
        clients[0].close()
        until(lambda: served.get("/pgbus/readyz").status == 200, "there is room again")
        assert b"pgbus:connected" in first_of(come())
