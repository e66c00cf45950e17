"""Reads are few, merged and fair, and survive an outage of the database."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import gevent
import pytest
from gevent.event import Event
from streamer_parts import FakeClient, Parts, Table, wait_until

from pgbus_gevent.core.client import Place, StreamRequest
from pgbus_gevent.streamer import reader
from pgbus_gevent.streamer.turns import breathe


@contextmanager
def held_reads(table: Table) -> Iterator[Event]:
    """Make every read wait until the event is set, so that more reads can be asked for meanwhile."""
    go = Event()
    table.on_read = go.wait
    try:
        yield go
    finally:
        go.set()
        table.on_read = lambda: None


def wait_for_read(table: Table, count: int) -> None:
    wait_until(lambda: len(table.reads) == count, "the read was not begun")


def settled(parts: Parts, *clients: FakeClient) -> None:
    def at_the_head(client: FakeClient) -> bool:
        subscription = client.subscription
        head = parts.table.head(client.stream)
        return subscription is None or (subscription.cursor is not None and subscription.cursor >= head)

    wait_until(
        lambda: all(map(at_the_head, clients or parts.clients)) and not parts.reading, "reads are left over", 60.0
    )


class Light(FakeClient):
    """A client that only counts its bytes."""

    frames = 0

    def send(self, data: bytes, now: float) -> None:
        self.frames += data.count(b"\n\n")


# Merging


def test_five_thousand_clients_behind_at_their_own_cursors_cost_a_handful_of_reads() -> None:
    table = Table(step=1)
    for _ in range(500):
        table.append("orders", "x")
    clients = [Light(f"{n}", since=n // 10) for n in range(5000)]

    def settles(client: Light) -> bool:
        place = client.subscription
        return place is not None and (parts.waits(client) or (place.cursor or 0) >= 500)

    # No read is answered before every client waits, however slow the machine is.
    table.on_read = lambda: wait_until(lambda: all(settles(client) for client in clients))
    with Parts(table, ring_messages=1, page_size=500, readers=1) as parts:
        for client in reversed(clients):
            parts.join(client)
        settled(parts, *clients)
        greeting = 1
        assert [client.frames for client in clients] == [greeting + 509 - max(9, n // 10) for n in range(5000)]
        assert len(table.reads) <= 6


@pytest.mark.slow
def test_clients_of_many_new_streams_share_their_reads() -> None:
    table = Table()
    with Parts(table, readers=1) as parts, held_reads(table) as go:
        clients = [parts.connect(f"stream-{n}") for n in range(200)]
        wait_for_read(table, 1)
        breathe()
        go.set()
        settled(parts)
        assert all(client.received for client in clients)
        assert table.reads.count("openings") <= 5


def test_a_stream_is_opened_by_one_read() -> None:
    with Parts() as parts:
        for _ in range(3):
            parts.publish()
        client = parts.connect(since=10)
        settled(parts)
        assert client.ids == [20, 30]
        assert parts.table.reads == ["openings"]


def test_looks_that_are_asked_for_again_and_again_are_one_read() -> None:
    with Parts(readers=1, ring_messages=1000, page_size=3) as parts:
        client = parts.connect()
        settled(parts)
        reads = len(parts.table.reads)
        with held_reads(parts.table) as go:
            parts.publish(ring=False)
            parts.look()
            wait_for_read(parts.table, reads + 1)
            for _ in range(100):
                parts.publish(ring=False)
                parts.look()
            go.set()
            settled(parts)
        # The first read, one for all clients that came meanwhile, and one more for each of its pages.
        assert len(parts.table.reads) - reads <= 2 + 101 // 3
        assert client.ids == parts.table.ids("orders")


def test_a_page_is_read_once_for_all_clients_within_it_while_the_stream_moves() -> None:
    """Passes during the read must not ask for the same page again for the clients that still wait for it."""
    table = Table()
    for _ in range(10):
        table.append("orders")
    with Parts(table, ring_messages=1, page_size=100) as parts, held_reads(table) as go:
        clients = [parts.connect(since=n % 90) for n in range(1000)]
        wait_until(lambda: all(parts.waits(client) for client in clients))
        served: list[int] = []

        def on_send() -> None:
            served.append(1)
            if len(served) <= 1000 and len(served) % 100 == 0:
                parts.publish()

        for client in clients:
            client.on_send = on_send
        go.set()
        settled(parts)
        assert all(client.ids == table.ids("orders", client.request.places[0].since or 0) for client in clients)
        assert table.reads.count("pages") <= 12


@pytest.mark.parametrize("kind", ["openings", "pages"])
def test_a_stream_is_read_by_one_reader_at_a_time(kind: str) -> None:
    table = Table()
    for _ in range(5):
        table.append("orders")
    with Parts(table, ring_messages=1, page_size=100, readers=4) as parts:
        if kind == "pages":
            parts.connect()
            settled(parts)
        with held_reads(table) as go:
            before = len(table.reads)
            for n in range(10):
                client = parts.connect(since=n)
                wait_until(lambda client=client: parts.waits(client))  # type: ignore[misc]
                breathe()
            assert table.reads[before:] == [kind]
            go.set()
            settled(parts)
        assert len(table.reads) - before <= 4
        assert all(
            client.ids == table.ids("orders", client.request.places[0].since or 0) for client in parts.clients[-10:]
        )


def test_replays_of_different_lengths_are_answered_together() -> None:
    table = Table()
    for _ in range(10):
        table.append("orders")
    with Parts(table, ring_messages=20) as parts, held_reads(table) as go:
        clients = [parts.connect(replay=n) for n in range(1, 10)]
        wait_until(lambda: all(parts.waits(client) for client in clients))
        go.set()
        settled(parts)
        assert [len(client.ids) for client in clients] == list(range(1, 10))
        assert len(table.reads) <= 3


# Fairness


@pytest.mark.slow
def test_clients_far_behind_do_not_make_the_others_wait() -> None:
    table = Table(step=1)
    for _ in range(5000):
        table.append("orders", "x")
    with Parts(table, ring_messages=1, page_size=20, readers=1) as parts:
        farthest = [Light(f"far-{n}", since=n * 200) for n in range(4)]
        for far in farthest:
            parts.join(far)
        wait_until(lambda: all(far.frames > 20 for far in farthest))
        before = len(table.reads)
        behind = [5009 - 15 - n for n in range(5)]
        others = [Light(f"{since}", since=since) for since in behind]
        done: list[int] = []
        for client in others:
            parts.join(client)

        def look() -> None:
            if not done and all(client.subscription and client.subscription.cursor == 5009 for client in others):
                done.append(len(table.reads) - before)

        table.on_read = look
        settled(parts, *farthest)
        assert done and done[0] <= 25
        assert len(table.reads) - before > 100, "the one far behind was not far behind"
        assert [far.frames for far in farthest] == [1 + 5009 - max(9, n * 200) for n in range(4)]


def test_a_client_far_behind_gets_everything_without_another_broadcast() -> None:
    table = Table(step=1)
    for _ in range(3000):
        table.append("orders", "x")
    with Parts(table, ring_messages=10, page_size=100) as parts:
        client = parts.connect(since=0)
        settled(parts)
        assert client.ids == table.ids("orders")


def test_the_database_is_read_only_as_fast_as_the_client_takes_it() -> None:
    table = Table()
    for _ in range(100):
        table.append("orders")
    with Parts(table, ring_messages=1, page_size=10) as parts:
        client = parts.connect(since=0)
        client.on_send = lambda: setattr(client, "jammed", True)
        wait_until(lambda: client.waiting)
        for _ in range(20):
            breathe()
        assert len(table.reads) <= 2
        client.on_send = lambda: None
        client.unblock()
        settled(parts)
        assert client.ids == table.ids("orders")


def test_few_pages_are_in_memory_while_the_dispatcher_is_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "STREAMS_PER_READ", 2)
    with Parts(readers=1) as parts:
        clients = [parts.connect(f"stream {n}") for n in range(7)]
        settled(parts)
        for client in clients:
            parts.publish(client.stream)
        settled(parts)
        parts.greenlets[0].kill()  # the dispatcher
        for client in clients:
            [subscription] = client.subscriptions
            subscription.cursor = 0
            parts.board.wait(subscription)
        wait_until(lambda: len(parts.board.pages) == 2, "no pages were read")
        for _ in range(10):
            breathe()
        assert len(parts.board.pages) == 2
        parts.restart(0)
        settled(parts)
        assert all(client.ids == [client.ids[0]] * 2 for client in clients)


def test_a_client_that_blocks_while_its_page_is_read_gets_it_when_it_takes_bytes() -> None:
    table = Table()
    for _ in range(5):
        table.append("orders")
    with Parts(table, ring_messages=1, page_size=10) as parts:
        parts.connect()
        settled(parts)
        with held_reads(table) as go:
            client = parts.connect(since=0)
            wait_until(lambda: parts.waits(client) and client.received)
            client.jammed = True
            client.send(b"event: note\ndata: x\n\n", 0.0)  # as of another of its streams
            assert client.waiting
            go.set()
            wait_until(lambda: not parts.reading)
        client.unblock()
        settled(parts)
        assert [message.data for message in client.messages] == ["x", "10", "20", "30", "40", "50"]


# Looks


def test_a_head_that_is_found_old_is_no_proof_that_a_cursor_is_ahead() -> None:
    """A client that asks for more than the ring has is answered without bringing the ring up to date."""
    with Parts(ring_messages=1) as parts:
        for _ in range(5):
            parts.publish()
        parts.connect()
        settled(parts)
        for _ in range(3):
            parts.publish(ring=False)
        with held_reads(parts.table) as go:
            replaying, knowing = parts.connect(replay=7), parts.connect(since=70)
            wait_until(lambda: all(parts.waits(client) for client in parts.clients[1:]))
            go.set()
            settled(parts)
        assert knowing.controls("gap-detected") == []
        assert knowing.ids == [80]
        assert replaying.ids == [20, 30, 40, 50, 60, 70, 80]


def test_a_cursor_is_not_ahead_while_there_is_more_to_read() -> None:
    with Parts(page_size=2) as parts:
        parts.connect()
        settled(parts)
        for _ in range(9):
            parts.publish(ring=False)
        parts.table.on_read = breathe
        client = parts.connect(since=90)
        settled(parts)
        assert client.controls("gap-detected") == []
        # One more if the client waits again only while the last page is being read.
        assert parts.table.reads.count("pages") in (5, 6)


def test_a_replay_brings_messages_without_a_notification_to_the_others_too() -> None:
    with Parts(ring_messages=1) as parts:
        for _ in range(5):
            parts.publish()
        other = parts.connect()
        settled(parts)
        for _ in range(3):
            parts.publish(ring=False)
        parts.connect(replay=7)
        settled(parts)
        assert other.ids == [60, 70, 80]


def test_a_ring_that_is_there_is_not_read_again_for_a_replay() -> None:
    with Parts(ring_messages=1) as parts:
        for _ in range(5):
            parts.publish()
        parts.connect()
        settled(parts)
        parts.connect(replay=3)
        settled(parts)
        assert parts.table.questions == [("orders", None, None), ("orders", None, 3)]


def test_a_look_for_the_remaining_clients_is_not_lost_when_one_leaves() -> None:
    with Parts(readers=1) as parts:
        staying = parts.connect()
        settled(parts)
        with held_reads(parts.table) as go:
            parts.connect("stock")
            wait_for_read(parts.table, 2)
            parts.publish(ring=False)
            parts.look()
            leaving = parts.connect(since=1000)
            wait_until(lambda: parts.waits(leaving))
            parts.leave(leaving)
            go.set()
            settled(parts)
        assert staying.ids == [10]


def test_a_read_that_ends_after_the_last_client_left_keeps_nothing() -> None:
    table = Table()
    for _ in range(5):
        table.append("orders")
    with Parts(table) as parts, held_reads(table) as go:
        client = parts.connect(since=0)
        wait_for_read(table, 1)
        parts.leave(client)
        go.set()
        wait_until(lambda: not parts.reading)
        assert parts.budget.used == 0
        assert client.received == b""


@pytest.mark.parametrize("since", [15, 35])
def test_messages_that_were_deleted_by_hand_do_not_make_it_read_for_ever(since: int) -> None:
    with Parts(ring_messages=1, page_size=10) as parts:
        for _ in range(5):
            parts.publish()
        parts.connect()
        settled(parts)
        parts.table.rows["orders"].clear()
        parts.table.horizons["orders"] = 0
        parts.log().clear_ring()
        client = parts.connect(since=since)
        wait_until(lambda: client.controls("gap-detected") and not parts.reading)
        reads = len(parts.table.reads)
        for _ in range(20):
            breathe()
        assert len(parts.table.reads) == reads
        [told] = client.controls("gap-detected")
        assert json.loads(told) == {
            "stream": "orders", "requestedId": since, "oldestId": 0, "lastId": 0, "reason": "ahead",
        }  # fmt: skip
        parts.publish()
        wait_until(lambda: client.ids == [60])


# An outage of the database


def test_an_outage_of_the_database_loses_no_message(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reader, "_PAUSES", (0.002, 0.002))
    table = Table()
    for _ in range(20):
        table.append("orders")
    table.failures = 10**6
    with Parts(table, ring_messages=2) as parts:
        clients = [parts.connect(since=0), parts.connect(replay=5), parts.connect(), parts.connect("stock")]
        wait_until(lambda: len(table.reads) > 6)
        table.failures = 0
        settled(parts)
        assert [len(client.ids) for client in clients] == [20, 5, 0, 0]
        table.failures = 10**6
        late = parts.connect(since=100)
        wait_until(lambda: late.received)
        parts.look("orders")
        before = len(table.reads)
        wait_until(lambda: len(table.reads) > before + 6)
        parts.publish(ring=False)
        table.failures = 0
        settled(parts)
        assert late.ids == table.ids("orders", 100)
        assert [len(client.ids) for client in clients[:3]] == [21, 6, 1]
    warnings = [record for record in caplog.records if "cannot read messages" in record.getMessage()]
    assert len(warnings) == 2, "it is said once for each outage, and not for each try"


def test_a_kept_page_does_not_end_an_outage(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(reader, "KEEP_SECONDS", 600.0)
    monkeypatch.setattr(reader, "_PAUSES", (0.002, 0.002))
    table = Table()
    for _ in range(20):
        table.append("orders")
    with Parts(table, readers=1, ring_messages=2) as parts:
        settled(parts, parts.connect(since=0))
        table.failures = 10**6
        parts.look("orders")

        def more_tries() -> None:
            before = len(table.reads)
            wait_until(lambda: len(table.reads) > before + 4)

        for _ in range(5):
            more_tries()
            # This client is sent the page that was read for the first one.
            late = parts.connect(since=100)
            wait_until(lambda client=late: client.ids == table.ids("orders", 100))
        more_tries()
        table.failures = 0
        wait_until(lambda: not parts.reading)
    warnings = [record for record in caplog.records if "cannot read messages" in record.getMessage()]
    assert len(warnings) == 1


def test_tries_are_spaced_out_while_the_database_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        breathe()

    monkeypatch.setattr(reader, "gevent", SimpleNamespace(sleep=sleep))
    table = Table()
    table.failures = 12
    with Parts(table, readers=1) as parts:
        client = parts.connect()
        wait_until(lambda: not parts.reading and client.received)
    assert len(pauses) == 12
    assert 0.02 < pauses[0] <= 0.05
    assert all(0.9 < pause <= 2.0 for pause in pauses[-3:])


def test_a_reader_that_is_killed_in_the_middle_of_a_read_loses_nothing() -> None:
    table = Table()
    for _ in range(6):
        table.append("orders")
    with Parts(table, ring_messages=1, readers=1) as parts:
        for read, kind in enumerate(["openings", "pages"], 1):
            with held_reads(table):
                client = parts.connect(since=0 if read == 1 else 15)
                wait_until(lambda kind=kind: table.reads[-1:] == [kind])  # type: ignore[misc]
                parts.restart(1)
            settled(parts)
            assert client.ids == table.ids("orders", client.request.places[0].since or 0)


def test_nothing_stays_of_clients_that_left_while_the_database_was_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_PAUSES", (0.002, 0.002))
    table = Table()
    for _ in range(20):
        table.append("orders")
    with Parts(table, ring_messages=1) as parts:
        client = parts.connect()
        settled(parts)
        table.failures = 10**6
        behind = parts.connect(since=0)
        wait_until(lambda: behind.subscription and behind.subscription.cursor == 0)
        before = len(table.reads)
        wait_until(lambda: len(table.reads) > before + 6)
        parts.leave(behind)
        parts.leave(client)
        table.failures = 0
        wait_until(lambda: not parts.reading)
        assert not parts.delivering and not parts.board._waiting


# pages that are kept


def test_a_page_also_serves_clients_that_come_a_moment_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "KEEP_SECONDS", 600.0)  # however slow the machine is
    table = Table()
    for _ in range(20):
        table.append("orders")
    ids = table.ids("orders")
    with Parts(table, ring_messages=2, page_size=4) as parts:
        first = parts.connect(since=ids[0])
        wait_until(lambda: first.ids == ids[1:])
        reads = list(table.reads)
        later = [parts.connect(since=ids[n]) for n in range(10)]
        wait_until(lambda: all(client.ids == ids[n + 1 :] for n, client in enumerate(later)))
        assert table.reads == reads


def test_pages_are_dropped_when_no_client_has_needed_one_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgbus_gevent.streamer.reader.KEEP_SECONDS", 0.01)
    table = Table()
    for _ in range(20):
        table.append("orders")
    with Parts(table, ring_messages=2, page_size=4) as parts:
        first = parts.connect(since=0)
        wait_until(lambda: first.ids == table.ids("orders"))
        wait_until(lambda: not parts.reader._kept)


def test_a_wake_is_not_forgotten_if_the_same_look_finds_the_start_of_a_replay() -> None:
    with Parts(ring_messages=1, readers=1) as parts:
        for _ in range(5):
            parts.publish()
        live = parts.connect()
        settled(parts)
        parts.greenlets[1].kill()
        parts.publish(ring=False)
        replaying = parts.connect(replay=1)
        wait_until(lambda: parts.waits(replaying))
        parts.look()
        parts.restart(1)
        wait_until(lambda: live.ids == [60], "the live client did not get the message")
        settled(parts)
        assert replaying.ids == [60]


# One reader at a time


def test_a_reader_that_ends_does_not_take_a_log_away_from_another_one() -> None:
    """A log had no waiting client when the first reader took it. The second reader took it when there was one."""
    table = Table()
    for stream in ("orders", "stock"):
        table.append(stream)
    parts = Parts(table, ring_messages=1)
    first, second = parts.connect("orders", since=0), parts.connect("stock", since=0)
    for client in (first, second):
        parts.log(client.stream).open(head=20, horizon=0, oldest=10, floor=20, rows=[])
        client.subscriptions[0].cursor = 0
    parts.board.behind.add(parts.log("orders"))
    parts.board.wait(second.subscriptions[0])
    goes = [Event(), Event()]
    table.on_read = lambda: goes[len(table.reads) - 1].wait()
    parts.greenlets = [gevent.spawn(parts.reader.run) for _ in goes]
    try:
        wait_for_read(table, 1)
        parts.board.wait(first.subscriptions[0])
        wait_for_read(table, 2)
        goes[0].set()
        wait_until(lambda: parts.board.pages)
        breathe()
        assert table.reads == ["pages", "pages"]
        assert parts.board.behind.taken == 2
    finally:
        gevent.killall(parts.greenlets)


def test_a_client_of_several_new_streams_costs_one_look_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "STREAMS_PER_READ", 1)
    with Parts(readers=1) as parts:
        parts.table.on_read = breathe  # so that the dispatcher runs while the next stream is still being looked at
        client = parts.client("a")
        client.request = StreamRequest(tuple(Place(stream) for stream in "abc"))
        parts.join(client)
        wait_until(lambda: client.admitted and not parts.reading)
        assert parts.table.reads == ["openings"] * 3
