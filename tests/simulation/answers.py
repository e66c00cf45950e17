"""What the server of a simulation answers to the statements of a worker. Each statement is recognised by its text.

The model answers with values; here they become rows again, as PostgreSQL sends them, for the product's own queries to read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pgbus_gevent.core.rows import DutyAnswer, DutyQuestion, OpenQuestion, Row
from pgbus_gevent.database import checks, fleet, queries, revocations, schema, statements, stewardship

from .database import reading
from .loop import CLOCK
from .server import Server

Rows = list[tuple[Any, ...]]
Answer = Callable[[Server, Any], Rows]

_NOTHING = (None,) * (len(Row._fields) + 2)


def _pages(server: Server, asked: Mapping[str, Any]) -> Rows:
    after = list(zip(asked["streams"], asked["after"], strict=True))
    found: Rows = []
    for n, page in enumerate(reading.pages(server, server.now(None), after, asked["limit"], asked["bytes"]), 1):
        state = n, page.horizon or None, page.anchor or None, page.forgotten
        last = len(page.rows)
        found += [(*state, *row, place, page.more and place == last) for place, row in enumerate(page.rows, 1)] or [
            (*state, *_NOTHING)
        ]
    return found


def _openings(server: Server, asked: Mapping[str, Any]) -> Rows:
    limit = asked["limit"]
    questions = [
        OpenQuestion(*question) for question in zip(asked["streams"], asked["cursors"], asked["replays"], strict=True)
    ]
    openings = reading.openings(server, server.now(None), questions, limit, asked["bytes"])
    found: Rows = []
    for n, (question, opening) in enumerate(zip(questions, openings, strict=True), 1):
        state = n, opening.head, opening.horizon or None, opening.oldest or None, opening.start or None
        rows: Rows = []
        if question.cursor is not None and opening.floor > max(question.cursor, opening.horizon):
            rows.append((*state, *Row(opening.floor, None, "", None, None), limit + 1, False))
        count = len(opening.rows)
        rows += [(*state, *row, count - place, False) for place, row in enumerate(opening.rows)]
        found += rows or [(*state, *_NOTHING)]
    return found


def _moved(server: Server, asked: Mapping[str, Any]) -> Rows:
    heads = dict(zip(asked["streams"], asked["heads"], strict=True))
    pruned = {name for name, is_pruned in zip(asked["streams"], asked["pruned"], strict=True) if is_pruned}
    newest, found = reading.moved(server, server.now(None), heads, pruned)
    return [(None, newest), *found.items()]


def _inventory(server: Server, asked: Mapping[str, Any]) -> Rows:
    ranges = list(zip(asked["streams"], asked["floors"], asked["heads"], strict=True))
    return [*reading.inventory(server, server.now(None), ranges)]


def _tail(server: Server, asked: Mapping[str, Any]) -> Rows:
    arguments = asked["above"], asked["holes"] or (), asked["streams"], asked["limit"]
    return [*reading.tail(server, server.now(None), *arguments)]


# the steward


def _question(asked: Mapping[str, Any]) -> DutyQuestion:
    facts = {name: asked[name] for name in DutyQuestion._fields}
    return DutyQuestion(**{**facts, "lease": asked["lease"] / 1000})


def _answer(answer: DutyAnswer) -> tuple[Any, ...]:
    return answer.leads, None if answer.age is None else round(answer.age * 1000), answer.rings, answer.company


def _duty(server: Server, asked: Mapping[str, Any]) -> Rows:
    return [_answer(server.stewarding.duty(_question(asked)))]


def _ids(server: Server, asked: Mapping[str, Any]) -> Rows:
    holes = list(zip(asked["lows"], asked["highs"], strict=True))
    found = server.stewarding.ids(_question(asked), asked["above"], holes, bind=asked["bind"], limit=asked["limit"])
    above = found.above[::-1] if asked["above"] is None else found.above
    empty = (None,) * 7
    rows: Rows = [(0, *_answer(found.duty), found.ended_below, found.last, found.bound, None, None)]
    rows += [(1, *empty, *row) for row in found.holes]
    rows += [(2, *empty, *row) for row in above]
    return rows


def _leave_duty(server: Server, asked: Any) -> Rows:
    server.stewarding.leave_duty(asked[0])
    return [(None,)]


# the rest


def _beat(server: Server, asked: Mapping[str, Any]) -> Rows:
    now = CLOCK.now
    server.workers[asked["id"]] = now
    living = sum(now - seen < 20.0 for seen in server.workers.values())
    return [(CLOCK.time(), 0, max(1, living))]


def _leave_roll(server: Server, asked: Any) -> Rows:
    server.workers.pop(asked[0], None)
    return [(None,)]


def _revocations(wanted: str) -> Answer:
    def answer(server: Server, asked: Any) -> Rows:
        since = CLOCK.time() - reading.RECENT
        rows = [
            (row.id, row.owner)
            for _, row in server.revocations.items(server.now(None))
            if wanted == "kept"
            or (wanted == "recent" and row.revoked_at > since)
            or (wanted == "new" and row.xid >= int(asked[0]))
        ]
        state = f"{server.started_at} {server.file}", str(server.ended_below)
        return [(*state, *row) for row in rows] or [(*state, None, None)]

    return answer


def _ephemerals(server: Server, asked: Any) -> Rows:
    return [(id, *row) for id, row in reading.ephemerals(server, server.now(None), asked[0]).items()]


def _serving(server: Server, asked: Any) -> Rows:
    return [(each.version, each.name, each.serves, each.checksum) for each in schema.migrations()]


def _check_ids(server: Server, asked: Any) -> Rows:
    return [(server.message_ids.last_value, 0, int(CLOCK.time() * 1e6))]


_FIRST = stewardship._FIRST

ANSWERS: dict[str, Answer] = {
    "select 1": lambda server, asked: [(1,)],
    statements.PAGES: _pages,
    statements.OPENINGS: _openings,
    statements.MOVED: _moved,
    queries._INVENTORY: _inventory,
    queries._TAIL_ABOVE: _tail,
    queries._TAIL_HOLES: _tail,
    stewardship._DUTY: _duty,
    _FIRST + stewardship._ABOVE: _ids,
    _FIRST + stewardship._NEWEST: _ids,
    _FIRST + stewardship._IN_HOLES + stewardship._ABOVE: _ids,
    _FIRST + stewardship._IN_HOLES + stewardship._NEWEST: _ids,
    "select pgbus._leave_duty(%s)": _leave_duty,
    "select pgbus._ring_for(%s::bigint[])": lambda server, asked: [(server.stewarding.ring_for(asked[0]),)],
    "select pgbus._ring_everybody()": lambda server, asked: [(server.stewarding.ring_everybody(),)],
    "select pgbus._ring_control()": lambda server, asked: [(server.asking.ring_control(),)],
    fleet._BEAT: _beat,
    "select pgbus._leave_roll(%s)": _leave_roll,
    revocations._RECENT: _revocations("recent"),
    revocations._KEPT: _revocations("kept"),
    revocations._NEW: _revocations("new"),
    "select id, stream, event, data, visible_to, exclude from pgbus.ephemerals where id = any(%s)": _ephemerals,
    "select pgbus.presence_sweep()": lambda server, asked: [(None,)],
    "select r.kept, r.teller, r.holds from pgbus._told_retentions() r": lambda server, asked: [],
    "select pgbus._tell_retention(%s, %s, make_interval(secs => %s))": lambda server, asked: [(None,)],
    "select pgbus._prune_turn(make_interval(secs => %s), %s, make_interval(secs => %s))": lambda server, asked: [
        (None,)
    ],
    "select pgbus._prune_ephemerals(%s)": lambda server, asked: [(0,)],
    schema._SERVING: _serving,
    schema._HAS_RECORD: lambda server, asked: [(True, True)],
    "select version, name, serves, checksum from pgbus.migrations": _serving,
    "select to_regclass('pgbus.horizons') is not null": lambda server, asked: [(True,)],
    checks._IDS: _check_ids,
}


def answer(server: Server, statement: str, parameters: Any) -> Rows:
    """Return the rows of a statement."""
    return ANSWERS[statement](server, parameters)
