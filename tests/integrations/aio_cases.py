"""The cases of test_aio.py: a program that is not patched for gevent. Arguments: a database URL, and names of cases if not all.

It prints a line of JSON for each case, with the name and the traceback of a failure.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import traceback
from collections.abc import Callable, Coroutine
from contextlib import suppress
from time import monotonic
from typing import Any

import psycopg
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from pgbus_gevent.aio import Bus, Gap, GapDetected, Tail
from pgbus_gevent.core.client import Subscriber
from pgbus_gevent.core.events import Published
from pgbus_gevent.errors import DatabaseError, DatabaseUnavailable, InvalidArgument, InvalidCursor, RolledBack
from pgbus_gevent.messages import Message

URL = sys.argv[1] if len(sys.argv) > 1 else ""
SECRET = "a secret of the tests"
PATIENCE = 30.0

Case = Callable[[Bus], Coroutine[Any, Any, None]]
CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    CASES[function.__name__] = function
    return function


async def take(tail: Tail, count: int) -> list[Message]:
    return await asyncio.wait_for(_take(tail, count), PATIENCE)


async def _take(tail: Tail, count: int) -> list[Message]:
    return [await anext(tail) for _ in range(count)]


async def until(condition: Callable[[], object], what: str) -> None:
    for _ in range(int(PATIENCE / 0.02)):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"in vain: {what}")


async def sql(statement: str, *parameters: object) -> list[tuple[Any, ...]]:
    async with await psycopg.AsyncConnection.connect(URL, autocommit=True) as connection:
        cursor = await connection.execute(statement, parameters or None)
        return await cursor.fetchall() if cursor.description else []


# publishing


@case
async def a_message_is_published_at_once_with_all_its_parts(bus: Bus) -> None:
    orders = bus.stream("parts")
    id = await orders.broadcast("paid", event="order.paid", visible_to="staff", exclude="c1")
    (message,) = await orders.read_after(0)
    assert (message.id, message.event, message.data) == (id, "order.paid", "paid")
    assert (message.visible_to, message.exclude) == ("staff", "c1")
    assert message.created_at is not None and await orders.last_id() == id


@case
async def a_message_carries_the_trace_of_its_publisher(bus: Bus) -> None:
    trace.set_tracer_provider(TracerProvider(shutdown_on_exit=False))
    async with Bus(URL, secret=SECRET, tracing=True) as traced:
        orders = traced.stream("traces")
        with trace.get_tracer("shop").start_as_current_span("request") as request:
            await orders.broadcast("a")
            await orders.broadcast_many(["b", "c"])
            async with traced.transaction() as cursor:
                await orders.broadcast("d", using=cursor)
                await orders.broadcast_many(["e", "f"], using=cursor)
    rows = await sql(
        "select split_part(trace, '-', 2), trace from pgbus.messages where stream = 'traces' order by msg_id"
    )
    assert {found for found, _ in rows} == {trace.format_trace_id(request.get_span_context().trace_id)}
    spans = [whole for _, whole in rows]
    assert len(spans) == 6 and spans[1] == spans[2] and spans[4] == spans[5] and len(set(spans)) == 4


@case
async def a_transaction_does_not_seem_committed_if_the_error_of_a_statement_was_caught(bus: Bus) -> None:
    try:
        async with bus.transaction() as cursor:
            await bus.stream("rolled back").broadcast("gone", using=cursor)
            with suppress(psycopg.errors.DivisionByZero):
                await cursor.execute("select 1 / 0")
    except RolledBack:
        assert await bus.stream("rolled back").last_id() == 0
    else:
        raise AssertionError("it seems committed")


@case
async def a_key_makes_a_second_broadcast_return_the_first_id(bus: Bus) -> None:
    orders = bus.stream("keys")
    assert await orders.broadcast("a", key="k") == await orders.broadcast("b", key="k")
    assert [message.data for message in await orders.read_after(0)] == ["a"]


@case
async def an_ephemeral_message_is_not_stored(bus: Bus) -> None:
    assert await bus.stream("typing").broadcast("…", ephemeral=True) is None
    assert await bus.stream("typing").last_id() == 0


@case
async def several_messages_are_published_in_order_with_keys(bus: Bus) -> None:
    many = bus.stream("many")
    last = await many.broadcast_many(["a", "b", "c"], keys=["1", None, "3"])
    await many.broadcast_many(["c again", "d"], keys=["3", None])
    messages = await many.read_after(0)
    assert [message.data for message in messages] == ["a", "b", "c", "d"] and messages[2].id == last
    assert await many.broadcast_many([]) is None


@case
async def with_using_the_messages_are_part_of_the_transaction(bus: Bus) -> None:
    orders = bus.stream("using")
    async with await psycopg.AsyncConnection.connect(URL) as connection:
        assert await orders.broadcast("undone", using=connection) is None
        await connection.rollback()
        async with connection.cursor() as cursor:
            await orders.broadcast("one", using=cursor)
            assert await orders.broadcast_many(["two", "three"], event="e", using=cursor) is None
            await orders.broadcast("not stored", ephemeral=True, using=cursor)
        assert await orders.last_id() == 0
        await connection.commit()
    assert [message.data for message in await orders.read_after(0)] == ["one", "two", "three"]


@case
async def a_transaction_of_the_bus_commits_or_rolls_back(bus: Bus) -> None:
    orders = bus.stream("transactions")
    async with bus.transaction() as cursor:
        await cursor.execute("create table things (id int)")
        await orders.broadcast("one", using=cursor)
    try:
        async with bus.transaction() as cursor:
            await cursor.execute("insert into things values (1)")
            await orders.broadcast("two", using=cursor)
            raise RuntimeError
    except RuntimeError:
        pass
    assert await sql("select count(*) from things") == [(0,)]
    assert [message.data for message in await orders.read_after(0)] == ["one"]


@case
async def sessions_of_sqlalchemy_can_be_given(bus: Bus) -> None:
    orders = bus.stream("sqlalchemy")
    engine = create_async_engine("postgresql+psycopg://", connect_args=dict(conninfo_to_dict(URL)))
    async with AsyncSession(engine) as session, session.begin():
        await orders.broadcast("one", using=session)
        assert await orders.last_id(using=session) == 0
        await orders.broadcast("two", using=await session.connection())
    await engine.dispose()
    assert [message.data for message in await orders.read_after(0)] == ["one", "two"]


@case
async def anything_else_is_refused_and_nothing_is_published(bus: Bus) -> None:
    orders = bus.stream("refused")
    for wrong in (1, "connection", psycopg.AsyncConnection, bus):
        try:
            await orders.broadcast("x", using=wrong)
        except InvalidArgument as error:
            assert "AsyncConnection" in str(error)
        else:
            raise AssertionError(f"{wrong!r} was taken")
    with psycopg.connect(URL) as blocking:
        try:
            await orders.broadcast("x", using=blocking)
        except InvalidArgument:
            pass
        else:
            raise AssertionError("a blocking connection was taken")
    assert await orders.last_id() == 0


@case
async def wrong_arguments_are_refused(bus: Bus) -> None:
    orders = bus.stream("wrong")
    calls: list[Callable[[], Coroutine[Any, Any, object]]] = [
        lambda: orders.broadcast("x", event="pgbus:no"),
        lambda: orders.broadcast("x\0"),
        lambda: orders.broadcast("x", ephemeral=True, key="k"),
        lambda: orders.broadcast_many("abc"),
        lambda: bus.stream_tag(),
        lambda: bus.disconnect(""),
        lambda: orders.broadcast_many(["a"], keys=["k"], using=object()),
    ]
    for call in calls:
        try:
            await call()
        except InvalidArgument:
            continue
        raise AssertionError("it was taken")
    try:
        orders.tail(since="1e3")
    except InvalidCursor:
        return
    raise AssertionError("it was taken")


# pages


@case
async def a_tag_has_the_watermark_of_the_transaction(bus: Bus) -> None:
    orders = bus.stream("pages")
    first = await orders.broadcast("one")
    async with bus.transaction("repeatable read") as cursor:
        await cursor.execute("select 1")
        second = await orders.broadcast("two")
        assert await orders.last_id(using=cursor) == first
        tag = await bus.stream_tag("pages", using=cursor)
    assert f'since-id="{first}"' in tag and f'src="{bus.stream_path("pages")}"' in tag
    both = await bus.stream_tag("pages", "others", subscriber=Subscriber(owner="ada"))
    assert f"since={second}" in both and 'identity="' in both and hasattr(both, "__html__")


@case
async def a_tag_is_the_one_that_the_bus_for_gevent_makes(bus: Bus) -> None:
    ada = Subscriber(owner="ada")
    code = (
        "import sys; from pgbus_gevent import Bus, Subscriber; bus = Bus(sys.argv[1], secret=sys.argv[2])\n"
        "print(bus.stream_tag('same', subscriber=Subscriber(owner='ada')))"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, URL, SECRET, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert output.decode().strip() == await bus.stream_tag("same", subscriber=ada)
    alone = [await bus.stream_tag(name, expires_at=2e9) for name in ("same", "other")]
    assert await bus.stream_tags("same", "other", expires_at=2e9) == alone


# tails


@case
async def a_tail_brings_what_is_new_in_order_and_once(bus: Bus) -> None:
    orders = bus.stream("tail")
    await orders.broadcast("before")
    tail = orders.tail()
    waiting = asyncio.create_task(take(tail, 300))
    await until(lambda: bus._ear.listening and tail.cursor, "the tail has started")

    async def publish(n: int) -> None:
        async with await psycopg.AsyncConnection.connect(URL, autocommit=True) as connection:
            for m in range(30):
                await connection.execute("select pgbus.broadcast('tail', %s)", [f"{n} {m}"])

    await asyncio.gather(*map(publish, range(10)))
    messages = await waiting
    stored = (await orders.read_after(0))[1:]
    assert messages == stored and tail.cursor == messages[-1].id


@case
async def a_tail_starts_after_a_cursor_or_with_the_last_messages(bus: Bus) -> None:
    orders = bus.stream("starts")
    await orders.broadcast_many([str(n) for n in range(1200)])
    ids = [message.id for message in await orders.read_after(0, 2000)]
    assert [message.data for message in await take(orders.tail(since=ids[99]), 3)] == ["100", "101", "102"]
    assert [message.data for message in await take(orders.tail(since=str(ids[1197])), 2)] == ["1198", "1199"]
    assert [message.data for message in await take(orders.tail(replay=2), 2)] == ["1198", "1199"]
    everything = await take(orders.tail(since=0), 1200)
    assert [message.id for message in everything] == ids


@case
async def a_tail_goes_on_from_its_cursor_after_a_pause(bus: Bus) -> None:
    orders = bus.stream("pauses")
    tail = orders.tail(since=0)
    await orders.broadcast("one")
    assert [message.data for message in await take(tail, 1)] == ["one"]
    await orders.broadcast_many(["two", "three"])
    assert [message.data for message in await take(tail, 2)] == ["two", "three"]


@case
async def a_loop_that_is_left_loses_nothing(bus: Bus) -> None:
    orders = bus.stream("left")
    await orders.broadcast_many(["one", "two", "three"])
    tail = orders.tail(since=0)
    async for message in tail:
        if message.data == "one":
            break
    try:
        await asyncio.wait_for(take(tail, 3), 0.2)
    except asyncio.TimeoutError:
        pass  # two and three have come and are gone with the task, but the cursor says so
    assert tail.cursor == await orders.last_id()


@case
async def pruned_messages_are_a_gap(bus: Bus) -> None:
    orders = bus.stream("pruned")
    ids = [await orders.broadcast(str(n)) for n in range(5)]
    await sql("insert into pgbus.horizons (stream, msg_id) values ('pruned', %s)", ids[2])
    await sql("delete from pgbus.messages where stream = 'pruned' and msg_id <= %s", ids[2])
    gaps: list[Gap] = []
    tail = orders.tail(since=ids[0], on_gap=gaps.append)
    assert [message.data for message in await take(tail, 2)] == ["3", "4"]
    assert gaps == [Gap("pruned", ids[0], ids[3], ids[4], "expired")]
    strict = orders.tail(since=ids[0])
    try:
        await take(strict, 1)
    except GapDetected as error:
        assert error.gap == gaps[0] and str(ids[0]) in str(error)
    else:
        raise AssertionError("the gap was skipped in silence")
    assert [message.data for message in await take(strict, 2)] == ["3", "4"]


@case
async def a_cursor_from_another_database_is_a_gap_and_all_follows(bus: Bus) -> None:
    orders = bus.stream("ahead")
    id = await orders.broadcast("one")
    gaps: list[Gap] = []
    tail = orders.tail(since=(id or 0) + 10**6, on_gap=gaps.append)
    assert [message.data for message in await take(tail, 1)] == ["one"]
    assert [(gap.requested, gap.reason) for gap in gaps] == [((id or 0) + 10**6, "ahead")]


@case
async def messages_that_the_database_loses_are_a_gap(bus: Bus) -> None:
    orders = bus.stream("lost")
    await orders.broadcast("kept")
    lost = await orders.broadcast("lost")
    gaps: list[Gap] = []
    tail = orders.tail(since=0, on_gap=gaps.append)
    await take(tail, 2)
    waiting = asyncio.create_task(take(tail, 2))
    await asyncio.sleep(0.1)
    await sql(
        "delete from pgbus.messages where stream = 'lost' and msg_id = %s", lost
    )  # as if a standby had taken over
    await orders.broadcast("new")
    assert [message.data for message in await waiting] == ["kept", "new"]
    assert [(gap.requested, gap.reason) for gap in gaps] == [(lost, "ahead")]


@case
async def a_tail_survives_the_loss_of_all_its_sessions(bus: Bus) -> None:
    orders = bus.stream("sessions")
    tail = orders.tail()
    waiting = asyncio.create_task(take(tail, 2))
    await until(lambda: bus._ear.listening and tail.cursor is not None, "the tail has started")
    ours = "pg_stat_activity where application_name like 'pgbus-aio%' and datname = current_database()"
    assert (await sql(f"select count(pg_terminate_backend(pid)) from {ours}"))[0][0] >= 1
    await sql("select pgbus.broadcast('sessions', 'one')")
    await until(lambda: bus._ear.listening, "it listens again")
    await sql("select pgbus.broadcast('sessions', 'two')")
    assert [message.data for message in await waiting] == ["one", "two"]


@case
async def messages_without_a_notification_come_with_the_sweeps(bus: Bus) -> None:
    async with Bus(URL, secret=SECRET, wake="poll", catch_up_interval=0.5) as deaf:
        waiting = asyncio.create_task(take(deaf.stream("silent").tail(), 1))
        await asyncio.sleep(0.3)
        await sql("select pgbus.broadcast('silent', 'one')")
        assert [message.data for message in await waiting] == ["one"]
        assert not deaf._ear.listening


@case
async def changed_names_of_the_channels_are_followed(bus: Bus) -> None:
    waiting = asyncio.create_task(take(bus.stream("renamed").tail(), 1))
    await until(lambda: bus._ear.listening, "it listens")
    await sql("select pgbus.change_channels()")
    await sql("select pgbus.broadcast('renamed', 'one')")
    assert [message.data for message in await waiting] == ["one"]


@case
async def a_loop_over_a_tail_ends_when_its_bus_is_closed(bus: Bus) -> None:
    found: list[str] = []
    orders = bus.stream("ending")
    handles = asyncio.Event()

    async def follow(tail: Tail, slowly: bool) -> None:
        async for message in tail:
            found.append(message.data)
            if slowly:
                await handles.wait()

    loops = [asyncio.create_task(follow(orders.tail(since=0), slowly)) for slowly in (False, True)]
    await orders.broadcast("one")
    await until(
        lambda: found == ["one", "one"], "both have the message, one waits for the next, and one still handles it"
    )
    await bus.close()
    handles.set()
    await asyncio.wait_for(asyncio.gather(*loops), PATIENCE)
    assert [message.data for message in await take(orders.tail(since=0), 1)] == ["one"], (
        "a new tail opens the bus again"
    )


@case
async def a_tail_refuses_a_second_task(bus: Bus) -> None:
    tail = bus.stream("shared").tail(since=0)
    waiting = asyncio.create_task(take(tail, 1))
    await until(lambda: bus._ear.listening, "it waits")
    try:
        await anext(tail)
    except RuntimeError as error:
        assert "a tail of its own" in str(error)
    else:
        raise AssertionError("both got it")
    await bus.stream("shared").broadcast("one")
    assert [message.data for message in await waiting] == ["one"]


@case
async def a_bus_that_is_closed_while_the_doorbell_rings_ends(bus: Bus) -> None:
    waiting = asyncio.create_task(take(bus.stream("closing").tail(), 1))
    await until(lambda: bus._ear.listening, "it listens")
    bus._ear._ring()
    await asyncio.wait_for(bus.close(), PATIENCE)
    waiting.cancel()


@case
async def a_cancelled_tail_ends_at_any_moment(bus: Bus) -> None:
    # Most moments of a busy tail are within psycopg, which loses some cancellations before Python 3.12.
    busy = bus.stream("cancelled")

    async def publish() -> None:
        while True:
            await busy.broadcast("x")

    async def follow(other: Bus) -> None:
        async for _ in other.stream("cancelled").tail(replay=5):
            pass

    publisher = asyncio.create_task(publish())
    for n in range(12):
        async with Bus(URL, secret=SECRET, pool_size=1 + n % 4) as other:
            tails = [asyncio.create_task(follow(other)) for _ in range(20)]
            await asyncio.sleep(0.02 * n)
            for tail in tails:
                tail.cancel()
            _, still = await asyncio.wait(tails, timeout=PATIENCE)
            assert not still, f"{len(still)} tails go on"
            assert all(tail.cancelled() for tail in tails)
    publisher.cancel()
    await asyncio.wait([publisher])


@case
async def a_role_with_the_rights_of_a_server_can_follow(bus: Bus) -> None:
    role = f"follower_{os.getpid()}"
    await sql(f"create role {role}")
    await sql("select pgbus.grant_server(%s)", role)
    try:
        async with Bus(make_conninfo(URL, options=f"-c role={role}"), secret=SECRET) as follower:
            waiting = asyncio.create_task(take(follower.stream("roles").tail(), 1))
            await until(lambda: follower._ear.listening, "it listens")
            await bus.stream("roles").broadcast("one")
            assert [message.data for message in await waiting] == ["one"]
    finally:
        await sql(f"drop owned by {role}")
        await sql(f"drop role {role}")


@case
async def each_broadcast_is_an_event(bus: Bus) -> None:
    events: list[Published] = []
    bus.events.subscribe(Published, events.append)
    orders = bus.stream("events")
    await orders.broadcast("one")
    await orders.broadcast_many(["two", "three"])
    async with bus.transaction() as cursor:
        await orders.broadcast("four", using=cursor)
        await orders.broadcast_many(["five", "six"], using=cursor)
        await orders.broadcast_many([], using=cursor)
    found = [(event.messages, event.kind, event.error) for event in events]
    expected = [
        (1, "now", None),
        (2, "now", None),
        (1, "on-commit", None),
        (2, "on-commit", None),
        (0, "on-commit", None),
    ]
    assert found == expected
    assert [message.data for message in await orders.read_after(0)] == ["one", "two", "three", "four", "five", "six"]


@case
async def an_iterator_that_the_database_refuses_raises(bus: Bus) -> None:
    nobody = make_conninfo(URL, options="-c role=pg_monitor")
    async with Bus(nobody, secret=SECRET) as refused:
        try:
            await take(refused.stream("orders").tail(since=0), 1)
        except DatabaseError as error:
            assert error.sqlstate == "42501", error
        else:
            raise AssertionError("it was read")


@case
async def without_a_database_the_first_read_raises(bus: Bus) -> None:
    async with Bus("postgresql://127.0.0.1:1/none", secret=SECRET, pool_timeout=1) as away:
        try:
            await take(away.stream("orders").tail(), 1)
        except DatabaseUnavailable as error:
            assert "pool_size" in str(error)
        else:
            raise AssertionError("there is no database")


@case
async def a_bus_can_be_used_again_after_it_was_closed(bus: Bus) -> None:
    again = Bus(URL, secret=SECRET)
    first = await again.stream("again").broadcast("one")
    await again.close()
    await again.close()
    assert await again.stream("again").last_id() == first
    await again.close()


async def _run(function: Case) -> None:
    async with Bus(URL, secret=SECRET) as bus:
        await asyncio.wait_for(function(bus), 2 * PATIENCE)


def main() -> None:
    wanted = sys.argv[2:] or list(CASES)
    for name in wanted:
        function = CASES[name]
        failure, began = "", monotonic()
        try:
            asyncio.run(_run(function))
        except BaseException:
            failure = traceback.format_exc()
        print(json.dumps({"name": name, "failure": failure, "seconds": monotonic() - began}), flush=True)
    imported = sorted(name for name in sys.modules if name.partition(".")[0] in ("gevent", "psycopg2", "psycogreen"))
    print(json.dumps({"name": "nothing_of_gevent_was_imported", "failure": " ".join(imported)}), flush=True)


if __name__ == "__main__":
    main()
