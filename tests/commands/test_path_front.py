"""What ``doctor URL`` finds before it opens a stream, where something answers that is not the server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from doctor_parts import checked
from faulty_proxy_parts import NGINX, nginx_with

from pgbus_gevent.commands.finding import FAIL, OK, Finding
from pgbus_gevent.commands.path_client import Address
from pgbus_gevent.commands.path_front import FrontChecks
from pgbus_gevent.core.names import Signer
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.streamer.instance import Instance
from pgbus_gevent.testing.databases import TestDatabases
from pgbus_gevent.testing.servers import SECRET, RunningServer
from pgbus_gevent.web.stream_app import StreamApp


@pytest.fixture(scope="module")
def server(pgbus_databases: TestDatabases) -> Iterator[RunningServer]:
    settings = Settings(database_url=pgbus_databases.make(), secret=(SECRET,), grace=1.0)
    instance = Instance(settings).start()
    server = RunningServer(StreamApp(instance), settings.prefix)
    yield server
    server.stop()
    instance.shutdown()


def look(port: int, secret: str = SECRET) -> tuple[dict[str, Finding], bool]:
    token = Signer((secret,)).sign("doctor:test", None)
    checks = FrontChecks(Address(f"http://127.0.0.1:{port}", prefix="/pgbus"), f"/streams/{token}")
    return {found.check: checked(found) for found in checks.findings()}, checks.passes


def streams(location: str, others: str = "return 404;") -> str:
    """Return what stands in nginx's location / if the streams have another one."""
    return f"{others} }} location /pgbus/streams {{ {location}"


def test_a_front_may_pass_on_the_streams_alone(server: RunningServer, tmp_path: Path) -> None:
    """As the Ingress of deploy/kubernetes does."""
    with nginx_with(tmp_path, server.port, streams(NGINX)) as port:
        found, passes = look(port)
        _, passes_with_another_secret = look(port, "another secret of 16")
    assert passes and found["server"].level == OK and "healthz and readyz are not passed on" in found["server"].text
    assert found["server"].figures["ready"] is None
    assert not passes_with_another_secret


@pytest.mark.parametrize(
    ("location", "check"),
    [("return 302 /login;", "server"), (streams("return 302 /login;", NGINX), "stream")],
    ids=["everything", "the streams"],
)
def test_a_redirect_to_a_login_says_how_to_get_past_it(
    location: str, check: str, server: RunningServer, tmp_path: Path
) -> None:
    with nginx_with(tmp_path, server.port, location) as port:
        found, passes = look(port)
    assert not passes and found[check].level == FAIL and "/login" in found[check].text
    assert "--header" in found[check].todo and "nginx" not in found[check].todo


def test_a_page_in_place_of_the_streams_is_a_failure(server: RunningServer, tmp_path: Path) -> None:
    page = "default_type text/html; return 200 '<html>a page</html>';"
    with nginx_with(tmp_path, server.port, streams(page, NGINX)) as port:
        found, passes = look(port)
    assert not passes and found["stream"].level == FAIL and "status 200, '<html>a page</html>'" in found["stream"].text
