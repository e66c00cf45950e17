"""Debian's Caddy with ``deploy/caddy/Caddyfile`` as it stands, in front of two servers."""

from __future__ import annotations

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
CONFIGURATION = (DEPLOY / "caddy/Caddyfile").read_text()
FILE = "/etc/caddy/Caddyfile"


@pytest.fixture(scope="module")
def caddy(place: Place) -> Running:
    path = program("caddy")
    place.configure("/etc/caddy", {"Caddyfile": CONFIGURATION})
    place.run(path, "validate", "--config", FILE, "--adapter", "caddyfile")
    found = place.start(
        "caddy", path, "run", "--config", FILE, "--adapter", "caddyfile", HOME="/run", XDG_DATA_HOME="/run"
    )
    found.until(lambda: place.accepts(443), "Caddy accepts")
    return found


@pytest.fixture(scope="module")
def servers(place: Place, database_url: str) -> Servers:
    return Servers(place, database_url, *HOSTS)


def test_event_sources_are_told_to_come_back_while_no_server_is_ready(place: Place, caddy: Running) -> None:
    with origin(place) as site:
        check_told_to_come_back(site)


def test_every_route_over_http_2_and_no_buffering(place: Place, caddy: Running, servers: Servers, bus: Bus) -> None:
    for host in HOSTS:
        servers.start(host)
    assert redirected(place) == f"https://{SITE}/orders?x=1"
    with origin(place) as site:
        caddy.until(lambda: site.connection().ask("/pgbus/readyz").status == 200, "it knows that one is ready")
        check_routes(site, bus)
        check_no_buffering(site, bus)


def test_a_reload_and_a_drain_under_load_lose_nothing(place: Place, caddy: Running, servers: Servers, bus: Bus) -> None:
    # Half a minute less to wait for the former configuration.
    place.configure("/etc/caddy", {"Caddyfile": CONFIGURATION.replace("grace_period 30s", "grace_period 1s")})
    reload = [program("caddy"), "reload", "--force", "--config", FILE, "--adapter", "caddyfile"]
    place.run(*reload)
    with load(place, bus) as under:
        check_reload(caddy, under, lambda: place.run(*reload), lambda: True)
        for host in HOSTS:  # a deployment, one server after the other
            servers.stop(host)
            servers.start(host)
            under.until_more_came()
        under.judge()
        assert all("restart" in source.reasons for source in under.all)
