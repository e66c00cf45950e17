"""The checks of ``doctor``: each looks at one thing that the streams depend on, and says what to do about a problem."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator, Sequence
from time import monotonic, sleep
from typing import Any

from ..core.shown import json_line
from ..database import Database
from ..database.checks import ABSURD, Checks
from ..database.schema import migrations
from ..errors import NO_RIGHT, DatabaseError, DatabaseUnavailable, Deaf, SchemaMismatch, SchemaTooNew, SchemaTooOld
from ..settings.table import Settings
from .finding import FAIL, OK, WARN, Finding, lasting, rounded
from .fleet_findings import redis_findings, sessions, steward
from .rights_findings import reach, rights

_SPARE_DESCRIPTORS = 256  # descriptors for everything but streams
_REPLAYS_WITHIN = 2.0  # seconds
SERVER = ("publisher", "server", "pruner")
"""The grants of a role that serves, prunes and publishes, as that of a server does by default."""

_DEAF = "set PGBUS_LISTEN_URL to a direct URL, or set PGBUS_WAKE=poll"


def findings(settings: Settings, grants: Sequence[str] = SERVER) -> Iterator[Finding]:
    """Run the checks, and yield the findings. If the database cannot be reached, only Redis and this machine are checked.

    ``grants`` are those of docs/sql.md that the role is meant to have.
    """
    database = Database(settings, read_only=True)
    checks = Checks(database.pool)
    try:
        reached = reach(checks, settings)
        yield reached
        if reached.level != FAIL:
            lacks = list(rights(checks, grants))
            yield from lacks
            denied = any(found.level == FAIL for found in lacks)
            for name, check in _CHECKS.items():
                yield from _guarded(name, check, database, checks, denied=denied)
        yield from redis_findings(database, database_answers=reached.level != FAIL)
    finally:
        database.close()
    yield _descriptors(settings)


def _guarded(
    name: str,
    check: Callable[[Database, Checks], Finding | None],
    database: Database,
    checks: Checks,
    *,
    denied: bool,
) -> Iterator[Finding]:
    try:
        found = check(database, checks)
    except DatabaseError as error:
        if error.sqlstate != NO_RIGHT:
            yield Finding(name, WARN, f"could not be checked: {error}")
        elif not denied:  # otherwise the check "rights" has named what is missing
            role, _ = checks.role()
            text = f"could not be checked, because role {json_line(role)} lacks a right: {error}"
            yield Finding(name, FAIL, text, "grant it (docs/sql.md, Roles)")
    else:
        if found is not None:
            yield found


def _role(database: Database, checks: Checks) -> Finding:
    if checks.in_recovery():
        return Finding(
            "primary", FAIL, "this is a standby", "give the URL of the primary: a standby does not support LISTEN"
        )
    return Finding("primary", OK, "this is a primary")


def _encoding(database: Database, checks: Checks) -> Finding:
    encoding = checks.encoding()
    if encoding == "UTF8":
        return Finding("encoding", OK, "UTF8")
    return Finding("encoding", FAIL, encoding, "create a database with encoding UTF8: names and data are Unicode")


def _schema(database: Database, checks: Checks) -> Finding:
    version = checks.schema_version()
    try:
        database.check_schema()
    except SchemaTooOld as error:
        text = f"version {version}, but this release needs {error.known}" if version else "there is none"
        return Finding("schema", FAIL, text, "run `pgbus-gevent migrate`, or start `serve`, which migrates too")
    except SchemaTooNew as error:
        text = (
            f"version {version} supports releases that know {error.serves} or later, but this one knows {error.known}"
        )
        return Finding("schema", FAIL, text, "install the newer release here too")
    except SchemaMismatch as error:
        return Finding("schema", FAIL, f"version {version}", str(error))
    newest = migrations()[-1].version
    text = f"version {version}"
    if version is not None and version > newest:
        text += f" of a newer release, which still supports this one ({newest})"
    return Finding("schema", OK, text, figures={"version": version, "known": newest})


def _ids(database: Database, checks: Checks) -> Finding | None:
    ids = checks.ids()
    if ids is None:
        return None
    if ids.fault is None:
        return Finding("ids", OK, f"the sequence is at {ids.given}, and not behind the tables")
    absurd = ids.highest > max(ids.given, ids.clock) + ABSURD
    return Finding("ids", FAIL if absurd else WARN, ids.fault, "read docs/sql.md, When the database goes back in time")


def _locks(database: Database, checks: Checks) -> Finding | None:
    if (checks.schema_version() or 0) < migrations()[-1].version:
        return None
    # Look twice, because a publisher holds the lock for an instant before it publishes.
    found = set(checks.squatters())
    if found:
        sleep(0.2)
        found &= set(checks.squatters())
    if not found:
        return Finding("locks", OK, "no session holds a lock of pgbus without publishing")
    text = "; ".join(
        f"{one.holder} (role {one.role}, application {one.application!r}, {one.state}) holds {one.lock}"
        for one in sorted(found)
    )
    return Finding("locks", FAIL, text, f"end it with {min(found).remedy}")


def _listen(database: Database, checks: Checks) -> Finding | None:
    if database.settings.wake == "poll":
        return Finding("listen", OK, "off (wake=poll): the database is polled")
    if checks.schema_version() is None:
        return None  # the names of the channels are in the schema
    try:
        session = database.listen()
    except Deaf as error:
        return Finding("listen", FAIL, f"no notification comes back: {error.cause}", _DEAF)
    except DatabaseUnavailable as error:
        return Finding("listen", FAIL, str(error), "check PGBUS_LISTEN_URL, and the server's max_connections")
    try:
        for _ in range(2):  # a busy server may only be late once
            began = monotonic()
            if session.hears():
                took = monotonic() - began
                text = f"a notification comes back in {took * 1000:.1f} ms"
                return Finding("listen", OK, text, figures={"answer_seconds": rounded(took)})
        return Finding("listen", FAIL, f"no notification comes back: {session.cause}", _DEAF)
    finally:
        session.close()


def _pooler(database: Database, checks: Checks) -> Finding | None:
    found = checks.pooler()
    if not found.is_between:
        return None
    text = "the URL leads to a pooler"
    if not found.takes_settings:
        text += ", which accepts no settings at the start of a session, so they are sent with each statement"
    return Finding("pooler", OK, text)


def _clock(database: Database, checks: Checks) -> Finding:
    offset = checks.clock_offset()
    text = f"the server's clock is {abs(offset) * 1000:.0f} ms {'ahead of' if offset > 0 else 'behind'} this machine's"
    figures = {"offset_seconds": rounded(offset)}
    if abs(offset) > 1.0:
        return Finding(
            "clock", WARN, text, "set both clocks by NTP: signed names expire by this machine's clock", figures
        )
    return Finding("clock", OK, text, figures=figures)


def _standby(database: Database, checks: Checks) -> Finding | None:
    if database.standby is None:
        return None
    there = Checks(database.standby.pool)
    try:
        if not there.in_recovery():
            return Finding("standby", FAIL, "it is not a standby", "give the URL of a standby in PGBUS_REPLICA_URL")
        if there.cluster() != checks.cluster():
            todo = "give the same database on a standby of this primary in PGBUS_REPLICA_URL"
            return Finding("standby", FAIL, "it is a standby of another server, or another database", todo)
        position, began = checks.position(), monotonic()
        while not (replayed := there.has_replayed(position)) and monotonic() - began < _REPLAYS_WITHIN:
            sleep(0.01)
    except DatabaseError as error:
        return Finding("standby", WARN, str(error), "check PGBUS_REPLICA_URL; until it answers, the primary is read")
    if replayed:
        took = monotonic() - began
        figures = {"replay_seconds": rounded(took)}
        return Finding("standby", OK, f"it replays what the primary has within {took:.2f} s", figures=figures)
    todo = "look at pg_stat_replication on the primary, and for paused or delayed replay on the standby"
    return Finding("standby", WARN, f"after {_REPLAYS_WITHIN:.0f} s, it has not replayed what the primary has", todo)


def _transactions(database: Database, checks: Checks) -> Finding:
    oldest = checks.oldest_transaction()
    figures = {"oldest_seconds": None if oldest is None else rounded(oldest.seconds)}
    if oldest is None or oldest.seconds < 60:
        return Finding("transactions", OK, "no transaction is older than a minute", figures=figures)
    session = f"process {oldest.pid} ({oldest.application or 'without a name'}, {oldest.state})"
    text = f"{session} has had a transaction open for {lasting(oldest.seconds)}"
    if oldest.seconds < 600:
        return Finding("transactions", OK, text, figures=figures)
    todo = "end it if it is not needed: rows that were removed since cannot be vacuumed, and reads get slower"
    return Finding("transactions", WARN, text, todo, figures)


def _queue(database: Database, checks: Checks) -> Finding:
    usage = checks.queue_usage()
    text = f"{usage:.1%} of the server's queue of notifications is in use"
    figures = {"used_ratio": usage}
    if usage < 0.05:
        return Finding("notifications", OK, text, figures=figures)
    todo = (
        "end the session that LISTENs and does not read (the server's log names it): if the queue is full, commits fail"
    )
    return Finding("notifications", FAIL if usage > 0.5 else WARN, text, todo, figures)


def _dead_rows(database: Database, checks: Checks) -> Finding | None:
    rows = checks.rows()
    if rows is None:
        return None
    vacuumed = "never vacuumed" if rows.vacuumed is None else f"vacuumed {lasting(rows.vacuumed)} ago"
    text = f"about {rows.live:,} messages, {rows.dead:,} dead rows, {vacuumed}"
    figures = {"messages": rows.live, "dead_rows": rows.dead}
    if not rows.autovacuum:
        todo = "turn it on, at least for pgbus.messages"
        return Finding("vacuum", WARN, f"{text}; autovacuum is off", todo, figures)
    if rows.dead > 100_000 and rows.dead > 2 * rows.live:
        todo = "see transactions above; if none is old, let autovacuum run more often on pgbus.messages"
        return Finding("vacuum", WARN, text, todo, figures)
    return Finding("vacuum", OK, text, figures=figures)


def _retention(database: Database, checks: Checks) -> Finding | None:
    stated = _as_a_pruner(checks, database.pruning.stated)
    if stated is None or len(stated) < 2:
        return None
    text = "; ".join(f"{teller} has {kept}" for kept, teller in stated)
    return Finding(
        "retention", WARN, f"servers disagree: {text}", "give all of them the same retention: the longest applies"
    )


def _overdue(database: Database, checks: Checks) -> Finding | None:
    found = _as_a_pruner(checks, database.pruning.overdue)
    if found is None:
        return None
    part = "" if found.all else f" (of the {found.streams:,} streams whose names sort last)"
    figures = {"overdue_seconds": rounded(found.seconds)}
    if found.seconds <= max(60.0, 6 * database.settings.prune_interval):
        text = f"no message is long beyond its retention{part}"
        return None if found.all else Finding("pruning", OK, text, figures=figures)
    text = f"the oldest message of {json_line(found.stream)} is {lasting(found.seconds)} beyond its retention{part}"
    todo = "see the warnings about old messages in the servers' logs, and docs/retention.md"
    return Finding("pruning", WARN, text, todo, figures)


def _as_a_pruner(checks: Checks, ask: Callable[[], Any]) -> Any:
    """Return None if only a role that prunes may ask, because the check "rights" reports that."""
    if (checks.schema_version() or 0) < migrations()[-1].version:
        return None
    try:
        return ask()
    except DatabaseError as error:
        if error.sqlstate == "42501":
            return None
        raise


_CHECKS: dict[str, Callable[[Database, Checks], Finding | None]] = {
    "primary": _role,
    "encoding": _encoding,
    "schema": _schema,
    "ids": _ids,
    "locks": _locks,
    "retention": _retention,
    "pruning": _overdue,
    "pooler": _pooler,
    "steward": steward,
    "listen": _listen,
    "sessions": sessions,
    "clock": _clock,
    "standby": _standby,
    "transactions": _transactions,
    "notifications": _queue,
    "vacuum": _dead_rows,
}


def _descriptors(settings: Settings) -> Finding:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.max_connections + _SPARE_DESCRIPTORS
    figures = {"limit": None if hard == resource.RLIM_INFINITY else hard, "needed": wanted}
    if hard == resource.RLIM_INFINITY or hard >= wanted:
        limit = "unlimited" if hard == resource.RLIM_INFINITY else f"{hard:,}"
        text = f"the limit of open files is {limit}; {wanted:,} are needed"
        return Finding("descriptors", OK, text, figures=figures)
    text = f"the limit of open files is {hard:,}, but {settings.max_connections:,} connections need {wanted:,}"
    todo = "raise it (ulimit -Hn, LimitNOFILE=), or lower PGBUS_MAX_CONNECTIONS"
    return Finding("descriptors", WARN, text, todo, figures)
