"""The console over HTTP: access to it, its content, and the actions of an operator."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from time import monotonic, process_time
from typing import Any
from urllib.parse import urlencode
from wsgiref.util import setup_testing_defaults

import gevent
import pytest
from program_parts import program
from raw_http import Answer, ask, exchange, get, parse
from site_parts import Site, running_site
from streamer_parts import FakeClient, added, make_board
from support import PATIENCE, run, session, until

from pgbus_gevent.core import events
from pgbus_gevent.core.client import Subscriber
from pgbus_gevent.core.registry import Registry
from pgbus_gevent.core.rows import Row
from pgbus_gevent.core.stream_counter import StreamCounter
from pgbus_gevent.errors import DatabaseUnavailable
from pgbus_gevent.testing.client import StreamClient
from pgbus_gevent.testing.databases import TestDatabases
from pgbus_gevent.web import console, operators, sessions
from pgbus_gevent.web.backstage import backstage_of
from pgbus_gevent.web.feed import HISTORY, HOUR, WATCHERS, Feed
from pgbus_gevent.web.guesses import Guesses
from pgbus_gevent.web.recent_warnings import KEPT, RecentWarnings
from pgbus_gevent.web.stream_app import StreamApp
from pgbus_gevent.web.tables import ROWS, Tables, Wanted

TOKEN = "operator-token-of-the-site"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
FOLDER = Path(console.__file__).with_name("static")
STATIC = tuple(
    f"/console/{path.name}" for path in FOLDER.iterdir() if path.suffix in (".js", ".css") and path.stem != "pgbus"
)
SECRET_VIEWS = (
    "/console", "/console/feed", "/console/streams", "/console/connections", "/console/retained?stream=x",
    "/console/messages?stream=x",
)  # fmt: skip


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL may stand still for some seconds before it answers."""
    monkeypatch.setattr(sessions, "_TIMEOUT", PATIENCE)
    monkeypatch.setattr("pgbus_gevent.web.feed._FLEET_TIMEOUT", PATIENCE)


def signed_in(site: Site) -> dict[str, str]:
    """The header of a browser that has logged in."""
    return {"Cookie": post(site, "login", {"token": TOKEN}).headers["set-cookie"].split(";")[0]}


@pytest.fixture(scope="module")
def site(pgbus_databases: TestDatabases) -> Iterator[Site]:
    """A site on loopback, with a token. Every request is logged in."""
    with running_site(pgbus_databases.make(), operator_token=TOKEN) as site:
        site.headers = signed_in(site)
        yield site


@pytest.fixture(scope="module")
def public_site(pgbus_databases: TestDatabases) -> Iterator[Site]:
    """A site with a token that listens on all addresses."""
    with running_site(pgbus_databases.make(), operator_token=TOKEN, host="0.0.0.0") as site:
        yield site


@pytest.fixture(scope="module")
def tokenless_site(pgbus_databases: TestDatabases) -> Iterator[Site]:
    with running_site(pgbus_databases.make(), host="0.0.0.0") as site:
        yield site


def post(site: Site, path: str, fields: dict[str, str] | None = None, **headers: str) -> Answer:
    headers = {"Content_Type": "application/x-www-form-urlencoded", **site.headers, **headers}
    return ask(site.port, f"/pgbus/console/{path}", "POST", urlencode(fields or {}), **headers)


@contextmanager
def feed(site: Site, query: str = "", **headers: str) -> Iterator[StreamClient]:
    names = {name.replace("_", "-"): value for name, value in {**site.headers, **headers}.items()}
    with StreamClient(site.url, f"/pgbus/console/feed{query}", headers=names) as client:
        yield client
    # The server notices at the second write.
    watched: Any = backstage_of(site.instance).feed
    until(lambda: watched._watchers == 0, "the feed has ended")


# access ---------------------------------------------------------------------------------------------------------------


NEAR = [
    {},
    {"Host": "localhost"},
    {"Host": "127.0.0.1"},
    {"Host": "[::1]"},
    {"Host": "localhost", "X_Forwarded_For": "127.0.0.1"},
    {"Host": "localhost", "Forwarded": "for=127.0.0.1"},
    {"Host": "shop.example", "X_Real_IP": "127.0.0.1", "Via": "1.1 proxy"},
]


@pytest.mark.parametrize("headers", NEAR, ids=str)
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_no_request_is_let_in_because_of_its_address_or_headers(
    site: Site, headers: dict[str, str], version: str
) -> None:
    names = {"Connection": "close"} | {name.replace("_", "-"): value for name, value in headers.items()}
    for view in (*SECRET_VIEWS, "/metrics"):
        assert parse(exchange(site.port, get(f"/pgbus{view}", names, version))).status == 401
        assert ask(site.port, f"/pgbus{view}", "HEAD", **headers, **BEARER).status == 200
    kick = get("/pgbus/console/kick", names, version).replace(b"GET", b"POST", 1)
    assert parse(exchange(site.port, kick)).status == 401


def test_a_login_opens_the_console(site: Site) -> None:
    answer = site.get("/console")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "console/console.js" in answer.body.decode()


def test_every_module_that_the_page_imports_is_served() -> None:
    served = {path.removeprefix("/console/") for path in STATIC}
    imported = {
        name for path in FOLDER.glob("console*.js") for name in re.findall(r'from "\./(\S+)"', path.read_text())
    }
    assert imported and imported <= served and served == set(console._FILES)


def test_without_a_token_the_console_is_closed_and_says_what_to_do(tokenless_site: Site) -> None:
    for view in SECRET_VIEWS:
        for headers in ({}, BEARER, {"Cookie": f"{operators.COOKIE}=x"}):
            answer = tokenless_site.get(view, **headers)
            assert answer.status == 403 and "PGBUS_OPERATOR_TOKEN" in answer.line
    assert tokenless_site.get("/console?token=").status == 403
    assert post(tokenless_site, "login", {"token": ""}).status == 403


@pytest.mark.parametrize("given", ["", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer é", "Bearer "])
def test_a_wrong_token_opens_nothing(public_site: Site, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Guesses, "note", lambda *_: True)
    for view in SECRET_VIEWS:
        answer = public_site.get(view, Authorization=given) if given else public_site.get(view)
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")


def test_a_browser_is_asked_for_the_token(public_site: Site) -> None:
    answer = public_site.get("/console", Accept="text/html,*/*")
    assert answer.status == 401
    assert "Operator token" in answer.body.decode() and TOKEN not in answer.body.decode()


def test_a_login_is_a_cookie_hidden_from_scripts_and_other_sites(public_site: Site) -> None:
    answer = post(public_site, "login", {"token": TOKEN})
    assert (answer.status, answer.headers["location"]) == (303, "../console")
    cookie, *attributes = answer.headers["set-cookie"].split("; ")
    assert {"HttpOnly", "SameSite=strict", f"Max-Age={operators.SESSION}"} == set(attributes)
    assert TOKEN not in cookie
    for view in ("/console", "/console/streams", "/console/connections"):
        assert public_site.get(view, Cookie=cookie).status == 200


@pytest.mark.parametrize(
    "told",
    [
        {"Origin": "https://shop.example"},
        {"X_Forwarded_Proto": "https"},
        {"X_Forwarded_Proto": "HTTPS, http"},
        {"Forwarded": "for=192.0.2.60;proto=https;by=203.0.113.43"},
        {"Forwarded": 'for=192.0.2.43, for="[2001:db8::17]";Proto="https"'},
    ],
    ids=str,
)
def test_the_cookie_is_secure_behind_tls(public_site: Site, told: dict[str, str]) -> None:
    answer = post(public_site, "login", {"token": TOKEN}, Host="shop.example", **told)
    assert answer.headers["set-cookie"].endswith("; Secure")


@pytest.mark.parametrize("proto", ["http", "x", ""])
def test_no_forwarded_header_makes_the_cookie_insecure(public_site: Site, proto: str) -> None:
    headers = {"Origin": "https://shop.example", "Host": "shop.example", "X_Forwarded_Proto": proto}
    assert post(public_site, "login", {"token": TOKEN}, **headers).headers["set-cookie"].endswith("; Secure")


@pytest.mark.parametrize("cookie", ["pgbus_console=operator", "pgbus_console=operator.x.y", "pgbus_console=", "x;=;,"])
def test_an_invented_cookie_opens_nothing(public_site: Site, cookie: str) -> None:
    assert public_site.get("/console", Cookie=cookie).status == 401


def test_a_login_expires(public_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    cookie = signed_in(public_site)
    assert public_site.get("/console", **cookie).status == 200
    monkeypatch.setattr(operators, "SESSION", -1)
    assert public_site.get("/console", **cookie).status == 401


@pytest.fixture
def fellows(pgbus_database: str) -> Iterator[tuple[Site, Site]]:
    """Two workers on one database."""
    with (
        running_site(pgbus_database, operator_token=TOKEN) as one,
        running_site(pgbus_database, operator_token=TOKEN) as two,
    ):
        yield one, two


def test_a_session_is_valid_on_every_worker_and_a_logout_ends_it_on_all(fellows: tuple[Site, Site]) -> None:
    one, two = fellows
    cookie, other = signed_in(one), signed_in(two)
    assert [site.get("/console", **cookie).status for site in fellows] == [200, 200]
    out = post(two, "logout", **cookie)
    assert (out.status, "Max-Age=0" in out.headers["set-cookie"]) == (303, True)
    assert [site.get("/console", **cookie).status for site in fellows] == [401, 401]
    assert [site.get("/console", **other).status for site in fellows] == [200, 200]


def test_a_logout_ends_the_feed_on_every_worker(fellows: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgbus_gevent.web.feed._SLOWLY", 1)
    one, two = fellows
    cookie = signed_in(one)
    with feed(two, **cookie) as client:
        client.next("now")
        post(one, "logout", **cookie)
        until(lambda: client.closed, "the feed has ended")
        assert two.get("/console/feed", **cookie).status == 401


@pytest.mark.parametrize(
    "changed", [{"operator_token": "another-token-of-the-site"}, {"secret": ("another secret of it",)}], ids=str
)
def test_another_token_or_secret_ends_all_sessions(pgbus_database: str, changed: dict[str, Any]) -> None:
    with running_site(pgbus_database, operator_token=TOKEN) as site:
        cookie = signed_in(site)
    with running_site(pgbus_database, **{"operator_token": TOKEN, **changed}) as site:
        assert site.get("/console", **cookie).status == 401
    with running_site(pgbus_database, operator_token=TOKEN) as site:
        assert site.get("/console", **cookie).status == 200


def test_neither_cookie_nor_token_is_in_the_database(pgbus_database: str) -> None:
    with running_site(pgbus_database, operator_token=TOKEN) as site:
        value = signed_in(site)["Cookie"].partition("=")[2]
        with session(pgbus_database) as connection:
            [(row,)] = run(connection, "select s::text from pgbus.operator_sessions s")
    assert value not in row and value.encode().hex() not in row
    assert TOKEN not in row and TOKEN.encode().hex() not in row


def test_sessions_stay_valid_while_the_database_is_away(pgbus_database: str) -> None:
    with running_site(pgbus_database, operator_token=TOKEN) as site:
        before = signed_in(site)
        site.instance.database.operators._run = away  # type: ignore[method-assign]
        while_away = signed_in(site)
        assert [site.get("/console", **cookie).status for cookie in (before, while_away)] == [200, 200]
        assert site.get("/console", Cookie=f"{operators.COOKIE}=made-up").status == 401
        assert site.get("/console", **BEARER).status == 200
        assert post(site, "logout", **while_away).status == 303
        assert site.get("/console", **while_away).status == 401
        # The other workers do not learn of this logout, and the answer says so.
        assert post(site, "logout", **before).status == 503
        assert site.get("/console", **before).status == 401


def test_a_session_expires_while_the_database_is_away(pgbus_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_site(pgbus_database, operator_token=TOKEN) as site:
        site.instance.database.operators._run = away  # type: ignore[method-assign]
        cookie = signed_in(site)
        assert site.get("/console", **cookie).status == 200
        monkeypatch.setattr(sessions, "monotonic", lambda: monotonic() + operators.SESSION)
        assert site.get("/console", **cookie).status == 401


def test_an_ended_session_stays_ended_when_the_database_goes_away(fellows: tuple[Site, Site]) -> None:
    one, two = fellows
    cookie = signed_in(one)
    assert one.get("/console", **cookie).status == 200
    post(two, "logout", **cookie)
    assert one.get("/console", **cookie).status == 401
    one.instance.database.operators._run = away  # type: ignore[method-assign]
    assert one.get("/console", **cookie).status == 401


def test_a_database_that_does_not_answer_delays_no_request(
    pgbus_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "_TIMEOUT", 0.2)
    with running_site(pgbus_database, operator_token=TOKEN) as site:
        site.instance.database.operators._run = lambda *_, **__: gevent.sleep(3600)  # type: ignore[method-assign]
        cookie = signed_in(site)
        assert site.get("/console", **cookie).status == 200
        assert site.get("/metrics", Authorization="Bearer wrong").status == 401


def test_a_cookie_cannot_be_guessed(public_site: Site) -> None:
    cookies = {signed_in(public_site)["Cookie"].partition("=")[2].partition(".")[0] for _ in range(3)}
    assert len(cookies) == 3 and all(len(cookie) >= 43 for cookie in cookies)  # 256 bits


def away(*_: Any, **__: Any) -> Any:
    raise DatabaseUnavailable("away")


def test_a_wrong_bearer_token_is_refused_despite_a_valid_cookie(
    public_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[str] = []
    monkeypatch.setattr(Guesses, "note", lambda self, address, guess: noted.append(address) or True)
    cookie = signed_in(public_site)
    for view in ("/console", "/console/streams", "/metrics"):
        assert public_site.get(view, Authorization="Bearer wrong", **cookie).status == 401
    assert noted == ["'127.0.0.1'"] * 3


@pytest.mark.parametrize(
    "cookie",
    ["{}", "a=b; {}", "{};a=b", " {} ; x", "=; {}", "pgbus_consolex=y; {}", "{}; pgbus_console=made-up"],
)
def test_the_first_cookie_of_the_name_counts(public_site: Site, cookie: str) -> None:
    good = signed_in(public_site)["Cookie"]
    assert public_site.get("/console", Cookie=cookie.format(good)).status == 200
    assert public_site.get("/console", Cookie=cookie.format(good.upper())).status == 401
    assert public_site.get("/console", Cookie=cookie.format(good.replace("pgbus", "Pgbus"))).status == 401
    assert public_site.get("/console", Cookie=f"pgbus_console=made-up; {good}").status == 401


def test_the_cookie_is_secure_if_this_process_serves_tls(public_site: Site) -> None:
    app = StreamApp(public_site.instance)
    environ: dict[str, Any] = {"REQUEST_METHOD": "POST", "PATH_INFO": "/pgbus/console/login"}
    setup_testing_defaults(environ)
    body = f"token={TOKEN}".encode()
    environ |= {"wsgi.url_scheme": "https", "wsgi.input": BytesIO(body), "CONTENT_LENGTH": str(len(body))}
    found: dict[str, str] = {}
    app(environ, lambda status, headers, exc_info=None: found.update(headers))
    assert found["Set-Cookie"].endswith("; Secure")


def test_a_wrong_login_takes_a_moment_and_no_login_answer_is_cached(public_site: Site) -> None:
    began = monotonic()
    answers = [post(public_site, "login", {"token": "wrong"})]
    assert monotonic() - began >= operators._WRONG_TOKEN_PAUSE
    answers += [post(public_site, "login", {"token": TOKEN}), post(public_site, "logout")]
    for answer in answers:
        assert answer.status == 303
        assert answer.headers["cache-control"] == "no-store" and answer.headers["referrer-policy"] == "no-referrer"


def test_a_login_has_a_bounded_number_of_fields_and_the_first_token_counts(public_site: Site) -> None:
    def login(body: str) -> int:
        return ask(public_site.port, "/pgbus/console/login", "POST", body).status

    assert login("a&" * 300 + f"token={TOKEN}") == 400
    answers = [
        ask(public_site.port, "/pgbus/console/login", "POST", f"token={one}&token={two}")
        for one, two in ((TOKEN, "wrong"), ("wrong", TOKEN))
    ]
    assert ["set-cookie" in answer.headers for answer in answers] == [True, False]


def test_the_database_is_not_asked_about_an_invented_cookie(fellows: tuple[Site, Site]) -> None:
    one, two = fellows
    good = signed_in(one)["Cookie"]
    queries: Any = two.instance.database.operators
    asked, run_ = [], queries._run
    queries._run = lambda *given, **named: asked.append(given) or run_(*given, **named)
    for cookie in (
        "x",
        "x.y",
        good[:-1],
        good[:-1] + "\xff",
        good.replace("=", "=x"),
        good.partition(".")[0],
        good + "x",
    ):
        value = cookie if cookie.startswith(operators.COOKIE) else f"{operators.COOKIE}={cookie}"
        assert two.get("/console", Cookie=value).status == 401
    assert asked == []
    assert two.get("/console", Cookie=good).status == 200 and len(asked) == 1


# the token that serve makes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", ["1", "2"])
def test_serve_makes_a_token_and_logs_the_url_with_it(
    pgbus_databases: TestDatabases, tmp_path: Path, workers: str
) -> None:
    url = pgbus_databases.make_empty()
    with program("-m", "pgbus_gevent.serve", "--workers", workers, database_url=url, cwd=tmp_path) as serving:
        until(lambda: "console?token=" in serving.log, "the URL is logged")
        link = re.search(r"http://\S+/pgbus(/console\?token=(\S+))", serving.log)
        assert link is not None and len(link[2]) >= 40
        port = int(serving.url.rpartition(":")[2])
        opened = ask(port, f"/pgbus{link[1]}")
        assert (opened.status, opened.headers["location"], opened.headers["referrer-policy"]) == (
            303,
            "console",
            "no-referrer",
        )

        def opens_the_console() -> bool:
            cookie = ask(port, f"/pgbus{link[1]}").headers["set-cookie"].split(";")[0]
            return [ask(port, "/pgbus/console", Cookie=cookie).status for _ in range(6)] == [200] * 6

        # Several requests, because each may be answered by a different worker. Only if PostgreSQL takes longer than a second to
        # answer does a worker know nothing of the logins at the other one.
        until(opens_the_console, "a login at one worker is valid on all")
        for _ in range(6):
            assert ask(port, "/pgbus/console/streams", Authorization=f"Bearer {link[2]}").status == 200
            assert ask(port, "/pgbus/console").status == 401
            assert ask(port, "/pgbus/metrics").status == 200
        assert ask(port, "/pgbus/console?token=wrong").status == 401
        assert link[2] not in serving.log.replace(link[0], "")


def test_a_configured_token_is_not_taken_from_a_url(site: Site) -> None:
    answer = ask(site.port, f"/pgbus/console?token={TOKEN}")
    assert answer.status == 401 and "set-cookie" not in answer.headers


# requests that a page of another site makes a browser send ------------------------------------------------------------

FOREIGN: list[dict[str, str]] = [
    {"Sec_Fetch_Site": "cross-site"},
    {"Sec_Fetch_Site": "same-site"},
    {"Sec_Fetch_Site": "cross-site", "Origin": "http://127.0.0.1"},
    {"Origin": "https://shop.example"},
    {"Origin": "null"},
]


@pytest.mark.parametrize("headers", FOREIGN)
@pytest.mark.parametrize("path", ["kick", "login", "logout"])
def test_a_page_of_another_site_can_do_nothing(site: Site, path: str, headers: dict[str, str]) -> None:
    with site.watch("demo:kept") as client:
        client.next("pgbus:connected")
        (connection,) = site.instance.registry.clients()
        fields = {"connection": connection.id, "token": TOKEN}
        answer = post(site, path, fields, **headers)
        assert answer.status == 403 and "set-cookie" not in answer.headers
        assert connection in site.instance.registry
    until(lambda: not len(site.instance.registry), "it has left")


def test_a_page_that_may_read_streams_may_not_read_the_console(pgbus_database: str) -> None:
    origin = "https://shop.example"
    with running_site(pgbus_database, cors_origins=(origin,)) as site:
        assert "access-control-allow-origin" in site.get("/pgbus.js", Origin=origin).headers
        for path in ("/console/connections", "/console", "/metrics"):
            answer = site.get(path, Origin=origin)
            assert [name for name in answer.headers if name.startswith("access-control")] == []


def test_a_page_under_a_name_that_resolves_to_this_machine_can_do_nothing(site: Site) -> None:
    origin = {"Host": "rebound.example", "Origin": "http://rebound.example", "Sec_Fetch_Site": "same-origin"}
    # The browser has no cookie for that name.
    assert post(site, "kick", {"connection": "x"}, **origin, Cookie="").status == 401
    assert ask(site.port, "/pgbus/console/connections", Host="rebound.example").status == 401


@pytest.mark.parametrize("path", ["kick", "login", "logout", "publish"])
def test_a_get_changes_nothing(site: Site, path: str) -> None:
    answer = site.get(f"/console/{path}")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


def test_other_paths_and_methods_get_one_line_of_text(site: Site) -> None:
    for path in ("/console/nothing", "/console/feed/", "/console//", "/consoles"):
        answer = site.get(path)
        assert (answer.status, answer.line) == (404, "not found")
    for method in ("PUT", "DELETE", "OPTIONS"):
        answer = ask(site.port, "/pgbus/console/streams", method, **site.headers)
        assert (answer.status, answer.headers["allow"], "GET, HEAD" in answer.line) == (405, "GET, HEAD", True)


def test_the_server_logs_an_exception_and_shows_none_of_it(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(stream: str) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(site.instance.database.fleet, "retained", fails)
    answer = site.get("/console/retained?stream=x")
    assert answer.status == 500 and b"bug" not in answer.body
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.exc_info is not None and str(record.exc_info[1]) == "a bug"


# the page -------------------------------------------------------------------------------------------------------------


class Sources(HTMLParser):
    """The URLs that a page loads, and its inline code."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.inline: list[str] = []
        self._in = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        given = dict(attrs)
        self._in = tag
        self.loaded += [given[name] for name in ("src", "href") if name in given]
        self.inline += [name for name in given if name.startswith("on") or name == "style"]

    def handle_data(self, data: str) -> None:
        if self._in in ("script", "style") and data.strip():
            self.inline.append(data)


@pytest.mark.parametrize("accept", [BEARER, {"Accept": "text/html"}], ids=["console", "login"])
def test_a_page_has_no_inline_code_and_loads_nothing_from_other_sites(
    public_site: Site, accept: dict[str, str]
) -> None:
    answer = public_site.get("/console", **accept)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    sources = Sources(answer.body.decode())
    assert sources.inline == []
    assert all(source.startswith(("console/", "data:")) for source in sources.loaded) and len(sources.loaded) == 3
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", STATIC)
def test_the_files_of_the_console_are_sent_once(public_site: Site, path: str) -> None:
    answer = public_site.get(path)
    assert (answer.status, answer.headers["x-content-type-options"]) == (200, "nosniff")
    assert "//" not in answer.body.decode().replace("http://www.w3.org/2000/svg", "").replace("// ", "")
    again = public_site.get(path, If_None_Match=answer.headers["etag"])
    assert (again.status, again.body) == (304, b"")


def test_a_trailing_slash_redirects_to_the_page(site: Site) -> None:
    answer = site.get("/console/")
    assert (answer.status, answer.headers["location"]) == (308, "../console")


# the feed -------------------------------------------------------------------------------------------------------------


def test_the_feed_sends_the_numbers_every_second(site: Site) -> None:
    with feed(site) as client, site.watch("demo:feed") as watcher:
        watcher.next("pgbus:connected")
        hello = json.loads(client.next("hello").data)
        first = json.loads(client.next("now").data)
        assert len(first["passes"]) == len(hello["bounds"]["passes"]) + 1
        site.bus.stream("demo:feed").broadcast("x")
        watcher.next("message")
        found = [first, *(json.loads(client.next("now").data) for _ in range(3))]
        pauses = [later["at"] - earlier["at"] for earlier, later in pairwise(found)]
        # The shortest, because this process may stand still. Two that follow one another are not the two of one second.
        assert min(pauses) < 2.5 and found[-1]["at"] - first["at"] > 2.4
        # A snapshot may be older than the message, and PostgreSQL may have stood still.
        until(lambda: counts_of(client, first["messages"] + 1), "the message is counted")


def counts_of(client: StreamClient, messages: int) -> bool:
    """Whether the next snapshot says that so many messages were counted, and that all is well."""
    now = json.loads(client.next("now").data)
    assert now["messages"] <= messages
    return bool(
        now["messages"] == messages and now["connections"] >= 1 and now["listening"] is True and now["unready"] is None
    )


def test_the_feed_begins_with_the_history(pgbus_database: str) -> None:
    with running_site(pgbus_database, operator_token=TOKEN) as site:
        site.headers = BEARER
        roll_call = site.instance.roll_call
        until(lambda: roll_call.clock_offset is not None, "the worker has reported once")
        with feed(site) as client:
            assert len(json.loads(client.next("hello").data)["history"]) >= 1
        # If the first report took long, it says little, and a later one counts.
        until(lambda: abs(roll_call.clock_offset or 9) < 0.5, "the two clocks of this machine are found to agree")


def test_the_worker_keeps_five_fine_minutes_and_a_coarse_hour(site: Site) -> None:
    now = [1000.0]
    backstage = backstage_of(site.instance)
    kept: Any = Feed(site.instance, backstage.metrics, backstage.operators, backstage.warnings, lambda: now[0])
    for _ in range(2000):
        kept.note()
        now[0] += 5.0
    hello = kept._hello()
    assert (len(hello["history"]), len(hello["hour"])) == (HISTORY, HOUR)
    assert HISTORY * 5 >= 300 and HOUR * 30 >= 3600
    # The whole must stay small: it is kept in memory, and sent whenever a page opens.
    assert len(json.dumps(hello)) < 150_000


def test_the_feed_counts_what_went_wrong_by_its_reason(site: Site) -> None:
    with feed(site) as client:
        hello = json.loads(client.next("hello").data)
        before = json.loads(client.next("now").data)
        emit = site.instance.events.emit
        emit(events.Refused("overloaded"))
        emit(events.Gap("demo:x", "expired"))
        emit(events.Disconnected("c", ("demo:x",), None, "slow-consumer", 1.0))
        logging.getLogger("pgbus_gevent.shop").error("no wine")
        expected = {"refused": "overloaded", "gaps": "expired", "lost": "slow-consumer"}

        def are_counted() -> bool:
            now = json.loads(client.next("now").data)
            grown = {
                kind: [
                    reason
                    for reason, a, b in zip(hello["reasons"][kind], before[kind], now[kind], strict=True)
                    if b > a
                ]
                for kind in expected
            }
            return (
                all(reason in grown[kind] for kind, reason in expected.items())
                and now["warned"][1] > before["warned"][1]
            )

        until(are_counted, "all four are counted")


def test_the_feed_lists_the_workers_of_the_fleet(pgbus_database: str) -> None:
    with running_site(pgbus_database, operator_token=TOKEN) as site:
        site.headers = BEARER
        facts = {"connections": 7, "streams": 2, "messages": 1, "sends": 9, "refused": 3, "unready": None}
        site.bus.database.fleet.beat("there", "web-2", 4711, 0.0, facts)
        with feed(site) as client:
            (worker,) = [w for w in json.loads(client.next("slow").data)["fleet"] if w["id"] == "there"]
        assert (worker["host"], worker["pid"], worker["connections"]) == ("web-2", 4711, 7)
        # An older release reports less.
        assert (worker["sends"], worker["refused"], worker["lost"]) == (9, 3, None)
        own = backstage_of(site.instance).facts()
        assert {"sends", "refused", "lost", "warned"} <= own.keys()


def test_the_feed_sends_warnings_newest_first(site: Site) -> None:
    logging.getLogger("pgbus_gevent.shop").warning("no %s", "bread")
    with feed(site) as client:

        def of_the_shop() -> list[dict[str, Any]]:
            # The server may have warnings of its own, for example that PostgreSQL takes long.
            return [warned for warned in json.loads(client.next("warnings").data) if warned["logger"] == "shop"]

        first = of_the_shop()
        assert (first[0]["message"], first[0]["logger"], first[0]["level"]) == ("no bread", "shop", "warning")
        logging.getLogger("pgbus_gevent.shop").error("no wine")
        until(lambda: of_the_shop()[0]["message"] == "no wine", "the newer one is the first")


def test_a_feed_of_another_worker_is_redirected(site: Site) -> None:
    with feed(site, "?worker=another") as client:
        assert json.loads(client.next("elsewhere").data)["worker"]
        until(lambda: client.closed, "the feed ends")
    assert site.get("/console/streams?worker=another").status == 421


def test_the_feed_runs_only_while_it_is_watched(site: Site) -> None:
    watched: Any = backstage_of(site.instance).feed
    with feed(site) as client:
        client.next("now")
        assert watched._watchers == 1
    assert watched._watchers == 0


def test_the_number_of_feeds_is_limited(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backstage_of(site.instance).feed, "_watchers", WATCHERS)
    with StreamClient(site.url, "/pgbus/console/feed", headers=site.headers) as client:
        until(lambda: client.closed, "the feed ends")
        assert [frame.event for frame in client.frames if frame.event != "message"] == []


def test_a_stop_ends_the_feed_at_once(pgbus_database: str) -> None:
    with running_site(pgbus_database, operator_token=TOKEN) as site, feed(site, **BEARER) as client:
        client.next("now")
        site.instance.shutdown()
        until(lambda: client.closed, "the feed ends")


def test_a_head_of_the_feed_ends(site: Site) -> None:
    head = ask(site.port, "/pgbus/console/feed", "HEAD", **site.headers)
    assert (head.status, head.headers["content-type"], head.body) == (200, "text/event-stream; charset=utf-8", b"")


# tables ---------------------------------------------------------------------------------------------------------------


def told(site: Site, path: str) -> Any:
    answer = site.get(f"/console/{path}")
    assert answer.status == 200, answer
    return json.loads(answer.body)


def test_streams_and_connections_are_listed(site: Site) -> None:
    with site.watch("demo:list", "replay=1") as client:
        client.next("pgbus:connected")
        id = site.bus.stream("demo:list").broadcast("x")
        client.next("message")
        (row,) = told(site, "streams?text=demo:LIST")["rows"]
        assert (row["name"], row["readers"], row["behind"], row["head"], row["messages"]) == ("demo:list", 1, 0, id, 1)
        (row,) = told(site, "connections?text=demo:list")["rows"]
        (connection,) = site.instance.registry.clients()
        assert (row["id"], row["streams"], row["state"]) == (connection.id, ["demo:list"], "live")
        assert (row["lag"], row["address"], 0 <= row["age"] < 20) == (0, "127.0.0.1", True)
        assert row["bytes"] >= len(client.raw) > 100
        assert told(site, "retained?stream=demo:list")["count"] == 1
    until(lambda: not told(site, "streams")["rows"], "it has left")


def test_the_connections_of_one_stream_are_listed(site: Site) -> None:
    with site.watch("demo:one") as one, site.watch("demo:one-more") as more:
        for client in (one, more):
            client.next("pgbus:connected")
        page = told(site, "connections?stream=demo:one")
        assert (page["total"], [row["streams"] for row in page["rows"]]) == (1, [["demo:one"]])
        assert told(site, "connections?stream=demo:none")["rows"] == []
        assert told(site, "connections?stream=demo:one&text=nothing")["rows"] == []
    until(lambda: not told(site, "streams")["rows"], "they have left")


@pytest.mark.parametrize("query", ["sort=nonsense", "page=-1", "page=x", "sort=name&sort=name", "page=99999999999"])
@pytest.mark.parametrize("table", ["streams", "connections"])
def test_an_invalid_query_of_a_table_is_refused(site: Site, table: str, query: str) -> None:
    assert site.get(f"/console/{table}?{query}").status == 400


def crowd(streams: int, readers: int = 1) -> tuple[Tables, Registry, StreamCounter, list[float]]:
    """Tables of many streams: n messages were counted for the n-th."""
    now = [0.0]
    board = make_board(ring_bytes=10**6, ring_budget=10**9)
    registry, counter = board.registry, board.counter
    for n in range(streams * readers):
        stream = f"orders:{n % streams}"
        added(board, FakeClient(f"c{n:07}", stream, owner=f"user-{n}")).cursor = 0
        counter.connected([stream])
    for n in range(streams):
        counter.broadcast(f"orders:{n}", n)
        log = registry.log(f"orders:{n}")
        assert log is not None
        log.open(head=n, horizon=0, oldest=0, floor=n, rows=[])
    return Tables(board, lambda: now[0]), registry, counter, now


@pytest.mark.slow
@pytest.mark.parametrize("sort", ["name", "readers", "behind", "rate", "messages", "head", "ring"])
def test_ten_thousand_streams_are_sorted_filtered_and_paged_quickly(sort: str) -> None:
    tables, *_ = crowd(10_000)
    began = process_time()
    page = tables.streams(Wanted(sort, True, "9", 3))
    took = process_time() - began
    print(f"by {sort}: {took * 1e3:.0f} ms")
    assert took < 3.0  # on a machine of its own: a twentieth
    matching = sum("9" in str(n) for n in range(10_000))
    assert (page["total"], page["matched"], page["page"], len(page["rows"])) == (10_000, matching, 3, ROWS)
    values = [row[sort] for row in page["rows"]]
    assert values == sorted(values, reverse=True)


@pytest.mark.slow
def test_ten_thousand_connections_are_paged_quickly() -> None:
    tables, *_ = crowd(10_000)
    began = process_time()
    page = tables.connections(Wanted("owner", False, "user-99", 0))
    took = process_time() - began
    print(f"connections: {took * 1e3:.0f} ms")
    assert took < 3.0  # on a machine of its own: a twentieth
    assert page["matched"] == 1 + 10 + 100 and page["rows"][0]["owner"] == "user-99"


@pytest.mark.slow
def test_other_greenlets_run_while_a_table_is_made() -> None:
    tables, *_ = crowd(10_000)
    turns = []

    def other() -> None:
        while True:
            turns.append(monotonic())
            gevent.sleep(0)

    greenlet = gevent.spawn(other)
    tables.connections(Wanted("id", False, "", 0))
    greenlet.kill()
    assert len(turns) > 5


def test_a_reader_whose_cursor_rests_below_messages_for_others_lacks_none() -> None:
    tables, registry, *_ = crowd(1, readers=3)
    log = registry.log("orders:0")
    assert log is not None
    reader, holder, _ = registry.subscriptions("orders:0")
    registry.replace(holder, Subscriber(labels=["a"]))
    log.extend([Row(id, None, "x", "a", None, id - 1) for id in (1, 2)])
    assert tables.streams(Wanted("behind", True, "", 0))["rows"][0]["behind"] == 1
    rows = tables.connections(Wanted("lag", True, "", 0))["rows"]
    assert [(row["lag"], row["state"]) for row in rows] == [(2, "behind"), (0, "live"), (0, "live")]
    assert reader.cursor == 0  # looking at it moves nothing


def test_a_page_beyond_the_last_shows_the_last() -> None:
    tables, *_ = crowd(20)
    page = tables.streams(Wanted("name", False, "", 99))
    assert (page["page"], page["pages"], len(page["rows"])) == (1, 2, 20 - ROWS)


def test_a_rate_covers_the_last_seconds() -> None:
    tables, _, counter, now = crowd(3)
    tables.streams(Wanted("name", False, "", 0))
    counter.broadcast("orders:1", 20)
    now[0] = 4.0
    rates = {row["name"]: row["rate"] for row in tables.streams(Wanted("name", False, "", 0))["rows"]}
    assert rates == {"orders:0": 0.0, "orders:1": 5.0, "orders:2": 0.0}
    for now[0] in (8.0, 12.0, 16.0, 20.0):
        page = tables.streams(Wanted("rate", True, "", 0))
    assert page["rows"][0]["rate"] == 0.0


# actions of an operator -----------------------------------------------------------------------------------------------


def test_an_operator_ends_a_connection(site: Site) -> None:
    with site.watch("demo:kick") as client, site.watch("demo:kick") as other:
        for each in (client, other):
            each.next("pgbus:connected")
        id = json.loads(next(f for f in client.frames if f.event == "pgbus:connected").data)["connectionId"]
        answer = post(site, "kick", {"connection": id}, Sec_Fetch_Site="same-origin")
        assert (answer.status, json.loads(answer.body)) == (200, {"ended": id})
        assert json.loads(client.next("pgbus:shutdown").data)["reason"] == "revoked"
        assert len(site.instance.registry) == 1
        assert post(site, "kick", {"connection": id}).status == 404


def test_a_program_with_the_token_ends_a_connection(public_site: Site) -> None:
    with public_site.watch("demo:kick") as client:
        client.next("pgbus:connected")
        (connection,) = public_site.instance.registry.clients()
        assert post(public_site, "kick", {"connection": connection.id}).status == 401
        assert post(public_site, "kick", {"connection": connection.id}, **BEARER).status == 200
        client.next("pgbus:shutdown")


# warnings -------------------------------------------------------------------------------------------------------------


def test_kept_warnings_are_limited_in_number_and_length() -> None:
    warnings = RecentWarnings()
    package = logging.getLogger("pgbus_gevent")
    before = list(package.handlers)
    with warnings.listening():
        for n in range(KEPT + 10):
            logging.getLogger("pgbus_gevent.shop").warning("%d %s", n, "x" * 10_000)
        logging.getLogger("pgbus_gevent.shop").info("fine")
        logging.getLogger("another").warning("not ours")
    logging.getLogger("pgbus_gevent.shop").warning("too late")
    assert [warned.message.split()[0] for warned in warnings.newest()] == [str(n) for n in range(KEPT + 9, 9, -1)]
    assert max(len(warned.message) for warned in warnings.newest()) == 500
    assert package.handlers == before


# the database is away -------------------------------------------------------------------------------------------------


def test_the_console_says_that_the_database_does_not_answer(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs(**_: Any) -> Any:
        gevent.sleep(3600)

    def fails(**_: Any) -> Any:
        raise DatabaseUnavailable("it is away")

    monkeypatch.setattr("pgbus_gevent.web.feed._FLEET_TIMEOUT", 0.5)
    for answer, trouble in ((hangs, "no answer"), (fails, "it is away")):
        monkeypatch.setattr(site.instance.database.fleet, "workers", answer)
        with feed(site) as client:
            slow = json.loads(client.next("slow").data)
            assert (slow["trouble"], slow["fleet"]) == (trouble, None)
            client.next("now")
