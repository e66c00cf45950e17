"""The units of ``deploy/systemd``, by Debian's own tools."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
from host_parts import Host
from page_parts import block_of
from place_parts import DEPLOY, Place
from support import free_port, until

from pgbus_gevent.hosts import running, serving, workers
from pgbus_gevent.settings.table import Settings

UNITS = DEPLOY / "systemd"
SERVICE = (UNITS / "pgbus.service").read_text()
MOST_EXPOSED = 15
"""The most that a service may be exposed, in tenths: systemd-analyze says "OK" up to 5.0, and 9.6 without any measure."""

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


def value(name: str) -> str:
    [found] = re.findall(rf"^{name}=(.*)$", SERVICE, re.M)
    return str(found)


@pytest.fixture(scope="module")
def installed(place: Place) -> Place:
    """Return a place in which the commands of the page were run, and the package is where the unit expects it."""
    for folder in ("/etc", "/srv"):  # copies, so that no user and no file comes into the system
        place.configure(folder, {})
    place.run("mkdir", "-p", "/srv/pgbus/.venv/bin")
    place.run("ln", "-s", sys.executable, "/srv/pgbus/.venv/bin/python")
    place.run("sh", "-euc", f"cd {DEPLOY.parent}\n{block_of('docs/operations/deployment.md', 'systemd')}")
    return place


def test_the_units_are_right(installed: Place) -> None:
    said = installed.run("systemd-analyze", "verify", "--man=no", "pgbus.service", "pgbus.socket")
    assert said == ""


def test_a_mistake_in_a_unit_is_found(installed: Place) -> None:
    broken = SERVICE.replace("WatchdogSec=30", "WatchdogSec=often")
    installed.configure("/etc/systemd/system", {"broken.service": broken})
    with pytest.raises(AssertionError):
        installed.run("systemd-analyze", "verify", "--man=no", "broken.service")


def test_the_service_is_hardened(installed: Place) -> None:
    said = installed.run(
        "systemd-analyze", "security", "--offline=yes", f"--threshold={MOST_EXPOSED}", "--no-pager", "pgbus.service"
    )
    assert "Overall exposure level for pgbus.service" in said


def test_the_times_of_the_unit_are_longer_than_what_they_wait_for() -> None:
    settings = Settings(database_url="postgresql:///x", secret="x" * 32)
    end = settings.grace + serving.SPARE + workers.MARGIN + running.HARD_LIMIT
    assert int(value("TimeoutStopSec")) > end
    assert int(value("TimeoutStartSec")) > 60 + settings.connect_timeout


def test_the_socket_is_served_when_it_is_passed(tmp_path: Path, pgbus_database: str) -> None:
    """systemd-socket-activate starts the command of the unit when the first connection comes."""
    activate = shutil.which("systemd-socket-activate")
    assert activate is not None
    port = free_port()
    words = value("ExecStart").replace("$APP", "app:app").split()
    assert words[0].endswith("/bin/python")
    command = [activate, "-l", f"127.0.0.1:{port}", sys.executable, *words[1:]]
    served = Host(tmp_path, pgbus_database, command, PGBUS_PORT="1")
    served.port, served.url = port, f"http://127.0.0.1:{port}"
    try:
        until(lambda: "Listening on" in served.errors, "it listens")
        served.wait_until_it_serves()
        with served.live() as client:
            served.signal()
            client.wait_closed()
        assert served.wait() == 0, served.errors
    finally:
        served.close()
