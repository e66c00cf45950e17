"""Roles without rights of their own: one that owns nothing but the schema, and those to whom docs/sql.md grants some."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import psycopg2.extensions as ext
import pytest
from database_parts import Session, Sessions, opened_sessions, raises, until
from support import serving

from pgbus_gevent.bus import Bus
from pgbus_gevent.config import Settings
from pgbus_gevent.core.client import Subscriber
from pgbus_gevent.database.migrating import migrate
from pgbus_gevent.errors import DatabaseError
from pgbus_gevent.testing.databases import TestDatabases
from pgbus_gevent.web.stream_app import StreamApp

FORBIDDEN = "42501"
OWNER, PUBLISHER, READER, OPERATOR = ROLES = [
    f"pgbus_test_{kind}_{os.getpid()}" for kind in ("owner", "publisher", "reader", "operator")
]
DOCUMENT = (Path(__file__).parents[1] / "docs" / "sql.md").read_text(encoding="utf-8")


def documented_grants(role: str) -> list[str]:
    """The statements that docs/sql.md has for a role."""
    found = re.findall(rf"^grant [^;]* to {role};", DOCUMENT, re.MULTILINE)
    assert found
    return found


@pytest.fixture(scope="module")
def database(pgbus_databases: TestDatabases) -> Iterator[str]:
    """A database in which the schema, and nothing else, is the owner's."""
    url = pgbus_databases.make_empty()
    with opened_sessions(url) as opener:
        superuser = opener()
        for role in ROLES:
            superuser.run(f"create role {role}")
        superuser.run(f"create schema pgbus authorization {OWNER}")
    yield url
    pgbus_databases.drop(url)
    with opened_sessions(pgbus_databases.url) as opener:
        for role in ROLES:
            opener().run(f"drop role {role}")


def as_role(url: str, role: str) -> str:
    return str(ext.make_dsn(url, options=f"-c role={role}"))


@pytest.fixture(scope="module")
def owned(database: str) -> str:
    """The database, migrated by the owner."""
    assert migrate(as_role(database, OWNER))
    return database


@pytest.fixture
def owner(owned: str, sessions: Sessions) -> Iterator[Session]:
    """The owner; what it granted is taken back."""
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


def test_who_owns_only_the_schema_can_migrate_and_publish(owner: Session, stream: str) -> None:
    assert owner.one("select has_database_privilege(current_user, current_database(), 'create')") is False
    publish_by_every_function(owner, stream)


def test_the_owner_can_migrate_again(owned: str) -> None:
    assert migrate(as_role(owned, OWNER)) == []


def test_who_may_not_make_the_schema_is_told(pgbus_databases: TestDatabases, owned: str) -> None:
    empty = pgbus_databases.make_empty()
    with pytest.raises(DatabaseError, match="permission denied for database") as failed:
        migrate(as_role(empty, OWNER))
    assert failed.value.sqlstate == FORBIDDEN
    pgbus_databases.drop(empty)


def test_the_documented_grants_are_enough_to_publish(owner: Session, sessions: Sessions, stream: str) -> None:
    for grant in documented_grants("publisher"):
        owner.run(grant.replace("to publisher;", f"to {PUBLISHER}"))
    publish_by_every_function(sessions(role=PUBLISHER), stream)


@pytest.mark.parametrize("missing", documented_grants("publisher"), ids=lambda grant: re.sub(r"\W+", "-", grant))
def test_each_documented_grant_is_needed_to_publish(
    missing: str, owner: Session, sessions: Sessions, stream: str
) -> None:
    for grant in documented_grants("publisher"):
        if grant != missing:
            owner.run(grant.replace("to publisher;", f"to {PUBLISHER}"))
    publisher = sessions(role=PUBLISHER)
    if "migrations" in missing:
        with raises(FORBIDDEN):
            publisher.run("select * from pgbus.migrations")
    else:
        with raises(FORBIDDEN):
            publish_by_every_function(publisher, stream)


def test_a_bus_of_a_publisher_finds_the_schema_up_to_date(owned: str, owner: Session) -> None:
    for grant in documented_grants("publisher"):
        owner.run(grant.replace("to publisher;", f"to {PUBLISHER}"))
    with Bus(as_role(owned, PUBLISHER), secret="a secret for tests alone") as bus:
        assert bus.stream("orders").broadcast("x")


def test_the_documented_grants_are_enough_to_serve_and_not_to_publish(
    owned: str, owner: Session, sessions: Sessions, stream: str
) -> None:
    owner.call("broadcast", stream, "x")
    for grant in documented_grants("reader"):
        owner.run(grant.replace("to reader;", f"to {READER}"))
    with Bus(as_role(owned, READER), secret="a secret for tests alone") as bus:
        queries = bus.database.queries
        assert queries.pages([(stream, 0)], limit=10, size=10_000)[0].rows[0].data == "x"
        assert queries.moved({stream: 0})[1] == [stream]
        assert queries.ephemerals([1]) == {}
        assert bus.stream(stream).last_id() == owner.call("last_id", stream)
        assert [message.data for message in bus.stream(stream)] == ["x"]
        with pytest.raises(DatabaseError, match="permission denied"):
            bus.stream(stream).broadcast("y")


def test_the_documented_grants_are_enough_to_disconnect(owner: Session, sessions: Sessions) -> None:
    for grant in documented_grants("operator"):
        owner.run(grant.replace("to operator;", f"to {OPERATOR}"))
    owner.run("insert into pgbus.revocations (owner, revoked_at) values ('old', now() - interval '2 hours')")
    sessions(role=OPERATOR).call("disconnect", "ada")
    assert owner.run("select owner from pgbus.revocations") == [("ada",)]


def test_a_server_with_the_documented_grants_has_nothing_to_complain_of(
    owned: str, owner: Session, stream: str, caplog: pytest.LogCaptureFixture
) -> None:
    for grant in documented_grants("reader"):
        owner.run(grant.replace("to reader;", f"to {READER}"))
    settings = Settings(
        database_url=as_role(owned, READER),
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
        until(lambda: owner.run("select member from pgbus.presence_members(%s)", stream) == [("ada",)], "she is there")
        # Each part has asked the database by then.
        until(lambda: owner.one("select count(*) from pgbus.workers"), "it is on the roll")
        owner.call("disconnect", "ada")
        client.wait_closed()
        until(lambda: not owner.run("select from pgbus.presence_members(%s)", stream), "she has gone")
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_who_was_granted_nothing_can_do_nothing(owner: Session, sessions: Sessions, stream: str) -> None:
    with raises(FORBIDDEN):
        sessions(role=PUBLISHER).call("last_id", stream)
