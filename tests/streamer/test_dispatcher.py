"""The dispatcher and its readers: every client gets the messages above its cursor, in order and once."""

from __future__ import annotations

import json
from typing import Any

import gevent
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interleaving_parts import BREATHS, CLIENT, Run, breathe, grain_finely
from streamer_parts import FakeClient, Parts, Table, wait_until

from pgbus_gevent.core import ephemeral_buffers, sse
from pgbus_gevent.core.audience import Audience
from pgbus_gevent.core.client import Subscription
from pgbus_gevent.core.frames import Chunk, Frame, make_chunk
from pgbus_gevent.core.replay import Page, PageFrames
from pgbus_gevent.core.wakes import Ephemeral
from pgbus_gevent.streamer import dispatcher, turns


@pytest.fixture(autouse=True)
def finely_grained(monkeypatch: pytest.MonkeyPatch) -> None:
    grain_finely(monkeypatch)


def frame(data: str, **values: Any) -> Frame:
    return Frame(0, sse.message(data, event="note"), values.get("visible_to"), values.get("exclude"))


def settled(parts: Parts, *clients: FakeClient) -> None:
    """Wait until these clients, or all clients, have reached the heads of their streams."""

    def at_the_head(client: FakeClient) -> bool:
        subscription = client.subscription
        if subscription is None or client.blocked_since is not None:
            return True
        return subscription.cursor is not None and subscription.cursor >= parts.table.head(client.stream)

    wait_until(lambda: all(map(at_the_head, clients or parts.clients)), "not everybody came to the head")
    wait_until(lambda: not parts.reading, "the readers did not come to rest")


# Exactly once and in order, in every interleaving

STREAMS = st.sampled_from(["orders", "orders", "orders", "stock"])
CONNECT = st.tuples(
    st.just("connect"), STREAMS, st.sampled_from(["now", "oldest", "middle", "newest", "replay"]), st.booleans()
)
STEPS = st.one_of(
    st.tuples(st.just("publish"), STREAMS, st.just(1), st.just(True)),
    st.tuples(st.just("publish"), STREAMS, st.integers(1, 6), st.just(True)),
    st.tuples(st.just("publish"), STREAMS, st.integers(1, 6), st.booleans()),
    st.tuples(st.just("note"), STREAMS, st.integers(1, 6)),
    CONNECT,
    st.tuples(st.just("jam"), CLIENT),
    st.tuples(st.just("unblock"), CLIENT),
    st.tuples(st.just("unblock"), st.integers(0, 3)),
    st.tuples(st.just("leave"), CLIENT),
    st.tuples(st.just("look"), STREAMS),
    st.tuples(st.just("forget the ring"), STREAMS),
    st.tuples(st.just("database away"), st.integers(1, 3)),
    st.tuples(st.just("kill"), st.integers(0, 2)),
)


class OfTwoStreams(Run):
    """One interleaving, with clients of two streams."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.ephemerals: dict[str, list[str]] = {"orders": [], "stock": []}
        self.killed = False

    def do_publish(self, stream: str, count: int, ring: bool) -> None:
        for _ in range(count):
            self.parts.publish(stream, ring=ring)

    def do_note(self, stream: str, count: int) -> None:
        for _ in range(count):
            data = str(len(self.ephemerals[stream]))
            self.ephemerals[stream].append(data)
            self.parts.ephemeral(data, stream)

    def do_connect(self, stream: str, start: str, jammed: bool) -> None:
        request = {"replay": 3} if start == "replay" else {"since": self.since(stream, start)}
        self.open.append(self.parts.connect(stream, jammed=jammed, **request))

    def do_database_away(self, reads: int) -> None:
        self.parts.table.failures = reads

    def do_kill(self, which: int) -> None:
        self.killed = True
        super().do_kill(which)

    def finish(self) -> None:
        self.parts.table.failures = 0
        for client in self.open:
            client.unblock()
        for stream in ("orders", "stock"):
            self.parts.look(stream)
        settled(self.parts, *self.open)
        wait_until(lambda: not self.parts.delivering)


def check(client: FakeClient, table: Table, *, complete: bool) -> None:
    stream, request = client.stream, client.request.places[0]
    if not client.received:
        assert not complete
        return
    [told] = client.controls("connected")
    [listed] = json.loads(told)["streams"]
    assert listed["name"] == stream
    assert client.controls("gap-detected") == []
    durable = [message for message in client.messages if message.event != "note"]
    ids = [int(message.id) for message in durable]
    first = table.ids(stream)
    if request.since is not None:
        first = table.ids(stream, request.since)
    elif request.replay is not None:
        # The start was decided while others published, so there may be more messages than were asked for, but not fewer.
        first = first[first.index(ids[0]) :] if ids else []
        assert not complete or len(first) >= min(request.replay, len(table.ids(stream, 0)))
    else:
        first = table.ids(stream, listed["lastId"])
    assert ids == (first if complete else first[: len(ids)])
    assert [message.data for message in durable] == [str(id) for id in ids]


def check_ephemerals(client: FakeClient, run: OfTwoStreams) -> None:
    """They come in order, and all of them from the greeting on; a dispatcher that is killed loses those that it had taken."""
    received = [message.data for message in client.messages if message.event == "note"]
    sent = run.ephemerals[client.stream]
    ranks = [sent.index(data) for data in received]
    assert ranks == sorted(set(ranks))
    if ranks and not run.killed:
        assert ranks == list(range(ranks[0], len(sent) if client in run.open else ranks[-1] + 1))


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    before=st.integers(0, 9),
    first=st.lists(CONNECT, min_size=2, max_size=6),
    steps=st.lists(st.tuples(STEPS, BREATHS), min_size=20, max_size=80),
    slowness=st.integers(0, 4),
)
def test_every_interleaving_delivers_in_order_and_once(
    before: int, first: list[Any], steps: list[tuple[Any, int]], slowness: int
) -> None:
    table = Table()
    for _ in range(before):
        table.append("orders")
    table.on_read = lambda: breathe(slowness)
    with Parts(table, ring_messages=4, page_size=2) as parts:
        run = OfTwoStreams(parts)
        run.take([*((connect, 3) for connect in first), *steps])
        run.finish()
        for client in parts.clients:
            check(client, table, complete=client in run.open)
            check_ephemerals(client, run)
        for client in run.open:
            parts.leave(client)
        assert parts.budget.used == 0


# Greeting


def publish_and_prune(parts: Parts, count: int = 10) -> None:
    """Publish messages, with the ids 10, 20 and so on, and prune the first three."""
    for _ in range(count):
        parts.publish()
    parts.table.prune("orders", 3)


def test_a_client_is_greeted_before_its_first_message() -> None:
    with Parts() as parts:
        parts.publish(data="a")
        client = parts.connect(since=0)
        settled(parts)
        greeting = sse.connected(client.id, [sse.StreamStart("orders", 0, 10)], retry_after=2.0, heartbeat=15.0)
        assert bytes(client.received) == greeting + sse.message("a", id=10)


def test_a_client_ahead_of_the_stream_is_told_and_gets_everything_that_is_retained() -> None:
    with Parts() as parts:
        publish_and_prune(parts)
        client = parts.connect(since=1000)
        settled(parts)
        [told] = client.controls("gap-detected")
        assert json.loads(told)["reason"] == "ahead"
        assert client.ids == parts.table.ids("orders") == [40, 50, 60, 70, 80, 90, 100]


def test_a_cursor_that_only_this_worker_has_not_heard_of_is_not_ahead() -> None:
    with Parts() as parts:
        parts.publish()
        early = parts.connect()
        settled(parts)
        watermark = parts.publish(ring=False)
        late = parts.connect(since=watermark)
        settled(parts)
        parts.publish()
        settled(parts)
        assert late.controls("gap-detected") == []
        assert late.ids == [30]
        assert early.ids == [20, 30]


def test_a_client_whose_cursor_is_below_ring_and_horizon_is_told_of_the_gap() -> None:
    with Parts() as parts:
        publish_and_prune(parts)
        client = parts.connect(since=15)
        settled(parts)
        [told] = client.controls("gap-detected")
        assert json.loads(told) == {
            "stream": "orders", "requestedId": 15, "oldestId": 40, "lastId": 100, "reason": "expired",
        }  # fmt: skip
        assert client.ids == [40, 50, 60, 70, 80, 90, 100]


def test_a_client_that_asks_for_everything_retained_has_no_gap() -> None:
    with Parts() as parts:
        publish_and_prune(parts)
        client = parts.connect(since=0)
        settled(parts)
        assert client.controls("gap-detected") == []
        assert client.ids == [40, 50, 60, 70, 80, 90, 100]


def test_a_client_is_told_of_a_gap_even_if_no_message_is_left() -> None:
    with Parts() as parts:
        publish_and_prune(parts, count=3)
        client = parts.connect(since=5)
        settled(parts)
        [told] = client.controls("gap-detected")
        assert json.loads(told)["oldestId"] == json.loads(told)["lastId"] == 30
        parts.publish()
        settled(parts)
        assert client.ids == [40]


def test_a_cursor_at_the_last_pruned_message_has_missed_nothing() -> None:
    with Parts() as parts:
        publish_and_prune(parts)
        client = parts.connect(since=30)
        settled(parts)
        assert client.controls("gap-detected") == []
        assert client.ids == [40, 50, 60, 70, 80, 90, 100]


def test_an_unreadable_cursor_gets_the_live_stream_after_the_gap() -> None:
    with Parts() as parts:
        parts.publish()
        client = parts.connect(invalid_cursor=True)
        settled(parts)
        parts.publish()
        settled(parts)
        [told] = client.controls("gap-detected")
        assert json.loads(told)["reason"] == "invalid-cursor"
        assert client.ids == [20]


@pytest.mark.parametrize(("replay", "expected"), [(0, []), (1, [50]), (3, [30, 40, 50]), (500, [10, 20, 30, 40, 50])])
def test_a_replay_has_the_last_messages_that_were_asked_for(replay: int, expected: list[int]) -> None:
    with Parts(ring_messages=2, page_size=2) as parts:
        for _ in range(5):
            parts.publish()
        client = parts.connect(replay=replay)
        settled(parts)
        assert client.ids == expected


@pytest.mark.parametrize(
    ("start", "told"),
    [
        ({}, "100"),
        ({"since": 0}, "0"),
        ({"since": 15}, "15"),
        ({"since": 100}, "100"),
        ({"replay": 2}, "80"),
        ({"replay": 100}, "0"),
        ({"since": 1000}, "0"),
        ({"invalid_cursor": True}, "100"),
    ],
)
def test_the_first_frame_carries_the_cursor_from_which_the_client_starts(start: dict[str, Any], told: str) -> None:
    with Parts() as parts:
        publish_and_prune(parts)
        client = parts.connect(**start)
        settled(parts)
        assert client.events[0][:2] == (told, "pgbus:connected")


def test_no_other_control_frame_has_an_id() -> None:
    with Parts() as parts:
        publish_and_prune(parts)
        clients = [parts.connect(since=15), parts.connect(since=1000), parts.connect(invalid_cursor=True)]
        settled(parts)
        for client in clients:
            for frame in bytes(client.received).split(b"\n\n"):
                assert b"event: pgbus:" not in frame or b"pgbus:connected" in frame or b"\nid:" not in frame


# Audiences


def test_a_message_is_passed_over_for_the_connection_that_it_excludes() -> None:
    with Parts() as parts:
        sender, other = parts.connect(), parts.connect()
        settled(parts)
        parts.publish(exclude=sender.id)
        parts.publish()
        settled(parts)
        assert (sender.ids, other.ids) == ([20], [10, 20])


def test_a_message_for_an_audience_reaches_only_those_whose_context_fits() -> None:
    with Parts() as parts:
        parts.filters.register("admins", lambda context, stream: context == "admin" and stream == "orders")
        admin, user, nobody = parts.connect(context="admin"), parts.connect(context="user"), parts.connect()
        settled(parts)
        parts.publish(visible_to="admins")
        parts.publish()
        settled(parts)
        assert (admin.ids, user.ids, nobody.ids) == ([10, 20], [20], [20])


@pytest.mark.parametrize("label", ["unknown", "broken"])
def test_nobody_gets_a_message_with_an_unknown_or_broken_filter(label: str) -> None:
    with Parts() as parts:
        parts.filters.register("broken", lambda context, stream: 1 / 0 > 0)
        client = parts.connect()
        settled(parts)
        parts.publish(visible_to=label)
        parts.publish()
        settled(parts)
        assert client.ids == [20]


@pytest.mark.parametrize("ring_messages", [1, 100])
def test_the_cursor_moves_past_messages_that_a_client_may_not_see(ring_messages: int) -> None:
    with Parts(ring_messages=ring_messages) as parts:
        for _ in range(20):
            parts.publish(visible_to="admins")
        client = parts.connect(since=0)
        settled(parts)
        assert client.messages == []
        assert client.subscription is not None
        assert client.subscription.cursor == 200
        reads = len(parts.table.reads)
        parts.publish()
        settled(parts)
        assert client.ids == [210]
        assert len(parts.table.reads) == reads


def test_messages_from_the_database_are_filtered_too() -> None:
    with Parts(ring_messages=1, page_size=3) as parts:
        parts.filters.register("admins", lambda context, stream: context == "admin")
        for n in range(12):
            parts.publish(visible_to="admins" if n % 2 else None)
        admin, user = parts.connect(since=0, context="admin"), parts.connect(since=0)
        settled(parts)
        assert admin.ids == parts.table.ids("orders")
        assert user.ids == [10, 30, 50, 70, 90, 110]


# Ephemeral messages


def ephemeral(data: str, **values: Any) -> Ephemeral:
    return Ephemeral("orders", 0, "note", data, values.get("visible_to"), values.get("exclude"))


def have_sent(parts: Parts, *messages: Ephemeral) -> None:
    for each in messages:
        parts.board.buffer_ephemeral(each)
    wait_until(lambda: not parts.delivering)


def test_an_ephemeral_message_has_no_id_and_moves_no_cursor() -> None:
    with Parts() as parts:
        parts.publish()
        client = parts.connect(since=0)
        settled(parts)
        have_sent(parts, ephemeral("a"))
        assert bytes(client.received).endswith(b"data: 10\nid: 10\n\nevent: note\ndata: a\n\n")
        assert client.subscription is not None
        assert client.subscription.cursor == 10


def test_ephemeral_messages_reach_the_connected_clients_in_order() -> None:
    with Parts() as parts:
        clients = [parts.connect() for _ in range(7)]
        settled(parts)
        have_sent(parts, ephemeral("a"), ephemeral("b"), ephemeral("c"))
        late = parts.connect(since=0)
        settled(parts)
        assert [[message.data for message in client.messages] for client in clients] == [["a", "b", "c"]] * 7
        assert late.messages == []


def test_an_ephemeral_message_respects_its_audience() -> None:
    with Parts() as parts:
        sender, other = parts.connect(), parts.connect()
        settled(parts)
        have_sent(parts, ephemeral("a", exclude=sender.id), ephemeral("b", visible_to="unknown"), ephemeral("c"))
        assert [message.data for message in sender.messages] == ["c"]
        assert [message.data for message in other.messages] == ["a", "c"]


def test_no_client_gets_an_ephemeral_message_before_the_greeting() -> None:
    with Parts() as parts:
        settled_one = parts.connect()
        settled(parts)
        parts.table.failures = 10**6
        early = parts.connect(since=5000)
        have_sent(parts, ephemeral("a"))
        assert bytes(early.received) == b""
        assert [message.data for message in settled_one.messages] == ["a"]


def test_a_client_that_leaves_during_an_ephemeral_pass_gets_nothing_more() -> None:
    with Parts() as parts:
        clients = [parts.connect() for _ in range(9)]
        settled(parts)
        clients[2].on_send = lambda: list(map(parts.leave, clients[5:]))
        have_sent(parts, ephemeral("a"))
        assert [len(client.messages) for client in clients] == [1] * 5 + [0] * 4


def test_ephemeral_messages_that_cannot_be_sent_do_not_pile_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ephemeral_buffers, "MAX_WAITING", 3)
    parts = Parts()
    client = parts.connect()
    log = parts.log()
    log.open(head=0, horizon=0, oldest=0, floor=0, rows=[])
    for n in range(5):
        parts.ephemeral(str(n))
    assert "dropping" in caplog.text
    with parts:
        wait_until(lambda: not parts.delivering)
        assert [message.data for message in client.messages] == ["0", "1", "2"]
        have_sent(parts, ephemeral("after"))
        assert client.messages[-1].data == "after"


# Trouble


def break_at_once(parts: Parts) -> tuple[FakeClient, list[FakeClient]]:
    """Return one of nine clients, for which the next send raises, and the others."""
    clients = [parts.connect() for _ in range(9)]
    settled(parts)
    clients[4].raises = True
    parts.broken = [clients[4]]
    return clients[4], clients[:4] + clients[5:]


def test_a_client_whose_send_raises_is_closed_and_the_others_get_theirs() -> None:
    with Parts() as parts:
        _, others = break_at_once(parts)
        parts.publish()
        settled(parts)
        assert [client.ids for client in others] == [[10]] * 8


def test_a_client_whose_ephemeral_send_raises_is_closed_and_the_others_get_theirs() -> None:
    with Parts() as parts:
        _, others = break_at_once(parts)
        have_sent(parts, ephemeral("a"))
        assert [[message.data for message in client.messages] for client in others] == [["a"]] * 8


def test_a_client_whose_greeting_raises_is_closed_and_the_others_get_theirs() -> None:
    with Parts() as parts:
        clients = [parts.client(since=0) for _ in range(9)]
        clients[4].raises = True
        parts.broken = [clients[4]]
        parts.publish()
        for client in clients:
            parts.join(client)
        settled(parts)
        assert [client.ids for client in clients] == [[10]] * 4 + [[]] + [[10]] * 4


@pytest.mark.parametrize("left", [0, 3])
def test_a_client_whose_page_or_gap_raises_is_closed_and_the_others_get_theirs(left: int) -> None:
    with Parts(ring_messages=1, page_size=10) as parts:
        for _ in range(5):
            parts.publish()
        parts.table.prune("orders", 5 - left)
        clients = [parts.connect(since=5, jammed=True) for _ in range(9)]
        wait_until(lambda: all(client.waiting for client in clients))
        clients[4].raises = True
        parts.broken = [clients[4]]
        for client in clients:
            client.unblock()
        settled(parts)
        assert [client.ids for client in clients] == [parts.table.ids("orders")] * 4 + [[]] + [
            parts.table.ids("orders")
        ] * 4
        assert [len(client.controls("gap-detected")) for client in clients] == [1] * 4 + [0] + [1] * 4


def test_a_client_whose_frames_cannot_be_made_is_closed_and_the_others_get_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It must not stay, because its cursor has moved past them."""
    frames_for = Audience.frames_for

    def fail(self: Audience, subscription: Subscription, chunk: Chunk) -> bytes:
        if subscription.client is clients[4]:
            raise ValueError("for the test")
        return frames_for(self, subscription, chunk)

    monkeypatch.setattr(Audience, "frames_for", fail)
    with Parts() as parts:
        clients = [parts.connect() for _ in range(9)]
        parts.broken = [clients[4]]
        settled(parts)
        parts.publish(exclude="somebody")
        settled(parts)
        assert [client.ids for client in clients] == [[10]] * 4 + [[]] + [[10]] * 4


def test_a_run_that_died_leaves_nothing_undone_for_the_next() -> None:
    with Parts(ring_messages=100) as parts:
        clients = [parts.connect() for _ in range(9)]
        settled(parts)
        # Otherwise a pass that began before the message could bring it to the rest of the clients first.
        wait_until(lambda: not parts.delivering, "the dispatcher did not come to rest")

        def die() -> None:
            clients[4].on_send = lambda: None
            raise gevent.GreenletExit

        clients[4].on_send = die
        greeted = parts.connect(since=0)
        parts.publish()
        wait_until(lambda: parts.greenlets[0].dead)
        assert [bool(client.messages) for client in clients] == [True] * 4 + [False] * 5
        parts.restart(0)
        settled(parts)
        assert [client.ids for client in clients] == [[10]] * 4 + [[]] + [[10]] * 4, (
            "the client of the interrupted send may have got the message"
        )
        assert greeted.ids == [10]


def test_a_client_whose_page_a_dying_run_was_sending_is_not_forgotten() -> None:
    with Parts(ring_messages=1, page_size=3) as parts:
        for _ in range(10):
            parts.publish()
        client = parts.client(since=0)

        def die() -> None:
            if client.messages or client.received:
                client.on_send = lambda: None
                raise gevent.GreenletExit

        client.on_send = die
        parts.join(client)
        wait_until(lambda: parts.greenlets[0].dead)
        parts.restart(0)
        settled(parts)
        assert client.ids == parts.table.ids("orders", 30), "it may or may not have got the page"


def test_nothing_is_kept_of_an_ephemeral_pass_whose_run_died() -> None:
    with Parts() as parts:
        clients = [parts.connect() for _ in range(5)]
        settled(parts)

        def die() -> None:
            clients[1].on_send = lambda: None
            raise gevent.GreenletExit

        clients[1].on_send = die
        parts.ephemeral("a")
        wait_until(lambda: parts.greenlets[0].dead)
        parts.restart(0)
        wait_until(lambda: not parts.delivering)
        assert len(parts.board.ephemeral_buffers) == 0
        have_sent(parts, ephemeral("b"))
        assert [client.messages[-1].data for client in clients] == ["b"] * 5


# Fairness


def test_messages_that_come_during_a_pass_are_sent_together() -> None:
    with Parts(ring_messages=100) as parts:
        client = parts.connect()
        settled(parts)
        sends = parts.dispatcher.sends
        for _ in range(3):
            parts.publish(data="x")
        settled(parts)
        assert client.ids == [10, 20, 30]
        assert parts.dispatcher.sends - sends <= 2


def test_a_blocked_client_is_passed_over_and_catches_up_when_it_takes_bytes() -> None:
    with Parts(ring_messages=3) as parts:
        slow, quick = parts.connect(), parts.connect()
        settled(parts)
        slow.jammed = True
        for _ in range(20):
            parts.publish()
            settled(parts, quick)
        assert quick.ids == parts.table.ids("orders")
        assert slow.ids == []
        assert slow.waiting.count(b"\n\n") == 1, "more was kept for it than its last send"
        slow.unblock()
        settled(parts)
        assert slow.ids == parts.table.ids("orders")


def test_a_stream_with_many_readers_does_not_hold_up_another() -> None:
    with Parts() as parts:
        clients = [parts.connect() for _ in range(200)]
        one = parts.connect("stock")
        settled(parts)
        order = record(clients, one)
        parts.publish("orders")
        parts.publish("stock")
        settled(parts)
        assert order.index(one) < 10
        assert all(client.ids == [10] for client in clients)


def test_many_readers_of_one_page_do_not_hold_up_quiet_streams() -> None:
    """A page is one job among others: eight streams get their message while the page is still being sent to its clients."""
    with Parts() as parts:
        quiet = [parts.connect(f"quiet:{n}") for n in range(8)]
        for _ in range(12):  # three pages, as a page has three messages and the ring four
            parts.publish()
        readers = [parts.connect() for _ in range(1000)]
        settled(parts)
        order = record(readers, *quiet)
        ids: list[int] = []

        def publish_once() -> None:
            order.append(readers[0])
            if not ids:
                ids.extend(parts.publish(f"quiet:{n}") for n in range(8))

        readers[0].on_send = publish_once
        for reader in readers:  # all of them fall behind before anybody reads
            [subscription] = reader.subscriptions
            subscription.cursor = 0
            parts.board.wait(subscription)
        settled(parts)
        assert [client.ids for client in quiet] == [[id] for id in ids]
        assert all(reader.ids == parts.table.ids("orders") for reader in readers)
        assert max(order.index(client) for client in quiet) < len(readers) / 2


def test_live_messages_go_ahead_of_pages_within_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "TURN_SECONDS", 30.0)
    parts = Parts(ring_messages=100)
    live, behind = [parts.connect() for _ in range(20)], [parts.connect("stock") for _ in range(20)]
    parts.board.ready.take()
    for client in live + behind:
        [subscription] = client.subscriptions
        if not subscription.log.is_open:
            subscription.log.open(head=0, horizon=0, oldest=0, floor=0, rows=[])
        subscription.cursor = 0
    for client in behind:
        parts.board.wait(client.subscriptions[0])
    parts.publish("orders")
    rows = [parts.table.append("stock")]
    parts.board.pages.add(Page(parts.log("stock"), PageFrames(rows, start=0, horizon=0), 100))
    order = record(behind, *live)
    parts.greenlets = [gevent.spawn(parts.dispatcher.run)]
    try:
        wait_until(lambda: len(order) == 40)
    finally:
        gevent.killall(parts.greenlets)
    assert order == live + behind


def test_a_client_far_behind_in_the_ring_takes_turns_with_the_others() -> None:
    with Parts(ring_messages=1000, ring_bytes=10**6) as parts:
        first = parts.connect()
        settled(parts)
        for _ in range(500):
            parts.publish()
        settled(parts)
        far, near = parts.client(since=0), parts.client(since=4990)
        order = record([far], near)
        parts.join(far)
        parts.join(near)
        settled(parts)
        assert order[-1] is far
        assert max(n for n, client in enumerate(order) if client is near) < 10
        assert far.ids == first.ids == parts.table.ids("orders")


def test_of_the_clients_behind_in_the_ring_none_gets_ahead_of_the_others() -> None:
    with Parts(ring_messages=1000, ring_bytes=10**6) as parts:
        first = parts.connect()
        settled(parts)
        for _ in range(50):
            parts.publish()
        settled(parts)
        clients = [parts.client(since=0) for _ in range(4 * dispatcher.BEHIND_SLICE)]
        order = record(clients)
        for client in clients:
            parts.join(client)
        settled(parts)
        assert all(client.ids == first.ids for client in clients)
        greeted = 2 * len(clients)  # each greeting comes with the first messages
        rounds = [order[n : n + len(clients)] for n in range(greeted, len(order), len(clients))]
        assert len(rounds) > 5
        assert all(one == clients for one in rounds)


def record(clients: list[FakeClient], *more: FakeClient) -> list[FakeClient]:
    """Return a list of clients, which grows in the order in which they are sent something."""
    order: list[FakeClient] = []
    for client in [*clients, *more]:
        client.on_send = lambda client=client: order.append(client)  # type: ignore[misc]
    return order


def test_frames_are_joined_once_for_all_clients_with_the_same_cursor() -> None:
    with Parts(ring_messages=100) as parts:
        clients = [parts.connect() for _ in range(50)]
        settled(parts)
        given_out: list[bytes] = []
        for client in clients:
            client.send = lambda data, now: given_out.append(data)  # type: ignore[method-assign]
        parts.publish()
        wait_until(lambda: len(given_out) == 50)
        assert len({id(data) for data in given_out}) == 1


def test_a_page_is_joined_for_few_cursors_at_a_time() -> None:
    """Clients may invent cursors. A copy of the page for each of them must not be kept."""
    chunks: dict[int, Chunk | None] = {}
    for cursor in range(1000):
        chunk = make_chunk([frame(str(cursor))])
        assert dispatcher._cache(chunks, cursor, chunk) is chunks[cursor] is chunk
        assert len(chunks) <= dispatcher._CACHED_CURSORS
