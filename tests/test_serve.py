"""``serve`` as a program: its output, the streams and applications that it serves, and its refusals."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from raw_http import wait_for
from serve_parts import ANNOUNCED, SECRET, command, environment, serving
from support import open_folder, run, session, until

from pgbus_gevent.bus import Bus
from pgbus_gevent.errors import DatabaseError
from pgbus_gevent.testing.client import StreamClient
from pgbus_gevent.testing.databases import TestDatabases

APP = """
from pgbus_gevent import Bus, Subscriber
from pgbus_gevent.streamer import current

bus = Bus()

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    if environ["PATH_INFO"] == "/publish":
        return [str(bus.stream("orders").broadcast("from the application")).encode()]
    if environ["PATH_INFO"] == "/readers":
        return [str(len(current().registry)).encode()]
    return [bus.sign("orders").encode()]

def authorize(environ, stream):
    user = environ.get("HTTP_X_USER")
    return Subscriber(owner=user, context=user) if user else False

bus.filters.register("admins", lambda user, stream: user == "ada")

class site:
    wsgi = staticmethod(application)

not_callable = 7
"""


def refused(tmp_path: Path, *arguments: str, **variables: str) -> tuple[int, str]:
    """Return the status and the only line of a ``serve`` that refuses to serve."""
    done = subprocess.run(
        command(*arguments), cwd=tmp_path, env=environment(**variables), capture_output=True, text=True, timeout=90
    )
    assert done.stdout == ""
    assert done.stderr.startswith("pgbus-gevent: ") and done.stderr.count("\n") == 1, done.stderr
    return done.returncode, done.stderr.removeprefix("pgbus-gevent: ").rstrip("\n")


@pytest.fixture(scope="module")
def database(pgbus_databases: TestDatabases) -> str:
    return pgbus_databases.make()


@pytest.fixture
def own(database: str) -> dict[str, str]:
    """Return the variables of a database that is not embedded."""
    return {"PGBUS_DATABASE_URL": database, "PGBUS_SECRET": SECRET}


# serving -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A directory with a data directory in it, for both programs of a test, whether they run in turn or together."""
    with open_folder() as path:
        yield path


def test_serve_without_arguments_runs_the_demo_on_its_own_database(home: Path) -> None:
    with serving(home, "--data-dir", str(home / "data")) as one:
        assert (one.host, one.pid) == ("127.0.0.1", one.process.pid)
        assert one.get("/pgbus/healthz").status == one.get("/pgbus/readyz").status == 200
        page = one.get("/")
        assert page.status == 200 and page.headers["content-type"].startswith("text/html")
        assert b"Departures" in page.body
        assert 'INFO pgbus_gevent.access: 127.0.0.1 "GET /pgbus/healthz" 200' in one.stderr
        with StreamClient(one.url, "/pgbus/streams/demo:hello") as client:
            client.next("pgbus:connected")
            with Bus(one.database, migrate=False) as bus:
                id = bus.stream("demo:hello").broadcast("hello")
            frame = client.next()
            assert (frame.id, frame.data) == (str(id), "hello")

        with serving(home, "--data-dir", str(home / "data")) as two:
            assert two.database == one.database and two.port != one.port
            with StreamClient(two.url, f"/pgbus/streams/demo:hello?since={id - 1}") as client:
                assert client.next().id == str(id)
        assert one.get("/pgbus/readyz").status == 200  # its database is still there


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_embedded_database_is_restarted_after_a_kill(workers: str, home: Path) -> None:
    with serving(home, "--data-dir", str(home / "data"), "--workers", workers) as served:
        pid = int((home / "data" / "postgres-18" / "postmaster.pid").read_text().split()[0])
        with StreamClient(served.url, "/pgbus/streams/demo:hello") as client:
            client.next("pgbus:connected")
            os.kill(pid, signal.SIGKILL)
            ids: list[int] = []

            def published() -> bool:
                try:
                    with Bus(served.database, migrate=False) as bus:
                        ids.append(bus.stream("demo:hello").broadcast("hello"))
                except DatabaseError:
                    return False
                return True

            until(published, "it accepts messages again", 60)
            assert client.next(timeout=40).id == str(ids[0]) and not client.closed
        # The server accepts messages a moment before the program that has started it says so.
        until(lambda: "was started again" in served.stderr, "the log says that it was started again", 40)


def test_the_secret_is_kept_in_the_data_directory_for_its_owner_alone(home: Path) -> None:
    data = home / "data"
    secrets = []
    for _ in range(2):
        (home / "app.py").write_text(APP)
        with serving(home, "app:application", "--data-dir", str(data)) as served:
            secrets.append((data / "secret").read_text())
            token = served.get("/").body.decode()
            with StreamClient(served.url, f"/pgbus/streams/{token}") as client:
                client.next("pgbus:connected")
                assert served.get("/publish").status == 200
                assert client.next().data == "from the application"
    assert secrets[0] == secrets[1] and len(secrets[0].strip()) >= 32
    assert stat.S_IMODE((data / "secret").stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["app:application", "app:site.wsgi"])
def test_an_application_is_served_beside_the_streams(name: str, tmp_path: Path, own: dict[str, str]) -> None:
    (tmp_path / "app.py").write_text(APP)
    with serving(tmp_path, name, **own) as served:
        token = served.get("/anything").body.decode()
        with StreamClient(served.url, f"/pgbus/streams/{token}") as client:
            client.next("pgbus:connected")
            id = served.get("/publish").body.decode()
            assert client.next().id == id
            # The Instance of the application is the one that serves.
            assert served.get("/readers").body == b"1"
        assert served.get("/pgbus/nothing").body == b"not found\n"
        # Only the demo makes streams public without a setting.
        assert served.get("/pgbus/streams/demo:hello").status == 404


def test_flags_override_the_environment_for_the_application_too(tmp_path: Path, own: dict[str, str]) -> None:
    (tmp_path / "app.py").write_text(APP)
    with serving(tmp_path, "app:application", "--secret", "another secret of the test", **own) as served:
        token = served.get("/").body.decode()
        with StreamClient(served.url, f"/pgbus/streams/{token}") as client:
            client.next("pgbus:connected")


def test_the_command_line_has_serve_too(tmp_path: Path, own: dict[str, str]) -> None:
    (tmp_path / "app.py").write_text(APP)
    with serving(tmp_path, "app:application", program=("pgbus_gevent", "serve"), **own) as served:
        assert served.get("/pgbus/healthz").status == 200


def test_the_password_of_the_database_is_not_shown(tmp_path: Path, own: dict[str, str], database: str) -> None:
    url = f"{database} password=hunter2" if "=" in database.partition("?")[0] else database
    (tmp_path / "app.py").write_text(APP)
    with serving(tmp_path, "app:application", "--log-level", "debug", **{**own, "PGBUS_DATABASE_URL": url}) as served:
        assert served.get("/pgbus/healthz").status == 200
        assert "hunter2" not in served.line + served.stderr and SECRET not in served.line + served.stderr


def test_an_ipv6_address_is_printed_as_in_a_url(tmp_path: Path, own: dict[str, str]) -> None:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 here")
    (tmp_path / "app.py").write_text(APP)
    with serving(tmp_path, "app:application", "--host", "::1", **own) as served:
        assert served.host == "[::1]"


def test_the_announcement_is_one_write_so_that_no_line_of_a_worker_comes_in_between(own: dict[str, str]) -> None:
    read, write = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # it keeps writes apart
    with read, subprocess.Popen(command(), env=environment(PYTHONUNBUFFERED="1", **own), stdout=write) as process:
        write.close()
        read.settimeout(80.0)
        try:
            assert ANNOUNCED.fullmatch(read.recv(10_000).decode())
        finally:
            process.terminate()
            process.wait(60)


def test_the_log_can_be_json(tmp_path: Path, own: dict[str, str]) -> None:
    (tmp_path / "app.py").write_text("def application(environ, start_response):\n    raise RuntimeError('a bug')\n")
    with serving(tmp_path, "app:application", "--log-format", "json", **own) as served:
        assert served.get("/page?token=secret").status == 500
        wait_for(lambda: '/page\\" 500' in served.stderr, "the access log has it")
        records: list[dict[str, Any]] = [json.loads(line) for line in served.stderr.splitlines()]
    assert all({"time", "pid", "level", "logger", "message"} <= record.keys() for record in records)
    (failed,) = [record for record in records if record["level"] == "error"]
    assert "RuntimeError: a bug" in failed["exception"]
    assert not any("token=secret" in line for line in served.stderr.splitlines())


def test_without_the_demo_the_streams_are_served_alone(tmp_path: Path, own: dict[str, str]) -> None:
    with serving(tmp_path, "--no-demo", **own) as served, Bus(own["PGBUS_DATABASE_URL"], secret=SECRET) as bus:
        assert served.get("/pgbus/readyz").status == 200 and served.get("/lab").status == 404
        assert served.get("/pgbus/streams/demo:hello").status == 404  # which anybody may read where the demo is
        with bus.transaction() as cursor:
            cursor.execute("select count(*) from pg_tables where schemaname = 'pgbus' and tablename like 'demo%'")
            assert cursor.fetchone() == (0,)
        assert "the demo" not in served.stderr


def test_serve_warns_of_the_demo_on_a_database_that_was_given(tmp_path: Path, own: dict[str, str]) -> None:
    with serving(tmp_path, **own) as served:
        wait_for(lambda: "--no-demo" in served.stderr, "the log says how to serve the streams alone")
        assert served.get("/lab").status == 200


def test_serve_warns_of_a_low_limit_of_open_files(tmp_path: Path, own: dict[str, str]) -> None:
    (tmp_path / "app.py").write_text(APP)
    with serving(tmp_path, "app:application", limit=300, **own) as served:
        (warning,) = [line for line in served.stderr.splitlines() if "WARNING" in line and "open files" in line]
        assert "the limit of 300 open files is below max_connections=10000" in warning and "ulimit -n" in warning
    with serving(tmp_path, "app:application", "--max-connections", "40", limit=300, **own) as served:
        assert "open files" not in served.stderr


def test_the_hook_and_the_filters_of_an_application_are_used(tmp_path: Path, own: dict[str, str]) -> None:
    (tmp_path / "app.py").write_text(APP)
    access = ("--authorize", "app:authorize", "--filters", "app:bus")
    with (
        serving(tmp_path, "app:application", *access, **own) as served,
        Bus(own["PGBUS_DATABASE_URL"], secret=SECRET) as bus,
    ):
        path = bus.stream_path("orders")
        assert served.get(path).status == 403
        with (
            StreamClient(served.url, path, headers={"X-User": "ada"}) as ada,
            StreamClient(served.url, path, headers={"X-User": "bob"}) as bob,
        ):
            for client in (ada, bob):
                client.next("pgbus:connected")
            bus.stream("orders").broadcast("secret", visible_to="admins")
            bus.stream("orders").broadcast("for all")
            assert [ada.next().data, ada.next().data, bob.next().data] == ["secret", "for all", "for all"]


# refusals ------------------------------------------------------------------------------------------------------------

PATH = " in the current directory or on the Python path"


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("nothere:application", f"cannot load 'nothere:application': there is no module 'nothere'{PATH}"),
        ("app.nothere:application", f"cannot load 'app.nothere:application': there is no module 'app.nothere'{PATH}"),
        ("app:nothere", "cannot load 'app:nothere': the module 'app' has no application 'nothere'"),
        ("app:site.nothere", "cannot load 'app:site.nothere': the module 'app' has no application 'site.nothere'"),
        ("app:not_callable", "cannot use 'app:not_callable' as application: it is of type int, which is not callable"),
        ("app", "'app' is not a name of the form module:application"),
        ("app:", "'app:' is not a name of the form module:application"),
        (":application", "':application' is not a name of the form module:application"),
        (".app:application", "'.app:application' is not a name of the form module:application"),
    ],
)
def test_a_missing_application_gives_one_line_and_status_2(
    name: str, complaint: str, tmp_path: Path, own: dict[str, str]
) -> None:
    (tmp_path / "app.py").write_text(APP)
    assert refused(tmp_path, name, **own) == (2, complaint)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--authorize", "app:nothere"), "cannot load 'app:nothere': the module 'app' has no function 'nothere'"),
        (
            ("--authorize", "app:not_callable"),
            "cannot use 'app:not_callable' as function: it is of type int, which is not callable",
        ),
        (("--filters", "app:nothere"), "cannot load 'app:nothere': the module 'app' has no object 'nothere'"),
        (
            ("--filters", "app:not_callable"),
            "filters='app:not_callable' is not allowed: expected the name of a Bus or a Filters object,"
            " but it is of type int",
        ),
    ],
)
def test_a_missing_hook_or_filters_give_one_line_and_status_2(
    flags: tuple[str, ...], complaint: str, tmp_path: Path, own: dict[str, str]
) -> None:
    (tmp_path / "app.py").write_text(APP)
    assert refused(tmp_path, "app:application", *flags, **own) == (2, complaint)


def test_a_failing_import_of_an_application_is_shown_with_its_traceback(tmp_path: Path, own: dict[str, str]) -> None:
    (tmp_path / "app.py").write_text("import nothere")
    done = subprocess.run(
        command("app:application"), cwd=tmp_path, env=environment(**own), capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "No module named 'nothere'" in done.stderr


def test_a_database_that_is_not_embedded_needs_a_secret(tmp_path: Path, database: str) -> None:
    status, line = refused(tmp_path, PGBUS_DATABASE_URL=database)
    assert status == 2
    assert line == "secret is not set: put a random text of at least 16 characters into PGBUS_SECRET, or pass --secret"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--workers", "0"), "workers='0' is not allowed"),
        (("--heartbeat", "never"), "heartbeat='never' is not allowed"),
        (("--no-such-flag",), "unrecognized arguments: --no-such-flag"),
        (("one:app", "two:app"), "unrecognized arguments: two:app"),
        (("--secret", "short"), "secret="),
    ],
)
def test_invalid_flags_give_one_line_and_status_2(
    arguments: tuple[str, ...], complaint: str, tmp_path: Path, own: dict[str, str]
) -> None:
    status, line = refused(tmp_path, *arguments, **own)
    assert status == 2
    assert line.startswith(complaint)
    assert "short" not in line


def test_a_port_in_use_gives_one_line_of_advice_and_status_1(tmp_path: Path, own: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, line = refused(tmp_path, "--port", str(port), **own)
    assert (status, line) == (
        1,
        f"cannot serve at 127.0.0.1 port {port}: Address already in use; give another --port (0 takes any free port)"
        " or --host, or stop the program that uses it",
    )


def test_a_host_of_another_machine_gives_one_line_and_status_1(tmp_path: Path, own: dict[str, str]) -> None:
    for host in ("192.0.2.1", "no-such-host.invalid"):
        status, line = refused(tmp_path, "--host", host, **own)
        assert status == 1 and line.startswith(f"cannot serve at {host} port 0: ")


def test_an_unreachable_database_gives_one_line_and_status_1(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # it does not listen, and nobody else gets the port
        url = f"postgresql://user:hunter2@127.0.0.1:{unused.getsockname()[1]}/nothere"
        status, line = refused(tmp_path, PGBUS_DATABASE_URL=url, PGBUS_SECRET=SECRET)
    assert status == 1
    assert line.startswith("cannot connect to PostgreSQL: ") and "Connection refused" in line
    assert "hunter2" not in line


def test_a_data_directory_of_another_version_gives_one_line_that_names_it(home: Path, tmp_path: Path) -> None:
    data = home / "data"
    with serving(home, "--data-dir", str(data)) as served, session(served.database) as connection:
        run(connection, "update pgbus.migrations set checksum = reverse(checksum) where version = 1")
        status, line = refused(tmp_path, "--data-dir", str(data))
        run(connection, "update pgbus.migrations set checksum = reverse(checksum) where version = 1")
    assert status == 1
    assert f"the embedded database in {data}: migration 1 " in line
    assert "delete that directory, with all its messages and your own tables" in line and "--data-dir" in line
