"""Debian's nginx with the files of ``deploy/nginx`` as they stand, in front of a server whose socket a service manager keeps."""

from __future__ import annotations

from contextlib import closing

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

HOST = "127.0.0.1"
FILES = {path.relative_to(DEPLOY / "nginx").as_posix(): path.read_text() for path in (DEPLOY / "nginx").rglob("*.conf")}


@pytest.fixture
def nginx(place: Place) -> Running:
    place.configure("/etc/nginx", FILES)
    place.run(program("nginx"), "-t", "-q")
    found = place.start("nginx", program("nginx"), "-g", "daemon off;")
    found.until(lambda: place.accepts(443), "nginx accepts")
    return found


def workers(nginx: Running) -> set[int]:
    """Return the workers of nginx that take connections. Those of a former configuration are its children too."""
    titles = nginx.children().items()
    return {pid for pid, title in titles if "worker process" in title and "shutting down" not in title}


def reload(place: Place, nginx: Running) -> None:
    before = workers(nginx)
    place.run(program("nginx"), "-s", "reload")
    nginx.until(lambda: workers(nginx) and not before & workers(nginx), "the new configuration serves")


def test_nginx_serves_every_route_and_loses_nothing_in_a_reload_and_a_restart(
    place: Place, nginx: Running, bus: Bus, pgbus_database: str
) -> None:
    with Servers(place, pgbus_database) as servers:
        with origin(place) as site, closing(place.listen(8080)) as kept:
            servers.start(HOST, kept)
            assert redirected(place) == f"https://{SITE}/orders?x=1"
            check_routes(site, bus)
            check_no_buffering(site, bus)
            check_doctor(place, bus, "nginx")
            if not missing():
                check_chromium(place, bus)
            # Half a minute less to wait for the former workers.
            faster = FILES["nginx.conf"].replace("worker_shutdown_timeout 30s", "worker_shutdown_timeout 1s")
            place.configure("/etc/nginx", {"nginx.conf": faster})
            reload(place, nginx)
            with load(place, bus) as under:
                check_reload(under, lambda: reload(place, nginx))
                servers.stop(HOST)  # new clients wait in the queue of the socket, and none sees an error of nginx
                servers.start(HOST, kept)
                under.until_more_came()
                under.judge()
                assert all("restart" in source.reasons for source in under.all)
                assert not any("unavailable" in source.reasons for source in under.all)
            servers.stop(HOST)
        with origin(place) as site:  # nobody has the socket any more
            check_told_to_come_back(site)
        logged = place.run("sh", "-c", "cat /var/log/nginx/*.log")
        assert "GET" in logged and "/pgbus/streams" not in logged and "orders" not in logged


def test_curl_speaks_http_2_with_nginx(place: Place, nginx: Running) -> None:
    flags = [
        "--http2",
        "--cacert",
        "site.pem",
        "--resolve",
        f"{SITE}:443:127.0.0.1",
        "-w",
        "%{http_version} %{http_code}",
    ]
    assert place.run(program("curl"), "-s", *flags, f"https://{SITE}/pgbus/metrics", "-o", "/dev/null") == "2 404"
