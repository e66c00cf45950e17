"""The LISTEN session: it hears in order, reports dropped notifications, and reports its end."""

from __future__ import annotations

from contextlib import closing
from time import monotonic

import pytest
from database_parts import Proxy, opened_sessions, until

from pgbus_gevent.database import green, notifications
from pgbus_gevent.database.notifications import ListenSession
from pgbus_gevent.errors import DatabaseError, DatabaseUnavailable, Deaf

RING = "select pg_notify((select doorbell from pgbus.channels()), %s)"


@pytest.fixture(autouse=True)
def cooperative() -> None:
    green.install()


def listening(url: str) -> ListenSession:
    return ListenSession(url, connect_timeout=5.0, statement_timeout=10.0)


def test_a_listen_session_hears_notifications_in_order(database: str) -> None:
    with closing(listening(database)) as session, opened_sessions(database) as opener:
        assert session.hears(5.0)
        sql = opener()
        for n in range(3):
            sql.run(RING, str(n))
        sql.run("select pg_notify('other', 'x')")
        found: list[str] = []
        until(lambda: found.extend(session.receive(0.1)[0]) or len(found) >= 3, "three notifications come")
        assert found == ["0", "1", "2"]


def test_a_listen_session_follows_a_change_of_the_channels_at_its_next_ping(database: str) -> None:
    with closing(listening(database)) as session, opened_sessions(database) as opener:
        sql = opener()
        former = sql.one("select doorbell from pgbus.channels()")
        sql.call("change_channels")
        # The change is announced on the former control channel.
        assert session.receive(5.0) == (['["control"]'], False)
        session.ping()
        sql.run("select pg_notify(%s, 'from a sender with the former name')", former)
        sql.run(RING, "x")
        assert session.receive(5.0) == (["x"], False)


def test_notifications_that_come_with_the_answer_to_a_ping_are_not_lost(database: str) -> None:
    with closing(listening(database)) as session, opened_sessions(database) as opener:
        opener().run(RING, "x")
        session.ping()
        assert session.receive(1.0) == (["x"], False)


def test_a_listen_session_that_was_ended_says_so(database: str) -> None:
    with closing(listening(database)) as session, opened_sessions(database) as opener:
        opener().run("select pg_terminate_backend(%s)", session.backend_pid)

        def receive() -> bool:
            try:
                session.receive(0.1)
            except DatabaseUnavailable:
                return True
            return False

        until(receive, "the loss is noticed")
        with pytest.raises(DatabaseUnavailable):
            session.ping()


def test_a_full_backlog_of_notifications_is_reported(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgbus_gevent.database.notifications.BACKLOG", 10)
    with closing(listening(database)) as session, opened_sessions(database) as opener:
        opener().run(
            "select count(pg_notify(c.doorbell, n::text)) from pgbus.channels() c cross join generate_series(1, 50) n"
        )
        session.ping()
        payloads, lost = session.receive(1.0)
        assert lost and payloads == [str(n) for n in range(41, 51)]


def test_a_listen_session_that_cannot_listen_leaves_no_connection(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgbus_gevent.database.notifications._listen", lambda channel: "listen no channel")
    with opened_sessions(database) as opener:
        with pytest.raises(DatabaseError) as failed:
            listening(database)
        assert failed.value.sqlstate == "42601"
        sql = opener()
        until(
            lambda: (
                sql.one(
                    "select count(*) from pg_stat_activity"
                    " where application_name = 'pgbus-listen' and datname = current_database()"
                )
                == 0
            ),
            "the session is gone",
        )


def test_a_probe_is_heard_whatever_its_name(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getpid", lambda: -7)
    with closing(listening(database)) as session:
        assert session.hears(5.0)


def test_a_session_that_does_not_listen_any_more_is_deaf_at_the_next_ping(database: str) -> None:
    with closing(listening(database)) as session:
        session.ping()
        session._run("unlisten *")
        with pytest.raises(Deaf, match="the session that answers is not the one that listens"):
            session.ping()


def test_each_ping_behind_a_pooler_is_a_probe(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ListenSession, "backend_pid", -1)  # the process id that a pooler gives
    with closing(listening(database)) as session:
        session.ping()
        monkeypatch.setattr(session, "hears", lambda: False)
        with pytest.raises(Deaf, match="a pooler is in between"):
            session.ping()


def test_a_ping_has_a_deadline_of_its_own(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifications, "LIFE", 0.5)
    proxy = Proxy(database)
    try:
        with closing(ListenSession(proxy.url, connect_timeout=5.0, statement_timeout=60.0)) as session:
            session.ping()
            proxy.dead = True
            began = monotonic()
            with pytest.raises(DatabaseUnavailable):
                session.ping()
            assert monotonic() - began < 15.0
    finally:
        proxy.stop()
