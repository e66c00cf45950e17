"""Rights: a role that owns only the schema, and the roles to which docs/sql.md grants rights."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import psycopg2.extensions as ext
import pytest
from database_parts import PATIENCE, Session, Sessions, opened_sessions, raises, until
from support import serving

from pgbus_gevent.bus import Bus
from pgbus_gevent.core.buckets import buckets_of
from pgbus_gevent.core.client import Subscriber
from pgbus_gevent.core.wakes import Ephemeral, Moved, NewMessage, Wake, parse
from pgbus_gevent.database import Database, green
from pgbus_gevent.database.migrating import migrate
from pgbus_gevent.database.rights import wanted
from pgbus_gevent.errors import DatabaseError
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.testing.databases import TestDatabases
from pgbus_gevent.web.stream_app import StreamApp

FORBIDDEN = "42501"
OWNER, PUBLISHER, READER, SERVER, PRUNER, OPERATOR, STRANGER = ROLES = [
    f"pgbus_test_{kind}_{os.getpid()}"
    for kind in ("owner", "publisher", "reader", "server", "pruner", "operator", "stranger")
]
PUBLISHING = [
    "pgbus.broadcast('s', 'x')", "pgbus.broadcast_many('s', '{x}')", "pgbus.broadcast_on_commit('s', 'x')",
    "pgbus.broadcast_ephemeral('s', 'x')", "pgbus._queue_many('{s}', '{x}')",
    *(f"pgbus.{call}('s', '{{}}'::{type})" for type in ("json", "jsonb")
      for call in ("broadcast", "broadcast_on_commit", "broadcast_ephemeral")),
    "pgbus.broadcast_many('s', '{1}'::json[])",
]  # fmt: skip
READING = [
    "pgbus.read_after('s', 0)", "pgbus.presence_members('s')", "pgbus.presence_count('s')",
]  # fmt: skip
SERVING = [
    "pgbus.channels()", "pgbus._beat('w', 'h', 1, 1, '{}')", "pgbus._leave_roll('w')", "pgbus._ring_control()",
    "pgbus.presence_sweep()", "pgbus._report_caps('w', '{1}', '{1}', '{1}', 2)", "pgbus._leave_caps('w')",
    "pgbus._other_cap_reports('{w}')",
    "pgbus._presence_record('{s}', '{m}', '{c}', '{null}', '1s', '0s')", "pgbus._presence_flush()",
]  # fmt: skip
PRUNING = [
    "pgbus.prune('{s}', '{1h}')", "pgbus._prune_turn('1s')", "pgbus._forget(null, '1h')", "pgbus._prune_ephemerals()",
    "pgbus._streams_below(null, 1)",
]  # fmt: skip
FOR_NO_ROLE = [
    "pgbus.change_channels()", "pgbus._append('s', '{x}', '{e}', '{v}', '{c}')", "pgbus._jump('s', 0)", "pgbus._draw('s', 1)",
    "pgbus._append_once('s', '{x}', '{e}', '{v}', '{c}', '{k}')", "pgbus._flush()", "pgbus._touch('s', 1, true)",
    "pgbus._pace_rings()", "pgbus._tend_fleet()", "pgbus._sum_caps()", "pgbus._clear_revocations()",
    "pgbus._presence_settle('s', '{}', '{}', '{}', '1s', '{}', '{}', '0s', '{}', true)", "pgbus.grant_publisher('postgres')",
    "pgbus._presence_tell('s', '{}', true)", "pgbus._presence_announce('s', '{}')",
    "nextval('pgbus.message_ids')", "setval('pgbus.message_ids', 1)", "setval('pgbus.ring_pause', 99)",
    "setval('pgbus.highest', 1)", "pgbus._grant_rights('postgres', '{messages}', '{}')", "pgbus._lock_stream('s')",
    "pgbus._may_ring(0)", "pgbus._notify_stream('s', 'x')", "pgbus._notify_moved('s', 's')", "pgbus._bucket('s')",
]  # fmt: skip
TABLES = [
    "operator_sessions", "token_guesses", "cap_reports", "cap_sums",
    "messages", "horizons", "outbox", "ephemerals", "presence", "presence_crowds", "presence_news",
    "workers", "revocations", "prune_round", "channel_names", "epoch",
    "jumping", "migrations",
]  # fmt: skip
READABLE = {
    SERVER: {"messages", "horizons", "ephemerals", "workers", "revocations"},
    OPERATOR: {"workers", "revocations"},
}
GRANTS = {PUBLISHER: "publisher", READER: "reader", SERVER: "server", PRUNER: "pruner", OPERATOR: "operator"}
CALLABLE = {
    PUBLISHER: PUBLISHING, READER: READING, SERVER: READING + SERVING, PRUNER: PRUNING, OPERATOR: ["pgbus.disconnect('nobody')"],
    STRANGER: [],
}  # fmt: skip


@pytest.fixture(scope="module")
def roles(pgbus_databases: TestDatabases) -> Iterator[None]:
    with opened_sessions(pgbus_databases.url) as opener:
        for role in ROLES:
            opener().run(f"create role {role}")
    yield
    with opened_sessions(pgbus_databases.url) as opener:
        for role in ROLES:
            opener().run(f"drop role {role}")


@pytest.fixture(scope="module")
def database(pgbus_databases: TestDatabases, roles: None) -> Iterator[str]:
    """A database in which the owner owns only the schema."""
    url = pgbus_databases.make_empty()
    with opened_sessions(url) as opener:
        opener().run(f"create schema pgbus authorization {OWNER}")
    yield url
    pgbus_databases.drop(url)


def as_role(url: str, role: str) -> str:
    return str(ext.make_dsn(url, options=f"-c role={role}"))


@pytest.fixture(scope="module")
def owned(database: str) -> str:
    """The database, migrated by the owner."""
    assert migrate(as_role(database, OWNER))
    return database


@pytest.fixture
def owner(owned: str, sessions: Sessions) -> Iterator[Session]:
    """The owner, whose grants are revoked afterwards."""
    session = sessions(role=OWNER)
    yield session
    for role in ROLES[1:]:
        for kind in (
            "all tables in schema pgbus",
            "all sequences in schema pgbus",
            "all functions in schema pgbus",
            "schema pgbus",
        ):
            session.run(f"revoke all on {kind} from {role}")


def publish_by_every_function(sql: Session, stream: str) -> None:
    sql.call("broadcast", stream, "a", "e", "admins", "c7")
    sql.call("broadcast", stream, "b", key="k")
    sql.call("broadcast", stream, "b", key="k")
    sql.call("broadcast_many", stream, ["c", "d"])
    with sql.transaction():
        sql.call("broadcast_on_commit", stream, "e")
        sql.call("broadcast_on_commit", stream, "f", key="l")
    for size in (10, 10_000, 10_000):
        sql.call("broadcast_ephemeral", stream, "x" * size)
    assert sql.call("last_id", stream) == sql.read(stream)[-1][0]
    assert sql.data(stream) == list("abcdef")


def test_a_role_that_owns_only_the_schema_can_migrate_and_publish(owner: Session, stream: str) -> None:
    assert owner.one("select has_database_privilege(current_user, current_database(), 'create')") is False
    publish_by_every_function(owner, stream)


def test_the_owner_can_migrate_again(owned: str) -> None:
    assert migrate(as_role(owned, OWNER)) == []


@pytest.mark.parametrize("role", GRANTS, ids=GRANTS.values())
def test_doctor_knows_exactly_the_rights_of_each_grant(role: str, owner: Session) -> None:
    owner.call(f"grant_{GRANTS[role]}", role)
    given = owner.run(
        """
        select lower(a.privilege_type), c.relname::text from pg_class c cross join aclexplode(c.relacl) a
        where c.relnamespace = 'pgbus'::regnamespace and a.grantee = %s::regrole
        union
        select lower(a.privilege_type), p.proname::text from pg_proc p cross join aclexplode(p.proacl) a
        where p.pronamespace = 'pgbus'::regnamespace and a.grantee = %s::regrole
        """,
        role,
        role,
    )
    tables, kinds, functions = wanted([GRANTS[role]])
    assert {*zip(kinds, tables, strict=True), *(("execute", name) for name in functions)} == set(given)


def test_a_role_that_may_not_create_the_schema_gets_an_error(pgbus_databases: TestDatabases, owned: str) -> None:
    empty = pgbus_databases.make_empty()
    with pytest.raises(DatabaseError, match="permission denied for database") as failed:
        migrate(as_role(empty, OWNER))
    assert failed.value.sqlstate == FORBIDDEN
    pgbus_databases.drop(empty)


@pytest.mark.parametrize("role", [*GRANTS, STRANGER], ids=[*GRANTS.values(), "stranger"])
def test_each_role_can_call_its_functions_and_no_others(role: str, owner: Session, sessions: Sessions) -> None:
    if role in GRANTS:
        owner.call(f"grant_{GRANTS[role]}", role)
    session = sessions(role=role)
    every = {*PUBLISHING, *READING, *SERVING, *PRUNING, *FOR_NO_ROLE, "pgbus.disconnect('nobody')"}
    for call in sorted(every):
        if call in CALLABLE[role]:
            session.run(f"select {call}")
        else:
            with raises(FORBIDDEN):
                session.run(f"select {call}")
    for table in TABLES:
        if role == SERVER and table in ("operator_sessions", "token_guesses"):
            continue  # workers share the logins at the console through these tables
        for statement in (
            "delete from pgbus.{}",
            "truncate pgbus.{}",
            "insert into pgbus.{} default values",
        ):
            with raises(FORBIDDEN):
                session.run(statement.format(table))
        if table in READABLE.get(role, set()) or (table == "migrations" and role in GRANTS):
            session.run(f"select from pgbus.{table}")
        else:
            with raises(FORBIDDEN):
                session.run(f"select from pgbus.{table}")


def test_publishing_as_a_publisher(owner: Session, sessions: Sessions, stream: str) -> None:
    owner.call("grant_publisher", PUBLISHER)
    publisher = sessions(role=PUBLISHER)
    for isolation in ("read committed", "repeatable read"):
        name = f"{stream} {isolation}"
        with publisher.transaction(isolation):
            publisher.call("broadcast", name, "a", "e", "admins", "c7")
            publisher.call("broadcast", name, "b", key="k")
            publisher.call("broadcast", name, "b", key="k")
            publisher.call("broadcast_many", name, ["c", "d"])
            publisher.call("broadcast_on_commit", name, "e")
            publisher.call("broadcast_on_commit", name, "f", key="l")
            for size in (10, 10_000, 10_000):
                publisher.call("broadcast_ephemeral", name, "x" * size)
        assert publisher.call("last_id", name) == owner.read(name)[-1][0]
        assert owner.data(name) == list("abcdef")


def test_a_server_hears_what_a_publisher_publishes_in_every_way(
    owner: Session, sessions: Sessions, owned: str, stream: str
) -> None:
    """The publisher may not call the function that notifies, and the server only asks for the names of the channels."""
    owner.call("grant_publisher", PUBLISHER)
    owner.call("grant_server", SERVER)
    publisher, others = sessions(role=PUBLISHER), [f"{stream} {n}" for n in range(5)]
    settings = Settings(database_url=as_role(owned, SERVER))
    green.install()
    with closing(Database(settings)) as database, closing(database.listen()) as session:
        session.follow([stream, *others])
        publisher.call("broadcast", stream, "a")
        publisher.call("broadcast_ephemeral", stream, "a")
        publisher.call("broadcast_ephemeral", stream, "a" * 9000)
        publisher.call("broadcast_many", stream, ["a", "b"])
        with publisher.transaction():
            for name in others:
                publisher.call("broadcast_on_commit", name, "a")
        heard: list[Wake] = []
        until(
            lambda: heard.extend(map(parse, session.receive(0.2)[0])) or len(heard) > 4 + len(buckets_of(others)) - 1,
            "all is heard",
        )
    single = [wake for wake in heard if not isinstance(wake, Moved)]
    moved = [name for wake in heard if isinstance(wake, Moved) for name in wake.streams or []]
    assert [type(wake) for wake in single] == [NewMessage, Ephemeral, Ephemeral]
    assert sorted(moved) == [stream, *others]


@pytest.mark.usefixtures("roles")
def test_everything_works_if_execute_was_revoked_from_public(pgbus_databases: TestDatabases) -> None:
    url = pgbus_databases.make_empty()
    with opened_sessions(url) as opener:
        opener().run("alter default privileges revoke execute on functions from public")
        migrate(url)
        owner, publisher = opener(), opener(role=PUBLISHER)
        owner.call("grant_publisher", PUBLISHER)
        owner.call("grant_server", PUBLISHER)
        publisher.call("broadcast_on_commit", "s", "x")
        publisher.call("broadcast_many", "s", ["y", "z"])
        assert publisher.data("s") == ["x", "y", "z"]
        publisher.run("create temp table mine (n integer); select pgbus.watch_table('mine', 'mine')")
        publisher.run("insert into mine values (1); insert into mine values (2), (3)")
        assert len(publisher.data("mine")) == 3
        owner.call("revoke_rights", PUBLISHER)
        with raises(FORBIDDEN):
            publisher.call("last_id", "s")
    pgbus_databases.drop(url)


@pytest.mark.usefixtures("roles")
def test_default_privileges_do_not_reveal_the_channels(pgbus_databases: TestDatabases) -> None:
    url = pgbus_databases.make_empty()
    with opened_sessions(url) as opener:
        opener().run(f"alter default privileges grant all on tables to public, {STRANGER}")
        migrate(url)
        opener().run(f"grant usage on schema pgbus to {STRANGER}")
        with raises(FORBIDDEN):
            opener(role=STRANGER).run("select * from pgbus.channel_names")
        opener().run(f"drop owned by {STRANGER}; alter default privileges revoke all on tables from public")
    pgbus_databases.drop(url)


def test_an_owner_without_the_right_to_identify_the_server_can_serve(
    database: str, pgbus_databases: TestDatabases, pgbus_settings: Settings
) -> None:
    """In PostgreSQL, PUBLIC may call that function, but some providers revoke the right."""
    url = pgbus_databases.make_empty()
    with opened_sessions(url) as opener:
        superuser = opener()
        superuser.run("revoke execute on function pg_control_system() from public")
        superuser.run(f"create schema pgbus authorization {OWNER}")
        url_of_owner = as_role(url, OWNER)
        migrate(url_of_owner)
        with serving(replace(pgbus_settings, database_url=url_of_owner)) as server:
            client = server.live("orders")
            until(lambda: server.instance.listener.live, "it listens")
            opener(role=OWNER).call("broadcast_ephemeral", "orders", "x")
            assert client.next(timeout=PATIENCE).data == "x"
        assert opener(role=OWNER).run("select * from pgbus.squatters()") == []
    pgbus_databases.drop(url)


def test_a_bus_of_a_publisher_finds_the_schema_up_to_date(owned: str, owner: Session) -> None:
    owner.call("grant_publisher", PUBLISHER)
    with Bus(as_role(owned, PUBLISHER), secret="a secret for tests alone") as bus:
        assert bus.stream("orders").broadcast("x")


def test_a_bus_of_a_server_reads_and_does_not_publish(owned: str, owner: Session, stream: str) -> None:
    owner.call("broadcast", stream, "x")
    owner.call("grant_server", SERVER)
    with Bus(as_role(owned, SERVER), secret="a secret for tests alone") as bus:
        queries = bus.database.queries
        assert queries.pages([(stream, 0)], limit=10, size=10_000)[0].rows[0].data == "x"
        assert queries.ephemerals([1]) == {}
        assert bus.stream(stream).last_id() == owner.call("last_id", stream)
        assert [message.data for message in bus.stream(stream)] == ["x"]
        with pytest.raises(DatabaseError, match="permission denied"):
            bus.stream(stream).broadcast("y")


def test_an_operator_disconnects_and_lists_the_workers(owned: str, owner: Session) -> None:
    owner.call("grant_operator", OPERATOR)
    owner.run("delete from pgbus.revocations")
    owner.call("_beat", "w1", "host", 7, 1.0, "{}")
    with Bus(as_role(owned, OPERATOR), secret="a secret for tests alone") as bus:
        bus.disconnect("ada")
        assert [worker.id for worker in bus.database.fleet.workers()] == ["w1"]
    assert owner.run("select owner from pgbus.revocations") == [("ada",)]
    owner.call("_leave_roll", "w1")


def test_a_server_can_neither_change_nor_remove_the_worker_of_another_role(owner: Session, sessions: Sessions) -> None:
    owner.call("grant_server", SERVER)
    owner.call("_beat", "w1", "host", 7, 1.0, "{}")
    server = sessions(role=SERVER)
    with raises(FORBIDDEN):
        server.call("_beat", "w1", "forged", 7, 1.0, "{}")
    server.call("_leave_roll", "w1")
    assert owner.run("select host from pgbus.workers where id = 'w1'") == [("host",)]
    owner.call("_leave_roll", "w1")
    assert owner.run("select from pgbus.workers where id = 'w1'") == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("", "h", 1, 1.0, "{}"), ("a\nb", "h", 1, 1.0, "{}"), ("w", "", 1, 1.0, "{}"), ("w", "h", None, 1.0, "{}"),
        ("w", "h", 1, float("inf"), "{}"), ("w", "h", 1, float("nan"), "{}"), ("w", "h", 1, -1.0, "{}"), ("w", "h", 1, 1.0, "[]"),
        ("w", "h", 1, 1.0, None), ("w", "h", 1, 1.0, '{"a": {"b": [1e400]}}'),
        ("w", "h", 1, 1.0, f'{{"a": "{"x" * 1_000_001}"}}'),
    ],
)  # fmt: skip
def test_an_invalid_row_is_not_added_to_the_roll(arguments: tuple[object, ...], owner: Session) -> None:
    with raises("22023"):
        owner.call("_beat", *arguments)


def test_a_server_with_the_documented_rights_logs_no_warning(
    owned: str, owner: Session, stream: str, caplog: pytest.LogCaptureFixture
) -> None:
    owner.call("grant_server", SERVER)
    settings = Settings(
        database_url=as_role(owned, SERVER),
        secret="a secret for tests alone",
        public=("*",),
        presence=("*",),
        prune_interval=0,
    )
    with serving(
        settings, app=lambda instance: StreamApp(instance, lambda *_: Subscriber("ada", member="ada"))
    ) as server:
        client = server.live(stream)
        owner.call("broadcast", stream, "x")
        until(lambda: any(frame.data == "x" for frame in client.messages), "the message came")
        until(
            lambda: owner.run("select member from pgbus.presence_members(%s)", stream) == [("ada",)], "ada is present"
        )
        # By then, each part has queried the database.
        until(lambda: owner.one("select count(*) from pgbus.workers"), "the worker is on the roll")
        owner.call("disconnect", "ada")
        client.wait_closed(PATIENCE)
        until(lambda: not owner.run("select from pgbus.presence_members(%s)", stream), "ada has left")
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    # A database that stood still is no matter of rights.
    assert [text for text in told if "permission denied" in text or "may not" in text] == []


def test_a_server_with_the_documented_rights_can_prune(owned: str, owner: Session) -> None:
    owner.call("grant_server", SERVER)
    owner.call("grant_pruner", SERVER)
    with Bus(as_role(owned, SERVER), secret="a secret for tests alone") as bus:
        assert bus.database.pruning.turn(0.001, 10) is not None


def test_a_role_without_grants_can_do_nothing(owner: Session, sessions: Sessions, stream: str) -> None:
    with raises(FORBIDDEN):
        sessions(role=PUBLISHER).call("last_id", stream)
