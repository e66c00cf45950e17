"""The same application in uWSGI's gevent loop, with real processes and sockets."""

from __future__ import annotations

import shlex
import signal
import sys
from pathlib import Path

import pytest
from host_parts import APP, check_streams, host, shutdown_retry
from page_parts import block_of
from support import PATIENCE, until

UWSGI = Path(sys.executable).with_name("uwsgi")

pytestmark = pytest.mark.skipif(not UWSGI.exists(), reason="uwsgi is not installed")

HOOK = block_of("docs/workers.md", "atexit")
WORDS = shlex.split(block_of("docs/workers.md", "uwsgi").replace("\\\n", ""))
COMMAND = [str(UWSGI), *("127.0.0.1:PORT" if word == ":8080" else word for word in WORDS[1:]), "--need-app"]


@pytest.mark.parametrize("lazy", [(), ("--lazy-apps",)], ids=["forked", "lazy"])
def test_it_streams_sees_clients_leave_and_closes_slow_ones(
    lazy: tuple[str, ...], tmp_path: Path, pgbus_database: str
) -> None:
    (tmp_path / "app.py").write_text(APP + HOOK)
    variables = {"PGBUS_HEARTBEAT": "1", "PGBUS_WRITE_DEADLINE": "4"}
    one = [*COMMAND, "--processes", "1", *lazy]
    with host(tmp_path, pgbus_database, *one, **variables) as served, served.live() as client, served.live() as slow:
        check_streams(served, pgbus_database, client, slow)
        served.signal()
        assert 1000 <= shutdown_retry(client) <= 5000
        served.wait(PATIENCE)
        assert "Traceback" not in served.errors


def test_a_reload_sends_the_clients_away_too(tmp_path: Path, pgbus_database: str) -> None:
    (tmp_path / "app.py").write_text(APP + HOOK)
    with host(tmp_path, pgbus_database, *COMMAND, workers=2) as served, served.live() as client:
        served.signal(signal.SIGHUP)
        assert 1000 <= shutdown_retry(client) <= 5000
        until(lambda: len(served.serving(2)) == 2, "it serves again")
        client.resume()
        client.next("pgbus:connected")
