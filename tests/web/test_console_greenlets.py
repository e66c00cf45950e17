"""Requests to the console that overlap in time, or that come through an application in Bottle."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import bottle
import pytest
from site_parts import SETTINGS
from wsgi_parts import call

from pgbus_gevent.bottle_plugin import PgbusPlugin
from pgbus_gevent.bus import Bus
from pgbus_gevent.settings.table import Settings

TOKEN = "operator-token-of-the-site"
OPERATOR = {"HTTP_AUTHORIZATION": f"Bearer {TOKEN}"}

OVERLAPPING = '''
import gevent
from gevent.event import Event
from site_parts import SETTINGS
from wsgi_parts import call

from pgbus_gevent.settings.table import Settings
from pgbus_gevent.streamer.instance import Instance
from pgbus_gevent.web.stream_app import StreamApp

url, token = sys.argv[1:]
instance = Instance(Settings(**SETTINGS | {"database_url": url, "operator_token": token, "request_timeout": 30.0})).start()
app = StreamApp(instance)
operator = {"HTTP_AUTHORIZATION": f"Bearer {token}"}


class SlowBody:
    """A body that comes when ``come`` is set."""

    def __init__(self, data):
        self.data, self.asked, self.come = data, Event(), Event()

    def read(self, size):
        self.asked.set()
        self.come.wait(20)
        return self.data


# The first greenlet waits for the body of its login, and the second one for the database. Others come meanwhile.
body = SlowBody(b"token=" + token.encode())
first = gevent.spawn(
    call, app, "POST", "/pgbus/console/login",
    **{"wsgi.input": body, "CONTENT_LENGTH": str(len(body.data)), "HTTP_ORIGIN": "https://shop", "HTTP_HOST": "shop"},
)
assert body.asked.wait(20)

import bottle

try:
    shared = gevent.spawn(lambda: bottle.request.environ["PATH_INFO"] == "/console/login").get()
except RuntimeError:
    shared = False
print("bottle.request is shared" if shared else "each greenlet has its own bottle.request")

asked, come = Event(), Event()


def retained(stream):
    if stream == "slow":
        asked.set()
        come.wait(20)
    return {"count": len(stream)}


instance.database.fleet.retained = retained
second = gevent.spawn(call, app, "GET", "/pgbus/console/retained", QUERY_STRING="stream=slow", **operator)
assert asked.wait(20)

assert call(app, "GET", "/pgbus/console/nothing").status == 404
assert call(app, "PUT", "/pgbus/console/kick").headers["Allow"] == "POST"
assert call(app, "GET", "/pgbus/console/retained", QUERY_STRING="stream=another", **operator).json["count"] == 7
answer = call(app, "GET", "/pgbus/console", **operator)
assert answer.status == 200 and "Set-Cookie" not in answer.headers, answer

body.come.set()
answer = first.get(timeout=20)
assert (answer.status, answer.headers["Location"], answer.body) == (303, "../console", b""), answer
assert answer.headers["Set-Cookie"].endswith("; Secure"), answer
assert "Allow" not in answer.headers and "Content-Security-Policy" not in answer.headers, answer

answer = call(app, "HEAD", "/pgbus/console", HTTP_ACCEPT="text/html")
assert (answer.status, answer.body) == (401, b""), answer

come.set()
answer = second.get(timeout=20)
assert (answer.status, answer.json) == (200, {"stream": "slow", "count": 4}), answer
assert "Set-Cookie" not in answer.headers and "Content-Security-Policy" not in answer.headers, answer
instance.shutdown()
print("done")
'''

PATCH = "from gevent import monkey\nmonkey.patch_all()\n"


@pytest.mark.parametrize(
    ("imports", "expected"),
    [
        (f"import bottle\n{PATCH}", "bottle.request is shared"),
        (f"{PATCH}import bottle\n", "each greenlet has its own bottle.request"),
        (f"import pgbus_gevent.web.stream_app\n{PATCH}", "each greenlet has its own bottle.request"),
    ],
    ids=["bottle before the patch", "bottle after the patch", "our package before the patch"],
)
def test_greenlets_do_not_see_each_others_request(imports: str, expected: str, pgbus_database: str) -> None:
    program = f"import sys\nsys.path[:0] = {sys.path!r}\n{imports}{OVERLAPPING}"
    done = subprocess.run(
        [sys.executable, "-c", program, pgbus_database, TOKEN], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout.splitlines(), done.returncode) == ([expected, "done"], 0), done.stderr


@pytest.fixture
def plugin(pgbus_database: str) -> Any:
    bus = Bus(settings=Settings(**SETTINGS | {"database_url": pgbus_database, "operator_token": TOKEN}))
    plugin = PgbusPlugin(bus)
    yield plugin
    plugin.close()


@pytest.mark.parametrize(
    "path", ["/console", "/console/", "/console/feed", "/console/nothing", "/console/kick", "/console/\xff"]
)
def test_an_application_in_bottle_keeps_its_request(path: str, plugin: PgbusPlugin) -> None:
    app = bottle.Bottle()
    app.install(plugin)
    seen: list[Any] = []

    @app.hook("after_request")
    def note() -> None:
        seen.append((bottle.request.app is app, bottle.request.route.rule, bottle.request.path))

    answer = call(app, "GET", f"/pgbus{path}", **OPERATOR)
    assert answer.status in (200, 308, 404, 405)
    assert seen == [(True, "/pgbus/<:re:.*>", f"/pgbus{path}".rstrip("\xff"))]


@pytest.mark.parametrize("path", ["/console/\xff", "/console/feed\xff", "/console/\xc3streams", "/console/str\xe9ams"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_a_path_that_is_not_utf_8_is_not_found(method: str, path: str, plugin: PgbusPlugin) -> None:
    assert call(plugin._streams, method, f"/pgbus{path}", **OPERATOR).status == 404
