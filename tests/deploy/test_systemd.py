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

import pgbus_gevent
from pgbus_gevent.hosts import running, serving, workers
from pgbus_gevent.settings.table import Settings

UNITS = DEPLOY / "systemd"
SERVICE = (UNITS / "pgbus.service").read_text()
PAGE = "docs/operations/deployment.md"
MOST_EXPOSED = 15
"""The most that a service may be exposed, in tenths: systemd-analyze says "OK" up to 5.0, and 9.6 without any measure."""

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


def value(name: str) -> str:
    [found] = re.findall(rf"^{name}=(.*)$", SERVICE, re.M)
    return str(found)


@pytest.fixture
def installed(place: Place) -> Place:
    """Return a place in which the commands of the page were run, and the package is where the unit expects it."""
    for folder in ("/etc", "/srv"):  # copies, so that no user and no file comes into the system
        place.configure(folder, {})
    script = "mkdir -p /srv/pgbus/.venv /srv/pgbus/pgbus_gevent"
    script += '; mount --bind "$1" /srv/pgbus/.venv; mount --bind "$2" /srv/pgbus/pgbus_gevent'
    place.run("sh", "-ec", script, "sh", sys.prefix, str(Path(pgbus_gevent.__file__).parent))
    place.run("sh", "-euc", f"cd {DEPLOY.parent}\n{block_of('docs/operations/deployment.md', 'systemd')}")
    return place


def test_the_units_are_right_and_hardened(installed: Place) -> None:
    assert installed.run("systemd-analyze", "verify", "--man=no", "pgbus.service", "pgbus.socket") == ""
    security = ("systemd-analyze", "security", "--offline=yes", "--no-pager", "pgbus.service")
    said = installed.run(*security, f"--threshold={MOST_EXPOSED}")
    [exposure] = re.findall(r"Overall exposure level for pgbus.service: (\S+) OK", said)
    [told] = re.findall(r"rates the service (\S+) of 10", " ".join((DEPLOY.parent / PAGE).read_text().split()))
    assert abs(float(exposure) - float(told)) < 0.3  # releases of systemd differ a little
    # The checks find what is wrong.
    broken = SERVICE.replace("WatchdogSec=30", "WatchdogSec=often").replace("CapabilityBoundingSet=", "")
    installed.configure("/etc/systemd/system", {"pgbus.service": broken})
    assert "often" in installed.run("systemd-analyze", "verify", "--man=no", "pgbus.service")
    with pytest.raises(AssertionError):
        installed.run(*security, f"--threshold={MOST_EXPOSED}")


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
    passed = [
        f"--setenv={name}"
        for name in ("PGBUS_DATABASE_URL", "PGBUS_SECRET", "PGBUS_PUBLIC", "PGBUS_PORT", "PYTHONPATH")
    ]
    command = [activate, f"--listen=127.0.0.1:{port}", *passed, sys.executable, *words[1:]]
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
