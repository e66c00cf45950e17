"""Debian's nginx with the files of ``deploy/nginx`` as they stand, in front of a server whose socket a service manager keeps."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing

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

HOST = "127.0.0.1"
FILES = {path.relative_to(DEPLOY / "nginx").as_posix(): path.read_text() for path in (DEPLOY / "nginx").rglob("*.conf")}


@pytest.fixture(scope="module")
def nginx(place: Place) -> Running:
    path = program("nginx")
    place.configure("/etc/nginx", FILES)
    place.run(path, "-t", "-q")
    found = place.start("nginx", path, "-g", "daemon off;")
    found.until(lambda: place.accepts(443), "nginx accepts")
    return found


@pytest.fixture(scope="module")
def servers(place: Place, database_url: str) -> Servers:
    return Servers(place, database_url, HOST)


@pytest.fixture(scope="module")
def sock(place: Place) -> Iterator[socket.socket]:
    with closing(place.listen(8080)) as found:
        yield found


def workers(nginx: Running) -> set[int]:
    """Return the workers of nginx that take connections. Those of a former configuration are its children too."""
    titles = nginx.children().items()
    return {pid for pid, title in titles if "worker process" in title and "shutting down" not in title}


def test_event_sources_are_told_to_come_back_while_the_server_is_away(place: Place, nginx: Running) -> None:
    with origin(place) as site:
        check_told_to_come_back(site)


def test_every_route_over_http_2_and_no_buffering(
    place: Place, nginx: Running, servers: Servers, sock: socket.socket, bus: Bus
) -> None:
    servers.start(HOST, sock)
    assert redirected(place) == f"https://{SITE}/orders?x=1"
    with origin(place) as site:
        check_routes(site, bus)
        check_no_buffering(site, bus)
    flags = [
        "--http2",
        "--cacert",
        "site.pem",
        "--resolve",
        f"{SITE}:443:127.0.0.1",
        "-w",
        "%{http_version} %{http_code}",
    ]
    assert place.run("curl", "-s", *flags, f"https://{SITE}/pgbus/readyz", "-o", "/dev/null") == "2 200"


def test_a_reload_and_a_restart_under_load_lose_nothing(
    place: Place, nginx: Running, servers: Servers, sock: socket.socket, bus: Bus
) -> None:
    # Half a minute less to wait for the former workers.
    place.configure(
        "/etc/nginx", {"nginx.conf": FILES["nginx.conf"].replace("shutdown_timeout 30s", "shutdown_timeout 1s")}
    )
    place.run(program("nginx"), "-s", "reload")
    with load(place, bus) as under:
        before = workers(nginx)
        check_reload(
            nginx, under, lambda: place.run(program("nginx"), "-s", "reload"), lambda: not before & workers(nginx)
        )
        servers.stop(HOST)  # new clients wait in the queue of the socket, and none sees an error of nginx
        servers.start(HOST, sock)
        under.until_more_came()
        under.judge()
        assert all("restart" in source.reasons for source in under.all)
        assert not any("unavailable" in source.reasons for source in under.all)


def test_the_logs_have_no_names_of_streams(place: Place, nginx: Running) -> None:
    logged = place.run("sh", "-c", "cat /var/log/nginx/*.log")
    assert "GET" in logged and "/pgbus/streams" not in logged and "orders" not in logged
