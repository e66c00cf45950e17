"""The LISTEN session: it hears in order, reports dropped notifications, and reports its end."""

from __future__ import annotations

from contextlib import closing
from time import monotonic

import gevent
import pytest
from database_parts import NOTIFY, PATIENCE, Proxy, Session, opened_sessions, until

from pgbus_gevent.core.buckets import bucket_of
from pgbus_gevent.database import green, notifications
from pgbus_gevent.database.notifications import ListenSession
from pgbus_gevent.errors import DatabaseError, DatabaseUnavailable, Deaf


@pytest.fixture(autouse=True)
def cooperative(monkeypatch: pytest.MonkeyPatch) -> None:
    green.install()
    monkeypatch.setattr(notifications, "LIFE", PATIENCE)


def listening(url: str) -> ListenSession:
    """Return a session that follows the stream ``s``."""
    session = ListenSession(url, connect_timeout=PATIENCE, statement_timeout=PATIENCE)
    session.follow(["s"])
    return session


def received(session: ListenSession) -> tuple[list[str], bool]:
    """Return what the session receives next, and whether others may be lost. One wait may end before the server delivers."""
    lost = False

    def received_one() -> list[str]:
        nonlocal lost
        found, may_lack = session.receive(1.0)
        lost = lost or may_lack
        return found

    return until(received_one, "a notification comes"), lost


def test_a_listen_session_hears_notifications_in_order(database: str) -> None:
    with closing(listening(database)) as session, opened_sessions(database) as opener:
        assert session.hears(PATIENCE)
        sql = opener()
        for n in range(3):
            sql.run(NOTIFY, "s", str(n))
        sql.run("select pg_notify('other', 'x')")
        found: list[str] = []
        until(lambda: found.extend(session.receive(0.1)[0]) or len(found) >= 3, "three notifications come")
        assert found == ["0", "1", "2"]


def test_a_listen_session_follows_a_change_of_the_channels_at_its_next_ping(database: str) -> None:
    with closing(listening(database)) as session, opened_sessions(database) as opener:
        sql = opener()
        former = sql.one("select doorbell || '_' || pgbus._bucket('s') from pgbus.channels()")
        sql.call("change_channels")
        # The change is announced on the former control channel.
        assert received(session) == (['["control"]'], False)
        session.ping()
        sql.run("select pg_notify(%s, 'from a sender with the former name')", former)
        sql.run(NOTIFY, "s", "x")
        # Others may have come between the change and the ping.
        assert received(session) == (["x"], True)


def apart(count: int) -> list[str]:
    """Return names of streams that have different buckets."""
    found: dict[int, str] = {}
    for n in range(1000):
        found.setdefault(bucket_of(f"s{n}"), f"s{n}")
    return list(found.values())[:count]


def heard(session: ListenSession, sql: Session, *streams: str) -> list[str]:
    """Notify about each stream, and return those that the session hears about."""
    sql.run(CONTROLLED, "begin")
    for stream in streams:
        sql.run(NOTIFY, stream, stream)
    sql.run(CONTROLLED, "end")
    found: list[str] = []
    until(lambda: found.extend(session.receive(0.1)[0]) or "end" in found, "the control channel is heard")
    return found[found.index("begin") + 1 : found.index("end")]


CONTROLLED = "select pg_notify((select control from pgbus.channels()), %s)"


def test_a_session_hears_the_streams_that_it_follows_and_the_control_channel(database: str) -> None:
    a, b, c = apart(3)
    with (
        opened_sessions(database) as opener,
        closing(ListenSession(database, connect_timeout=PATIENCE, statement_timeout=PATIENCE)) as session,
    ):
        sql = opener()
        assert heard(session, sql, a, b) == []
        session.follow([a])
        assert heard(session, sql, a, b) == [a]
        session.follow([b])
        assert heard(session, sql, a, b, c) == [a, b]
        session.narrow([b, c])
        assert heard(session, sql, a, b, c) == [b]
        session.follow(None)
        assert heard(session, sql, a, b, c) == [a, b, c]
        session.narrow([])
        assert heard(session, sql, a, b, c) == []


def test_a_bucket_that_is_followed_costs_no_statement(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = apart(2)
    with closing(listening(database)) as session:
        session.follow([a, b])
        monkeypatch.setattr(session, "_run", lambda *_: pytest.fail("a statement was sent"))
        session.follow([b, a])
        session.narrow(["s", b, a])


def test_leaving_most_channels_takes_few_statements(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = apart(2)
    with closing(listening(database)) as session, opened_sessions(database) as opener:
        session.follow(None)
        sent: list[str] = []
        run = session._run
        monkeypatch.setattr(session, "_run", lambda statement, *_: sent.append(statement) or run(statement))
        session.narrow([a])
        monkeypatch.undo()
        assert len("; ".join(sent).split(";")) <= 4
        assert heard(session, opener(), a, b) == [a]
        session.ping()
        assert session.hears(PATIENCE)


def test_the_streams_are_followed_on_the_new_channels_too(database: str) -> None:
    a, b = apart(2)
    with closing(listening(database)) as session, opened_sessions(database) as opener:
        sql = opener()
        session.narrow([])
        session.follow([a])
        sql.call("change_channels")
        session.ping()
        assert heard(session, sql, a, b) == [a]


def test_a_notification_between_the_listen_and_the_next_wait_is_heard(database: str) -> None:
    with closing(listening(database)) as session, opened_sessions(database) as opener:
        session.narrow([])
        session.follow(["s"])
        opener().run(NOTIFY, "s", "x")
        assert received(session) == (["x"], False)


# interrupt


@pytest.fixture
def long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a wait last so long that its end cannot be mistaken for an interrupt."""
    monkeypatch.setattr(notifications, "_POLL", 2 * PATIENCE)


def test_a_wait_is_interrupted_by_another_greenlet(database: str, long_waits: None) -> None:
    with closing(listening(database)) as session:
        waiting = gevent.spawn(session.receive, 2 * PATIENCE)
        until(session._wake.linkcount, "it waits")
        session.interrupt()
        assert waiting.get(timeout=PATIENCE) == ([], False)


def test_an_interrupt_before_the_wait_is_not_lost(database: str, long_waits: None) -> None:
    with closing(listening(database)) as session:
        session.interrupt()
        session.interrupt()
        began = monotonic()
        session.receive(2 * PATIENCE)
        assert monotonic() - began < PATIENCE
        session.receive(0.01)  # nothing is left of it
        assert not session._wake.is_set()


def test_an_interrupt_during_a_statement_ends_the_next_wait(database: str, long_waits: None) -> None:
    with closing(listening(database)) as session:
        asking = gevent.spawn(session._run, "select pg_sleep(0.1)")
        gevent.sleep(0.02)
        session.interrupt()
        asking.get(timeout=PATIENCE)
        began = monotonic()
        session.receive(2 * PATIENCE)
        assert monotonic() - began < PATIENCE


def test_interrupts_and_notifications_that_come_together_lose_neither(database: str) -> None:
    with closing(listening(database)) as session, opened_sessions(database) as opener:
        sql, found = opener(), list[str]()
        for n in range(100):
            session.interrupt()
            sql.run(NOTIFY, "s", str(n))
            session.interrupt()
            until(lambda: found.extend(session.receive(1.0)[0]) or str(n) in found, "the notification comes")  # noqa: B023
        assert found == [str(n) for n in range(100)]


def test_notifications_that_come_with_the_answer_to_a_ping_are_not_lost(database: str) -> None:
    with closing(listening(database)) as session, opened_sessions(database) as opener:
        opener().run(NOTIFY, "s", "x")
        session.ping()
        assert received(session) == (["x"], False)


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
        opener().run("select count(pgbus._notify_stream('s', n::text)) from generate_series(1, 50) n")
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
        assert session.hears(PATIENCE)


def test_a_session_that_does_not_listen_any_more_is_deaf_at_the_next_ping(database: str) -> None:
    with closing(listening(database)) as session:
        session.ping()
        session._run("unlisten *")
        with pytest.raises(Deaf, match="the session that answers is not the one that listens"):
            session.ping()


def test_each_ping_behind_a_pooler_is_a_probe(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ListenSession, "backend_pid", -1)  # the process id that a pooler gives
    monkeypatch.setattr(ListenSession.hears, "__defaults__", (PATIENCE,))
    with closing(listening(database)) as session:
        session.ping()
        monkeypatch.setattr(session, "hears", lambda: False)
        with pytest.raises(Deaf, match="a pooler is in between"):
            session.ping()


def test_a_ping_has_a_deadline_of_its_own(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifications, "LIFE", 0.5)
    proxy = Proxy(database)

    def opened() -> ListenSession | None:
        try:
            return ListenSession(proxy.url, connect_timeout=PATIENCE, statement_timeout=100.0)
        except DatabaseUnavailable:  # the server was too busy for this deadline
            return None

    try:
        with closing(until(opened, "it listens")) as session:
            proxy.dead = True
            began = monotonic()
            with pytest.raises(DatabaseUnavailable):
                session.ping()
            assert monotonic() - began < 60.0
    finally:
        proxy.stop()
