"""A served Bottle application with the plugin: its pages with tags, and the streams that the tags connect to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import bottle
import gevent
import psycopg2
import psycopg2.extras
import pytest
from gevent import pywsgi
from program_parts import SECRET, tag_in
from support import get, session

from pgbus_gevent import Subscriber
from pgbus_gevent.bottle_plugin import PgbusPlugin
from pgbus_gevent.bus import Bus, Html
from pgbus_gevent.hosts.pywsgi import Server, listen
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.testing.client import StreamClient

EVIL = "orders \"<&>' é/7?x=1"


class Site:
    """A Bottle application with the plugin on its own database. Its server starts at the first request."""

    def __init__(self, settings: Settings) -> None:
        # Without a public pattern, every stream must be signed.
        self.settings = replace(settings, secret=(SECRET,), public=())
        self.app = bottle.Bottle()
        self.served: Any = self.app
        self.bus = Bus(settings=self.settings)
        self._plugins: list[PgbusPlugin] = []
        self._clients: list[StreamClient] = []
        self.server = Server(listen("127.0.0.1", 0), lambda *request: self.served(*request))
        self.server.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def plugin(self, **options: Any) -> PgbusPlugin:
        """Return a plugin whose bus is closed with the site."""
        plugin = PgbusPlugin(**{"bus": self.bus, **options})
        self._plugins.append(plugin)
        return plugin

    def install(self, **options: Any) -> PgbusPlugin:
        plugin: PgbusPlugin = self.app.install(self.plugin(**options))
        return plugin

    def page(self, path: str = "/") -> str:
        answer = get(self.url, path)
        assert answer.status == 200, answer
        return answer.body.decode()

    def watch(self, path: str, since: int | None = None, url: str = "", **headers: str) -> StreamClient:
        client = StreamClient(url or self.url, path, since=since, headers=headers)
        self._clients.append(client)
        client.next("pgbus:connected")
        return client

    def close(self) -> None:
        for client in self._clients:
            client.close()
        for plugin in self._plugins:
            plugin.close()
        self.server.stop(1.0)
        self.bus.close()


@pytest.fixture
def site(pgbus_settings: Settings) -> Iterator[Site]:
    found = Site(pgbus_settings)
    yield found
    found.close()


def round_trip(site: Site, page: str, bus: Bus, stream: str) -> None:
    """Check that the page's stream delivers the messages since the page was made, and new ones."""
    bus.stream(stream).broadcast("missed")
    with site.watch(*tag_in(page)) as client:
        assert client.next().data == "missed"
        id = bus.stream(stream).broadcast("live")
        frame = client.next()
        assert (frame.id, frame.data) == (str(id), "live")


# pages ---------------------------------------------------------------------------------------------------------------


def test_a_tag_in_an_inline_template(site: Site) -> None:
    site.install()
    site.app.get("/")(lambda pgbus: bottle.template("<p>{{!tag}}</p>", tag=pgbus.stream_tag(EVIL)))
    id = site.bus.stream(EVIL).broadcast("before")
    page = site.page()
    assert tag_in(page)[1] == id
    round_trip(site, page, site.bus, EVIL)


def test_a_tag_in_a_template_file(site: Site, tmp_path: Path) -> None:
    (tmp_path / "orders.tpl").write_text(
        "<ul>\n% for n in range(2):\n<li>{{n}}\n% end\n</ul>{{!pgbus.stream_tag('orders')}}"
    )
    site.install()

    @site.app.get("/")
    @bottle.view("orders", template_lookup=[str(tmp_path)])
    def orders(pgbus: Bus) -> dict[str, Any]:
        return {"pgbus": pgbus}

    page = site.page()
    assert "<li>1" in page
    round_trip(site, page, site.bus, "orders")


def test_a_tag_in_a_jinja2_template_that_escapes(site: Site, tmp_path: Path) -> None:
    (tmp_path / "orders.html").write_text("{{ name }} {{ pgbus.stream_tag(name) }}")
    site.install()
    view = bottle.jinja2_view("orders", template_lookup=[str(tmp_path)], template_settings={"autoescape": True})
    site.app.get("/", apply=[view])(lambda pgbus: {"pgbus": pgbus, "name": EVIL})
    page = site.page()
    assert EVIL not in page and "&lt;" in page
    round_trip(site, page, site.bus, EVIL)


def test_no_part_of_a_tag_can_break_out_of_it(pgbus_bus: Bus) -> None:
    bare = Bus(settings=replace(pgbus_bus.settings, secret=(), public=("*",)))
    try:
        path, since = tag_in(bare.stream_tag(EVIL))
    finally:
        bare.close()
    assert path == "/pgbus/streams/orders%20%22%3C%26%3E%27%20%C3%A9%2F7%3Fx%3D1" and since == 0
    assert str(Html("<b>")) == Html("<b>").__html__() == "<b>" and type(Html("<b>").__html__()) is str


@pytest.mark.parametrize("factory", [None, psycopg2.extras.RealDictCursor, psycopg2.extras.NamedTupleCursor])
def test_a_change_its_broadcast_and_the_watermark_share_the_applications_transaction(
    site: Site, factory: Any, pgbus_database: str
) -> None:
    site.install()
    with session(pgbus_database) as admin:
        admin.cursor().execute("create table orders (id integer)")

    def transaction(change: bool, fail: bool = False) -> str:
        connection = psycopg2.connect(pgbus_database, cursor_factory=factory)
        try:
            with connection, connection.cursor() as cursor:
                before = site.bus.stream_tag("orders", using=cursor)
                if change:
                    cursor.execute("insert into orders values (1)")
                    assert site.bus.stream("orders").broadcast("changed", using=cursor) is None
                if fail:
                    raise ZeroDivisionError
                return before
        finally:
            connection.close()

    site.app.get("/change")(lambda pgbus: transaction(change=True))
    site.app.get("/")(lambda pgbus: transaction(change=False))
    empty = site.page("/")
    with site.watch(*tag_in(empty)) as client:
        with pytest.raises(ZeroDivisionError):
            transaction(change=True, fail=True)
        assert tag_in(site.page("/change"))[1] == 0
        frame = client.next()
        assert frame.data == "changed" and tag_in(site.page("/"))[1] == int(frame.id or 0)
        assert len(client.messages) == 1


# streams -------------------------------------------------------------------------------------------------------------


def test_the_answer_of_a_stream_is_the_same_as_without_bottle(site: Site) -> None:
    site.install()
    site.app.get("/<anything:path>")(lambda anything: "the application's own")
    path = site.bus.stream_path("orders")
    response = site.watch(path).wait_for_response()
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache, no-transform"
    assert "content-length" not in response.headers and response.headers["transfer-encoding"] == "chunked"
    assert get(site.url, "/pgbus/healthz").status == 200
    assert get(site.url, "/pgbus/streams/unknown").status == 404
    assert get(site.url, "/pgbus/nothing").body == b"not found\n"
    assert get(site.url, "/elsewhere").body == b"the application's own"


def test_hooks_and_authorize_see_the_request(site: Site) -> None:
    def authorize(environ: Any, stream: str) -> bool | Subscriber:
        return Subscriber(owner="ada") if bottle.request.get_cookie("user") == "ada" else False

    @site.app.hook("after_request")
    def mark() -> None:
        bottle.response.set_header("X-Shop", "yes")

    site.install(authorize=authorize)
    path = site.bus.stream_path("orders")
    assert get(site.url, path).status == 403
    assert site.watch(path, Cookie="user=ada").wait_for_response().headers["x-shop"] == "yes"


def test_the_stream_is_the_body_if_the_server_keeps_its_sockets(site: Site) -> None:
    plugin = site.install()
    site.app.get("/")(lambda pgbus: pgbus.stream_tag("orders"))
    plain: Any = pywsgi.WSGIServer(("127.0.0.1", 0), site.app, log=None, environ={"SERVER_NAME": "localhost"})
    plain.start()
    try:
        site.url = f"http://127.0.0.1:{plain.server_port}"
        round_trip(site, site.page(), site.bus, "orders")
        with gevent.Timeout(40):
            while plugin.instance.registry.clients():
                gevent.sleep(0.01)
                site.bus.stream("orders").broadcast("a write is how it learns that the client has left")
    finally:
        plugin.close()
        plain.stop(1.0)


# applications in applications ----------------------------------------------------------------------------------------


def test_a_mounted_application_with_the_same_plugin_gets_the_bus_and_the_parent_serves(site: Site) -> None:
    plugin, child = site.install(), bottle.Bottle()
    child.install(plugin)
    child.get("/orders")(lambda pgbus: pgbus.stream_tag("orders"))
    site.app.mount("/child/", child)
    round_trip(site, site.page("/child/orders"), site.bus, "orders")
    # The streams are also served below the child, though no link leads there.
    site.watch(f"/child{site.bus.stream_path('orders')}")


def test_a_merged_application_with_its_own_plugin(site: Site) -> None:
    child = bottle.Bottle()
    child.install(site.plugin())
    child.get("/orders")(lambda pgbus: pgbus.stream_tag("orders"))
    site.app.merge(child)
    round_trip(site, site.page("/orders"), site.bus, "orders")


@pytest.mark.parametrize("as_wsgi", [False, True])
def test_a_mounted_application_serves_its_own_streams(site: Site, as_wsgi: bool) -> None:
    bus = Bus(settings=replace(site.settings, prefix="/a/b/pgbus"))
    child = bottle.Bottle()
    child.install(site.plugin(bus=bus, mount="/pgbus"))
    child.get("/orders")(lambda pgbus: pgbus.stream_tag("orders"))
    site.app.mount("/a/b/", child.wsgi if as_wsgi else child)
    page = site.page("/a/b/orders")
    assert tag_in(page)[0].startswith("/a/b/pgbus/streams/")
    round_trip(site, page, bus, "orders")


def test_two_plugins_serve_two_buses(site: Site) -> None:
    other = Bus(settings=replace(site.settings, prefix="/live", secret=("another secret of the tests",)))
    site.install()
    site.install(bus=other, keyword="live")
    site.app.get("/one")(lambda pgbus, live: pgbus.stream_tag("orders"))
    site.app.get("/two")(lambda pgbus, live: live.stream_tag("orders"))
    round_trip(site, site.page("/one"), site.bus, "orders")
    round_trip(site, site.page("/two"), other, "orders")
    name = other.sign("orders")
    assert get(site.url, f"/pgbus/streams/{name}").status == 404


def test_uninstall_tells_clients_to_reconnect(site: Site) -> None:
    plugin = site.install()
    path = site.bus.stream_path("orders")
    client = site.watch(path)
    site.app.uninstall(plugin)
    assert client.next("pgbus:shutdown").data == '{"reason":"restart"}'
    answer = get(site.url, path)
    assert answer.status == 503 and int(answer.headers["retry-after"]) >= 5
    assert get(site.url, path, Accept="text/event-stream").status == 200
