"""The model of the database loses and keeps what a real server does: at a restart, at a crash, and at a promotion."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

import psycopg2
from database_parts import Session, opened_sessions, own_server, until
from model_database_parts import RealSide, take
from model_parts import ModelSide, Step, plain
from ways import kill_server, standby

from pgbus_gevent.database.embedded import EmbeddedPostgres
from tests.simulation import database

STREAMS = ["a", "b", "d", "e"]
BEFORE: list[Step] = [
    *(("broadcast", n % 4, "now", n % 3, "small", None, None) for n in range(6)),
    ("many", 0, 0, None, 3),
    ("prune", 0, 1e6, [2, None, None, None], 100),
    ("ephemeral", 0, 0, "large"),
    ("begin", 1, "read committed"),
    ("broadcast", 1, "now", 1, "small", None, None),
    ("broadcast", 1, "commit", 0, "small", None, None),
]
"""The transaction of session 1 is still open at the end."""
LOST: list[Step] = [
    *(("broadcast", 0, "now", n % 2 * 2, "small", None, None) for n in range(4)),
    ("prune", 0, 1e6, [1, 1, None, None], 100),
]
"""Not to the stream that the open transaction holds."""
AFTER: list[Step] = [
    *(("broadcast", n, "now", n % 3, "small", None, None) for n in range(4)),
    ("ask", 0, "pages", 4, 2, 5),
    ("ask", 0, "openings", 1, 2, 5),
    ("ask", 0, "tail", 0, 0, 6),
    ("ask", 0, "moved", 0, 1, 2),
]


def both(real: RealSide, model: ModelSide, steps: Sequence[Step]) -> None:
    for step in steps:
        take(real, model, step)


def goes_on(real: RealSide, model: ModelSide, open_session: Callable[[], Session]) -> None:
    """The same rows are there. The next id is above all that were given, and all goes on alike."""
    highest = max(model.everything())
    real.move(open_session)
    model.move()
    theirs, ours = real._seen({}), model._seen({})
    for key in ("rows", "horizons", "ephemerals"):
        assert plain(theirs[key]) == plain(ours[key]), key
    try:
        both(real, model, AFTER)
    finally:
        real.end()
    assert real.own(0)[-1] > highest and model.own(0)[-1] > highest
    assert model.server.jumps == 1


def answering(url: str) -> bool:
    try:
        psycopg2.connect(url).close()
    except psycopg2.OperationalError:
        return False
    return True


def started(open_session: Any) -> tuple[RealSide, ModelSide]:
    real = RealSide(open_session, STREAMS)
    return real, ModelSide(real.start)


def test_a_restart_keeps_all_that_was_committed() -> None:
    with own_server({}) as postgres, opened_sessions(postgres.url) as opener:
        real, model = started(opener)
        both(real, model, BEFORE)
        postgres.restart()
        database.restart(model.server)
        goes_on(real, model, opener)


def test_a_crash_empties_the_table_of_ephemeral_messages_and_keeps_the_others() -> None:
    with own_server({}) as postgres, opened_sessions(postgres.url) as opener:
        real, model = started(opener)
        both(real, model, BEFORE)
        os.kill(real.sessions[2].pid, signal.SIGKILL)
        until(lambda: not _lives(real.watcher), "the crash is noticed")
        until(lambda: answering(postgres.url), "the server is back")
        database.crash(model.server, same_start=True)
        goes_on(real, model, opener)


def test_a_promotion_loses_the_commits_that_the_standby_does_not_have() -> None:
    with own_server({}) as postgres, opened_sessions(postgres.url) as opener:
        _promote(postgres, opener)


def _promote(postgres: EmbeddedPostgres, opener: Any) -> None:
    with standby(postgres.url) as other, opened_sessions(other) as there:
        real, model = started(opener)
        both(real, model, BEFORE)
        on_standby = there()
        number = len(model.table)
        until(lambda: on_standby.one("select count(*) from pgbus.messages") == number, "the standby has them")
        position = model.server.wal.end
        for setting in ("primary_conninfo = ''", "wal_retrieve_retry_interval = '1h'"):
            on_standby.run(f"alter system set {setting}")
        on_standby.run("select pg_reload_conf()")
        receives = "select 1 from pg_stat_activity where backend_type = 'walreceiver'"
        until(lambda: not on_standby.run(receives), "it has no connection any more")
        both(real, model, LOST)
        seen = model.everything()
        kill_server(postgres.url)
        on_standby.run("select pg_promote()")
        database.promote(model.server, position)
        goes_on(real, model, there)
        assert set(seen) - set(model.everything()), "nothing was lost, so nothing was tested"


def _lives(session: Session) -> bool:
    try:
        session.run("select 1")
    except psycopg2.Error:
        return False
    return True
