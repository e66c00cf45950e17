"""The extension for Flask, and its sample project as its readers start it."""

from __future__ import annotations

from pathlib import Path

import pytest
from flask import Flask, session
from program_parts import ROOT, program, tag_in
from raw_http import Answer, ask

from pgbus_gevent.bus import Bus
from pgbus_gevent.core.client import Subscriber
from pgbus_gevent.core.names import Signer, derived_secret
from pgbus_gevent.errors import InvalidSetting
from pgbus_gevent.flask import Pgbus
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.streamer import instances
from pgbus_gevent.testing.client import StreamClient
from pgbus_gevent.testing.servers import RunningServer

FORM = "application/x-www-form-urlencoded"
PROJECT = ROOT / "examples/flask_orders"


def logged_in(port: int, name: str) -> str:
    """Log in to the sample, and return the cookie."""
    answer = ask(port, "/login", "POST", f"name={name}", Content_Type=FORM)
    assert answer.status == 302
    return answer.headers["set-cookie"].partition(";")[0]


def page(port: int, cookie: str) -> str:
    answer = ask(port, "/", Cookie=cookie)
    assert answer.status == 200
    return answer.body.decode()


def order(port: int, item: str, cookie: str) -> Answer:
    return ask(port, "/orders", "POST", f"item={item}", Content_Type=FORM, Cookie=cookie)


@pytest.mark.program
def test_the_sample_project_shows_orders_to_all_and_prices_to_the_staff(
    tmp_path: Path, pgbus_settings: Settings
) -> None:
    url = str(pgbus_settings.database_url)
    with program(
        "-m", "pgbus_gevent.serve", "shop:app", database_url=url, cwd=tmp_path, PYTHONPATH=f"{ROOT}:{PROJECT}"
    ) as shop:
        ada, staff = logged_in(shop.port, "ada"), logged_in(shop.port, "staff")
        path, since = tag_in(page(shop.port, ada))
        assert ask(shop.port, path).status == 403, "nobody watches without a name"
        with (
            StreamClient(shop.url, path, since=since, headers={"Cookie": ada}) as customer,
            StreamClient(shop.url, path, since=since, headers={"Cookie": staff}) as baker,
        ):
            assert order(shop.port, "tea", ada).status == 204
            assert (customer.next().data, baker.next().data) == ("tea", "tea")
            assert baker.next("price").data == "tea: 3 dollars"
            assert order(shop.port, "milk", ada).status == 204
            assert customer.next().data == "milk", "no price came in between"
            shown = page(shop.port, ada)
            assert "<li>tea</li><li>milk</li>" in shown and tag_in(shown)[1] > since
            assert shop.stop() == 0
            customer.next("pgbus:shutdown")
        assert "Traceback" not in shop.log


def make_app(settings: Settings, **config: object) -> tuple[Flask, Pgbus]:
    app = Flask(__name__)
    app.secret_key = "a key of the tests"
    app.config.update(PGBUS_DATABASE_URL=settings.database_url, **config)
    pgbus = Pgbus()
    pgbus.init_app(app)
    return app, pgbus


def close(app: Flask) -> None:
    app.extensions["pgbus"].close()


def test_each_application_of_an_extension_has_its_own_bus(pgbus_settings: Settings) -> None:
    pgbus = Pgbus()
    apps = [Flask("one"), Flask("other")]
    for app in apps:
        app.secret_key = app.name
        app.config.update(PGBUS_DATABASE_URL=pgbus_settings.database_url, PGBUS_PREFIX=f"/{app.name}")
        pgbus.init_app(app)
    for app in apps:
        with app.app_context():
            assert pgbus.bus is app.extensions["pgbus"] and pgbus.bus.settings.prefix == f"/{app.name}"
    with pytest.raises(RuntimeError):
        assert pgbus.bus


def test_the_secret_comes_from_the_keys_of_flask_unless_there_is_one(
    pgbus_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, pgbus = make_app(pgbus_settings, SECRET_KEY_FALLBACKS=["an old key"])
    with app.app_context():
        token = pgbus.bus.sign("orders")
        old = Signer([derived_secret("an old key")]).sign("orders")
        assert pgbus.bus.signer.verify(old, 0.0)[0] == "orders"
        assert Signer([derived_secret("a key of the tests")]).verify(token, 0.0)[0] == "orders"
    monkeypatch.setenv("PGBUS_SECRET", "sixteen characters")
    other, pgbus = make_app(pgbus_settings)
    assert other.extensions["pgbus"].settings.secret == ("sixteen characters",)


def test_an_unknown_setting_in_the_configuration_is_refused(pgbus_settings: Settings) -> None:
    with pytest.raises(InvalidSetting, match="retentoin"):
        make_app(pgbus_settings, PGBUS_RETENTOIN="1d")


def test_the_page_is_made_for_the_user_whom_the_hook_lets_in(pgbus_settings: Settings) -> None:
    app, pgbus = make_app(pgbus_settings)

    @pgbus.authorize
    def hook(stream: str) -> bool | Subscriber:
        return Subscriber(owner=session["user"]) if "user" in session else False

    @app.get("/<user>")
    def show(user: str) -> str:
        if user != "nobody":
            session["user"] = user
        return app.jinja_env.from_string("{{ pgbus_stream('orders') }}").render()

    client = app.test_client()
    nobody, ada, bob = (app.test_client().get(f"/{user}").text for user in ("nobody", "ada", "bob"))
    assert "identity=" not in nobody and 'identity="' in ada and ada != bob
    assert client.get("/ada").text == ada
    close(app)


def test_everything_outside_the_prefix_is_the_applications(pgbus_settings: Settings, pgbus_bus: Bus) -> None:
    app, _ = make_app(pgbus_settings, PGBUS_PUBLIC=["*"], PGBUS_PREFIX="/live")

    @app.get("/liver")
    def show() -> str:
        return "the application"

    server = RunningServer(app, "/live")
    try:
        assert ask(server.port, "/liver").body == b"the application"
        with StreamClient(server.url, "/live/streams/orders") as client:
            client.next("pgbus:connected")
            pgbus_bus.stream("orders").broadcast("x")
            assert client.next().data == "x"
    finally:
        for instance in instances():
            instance.shutdown(1.0)
        server.stop()
        close(app)
