"""At the limit of open files, as many streams as fit are served, and health checks are still answered."""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from raw_http import read_until
from serve_parts import SECRET, serving
from support import PATIENCE, holds, run, session, until

from pgbus_gevent.database import Database, schema
from pgbus_gevent.settings.table import Settings

LIMIT = 120
MOST = LIMIT // 2
APP = "def application(environ, start_response):\n    start_response('200 OK', [])\n    return []\n"
REQUEST = b"GET /pgbus/streams/orders HTTP/1.1\r\nHost: test\r\nAccept: text/event-stream\r\n\r\n"


def first_of(sock: socket.socket) -> bytes:
    """The first bytes from the server, which show what happened."""
    data = b""
    sock.settimeout(PATIENCE)
    while b"event: " not in data and (more := sock.recv(4096)):
        data += more
    return data


def test_the_migrations_are_read_once_so_that_looking_after_the_schema_needs_no_file(
    pgbus_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(Database(pgbus_settings)) as database:
        assert database.prepare()
        monkeypatch.setattr(schema, "files", None)
        database.check_life()


def test_more_refusals_than_there_are_descriptors_end_nothing(tmp_path: Path, pgbus_database: str) -> None:
    own = {"PGBUS_DATABASE_URL": pgbus_database, "PGBUS_SECRET": SECRET}
    (tmp_path / "app.py").write_text(APP)
    with (
        serving(tmp_path, "app:application", "--public", "*", limit=80, **own) as served,
        ExitStack() as stack,
    ):
        socks = []
        for _ in range(240):
            sock = stack.enter_context(socket.create_connection((served.host, served.port)))
            sock.sendall(REQUEST)
            socks.append(sock)
        connected = [sock for sock in socks[:40] if b"pgbus:connected" in first_of(sock)]
        assert len(connected) == 40
        # Most refusals of this client are held for seconds by now, and each new one takes the place of an older one.
        until(lambda: status(served, "/pgbus/healthz") == 200, "it tells of its health", 3.0)
        holds(lambda: status(served, "/pgbus/healthz") == 200, "and goes on to", 5.0)
        with session(pgbus_database) as connection:
            run(connection, "select pgbus.broadcast('orders', 'still there')")
        for sock in connected:
            read_until(sock, b"still there")


def status(served: Any, path: str) -> int:
    try:
        return int(served.get(path).status)
    except OSError:
        return 0


def test_at_the_limit_of_open_files_newcomers_are_told_and_health_checks_are_answered(
    tmp_path: Path, pgbus_database: str
) -> None:
    own = {"PGBUS_DATABASE_URL": pgbus_database, "PGBUS_SECRET": SECRET}
    (tmp_path / "app.py").write_text(APP)
    with (
        serving(tmp_path, "app:application", "--public", "*", limit=LIMIT, **own) as served,
        ExitStack() as stack,
    ):
        assert f"{MOST} connections are accepted at most" in served.stderr

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
