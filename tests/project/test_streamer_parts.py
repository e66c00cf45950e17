"""The table in memory of the streamer's tests answers as the database does."""

from __future__ import annotations

import itertools
import random

from streamer_parts import Table

from pgbus_gevent.bus import Bus
from pgbus_gevent.core.rows import Opening, OpenQuestion, Row

SIZES = [0, 1, 10, 100, 1000]
LIMITS = list(itertools.product([1, 3, 100], [1, 150, 10**6]))


def fill(bus: Bus, table: Table, stream: str, count: int, pruned: int) -> None:
    """Put the same messages into both, and remove the oldest from both."""
    for _ in range(count):
        bus.stream(stream).broadcast("x" * random.choice(SIZES))
    found = bus.database.queries.pages([(stream, 0)], limit=1000, size=10**9)[0].rows
    table.rows[stream] = [Row(*row) for row in found]
    table.prune(stream, pruned)
    if pruned:
        with bus.transaction() as cursor:
            horizon = table.horizons[stream]
            cursor.execute("delete from pgbus.messages where stream = %s and msg_id <= %s", (stream, horizon))
            cursor.execute("insert into pgbus.horizons (stream, msg_id) values (%s, %s)", (stream, horizon))


def meaning(table: Table, question: OpenQuestion, opening: Opening) -> tuple[Opening, list[int]]:
    """Return an answer in comparable form: messages above the floor instead of the floor; no start if none was asked for."""
    start = opening.start if question.replay is not None else 0
    return opening._replace(floor=0, start=start), table.ids(question.stream, opening.floor)


def test_the_table_in_memory_answers_as_the_database_does(pgbus_bus: Bus) -> None:
    table, queries = Table(), pgbus_bus.database.queries
    fill(pgbus_bus, table, "orders", 12, 0)
    fill(pgbus_bus, table, "stock", 8, 3)
    fill(pgbus_bus, table, "news", 4, 4)
    streams = ["orders", "stock", "news", "empty"]
    cursors = {0, 1} | {row.id + off for rows in table.rows.values() for row in rows for off in (-1, 0, 1)}
    cursors |= set(table.horizons.values())
    after = list(itertools.product(streams, sorted(cursors)))
    questions = [
        OpenQuestion(stream, cursor, replay)
        for stream, cursor, replay in itertools.product(streams, [None, *sorted(cursors)[::3]], [None, 0, 1, 4, 100])
    ]
    for limit, size in LIMITS:
        assert table.pages(after, limit=limit, size=size) == queries.pages(after, limit=limit, size=size)
        ours = table.openings(questions, limit=limit, size=size)
        theirs = queries.openings(questions, limit=limit, size=size)
        for question, answer, expected in zip(questions, ours, theirs, strict=True):
            assert meaning(table, question, answer) == meaning(table, question, expected), (question, limit, size)
    ranges = [(stream, floor, head) for stream in streams for floor in sorted(cursors) for head in sorted(cursors)[::5]]
    assert table.inventory(ranges) == queries.inventory(ranges)
    for head in sorted(cursors):
        assert table.moved(dict.fromkeys(streams, head)) == queries.moved(dict.fromkeys(streams, head))
