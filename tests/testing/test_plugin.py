"""The testing kit as users see it: pytest runs a user's tests in another process."""

from __future__ import annotations

import ast
import os
import re
import tempfile
from pathlib import Path
from textwrap import dedent
from time import sleep

import pytest
from kit_parts import PATCHED, ROOT, Project
from page_parts import block_of

import pgbus_gevent.testing
from pgbus_gevent.testing import leaks
from pgbus_gevent.testing.databases import TestDatabases


@pytest.fixture
def project(tmp_path: Path, pgbus_databases: TestDatabases) -> Project:
    return Project(tmp_path, pgbus_databases.url)


FIXTURES = """
import threading
import gevent
import psycopg2
import pytest


def test_the_page_is_born_stale(pgbus_bus, pgbus_client):
    orders = pgbus_bus.stream("orders")
    orders.broadcast("seen")
    since = orders.last_id()
    orders.broadcast("missed", event="order")
    client = pgbus_client("orders", since=since)
    frame = client.next(timeout=5)
    assert (frame.event, frame.data) == ("order", "missed") and int(frame.id) > since
    assert client.quiet(0.2) and not client.closed
    client.drop()
    assert client.closed
    orders.broadcast("while away")
    client.resume()
    assert client.next(event="pgbus:connected").data
    assert client.next().data == "while away"
    assert [frame.data for frame in client.messages] == ["missed", "while away"] and client.frames


def test_a_client_has_started(pgbus_server, pgbus_bus, pgbus_client):
    streams = pgbus_server.app

    def late(environ, start_response):
        gevent.sleep(0.3)
        return streams(environ, start_response)

    pgbus_server.app = late
    client = pgbus_client("orders")
    pgbus_bus.stream("orders").broadcast("x")
    assert client.next().data == "x"


def test_a_client_that_is_refused(pgbus_server, pgbus_client):
    pgbus_server.app = lambda environ, start_response: [start_response("404 Not Found", []) and b""]
    assert pgbus_client("orders").wait_for_response().status == 404


def test_each_has_a_database_of_its_own(pgbus_database, pgbus_bus):
    with psycopg2.connect(pgbus_database) as connection, connection.cursor() as cursor:
        cursor.execute("select count(*) from pgbus.messages")
        assert cursor.fetchone() == (0,)
    connection.close()
    assert pgbus_bus.stream("orders").last_id() == 0


def test_the_application_can_be_replaced(pgbus_server):
    from urllib.request import urlopen

    def app(environ, start_response):
        start_response("200 OK", [("content-length", "2")])
        return [b"hi"]

    pgbus_server.app = app
    with urlopen(pgbus_server.url) as answer:
        assert answer.read() == b"hi"


def test_the_instance_runs(pgbus_instance):
    assert pgbus_instance.alive


def test_broadcasts_are_counted(pgbus_bus, assert_broadcasts):
    orders = pgbus_bus.stream("orders")
    with assert_broadcasts("orders", 3) as found:
        orders.broadcast_many(["one", "two"], event="order")
        orders.broadcast("x" * 9000, ephemeral=True, event="hint")
        pgbus_bus.stream("others").broadcast("not here")
        with pytest.raises(RuntimeError), pgbus_bus.transaction() as cursor:
            orders.broadcast("rolled back", using=cursor)
            raise RuntimeError
    assert [(message.event, message.data) for message in found] == [
        ("order", "one"), ("order", "two"), ("hint", "x" * 9000)
    ]
    with assert_broadcasts("orders", 0):
        pass
    with pytest.raises(AssertionError, match="2 messages were broadcast to 'orders', not 1:") as failure:
        with assert_broadcasts("orders", 1):
            orders.broadcast("one")
            orders.broadcast("hint", ephemeral=True)
    assert "event=None data='one'" in str(failure.value) and "ephemeral event=None data='hint'" in str(failure.value)
    with pytest.raises(AssertionError, match="0 messages were broadcast to 'orders', not 1$"):
        with assert_broadcasts("orders", 1):
            pass
    with pytest.raises(AssertionError, match="1 message was broadcast to 'orders', not 2:"):
        with assert_broadcasts("orders", 2):
            orders.broadcast("one")
    with pytest.raises(KeyError):  # what fails inside is what fails
        with assert_broadcasts("orders", 1):
            raise KeyError


@pytest.mark.parametrize("n", range(4))
def test_many_waits_at_once(pgbus_bus, n):
    # More than the pool has connections, so that some wait for others.
    jobs = [gevent.spawn(pgbus_bus.stream("s").broadcast, str(k)) for k in range(20)]
    gevent.joinall(jobs, timeout=20, raise_error=True)
    thread = threading.Thread(target=pgbus_bus.stream("s").broadcast, args=("from a thread",))
    thread.start()
    thread.join(20)
    assert len(list(pgbus_bus.stream("s"))) == 21
"""


def test_plain_pytest(project: Project) -> None:
    """The installed package and one line of settings are enough for the fixtures."""
    found = project.write(pytest_ini=PATCHED, test_shop=FIXTURES).pytest("-W", "error")
    assert found.status == 0 and "11 passed" in found, found


def test_its_own_embedded_server(project: Project) -> None:
    """Without a URL, an embedded PostgreSQL is used, and nothing of it is left."""
    del project.environ["PGBUS_TEST_DATABASE_URL"]
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)  # if root runs the tests, the server runs as another user
        project.environ["TMPDIR"] = directory
        found = project.write(pytest_ini=PATCHED, test_shop=FIXTURES).pytest("-k", "replaced")
        assert found.status == 0 and "1 passed" in found, found
        assert not list(Path(directory).glob("pgbus-test-*"))


def test_xdist(project: Project) -> None:
    """Workers share one embedded server, and all waits in them are cooperative."""
    del project.environ["PGBUS_TEST_DATABASE_URL"]
    where = "\nimport os\ndef test_where(pgbus_databases): open(f'url-{os.getpid()}', 'w').write(pgbus_databases.url)\n"
    project.write(pytest_ini=PATCHED, test_shop=FIXTURES + where, test_two=FIXTURES + where)
    found = project.pytest("-n", "2", "--dist", "loadfile", timeout=120)
    assert found.status == 0 and "24 passed" in found, found
    urls = [path.read_text() for path in project.directory.glob("url-*")]
    assert len(urls) == 2 and len(set(urls)) == 1
    (url,) = set(urls)
    assert "pgbus-" in url and not Path(url.partition("host=")[2].partition("&")[0].replace("%2F", "/")).exists()


def test_coverage(project: Project) -> None:
    """Coverage counts lines that run in greenlets, in threads and in the hub's pool."""
    shop = """
        import gevent, threading

        def in_a_greenlet():
            gevent.sleep(0.01)
            return 1

        def in_a_thread():
            return 2

        def in_the_pool():
            return 3
    """
    tests = """
        import gevent, shop, threading

        def test_all(pgbus_bus):
            assert gevent.spawn(shop.in_a_greenlet).get() == 1
            thread = threading.Thread(target=shop.in_a_thread)
            thread.start()
            thread.join()
            assert gevent.get_hub().threadpool.apply(shop.in_the_pool) == 3
            pgbus_bus.stream("s").broadcast("x")
    """
    (project.directory / "pyproject.toml").write_text(block_of("docs/testing.md", "coverage"))
    project.write(pytest_ini=PATCHED, shop=dedent(shop), test_shop=dedent(tests))
    found = project.pytest("--cov=shop", "--cov-report=term-missing")
    assert found.status == 0 and "100%" in found, found


def test_unpatched(project: Project) -> None:
    """A fixture that needs a patched process says how to patch it; the other fixtures work."""
    found = project.write(test_shop=FIXTURES).pytest("-k", "instance or replaced or own or counted")
    assert found.status == 1 and "2 passed" in found and "2 errors" in found, found
    assert 'addopts = "-p pgbus_gevent.testing.patch"' in found and "Traceback" not in found, found


def test_patched_by_gevent(project: Project) -> None:
    """``python -m gevent.monkey`` works as well."""
    found = project.write(test_shop=FIXTURES).pytest(
        "-k", "instance", program=("-m", "gevent.monkey", "--module", "pytest")
    )
    assert found.status == 0 and "1 passed" in found, found


def test_patched_too_late(project: Project) -> None:
    """A conftest.py that patches after ssl was imported is refused."""
    project.write(conftest='import ssl\npytest_plugins = ["pgbus_gevent.testing.patch"]\n', test_shop=FIXTURES)
    found = project.pytest()
    assert found.status == 4 and "comes too late, because ssl is imported already: name it in addopts" in found, found


def test_others_are_left_alone(project: Project) -> None:
    """If tests do not use the kit, nothing is imported, patched, limited or checked."""
    tests = """
        import socket, sys, threading, time, signal

        def test_nothing(request):
            assert not {"gevent", "psycopg2", "pgbus_gevent.bus", "pgbus_gevent.settings.table"} & set(sys.modules)
            assert request.config.pluginmanager.hasplugin("pgbus_gevent")
            assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
            sys.left = open(__file__), socket.socket()
            threading.Thread(target=time.sleep, args=(0.5,)).start()
    """
    found = project.write(test_theirs=dedent(tests)).pytest("-W", "error", "--strict-markers")
    assert found.status == 0 and "1 passed" in found, found


IMPATIENT = "from pgbus_gevent.testing import leaks\nleaks.SETTLE = 0.3\n"


def test_time_in_which_the_process_stands_still_is_no_time_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "SETTLE", 0.05)
    monkeypatch.setattr(leaks, "sleep", lambda seconds: sleep(0.1))
    looks = iter([["a greenlet"], ["a greenlet"], []])
    assert leaks.settled(lambda: next(looks)) == []


LEAKS = """
import os, socket, threading, time
import gevent, psycopg2, pytest
from gevent import monkey

kept = []

def forever():
    gevent.sleep(1000)

def native():
    time_sleep(1000)

time_sleep = monkey.get_original("time", "sleep")

def test_greenlet(pgbus_database):
    gevent.spawn(forever).name = "the one that stays"

def test_thread(pgbus_database):
    monkey.get_original("_thread", "start_new_thread")(native, ())

def test_descriptor(pgbus_database):
    kept.append(open(__file__))

def test_socket(pgbus_database):
    kept.append(socket.create_server(("127.0.0.1", 0)))

def test_session(pgbus_database):
    connection = psycopg2.connect(pgbus_database, application_name="the shop")
    kept.append(connection)
    connection.cursor().execute("select 'what it asked'")

def test_not_the_kit():
    kept.append(open(__file__))

@pytest.mark.pgbus_leaks("off")
def test_excused(pgbus_database):
    kept.append(open(__file__))

def test_failed(pgbus_database):
    handle = open(__file__)
    assert not handle
"""


def test_leaks_are_named(project: Project) -> None:
    """A test that leaves something behind fails at teardown, with its name and origin."""
    found = project.write(pytest_ini=PATCHED, conftest=IMPATIENT, test_leaks=LEAKS).pytest("-rA")
    assert found.status == 1 and "1 failed, 7 passed, 5 errors" in found, found
    for line in (
        "greenlet 'the one that stays' running forever, spawned at ",
        "test_leaks.py:17, now at ",
        "test_leaks.py:9\n",
        "now in native at ",
        "test_leaks.py\n",
        "127.0.0.1:",
        "database session 'the shop', idle in transaction, its last statement: select 'what it asked'",
        "ERROR test_leaks.py::test_greenlet - Failed: the test left behind:",
        "ERROR test_leaks.py::test_thread",
        "ERROR test_leaks.py::test_descriptor",
        "ERROR test_leaks.py::test_socket",
        "ERROR test_leaks.py::test_session",
    ):
        assert line in found, (line, found)


SHOWN = (
    r"greenlet '[^']+' running [\w.]+, spawned at \S+:\d+, now at \S+:\d+",
    r"descriptor \d+: socket:\[\d+\] 127\.0\.0\.1:\d+(?: -> 127\.0\.0\.1:\d+)?",
    r"database session '[^']+', idle in transaction, its last statement: select .+",
)
"""The forms of the lines that docs/testing.md shows."""


def test_the_report_of_leaks_is_as_in_the_documentation(project: Project) -> None:
    first, *lines = block_of("docs/testing.md", "leaks").splitlines()
    chosen = "greenlet or socket or session"
    found = project.write(pytest_ini=PATCHED, conftest=IMPATIENT, test_leaks=LEAKS).pytest("-k", chosen)
    assert first in found
    for form, line in zip(SHOWN, lines, strict=True):
        assert re.fullmatch(form, line.strip())
        assert re.search(form, found.output), found


def test_leaks_of_all_tests(project: Project) -> None:
    """With ``all``, tests that do not use the kit are checked too; with ``off``, none is."""
    project.write(pytest_ini=PATCHED, conftest=IMPATIENT, test_leaks=LEAKS)
    found = project.pytest("--pgbus-leaks", "all", "-k", "not_the_kit")
    assert found.status == 1 and "descriptor" in found and "1 passed, 7 deselected, 1 error" in found, found
    found = project.pytest("--pgbus-leaks", "off", "-k", "not failed")
    assert found.status == 0 and "7 passed" in found, found


HANGS = """
import time
import gevent, pytest
from gevent.event import Event

def waits_for_ever():
    gevent.sleep(1000)

def computes():
    while True:
        pass

@pytest.fixture
def stubborn():
    yield
    waits_for_ever()

@pytest.mark.pgbus_timeout(0.5)
def test_waits():
    job = gevent.spawn(waits_for_ever)
    try:
        Event().wait()
    finally:
        job.kill()

@pytest.mark.pgbus_timeout(0.5)
def test_computes():
    computes()

@pytest.mark.pgbus_timeout(0.5)
def test_a_greenlet_computes():
    gevent.spawn(computes).join()

@pytest.mark.pgbus_timeout(0.5)
def test_a_callback_computes():
    gevent.get_hub().loop.run_callback(computes)
    gevent.sleep(10)

@pytest.mark.pgbus_timeout(0.5)
def test_catches_exceptions():
    try:
        waits_for_ever()
    except Exception:
        pass

def test_after_them():
    gevent.sleep(0.01)
"""


def test_hangs_end_at_the_deadline(project: Project) -> None:
    """A test that waits or computes forever, in a greenlet or in the hub, fails with all stacks, and the next test runs."""
    found = project.write(pytest_ini=PATCHED, test_hangs=HANGS).pytest()
    assert found.status == 1 and "5 failed, 1 passed" in found, found
    assert found.output.count("the test did not end within 0.5 s (pgbus_timeout)") >= 5
    assert "Captured stacks call" in found and found.output.count("in waits_for_ever") >= 2, found


def test_a_hang_is_reported_even_if_the_repr_of_objects_raises(project: Project) -> None:
    """The stacks do not call ``repr``: that of Bottle's request, which every application has, raises outside a request."""
    hang = """
        import bottle
        import gevent
        import pytest

        class Proxy:
            @property
            def __class__(self):
                raise RuntimeError("outside a request")

        def waits_for_ever():
            bottle.request.bind({"PATH_INFO": "/a-secret"})
            bottle.response.bind()
            gevent.sleep(1000)

        @pytest.mark.pgbus_timeout(0.5)
        def test_waits():
            proxy, other = Proxy(), bottle.LocalRequest()
            job = gevent.spawn(waits_for_ever)
            try:
                gevent.sleep(1000)
            finally:
                job.kill()
    """
    found = project.write(pytest_ini=PATCHED, test_hang=dedent(hang)).pytest()
    assert "the test did not end within 0.5 s (pgbus_timeout)" in found and "outside a request" not in found.output, (
        found
    )
    assert (
        re.search(r"greenlet waits_for_ever at 0x\w+, spawned at \S+test_hang.py:\d+:", found.output)
        and "in waits_for_ever" in found
    ), found
    stacks = found.output.split("Captured stacks call")[1]
    assert "/a-secret'" not in stacks, found


def test_hangs_without_gevent(project: Project) -> None:
    """The deadline works without gevent if an option sets it."""
    test = "import time\ndef test_sleeps():\n    time.sleep(100)\n"
    found = project.write(pytest_ini="[pytest]\npgbus_timeout = 0.5\n", test_sleeps=test).pytest()
    assert found.status == 1 and "1 failed" in found and "did not end within 0.5 s" in found, found


def test_teardowns_end_too(project: Project) -> None:
    """Setup and teardown get at least half a minute, which this test shortens."""
    patch = "from pgbus_gevent.testing import options\noptions.DEFAULT_TIMEOUT = 3\n"
    test = HANGS + "\n@pytest.mark.pgbus_timeout(3)\ndef test_ends(stubborn):\n    pass\n"
    found = project.write(pytest_ini=PATCHED, conftest=patch, test_hangs=test).pytest("-k", "test_ends")
    assert (
        found.status == 1
        and "1 passed, 6 deselected, 1 error" in found
        and "the teardown did not end within 3 s" in found
    ), found


def test_a_process_that_is_held_in_c_ends(project: Project) -> None:
    """If no Python code can run, the stacks of all threads go to stderr and the process ends."""
    hold = """
        import ctypes
        import pytest
        from pgbus_gevent.testing import deadline

        deadline.GRACE = 1

        @pytest.mark.pgbus_timeout(3)  # so that the test surely is where it is held
        def test_held():
            lock = ctypes.PyDLL(None).pthread_mutex_lock  # keeps the interpreter's lock
            mutex = ctypes.create_string_buffer(64)
            lock(mutex)
            lock(mutex)
    """
    found = project.write(pytest_ini=PATCHED, test_held=dedent(hold)).pytest()
    assert found.status == 1 and "Timeout (0:00:04)!" in found and "in test_held" in found, found


def test_a_shorter_timer_goes_first(project: Project) -> None:
    """pytest-timeout's timer is left alone if it would fire earlier, and else continues when ours stops."""
    test = "import gevent\ndef test_sleeps():\n    gevent.sleep(100)\n"
    project.write(pytest_ini=PATCHED, test_sleeps=test)
    found = project.pytest("--timeout", "0.5", "--pgbus-timeout", "60")
    assert found.status == 1 and "Timeout (>0.5s) from pytest-timeout" in found, found
    found = project.pytest("--timeout", "60", "--pgbus-timeout", "0.5")
    assert found.status == 1 and "did not end within 0.5 s (pgbus_timeout)" in found, found


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--pgbus-timeout", "soon"), "pgbus_timeout='soon' is not allowed"),
        (("--pgbus-timeout", "-1"), "pgbus_timeout='-1' is not allowed"),
        (("-o", "pgbus_leaks=some"), "pgbus_leaks='some' is not allowed: it is one of all, fixtures, off"),
    ],
)
def test_options_that_make_no_sense(project: Project, arguments: tuple[str, ...], complaint: str) -> None:
    """Bad options are refused at the start, with the allowed values."""
    found = project.write(pytest_ini=PATCHED, test_nothing="def test_nothing(): pass\n").pytest(*arguments)
    assert found.status == 4 and complaint in found and "Traceback" not in found, found


def test_the_example_of_the_shop(project: Project) -> None:
    """examples/test_bottle_orders.py passes if it is run as by a user."""
    project.environ["PYTHONPATH"] += f":{ROOT / 'examples'}"
    arguments = (
        "-p",
        "pgbus_gevent.testing.patch",
        str(ROOT / "examples" / "test_bottle_orders.py"),
        "-c",
        "/dev/null",
    )
    found = project.pytest(*arguments, "-W", "error")
    assert found.status == 0 and " passed" in found, found


def test_the_entry_point() -> None:
    """setup.py names the plugin for pytest."""
    values = [
        node.value for node in ast.walk(ast.parse((ROOT / "setup.py").read_text())) if isinstance(node, ast.Constant)
    ]
    assert "pytest11" in values and "pgbus_gevent=pgbus_gevent.testing.plugin" in values


def test_the_names_of_the_package() -> None:
    """All exported names exist, and no others."""
    for name in pgbus_gevent.testing.__all__:
        assert getattr(pgbus_gevent.testing, name).__name__ == name
    assert dir(pgbus_gevent.testing) == pgbus_gevent.testing.__all__
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        pgbus_gevent.testing.Nothing  # noqa: B018
