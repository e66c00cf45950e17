"""The same history on a real PostgreSQL and on the model of it, and what both show after each step.

A step is a tuple: the name of an action, the number of a session, and arguments. :class:`RealSide` and :class:`ModelSide` take
steps, and return what was seen. Ids are compared by their distance from the last jump of the ids.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from pgbus_gevent.core.buckets import ALL_BUCKETS, bucket_of, channel
from pgbus_gevent.core.rows import DutyQuestion, OpenQuestion
from pgbus_gevent.errors import DatabaseError, DatabaseUnavailable, InvalidArgument
from tests.simulation import database as the_model

Step = tuple[Any, ...]
Seen = dict[str, Any]

SESSIONS = 4
DATA = {"small": "x", "middle": "x" * 7850, "quoted": '"' * 5000, "large": "é" * 6000}
"""What is published, by its size: it fits into a notification or not, as JSON or not, or is not fetched by a tail."""
SERIALIZATION = ("error", "40001")
"""The answer of a transaction that has failed to serialize."""
LONG_AGO = 3600.0
"""Seconds by which the step ``age`` makes everything older."""
SILENT = frozenset({"kill", "cancel", "age", "lose", "jumped"})
"""The steps that are done from outside, and have no answer."""


class Ids:
    """What an id is relative to: the last jump before it, and the distance from there."""

    def __init__(self, floor: int) -> None:
        self._floors = [floor]

    def note(self, floor: int, last: int) -> bool:
        """Note that ids are above ``floor`` from now on, and before, they were at ``last``. Returns whether the jump was short."""
        if floor == self._floors[-1]:
            return False
        self._floors.append(floor)
        return floor < last + 100_000

    def shown(self, id: int | None) -> Any:
        if not id:
            return id
        place = bisect_left(self._floors, id) - 1
        return (place, id - self._floors[max(0, place)])


class Start:
    """Where a history begins: the state of the real database's sequences, the streams, and the numbers of their locks."""

    def __init__(
        self, streams: Sequence[str], locks: dict[str, int], last: int, floor: int, forgotten: int, ephemeral: int
    ) -> None:
        self.streams, self.locks = list(streams), locks
        self.last, self.floor, self.forgotten, self.ephemeral = last, floor, forgotten, ephemeral


def heard(payloads: Iterable[tuple[str, str]], names: dict[str, Any], ids: Ids, first: int) -> list[Any]:
    """Return notifications as they are compared: the bucket, and the payload without the time of the append.

    PostgreSQL does not determine the order of those that one transaction sends to several buckets about streams that moved.
    """
    found: list[Any] = []
    run: list[Any] = []
    for name, payload in payloads:
        kind, *rest = json.loads(payload)
        if kind == "moved":
            run.append((str(names[name]), kind, sorted(rest)))
            continue
        found, run = found + sorted(run), []
        if kind == "message":
            stream, id, prev, at, *content = rest
            rest = [stream, ids.shown(id), ids.shown(prev), at is not None, *content]
        elif kind in ("ephemeral", "large"):
            stream, number, *content = rest
            rest = [stream, number - first, *content]
        found.append((str(names[name]), kind, rest))
    return found + sorted(run)


def error_code(error: Exception) -> tuple[str, str]:
    """Return an error as it is compared: its code, or that the session is lost."""
    if isinstance(error, InvalidArgument):
        return ("error", "22023")
    if isinstance(error, DatabaseUnavailable) and error.sqlstate in (None, "57P01"):
        return ("error", "lost")
    assert isinstance(error, DatabaseError), error
    return ("error", str(error.sqlstate))


class Side:
    """What both sides share: the reads, and how their answers are shown."""

    def __init__(self, start: Start) -> None:
        self.streams = start.streams
        self.ids = Ids(start.floor)
        self.table: list[tuple[str, int]] = []
        """The committed messages, each with its stream and its id."""
        self.first_ephemeral = start.ephemeral
        self._last = start.last
        self._is_short = False
        self.bounds: list[int] = []
        self.ended: list[bool] = []
        """Which of the bounds that were asked for are below all open transactions, if this step has asked."""
        self.marks: list[Any] = []

    def own(self, stream: int) -> list[int]:
        """Return the ids of a stream's committed messages."""
        return sorted(id for name, id in self.table if name == self.streams[stream])

    def id(self, stream: int, place: int) -> int:
        """Return an id of a stream by its place from the end: 0 for 0, the newest for 1, and so on."""
        ids = self.own(stream)
        return ids[-place] if 0 < place <= len(ids) else 0

    def cursor(self, stream: int, place: int, beside: int) -> int:
        """Return an id of the stream, or a number beside it."""
        return max(0, self.id(stream, place) + (beside + stream) % 3 - 1)

    def note(self, floor: int) -> None:
        """Note where the ids are; ``_last`` is where they were before the step."""
        self._is_short = self.ids.note(floor, self._last)

    def everything(self) -> list[int]:
        return sorted(id for _, id in self.table)

    def ask(self, kind: str, queries: Any, stewardship: Any, numbers: Sequence[int]) -> Any:
        """Ask for everything that a kind of read can tell about the streams, and return the answer as it is compared."""
        shown = self.ids.shown
        a, b, limit = (*numbers, 0, 0, 0)[:3]
        names = self.streams
        if kind == "last_ids":
            return [shown(id) for id in (*queries.last_ids(names), queries.last_id(names[0]))]
        if kind == "read_after":
            rows = queries.read_after(names[0], self.id(0, a), limit + 1)
            return [(shown(row.id), *row[3:]) for row in rows]
        if kind == "moved":
            heads = {name: self.id(n, (a + n) % 4) + b % 2 for n, name in enumerate(names)}
            newest, found = queries.moved(heads, names[limit % 3 :])
            return shown(newest), sorted((name, shown(id)) for name, id in found.items())
        if kind == "inventory":
            found = queries.inventory([(name, self.id(n, a), self.id(n, b)) for n, name in enumerate(names)])
            return [(shown(horizon), count, total == 0) for horizon, count, total in found]
        if kind == "tail":
            known = self.everything()
            above = known[-a] if 0 < a <= len(known) else known[0] - 1 if known else 0
            holes = known[: b + 1] if b else []
            rows = queries.tail(above, holes, [names[0], names[1]] if limit % 2 else None, limit=limit + 1)
            # The holes come in no order.
            place = len(rows) if not holes else sum(1 for row in rows if row.id in holes and row.id <= above)
            shown_rows = [(shown(row.id), row.stream, shown(row.prev_id), *row[3:7]) for row in rows]
            return sorted(shown_rows[:place], key=str) + shown_rows[place:] if holes else shown_rows
        if kind == "pages":
            found = queries.pages(
                [(name, self.cursor(n, (a + n) % 5, b)) for n, name in enumerate(names)],
                limit=b % 4 + 1,
                size=10 ** (limit % 6),
            )
            return [
                (
                    [self._row(row) for row in page.rows],
                    shown(page.horizon),
                    page.more,
                    shown(page.anchor),
                    shown(page.forgotten),
                )
                for page in found
            ]
        return self._ask_more(kind, queries, stewardship, a, b, limit)

    def _row(self, row: Any) -> tuple[Any, ...]:
        return (self.ids.shown(row.id), *row[1:5], self.ids.shown(row.prev_id))

    def _ask_more(self, kind: str, queries: Any, stewardship: Any, a: int, b: int, limit: int) -> Any:
        shown, names = self.ids.shown, self.streams
        if kind == "openings":
            questions = [
                OpenQuestion(name, None if (a + n) % 3 == 0 else self.id(n, a), None if b == 0 else b)
                for n, name in enumerate(names)
            ]
            found = queries.openings(questions, limit=b % 3 + 1, size=10 ** (limit % 6))
            return [
                (
                    [*map(shown, (one.head, one.horizon, one.oldest, one.start)), self._floor(one)],
                    list(map(self._row, one.rows)),
                )
                for one in found
            ]
        if kind == "ephemerals":
            rows = queries.ephemerals([self.first_ephemeral + n for n in range(-2, 20)])
            return sorted((number - self.first_ephemeral, *row) for number, row in rows.items())
        if kind == "wakes":
            rows = stewardship.wakes(self.everything()[-a - 1 :], size=(100, 7900, 100_000)[b % 3])
            return [(shown(id), stream, *heard([("", wake)], {"": ""}, self.ids, 0)) for id, stream, wake in rows]
        if kind == "revocations":
            after = self.marks[a % len(self.marks)] if self.marks and b else None
            found = queries.revocations(after, recent=limit % 2 == 1)
            self.marks.append(found.mark)
            return sorted(owner for _, owner in found.rows)
        if kind == "ids":
            known = self.everything()
            above = None if a == 0 else known[-a] if a <= len(known) else 0
            holes = [(known[0], known[min(b, len(known) - 1)])] if known and b else []
            question = DutyQuestion(limit, b > 0, 1e5, True, b % 2 == 0, a % 2)
            found = stewardship.ids(question, above, holes, bind=limit % 2 == 1, limit=b + 2)
            if found.bound is not None:
                self.bounds.append(found.bound)
            self.ended = [bound < found.ended_below for bound in self.bounds]
            duty = (found.duty.leads, found.duty.age is None, found.duty.rings)
            rows = [[(shown(row.id), row.stream) for row in some] for some in (found.holes, found.above)]
            return duty, shown(found.last), *rows
        raise AssertionError(kind)

    def _floor(self, one: Any) -> Any:
        """A floor is an id, or one less than an id."""
        return (self.ids.shown(one.floor + 1), one.floor == one.head) if one.rows else self.ids.shown(one.floor)

    def data(self, kind: str, number: int) -> str:
        return f"{number} {DATA[kind]}"


class ModelSide(Side):
    """A history on the model, or on a copy of it that has a fault."""

    def __init__(self, start: Start, model: ModuleType = the_model) -> None:
        super().__init__(start)
        self.model = model
        self.now = start.floor / 1e6
        self.server = model.Server(lambda: self.now, lock_number=start.locks.__getitem__, breaks_deadlocks=False)
        server = self.server
        server.message_ids.last, server.floor.last, server.forgotten.last = start.last, start.floor, start.forgotten
        server.ephemeral_ids.last = start.ephemeral - 1
        server.jumped.last, server.highest.last = model.ids.epoch(server), start.last
        self.move()
        self.numbered = 0
        self.unsure: set[int] = set()
        """Sessions of which nobody knows whether their transaction has a number: one draw in 32 gives it one."""

    def move(self) -> None:
        """Go on in new sessions."""
        server = self.server
        self.running: dict[int, Any] = {}
        self.sessions: list[Any] = [server.session() for _ in range(SESSIONS)]
        self.names: dict[str, Any] = {server.control: "control"}
        self.names.update({channel(server.doorbell, bucket): bucket for bucket in ALL_BUCKETS})
        self.ears = [server.listen(), server.listen()]
        few = {channel(server.doorbell, bucket_of(name)) for name in self.streams[:2]}
        self.ears[0].channels, self.ears[1].channels = set(self.names), {server.control, *few}

    # before a step

    def is_possible(self, step: Step) -> bool:
        """Whether the session can take the step now."""
        name, number = step[:2]
        session = self.sessions[number]
        if name == "lose":
            return not self.running
        if name in ("kill", "age", "jumped"):
            return name == "kill" or not (self.running or any(one.transaction for one in self.sessions))
        if name == "cancel":
            return number in self.running
        if number in self.running:
            return False
        if name == "begin":
            return session.transaction is None
        if name in ("commit", "rollback", "savepoint", "rollback_to", "release", "immediate"):
            return session.transaction is not None
        if name in ("prune", "forget"):
            return session.transaction is None or not session.transaction.has_one_snapshot
        return True

    def is_serializable(self, number: int) -> bool:
        """Whether the session's transaction may fail to serialize for reasons that the model does not know."""
        transaction = self.sessions[number].transaction
        return transaction is not None and transaction.isolation == "serializable"

    def to_cancel(self) -> int | None:
        """Return a session whose wait must end, so that no step wakes two sessions at once, which then would race."""
        caused: dict[Any, set[Any]] = {}
        for number, statement in self.running.items():
            for blocker in self.server.blockers(statement):
                caused.setdefault(blocker, set()).add(statement.waits_for)
            if any(len(keys) > 1 for keys in caused.values()):
                return number
        return None

    @property
    def bells_held(self) -> int:
        keys = [key for one in self.server.open_transactions for key in one.locks]
        return sum(key[0] == "bell" for key in keys)

    # a step

    def take(self, step: Step, hint: Seen | None = None) -> Seen:
        """Take a step. The hint is what was seen on the real side: it names the victims of deadlocks, and failures to serialize."""
        name, number, *arguments = step
        self.now += 0.01
        self.ended = []
        failed = [] if hint is None else [one for one, answer in hint["answers"] if answer == SERIALIZATION]
        for one in failed:
            if self.is_serializable(one):
                self.sessions[one].doom = DatabaseError("could not serialize access", "40001")
        answers: dict[int, Any] = {}
        try:
            done = getattr(self, f"do_{name}")(number, *arguments)
            if hasattr(done, "waits_for"):
                self.running[number] = done
            elif name not in SILENT:
                answers[number] = done
        except (DatabaseError, InvalidArgument) as error:
            answers[number] = error_code(error)
        victims = [] if hint is None else [one for one, answer in hint["answers"] if answer == ("error", "40P01")]
        for one in [one for one in victims if self._waits_for_itself(one)]:
            statement = self.running[one]
            if not statement.done:
                self.server.fail(statement, DatabaseError("deadlock detected", "40P01"))
        self.note(self.server.floor.last or 0)
        for one, statement in list(self.running.items()):
            if statement.done:
                del self.running[one]
                answers[one] = self.shown(statement)
        if name in ("begin", "ephemeral"):
            (self.unsure.discard if name == "begin" else self.unsure.add)(number)
        self.unsure.update(one for one, answer in answers.items() if isinstance(answer, tuple) and answer[0] == "error")
        if failed and hint is not None and hint["last"][0] == self.ids.shown(self.server.message_ids.last)[0]:
            # Nobody knows how many ids it had drawn.
            self.server.message_ids.last = (self.server.message_ids.last or 0) + (
                hint["last"][1] - self.ids.shown(self.server.message_ids.last)[1]
            )
        self._last = self.server.message_ids.last or 0
        return self._seen(answers)

    def _waits_for_itself(self, number: int) -> bool:
        """Whether a session waits for itself through others: those that have a lock, or wait for it longer."""
        seen: set[Any] = set()
        waiting = [self.sessions[number]]
        while waiting:
            session = waiting.pop()
            if session.statement is not None:
                new = [one for one in self.server.blockers(session.statement) if one not in seen]
                seen.update(new)
                waiting += new
        return self.sessions[number] in seen

    def shown(self, statement: Any) -> Any:
        try:
            value = statement.result()
        except (DatabaseError, InvalidArgument) as error:
            return error_code(error)
        return self.ids.shown(value) if isinstance(value, int) else value

    def _seen(self, answers: dict[int, Any]) -> Seen:
        server = self.server
        now = server.now(None)
        rows = sorted((row for row in server.messages if now.sees(row)), key=lambda row: (row.id, row.stream))
        self.table = [(row.stream, row.id) for row in rows]
        shown = self.ids.shown
        writers = [n for n in range(SESSIONS) if (own := self._transaction(n)) and not own.failed and own.xid]
        return {
            "answers": sorted((n, shown_answer(answer, shown)) for n, answer in answers.items()),
            "waits": {
                n: sorted({self.sessions.index(one) for one in server.blockers(statement)})
                for n, statement in self.running.items()
            },
            "heard": [heard(ear.take(), self.names, self.ids, self.first_ephemeral) for ear in self.ears],
            "rows": [
                (
                    row.stream,
                    shown(row.id),
                    shown(row.prev_id),
                    row.event,
                    row.data,
                    row.visible_to,
                    row.exclude,
                    row.key,
                )
                for row in rows
            ],
            "horizons": sorted((name, shown(row.id)) for name, row in server.horizons.items(now)),
            "last": shown(server.message_ids.last),
            "short": self._is_short,
            "forgotten": shown(server.forgotten.last or 0),
            "ephemerals": sorted(number - self.first_ephemeral for number, _ in server.ephemerals.items(now)),
            "writers": writers,
            "unsure": sorted(self.unsure),
            "ended": self.ended,
        }

    def _transaction(self, number: int) -> Any:
        statement = self.running.get(number)
        return statement.transaction if statement is not None else self.sessions[number].transaction

    # the actions

    def do_begin(self, n: int, isolation: str) -> None:
        self.sessions[n].begin(isolation)

    def do_commit(self, n: int) -> Any:
        return self.sessions[n].commit()

    def do_rollback(self, n: int) -> None:
        self.sessions[n].rollback()

    def do_savepoint(self, n: int, name: str) -> None:
        self.sessions[n].savepoint(name)

    def do_rollback_to(self, n: int, name: str) -> None:
        self.sessions[n].rollback_to(name)

    def do_release(self, n: int, name: str) -> None:
        self.sessions[n].release(name)

    def do_immediate(self, n: int) -> Any:
        return self.sessions[n].constraints_immediate()

    def do_broadcast(self, n: int, way: str, stream: int, size: str, key: str | None, label: str | None) -> Any:
        self.numbered += 1
        arguments = (self.streams[stream], self.data(size, self.numbered), label, label, None, key)
        session = self.sessions[n]
        return session.broadcast(*arguments) if way == "now" else session.broadcast_on_commit(*arguments)

    def do_impatient(self, n: int, stream: int) -> Any:
        self.numbered += 1
        statement = self.sessions[n].broadcast(self.streams[stream], self.data("small", self.numbered))
        if not statement.done:
            self.server.fail(statement, DatabaseError("canceled due to lock timeout", "55P03"))
        return statement

    def do_many(self, n: int, stream: int, keys: list[str | None] | None, count: int) -> Any:
        data = [self.data("small", self.numbered + place) for place in range(count)]
        self.numbered += count
        return self.sessions[n].broadcast_many(self.streams[stream], data, None, None, None, keys)

    def do_ephemeral(self, n: int, stream: int, size: str) -> Any:
        self.numbered += 1
        return self.sessions[n].broadcast_ephemeral(self.streams[stream], self.data(size, self.numbered), "hint")

    def do_bad(self, n: int, arguments: dict[str, Any]) -> Any:
        return self.sessions[n].broadcast(**{"stream": "a", "data": "x", **arguments})

    def do_disconnect(self, n: int, owner: str) -> Any:
        return self.sessions[n].disconnect(owner)

    def do_ask(self, n: int, kind: str, *numbers: int) -> Any:
        session = self.sessions[n]
        return self.ask(
            kind,
            self.model.Queries(self.server, session=session),
            self.model.Stewardship(self.server, session=session),
            numbers,
        )

    def do_ring_for(self, n: int, back: int) -> Any:
        return self.model.Stewardship(self.server, session=self.sessions[n]).ring_for(self.everything()[-back - 1 :])

    def do_ring_everybody(self, n: int) -> Any:
        return self.model.Stewardship(self.server, session=self.sessions[n]).ring_everybody()

    def do_ring_control(self, n: int) -> Any:
        return self.model.Queries(self.server, session=self.sessions[n]).ring_control()

    def do_prune(self, n: int, age: float, counts: list[int | None], limit: int) -> Any:
        ages = [age] * len(self.streams)
        return self.sessions[n].run(
            lambda own: self.model.retention.prune(self.server, own, self.streams, ages, counts, limit)
        )

    def do_forget(self, n: int, unused: float, limit: int) -> Any:
        return self.sessions[n].run(lambda own: self.model.retention.forget(self.server, own, None, unused, limit))

    def do_cancel(self, n: int) -> None:
        self.server.fail(self.running[n], DatabaseError("canceling statement due to user request", "57014"))

    def do_kill(self, n: int) -> None:
        self.server.end(self.sessions[n], DatabaseUnavailable("terminated"))
        self.sessions[n] = self.server.session()

    def do_age(self, n: int) -> None:
        self.now += LONG_AGO
        self.server.steward_sign.set(0)

    def do_lose(self, n: int, stream: int, place: int) -> None:
        """The sequence goes back to an id that was given."""
        id = self.id(stream, place)
        if id:
            self.server.message_ids.set(id)

    def do_jumped(self, n: int) -> None:
        """The marks of the epoch are lost, as after a crash."""
        self.server.jumped.last = None


def shown_answer(answer: Any, shown: Callable[[Any], Any]) -> Any:
    """Return a result of pruning as it is compared; all other answers are shown already."""
    if isinstance(answer, list) and answer and hasattr(answer[0], "horizon"):
        return sorted((one.stream, one.removed, shown(one.horizon), one.overdue > 0) for one in answer)
    return answer


# comparing


def plain(value: Any) -> Any:
    """Return the same with lists in place of tuples, and texts as keys."""
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return value


SAME = ("answers", "waits", "rows", "horizons", "last", "short", "forgotten", "ephemerals")


def differences(real: Seen, model: Seen, *, races: bool) -> list[str]:
    """Return what differs. With ``races``, a session that was woken may have found a bell that was just being given back."""
    found = [f"{key}: {real[key]} and {model[key]}" for key in SAME if plain(real[key]) != plain(model[key])]
    for ear, (theirs, ours) in enumerate(zip(plain(real["heard"]), plain(model["heard"]), strict=True)):
        if races:
            others = [[one for one in heard if one[1] not in ("message", "moved")] for heard in (theirs, ours)]
            if others[0] != others[1] or any(one not in ours for one in theirs):
                found.append(f"heard by {ear}: {theirs} and at most {ours}")
        elif theirs != ours:
            found.append(f"heard by {ear}: {theirs} and {ours}")
    writers = [n for n in real["writers"] if n not in model["unsure"]]
    if writers != [n for n in model["writers"] if n not in model["unsure"]]:
        found.append(f"writers: {writers} and {model['writers']}")
    for ended, is_open, ours in zip(real["ended"], real["open"], model["ended"], strict=False):
        # Other databases of the server may have older transactions.
        if (ended and not ours) or (ours and is_open):
            found.append(f"ended: {ended}, {is_open} and {ours}")
    return found


class Taken(NamedTuple):
    """A step that was taken on the real side, and what was seen."""

    step: Step
    seen: Seen
    races: bool


def replay(start: Start, history: Sequence[Taken], model: ModuleType) -> list[str]:
    """Take the steps of a history on a model. Returns the differences of the first step that has some."""
    side = ModelSide(start, model)
    for taken in history:
        try:
            found = differences(taken.seen, side.take(taken.step, taken.seen), races=taken.races)
        except Exception as error:
            found = [repr(error)]
        if found:
            return [f"{taken.step}", *found]
    return []
