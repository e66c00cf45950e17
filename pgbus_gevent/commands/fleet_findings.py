"""The checks of ``doctor`` that are about the workers together: their sessions, their steward, and Redis with its relay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..database import Database
from ..database.checks import Checks
from ..database.fleet import Worker
from ..database.schema import migrations
from ..errors import NO_RIGHT, DatabaseError, RedisRefused, RedisUnavailable
from ..settings.wake import is_redis
from .finding import FAIL, OK, WARN, Finding, lasting, rounded

if TYPE_CHECKING:
    from ..redis.checks import RedisChecks
    from ..redis.keys import Keys
    from ..redis.urls import RedisURL

GONE = 6.0
"""Seconds without a sign after which no worker counts as the steward. Even workers that hear no notifications take its place
after 5 s."""


def sessions(database: Database, checks: Checks) -> Finding:
    """Compare the sessions that a server takes with those that the database has left."""
    used, most = checks.connections()
    settings = database.settings
    listens = settings.wake != "poll"
    wanted = settings.workers * (settings.pool_size + listens) + listens
    text = f"{used} of {most} sessions are in use; a server with --workers {settings.workers} takes up to {wanted}"
    text += f": for each worker {settings.pool_size} in its pool"
    if listens:
        text += " and one that listens, and one more if a worker of it is the steward"
    figures = {"used": used, "maximum": most, "needed": wanted}
    if wanted > most:
        todo = "lower PGBUS_POOL_SIZE or PGBUS_WORKERS, or raise max_connections"
        return Finding("sessions", FAIL, text, todo, figures)
    if used + wanted > most:
        todo = "lower PGBUS_POOL_SIZE or raise max_connections, unless the sessions in use are those of this server"
        return Finding("sessions", WARN, text, todo, figures)
    return Finding("sessions", OK, text, figures=figures)


# the steward


def steward(database: Database, checks: Checks) -> Finding | None:
    """Name the steward. Return None if this role may not ask, because the check "rights" reports that."""
    if (checks.schema_version() or 0) < migrations()[-1].version:
        return None
    try:
        sign, workers = checks.steward(), database.fleet.workers()
    except DatabaseError as error:
        if error.sqlstate == NO_RIGHT:
            return None
        raise
    if sign.age is not None and sign.age <= GONE:
        text = f"{_name(_of_number(workers, sign.number))} is the steward; its last sign is {sign.age:.1f} s old"
        figures = {"sign_age_seconds": rounded(sign.age)}
        if sign.hears or database.settings.wake == "poll":
            return Finding("steward", OK, text, figures=figures)
        todo = (
            "see the check listen: without notifications, the steward asks for messages more often, and relays nothing"
        )
        return Finding("steward", WARN, f"{text}; it hears no notifications", todo, figures)
    if sign.number == 0:
        last = "there has been none"
    elif sign.age is None:
        last = "the last one has ended"
    else:
        last = f"the last sign of one is {lasting(sign.age)} old"
    if not workers:
        return Finding("steward", OK, f"none, because no worker runs; {last}")
    todo = "see the lines of pgbus_gevent.steward in the workers' logs: a role that serves needs pgbus.grant_server"
    return Finding("steward", WARN, f"none, though {_run(workers)}, so each sweeps for itself; {last}", todo)


def _of_number(workers: list[Worker], number: int) -> Worker | None:
    return next((worker for worker in workers if worker.facts.get("number") == str(number)), None)


def _name(worker: Worker | None) -> str:
    if worker is None:
        return "a worker that is not on the roll (yet)"
    return f"the worker {worker.host}, process {worker.pid}, which has run for {lasting(worker.age)},"


def _run(workers: list[Worker]) -> str:
    return "1 worker runs" if len(workers) == 1 else f"{len(workers)} workers run"


# Redis


def redis_findings(database: Database, *, database_answers: bool) -> Iterator[Finding]:
    """Check Redis, if the settings name one, and the relay, if the database answers, which knows the names in Redis."""
    if not is_redis(database.settings.wake):
        return
    try:
        from ..redis.checks import RedisChecks
        from ..redis.keys import Keys
        from ..redis.urls import parse
    except ImportError:
        todo = "pip install 'pgbus-gevent[redis]', here and where servers run"
        yield Finding("redis", FAIL, "redis-py is not installed", todo)
        return
    url = parse(database.settings.wake)
    checks = RedisChecks(url)
    reached = _reach(url, checks)
    yield reached
    if reached.level == FAIL or not database_answers:
        return
    try:
        keys = Keys(*database.fleet.redis_names(), sharded=url.kind == "cluster")
    except DatabaseError as error:
        # A role that does not serve may not know the names.
        yield Finding("relay", WARN, f"could not be checked, because the names in Redis are not known: {error}")
        return
    yield from _guarded("redis-rights", checks, keys)
    yield _relay(database, checks, keys)


def _reach(url: RedisURL, checks: RedisChecks) -> Finding:
    try:
        found = checks.servers()
    except RedisRefused as error:
        return Finding("redis", FAIL, error.reason, f"{error.todo}; until then, PostgreSQL is used")
    except RedisUnavailable as error:
        todo = "check PGBUS_WAKE, and that Redis runs and can be reached from here; until then, PostgreSQL is used"
        return Finding("redis", FAIL, str(error), todo)
    where = ", ".join(found.addresses)
    what = {
        "single": f"a single server, {where},",
        "sentinel": f"the master that the Sentinels know as {url.service!r}, {where},",
        "cluster": f"a cluster of {len(found.addresses)} masters, {where},",
    }[url.kind]
    version = f" ({found.version})" if found.version else ""
    text = f"{what} answers in {found.seconds * 1000:.1f} ms{version}"
    return Finding("redis", OK, text, figures={"answer_seconds": rounded(found.seconds)})


def _guarded(check: str, checks: RedisChecks, keys: Keys) -> Iterator[Finding]:
    try:
        found = checks.denials(keys)
    except RedisUnavailable as error:
        yield Finding(check, WARN, f"could not be checked: {error}")
        return
    if found.rights:
        todo = "grant this user the rights in docs/redis.md, The user in Redis"
        yield Finding(check, FAIL, f"this user has no right to {', '.join(found.rights)}", todo)
    elif found.unknown:
        yield Finding(check, WARN, f"could not be checked: {found.unknown}", "grant MULTI and DISCARD for this check")
    elif found.others:
        todo = "see docs/redis.md, Addresses and If Redis is gone: nothing is lost, but no relay can use it as it is"
        yield Finding(check, WARN, "; ".join(found.others), todo)
    else:
        yield Finding(check, OK, "this user may do what workers and relays do")


def _relay(database: Database, checks: RedisChecks, keys: Keys) -> Finding:
    try:
        came = checks.beacon(keys)
    except RedisRefused as error:
        return Finding("relay", FAIL, f"cannot subscribe as a worker does: {error.reason}", error.todo)
    except RedisUnavailable as error:
        return Finding("relay", WARN, f"could not be checked: {error}")
    workers, relay = _workers(database)
    if came is not None:
        hear = sum(bool(worker.facts.get("relayed")) for worker in workers)
        text = f"a beacon came within {came:.1f} s from {relay}; {hear} of {len(workers)} workers hear it"
        figures = {"beacon_seconds": rounded(came), "workers": len(workers), "hearing": hear}
        return Finding("relay", OK, text, figures=figures)
    if not workers:
        todo = "start `serve` or `pgbus-gevent relay` with the same PGBUS_WAKE"
        return Finding("relay", WARN, "no beacon came, because no worker runs", todo)
    todo = "see the lines of pgbus_gevent.relay in the workers' logs, and give all servers the same PGBUS_WAKE"
    return Finding("relay", FAIL, f"no beacon came, though {_run(workers)}: nobody relays to this Redis", todo)


def _workers(database: Database) -> tuple[list[Worker], str]:
    """Return the workers on the roll, and the name of the one that relays, which is the steward."""
    try:
        workers = database.fleet.workers()
        sign = Checks(database.pool).steward()
    except DatabaseError:
        return [], "a relay that the database cannot name"
    return workers, _name(_of_number(workers, sign.number)).rstrip(",")
