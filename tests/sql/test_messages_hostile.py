"""Attacks from other roles of a shared database: misleading names, squatted locks, forged settings, a full queue."""

from __future__ import annotations

import os
from collections.abc import Iterator
from time import monotonic
from typing import Any

import psycopg2
import psycopg2.extensions as ext
import pytest
from database_parts import BELL, Ear, Session, Sessions, is_waiting, opened_sessions, own_server, raises, until

from pgbus_gevent.bus import Bus
from pgbus_gevent.commands.finding import FAIL
from pgbus_gevent.commands.findings import findings
from pgbus_gevent.core.wakes import Moved, NewMessage, parse
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.testing.databases import TestDatabases

APPENDS = 1885823603

# Copies in public of every PostgreSQL function and operator that our functions name. Each copy raises if it is called.
PLANT = """
do $plant$
declare
  one record;
begin
  for one in
    select distinct p.proname, pg_get_function_identity_arguments(p.oid) as arguments,
           case when p.proretset then 'setof ' else '' end || format_type(p.prorettype, null) as result
    from pg_proc p
    where p.pronamespace = 'pg_catalog'::regnamespace and p.prokind = 'f' and p.proname = any ({names})
  loop
    begin
      execute format('create function public.%I(%s) returns %s language plpgsql as'
                     ' $f$ begin raise exception ''caught %s''; end $f$',
                     one.proname, one.arguments, one.result, one.proname);
    exception when others then
      null;  -- of a kind that cannot be made
    end;
  end loop;
  for one in
    select distinct o.oprname, o.oprleft::regtype::text as l, o.oprright::regtype::text as r
    from pg_operator o
    where o.oprnamespace = 'pg_catalog'::regnamespace and o.oprleft <> 0 and {types}
          and o.oprname in ('=', '<>', '<', '>', '<=', '>=', '~', '!~', '||', '+', '-', '*', '/', '&', '->', '#>>', '<@', '@>')
  loop
    begin
      execute format('create or replace function public.op(a %s, b %s) returns boolean language plpgsql as'
                     ' $f$ begin raise exception ''caught an operator''; end $f$', one.l, one.r);
      execute format('create operator public.%s (leftarg = %s, rightarg = %s, function = public.op)', one.oprname, one.l, one.r);
    exception when others then
      null;
    end;
  end loop;
end
$plant$;
"""
TYPES = """(
  o.oprleft::regtype::text in ('text', 'bigint', 'integer', 'name', 'oid', 'timestamp with time zone', 'xid8', 'jsonb', 'json',
                               'interval', 'anyarray', 'double precision', 'numeric')
  and o.oprright::regtype::text in ('text', 'bigint', 'integer', 'name', 'oid', 'timestamp with time zone', 'xid8', 'jsonb',
                                    'interval', 'text[]', 'anyarray', 'double precision', 'numeric'))
"""
CALLS = [
    "pgbus.broadcast('{s}', 'x')", "pgbus.broadcast('{s}', 'x', key => 'k')", "pgbus.broadcast_many('{s}', '{{x,y}}')",
    "pgbus.broadcast_many('{s}', '{{x,y}}', keys => '{{a,b}}')", "pgbus.broadcast_on_commit('{s}', 'x')",
    "pgbus.broadcast_on_commit('{s}', n.n) from (values ('1'), ('2')) n(n)", "pgbus.broadcast_ephemeral('{s}', 'x')",
    "pgbus.broadcast_ephemeral('{s}', '{large}')", "pgbus.last_id('{s}')", "pgbus.read_after('{s}', 0)", "pgbus._head('{s}')",
    "pgbus._horizon('{s}')", "pgbus.channels()", "pgbus.change_channels()", "pgbus.disconnect('ada')", "pgbus.squatters()",
    "pgbus.presence_join('{s}', 'ada')", "pgbus.presence_members('{s}')", "pgbus.presence_count('{s}')",
    "pgbus.presence_touch('{s}', 'ada')", "pgbus.presence_touch_many('{{{s}}}', '{{ada}}', '{{c}}')",
    "pgbus._presence_record('{{{s}}}', '{{ada}}', '{{c}}', '{{\"{{}}\"}}', '1s', '1s')", "pgbus.presence_leave('{s}', 'ada')",
    "pgbus.presence_sweep()", "pgbus._beat('w', 'h', 1, 1, '{{}}')", "pgbus._leave_roll('w')", "pgbus._pace_rings()",
    "pgbus._tend_fleet()", "pgbus._ring_control()",
    "pgbus.prune('{{{s}}}', '{{1h}}', '{{1}}')", "pgbus._prune_turn('1 s')", "pgbus._streams_below(null, 5)",
    "pgbus._forget(null, '1h')",
    "pgbus._prune_ephemerals()", "pgbus.watch_table('public.mine', '{s}:{{n}}')", "pgbus.unwatch_table('public.mine')",
    "pgbus._good_stream('{s}')", "pgbus._jump('{s}', 0)", "pgbus._touch('{s}', 1, true)", "pgbus._bucket('{s}')",
    "pgbus._notify_stream('{s}', 'x')", "pgbus._notify_moved('{s}', '1')",
    "pgbus._wait_for(1, 2, 'x')", "pgbus._may_ring(0)", "pgbus._may_ring(5)", "pgbus.grant_publisher('{role}')",
    "pgbus.grant_server('{role}')", "pgbus.revoke_rights('{role}')", "pgbus._home()", "pgbus._caller()", "pgbus._epoch_number()",
    "pgbus._queue_many('{{{s}}}', '{{x}}')", "pgbus._draw('{s}', 2)", "pgbus._lock_stream('{s}')", "pgbus._lock_presence('{s}')",
    *(f"pgbus.{call}('{{s}}', '1'::{type})" for type in ("json", "jsonb")
      for call in ("broadcast", "broadcast_on_commit", "broadcast_ephemeral")),
    "pgbus.broadcast_many('{s}', '{{1,2}}'::json[])", "pgbus.broadcast_many('{s}', '{{1,2}}'::jsonb[])",
]  # fmt: skip


def used_names(sql: Session) -> list[str]:
    """Return every word in the bodies of our functions that is the name of a function of PostgreSQL."""
    return [
        row[0]
        for row in sql.run(
            "select distinct w[1] from pg_proc p cross join regexp_matches(pg_get_functiondef(p.oid), '[a-z_0-9]+', 'g') w"
            " where p.pronamespace = 'pgbus'::regnamespace and w[1] in (select proname from pg_proc)"
        )
    ]


def test_every_function_fixes_the_meaning_of_its_names(sql: Session) -> None:
    assert [
        row[0]
        for row in sql.run(
            "select p.oid::regprocedure::text from pg_proc p where p.pronamespace = 'pgbus'::regnamespace"
            " and p.prosqlbody is null and not coalesce(p.proconfig::text ~ 'search_path=pg_catalog, pg_temp', false)"
        )
    ] == []


def test_public_may_execute_no_function_of_ours(sql: Session) -> None:
    ours = "select p.proname from pg_proc p where p.pronamespace = 'pgbus'::regnamespace"
    assert sql.run(f"{ours} and has_function_privilege('public', p.oid, 'execute')") == []


@pytest.mark.parametrize("path", ["public, pg_catalog", "pg_temp, public, pg_catalog, pgbus"])
def test_objects_with_misleading_names_change_nothing(path: str, pgbus_databases: TestDatabases) -> None:
    url, role = pgbus_databases.make(), f"pgbus_test_hostile_{os.getpid()}_{len(path)}"
    with opened_sessions(url) as opener:
        sql, other = opener(), opener()
        names = used_names(sql)
        assert {"json_build_array", "hashtext", "pg_notify", "unnest", "to_json"} <= set(names)
        sql.run(f"create role {role}")
        sql.run("create table public.mine (n integer)")
        with other.connection.cursor() as cursor:
            listed = cursor.mogrify("%s::text[]", (names,)).decode()
        other.run(PLANT.format(names=listed, types=TYPES))
        assert other.one("select count(*) from pg_proc where pronamespace = 'public'::regnamespace") > 100
        assert other.one("select count(*) from pg_operator where oprnamespace = 'public'::regnamespace") > 50
        sql.run("create temp table messages (like pgbus.messages); create temp table horizons (like pgbus.horizons)")
        sql.run(f"set search_path = {path}")
        for trap in ("hashtext('x')", "'x'::text || 'y'::text", "clock_timestamp()"):
            with pytest.raises(psycopg2.errors.RaiseException, match="caught"):
                sql.run(f"select {trap}")
        for call in CALLS:
            sql.run("select " + call.format(s="stream", large="x" * 9000, role=role))
        sql.run("select pgbus.watch_table('public.mine', 'mine')")
        sql.run("insert into public.mine values (1); insert into public.mine values (2), (3); delete from public.mine")
        assert len(other.data("mine")) == 6
        sql.run(f"drop owned by {role}; drop role {role}")
    pgbus_databases.drop(url)


def test_our_sessions_fix_the_search_path_but_transactions_of_the_application_keep_theirs(
    pgbus_bus: Bus, pgbus_database: str
) -> None:
    with pgbus_bus.database.pool.connection() as connection, connection.cursor() as cursor:
        cursor.execute("show search_path")
        assert cursor.fetchall() == [("pg_catalog,pg_temp",)]
    with pgbus_bus.transaction() as cursor:
        cursor.execute("show search_path")
        assert cursor.fetchall() == [('"$user", public',)]
    with opened_sessions(pgbus_database) as opener:
        name = opener().one("select current_database()")
        opener().run(f'alter database "{name}" set search_path = shop, public')
    with pgbus_bus.transaction() as cursor:
        cursor.execute("show search_path")
        assert cursor.fetchall() == [("shop, public",)]
    url = str(ext.make_dsn(pgbus_database, options="-c search_path=own,public"))
    with Bus(url, secret="a secret for tests alone") as bus, bus.transaction() as cursor:
        cursor.execute("show search_path")
        assert cursor.fetchall() == [("own,public",)]


# locks


def test_the_error_of_a_publisher_names_the_session_that_keeps_the_lock(sessions: Sessions, stream: str) -> None:
    squatter, publisher = sessions(), sessions()
    squatter.run("set application_name = 'eve''s \"tool\"'")
    number = publisher.one("select pgbus._lock_number(%s)", stream)
    squatter.run("select pg_advisory_lock(%s, %s)", APPENDS, number)
    began = monotonic()
    for call in ("broadcast", "broadcast_on_commit"):
        with raises(
            "55P03", match=f'stream "{stream}" is locked by process {squatter.pid}, which does nothing with it'
        ):
            publisher.run("set statement_timeout = '15s'")
            publisher.call(call, stream, "x")
    assert 9 < monotonic() - began < 28
    squatter.run("select pg_advisory_unlock_all()")
    publisher.call("broadcast", stream, "x")


def test_a_publisher_waits_for_a_transaction_that_publishes(sessions: Sessions, stream: str) -> None:
    slow, publisher, watcher = sessions(), sessions(), sessions()
    with slow.transaction():
        slow.call("broadcast", stream, "x")
        waiting = publisher.spawn("select pgbus.broadcast(%s, 'y')", stream)
        until(lambda: is_waiting(watcher, publisher), "it waits")
        # Longer than the wait for a session that only keeps the lock.
        until(lambda: watcher.one("select clock_timestamp() - query_start > interval '5.3 s' from pg_stat_activity where pid = %s",
                                  publisher.pid), "the publisher has waited for long")  # fmt: skip
        assert not waiting.ready()
    waiting.get(timeout=10)
    assert publisher.data(stream) == ["x", "y"]
    assert publisher.one("show lock_timeout") == "0"


def test_a_publisher_keeps_its_own_lock_timeout(sessions: Sessions, stream: str) -> None:
    slow, publisher = sessions(), sessions()
    publisher.run("set lock_timeout = '200ms'")
    with slow.transaction():
        slow.call("broadcast", stream, "x")
        began = monotonic()
        with raises("55P03", match="lock timeout"):
            publisher.call("broadcast", stream, "y")
        assert monotonic() - began < 15
    publisher.call("broadcast", stream, "y")
    assert publisher.one("show lock_timeout") == "200ms"


def test_doctor_names_the_session_that_keeps_a_lock(database: str, sessions: Sessions) -> None:
    squatter = sessions()
    squatter.run("select pg_advisory_lock(%s, 1)", BELL)
    [found] = [one for one in findings(Settings(database_url=database)) if one.check == "locks"]
    squatter.run("select pg_advisory_unlock_all()")  # its backend may end later than the next test begins
    assert found.level == FAIL
    assert f"process {squatter.pid} (role" in found.text and "holds the doorbell" in found.text
    assert str(squatter.pid) in found.todo


def test_a_prepared_transaction_that_keeps_a_lock_is_named(small: str, stream: str) -> None:
    """It has no process to end, and if the server allows prepared transactions, any role can leave one behind."""
    with opened_sessions(small) as opener:
        squatter, sql, slow = opener(), opener(), opener()
        squatter.run("begin")
        squatter.run("select pg_advisory_xact_lock(%s, %s)", APPENDS, sql.one("select pgbus._lock_number(%s)", stream))
        squatter.run("select pg_advisory_xact_lock(%s, n) from generate_series(0, 1) n", BELL)
        squatter.run("""prepare transaction 'it''s "mine"'""")
        with raises("55P03", match="is locked by the prepared transaction .*mine.*, which does nothing with it"):
            sql.call("broadcast", stream, "x")
        [locks] = [one for one in findings(Settings(database_url=small)) if one.check == "locks"]
        assert locks.level == FAIL and "the prepared transaction" in locks.text
        remedy = locks.todo.removeprefix("end it with ")
        assert remedy == """rollback prepared 'it''s "mine"'"""
        sql.run(remedy)
        sql.call("broadcast", stream, "x")
        assert sql.run("select * from pgbus.squatters()") == []

        # A prepared transaction that publishes is no squatter. Publishers wait for it, and the order holds.
        squatter.run("begin")
        squatter.call("broadcast", "another", "x")
        # It holds both bells, so that no transaction rings.
        squatter.run("select pg_advisory_xact_lock(%s, n) from generate_series(0, 1) n", BELL)
        slow.run("begin")
        slow.call("broadcast", stream, "prepared")
        slow.run("prepare transaction 'slow'")
        squatter.run("rollback")
        waiting = sql.spawn("select pgbus.broadcast(%s, 'after')", stream)
        until(lambda: is_waiting(squatter, sql), "it waits")
        assert squatter.run("select * from pgbus.squatters()") == []
        slow.run("commit prepared 'slow'")
        waiting.get(timeout=10)
        assert sql.data(stream) == ["x", "prepared", "after"]


# settings that any role can change


@pytest.mark.parametrize(
    "value", ["1", "yes", "1\n+", "\n", "*", "1\n*", "x" * 5000, "'\"\\", "999999999999999999999999"]
)
@pytest.mark.parametrize("function", ["broadcast", "broadcast_on_commit"])
def test_forged_settings_of_ours_lose_nothing(
    value: str, function: str, sessions: Sessions, ear: Ear, stream: str
) -> None:
    hostile, sql = sessions(), sessions()
    for name in ("pgbus.ring", "pgbus.moved", "pgbus.flush"):
        hostile.run("select set_config(%s, %s, false)", name, value)
    for n in range(3):
        hostile.call(function, stream, str(n))
    with hostile.transaction():
        hostile.call(function, stream, "3")
        hostile.run(
            "select set_config(name, %s, true) from unnest(%s) name",
            value,
            ["pgbus.ring", "pgbus.moved", "pgbus.flush"],
        )
        hostile.call("broadcast_on_commit", stream, "4")
        hostile.call("broadcast_on_commit", stream, "5")
    assert sql.data(stream) == list("012345")
    assert sql.queued() == 0
    for wake in map(parse, ear.heard_until(sql)):
        assert isinstance(wake, (NewMessage, Moved))


@pytest.mark.parametrize("function", ["broadcast", "broadcast_on_commit"])
def test_a_session_in_the_replica_role_publishes_too(function: str, sql: Session, ear: Ear, stream: str) -> None:
    sql.run("set session_replication_role = replica")
    with sql.transaction():
        sql.call(function, stream, "x")
        sql.call("broadcast_on_commit", stream, "y")
    assert sql.data(stream) == ["x", "y"]
    assert len(ear.heard_until(sql)) == 1


# a full queue


@pytest.fixture(scope="module")
def small() -> Iterator[str]:
    """A server whose queue of notifications fills quickly, and which allows prepared transactions."""
    with own_server({"max_notify_queue_pages": "64", "max_prepared_transactions": "4"}) as postgres:
        yield postgres.url


PUBLISHING: list[Any] = [
    ("broadcast", "s", "x"), ("broadcast", "s", "x" * 7000), ("broadcast_on_commit", "s", "x"), ("broadcast_many", "s", ["x", "y"]),
    ("broadcast_ephemeral", "s", "x"), ("broadcast_ephemeral", "s", "x" * 7000), ("broadcast_ephemeral", "s", "x" * 20_000),
    ("disconnect", "ada"), ("presence_join", "s", "ada"), ("presence_leave", "s", "ada"), ("change_channels",),
]  # fmt: skip


def test_publishing_works_with_a_full_queue_and_notifications_resume_afterwards(small: str) -> None:
    with opened_sessions(small) as opener:
        sql, deaf, other = opener(), opener(), opener()
        sql.run("create table watched (n integer); select pgbus.watch_table('watched', 'watched')")
        deaf.run("listen anything")
        with deaf.transaction():  # it takes nothing from the queue during the transaction
            until(lambda: not rung(other), "the queue is full", timeout=30)
            assert other.one("select pg_notification_queue_usage()") > 0.9
            for _ in range(20):
                for function, *arguments in PUBLISHING:
                    sql.call(function, *arguments)
                sql.run("insert into watched values (1)")
        ear = Ear(sql)
        other.call("broadcast", "s", "after")
        assert any(isinstance(wake, NewMessage) and wake.data == "after" for wake in map(parse, ear.heard_until(other)))
        assert len(other.data("watched")) == 20


def rung(sql: Session) -> bool:
    try:
        sql.run("select pg_notify('anything', repeat('x', 7000) || n) from generate_series(1, 5) n")
    except psycopg2.errors.ProgramLimitExceeded:
        return False
    return True


def test_the_ephemeral_messages_of_one_transaction_do_not_fill_the_queue(small: str) -> None:
    with opened_sessions(small) as opener:
        sql = opener()
        with sql.transaction():
            sql.run(
                "select count(pgbus.broadcast_ephemeral('s', repeat('x', 7000) || n)) from generate_series(1, 200) n"
            )
