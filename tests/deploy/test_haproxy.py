"""Debian's HAProxy with ``deploy/haproxy/haproxy.cfg`` as it stands, in front of two servers."""

from __future__ import annotations

import signal
import socket

import pytest
from place_parts import DEPLOY, SITE, Place, Running, program
from proxy_parts import (
    Servers,
    check_no_buffering,
    check_reload,
    check_routes,
    check_told_to_come_back,
    load,
    origin,
    redirected,
)

from pgbus_gevent.bus import Bus

HOSTS = "10.0.0.11", "10.0.0.12"
CONFIGURATION = (DEPLOY / "haproxy/haproxy.cfg").read_text()


@pytest.fixture(scope="module")
def haproxy(place: Place) -> Running:
    path = program("haproxy")
    site = (place.folder / "site.pem").read_text() + (place.folder / "site.key").read_text()
    place.configure("/etc/haproxy", {"haproxy.cfg": CONFIGURATION, f"{SITE}.pem": site})
    place.run(path, "-c", "-q", "-f", "/etc/haproxy/haproxy.cfg")
    found = place.start("haproxy", path, "-Ws", "-f", "/etc/haproxy/haproxy.cfg", "-p", "/run/haproxy.pid")
    found.until(lambda: place.accepts(443), "HAProxy accepts")
    return found


@pytest.fixture(scope="module")
def servers(place: Place, database_url: str) -> Servers:
    return Servers(place, database_url, *HOSTS)


def up(place: Place) -> list[str]:
    """Return the servers that HAProxy takes for ready, as its socket for operators says."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(place.path("/run/haproxy/admin.sock"))
        sock.sendall(b"show stat\n")
        with sock.makefile() as shown:
            rows = [line.split(",") for line in shown if line.startswith("pgbus,")]
    return [row[1] for row in rows if row[17] == "UP" and row[1] != "BACKEND"]


def test_event_sources_are_told_to_come_back_while_no_server_is_ready(place: Place, haproxy: Running) -> None:
    haproxy.until(lambda: up(place) == [], "it knows that there is none")
    with origin(place) as site:
        check_told_to_come_back(site)


def test_every_route_over_http_2_and_no_buffering(place: Place, haproxy: Running, servers: Servers, bus: Bus) -> None:
    for host in HOSTS:
        servers.start(host)
    haproxy.until(lambda: up(place) == ["one", "two"], "it knows that both are ready")
    assert redirected(place) == f"https://{SITE}/orders?x=1"
    with origin(place) as site:
        check_routes(site, bus)
        check_no_buffering(site, bus)


def test_a_reload_and_a_drain_under_load_lose_nothing(
    place: Place, haproxy: Running, servers: Servers, bus: Bus
) -> None:
    # Half a minute less to wait for the former process.
    faster = CONFIGURATION.replace("hard-stop-after 30s", "hard-stop-after 1s")
    place.configure("/etc/haproxy", {"haproxy.cfg": faster})
    before = haproxy.children().keys()
    haproxy.signal(signal.SIGUSR2)
    haproxy.until(lambda: not before & haproxy.children().keys(), "it has the new configuration")
    haproxy.until(lambda: up(place) == ["one", "two"], "it knows that both are ready")
    with load(place, bus) as under:
        former = haproxy.children().keys()
        check_reload(
            haproxy, under, lambda: haproxy.signal(signal.SIGUSR2), lambda: not former & haproxy.children().keys()
        )
        for host in HOSTS:  # a deployment, one server after the other
            servers.stop(host)
            servers.start(host)
            haproxy.until(lambda: up(place) == ["one", "two"], "it knows that both are ready")
            under.until_more_came()
        under.judge()
        assert all("restart" in source.reasons for source in under.all)
        assert not any("unavailable" in source.reasons for source in under.all)
