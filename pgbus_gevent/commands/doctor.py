"""The command ``doctor``: looks at what streams depend on, and says of each thing whether it is well, and what to do."""

from __future__ import annotations

import argparse
import resource
from collections.abc import Callable, Iterator
from time import monotonic, sleep
from typing import NamedTuple

from ..core.shown import json_line, visible
from ..database import Database
from ..database.checks import ABSURD, Checks
from ..database.schema import migrations
from ..errors import DatabaseError, DatabaseUnavailable, Deaf, SchemaMismatch, SchemaTooNew, SchemaTooOld
from ..settings.table import Settings
from .common import FAILED, Command, database_settings

OK, WARN, FAIL = "ok", "warn", "fail"

OLDEST_SERVER = 140000
_SPARE_DESCRIPTORS = 256  # beside those of streams; see serving.raise_descriptor_limit
_HEARS = 2.0  # seconds for a notification to come back
_SLOW = 0.05  # seconds of an answer

_DOCTOR = """\
Look at what the streams depend on: the database, its schema and the rights on it, LISTEN, clocks, limits, and what slows a
database down. A line for each, with what to do where something is not well.

Status 1 when something fails; warnings do not count. It changes nothing."""

_EXAMPLES = """\
examples:
  pgbus-gevent doctor
  pgbus-gevent doctor --database-url postgresql://app@db/shop --json | jq 'select(.level != "ok")'"""


_DEAF = "give a direct URL in PGBUS_LISTEN_URL, or set PGBUS_LISTEN=off to poll"


class Finding(NamedTuple):
    """``level`` is ok, warn or fail; ``todo`` is empty where all is well."""

    check: str
    level: str
    text: str
    todo: str = ""


def findings(settings: Settings) -> Iterator[Finding]:
    """What is found, one after the other. Without a database only this machine is looked at."""
    database = Database(settings, read_only=True)
    checks = Checks(database.pool)
    try:
        reached = _reach(checks)
        yield reached
        if reached.level != FAIL:
            denied = list(_guarded("rights", _denied, database, checks))
            yield from denied
            for name, check in _CHECKS.items():
                if not denied or name not in _INSIDE:
                    yield from _guarded(name, check, database, checks)
    finally:
        database.close()
    yield _descriptors(settings)


def _guarded(
    name: str, check: Callable[[Database, Checks], Finding | None], database: Database, checks: Checks
) -> Iterator[Finding]:
    try:
        found = check(database, checks)
    except DatabaseError as error:
        yield Finding(name, WARN, f"could not be looked at: {error}")
    else:
        if found is not None:
            yield found


def _reach(checks: Checks) -> Finding:
    try:
        number, name = checks.server()
        began = monotonic()
        checks.server()
    except DatabaseError as error:
        return Finding("database", FAIL, str(error), "check the URL, the password, and that the server runs")
    took = monotonic() - began
    text = f"PostgreSQL {name} answers in {took * 1000:.1f} ms"
    if number < OLDEST_SERVER:
        return Finding("database", FAIL, text, "PostgreSQL 14 or later is needed")
    if took > _SLOW:
        return Finding("database", WARN, text, "it is far away or busy; every publish waits that long")
    return Finding("database", OK, text)


def _denied(database: Database, checks: Checks) -> Finding | None:
    owner = checks.owner_who_denies()
    if owner is None:
        return None
    todo = f"ask its owner, {owner}, to grant this role what it needs: docs/sql.md, Roles"
    return Finding("rights", FAIL, "this role may do nothing in schema pgbus", todo)


def _role(database: Database, checks: Checks) -> Finding:
    if checks.in_recovery():
        return Finding("primary", FAIL, "this is a standby", "give the URL of the primary: a standby takes no LISTEN")
    return Finding("primary", OK, "this is a primary")


def _encoding(database: Database, checks: Checks) -> Finding:
    encoding = checks.encoding()
    if encoding == "UTF8":
        return Finding("encoding", OK, "UTF8")
    return Finding("encoding", FAIL, encoding, "make a database with encoding UTF8: names and data are Unicode")


def _schema(database: Database, checks: Checks) -> Finding:
    version = checks.schema_version()
    try:
        database.check_schema()
    except SchemaTooOld as error:
        text = f"version {version}, this release has {error.known}" if version else "there is none"
        return Finding("schema", FAIL, text, "run `pgbus-gevent migrate`, or start `serve`, which does")
    except SchemaTooNew as error:
        text = f"version {version}, which serves releases from {error.serves} on; this one knows {error.known}"
        return Finding("schema", FAIL, text, "install the newer release")
    except SchemaMismatch as error:
        return Finding("schema", FAIL, f"version {version}", str(error))
    newest = migrations()[-1].version
    if version is not None and version > newest:
        return Finding("schema", OK, f"version {version}, a newer release's, which still serves this one ({newest})")
    return Finding("schema", OK, f"version {version}")


def _rights(database: Database, checks: Checks) -> Finding | None:
    if (checks.schema_version() or 0) < migrations()[-1].version:
        return None
    missing = checks.missing_rights()
    if not missing:
        return Finding("rights", OK, "this role may publish, read and prune")
    text = f"this role has no {', '.join(missing)}"
    if any("select on pgbus.messages" in right for right in missing):
        return Finding("rights", FAIL, text, "let the owner call pgbus.grant_server for it, see docs/sql.md")
    return Finding(
        "rights", WARN, text, "fine for a role that only does the rest; else see docs/sql.md, docs/retention.md"
    )


def _ids(database: Database, checks: Checks) -> Finding | None:
    ids = checks.ids()
    if ids is None:
        return None
    if ids.fault is None:
        return Finding("ids", OK, f"the sequence is at {ids.given}, not behind the tables")
    absurd = ids.highest > max(ids.given, ids.clock) + ABSURD
    return Finding("ids", FAIL if absurd else WARN, ids.fault, "see docs/sql.md, When the database goes back in time")


def _locks(database: Database, checks: Checks) -> Finding | None:
    if (checks.schema_version() or 0) < migrations()[-1].version:
        return None
    # Twice, as one that is about to publish has its lock for an instant before.
    found = set(checks.squatters())
    if found:
        sleep(0.2)
        found &= set(checks.squatters())
    if not found:
        return Finding("locks", OK, "nobody keeps a lock of ours for nothing")
    text = "; ".join(
        f"{one.holder} (role {one.role}, application {one.application!r}, {one.state}) keeps {one.lock}"
        for one in sorted(found)
    )
    return Finding("locks", FAIL, text, f"end it, with {min(found).remedy}")


def _listen(database: Database, checks: Checks) -> Finding | None:
    if not database.settings.listen:
        return Finding("listen", OK, "off (listen=False): the database is polled")
    if checks.schema_version() is None:
        return None  # the channels' names are in it
    try:
        session = database.listen()
    except Deaf as error:
        return Finding("listen", FAIL, f"no notification comes back: {error.cause}", _DEAF)
    except DatabaseUnavailable as error:
        return Finding("listen", FAIL, str(error), "check PGBUS_LISTEN_URL, and max_connections")
    try:
        began = monotonic()
        if session.hears(_HEARS):
            return Finding("listen", OK, f"a notification comes back in {(monotonic() - began) * 1000:.1f} ms")
        return Finding("listen", FAIL, f"no notification comes back: {session.cause}", _DEAF)
    finally:
        session.close()


def _pooler(database: Database, checks: Checks) -> Finding | None:
    found = checks.pooler()
    if not found.is_between:
        return None
    text = "a pooler is in between"
    if not found.takes_settings:
        text += ", which takes no settings at the start of a session: they go along with each statement"
    return Finding("pooler", OK, text)


def _sessions(database: Database, checks: Checks) -> Finding:
    used, most = checks.connections()
    wanted = database.settings.workers * (database.settings.pool_size + 1)
    text = f"{used} sessions of {most}; a server of these settings takes up to {wanted}"
    if wanted > most:
        return Finding("sessions", FAIL, text, "lower PGBUS_POOL_SIZE or PGBUS_WORKERS, or raise max_connections")
    if used + wanted > most:
        return Finding(
            "sessions", WARN, text, "unless they are its own: lower PGBUS_POOL_SIZE, or raise max_connections"
        )
    return Finding("sessions", OK, text)


def _clock(database: Database, checks: Checks) -> Finding:
    offset = checks.clock_offset()
    text = f"the server's is {abs(offset) * 1000:.0f} ms {'ahead of' if offset > 0 else 'behind'} this machine's"
    if abs(offset) > 1.0:
        return Finding("clock", WARN, text, "let both keep time by NTP: signed names expire by this machine's clock")
    return Finding("clock", OK, text)


def _transactions(database: Database, checks: Checks) -> Finding:
    oldest = checks.oldest_transaction()
    if oldest is None or oldest.seconds < 60:
        return Finding("transactions", OK, "none is old")
    who = f"process {oldest.pid} ({oldest.application or 'without a name'}, {oldest.state})"
    text = f"{who} is in one for {_lasting(oldest.seconds)}"
    if oldest.seconds < 600:
        return Finding("transactions", OK, text)
    todo = "end it if nobody needs it: nothing that was removed since can be vacuumed, and reads get slower"
    return Finding("transactions", WARN, text, todo)


def _queue(database: Database, checks: Checks) -> Finding:
    usage = checks.queue_usage()
    text = f"{usage:.1%} of the server's queue is in use"
    if usage < 0.05:
        return Finding("notifications", OK, text)
    todo = "find the session that has LISTENed and does not read (the server's log names it): when it is full, commits fail"
    return Finding("notifications", FAIL if usage > 0.5 else WARN, text, todo)


def _dead_rows(database: Database, checks: Checks) -> Finding | None:
    rows = checks.rows()
    if rows is None:
        return None
    vacuumed = "never vacuumed" if rows.vacuumed is None else f"vacuumed {_lasting(rows.vacuumed)} ago"
    text = f"about {rows.live:,} messages, {rows.dead:,} dead rows, {vacuumed}"
    if not rows.autovacuum:
        return Finding("vacuum", WARN, f"{text}; autovacuum is off", "turn it on, at least for pgbus.messages")
    if rows.dead > 100_000 and rows.dead > 2 * rows.live:
        return Finding(
            "vacuum", WARN, text, "see transactions above; else let autovacuum run more often on pgbus.messages"
        )
    return Finding("vacuum", OK, text)


def _retention(database: Database, checks: Checks) -> Finding | None:
    if (checks.schema_version() or 0) < migrations()[-1].version:
        return None
    try:
        told = database.pruning.told()
    except DatabaseError as error:
        if error.sqlstate == "42501":
            return None  # it is for who prunes; `rights` tells of it
        raise
    if len(told) < 2:
        return None
    text = "; ".join(f"{teller} has {kept}" for kept, teller in told)
    return Finding("retention", WARN, f"servers disagree: {text}", "give all of them the same: the longest applies")


_CHECKS: dict[str, Callable[[Database, Checks], Finding | None]] = {
    "primary": _role,
    "encoding": _encoding,
    "schema": _schema,
    "rights": _rights,
    "ids": _ids,
    "locks": _locks,
    "retention": _retention,
    "pooler": _pooler,
    "listen": _listen,
    "sessions": _sessions,
    "clock": _clock,
    "transactions": _transactions,
    "notifications": _queue,
    "vacuum": _dead_rows,
}


_INSIDE = ("schema", "rights", "ids", "locks", "retention", "listen", "vacuum")
"""Checks that look into the schema."""


def _descriptors(settings: Settings) -> Finding:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.max_connections + _SPARE_DESCRIPTORS
    if hard == resource.RLIM_INFINITY or hard >= wanted:
        limit = "unlimited" if hard == resource.RLIM_INFINITY else f"{hard:,}"
        return Finding("descriptors", OK, f"{limit} files may be open; {wanted:,} are enough")
    text = f"{hard:,} files may be open, fewer than the {wanted:,} of {settings.max_connections:,} connections"
    return Finding("descriptors", WARN, text, "raise it (ulimit -Hn, LimitNOFILE=), or lower PGBUS_MAX_CONNECTIONS")


def _lasting(seconds: float) -> str:
    for name, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {name}"
    return f"{seconds:.0f} seconds"


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object a line, with check, level, text and todo")


def _run(arguments: argparse.Namespace, settings: Settings) -> int:
    failed = False
    with database_settings(settings) as settings:
        for found in findings(settings):
            failed = failed or found.level == FAIL
            if arguments.json:
                print(json_line(found._asdict()), flush=True)
                continue
            print(f"{found.level:5}{found.check:15}{visible(found.text)}", flush=True)
            if found.todo:
                print(f"{'':20}→ {visible(found.todo)}", flush=True)
    return FAILED if failed else 0


DOCTOR = Command(
    "doctor",
    "look at what the streams depend on, and say what to do",
    _DOCTOR,
    _EXAMPLES,
    ("database_url", "listen_url", "listen", "data_dir", "workers", "max_connections"),
    _add,
    _run,
)
