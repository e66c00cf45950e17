"""Debian's Caddy with ``deploy/caddy/Caddyfile`` as it stands, in front of two servers."""

from __future__ import annotations

import pytest
from place_parts import DEPLOY, SITE, Place, Running, program
from proxy_parts import (
    Servers,
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
CONFIGURATION = (DEPLOY / "caddy/Caddyfile").read_text()
FILE = ("--config", "/etc/caddy/Caddyfile", "--adapter", "caddyfile")


@pytest.fixture
def caddy(place: Place) -> Running:
    path = program("caddy")
    place.configure("/etc/caddy", {"Caddyfile": CONFIGURATION})
    place.run(path, "validate", *FILE)
    found = place.start("caddy", path, "run", *FILE, HOME="/run", XDG_DATA_HOME="/run", XDG_CONFIG_HOME="/run")
    found.until(lambda: place.accepts(443), "Caddy accepts")
    return found


def test_caddy_serves_every_route_and_loses_nothing_in_a_reload_and_a_drain(
    place: Place, caddy: Running, bus: Bus, pgbus_database: str
) -> None:
    with Servers(place, pgbus_database) as servers:
        with origin(place) as site:
            check_told_to_come_back(site)
            for host in (ONE, TWO):
                servers.start(host)
            assert redirected(place) == f"https://{SITE}/orders?x=1"
            caddy.until(lambda: site.connection().ask("/pgbus/readyz").status == 200, "it knows that one is ready")
            check_routes(site, bus)
            check_no_buffering(site, bus)
            check_doctor(place, bus, "Caddy")
        # Half a minute less to wait for the former configuration.
        place.configure("/etc/caddy", {"Caddyfile": CONFIGURATION.replace("grace_period 30s", "grace_period 1s")})
        reload = [program("caddy"), "reload", "--force", *FILE]
        place.run(*reload)
        with load(place, bus) as under:
            check_reload(under, lambda: place.run(*reload))
            servers.stop(ONE)
            under.until_more_came()
            servers.start(ONE)
            under.until_more_came()
            servers.stop(TWO)
            under.until_more_came()
            under.judge()
            assert any("restart" in source.reasons for source in under.all)
