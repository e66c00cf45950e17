"""The statements of the package: the contents of pages and openings, and that all statements use the indexes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import gevent
import psycopg2
import psycopg2.extras
import pytest
from database_parts import Session, opened_sessions, raises, until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgbus_gevent.core.rows import OpenQuestion
from pgbus_gevent.database import Database, using
from pgbus_gevent.database.queries import Publication, Queries
from pgbus_gevent.errors import DatabaseError, InvalidArgument
from pgbus_gevent.settings.table import Settings

LOTS = 1_000_000
"""A limit of bytes that no page here reaches."""

many_examples = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


@pytest.fixture
def asking(database: str) -> Iterator[Queries]:
    found = Database(Settings(database_url=database))
    yield found.queries
    found.close()


def publish(sql: Session, stream: str, *data: str) -> list[int]:
    """The ids of the messages."""
    return [sql.call("broadcast", stream, each) for each in data]


def prune(sql: Session, stream: str, up_to: int) -> None:
    sql.run("delete from pgbus.messages where stream = %s and msg_id <= %s", stream, up_to)
    sql.run("insert into pgbus.horizons values (%s, %s)", stream, up_to)


# pages


def test_a_page_has_the_messages_above_the_cursor_oldest_first(asking: Queries, sql: Session, stream: str) -> None:
    sql.call("broadcast", stream, "x", "e", "admins", "c7")
    first, second, third = [sql.call("last_id", stream), *publish(sql, stream, "y", "z")]

    [whole] = asking.pages([(stream, 0)], limit=10, size=LOTS)
    assert [row[:6] for row in whole.rows] == [
        (first, "e", "x", "admins", "c7", 0), (second, None, "y", None, None, first), (third, None, "z", None, None, second),
    ]  # fmt: skip
    assert [row.created_at for row in whole.rows] == sql.column(stream, "date_part('epoch', created_at)")
    assert [row.trace for row in whole.rows] == [None] * 3
    assert (whole.horizon, whole.more) == (0, False)
    [rest] = asking.pages([(stream, first)], limit=10, size=LOTS)
    assert [row.id for row in rest.rows] == [second, third]


def test_a_page_has_at_most_so_many_messages_and_says_that_there_are_more(
    asking: Queries, sql: Session, stream: str
) -> None:
    ids = publish(sql, stream, *"abcde")
    [page] = asking.pages([(stream, ids[0])], limit=2, size=LOTS)
    assert ([row.id for row in page.rows], page.more) == (ids[1:3], True)
    [page] = asking.pages([(stream, ids[2])], limit=2, size=LOTS)
    assert ([row.id for row in page.rows], page.more) == (ids[3:], False)


def test_large_messages_do_not_blow_a_page(asking: Queries, sql: Session, stream: str) -> None:
    ids = publish(sql, stream, *["x" * 1_000_000] * 8)
    [page] = asking.pages([(stream, 0)], limit=500, size=128 * 1024)
    assert ([row.id for row in page.rows], page.more) == (ids[:1], True)
    [page] = asking.pages([(stream, 0)], limit=500, size=2_500_000)
    assert ([row.id for row in page.rows], page.more) == (ids[:3], True)


def test_sizes_are_bytes_and_not_characters(asking: Queries, sql: Session, stream: str) -> None:
    publish(sql, stream, *["é" * 50] * 4)
    assert len(asking.pages([(stream, 0)], limit=10, size=150)[0].rows) == 2


def test_a_page_tells_how_far_the_stream_was_pruned(asking: Queries, sql: Session, stream: str) -> None:
    ids = publish(sql, stream, *"abc")
    prune(sql, stream, ids[1])
    assert asking.pages([(stream, 0)], limit=10, size=LOTS)[0].horizon == ids[1]
    # Also for an empty page.
    assert asking.pages([(stream, ids[2])], limit=10, size=LOTS) == [([], ids[1], False, ids[2], 0)]


def test_many_streams_are_answered_in_the_order_of_the_question(asking: Queries, sql: Session, stream: str) -> None:
    names = [f"{stream} {n}" for n in range(20)]
    ids = {name: publish(sql, name, *"ab"[: n % 3]) for n, name in enumerate(names)}
    question = [(name, 0) for name in reversed(names)]

    pages = asking.pages([*question, question[0]], limit=10, size=LOTS)
    assert [[row.id for row in page.rows] for page in pages] == [ids[name] for name, _ in [*question, question[0]]]


def test_nothing_asked_is_nothing_answered(asking: Queries) -> None:
    assert asking.pages([], limit=10, size=LOTS) == []
    assert asking.openings([], limit=10, size=LOTS) == []
    assert asking.moved({})[1] == {}
    assert asking.ephemerals([]) == {}


def taken(sizes: Sequence[int], limit: int, size: int) -> int:
    """How many messages of these sizes fit a page: it takes messages while it has room."""
    count = total = 0
    while count < min(limit, len(sizes)) and total < size:
        total += sizes[count]
        count += 1
    return count


@pytest.fixture(scope="module")
def mixed(database: str) -> tuple[str, list[int], list[int]]:
    """A stream of messages of many sizes, with the id and the size of each."""
    with opened_sessions(database) as opener:
        sizes = [0, 1, 10, 0, 300, 5, 5, 2000, 0, 7, 100, 100, 1, 3000, 0, 2]
        return "mixed", publish(opener(), "mixed", *["x" * size for size in sizes]), sizes


@many_examples
@given(start=st.integers(0, 16), limit=st.integers(1, 20), size=st.sampled_from([1, 5, 10, 11, 300, 2000, 5521, 9999]))
def test_a_page_takes_messages_while_it_has_room(
    asking: Queries, mixed: tuple[str, list[int], list[int]], start: int, limit: int, size: int
) -> None:
    stream, ids, sizes = mixed
    count = taken(sizes[start:], limit, size)
    [page] = asking.pages([(stream, ids[start - 1] if start else 0)], limit=limit, size=size)
    assert [row.id for row in page.rows] == ids[start : start + count]
    left_out = start + count < len(ids)
    # A page that is full to the byte may say that there is more although there is not, but never the reverse.
    assert page.more == left_out or (page.more and sum(sizes[start : start + count]) >= size)


@many_examples
@given(
    start=st.one_of(st.none(), st.integers(0, 16)),
    replay=st.one_of(st.none(), st.integers(0, 20)),
    limit=st.integers(1, 20),
    size=st.sampled_from([1, 5, 10, 300, 2000, 5521, 9999]),
)
def test_an_opening_has_the_newest_messages_complete_above_its_floor(
    asking: Queries,
    mixed: tuple[str, list[int], list[int]],
    start: int | None,
    replay: int | None,
    limit: int,
    size: int,
) -> None:
    stream, ids, sizes = mixed
    cursor = None if start is None else ids[start - 1] if start else 0
    [opening] = asking.openings([OpenQuestion(stream, cursor, replay)], limit=limit, size=size)

    assert (opening.head, opening.horizon, opening.oldest) == (ids[-1], 0, ids[0])
    if replay is not None:
        assert opening.start == (ids[-replay - 1] if replay < len(ids) else 0)
    if start is None:
        assert (opening.rows, opening.floor) == ([], ids[-1])
    else:
        count = taken(sizes[start:][::-1], limit, size)
        assert [row.id for row in opening.rows] == ids[len(ids) - count :]
        assert [id for id in ids if id > opening.floor] == [row.id for row in opening.rows]
        assert opening.floor >= (cursor or 0)


# openings


def test_a_stream_without_messages_opens_at_0(asking: Queries, stream: str) -> None:
    assert asking.openings([OpenQuestion(stream, 0, 5)], limit=10, size=LOTS) == [(0, 0, 0, 0, 0, [])]


def test_a_stream_that_was_pruned_empty_opens_at_its_horizon(asking: Queries, sql: Session, stream: str) -> None:
    [id] = publish(sql, stream, "x")
    prune(sql, stream, id)
    assert asking.openings([OpenQuestion(stream, 0, None)], limit=10, size=LOTS) == [(id, id, 0, 0, id, [])]


def test_above_the_horizon_an_opening_is_complete(asking: Queries, sql: Session, stream: str) -> None:
    ids = publish(sql, stream, *"abcd")
    prune(sql, stream, ids[1])
    [opening] = asking.openings([OpenQuestion(stream, ids[0], None)], limit=10, size=LOTS)
    assert (opening.horizon, opening.oldest, opening.floor) == (ids[1], ids[2], ids[1])
    assert [row.id for row in opening.rows] == ids[2:]


def test_openings_of_many_streams_come_in_the_order_of_the_question(asking: Queries, sql: Session, stream: str) -> None:
    names = [f"{stream} {n}" for n in range(20)]
    heads = [publish(sql, name, "a", "b")[-1] for name in names]
    found = asking.openings([OpenQuestion(name, 0, 1) for name in names], limit=10, size=LOTS)
    assert [opening.head for opening in found] == heads
    assert all(len(opening.rows) == 2 for opening in found)


# streams that moved


def test_a_page_tells_whether_the_message_of_its_cursor_is_there(asking: Queries, sql: Session, stream: str) -> None:
    ids = publish(sql, stream, *"abcd")
    sql.run("delete from pgbus.messages where stream = %s and msg_id = any(%s)", stream, ids[2:])

    def anchors() -> list[int]:
        cursors = [0, ids[0], ids[1], ids[2], ids[3] + 5]
        return [page.anchor for page in asking.pages([(stream, cursor) for cursor in cursors], limit=10, size=LOTS)]

    assert anchors() == [0, ids[0], ids[1], ids[1], ids[1]]
    prune(sql, stream, ids[0])
    assert anchors() == [0, 0, ids[1], ids[1], ids[1]]


def test_moved_returns_the_streams_whose_head_differs(asking: Queries, sql: Session, stream: str) -> None:
    lower, gone, pruned, same = (f"{stream} {n}" for n in range(4))
    ids = {name: publish(sql, name, "a")[0] for name in (lower, same)}
    heads = {lower: ids[lower] + 1, gone: 7, pruned: 7, same: ids[same]}
    assert asking.moved(heads, {pruned})[1] == {lower: ids[lower], gone: 0}


def test_moved_are_the_streams_with_something_above_their_head(asking: Queries, sql: Session, stream: str) -> None:
    old, new, empty = (f"{stream} {n}" for n in range(3))
    heads = {old: publish(sql, old, "a")[0], new: publish(sql, new, "a", "b")[0], empty: 0}
    assert asking.moved(heads)[1] == {new: heads[new] + 1}
    assert asking.moved(dict.fromkeys(heads, 0)) == (heads[new] + 1, {old: heads[old], new: heads[new] + 1})


# the tail


def test_the_tail_has_the_new_messages_of_all_streams_in_order(asking: Queries, sql: Session, stream: str) -> None:
    [first] = publish(sql, stream, "a")
    ids = [publish(sql, f"{stream} {n % 2}", str(n))[0] for n in range(5)]
    rows = asking.tail(first, [], None, limit=100)
    assert [(row.id, row.stream, row.data) for row in rows] == [
        (id, f"{stream} {n % 2}", str(n)) for n, id in enumerate(ids)
    ]
    assert [row.prev_id for row in rows] == [0, 0, *ids[:3]]
    assert asking.tail(first, [], None, limit=3) == rows[:3]
    assert asking.tail(ids[-1], [], None, limit=100) == []


def test_the_tail_looks_into_holes(asking: Queries, sql: Session, stream: str) -> None:
    ids = publish(sql, stream, *"abcd")
    found = asking.tail(ids[2], [ids[0], ids[3] + 1], None, limit=1)
    assert [row.id for row in found] == [ids[0], ids[3]]


def test_the_tail_leaves_out_large_data_and_data_of_other_streams(asking: Queries, sql: Session, stream: str) -> None:
    other = f"{stream} 1"
    [first, last] = publish(sql, stream, "a", "b" * 8000)
    [theirs] = publish(sql, other, "c")
    found = {row.id: row.data for row in asking.tail(first - 1, [], [stream], limit=10)}
    assert found == {first: "a", last: None, theirs: None}


# publishing and reading


def test_published_messages_can_be_read(asking: Queries, stream: str) -> None:
    id = asking.broadcast(stream, "a", Publication("e", "admins", "c7", "k"))
    assert asking.broadcast(stream, "a", Publication(key="k")) == id
    last = asking.broadcast_many(stream, ["b", "c"], Publication("f"))
    assert asking.broadcast_many(stream, [], Publication()) is None
    assert asking.last_id(stream) == last
    found = asking.read_after(stream, 0, 10)
    assert [(m.stream, m.data, m.event, m.visible_to, m.exclude) for m in found] == [
        (stream, "a", "e", "admins", "c7"), (stream, "b", "f", None, None), (stream, "c", "f", None, None),
    ]  # fmt: skip
    assert asking.read_after(stream, id, 1) == found[1:2]


def test_bad_arguments_raise_invalid_argument(asking: Queries) -> None:
    for ask in (
        lambda: asking.broadcast("", "x", Publication()),
        lambda: asking.broadcast("s", "x", Publication("pgbus:x")),
        lambda: asking.read_after("s", -1, 10),
        lambda: asking.last_id("a\nb"),
    ):
        with pytest.raises(InvalidArgument, match="bad"):
            ask()


def test_large_ephemerals_are_found_by_their_numbers(asking: Queries, sql: Session, stream: str) -> None:
    asking.broadcast_ephemeral(stream, "x" * 9000, Publication("e", "admins", "c7"))
    number = sql.one("select max(id) from pgbus.ephemerals")
    assert asking.ephemerals([number, number + 1000]) == {number: (stream, "e", "x" * 9000, "admins", "c7")}


# transactions


def test_a_transaction_is_committed_at_the_end_of_its_block(asking: Queries, sql: Session, stream: str) -> None:
    with asking.transaction() as cursor:
        using.broadcast_on_commit(cursor, stream, "a", Publication())
        assert sql.data(stream) == []
    assert sql.data(stream) == ["a"]


def test_a_transaction_is_rolled_back_when_the_block_raises(asking: Queries, sql: Session, stream: str) -> None:
    with pytest.raises(ZeroDivisionError), asking.transaction() as cursor:
        using.broadcast_on_commit(cursor, stream, "a", Publication())
        _ = 1 / 0
    with pytest.raises(DatabaseError), asking.transaction() as cursor:
        using.broadcast_on_commit(cursor, stream, "b", Publication())
        cursor.execute("select 1 / 0")
    assert sql.data(stream) == []


def test_an_error_at_the_commit_is_translated(asking: Queries, sql: Session, stream: str) -> None:
    with pytest.raises(DatabaseError) as failed, asking.transaction("repeatable read") as cursor:
        using.broadcast_on_commit(cursor, stream, "late", Publication(key="k"))
        sql.call("broadcast", stream, "first", key="k")
    assert failed.value.sqlstate == "40001"


def test_the_isolation_of_a_transaction_is_not_left_behind(database: str) -> None:
    one = Database(Settings(database_url=database, pool_size=1))
    with one.queries.transaction("repeatable read") as cursor:
        cursor.execute("show transaction_isolation")
        assert cursor.fetchone() == ("repeatable read",)
    with one.queries.transaction() as cursor:
        cursor.execute("show transaction_isolation")
        assert cursor.fetchone() == ("read committed",)
    with one.pool.connection() as connection:
        assert connection.autocommit
    one.close()


def test_a_killed_transaction_leaves_nothing(asking: Queries, sql: Session, stream: str) -> None:
    def transact() -> None:
        with asking.transaction() as cursor:
            cursor.execute("select pgbus.broadcast(%s, 'x')", (stream,))
            cursor.execute("select pg_sleep(30)")

    job = gevent.spawn(transact)
    asleep = "query = 'select pg_sleep(30)' and datname = current_database()"
    until(lambda: sql.one(f"select count(*) from pg_stat_activity where {asleep}"), "it sleeps")
    job.kill()
    sql.run("set lock_timeout = '10s'")
    sql.call("broadcast", stream, "y")
    assert sql.data(stream) == ["y"]


@pytest.mark.parametrize("factory", [None, psycopg2.extras.DictCursor, psycopg2.extras.RealDictCursor])
def test_the_watermark_can_be_had_with_an_applications_own_cursor(
    factory: Any, database: str, sql: Session, stream: str
) -> None:
    [id] = publish(sql, stream, "x")
    with psycopg2.connect(database) as connection, connection.cursor(cursor_factory=factory) as cursor:
        assert using.last_ids(cursor, [stream, f"{stream} none"]) == [id, 0]
    connection.close()


def test_in_an_applications_own_transaction_errors_stay_psycopg2s(sql: Session, stream: str) -> None:
    with raises("22023"), sql.connection.cursor() as cursor:
        using.broadcast_on_commit(cursor, "", "x", Publication())
