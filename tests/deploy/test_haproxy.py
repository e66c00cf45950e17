"""Debian's HAProxy with ``deploy/haproxy/haproxy.cfg`` as it stands, in front of two servers."""

from __future__ import annotations

import signal
import socket

import pytest
from browser_parts import missing
from place_parts import DEPLOY, SITE, Place, Running, program
from proxy_parts import (
    Servers,
    check_chromium,
    check_doctor,
    check_no_buffering,
    check_reload,
    check_routes,
    check_told_to_come_back,
    load,
    origin,
    redirected,
)

from pgbus_gevent.bus import Bus

ONE, TWO = "10.0.0.11", "10.0.0.12"
CONFIGURATION = (DEPLOY / "haproxy/haproxy.cfg").read_text()


@pytest.fixture
def haproxy(place: Place) -> Running:
    path = program("haproxy")
    site = (place.folder / "site.pem").read_text() + (place.folder / "site.key").read_text()
    place.configure("/etc/haproxy", {"haproxy.cfg": CONFIGURATION, f"{SITE}.pem": site})
    place.run(path, "-c", "-q", "-f", "/etc/haproxy/haproxy.cfg")
    found = place.start("haproxy", path, "-Ws", "-f", "/etc/haproxy/haproxy.cfg", "-p", "/run/haproxy.pid")
    found.until(lambda: place.accepts(443), "HAProxy accepts")
    return found


def reload(haproxy: Running) -> None:
    before = haproxy.children().keys()
    haproxy.signal(signal.SIGUSR2)
    haproxy.until(lambda: haproxy.children().keys() - before, "the new configuration serves")


def up(place: Place) -> list[str]:
    """Return the servers that HAProxy takes for ready, as its socket for operators says."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(place.path("/run/haproxy/admin.sock"))
        sock.sendall(b"show stat\n")
        with sock.makefile() as shown:
            rows = [line.split(",") for line in shown if line.startswith("pgbus,")]
    return [row[1] for row in rows if row[17] == "UP" and row[1] != "BACKEND"]


def test_haproxy_serves_every_route_and_loses_nothing_in_a_reload_and_a_drain(
    place: Place, haproxy: Running, bus: Bus, pgbus_database: str
) -> None:
    with Servers(place, pgbus_database) as servers:
        with origin(place) as site:
            haproxy.until(lambda: up(place) == [], "it knows that there is no server")
            check_told_to_come_back(site)
            for host in (ONE, TWO):
                servers.start(host)
            haproxy.until(lambda: up(place) == ["one", "two"], "it knows that both are ready")
            assert redirected(place) == f"https://{SITE}/orders?x=1"
            check_routes(site, bus)
            check_no_buffering(site, bus)
            check_doctor(place, bus, "HAProxy")
            if not missing():
                check_chromium(place, bus)
        # Half a minute less to wait for the former process.
        place.configure(
            "/etc/haproxy", {"haproxy.cfg": CONFIGURATION.replace("hard-stop-after 30s", "hard-stop-after 1s")}
        )
        reload(haproxy)
        haproxy.until(lambda: up(place) == ["one", "two"], "it knows that both are ready")
        with load(place, bus) as under:
            check_reload(under, lambda: reload(haproxy))
            servers.stop(ONE)
            under.until_more_came()
            servers.start(ONE)
            haproxy.until(lambda: up(place) == ["one", "two"], "it knows that both are ready again")
            servers.stop(TWO)
            under.until_more_came()
            under.judge()
            assert all("restart" in source.reasons for source in under.all)
            assert not any("unavailable" in source.reasons for source in under.all)
