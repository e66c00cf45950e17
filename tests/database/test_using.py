"""``using=`` publishes in the transaction of the application's object, or refuses the object by name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any
from unittest.mock import MagicMock

import psycopg
import psycopg2
import psycopg2.extensions as ext
import psycopg2.extras
import pytest
import sqlalchemy
from psycopg.rows import dict_row
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from werkzeug.local import LocalProxy

from pgbus_gevent.bus import Bus
from pgbus_gevent.errors import InvalidArgument

Opened = Iterator[tuple[Any, Callable[[], object], Callable[[], object]]]


def params(url: str) -> dict[str, str]:
    return {str(key): str(value) for key, value in ext.parse_dsn(url).items()}


def engine(url: str, driver: str) -> sqlalchemy.Engine:
    found = params(url)
    return sqlalchemy.create_engine(f"postgresql+{driver}://", connect_args=found, poolclass=sqlalchemy.pool.NullPool)


@contextmanager
def of_psycopg2(url: str, **options: Any) -> Opened:
    with closing(psycopg2.connect(url, **options)) as connection:
        yield connection, connection.commit, connection.rollback


@contextmanager
def cursor_of_psycopg2(url: str, **options: Any) -> Opened:
    with closing(psycopg2.connect(url)) as connection:
        yield connection.cursor(**options), connection.commit, connection.rollback


@contextmanager
def of_psycopg(url: str, **options: Any) -> Opened:
    with psycopg.connect(url, **options) as connection:
        yield connection, connection.commit, connection.rollback


@contextmanager
def cursor_of_psycopg(url: str, **options: Any) -> Opened:
    with psycopg.connect(url) as connection:
        yield connection.cursor(**options), connection.commit, connection.rollback


@contextmanager
def sqlalchemy_session(url: str, driver: str) -> Opened:
    with Session(engine(url, driver)) as found:
        yield found, found.commit, found.rollback


@contextmanager
def sqlalchemy_scoped(url: str, driver: str) -> Opened:
    found = scoped_session(sessionmaker(engine(url, driver)))
    yield found, found.commit, found.rollback
    found.remove()


@contextmanager
def sqlalchemy_connection(url: str, driver: str) -> Opened:
    with engine(url, driver).connect() as found:
        yield found, found.commit, found.rollback


@contextmanager
def sqlalchemy_raw(url: str, driver: str) -> Opened:
    with closing(engine(url, driver).raw_connection()) as found:
        yield found, found.commit, found.rollback


@contextmanager
def of_django(url: str, cursor: bool) -> Opened:
    from django.conf import settings
    from django.db.utils import ConnectionHandler

    if not settings.configured:
        settings.configure()
    found = params(url)
    handler = ConnectionHandler(
        {
            "default": {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": found["dbname"],
                "USER": found["user"],
                "HOST": found.get("host", ""),
                "PORT": found.get("port", ""),
            }
        }
    )
    connection = handler["default"]
    connection.set_autocommit(False)
    try:
        yield connection.cursor() if cursor else connection, connection.commit, connection.rollback
    finally:
        connection.close()


HANDLES: dict[str, Callable[[str], Any]] = {
    "psycopg2 connection": of_psycopg2,
    "psycopg2 connection with dicts": lambda url: of_psycopg2(url, cursor_factory=psycopg2.extras.RealDictCursor),
    "psycopg2 cursor": cursor_of_psycopg2,
    "psycopg2 cursor of dicts": lambda url: cursor_of_psycopg2(url, cursor_factory=psycopg2.extras.DictCursor),
    "psycopg2 cursor of tuples": lambda url: cursor_of_psycopg2(url, cursor_factory=psycopg2.extras.NamedTupleCursor),
    "psycopg2 named cursor": lambda url: cursor_of_psycopg2(url, name="on_the_server"),
    "psycopg connection": of_psycopg,
    "psycopg connection with dicts": lambda url: of_psycopg(url, row_factory=dict_row),
    "psycopg connection with raw cursors": lambda url: of_psycopg(url, cursor_factory=psycopg.RawCursor),
    "psycopg cursor": cursor_of_psycopg,
    "psycopg cursor of dicts": lambda url: cursor_of_psycopg(url, row_factory=dict_row),
    "psycopg server cursor": lambda url: cursor_of_psycopg(url, name="on_the_server"),
    **{
        f"sqlalchemy {kind.__name__.split('_')[1]} on {driver}": (
            lambda url, kind=kind, driver=driver: kind(url, driver)
        )
        for kind in (sqlalchemy_session, sqlalchemy_scoped, sqlalchemy_connection, sqlalchemy_raw)
        for driver in ("psycopg2", "psycopg")
    },
    "django connection": lambda url: of_django(url, cursor=False),
    "django cursor": lambda url: of_django(url, cursor=True),
}


MANY = ["100 %s", 'é "quoted", \\back\\slash\nand {a,b}', "a second one with key 7", "a second one with key 8"]


@pytest.mark.parametrize("kind", HANDLES)
def test_it_publishes_and_asks_in_its_transaction(kind: str, pgbus_database: str, pgbus_bus: Bus) -> None:
    orders = pgbus_bus.stream("orders")
    with HANDLES[kind](pgbus_database) as (given, commit, rollback):
        assert orders.broadcast("gone", using=given) is None
        assert orders.broadcast_many(["gone", "too"], using=given) is None
        rollback()
        orders.broadcast("paid: 100 %", event="order.paid", exclude="it's", key="7", using=given)
        orders.broadcast("hint", ephemeral=True, using=given)
        assert orders.broadcast_many(MANY, event="many", keys=[None, "8", "7", "8"], using=given) is None
        assert orders.broadcast_many([], using=given) is None
        pgbus_bus.disconnect("user-7", using=given)
        assert orders.last_id(using=given) == orders.last_id() == 0
        commit()
        message, *many = orders
        assert (message.data, message.event, message.exclude) == ("paid: 100 %", "order.paid", "it's")
        # The keys 7 and 8 were there already when the last two came.
        assert [(each.data, each.event) for each in many] == [(text, "many") for text in MANY[:2]]
        assert orders.last_id(using=given) == many[-1].id
        assert f'since-id="{many[-1].id}"' in pgbus_bus.stream_tag("orders", using=given)


def test_unfetched_rows_of_a_database_cursor_stay(pgbus_database: str, pgbus_bus: Bus) -> None:
    with cursor_of_psycopg2(pgbus_database) as (cursor, _, _):
        cursor.execute("select n from generate_series(1, 3) n")
        assert cursor.fetchone() == (1,)
        pgbus_bus.stream("orders").broadcast("x", using=cursor)
        assert cursor.fetchall() == [(2,), (3,)]


def asynchronous() -> dict[str, Callable[[str], Any]]:
    def of_loop(make: Callable[[str], Any]) -> Callable[[str], Any]:
        return lambda url: asyncio.run(make(url))

    async def connection(url: str) -> Any:
        return await psycopg.AsyncConnection.connect(url)

    async def cursor(url: str) -> Any:
        return (await connection(url)).cursor()

    def session(url: str) -> Any:
        return AsyncSession(create_async_engine("postgresql+psycopg://"))

    return {
        "psycopg.AsyncConnection": of_loop(connection),
        "psycopg.AsyncCursor": of_loop(cursor),
        "AsyncSession": session,
        "asynchronous object of psycopg2.extensions.connection": lambda url: psycopg2.connect(url, async_=1),
    }


@pytest.mark.parametrize("kind", asynchronous())
def test_an_asynchronous_one_is_refused_for_it_would_publish_nothing(
    kind: str, pgbus_database: str, pgbus_bus: Bus
) -> None:
    given = asynchronous()[kind](pgbus_database)
    with pytest.raises(InvalidArgument, match=f"using= takes .*, not an .*{kind}") as refused:
        pgbus_bus.stream("orders").broadcast("x", using=given)
    assert "asynchronous" in str(refused.value)
    with pytest.raises(InvalidArgument):
        pgbus_bus.stream("orders").last_id(using=given)
    with pytest.raises(InvalidArgument):
        pgbus_bus.disconnect("user-7", using=given)


class AroundItself:
    @property
    def __wrapped__(self) -> object:
        return self


class Tracer:
    """Like wrapt's ObjectProxy, which tracers put around database cursors."""

    def __init__(self, inner: Any) -> None:
        self.__wrapped__ = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__wrapped__, name)


@pytest.mark.parametrize("kind", ["psycopg2 cursor", "psycopg connection", "sqlalchemy session on psycopg2"])
def test_the_object_in_a_wrapper_is_found(kind: str, pgbus_database: str, pgbus_bus: Bus) -> None:
    orders = pgbus_bus.stream("orders")
    with HANDLES[kind](pgbus_database) as (given, commit, _):
        for wrapper in (
            Tracer(given),
            Tracer(Tracer(given)),
            LocalProxy(lambda: given),
            LocalProxy(lambda: Tracer(given)),
        ):
            before = orders.last_id()
            orders.broadcast("x", using=wrapper)
            assert orders.last_id() == before
            commit()
            assert orders.last_id() > before


def test_anything_else_is_refused_by_name(pgbus_database: str, pgbus_bus: Bus) -> None:
    lite = sqlalchemy.create_engine("sqlite://")
    strangers = {
        pgbus_database: "object of str",
        True: "object of bool",
        engine(pgbus_database, "psycopg2"): "sqlalchemy.engine.base.Engine",
        sessionmaker(lite): "sqlalchemy.orm.session.sessionmaker",
        lite.connect(): "sqlalchemy.engine.base.Connection on sqlite",
        psycopg2.connect: "function",
        Session: "the class sqlalchemy.orm.session.Session",
        ext.cursor: "the class psycopg2.extensions.cursor",
        pgbus_bus: "pgbus_gevent.bus.Bus",
        MagicMock(): "unittest.mock.MagicMock",
        AroundItself(): "AroundItself",
    }
    for given, name in strangers.items():
        with pytest.raises(InvalidArgument, match=name):
            pgbus_bus.stream("orders").broadcast("x", using=given)


def test_sqlalchemy_on_another_driver_is_refused_by_name(pgbus_database: str, pgbus_bus: Bus) -> None:
    with engine(pgbus_database, "psycopg2").connect() as connection:
        connection.dialect.driver = "pg8000"
        with pytest.raises(InvalidArgument, match=r"not an object of sqlalchemy.*Connection on postgresql\+pg8000"):
            pgbus_bus.stream("orders").broadcast("x", using=connection)


def test_the_drivers_own_errors_come_through(pgbus_database: str, pgbus_bus: Bus) -> None:
    with of_psycopg2(pgbus_database) as (connection, _, rollback):
        with pytest.raises(psycopg2.ProgrammingError), connection.cursor() as cursor:
            cursor.execute("select nothing")
        with pytest.raises(psycopg2.errors.InFailedSqlTransaction):
            pgbus_bus.stream("orders").broadcast("x", using=connection)
        rollback()
    with pytest.raises(psycopg2.InterfaceError, match="closed"):
        pgbus_bus.stream("orders").broadcast("x", using=connection)


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "sqlalchemy+psycopg2", "sqlalchemy+psycopg"])
def test_a_text_that_the_connection_cannot_say_is_refused_by_name(
    pgbus_database: str, pgbus_bus: Bus, driver: str
) -> None:
    latin1 = ext.make_dsn(pgbus_database, client_encoding="LATIN1")
    opened = {
        "psycopg2": lambda: of_psycopg2(latin1),
        "psycopg": lambda: of_psycopg(latin1),
        "sqlalchemy+psycopg2": lambda: sqlalchemy_session(latin1, "psycopg2"),
        "sqlalchemy+psycopg": lambda: sqlalchemy_session(latin1, "psycopg"),
    }[driver]
    stream = pgbus_bus.stream("orders")
    with opened() as (given, commit, _):
        bad: dict[str, Any]
        for bad in ({"data": "5 \u20ac"}, {"data": "x", "visible_to": "\u20ac"}, {"data": "x", "key": "\u20ac"}):
            with pytest.raises(InvalidArgument, match=r"client encoding .*1, which has no '.+20ac': set .* to UTF8"):
                stream.broadcast(using=given, **bad)
        with pytest.raises(InvalidArgument, match="client encoding"):
            stream.broadcast_many(["x", "5 \u20ac"], using=given)
        with pytest.raises(InvalidArgument, match="client encoding"):
            pgbus_bus.stream("\u20ac").last_id(using=given)
        with pytest.raises(InvalidArgument, match="client encoding"):
            pgbus_bus.disconnect("\u20ac", using=given)
        # Nothing was sent, so the transaction can continue.
        stream.broadcast("5 \u00a3", using=given)
        commit()
    assert [message.data for message in stream] == ["5 \u00a3"]
