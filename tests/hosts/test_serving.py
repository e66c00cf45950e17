"""``serve module:app`` for applications that bring their own streams: they are served, with their authorize hook."""

from __future__ import annotations

from pathlib import Path

import gevent
import psutil
import pytest
from database_parts import until
from program_parts import PATIENCE, SECRET, Program, program

from pgbus_gevent.core.names import Signer
from pgbus_gevent.hosts.app_probe import with_own_database
from pgbus_gevent.settings.table import Settings

BASE = """
import bottle
from pgbus_gevent import Bus, StreamApp
from pgbus_gevent.bottle_plugin import PgbusPlugin
from pgbus_gevent.streamer import Instance, current, instances

def authorize(environ, stream):
    return environ.get("HTTP_COOKIE") == "user=ada"

def plain(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(sum(instance.alive for instance in instances())).encode()]

def beside(streams):
    def application(environ, start_response):
        chosen = streams if streams.serves(environ["PATH_INFO"]) else plain
        return chosen(environ, start_response)
    return application
"""
KINDS = {
    "plugin": """
application = bottle.Bottle()
application.route("/", callback=lambda: str(sum(instance.alive for instance in instances())))
application.install(PgbusPlugin(Bus(), authorize=authorize))
""",
    "stream_app": "application = beside(StreamApp(Instance(Bus().settings), authorize))\n",
    "current": "application = beside(StreamApp(current(), authorize))\n",
    "own_start": "application = beside(StreamApp(Instance().start(), authorize))\n",
    "flask": """
import flask
from werkzeug.middleware.dispatcher import DispatcherMiddleware
site = flask.Flask("site")
site.add_url_rule("/", view_func=lambda: str(sum(instance.alive for instance in instances())))
application = DispatcherMiddleware(site, {"/pgbus": StreamApp(Instance(), authorize)})
""",
}


def application(folder: Path, code: str) -> None:
    (folder / "site_app.py").write_text(BASE + code)


SERVE = ("-m", "pgbus_gevent.serve", "site_app:application")


def path(secret: str = SECRET) -> str:
    return f"/pgbus/streams/{Signer((secret,)).sign('orders')}?replay=0"


def statuses(served: Program, path: str) -> list[int]:
    """The answer of a stream to a stranger, and to a client that the application's hook admits."""
    return [served.head_status(path), served.head_status(path, Cookie="user=ada")]


@pytest.mark.parametrize("kind", KINDS)
def test_the_applications_own_streams_answer_with_their_hook(kind: str, pgbus_database: str, tmp_path: Path) -> None:
    application(tmp_path, KINDS[kind])
    with program(*SERVE, database_url=pgbus_database, cwd=tmp_path) as served:
        assert statuses(served, path()) == [403, 200]
        assert served.page("/") == "1"  # one Instance in the process
        assert served.stop() == 0, served.log


def test_applications_are_served_with_workers_too(pgbus_database: str, tmp_path: Path) -> None:
    application(tmp_path, KINDS["plugin"])
    with program(*SERVE, "--workers", "2", database_url=pgbus_database, cwd=tmp_path) as served:
        for _ in range(4):
            assert statuses(served, path()) == [403, 200]
            assert served.page("/") == "1", "each worker has one streamer"
        assert served.stop() == 0, served.log


def test_streams_under_another_prefix_are_announced_too(pgbus_database: str, tmp_path: Path) -> None:
    application(
        tmp_path,
        """
streams = StreamApp(Instance(prefix="/live"), authorize)
def application(environ, start_response):
    if streams.serves(environ["PATH_INFO"]):
        return streams(environ, start_response)
    start_response("404 Not Found", [("Content-Type", "text/plain")])
    return [b"nothing here"]
""",
    )
    with program(*SERVE, "--workers", "2", database_url=pgbus_database, cwd=tmp_path) as served:
        until(lambda: "pgbus_gevent serves http://" in served.log, "it says so")
        assert statuses(served, path().replace("/pgbus/", "/live/")) == [403, 200]
        assert served.stop() == 0, served.log  # or its workers would end some time after the test


def test_an_instance_whose_streams_the_application_serves_itself_is_the_only_one(
    pgbus_database: str, tmp_path: Path
) -> None:
    application(
        tmp_path,
        """
from pgbus_gevent.core.client import Place, StreamRequest
own = Instance().start()
def application(environ, start_response):
    if environ["PATH_INFO"] == "/":
        return plain(environ, start_response)
    if not authorize(environ, "orders"):
        start_response("403 Forbidden", [])
        return []
    start_response("200 OK", [("Content-Type", "text/event-stream")])
    return own.clients.body(StreamRequest((Place("orders"),)))
""",
    )
    with program(*SERVE, database_url=pgbus_database, cwd=tmp_path) as served:
        assert statuses(served, path()) == [403, 200]
        assert served.page("/") == "1"


def test_no_secret_is_in_the_list_of_processes(pgbus_database: str, tmp_path: Path) -> None:
    application(tmp_path, "application = plain")
    secrets = {"PGBUS_PUBLISH_TOKEN": "a-hidden-publish-token", "PGBUS_OPERATOR_TOKEN": "a-hidden-operator-token"}
    url = f"{pgbus_database} password=hidden-password"
    with program(*SERVE, "--workers", "2", database_url=url, cwd=tmp_path, **secrets) as served:
        served.page("/")
        process = psutil.Process(served.process.pid)
        lines = [" ".join(one.cmdline()) for one in (process, *process.children(recursive=True))]
        assert served.stop() == 0, served.log  # or its workers would end some time after the test
    assert len(lines) >= 4 and "hidden" not in str(lines) and SECRET not in str(lines)
    assert "hidden" not in served.log


def test_an_application_without_a_secret_of_serves_has_its_own(pgbus_database: str, tmp_path: Path) -> None:
    own = "the application's own secret"
    application(tmp_path, f"application = beside(StreamApp(Instance(secret={own!r}), authorize))\n")
    with program(*SERVE, database_url=pgbus_database, cwd=tmp_path, PGBUS_SECRET="") as served:
        assert statuses(served, path(own)) == [403, 200]


@pytest.mark.parametrize(
    "code",
    [
        # it makes them once, at the first request
        """
streams = None
def application(environ, start_response):
    global streams
    streams = streams or beside(StreamApp(Instance(), authorize))
    return streams(environ, start_response)
""",
        # it makes them for each request to the prefix, on the process's Instance
        """
def application(environ, start_response):
    if environ["PATH_INFO"].startswith("/pgbus"):
        return StreamApp(current(), authorize)(environ, start_response)
    return plain(environ, start_response)
""",
        # it is a generator, which runs only when it is iterated over
        """
def application(environ, start_response):
    if environ["PATH_INFO"].startswith("/pgbus"):
        yield from StreamApp(current(), authorize)(environ, start_response)
    else:
        yield from plain(environ, start_response)
""",
    ],
    ids=["once", "each", "generator"],
)
def test_streams_that_are_made_at_a_request_are_not_bypassed(code: str, pgbus_database: str, tmp_path: Path) -> None:
    application(tmp_path, code)
    with program(*SERVE, database_url=pgbus_database, cwd=tmp_path) as served:
        # The first requests are for a stream.
        assert statuses(served, path()) == [403, 200]
        assert statuses(served, path()) == [403, 200]
        assert "has made its own streams during a request" in served.log
        served.page("/")
        assert served.stop() == 0, served.log


def test_no_client_is_admitted_while_the_application_is_asked(pgbus_database: str, tmp_path: Path) -> None:
    application(
        tmp_path,
        """
import gevent
streams = None
def application(environ, start_response):
    global streams
    if streams is None:
        gevent.sleep(1.0)
        streams = streams or beside(StreamApp(current(), authorize))
    return streams(environ, start_response)
""",
    )
    with program(*SERVE, database_url=pgbus_database, cwd=tmp_path) as served:
        asked = [gevent.spawn(served.head_status, path()) for _ in range(5)]
        assert [one.get(timeout=PATIENCE) for one in asked] == [403] * 5


def test_the_applications_instance_is_the_current_one(pgbus_database: str, tmp_path: Path) -> None:
    application(
        tmp_path,
        """
streams = StreamApp(Instance(), authorize)
def application(environ, start_response):
    if streams.serves(environ["PATH_INFO"]):
        return streams(environ, start_response)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(current() is streams.instance).encode()]
""",
    )
    with program(*SERVE, database_url=pgbus_database, cwd=tmp_path) as served:
        assert served.page("/") == "True"


def test_an_application_that_fails_under_the_prefix_has_the_streams_beside_it(
    pgbus_database: str, tmp_path: Path
) -> None:
    application(
        tmp_path,
        """
def application(environ, start_response):
    if environ["PATH_INFO"].startswith("/pgbus"):
        raise RuntimeError("no such page")
    return plain(environ, start_response)
""",
    )
    with program(*SERVE, database_url=pgbus_database, cwd=tmp_path) as served:
        assert statuses(served, path()) == [200, 200]
        assert "Traceback" not in served.log


def test_a_bus_in_the_application_has_the_settings_of_serve(pgbus_database: str, tmp_path: Path) -> None:
    application(tmp_path, KINDS["plugin"])
    (tmp_path / "pgbus.toml").write_text('heartbeat = "3s"\npublic = ["a,b"]\n')
    with program(*SERVE, "--config", "pgbus.toml", database_url=pgbus_database, cwd=tmp_path) as served:
        assert served.head_status("/pgbus/streams/a%2Cb", Cookie="user=ada") == 200


@pytest.mark.parametrize(
    "code, flags, complaint",
    [
        (
            'application = beside(StreamApp(Instance(retention="2h"), authorize))',
            ["--retention", "1h"],  # this is the default, but it was given
            "serve was given retention=3600.0, but the application's own streams have retention=7200.0",
        ),
        (
            'application = beside(StreamApp(Instance(secret="the application\'s own secret"), authorize))',
            [],
            "serve was given secret='***', but the application's own streams have secret='***'",
        ),
        (
            'application = beside(StreamApp(Instance(database_url="postgresql://u:hidden@elsewhere/x"), authorize))',
            [],
            "but the application's own streams have database_url='postgresql://u:***@elsewhere/x'",
        ),
        (KINDS["plugin"], ["--authorize", "site_app:authorize"], "authorize='site_app:authorize' would have no effect"),
        (KINDS["plugin"], ["--filters", "site_app:bus"], "filters='site_app:bus' would have no effect"),
    ],
)
def test_a_contradiction_is_one_line_and_status_2(
    code: str, flags: list[str], complaint: str, pgbus_database: str, tmp_path: Path
) -> None:
    application(tmp_path, code)
    served = Program([*SERVE, *flags], pgbus_database, tmp_path, None)
    try:
        assert served.process.wait(PATIENCE) == 2, served.log
        assert complaint in served.log and "Traceback" not in served.log and "hidden" not in served.log
    finally:
        served.close()


def test_with_workers_a_contradiction_is_one_line_and_status_2_too(pgbus_database: str, tmp_path: Path) -> None:
    application(tmp_path, 'application = beside(StreamApp(Instance(retention="2h"), authorize))')
    served = Program([*SERVE, "--workers", "2", "--retention", "1h"], pgbus_database, tmp_path, None)
    try:
        assert served.process.wait(2 * PATIENCE) == 2, served.log
        assert "serve was given retention=3600.0, but" in served.log and "Traceback" not in served.log
    finally:
        served.close()


@pytest.mark.parametrize("flags", [[], ["--workers", "2"]], ids=["one", "workers"])
def test_without_a_database_serve_uses_that_of_the_applications_streams_and_makes_none(
    flags: list[str], pgbus_database: str, tmp_path: Path
) -> None:
    application(
        tmp_path,
        f"""
print("hello from the import")
streams = StreamApp(Instance(database_url={pgbus_database!r}, secret={SECRET!r}), authorize)
application = beside(streams)
""",
    )
    own = {"PGBUS_SECRET": "", "PGBUS_DATA_DIR": str(tmp_path / "data")}
    with program(*SERVE, *flags, database_url="", cwd=tmp_path, **own) as served:
        assert statuses(served, path()) == [403, 200]
        until(lambda: "pgbus_gevent serves http://" in served.log, "it says so")
        assert "it uses that of the application's own streams" in served.log
        assert served.stop() == 0, served.log
    assert not (tmp_path / "data").exists(), "an embedded server was started"


@pytest.mark.program
@pytest.mark.parametrize(
    "code, database, migrate",
    [
        ("application = plain", None, True),
        ("application = beside(StreamApp(Instance(), authorize))", None, True),
        ("raise SystemExit(3)", None, True),
        ("import os\nos._exit(0)", None, True),
        ("print('null')\nimport os\nos._exit(0)", None, True),
        ("application = beside(StreamApp(current(), authorize))", None, True),
        (
            "application = beside(StreamApp(Instance(database_url='postgresql:///x', migrate=False), authorize))",
            "postgresql:///x",
            False,
        ),
        (
            "streams = [StreamApp(Instance(), authorize), StreamApp(Instance(database_url='postgresql:///x'), authorize)]\n"
            "application = beside(streams[0])",
            None,
            True,
        ),
    ],
)
def test_the_probe_finds_the_database_of_an_application(
    code: str, database: str | None, migrate: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    application(tmp_path, code)
    monkeypatch.chdir(tmp_path)
    found = with_own_database(Settings(), "site_app:application")
    assert (found.database_url, found.migrate) == (database, migrate)
