"""The Bottle plugin: the routes that get the bus, the streams that it mounts, and its refusals."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from io import BytesIO
from typing import Any

import bottle
import pytest

from pgbus_gevent.bottle_plugin import PgbusPlugin
from pgbus_gevent.bus import Bus
from pgbus_gevent.errors import InvalidArgument
from pgbus_gevent.streamer.instance import Instance
from pgbus_gevent.testing.fake_bus import FakeBus


def call(app: Any, path: str) -> tuple[int, str]:
    """Return the status and the body of a GET, without a server."""
    found: list[int] = []
    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": path,
        "SCRIPT_NAME": "",
        "SERVER_NAME": "test",
        "SERVER_PORT": "80",
        "wsgi.url_scheme": "http",
        "wsgi.input": BytesIO(),
        "wsgi.errors": sys.stderr,
    }
    body = app(environ, lambda status, headers, exc_info=None: found.append(int(status.split()[0])))
    return found[0], b"".join(body).decode()


def given(route: Callable[..., Any], rule: str = "/", path: str = "/", **options: Any) -> dict[str, Any]:
    """Return the arguments that a route was given, if it returns them."""
    app, bus = bottle.Bottle(), FakeBus()
    app.install(PgbusPlugin(bus))
    seen: dict[str, Any] = {}
    app.route(rule, callback=functools.wraps(route)(lambda **kwargs: seen.update(kwargs) or "ok"), **options)
    status, body = call(app, path)
    assert status == 200, body
    return {name: "the bus" if value is bus else value for name, value in seen.items()}


# which routes get the bus --------------------------------------------------------------------------------------------


def test_a_route_that_names_the_bus_gets_it_and_another_does_not() -> None:
    assert given(lambda pgbus: None) == {"pgbus": "the bus"}
    assert given(lambda pgbus=None: None) == {"pgbus": "the bus"}
    assert given(lambda *, pgbus: None) == {"pgbus": "the bus"}
    assert given(lambda: None) == {}
    assert given(lambda bus: None, "/<bus>", "/7") == {"bus": "7"}


def test_a_route_gets_the_bus_beside_the_arguments_from_the_url() -> None:
    assert given(lambda id, pgbus, **others: None, "/<id:int>/<x>", "/7/y") == {"id": 7, "x": "y", "pgbus": "the bus"}


def test_a_route_with_kwargs_gets_the_bus_only_if_it_names_it() -> None:
    assert given(lambda **anything: None, "/<id>", "/7") == {"id": "7"}
    assert given(lambda **pgbus: None) == {}
    assert given(lambda **anything: None, "/<id>", "/7") == {"id": "7"}
    assert given(lambda pgbus, **anything: None) == {"pgbus": "the bus"}


def test_a_decorated_route_gets_the_bus_like_the_function_that_it_decorates() -> None:
    app, bus = bottle.Bottle(), FakeBus()
    app.install(PgbusPlugin(bus))

    def loud(function: Callable[..., str]) -> Callable[..., str]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> str:
            return function(*args, **kwargs).upper()

        return wrapper

    @app.get("/twice")
    @loud
    @loud
    def twice(pgbus: Any) -> str:
        return f"the bus: {pgbus is bus}"

    @app.get("/without")
    @loud
    def without() -> str:
        return "nothing"

    @app.get("/by-option", apply=[loud])
    def by_option(pgbus: Any) -> str:
        return f"the bus: {pgbus is bus}"

    @app.get("/cached")
    @functools.lru_cache
    def cached(pgbus: Any) -> str:
        return f"the bus: {pgbus is bus}"

    assert call(app, "/twice") == call(app, "/by-option") == (200, "THE BUS: TRUE")
    assert call(app, "/without") == (200, "NOTHING")
    assert call(app, "/cached") == (200, "the bus: True")


def test_a_decorator_may_provide_or_take_the_bus_itself() -> None:
    app, bus = bottle.Bottle(), FakeBus()
    app.install(PgbusPlugin(bus))

    def provided(function: Callable[..., str]) -> Callable[..., str]:
        @functools.wraps(function)
        def wrapper(name: str) -> str:
            return function(name, pgbus="its own")

        return wrapper

    def taken(function: Callable[..., str]) -> Callable[..., str]:
        @functools.wraps(function)
        def wrapper(pgbus: Any, **kwargs: Any) -> str:
            return function(**kwargs) + str(pgbus is bus)

        return wrapper

    app.get("/provided/<name>")(provided(lambda name, pgbus: f"{name}: {pgbus}"))
    app.get("/taken")(taken(lambda: "taken: "))
    assert call(app, "/provided/x") == (200, "x: its own")
    assert call(app, "/taken") == (200, "taken: True")


def test_methods_partial_functions_and_callable_objects_get_the_bus() -> None:
    class Shop:
        def page(self, pgbus: Any) -> str:
            return f"page {pgbus is bus}"

        @classmethod
        def of_the_class(cls, pgbus: Any) -> str:
            return f"class {pgbus is bus}"

        @staticmethod
        def static(pgbus: Any) -> str:
            return f"static {pgbus is bus}"

        def __call__(self, pgbus: Any) -> str:
            return f"object {pgbus is bus}"

    app, bus, shop = bottle.Bottle(), FakeBus(), Shop()
    app.install(PgbusPlugin(bus))
    app.get("/page", callback=shop.page)
    app.get("/class", callback=Shop.of_the_class)
    app.get("/static", callback=Shop.static)
    app.get("/object")(shop)
    app.get(
        "/partial",
        callback=functools.update_wrapper(functools.partial(lambda n, pgbus: f"{n} {pgbus is bus}", 1), call),
    )
    for name in ("page", "class", "static", "object"):
        assert call(app, f"/{name}") == (200, f"{name} True")
    assert call(app, "/partial") == (200, "1 True")


def test_a_keyword_that_the_url_fills_is_not_overwritten_silently(capsys: pytest.CaptureFixture[str]) -> None:
    app = bottle.Bottle()
    app.install(PgbusPlugin(FakeBus()))
    app.get("/<pgbus>")(lambda pgbus: "ok")
    assert call(app, "/7")[0] == 500
    assert "the route /<pgbus> takes the argument 'pgbus' from the URL" in capsys.readouterr().err


def test_other_plugins_work_beside_this_one() -> None:
    class Db:
        name, api, keyword = "db", 2, "db"

        def apply(self, callback: Callable[..., Any], route: bottle.Route) -> Callable[..., Any]:
            return lambda **kwargs: callback(**kwargs, db="a connection")

    for plugins in ([Db(), PgbusPlugin(FakeBus())], [PgbusPlugin(FakeBus()), Db()]):
        app = bottle.Bottle()
        for plugin in plugins:
            app.install(plugin)
        app.get("/both")(lambda db, pgbus: {"db": db, "fake": isinstance(pgbus, FakeBus)})
        app.get("/view", template="{{!x}}")(lambda db, pgbus: {"x": f"{db} & {type(pgbus).__name__}"})
        assert json.loads(call(app, "/both")[1]) == {"db": "a connection", "fake": True}
        assert call(app, "/view") == (200, "a connection & FakeBus")


@pytest.mark.parametrize("skip", ["pgbus", PgbusPlugin, True])
def test_a_route_can_skip_the_plugin(skip: Any) -> None:
    assert given(lambda pgbus=None: None, skip=skip) == {}


def test_two_buses_under_two_keywords_and_prefixes() -> None:
    app, one, two = bottle.Bottle(), FakeBus(), FakeBus(prefix="/live")
    app.install(PgbusPlugin(one))
    app.install(PgbusPlugin(two, keyword="live"))
    app.get("/")(lambda pgbus, live: f"{pgbus is one} {live is two}")
    app.get("/skip", skip="pgbus:live")(lambda pgbus, live=None: f"{pgbus is one} {live}")
    assert call(app, "/") == (200, "True True")
    assert call(app, "/skip") == (200, "True None")
    assert [route.rule for route in app.routes[:2]] == ["/pgbus/<:re:.*>", "/live/<:re:.*>"]


# refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"bus": "postgresql:///x"}, "takes a pgbus_gevent.Bus, not an object of type str"),
        ({"bus": Bus}, "takes a pgbus_gevent.Bus, not the class Bus"),
        ({"keyword": "not a name"}, "keyword='not a name' is not allowed: expected the name of a function argument"),
        ({"keyword": None}, "keyword=None is not allowed: expected the name of a function argument"),
        ({"mount": "pgbus"}, "mount='pgbus' is not allowed: expected a path such as /pgbus"),
        ({"mount": "/"}, "mount='/' is not allowed"),
        ({"mount": "/<tenant>"}, "mount='/<tenant>' is not allowed"),
        ({"instance": 7}, "instance= takes a pgbus_gevent.streamer.Instance, not an object of type int"),
    ],
)
def test_an_argument_that_cannot_work_is_refused_by_name(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(bottle.PluginError, match=complaint.replace("(", r"\(")):
        PgbusPlugin(**{"bus": FakeBus(), **arguments})


@pytest.mark.parametrize(("setting", "value"), [("prefix", "/live"), ("secret", "another secret of the tests")])
def test_an_instance_that_cannot_serve_the_streams_of_the_bus_is_refused(setting: str, value: str) -> None:
    instance = Instance(FakeBus(**{setting: value}).settings)
    with pytest.raises(bottle.PluginError, match=f"the instance has another {setting} than the bus"):
        PgbusPlugin(FakeBus(), instance=instance)


@pytest.mark.parametrize(
    ("prefix", "keyword", "complaint"),
    [
        ("/live", "pgbus", "PgbusPlugin already passes the argument 'pgbus'"),
        ("/pgbus", "live", "'pgbus' at /pgbus> has the same path as .*: give one of their buses another prefix="),
        ("/pgbus/live", "live", "the path of one is below that of the other"),
        ("/live", "db", "Db already passes the argument 'db': give one of the two another keyword="),
        ("/live", "named", "Named has the name 'pgbus:named' too"),
    ],
)
def test_a_second_plugin_that_conflicts_with_the_first_is_refused(prefix: str, keyword: str, complaint: str) -> None:
    app = bottle.Bottle()
    app.install(PgbusPlugin(FakeBus()))
    app.install(type("Db", (), {"keyword": "db", "apply": lambda self, callback, route: callback})())
    app.install(type("Named", (), {"name": "pgbus:named", "apply": lambda self, callback, route: callback})())
    before = len(app.routes)
    with pytest.raises(bottle.PluginError, match=complaint):
        app.install(PgbusPlugin(FakeBus(prefix=prefix), keyword=keyword))
    assert len(app.routes) == before


def test_the_same_plugin_twice_in_one_application_is_refused() -> None:
    app, plugin = bottle.Bottle(), PgbusPlugin(FakeBus())
    app.install(plugin)
    with pytest.raises(bottle.PluginError, match="is installed in this application already"):
        app.install(plugin)


def raised(answer: bottle.HTTPResponse) -> None:
    raise answer


@pytest.mark.parametrize(
    ("end", "status", "published"),
    [
        (lambda: bottle.redirect("/"), 302, True),
        (lambda: bottle.redirect("/", 303), 303, True),
        (lambda: raised(bottle.HTTPResponse("paid", 201)), 201, True),
        (lambda: bottle.HTTPResponse("sold out", 409), 409, True),  # a route may return what it likes
        (lambda: bottle.abort(409, "sold out"), 409, False),
        (lambda: bottle.abort(), 500, False),
        (lambda: 1 / 0, 500, False),
        (lambda: "done", 200, True),
    ],
)
def test_a_redirect_in_a_transaction_commits_it_and_an_error_rolls_it_back(
    end: Callable[[], Any], status: int, published: bool
) -> None:
    app, bus = bottle.Bottle(), FakeBus()
    app.install(PgbusPlugin(bus))

    @app.get("/order")
    def order(pgbus: Bus) -> Any:
        with pgbus.transaction() as cursor:
            pgbus.stream("orders").broadcast("paid", using=cursor)
            return end()

    assert call(app, "/order")[0] == status
    assert [message.data for message in bus.sent] == (["paid"] if published else [])


def test_uninstall_closes_the_plugin_for_good() -> None:
    app, plugin = bottle.Bottle(), PgbusPlugin(FakeBus())
    app.install(plugin)
    app.get("/")(lambda pgbus=None: str(pgbus))
    assert app.uninstall("pgbus") == [plugin]
    assert plugin.instance.draining
    assert call(app, "/") == (200, "None")
    with pytest.raises(bottle.PluginError, match="was closed, and cannot serve again: install a new one"):
        app.install(plugin)
    app.install(PgbusPlugin(FakeBus()))
    assert call(app, "/")[1] != "None"


def test_a_page_without_a_secret_says_so() -> None:
    with pytest.raises(InvalidArgument, match="secret"):
        FakeBus(secret=()).stream_tag("orders")
