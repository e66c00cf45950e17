"""What the listener relies on, of every wake source: on real servers, with the same tests for each."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from time import monotonic
from typing import Any

import gevent
import pytest
from redis_parts import needs_redis
from support import PATIENCE, Serving, get, run, serving, until
from support import session as session_of
from wake_parts import SOURCES, Source, running

from pgbus_gevent.bus import Bus
from pgbus_gevent.core.wake_source import Session
from pgbus_gevent.database import notifications
from pgbus_gevent.database.embedded import EmbeddedPostgres
from pgbus_gevent.errors import DatabaseError
from pgbus_gevent.redis import session as redis_session
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.testing.databases import TestDatabases

NOTICED_WITHIN = 20.0
"""Seconds within which a session must notice that it is lost."""

KINDS = [pytest.param(kind, marks=[needs_redis] if "redis" in kind else []) for kind in SOURCES]
pytestmark = pytest.mark.program


@pytest.fixture(scope="module", params=KINDS)
def source(request: pytest.FixtureRequest, database: str) -> Iterator[Source]:
    with running(request.param, database) as found:
        yield found


@pytest.fixture(params=KINDS)
def own_source(request: pytest.FixtureRequest, database: str) -> Iterator[Source]:
    """A source that the test may break."""
    with running(request.param, database) as found:
        yield found


@pytest.fixture
def session(source: Source, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    # This process, which sends the beacons too, may stand still for longer than a line may be silent.
    monkeypatch.setattr(redis_session, "SILENCE", 60.0)
    with closing(source.listen()) as found:
        yield found


def wake(stream: str, number: int = 0) -> str:
    return json.dumps(["ephemeral", stream, number, None, "x", None, None])


def heard(session: Session, *expected: str) -> list[str]:
    """Return what is heard until all expected payloads have come."""
    found: list[str] = []

    def receive() -> bool:
        payloads, lost = session.receive(0.2)
        assert not lost
        found.extend(payloads)
        return set(expected) <= set(found)

    until(receive, "all is heard")
    return found


def noticed(call: Callable[[], object]) -> float:
    """Return the seconds until ``call``, made again and again, raises that the session is lost."""
    began = monotonic()
    while monotonic() - began < 2 * NOTICED_WITHIN:
        try:
            call()
        except DatabaseError:
            return monotonic() - began
        gevent.sleep(0.01)
    raise AssertionError("the loss is never noticed")


# following


def test_each_wake_of_a_stream_is_heard_from_the_moment_on_at_which_it_is_followed(
    source: Source, session: Session
) -> None:
    for n in range(100):
        session.follow([f"s{n}"])
        source.send(f"s{n}", wake(f"s{n}"))
    expected = [wake(f"s{n}") for n in range(100)]
    assert sorted(heard(session, *expected)) == sorted(expected)


def test_the_wakes_of_a_stream_come_in_order_and_once(source: Source, session: Session) -> None:
    session.follow(["a", "b"])
    for n in range(300):
        source.send(random.choice("ab"), wake("any", n))
    assert sorted(heard(session, *(wake("any", n) for n in range(300)))) == sorted(wake("any", n) for n in range(300))
    for n in range(300):
        source.send("a", wake("a", n))
    assert heard(session, wake("a", 299)) == [wake("a", n) for n in range(300)]


def test_all_streams_can_be_followed_also_those_to_come(source: Source, session: Session) -> None:
    session.follow(["s1"])
    session.follow(None)
    session.follow(["s2"])
    names = [f"s{n}" for n in range(200)]
    for name in names:
        source.send(name, wake(name))
    assert sorted(heard(session, *map(wake, names))) == sorted(map(wake, names))


def test_a_stream_that_is_still_needed_loses_nothing_while_others_are_given_up(
    source: Source, session: Session
) -> None:
    session.follow(["kept", *(f"s{n}" for n in range(100))])
    sending = gevent.spawn(lambda: [source.send("kept", wake("kept", n)) for n in range(100)])
    session.narrow(["kept"])
    session.follow(None)
    session.narrow(["kept"])
    sending.get(timeout=PATIENCE)
    assert [found for found in heard(session, wake("kept", 99)) if "kept" in found] == [
        wake("kept", n) for n in range(100)
    ]


def test_a_stream_that_was_given_up_can_be_followed_again(source: Source, session: Session) -> None:
    for n in range(5):
        session.follow(["s"])
        source.send("s", wake("s", n))
        assert wake("s", n) in heard(session, wake("s", n))
        session.narrow([])


def test_any_name_can_be_followed(source: Source, session: Session) -> None:
    names = ["é", "日本:1", "a b", '"', "*", "a*", "[a]", "?", "\\", "{x}", "x" * 255, "\U0001f600"]
    session.follow(names)
    for name in names:
        source.send(name, wake(name))
    assert sorted(heard(session, *map(wake, names))) == sorted(map(wake, names))


def test_every_session_hears_the_control_channel(source: Source, session: Session) -> None:
    with closing(source.listen()) as other:
        session.follow(["s"])
        source.send_control()
        assert heard(session, '["control"]') == heard(other, '["control"]') == ['["control"]']


def test_a_session_that_lives_hears_itself(session: Session) -> None:
    until(session.hears, "it hears itself")
    session.ping()


# interrupts


def test_a_session_returns_at_the_timeout_at_the_latest(session: Session) -> None:
    began = monotonic()
    assert session.receive(0.2) == ([], False)
    assert monotonic() - began < PATIENCE


@pytest.fixture
def waits_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that is not interrupted waits until the test has failed."""
    monkeypatch.setattr(notifications, "_POLL", 600.0)


def received(session: Session) -> gevent.Greenlet[..., tuple[list[str], bool]]:
    return gevent.spawn(session.receive, 600.0)


def test_an_interrupt_ends_a_wait_and_one_before_the_wait_is_not_lost(session: Session, waits_long: None) -> None:
    while session.receive(0.0)[0]:
        pass
    for waits in (True, False):
        for _ in range(5):
            waiting = received(session)
            if waits:
                gevent.sleep(0.05)
            session.interrupt()
            assert waiting.get(timeout=PATIENCE) == ([], False)


def test_an_interrupt_while_a_stream_is_being_followed_is_not_lost(session: Session, waits_long: None) -> None:
    for n in range(5):
        session.receive(0.0)
        following = gevent.spawn(session.follow, [f"new:{n}"])
        gevent.sleep(0)
        session.interrupt()
        following.get(timeout=PATIENCE)
        received(session).get(timeout=PATIENCE)


def test_neither_an_interrupt_nor_a_wake_displaces_the_other(source: Source, session: Session) -> None:
    session.follow(["s"])
    for n in range(50):
        session.interrupt()
        source.send("s", wake("s", n))
        session.interrupt()
    assert heard(session, wake("s", 49)) == [wake("s", n) for n in range(50)]


# the end


@pytest.mark.slow
@pytest.mark.parametrize("call", ["receive", "ping", "follow"])
def test_a_session_whose_server_ends_it_says_so(own_source: Source, call: str) -> None:
    with closing(own_source.listen()) as session:
        session.follow(["s"])
        assert session.hears()
        own_source.kill_sessions()
        names = iter(range(10**6))
        calls: dict[str, Callable[[], object]] = {
            "receive": lambda: session.receive(0.2),
            "ping": session.ping,
            "follow": lambda: session.follow([f"s{next(names)}"]),
        }
        assert noticed(calls[call]) < NOTICED_WITHIN
        with pytest.raises(DatabaseError):
            session.ping()
        session.close()


@pytest.mark.slow
def test_a_session_whose_line_is_frozen_says_so_at_a_ping(own_source: Source) -> None:
    with closing(own_source.listen()) as session:
        session.follow(["s"])
        assert session.hears()
        own_source.freeze_sessions()
        assert noticed(lambda: (session.receive(0.2), session.ping())) < NOTICED_WITHIN


def test_a_session_can_be_closed_twice(source: Source) -> None:
    session = source.listen()
    session.close()
    session.close()


# a whole worker


@pytest.fixture(params=["postgres", "poll"])
def server(request: pytest.FixtureRequest, pgbus_settings: Settings) -> Iterator[Serving]:
    """A worker with each kind of wake source, polling included."""
    with serving(pgbus_settings, wake=request.param, catch_up_interval=5.0) as found:
        yield found


def test_every_message_after_the_first_frame_arrives_once_and_in_order(server: Serving, pgbus_bus: Bus) -> None:
    for n in range(5):
        stream = pgbus_bus.stream(f"s{n}")
        client = server.live(stream.name)
        ids = [stream.broadcast(str(number)) for number in range(20)]
        ids.append(stream.broadcast_many([str(number) for number in range(20)]))
        until(lambda: len(client.messages) >= 40, "all arrive")  # noqa: B023
        received = [int(frame.id or 0) for frame in client.messages]
        assert received == sorted(set(received))
        assert [number for number in received if number in ids] == ids


def test_ephemeral_messages_come_if_the_source_carries_them(server: Serving, pgbus_bus: Bus) -> None:
    carries = server.instance.settings.wake != "poll"
    client = server.live("orders")
    orders = pgbus_bus.stream("orders")
    for data in ("small", "large" * 3000):
        orders.broadcast(data, ephemeral=True)
        if carries:
            assert client.next(timeout=PATIENCE).data == data
    orders.broadcast("stored")
    assert client.next(timeout=PATIENCE).data == "stored"


def test_a_worker_is_ready_and_says_nothing_about_a_source_that_is_meant_to_be_as_it_is(server: Serving) -> None:
    server.live("orders")

    def ready() -> Any:
        """A worker that has stood still for some seconds is not ready until the database has answered again."""
        answer = get(server.url, "/pgbus/readyz")
        return answer.status == 200 and json.loads(answer.body)

    assert "listen" not in until(ready, "it is ready")


@pytest.mark.parametrize("wake", ["postgres", "poll"])
def test_a_restart_of_the_database_loses_nothing(
    wake: str, own_databases: TestDatabases, pgbus_settings: Settings
) -> None:
    embedded = own_databases.embedded
    assert isinstance(embedded, EmbeddedPostgres)
    settings = replace(pgbus_settings, database_url=own_databases.make())
    with serving(settings, wake=wake, catch_up_interval=2.0) as server, Bus(settings=settings) as bus:
        client = server.live("orders")
        bus.stream("orders").broadcast("before")
        until(lambda: len(client.messages) == 1, "the first one arrives")
        embedded.restart("immediate")
        with session_of(settings.database_url or "") as connection:
            for n in range(3):
                run(connection, "select pgbus.broadcast('orders', %s)", str(n))
        until(lambda: len(client.messages) == 4, "the others arrive", 3 * PATIENCE)
        assert [frame.data for frame in client.messages] == ["before", "0", "1", "2"]


def test_new_names_of_the_channels_cost_no_message(pgbus_settings: Settings, pgbus_bus: Bus) -> None:
    # The interval is long, so a sweep does not find what the listener missed.
    with (
        serving(pgbus_settings, catch_up_interval=60.0) as server,
        session_of(pgbus_settings.database_url or "") as connection,
    ):
        orders = pgbus_bus.stream("orders")
        client = server.live("orders")
        for n in range(3):
            run(connection, "select pgbus.change_channels()")
            orders.broadcast(f"{n} on a channel that nobody hears yet")
            until(lambda: len(client.messages) == 2 * n + 1, "it arrives")  # noqa: B023
            orders.broadcast(f"{n} on the new channel")
            until(lambda: len(client.messages) == 2 * n + 2, "it arrives")  # noqa: B023


@pytest.fixture(scope="module")
def own_databases() -> Iterator[TestDatabases]:
    """A PostgreSQL for this module, which its tests may restart."""
    databases = TestDatabases()
    yield databases
    databases.close()
