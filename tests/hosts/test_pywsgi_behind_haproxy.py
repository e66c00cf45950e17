"""HAProxy in front, with the configuration of deploy/haproxy on other ports: streams go through whole, over HTTP/1.1 and HTTP/2,
and no EventSource ends because the server behind it is away. tests/deploy has it as it stands, with TLS."""

from __future__ import annotations

import json
import secrets
import shutil
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
from support import PATIENCE, free_port, until
from ways import found

from pgbus_gevent.bus import Bus
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.testing.client import StreamClient


@pytest.fixture
def ports() -> tuple[int, int]:
    return free_port(), free_port()


def status(port: int, path: str) -> int:
    """The status of a GET; 0 if there is no answer."""
    try:
        return ask(port, path).status
    except OSError:
        return 0


@pytest.fixture
def haproxy(ports: tuple[int, int], tmp_path: Path) -> Iterator[int]:
    """The port of HAProxy."""
    recipe = deployed(
        "haproxy/haproxy.cfg",
        {
            "  log /dev/log local0\n": "",
            "  user haproxy\n  group haproxy\n  chroot /var/lib/haproxy\n": "",
            "/run/haproxy/admin.sock": str(tmp_path / "admin.sock"),
            "maxconn 8000 ": "maxconn 100 ",
            "  bind :80\n": "",
            "bind :443 ssl crt /etc/haproxy/live.example.com.pem alpn h2,http/1.1": f"bind 127.0.0.1:{ports[0]}",
            "  http-request redirect scheme https code 301 unless { ssl_fc }\n": "",
            "10.0.0.11:8080": f"127.0.0.1:{ports[1]}",
            "  server two 10.0.0.12:8080 track pgbus/two\n": "",
            "  server two 10.0.0.12:8080\n": "",
            "check inter 1s": "check inter 100ms",
            # The server is in this process, which may stand still.
            "  timeout check 5s ": f"  timeout check {PATIENCE:.0f}s ",
        },
    )
    (tmp_path / "haproxy.cfg").write_text(recipe)
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen([found("haproxy"), "-f", str(tmp_path / "haproxy.cfg")], stdout=log, stderr=log)

    def answers() -> bool:
        assert process.poll() is None, (tmp_path / "log").read_text()
        return bool(status(ports[0], "/"))

    try:
        until(answers, "HAProxy accepts")
        yield ports[0]
    finally:
        process.kill()
        process.wait(10)


@pytest.fixture
def serve(ports: tuple[int, int], pgbus_settings: Settings) -> Iterator[Callable[[], Callable[[], None]]]:
    """Starts the server behind HAProxy, and returns a function that stops it."""
    with servers_at(ports[1], pgbus_settings) as start:

        def ready() -> Callable[[], None]:
            stop = start()
            # HAProxy checks the server from time to time.
            until(lambda: status(ports[0], "/pgbus/readyz") == 200, "HAProxy knows that it is ready")
            return stop

        yield ready


def test_a_stream_goes_through_at_once_and_whole(
    haproxy: int, serve: Callable[[], object], pgbus_bus: Bus, pgbus_settings: Settings
) -> None:
    serve()
    orders = pgbus_bus.stream("orders")
    with StreamClient(f"http://127.0.0.1:{haproxy}", "/pgbus/streams/orders") as client:
        client.next("pgbus:connected")
        for _ in range(3):
            id = orders.broadcast("ok")
            assert (client.next().data, client.last_id) == ("ok", str(id))
        orders.broadcast("x" * 1_000_000)
        assert len(client.next(timeout=PATIENCE).data) == 1_000_000
    names = [pgbus_bus.sign(secrets.token_urlsafe(185), expires_in=3600) for _ in range(32)]
    many = "/pgbus/streams?" + "&".join(f"stream={name}&since=1764000000000000" for name in names)
    assert len(many) > 12_000
    with StreamClient(f"http://127.0.0.1:{haproxy}", many) as client:
        assert len(json.loads(client.next("pgbus:connected").data)["streams"]) == 32


def test_over_http_2_too(haproxy: int, serve: Callable[[], object], pgbus_bus: Bus) -> None:
    curl = shutil.which("curl")
    if curl is None or b"HTTP2" not in subprocess.run([curl, "-V"], stdout=subprocess.PIPE).stdout:
        pytest.skip("there is no curl with HTTP/2")
    serve()
    ids = [pgbus_bus.stream("orders").broadcast(str(n)) for n in range(3)]
    url = f"http://127.0.0.1:{haproxy}/pgbus/streams/orders?since=0"
    with subprocess.Popen(
        [curl, "-sN", "--http2-prior-knowledge", "-i", url], stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout is not None
        seen: list[str] = []
        while not seen or seen[-1] != f"id: {ids[-1]}":
            seen.append(reader.stdout.readline().rstrip("\r\n"))
        reader.kill()
    assert seen[0] == "HTTP/2 200 " and not [line for line in seen if line.startswith("transfer-encoding")]
    assert [line for line in seen if line in [f"id: {id}" for id in ids]] == [f"id: {id}" for id in ids]


def test_a_client_that_asks_for_events_while_the_server_is_away_is_told_to_come_back(haproxy: int) -> None:
    assert_a_client_is_told_to_come_back(haproxy)
    assert ask(haproxy, "/elsewhere", Accept="text/event-stream").status == 503


def test_an_event_source_outlives_a_restart_of_the_server_behind_it(
    haproxy: int, serve: Callable[[], Callable[[], None]], pgbus_bus: Bus
) -> None:
    assert_an_event_source_outlives_a_restart(haproxy, serve, pgbus_bus)
