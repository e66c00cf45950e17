"""nginx in front, with the configuration of deploy/nginx on other ports: streams go through, and no EventSource ends because the
server behind it is away. tests/deploy has it as it stands, with TLS."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from host_parts import (
    assert_a_client_is_told_to_come_back,
    assert_an_event_source_outlives_a_restart,
    deployed,
    servers_at,
)
from raw_http import ask
from support import free_port, until

from pgbus_gevent.bus import Bus
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.testing.client import StreamClient

NGINX = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed: apt-get install nginx")


def recipe(port: int, upstream: int, folder: str = "") -> str:
    """The configuration of the site, without TLS and HTTP/2, on our ports."""
    return deployed(
        "nginx/conf.d/pgbus.conf",
        {
            "listen 443 ssl http2;": f"listen 127.0.0.1:{port};",
            "listen 80;": f"listen unix:{folder}/plain.sock;",
            "  ssl_certificate     /etc/ssl/certs/live.example.com.pem;\n": "",
            "  ssl_certificate_key /etc/ssl/private/live.example.com.key;\n": "",
            "/var/log/nginx/error.log": f"{folder}/error.log",
            "127.0.0.1:8080": f"127.0.0.1:{upstream}",
        },
    )


@pytest.fixture
def ports() -> tuple[int, int]:
    return free_port(), free_port()


@pytest.fixture
def nginx(request: pytest.FixtureRequest, ports: tuple[int, int], tmp_path: Path) -> Iterator[int]:
    """The port of nginx. A test may shorten its timeout for the server."""
    configured = recipe(*ports, str(tmp_path)).replace(
        "proxy_read_timeout 60s", f"proxy_read_timeout {getattr(request, 'param', '60s')}"
    )
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"{kind}_temp_path {tmp_path}/{kind};\n" for kind in kinds)
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {tmp_path}/pid; error_log {tmp_path}/error.log;\n"
        f"events {{ worker_connections 256; }}\nhttp {{\naccess_log off;\n{paths}{configured}\n}}\n"
    )
    process = subprocess.Popen([str(NGINX), "-p", str(tmp_path), "-e", "stderr", "-c", "nginx.conf"])

    def answers() -> bool:
        assert process.poll() is None, "nginx has ended"
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", ports[0])) == 0

    try:
        until(answers, "nginx accepts")
        yield ports[0]
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def serve(ports: tuple[int, int], pgbus_settings: Settings) -> Iterator[Callable[[], Callable[[], None]]]:
    """Starts the server behind nginx, and returns a function that stops it."""
    with servers_at(ports[1], pgbus_settings) as start:
        yield start


def test_the_application_goes_through_too_but_not_what_is_for_operators(
    nginx: int, serve: Callable[[], object]
) -> None:
    """The module for browsers is served beside the application. The metrics may be open, so the proxy does not pass them on."""
    serve()
    assert ask(nginx, "/pgbus/readyz").status == 200
    assert "javascript" in ask(nginx, "/pgbus/pgbus.js").headers["content-type"]
    answers = [ask(nginx, f"/pgbus/{name}") for name in ("metrics", "console", "console/feed")]
    assert [(answer.status, answer.headers["server"][:5]) for answer in answers] == [(404, "nginx")] * 3


def test_a_stream_goes_through_at_once_and_whole(nginx: int, serve: Callable[[], object], pgbus_bus) -> None:
    serve()
    orders = pgbus_bus.stream("orders")
    with StreamClient(f"http://127.0.0.1:{nginx}", "/pgbus/streams/orders") as client:
        client.next("pgbus:connected")
        for _ in range(3):
            id = orders.broadcast("ok")
            assert (client.next().data, client.last_id) == ("ok", str(id))
        orders.broadcast("x" * 1_000_000)
        assert len(client.next().data) == 1_000_000


def test_a_client_that_asks_for_events_while_the_server_is_away_is_told_to_come_back(nginx: int) -> None:
    assert_a_client_is_told_to_come_back(nginx)


def test_an_event_source_outlives_a_restart_of_the_server_behind_nginx(
    nginx: int, serve: Callable[[], Callable[[], None]], pgbus_bus: Bus
) -> None:
    assert_an_event_source_outlives_a_restart(nginx, serve, pgbus_bus)


def test_the_proxy_waits_longer_than_a_stream_is_quiet() -> None:
    (seconds,) = re.findall(r"proxy_read_timeout (\d+)s;", recipe(1, 2))
    assert int(seconds) >= 3 * Settings(database_url="postgresql:///x", secret="x" * 32).heartbeat
