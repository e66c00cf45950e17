"""Messages for the holders of a label: they cost their receivers, and nobody loses, repeats or wrongly sees one."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import gevent
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interleaving_parts import BREATHS, CLIENT, Run, breathe, grain_finely
from streamer_parts import FakeClient, Parts, Table, wait_until

from pgbus_gevent.core.client import Place, StreamRequest, Subscriber
from pgbus_gevent.core.cursor import parse_composite
from pgbus_gevent.core.events import Passed
from pgbus_gevent.core.filters import NOBODY
from pgbus_gevent.core.wakes import NewMessage
from pgbus_gevent.streamer.clients import Clients
from pgbus_gevent.streamer.limits import Limits

HELD = ["red", "blue", "green"]


@pytest.fixture
def finely_grained(monkeypatch: pytest.MonkeyPatch) -> None:
    grain_finely(monkeypatch, chunk_bytes=60)


def connect(parts: Parts, *labels: str, context: Any = None, jammed: bool = False, **place: Any) -> FakeClient:
    """Connect a client that holds ``labels``."""
    client = parts.client(**place)
    subscriber = Subscriber(context=context, labels=labels)
    client.request = StreamRequest((Place("orders", subscriber=subscriber, **place),))
    client.jammed = jammed
    parts.join(client)
    return client


def relabel(parts: Parts, client: FakeClient, *labels: str) -> None:
    """Replace the labels of a client, as a recheck does."""
    clients = Clients(parts.board, limits=Limits(100, 0, 0, 0.0), filters=parts.filters)
    old = client.subscriptions[0].place.subscriber
    clients.adopt(client, [Subscriber(context=old.context, labels=labels)])


def at_rest(parts: Parts) -> None:
    wait_until(lambda: not parts.delivering and not parts.reading, "the parts did not come to rest")


def passes(parts: Parts) -> list[int]:
    """Return a list that gets the number of connections of each pass."""
    found: list[int] = []
    parts.events.subscribe(Passed, lambda event: found.append(event.connections))
    return found


# What it costs


def test_a_pass_for_a_held_label_looks_only_at_its_holders() -> None:
    with Parts(ring_messages=100) as parts:
        clients = [connect(parts, f"user:{n}") for n in range(20)]
        at_rest(parts)
        cursors = [client.subscriptions[0].cursor for client in clients]
        fanouts = passes(parts)
        parts.publish(visible_to="user:7")
        at_rest(parts)
        assert fanouts == [1]
        assert [client.ids for client in clients] == [[10] if n == 7 else [] for n in range(20)]
        assert [client.subscriptions[0].cursor for client in clients] == [
            10 if n == 7 else cursor for n, cursor in enumerate(cursors)
        ]


def test_resting_connections_need_no_read_however_many_messages_were_for_others() -> None:
    with Parts(ring_messages=10) as parts:
        one, others = connect(parts, "one"), [connect(parts, f"user:{n}") for n in range(5)]
        at_rest(parts)
        reads = len(parts.table.reads)
        for _ in range(100):
            parts.publish(visible_to="one")
            at_rest(parts)
        last = parts.publish()
        at_rest(parts)
        assert [client.ids for client in others] == [[last]] * 5
        assert one.ids == parts.table.ids("orders")
        assert len(parts.table.reads) == reads


def test_resting_connections_share_the_frames_that_come_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    with Parts(ring_messages=100) as parts:
        clients = [connect(parts, f"user:{n}") for n in range(20)]
        at_rest(parts)
        for n in range(20):
            parts.publish(visible_to=f"user:{n}")
            at_rest(parts)
        joined = []
        log = clients[0].subscriptions[0].log
        after = type(log).after
        monkeypatch.setattr(type(log), "after", lambda *given: joined.append(given[1]) or after(*given))
        last = parts.publish()
        at_rest(parts)
        assert len(joined) == 1
        assert [client.ids[-1] for client in clients] == [last] * 20


def test_an_ephemeral_message_for_a_held_label_goes_only_to_its_holders() -> None:
    with Parts() as parts:
        clients = [connect(parts, f"user:{n}") for n in range(5)]
        clients[2].jammed = clients[3].jammed = True
        at_rest(parts)
        parts.ephemeral("here", visible_to="user:2")
        at_rest(parts)
        clients[3].unblock()
        clients[2].unblock()
        at_rest(parts)
        assert [[message.data for message in client.messages] for client in clients] == [
            ["here"] if n == 2 else [] for n in range(5)
        ]


# Who sees what


def test_a_label_is_held_or_its_filter_decides() -> None:
    with Parts() as parts:
        parts.filters.register("admins", lambda context, stream: context == "admin")
        holder, admin, other = connect(parts, "admins"), connect(parts, context="admin"), connect(parts, "blue")
        at_rest(parts)
        parts.publish(visible_to="admins")
        parts.publish(visible_to="blue", exclude=other.id)
        at_rest(parts)
        assert [holder.ids, admin.ids, other.ids] == [[10], [10], []]


def test_a_default_filter_decides_about_all_labels() -> None:
    with Parts() as parts:
        parts.filters._default = lambda context, stream: context == "all"
        watcher, other = connect(parts, context="all"), connect(parts, "blue")
        at_rest(parts)
        parts.publish(visible_to="red")
        parts.publish(visible_to="blue")
        at_rest(parts)
        assert [watcher.ids, other.ids] == [[10, 20], [20]]


def test_a_label_without_filter_is_a_fault_only_if_nobody_holds_labels(caplog: pytest.LogCaptureFixture) -> None:
    with Parts() as parts:
        connect(parts)
        at_rest(parts)
        parts.publish(visible_to="user:1")
        at_rest(parts)
        assert caplog.text.count("'user:1' is not registered") == 1
        connect(parts, "user:3", since=0)
        at_rest(parts)
        parts.publish(visible_to="user:2")
        parts.publish()
        parts.publish(visible_to="user:2")
        at_rest(parts)
        assert "user:2" not in caplog.text


def test_nobody_sees_a_message_with_an_invalid_event_and_a_warning_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with Parts() as parts:
        client = connect(parts, "red")
        at_rest(parts)
        parts.publish(event="a\nb")
        parts.publish(visible_to=NOBODY)
        last = parts.publish()
        at_rest(parts)
        assert client.ids == [last]
        assert "that broadcast() refuses" in caplog.text


# Labels that change


def test_a_new_label_does_not_bring_messages_from_before_it() -> None:
    with Parts(ring_messages=100) as parts:
        client = connect(parts)
        connect(parts, "red")
        at_rest(parts)
        parts.publish(visible_to="red")
        at_rest(parts)
        relabel(parts, client, "red")
        at_rest(parts)
        parts.publish(visible_to="red")
        at_rest(parts)
        assert client.ids == [20]


def test_a_label_that_was_taken_back_brings_nothing_even_if_the_message_was_under_way() -> None:
    with Parts(ring_messages=100) as parts:
        client = connect(parts, "red")
        at_rest(parts)
        client.jammed = True
        parts.publish(visible_to="red")
        at_rest(parts)
        parts.publish(visible_to="red")
        at_rest(parts)
        relabel(parts, client, "blue")
        client.unblock()
        at_rest(parts)
        parts.publish(visible_to="blue")
        at_rest(parts)
        assert client.ids == [10, 30]
        assert parts.registry.holders("orders", ["red"]) == []


def test_a_connection_that_leaves_is_no_longer_in_the_index() -> None:
    with Parts() as parts:
        client = connect(parts, "red", "blue")
        at_rest(parts)
        parts.leave(client)
        assert not parts.registry._holders


# Losses


def test_a_message_that_is_missing_between_two_for_others_is_a_gap() -> None:
    with Parts(ring_messages=100) as parts:
        client, other = connect(parts), connect(parts, "red")
        at_rest(parts)
        parts.publish(visible_to="red")
        at_rest(parts)
        lost = parts.publish(ring=False)
        parts.publish(visible_to="red", ring=False)
        parts.table.delete("orders", lost)
        parts.look("orders")
        at_rest(parts)
        for each in (client, other):
            [told] = each.controls("gap-detected")
            assert json.loads(told)["reason"] == "expired"
        assert (client.ids, other.ids) == ([], [10, 30])


def test_a_resting_connection_that_was_sent_no_lost_message_is_told_of_no_gap() -> None:
    with Parts(ring_messages=100) as parts:
        client, other = connect(parts), connect(parts, "red")
        at_rest(parts)
        parts.publish()
        for _ in range(3):
            parts.publish(visible_to="red")
            at_rest(parts)
        parts.table.lose("orders", 2)
        parts.look("orders")
        at_rest(parts)
        parts.table.skip(100)
        parts.publish(visible_to="red")
        at_rest(parts)
        last = parts.publish()
        at_rest(parts)
        assert client.ids == [10, last]
        assert client.controls("gap-detected") == []
        [told] = other.controls("gap-detected")
        assert json.loads(told)["reason"] == "ahead"


def test_a_resting_connection_whose_own_cursor_is_proven_wrong_is_told() -> None:
    id = 1_700_000_000_000_000
    with Parts(Table(first_id=id), ring_messages=100) as parts:
        connect(parts, "red", since=0)
        at_rest(parts)
        parts.publish(visible_to="red")
        parts.publish(visible_to="red")
        at_rest(parts)
        client = connect(parts, since=id + 5)
        parts.publish()
        at_rest(parts)
        [told] = client.controls("gap-detected")
        assert json.loads(told)["reason"] == "ahead"
        assert client.ids == [id + 20]


def test_after_a_forged_message_the_next_true_one_reaches_its_holders() -> None:
    with Parts(ring_messages=100) as parts:
        client = connect(parts, "red")
        at_rest(parts)
        parts.ring(NewMessage("orders", 1000, 0, 0.0, None, "forged", None, None))
        at_rest(parts)
        parts.look("orders")
        at_rest(parts)
        parts.publish(visible_to="red")
        at_rest(parts)
        assert client.ids == [1000, 10]


def test_a_message_that_the_ring_dropped_before_its_pass_reaches_everybody() -> None:
    with Parts(ring_messages=100) as parts:
        client = connect(parts)
        at_rest(parts)
        parts.publish()
        parts.log().clear_ring()
        parts.publish(visible_to="red")
        at_rest(parts)
        assert client.ids == [10]


# Every interleaving

LABELS = st.lists(st.sampled_from(HELD), max_size=2, unique=True)
AUDIENCE = st.sampled_from([None, None, "red", "red", "blue", "green", "even", "nobody holds it"])
CONNECT = st.tuples(
    st.just("connect"), LABELS, st.integers(0, 1), st.sampled_from(["now", "oldest", "middle", "newest"]), st.booleans()
)
STEPS = st.one_of(
    st.tuples(st.just("publish"), AUDIENCE, st.integers(1, 5), st.just(True), st.none() | CLIENT),
    st.tuples(st.just("publish"), AUDIENCE, st.integers(1, 5), st.booleans(), st.none()),
    st.tuples(st.just("publish"), st.sampled_from(HELD), st.integers(1, 5), st.just(True), st.none()),
    st.tuples(st.just("note"), AUDIENCE, st.integers(1, 5)),
    CONNECT,
    st.tuples(st.just("relabel"), CLIENT, LABELS),
    st.tuples(st.just("register"), st.sampled_from(["green", "nobody holds it"])),
    st.tuples(st.just("beat"), CLIENT),
    st.tuples(st.just("jam"), CLIENT),
    st.tuples(st.just("unblock"), CLIENT),
    st.tuples(st.just("leave"), CLIENT),
    st.tuples(st.just("look")),
    st.tuples(st.just("forget the ring")),
    st.tuples(st.just("kill"), st.integers(0, 2)),
)


class Sent(NamedTuple):
    """A message that was published: its audience, the client that it excludes, and its place in the history."""

    label: str | None
    exclude: str | None
    at: int


class Labelled(Run):
    """One interleaving. ``held`` has, for each client, since when it held which labels; ``filtered``, since when a label has a
    filter."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.sent: dict[str, Sent] = {}
        self.held: dict[str, list[tuple[int, frozenset[str]]]] = {}
        self.now = 0
        self.filtered: dict[str | None, int] = {}
        self.do_register("even")

    def do(self, step: str, *arguments: Any) -> None:
        self.now += 1
        super().do(step, *arguments)

    def do_publish(self, label: str | None, count: int, ring: bool, exclude: int | None) -> None:
        excluded = self.open[exclude % len(self.open)].id if exclude is not None and self.open else None
        for _ in range(count):
            id = self.parts.publish(ring=ring, visible_to=label, exclude=excluded)
            self.sent[str(id)] = Sent(label, excluded, self.now)

    def do_note(self, label: str | None, count: int) -> None:
        for _ in range(count):
            data = f"note {len(self.sent)}"
            self.sent[data] = Sent(label, None, self.now)
            self.parts.ephemeral(data, visible_to=label)

    def do_connect(self, labels: list[str], context: int, start: str, jammed: bool) -> None:
        client = connect(self.parts, *labels, context=context, jammed=jammed, since=self.since("orders", start))
        self.open.append(client)
        self.held[client.id] = [(-1, frozenset(labels))]

    def do_relabel(self, pick: int, labels: list[str]) -> None:
        if self.open:
            client = self.open[pick % len(self.open)]
            relabel(self.parts, client, *labels)
            self.held[client.id].append((self.now, frozenset(labels)))

    def do_register(self, label: str) -> None:
        self.parts.filters.register(label, lambda context, stream: context == 0)
        self.filtered.setdefault(label, self.now)

    def do_beat(self, pick: int) -> None:
        """Do as the heartbeat does with a cursor that may rest."""
        if self.open:
            subscription = self.open[pick % len(self.open)].subscriptions[0]
            if subscription.cursor is not None:
                self.parts.board.ready.add(subscription)

    def finish(self) -> None:
        for client in self.open:
            client.unblock()
        self.parts.look("orders")
        at_rest(self.parts)
        assert all(client.admitted for client in self.open)

    # judging

    def may_see(self, client: FakeClient, sent: Sent) -> list[bool]:
        """Return, for each moment since a message was sent, whether the client might see it then."""
        return [self._may_see(client, sent, at) for at in range(sent.at, self.now + 1)]

    def _may_see(self, client: FakeClient, sent: Sent, at: int) -> bool:
        if sent.exclude == client.id:
            return False
        labels = [labels for since, labels in self.held[client.id] if since <= at][-1]
        permitted = client.request.places[0].subscriber.context == 0 and self.filtered.get(sent.label, at + 1) <= at
        return sent.label is None or sent.label in labels or permitted

    def check(self, client: FakeClient) -> None:
        if not client.received:
            assert client not in self.open
            return
        assert client.controls("gap-detected") == []
        [told] = client.controls("connected")
        start = json.loads(told)["streams"][0]["lastId"]
        since = client.request.places[0].since
        start = start if since is None else since
        got = [message.data for message in client.messages]
        durable = [int(data) for data in got if not data.startswith("note")]
        assert durable == sorted(set(durable)), "out of order, or repeated"
        assert all(id > start for id in durable)
        notes = [int(data.split()[1]) for data in got if data.startswith("note")]
        assert notes == sorted(set(notes))
        for data in got:
            assert any(self.may_see(client, self.sent[data])), "seen without the label"
        if client in self.open:
            for data, sent in self.sent.items():
                if not data.startswith("note") and int(data) > start:
                    assert int(data) in durable or not all(self.may_see(client, sent)), f"{data} is lost"


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    first=st.lists(CONNECT, min_size=2, max_size=6),
    steps=st.lists(st.tuples(STEPS, BREATHS), min_size=20, max_size=80),
    ring=st.sampled_from([4, 12, 50]),
    slowness=st.integers(0, 4),
)
def test_every_interleaving_delivers_to_the_holders_in_order_and_once(
    finely_grained: None, first: list[Any], steps: list[tuple[Any, int]], ring: int, slowness: int
) -> None:
    table = Table()
    table.on_read = lambda: breathe(slowness)
    with Parts(table, ring_messages=ring, page_size=2) as parts:
        run = Labelled(parts)
        run.take([*((each, 3) for each in first), *steps])
        run.finish()
        for client in parts.clients:
            run.check(client)
        for client in run.open:
            parts.leave(client)
        assert parts.budget.used == 0
        assert not parts.registry._holders
        gevent.sleep(0)


# Every interleaving, with two streams in each connection

BOTH = ["orders", "stock"]
STREAM = st.integers(0, 1)
WATCH = st.tuples(LABELS, LABELS, st.booleans(), st.booleans())
STEPS_OF_TWO = st.one_of(
    st.tuples(st.just("publish"), STREAM, AUDIENCE, st.integers(1, 5), st.just(True)),
    st.tuples(st.just("publish"), STREAM, AUDIENCE, st.integers(1, 5), st.booleans()),
    st.tuples(st.just("publish"), STREAM, st.sampled_from(HELD), st.integers(1, 5), st.just(True)),
    st.tuples(st.just("come back"), CLIENT, st.booleans(), st.booleans()),
    st.tuples(st.just("cut"), CLIENT, AUDIENCE, st.integers(0, 2), BREATHS),
    st.tuples(st.just("beat"), CLIENT),
    st.tuples(st.just("jam after"), CLIENT, st.integers(0, 2)),
    st.tuples(st.just("unblock"), CLIENT),
    st.tuples(st.just("look"), st.sampled_from(BOTH)),
    st.tuples(st.just("forget the ring"), st.sampled_from(BOTH)),
    st.tuples(st.just("kill"), st.integers(0, 2)),
)


class Watcher:
    """A client of both streams with labels for each, over several connections. It resumes with the last id that it got."""

    def __init__(self, parts: Parts, labels: list[list[str]], since: list[int] | None, jammed: bool) -> None:
        self.parts = parts
        self.labels = labels
        self.got: list[list[int]] = [[], []]
        self.start: list[int] | None = None
        self.last: list[int] | None = None
        self.connect(since, jammed)

    def connect(self, cursors: list[int] | None, jammed: bool) -> None:
        self.client = self.parts.client()
        places = [
            Place(name, since=since, subscriber=Subscriber(labels=labels))
            for name, since, labels in zip(BOTH, cursors or [None, None], self.labels, strict=True)
        ]
        self.client.request = StreamRequest(tuple(places))
        self.client.jammed = jammed
        self.parts.join(self.client)

    def unblock(self) -> None:
        self.client.on_send = lambda: None
        self.client.unblock()

    def take(self) -> None:
        """Note what came over the connection, once for each connection."""
        assert self.client.controls("gap-detected") == []
        for event in self.client.events:
            if not event.id:
                continue
            self.last = parse_composite(event.id, 2)
            self.start = self.start or self.last
            if not event.event.startswith("pgbus:"):
                self.got[int(event.id.partition("~")[0])].append(int(event.data))

    def come_back(self, cut: bool, jammed: bool) -> None:
        """Come back over another connection. ``cut`` says that the bytes that wait for it are lost."""
        if not cut:
            self.unblock()
        self.take()
        self.parts.leave(self.client)
        self.connect(self.last, jammed)

    def may_see(self, stream: int, label: str | None) -> bool:
        return label is None or label in self.labels[stream]


class OfTwoStreams(Run):
    """One interleaving with two streams. ``sent`` has the ids and labels of each."""

    def __init__(self, parts: Parts, first: list[tuple[list[str], list[str], bool, bool]]) -> None:
        super().__init__(parts)
        self.sent: list[list[tuple[int, str | None]]] = [[], []]
        self.watchers = [Watcher(parts, [a, b], [0, 0] if all else None, jammed) for a, b, all, jammed in first]

    def watcher(self, pick: int) -> Watcher:
        return self.watchers[pick % len(self.watchers)]

    def do_publish(self, stream: int, label: str | None, count: int, ring: bool) -> None:
        for _ in range(count):
            self.sent[stream].append((self.parts.publish(BOTH[stream], ring=ring, visible_to=label), label))

    def do_come_back(self, pick: int, cut: bool, jammed: bool) -> None:
        watcher = self.watcher(pick)
        if watcher.client.received:  # otherwise it would begin anew, now
            watcher.come_back(cut, jammed)

    def do_cut(self, pick: int, label: str | None, sends: int, breaths: int) -> None:
        """Cut a client off while both streams move, after it has taken so many sends more."""
        self.do_jam_after(pick, sends)
        for stream in (0, 1):
            self.do_publish(stream, label, 1, True)
        breathe(breaths)
        self.do_come_back(pick, True, False)

    def do_beat(self, pick: int) -> None:
        for subscription in self.watcher(pick).client.subscriptions:
            if subscription.cursor is not None:
                self.parts.board.ready.add(subscription)

    def do_jam_after(self, pick: int, sends: int) -> None:
        """Have a client take so many sends more, and then none."""
        client = self.watcher(pick).client
        jams = iter([*[False] * sends, True])

        def on_send() -> None:
            client.jammed |= next(jams, False)

        client.on_send = on_send

    def do_unblock(self, pick: int) -> None:
        self.watcher(pick).unblock()

    def finish(self) -> None:
        for watcher in self.watchers:
            watcher.unblock()
        for name in BOTH:
            self.parts.look(name)
        at_rest(self.parts)
        for watcher in self.watchers:
            watcher.take()


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    before=st.lists(st.tuples(STREAM, AUDIENCE), max_size=10),
    first=st.lists(WATCH, min_size=2, max_size=5),
    steps=st.lists(st.tuples(STEPS_OF_TWO, BREATHS), min_size=20, max_size=80),
    ring=st.sampled_from([4, 12, 50]),
    slowness=st.integers(0, 4),
)
def test_every_interleaving_of_two_streams_delivers_to_the_holders_over_all_their_connections(
    finely_grained: None, before: list[Any], first: list[Any], steps: list[tuple[Any, int]], ring: int, slowness: int
) -> None:
    table = Table()
    table.on_read = lambda: breathe(slowness)
    with Parts(table, ring_messages=ring, page_size=2) as parts:
        old = [(stream, parts.publish(BOTH[stream], ring=False, visible_to=label), label) for stream, label in before]
        run = OfTwoStreams(parts, first)
        for stream, id, label in old:
            run.sent[stream].append((id, label))
        run.take(steps)
        run.finish()
        for watcher in run.watchers:
            assert watcher.start is not None
            for stream, sent in enumerate(run.sent):
                due = [id for id, label in sent if id > watcher.start[stream] and watcher.may_see(stream, label)]
                assert watcher.got[stream] == due
            parts.leave(watcher.client)
        assert parts.budget.used == 0
        assert not parts.registry._holders
        gevent.sleep(0)
