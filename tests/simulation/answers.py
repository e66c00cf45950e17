"""What the server of a simulation answers to the statements of a worker. Each statement is recognised by its text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from pgbus_gevent.database import checks, fleet, queries, revocations, schema, stewardship
from pgbus_gevent.messages import MAX_ID

from .loop import CLOCK
from .server import Message, Server

Rows = list[tuple[Any, ...]]
Answer = Callable[[Server, Any], Rows]

_NOTHING = (None,) * 8


def _fields(row: Message) -> tuple[Any, ...]:
    return row.id, row.event, row.data, row.visible_to, row.exclude, row.prev_id


def _places(rows: list[Message], size: int) -> Rows:
    """Return the rows that a page or an opening takes, with their places, and whether they fill it."""
    found: Rows = []
    before = 0
    for place, row in enumerate(rows, 1):
        if before >= size:
            break
        before += len(row.data.encode())
        found.append((*_fields(row), place, before >= size))
    return found


def _pages(server: Server, asked: Mapping[str, Any]) -> Rows:
    found: Rows = []
    for n, (name, after) in enumerate(zip(asked["streams"], asked["after"], strict=True), 1):
        stream = server.stream(name)
        index = stream.above(after)
        state = n, stream.horizon or None, stream.ids[index - 1] if index else None, server.forgotten
        rows = _places(stream.rows[index : index + asked["limit"] + 1], asked["bytes"])
        found += [(*state, *row) for row in rows] or [(*state, *_NOTHING)]
    return found


def _openings(server: Server, asked: Mapping[str, Any]) -> Rows:
    found: Rows = []
    questions = zip(asked["streams"], asked["cursors"], asked["replays"], strict=True)
    for n, (name, cursor, replay) in enumerate(questions, 1):
        stream = server.stream(name)
        ids = stream.ids
        start = ids[-replay - 1] if replay is not None and replay < len(ids) else None
        state = n, stream.head, stream.horizon, ids[0] if ids else None, start
        rows: Rows = []
        if cursor is not None:
            taken = stream.rows[stream.above(cursor) :][-asked["limit"] - 1 :]
            rows = _places(taken[::-1], asked["bytes"])[::-1]
        found += [(*state, *row) for row in rows] or [(*state, *_NOTHING)]
    return found


def _moved(server: Server, asked: Mapping[str, Any]) -> Rows:
    found: Rows = [(None, server.newest())]
    for name, head, pruned in zip(asked["streams"], asked["heads"], asked["pruned"], strict=True):
        ids = server.stream(name).ids
        newest = ids[-1] if ids else 0
        if newest > head or (newest < head and not pruned):
            found.append((name, newest))
    return found


def _inventory(server: Server, asked: Mapping[str, Any]) -> Rows:
    found: Rows = []
    for name, floor, head in zip(asked["streams"], asked["floors"], asked["heads"], strict=True):
        stream = server.stream(name)
        ids = stream.ids[stream.above(max(floor, stream.horizon)) : stream.above(head)]
        found.append((stream.horizon, len(ids), sum(ids)))
    return found


def _tail(server: Server, asked: Mapping[str, Any]) -> Rows:
    wanted = asked["streams"]
    rows = [row for hole in asked["holes"] or () for row in server.between(hole, hole)]
    rows += list(server.between(asked["above"] + 1, MAX_ID))[: asked["limit"]]
    return [
        (
            row.id,
            row.stream,
            row.prev_id,
            row.event,
            row.data if len(row.data) < 8000 and (wanted is None or row.stream in wanted) else None,
            row.visible_to,
            row.exclude,
        )
        for row in rows
    ]


# the steward


def _duty(server: Server, asked: Mapping[str, Any]) -> tuple[bool, int | None, bool, bool]:
    now = CLOCK.now
    me, hears, rings = asked["me"], asked["hears"], asked["rings"]
    number, signed, they_ring, they_hear = server.steward
    age: int | None = round((now - signed) * 1000) if signed else None
    leads = number == me
    old = age is None or age >= asked["lease"]
    if not leads and asked["may_lead"] and (old or (hears and not they_hear)):
        leads = True
    if leads and asked["may_lead"]:
        server.steward = (me, now, rings, hears)
        age = 0
    else:
        leads, rings = False, they_ring
        if hears:
            server.company_at = now
    return leads, age, rings, now - server.company_at < 10.0


def _ids(server: Server, asked: Mapping[str, Any]) -> Rows:
    limit = asked["limit"]
    bound = None
    if asked["bind"]:
        bound = server.begin_xid()
        server.xids.pop(bound)
    ended_below = min(server.ended_below, bound or server.ended_below)
    first = (0, *_duty(server, asked), ended_below, server.sequence, bound, None, None)
    empty = (None,) * 7
    holes: list[Message] = []
    for low, high in zip(asked["lows"], asked["highs"], strict=True):
        holes += list(server.between(low, high))[:limit]
    if asked["above"] is None:
        above = list(server.between(0, server.sequence))[-limit:][::-1]
    else:
        above = list(server.between(asked["above"] + 1, server.sequence))[:limit]
    rows: Rows = [first]
    rows += [(1, *empty, row.id, row.stream) for row in holes[:limit]]
    rows += [(2, *empty, row.id, row.stream) for row in above]
    return rows


def _leave_duty(server: Server, asked: Any) -> Rows:
    if server.steward[0] == asked[0]:
        server.steward = (0, 0.0, False, False)
    return [(None,)]


def _ring_for(server: Server, asked: Any) -> Rows:
    if not server.can_notify:
        return [(False,)]
    for id in asked[0]:
        for row in server.between(id, id):
            server.on_notify(server.doorbell(row.stream), row.payload)
    return [(True,)]


def _ring_everybody(server: Server, asked: Any) -> Rows:
    if not server.can_notify:
        return [(False,)]
    server.on_notify(server.control_name, '["moved"]')
    return [(True,)]


def _ring_control(server: Server, asked: Any) -> Rows:
    if not server.can_notify:
        return [(False,)]
    server.on_notify(server.control_name, '["control"]')
    return [(True,)]


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
        now = CLOCK.now
        rows = [
            (id, owner)
            for id, xid, owner, at in server.revocations
            if wanted == "kept"
            or (wanted == "recent" and now - at < 600.0)
            or (wanted == "new" and xid >= int(asked[0]))
        ]
        state = str(server.home), str(server.ended_below)
        return [(*state, id, owner) for id, owner in rows] or [(*state, None, None)]

    return answer


def _ephemerals(server: Server, asked: Any) -> Rows:
    return [(id, *server.ephemerals[id]) for id in asked[0] if id in server.ephemerals]


def _serving(server: Server, asked: Any) -> Rows:
    return [(each.version, each.name, each.serves, each.checksum) for each in schema.migrations()]


def _check_ids(server: Server, asked: Any) -> Rows:
    return [(server.sequence, server.newest(), int(CLOCK.time() * 1e6))]


_FIRST = stewardship._FIRST

ANSWERS: dict[str, Answer] = {
    "select 1": lambda server, asked: [(1,)],
    queries._PAGES: _pages,
    queries._OPENINGS: _openings,
    queries._MOVED: _moved,
    queries._INVENTORY: _inventory,
    queries._TAIL_ABOVE: _tail,
    queries._TAIL_HOLES: _tail,
    stewardship._DUTY: lambda server, asked: [_duty(server, asked)],
    _FIRST + stewardship._ABOVE: _ids,
    _FIRST + stewardship._NEWEST: _ids,
    _FIRST + stewardship._IN_HOLES + stewardship._ABOVE: _ids,
    _FIRST + stewardship._IN_HOLES + stewardship._NEWEST: _ids,
    "select pgbus._leave_duty(%s)": _leave_duty,
    "select pgbus._ring_for(%s::bigint[])": _ring_for,
    "select pgbus._ring_everybody()": _ring_everybody,
    "select pgbus._ring_control()": _ring_control,
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


def notice(payload: str) -> str:
    """Return the kind of a notification."""
    return str(json.loads(payload)[0])
