"""``doctor`` names the role and each right that it lacks, whichever of them is taken away."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import psycopg2.extensions as ext
import pytest
from cli_parts import Cli
from database_parts import Session, opened_sessions
from doctor_parts import checked

from pgbus_gevent.commands.finding import FAIL, Finding
from pgbus_gevent.commands.findings import SERVER
from pgbus_gevent.commands.rights_findings import obstacles, reach, rights
from pgbus_gevent.database import Database
from pgbus_gevent.database.checks import Checks
from pgbus_gevent.database.rights import wanted
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.testing.databases import TestDatabases
from pgbus_gevent.testing.servers import SECRET

ROLE = f"pgbus_test_lacking_{os.getpid()}"


@pytest.fixture(scope="module")
def url(pgbus_databases: TestDatabases) -> str:
    return pgbus_databases.make()


@pytest.fixture
def sql(url: str) -> Iterator[Session]:
    """A session of the owner. The role has the grants of a server, and may log in."""
    with opened_sessions(url) as opener:
        session = opener()
        session.run(f"create role {ROLE} login")
        for grant in SERVER:
            session.run(f"select pgbus.grant_{grant}('{ROLE}')")
        try:
            yield session
        finally:
            session.run(f"drop owned by {ROLE}")
            session.run(f"drop role {ROLE}")


@pytest.fixture
def settings(url: str) -> Settings:
    return Settings(database_url=str(ext.make_dsn(url, options=f"-c role={ROLE}")), secret=(SECRET,))


def every_right(sql: Session) -> list[tuple[str, str]]:
    """Return each right of a server, a publisher and a pruner, as SQL and as ``doctor`` writes it."""
    names, kinds, functions = wanted(SERVER)
    found = [(f"{kind} on pgbus.{name}", f"{kind} on pgbus.{name}") for name, kind in zip(names, kinds, strict=True)]
    rows = sql.run(
        "select p.oid::regprocedure::text from pg_proc p join pg_namespace n on n.oid = p.pronamespace"
        " where n.nspname = 'pgbus' and p.proname::text = any (%s)",
        functions,
    )
    found += [(f"execute on function {name}", f"execute on {name}") for (name,) in rows]
    return [*found, ("usage on schema pgbus", "usage on schema pgbus")]


def test_each_right_that_is_taken_away_is_a_failure_that_names_it(sql: Session, settings: Settings) -> None:
    every = every_right(sql)
    assert len(every) > 70
    database = Database(settings, read_only=True)
    try:
        for right, shown in every:
            sql.run(f"revoke {right} from {ROLE}")
            [found] = rights(Checks(database.pool), SERVER)
            assert (found.level, found.text) == (FAIL, f'role "{ROLE}" lacks {shown}')
            assert checked(found).figures == {"role": ROLE, "missing": [shown]}
            assert f"'{ROLE}')" in found.todo and "docs/sql.md, Roles" in found.todo
            sql.run(f"grant {right} to {ROLE}")
    finally:
        database.close()


def test_a_role_that_may_not_connect_is_told_so(url: str, sql: Session) -> None:
    name = ext.parse_dsn(url)["dbname"]
    settings = Settings(database_url=str(ext.make_dsn(url, user=ROLE)))
    sql.run(f'revoke connect on database "{name}" from public')
    try:
        with pytest.raises(psycopg2.OperationalError, match="permission denied"):
            psycopg2.connect(str(settings.database_url))
        database = Database(settings, read_only=True)
        found: Finding = checked(reach(Checks(database.pool), settings))
        database.close()
    finally:
        sql.run(f'grant connect on database "{name}" to public')
    assert found.level == FAIL and f'role "{ROLE}" lacks connect on database "{name}"' in found.text
    assert "grant connect on database" in found.todo and "docs/sql.md" in found.todo


def test_doctor_url_names_the_right_that_it_lacks_to_publish(sql: Session, settings: Settings, tmp_path: Path) -> None:
    assert obstacles(settings) == []
    sql.run(f"select pgbus.revoke_rights('{ROLE}')")
    cli = Cli(tmp_path, str(settings.database_url))
    status, out, err = cli.run("doctor", "http://127.0.0.1:9", PGBUS_SECRET=SECRET)
    assert (status, err) == (1, "")
    assert f'fail rights         role "{ROLE}" lacks usage on schema pgbus, execute on pgbus._good_stream' in out
    assert f"select pgbus.grant_publisher('{ROLE}') (docs/sql.md, Roles); if" in out and "give --stream" in out
    assert "fail address" in out
