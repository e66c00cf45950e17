"""The units of ``deploy/systemd``, by Debian's own tools, and under systemd itself."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import psycopg2.extensions as ext
import pytest
from host_parts import Browser, Host
from page_parts import block_of
from place_parts import DEPLOY, Place
from proxy_parts import APP
from support import PATIENCE, free_port, until
from systemd_parts import Manager

import pgbus_gevent
from pgbus_gevent.bus import Bus
from pgbus_gevent.hosts import running, serving, workers
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.testing.servers import SECRET

UNITS = DEPLOY / "systemd"
SERVICE = (UNITS / "pgbus.service").read_text()
PAGE = "docs/operations/deployment.md"
MOST_EXPOSED = 15
"""The most that a service may be exposed, in tenths: systemd-analyze says "OK" up to 5.0, and 9.6 without any measure."""

# The interpreter may be in a home directory, which the service does not see, so it gets another place too.
INSTALL = """
cd /srv
mkdir -p python pgbus/.venv/bin pgbus/.venv/lib pgbus/pgbus_gevent
mount --bind "$1" python
mount --bind "$2/lib" pgbus/.venv/lib
mount --bind "$3" pgbus/pgbus_gevent
ln -s "/srv/python/bin/$4" pgbus/.venv/bin/python
echo "home = /srv/python/bin" >pgbus/.venv/pyvenv.cfg
"""

DROP_IN = """
[Service]
WatchdogSec=3
StandardError=append:/var/log/pgbus.log
Environment=LD_LIBRARY_PATH=/srv/python/lib
"""

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


def value(name: str) -> str:
    [found] = re.findall(rf"^{name}=(.*)$", SERVICE, re.M)
    return str(found)


@pytest.fixture
def installed(place: Place) -> Place:
    """Return a place in which the commands of the page were run, and the package is where the unit expects it."""
    for folder in ("/etc", "/srv"):  # copies, so that no user and no file comes into the system
        place.configure(folder, {})
    arguments = [
        sys.base_prefix,
        sys.prefix,
        str(Path(pgbus_gevent.__file__).parent),
        Path(sys.executable).resolve().name,
    ]
    place.run("sh", "-ec", INSTALL, "sh", *arguments)
    place.run("sh", "-euc", f"cd {DEPLOY.parent}\n{block_of('docs/operations/deployment.md', 'systemd')}")
    return place


@contextmanager
def reachable(place: Place, url: str) -> Iterator[str]:
    """Yield the URL of the database at its usual place, with a socket that every user may open."""
    own = ext.parse_dsn(url)
    path = f"{own['host']}/.s.PGSQL.{own.get('port', '5432')}"
    mode = stat.S_IMODE(os.stat(path).st_mode)
    os.chmod(path, 0o777)
    script = 'own=/run/postgresql/$(basename "$1"); mkdir /run/postgresql; touch "$own"; mount --bind "$1" "$own"'
    place.run("sh", "-ec", script, "sh", path)
    try:
        yield str(ext.make_dsn(url, host="/run/postgresql", user=own.get("user", "postgres")))
    finally:
        os.chmod(path, mode)


def main_process(manager: Manager) -> int:
    """Return the id of the service's main process outside."""
    inside = int(manager.property("MainPID"))
    for process in psutil.process_iter():
        with suppress(OSError, psutil.Error):
            status = Path(f"/proc/{process.pid}/status").read_text()
            if re.search(rf"^NSpid:\t{process.pid}\t{inside}$", status, re.M):
                return process.pid
    raise AssertionError("it has no main process")


def test_the_units_are_right_and_hardened(installed: Place) -> None:
    assert installed.run("systemd-analyze", "verify", "--man=no", "pgbus.service", "pgbus.socket") == ""
    security = ("systemd-analyze", "security", "--offline=yes", "--no-pager", "pgbus.service")
    said = installed.run(*security, f"--threshold={MOST_EXPOSED}")
    [exposure] = re.findall(r"Overall exposure level for pgbus.service: (\S+) OK", said)
    [told] = re.findall(r"rates the service (\S+) of 10", " ".join((DEPLOY.parent / PAGE).read_text().split()))
    assert abs(float(exposure) - float(told)) < 0.3  # releases of systemd differ a little
    # The relay's unit, as the page makes it.
    text = " ".join((DEPLOY.parent / PAGE).read_text().split())
    [command] = re.findall(r"a copy of the service .* has `(ExecStart=[^`]+ relay)`", text)
    relay = re.sub(
        r"^(Requires|Also|ExecReload)=.*\n", "", SERVICE.replace("pgbus.socket network", "network"), flags=re.M
    )
    relay = re.sub(r"^ExecStart=.*$", command, relay, flags=re.M)
    assert "socket" not in relay
    installed.configure("/etc/systemd/system", {"relay.service": relay})
    assert installed.run("systemd-analyze", "verify", "--man=no", "relay.service") == ""
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


def test_systemd_starts_restarts_and_watches_the_service_and_no_client_loses_anything(
    installed: Place, bus: Bus, pgbus_database: str
) -> None:
    """With the units as they stand, but for the time of the watchdog, the interpreter's place and the log."""
    installed.configure("/etc/systemd/system", {"pgbus.service.d/test.conf": DROP_IN})
    orders, ids = bus.stream("orders"), []
    with ExitStack() as stack:
        url = stack.enter_context(reachable(installed, pgbus_database))
        variables = {"APP": APP, "PGBUS_DATABASE_URL": url, "PGBUS_SECRET": SECRET, "PGBUS_PUBLIC": "*"}
        lines = "".join(f"{name}='{text}'\n" for name, text in variables.items())
        installed.configure("/etc/pgbus", {"pgbus.env": lines})
        manager = Manager(installed)
        stack.callback(manager.close)
        stack.callback(lambda: print(Path(installed.path("/var/log/pgbus.log")).read_text()))
        assert manager.control("start", "pgbus.socket") == ""
        assert manager.property("ActiveState") == "inactive"
        browsers = [Browser(8080, "orders", connect=lambda: installed.connect(8080)) for _ in range(5)]
        for each in browsers:
            stack.callback(each.close)
        until(lambda: all(each.connections for each in browsers), "the first connection starts it", 3 * PATIENCE)
        until(lambda: manager.property("ActiveState") == "active", "systemd knows that it serves")
        assert [manager.property(name) for name in ("SubState", "StatusText", "NRestarts")] == [
            "running",
            "serving",
            "0",
        ]
        ids.append(orders.broadcast("first"))
        check = block_of("docs/operations/deployment.md", "check").replace(
            "https://www.example.com/", "http://127.0.0.1:8080 --watch 0"
        )
        assert "ok   delivery" in installed.run("bash", "-euc", check)
        assert manager.control("restart", "pgbus.service") == ""
        ids.append(orders.broadcast("after a restart"))
        until(lambda: all(each.ids == ids for each in browsers), "all have it", 3 * PATIENCE)
        assert all(each.told for each in browsers)
        os.kill(main_process(manager), signal.SIGSTOP)
        until(lambda: int(manager.property("NRestarts")) > 0, "the watchdog ends it", 3 * PATIENCE, pause=0.2)
        ids.append(orders.broadcast("after a hang"))
        until(lambda: all(each.ids == ids for each in browsers), "all have it", 3 * PATIENCE)
        assert all(each.stopped is None for each in browsers)
        assert manager.control("stop", "pgbus.socket", "pgbus.service") == ""
    assert "Fatal Python error: Aborted" in Path(installed.path("/var/log/pgbus.log")).read_text()
