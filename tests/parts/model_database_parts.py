"""A history on the real PostgreSQL, step by step: see model_parts.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any

import gevent
import psycopg2
from database_parts import PATIENCE, Session, until
from gevent.socket import wait_read
from model_parts import (
    LONG_AGO,
    SERIALIZATION,
    SESSIONS,
    ModelSide,
    Seen,
    Side,
    Start,
    Step,
    Taken,
    differences,
    error_code,
    heard,
    shown_answer,
)

from pgbus_gevent.core.buckets import ALL_BUCKETS, bucket_of, channel
from pgbus_gevent.database.connect import translate
from pgbus_gevent.database.pruning import Pruned
from pgbus_gevent.database.queries import Queries
from pgbus_gevent.database.stewardship import Stewardship

OLD = 4.0
"""Seconds after which a wait may lose its place in the queue: see ``pgbus._wait_for``. A history ends before that."""

_STATE = """
select (select coalesce(json_agg(json_build_array(m.stream, m.msg_id, m.prev_id, m.event, m.data, m.visible_to, m.exclude, m.key)
                                 order by m.msg_id, m.stream), '[]') from pgbus.messages m),
       (select coalesce(json_agg(json_build_array(h.stream, h.msg_id)), '[]') from pgbus.horizons h),
       (select i.last_value from pgbus.message_ids i), (select f.last_value from pgbus.floor f),
       coalesce(pg_sequence_last_value('pgbus.forgotten'), 0),
       (select coalesce(json_agg(e.id), '[]') from pgbus.ephemerals e),
       (select coalesce(json_agg(json_build_array(a.pid, a.backend_xid::text::bigint)), '[]') from pg_stat_activity a
        where a.backend_xid is not null and a.pid = any(%s)), pg_notify('mark', '')
"""
_MARK = "mark"
_OLDER = """
update pgbus.messages set created_at = created_at - make_interval(secs => {0});
update pgbus.horizons set pruned_at = pruned_at - make_interval(secs => {0});
update pgbus.ephemerals set created_at = created_at - make_interval(secs => {0});
update pgbus.revocations set revoked_at = revoked_at - make_interval(secs => {0});
select setval('pgbus.steward_sign', 0)
"""


class OnePool:
    """Lends one connection, whatever transaction is open there."""

    answered = 0.0

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    @contextmanager
    def connection(self, patience: object = None) -> Iterator[Any]:
        yield self._connection


class Hearing:
    """A session that LISTENs. The watcher sends a mark with each look at the state, which shows that all before it has come."""

    def __init__(self, session: Session, names: list[str]) -> None:
        self._session = session
        session.run("; ".join(f'listen "{name}"' for name in [_MARK, *names]))

    def take(self) -> list[tuple[str, str]]:
        """Return what came before the mark."""
        connection, end = self._session.connection, monotonic() + PATIENCE
        found: list[tuple[str, str]] = []
        while not any(name == _MARK for name, _ in found):
            assert monotonic() < end, "the mark did not come"
            connection.poll()
            found += [(notify.channel, notify.payload) for notify in connection.notifies]
            connection.notifies.clear()
            if not found or found[-1][0] != _MARK:
                with suppress(TimeoutError):
                    wait_read(connection.fileno(), timeout=0.1)
        return found[:-1]


class RealSide(Side):
    """A history on the real database. It is alone there. ``watcher`` looks from outside."""

    def __init__(self, open_session: Callable[[], Session], streams: list[str]) -> None:
        self.streams = streams
        self._connect(open_session)
        self._begin(streams)
        self._listen()

    def move(self, open_session: Callable[[], Session]) -> None:
        """Go on in new sessions, perhaps on another server, which has the same database."""
        self._connect(open_session)
        self._listen()

    def _connect(self, open_session: Callable[[], Session]) -> None:
        self._open = open_session
        self.watcher = open_session()
        self.sessions = [self._new() for _ in range(SESSIONS)]
        self.running: dict[int, tuple[Any, float]] = {}
        self._waits: dict[int, list[int]] = {}

    def _listen(self) -> None:
        doorbell, control = self.watcher.run("select doorbell, control from pgbus.channels()")[0]
        self.names: dict[str, Any] = {control: "control"}
        self.names.update({channel(doorbell, bucket): bucket for bucket in ALL_BUCKETS})
        few = sorted({channel(doorbell, bucket_of(name)) for name in self.streams[:2]})
        self.ears = [Hearing(self._open(), list(self.names)), Hearing(self._open(), [control, *few])]

    def begin(self) -> None:
        """Begin a new history: without messages, without transactions."""
        self.end()
        for session in self.sessions:
            session.run("rollback")
        self._begin(self.streams)
        self._seen({})

    def end(self) -> None:
        """End the statements that still wait. A connection cannot be closed before."""
        for number in list(self.running):
            self.watcher.run("select pg_cancel_backend(%s)", self.sessions[number].pid)
            self.running.pop(number)[0].join(PATIENCE)

    def _begin(self, streams: list[str]) -> None:
        self._clear()
        self.start = self._start(streams)
        super().__init__(self.start)
        self.numbered = 0
        self._impatient: set[int] = set()

    def _clear(self) -> None:
        self.watcher.run(
            "delete from pgbus.messages; delete from pgbus.horizons; delete from pgbus.ephemerals; "
            "delete from pgbus.revocations; select setval('pgbus.steward', 0), setval('pgbus.steward_sign', 0), "
            "pgbus.broadcast('start', 'x')"
        )
        self.watcher.run("delete from pgbus.messages")

    def _start(self, streams: list[str]) -> Start:
        locks = {name: int(self.watcher.call("_lock_number", name)) for name in streams}
        last, floor, forgotten, ephemeral = self.watcher.run(
            "select (select last_value from pgbus.message_ids), (select last_value from pgbus.floor), "
            "coalesce(pg_sequence_last_value('pgbus.forgotten'), 0), nextval('pgbus.ephemeral_ids') + 1"
        )[0]
        return Start(streams, locks, last, floor, forgotten, ephemeral)

    def _new(self) -> Session:
        session = self._open()
        session.run("set deadlock_timeout = '20ms'")
        return session

    # a step

    def take(self, step: Step) -> Seen:
        name, number, *arguments = step
        self.ended = []
        self._impatient = {number} if name in ("impatient", "cancel") else set()
        answers: dict[int, Any] = {}
        job = getattr(self, f"do_{name}")(number, *arguments)
        if job is not None:
            self.running[number] = (gevent.spawn(self._answer, job), monotonic())
        self._settle(answers)
        return self._seen(answers)

    def is_too_slow(self) -> bool:
        """Whether a wait has become so long that it may lose its place."""
        return any(monotonic() - began > OLD for _, began in self.running.values())

    def _answer(self, job: Callable[[], Any]) -> Any:
        try:
            return job()
        except psycopg2.Error as error:
            return error_code(translate(error))

    def _settle(self, answers: dict[int, Any]) -> None:
        """Wait until each statement has ended, or waits for a session that runs none."""

        end = monotonic() + PATIENCE
        pause = 0.002
        while True:
            assert monotonic() < end, f"a statement neither ends nor waits: {self._waits}"
            gevent.wait([job for job, _ in self.running.values()], timeout=pause, count=1)
            pause = min(0.05, pause * 2)
            for number, (job, _) in list(self.running.items()):
                if job.ready():
                    del self.running[number]
                    answers[number] = job.get()
            self._waits = self._look()
            blocked = set(self.running)
            # A session that waits only for others that wait is in a deadlock, which the server will end.
            waiting = [n for n in blocked if self._waits[n] and self._roots(n) - blocked]
            if len(waiting) == len(blocked) and not self._impatient & blocked:
                return

    def _look(self) -> dict[int, list[int]]:
        by_pid = {session.pid: n for n, session in enumerate(self.sessions)}
        pids = [self.sessions[n].pid for n in self.running]
        rows = self.watcher.run("select p, pg_blocking_pids(p) from unnest(%s::integer[]) p", pids) if pids else []
        return {by_pid[pid]: sorted({by_pid[one] for one in blocking if one in by_pid}) for pid, blocking in rows}

    def _roots(self, number: int) -> set[int]:
        """Return the sessions for which one waits, also through others."""
        found: set[int] = set()
        waiting = [number]
        while waiting:
            for one in self._waits.get(waiting.pop(), []):
                if one not in found:
                    found.add(one)
                    waiting.append(one)
        return found

    def _seen(self, answers: dict[int, Any]) -> Seen:
        pids = [session.pid for session in self.sessions]
        rows, horizons, last, floor, forgotten, ephemerals, having_xids, _ = self.watcher.run(_STATE, pids)[0]
        self.note(floor)
        self._last = last
        shown = self.ids.shown
        self.table = [(row[0], row[1]) for row in rows]
        xids = dict(having_xids)
        return {
            "answers": sorted((n, self._shown(answer)) for n, answer in answers.items()),
            "waits": self._waits,
            "heard": [heard(ear.take(), self.names, self.ids, self.first_ephemeral) for ear in self.ears],
            "rows": [(stream, shown(id), shown(prev), *rest) for stream, id, prev, *rest in rows],
            "horizons": sorted((name, shown(id)) for name, id in horizons),
            "last": shown(last),
            "short": self._is_short,
            "forgotten": shown(forgotten),
            "ephemerals": sorted(number - self.first_ephemeral for number in ephemerals),
            "writers": [n for n, session in enumerate(self.sessions) if session.pid in xids],
            "ended": self.ended,
            "open": [any(xid <= bound for xid in xids.values()) for bound in self.bounds] if self.ended else [],
        }

    def _shown(self, answer: Any) -> Any:
        if type(answer) is int:
            return self.ids.shown(answer)
        return shown_answer(answer, self.ids.shown)

    # the actions: each returns what is to be run in the session

    def _run(self, n: int, statement: str, *arguments: Any) -> Callable[[], Any]:
        def job() -> Any:
            rows = self.sessions[n].run(statement, *arguments)
            return rows[0][0] if rows and rows[0][0] != "" else None

        return job

    def do_begin(self, n: int, isolation: str) -> Any:
        return self._run(n, f"begin isolation level {isolation}")

    def do_commit(self, n: int) -> Any:
        return self._run(n, "commit")

    def do_rollback(self, n: int) -> Any:
        return self._run(n, "rollback")

    def do_savepoint(self, n: int, name: str) -> Any:
        return self._run(n, f"savepoint {name}")

    def do_rollback_to(self, n: int, name: str) -> Any:
        return self._run(n, f"rollback to {name}")

    def do_release(self, n: int, name: str) -> Any:
        return self._run(n, f"release {name}")

    def do_immediate(self, n: int) -> Any:
        # With a snapshot, as each statement of the model has one.
        return self._run(n, "select 1 where false; set constraints all immediate")

    def do_broadcast(self, n: int, way: str, stream: int, size: str, key: str | None, label: str | None) -> Any:
        self.numbered += 1
        function = "broadcast" if way == "now" else "broadcast_on_commit"
        arguments = (self.streams[stream], self.data(size, self.numbered), label, label, None, key)
        return self._run(n, f"select pgbus.{function}(%s, %s, %s, %s, %s, %s)", *arguments)

    def do_impatient(self, n: int, stream: int) -> Any:
        self.numbered += 1
        arguments = self.streams[stream], self.data("small", self.numbered)

        def job() -> Any:
            session = self.sessions[n]
            try:
                session.run("set lock_timeout = '50ms'")
                found = session.one("select pgbus.broadcast(%s, %s)", *arguments)
            finally:
                with suppress(psycopg2.errors.InFailedSqlTransaction):
                    session.run("set lock_timeout = 0")
            return found

        return job

    def do_many(self, n: int, stream: int, keys: list[str | None] | None, count: int) -> Any:
        data = [self.data("small", self.numbered + place) for place in range(count)]
        self.numbered += count
        statement = "select pgbus.broadcast_many(%s, %s::text[], null, null, null, %s::text[])"
        return self._run(n, statement, self.streams[stream], data, keys)

    def do_ephemeral(self, n: int, stream: int, size: str) -> Any:
        self.numbered += 1
        arguments = self.streams[stream], self.data(size, self.numbered)
        return self._run(n, "select pgbus.broadcast_ephemeral(%s, %s, 'hint')", *arguments)

    def do_bad(self, n: int, arguments: dict[str, Any]) -> Any:
        named = {"stream": "a", "data": "x", **arguments}
        parts = ", ".join(f"{name} => %s" for name in named)
        return self._run(n, f"select pgbus.broadcast({parts})", *named.values())

    def do_disconnect(self, n: int, owner: str) -> Any:
        return self._run(n, "select pgbus.disconnect(%s)", owner)

    def _parts(self, n: int) -> tuple[Queries, Stewardship]:
        pool: Any = OnePool(self.sessions[n].connection)
        return Queries(pool), Stewardship(pool)

    def do_ask(self, n: int, kind: str, *numbers: int) -> Any:
        return lambda: self.ask(kind, *self._parts(n), numbers)

    def do_ring_for(self, n: int, back: int) -> Any:
        ids = self.everything()[-back - 1 :]
        return lambda: self._parts(n)[1].ring_for(ids)

    def do_ring_everybody(self, n: int) -> Any:
        return lambda: self._parts(n)[1].ring_everybody()

    def do_ring_control(self, n: int) -> Any:
        return lambda: self._parts(n)[0].ring_control()

    def do_prune(self, n: int, age: float, counts: list[int | None], limit: int) -> Any:
        def job() -> Any:
            rows = self.sessions[n].run(
                "select p.stream, p.removed, p.horizon, extract(epoch from p.overdue)::float8 from pgbus.prune("
                "%s::text[], array_fill(make_interval(secs => %s), array[%s]), %s::bigint[], %s) p",
                *(self.streams, age, len(self.streams), counts, limit),
            )
            return [Pruned(*row) for row in rows]

        return job

    def do_forget(self, n: int, unused: float, limit: int) -> Any:
        return self._run(n, "select pgbus._forget(null, make_interval(secs => %s), %s)", unused, limit)

    def do_cancel(self, n: int) -> None:
        self.watcher.run("select pg_cancel_backend(%s)", self.sessions[n].pid)

    def do_kill(self, n: int) -> None:
        pid = self.sessions[n].pid
        self.watcher.run("select pg_terminate_backend(%s)", pid)
        until(
            lambda: not self.watcher.run("select 1 from pg_stat_activity where pid = %s", pid), "the backend has ended"
        )
        self._killed(n)

    def _killed(self, n: int) -> None:
        if n in self.running:
            self.running[n][0].join(PATIENCE)
        self.sessions[n] = self._new()

    def do_age(self, n: int) -> None:
        self.watcher.run(_OLDER.format(LONG_AGO))

    def do_lose(self, n: int, stream: int, place: int) -> None:
        id = self.id(stream, place)
        if id:
            self.watcher.run("select setval('pgbus.message_ids', %s)", id)

    def do_jumped(self, n: int) -> None:
        self.watcher.run("truncate pgbus.epoch; alter sequence pgbus.jumped restart")


def take(real: RealSide, model: ModelSide, step: Step) -> Taken | None:
    """Take a step on both sides. Raises AssertionError if they show something different.

    Returns None if they cannot be compared any more: a transaction has failed to serialize, nobody knows how many ids it had drawn,
    and a session that it woke has drawn some after it.
    """
    bells, waiting = model.bells_held, len(model.running)
    seen = real.take(step)
    if len(seen["answers"]) > 1 and any(
        model.is_serializable(n) and end == SERIALIZATION for n, end in seen["answers"]
    ):
        return None
    expected = model.take(step, seen)
    races = bool(bells) and len(expected["answers"]) > 1 and waiting > 0
    found = differences(seen, expected, races=races)
    assert not found, "\n".join([f"the real database and the model differ after {step}:", *found])
    return Taken(step, seen, races)


def run(real: RealSide, steps: Callable[[ModelSide], Iterable[Step]]) -> tuple[Start, list[Taken]]:
    """Run a history on both sides; ``steps`` draws it. Returns where it began, and the steps that were taken.

    Raises AssertionError with all steps so far if the sides show something different.
    """
    real.begin()
    model = ModelSide(real.start)
    taken: list[Taken] = []
    try:
        for step in steps(model):
            if real.is_too_slow():
                break
            waiting: Step | None = step
            while waiting is not None:
                one = take(real, model, waiting)
                if one is None:
                    return real.start, taken
                taken.append(one)
                number = model.to_cancel()
                waiting = None if number is None else ("cancel", number)
    except AssertionError as error:
        raise AssertionError(f"{error}\nafter {[one.step for one in taken]}") from error
    return real.start, taken
