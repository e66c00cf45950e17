"""Several streams over one connection: an id resumes all of them, and a busy stream leaves room for the others."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from urllib.parse import quote

import gevent
import pytest
from hypothesis import given
from hypothesis import strategies as st
from site_parts import Site, running_site
from streamer_parts import FakeClient, Parts, wait_until
from support import PATIENCE, until

from pgbus_gevent.bus import Bus
from pgbus_gevent.core import stream_log
from pgbus_gevent.core.client import Place, StreamRequest
from pgbus_gevent.core.cursor import composite_id, parse_composite
from pgbus_gevent.core.sse_parser import ParsedFrame
from pgbus_gevent.errors import InvalidCursor
from pgbus_gevent.testing.client import StreamClient
from pgbus_gevent.testing.databases import TestDatabases

NAMES = ["demo:a", "demo:b", "demo:c"]


@pytest.fixture(scope="module")
def site(pgbus_databases: TestDatabases) -> Iterator[Site]:
    url = pgbus_databases.make()
    # None of the deadlines is what these tests are about.
    patience = {"request_timeout": PATIENCE, "connect_timeout": PATIENCE, "write_deadline": 600.0}
    with running_site(url, public=("*",), ring_messages=20, send_buffer=16384, **patience) as found:
        yield found
    pgbus_databases.drop(url)


@pytest.fixture
def names(request: pytest.FixtureRequest) -> list[str]:
    """Return names of streams that no other test uses."""
    return [f"{request.node.name[:200]}:{n}" for n in range(3)]


def watch(site: Site, query: str, **headers: str) -> StreamClient:
    return StreamClient(site.url, f"/pgbus/streams?{query}", headers=headers)


def seen(client: StreamClient, names: list[str]) -> dict[str, list[str]]:
    """Return the data that came of each stream, judged by the ids of the frames."""
    found: dict[str, list[str]] = {name: [] for name in names}
    for frame in client.messages:
        found[stream_of(frame, names)].append(frame.data)
    return found


def stream_of(frame: ParsedFrame, names: list[str]) -> str:
    assert frame.id is not None
    return names[int(frame.id.partition("~")[0])]


# the id


@given(st.lists(st.integers(0, 2**53 - 1), min_size=2, max_size=32), st.data())
def test_an_id_holds_the_cursors_of_all_streams(cursors: list[int], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(cursors) - 1))
    assert parse_composite(composite_id(index, cursors), len(cursors)) == cursors


@pytest.mark.parametrize(
    "text", ["", "~", "5", "0~5", "0~1.2.3", "2~1.2", "x~1.2", "0~1.x", "0~1.-2", "0~1.2~", "0~1,2", " 0~1.2", "0~1.²"]
)
def test_a_text_that_is_not_an_id_of_two_streams_is_refused(text: str) -> None:
    with pytest.raises(InvalidCursor, match="since="):
        parse_composite(text, 2)


# over HTTP


def test_the_greeting_names_each_stream_and_each_message_comes_once_with_all_cursors(
    site: Site, names: list[str]
) -> None:
    before = [site.bus.stream(name).broadcast("before") for name in names]
    with watch(site, "&".join(f"stream={name}" for name in names)) as client:
        told = json.loads(client.next("pgbus:connected").data)
        assert told["streams"] == [{"name": name, "lastId": head} for name, head in zip(names, before, strict=True)]
        cursors = list(before)
        for n in (1, 0, 2, 1):
            cursors[n] = site.bus.stream(names[n]).broadcast(f"to {n}", event="told")
            frame = client.next()
            assert (frame.id, frame.event, frame.data) == (f"{n}~{'.'.join(map(str, cursors))}", "told", f"to {n}")
        site.bus.stream(names[2]).broadcast("note", ephemeral=True)
        assert client.next().id is None
        assert client.raw.endswith(b"\n\n: stream 2\ndata: note\n\n")


def test_each_since_and_replay_belongs_to_the_stream_before_it(site: Site, names: list[str]) -> None:
    ids = {name: [site.bus.stream(name).broadcast(f"{n}") for n in range(5)] for name in names}
    query = f"stream={names[0]}&since={ids[names[0]][1]}&stream={names[1]}&stream={names[2]}&replay=2"
    with watch(site, query) as client:
        client.next("pgbus:connected")
        until(lambda: len(client.messages) == 5, "they were replayed")
        assert seen(client, names) == {names[0]: ["2", "3", "4"], names[1]: [], names[2]: ["3", "4"]}


@pytest.mark.parametrize("way", ["header", "query"])
def test_sent_back_an_id_resumes_all_streams_beyond_the_ring_too(site: Site, names: list[str], way: str) -> None:
    query = "&".join(f"stream={name}" for name in names)
    with watch(site, query) as client:
        client.next("pgbus:connected")
        site.bus.stream(names[0]).broadcast("first")
        site.bus.stream(names[1]).broadcast("second")
        until(lambda: len(client.messages) == 2, "both came")
        last = client.last_id
    assert last is not None
    for n in range(30):
        site.bus.stream(names[n % 2]).broadcast(f"{n}")
    headers = {"Last-Event-ID": last} if way == "header" else {}
    with watch(site, query + ("" if headers else f"&since={quote(last)}"), **headers) as back:
        until(lambda: len(back.messages) == 30, "all that was missed came")
        assert seen(back, names) == {
            names[0]: [f"{n}" for n in range(0, 30, 2)], names[1]: [f"{n}" for n in range(1, 30, 2)], names[2]: []
        }  # fmt: skip
        assert back.quiet(0.1) is False or len(back.messages) == 30


def test_an_id_that_cannot_be_read_gets_the_live_streams_after_a_gap_of_each(site: Site, names: list[str]) -> None:
    for bad in ("17", "0~1.2", "9~1.2.3"):
        with watch(site, "&".join(f"stream={name}" for name in names), **{"Last-Event-ID": bad}) as client:
            gaps = [json.loads(client.next("pgbus:gap-detected").data) for _ in names]
            assert [(gap["stream"], gap["reason"]) for gap in gaps] == [(name, "invalid-cursor") for name in names]


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("since=5", "name a stream"),
        ("stream=a&stream=a", "the same stream is named twice"),
        ("stream=a&stream=b&since=x", "since='x' is not a cursor"),
        ("stream=a&since=1&since=2&stream=b", "since is given 2 times"),
        ("stream=a&since=0~1.2&stream=b&since=5", "since is given for all streams at once, and once more"),
        ("stream=a&stream=b&since=0~1.2.3", "is not a cursor of 2 streams"),
        ("stream=a&since=0~1", "since='0~1' is not a cursor"),
        ("&".join(f"stream=s{n}" for n in range(33)), "too many streams: at most 32"),
        ("stream=a&connection=xyz", "connection is not an id"),
    ],
)
def test_a_bad_query_is_400(site: Site, query: str, reason: str) -> None:
    answer = site.get(f"/streams?{query}")
    assert answer.status == 400 and reason in answer.line


def test_32_streams_are_served(site: Site) -> None:
    names = [f"thirty-two:{n}" for n in range(32)]
    with watch(site, "&".join(f"stream={name}" for name in names)) as client:
        client.next("pgbus:connected")
        for name in names:
            site.bus.stream(name).broadcast(name)
        until(lambda: len(client.messages) == 32, "one of each came")
        assert seen(client, names) == {name: [name] for name in names}


def test_a_connection_counts_once_and_in_each_of_its_streams(site: Site, names: list[str]) -> None:
    counter = site.instance.counter
    until(lambda: counter.total.active_connections == 0, "those before have left")
    with watch(site, "&".join(f"stream={name}" for name in names)) as client:
        client.next("pgbus:connected")
        assert [counter[name].active_connections for name in names] == [1, 1, 1]
        assert counter.total.active_connections == 1
    until(lambda: counter.total.active_connections == 0, "its leaving was seen")
    assert [counter[name] for name in names] == [(0, 0, 0)] * 3


def test_a_busy_stream_leaves_room_for_a_quiet_one_at_a_slow_client_and_nothing_is_lost(
    site: Site, names: list[str]
) -> None:
    busy, quiet = names[:2]
    with watch(site, f"stream={busy}&stream={quiet}") as client:
        client.next("pgbus:connected")
        client.pause()
        wrote = {busy: [f"{n} " + "x" * 20_000 for n in range(300)], quiet: [f"{n}" for n in range(3)]}
        for data in wrote[busy][:200]:
            site.bus.stream(busy).broadcast(data)
        for data in wrote[quiet]:
            site.bus.stream(quiet).broadcast(data)
        for data in wrote[busy][200:]:
            site.bus.stream(busy).broadcast(data)
        client.go_on()
        until(lambda: len(client.messages) == 303, "all came")
        assert seen(client, names) == {**wrote, names[2]: []}
        order = [stream_of(frame, names) for frame in client.messages]
        # It comes with the next turns, and not after the two hundred messages of the busy stream.
        assert order.index(quiet) < 150


def test_drops_at_any_moment_lose_and_repeat_nothing(site: Site, names: list[str]) -> None:
    chance = random.Random(5)
    wrote: dict[str, list[str]] = {name: [] for name in names}

    def publish() -> None:
        for n in range(300):
            name = chance.choice(names)
            wrote[name].append(f"{n} " + "x" * chance.randrange(3000))
            site.bus.stream(name).broadcast(wrote[name][-1])

    with watch(site, "&".join(f"stream={name}&since=0" for name in names)) as client:
        publisher = gevent.spawn(publish)
        while not publisher.ready():
            gevent.sleep(chance.random() / 20)
            client.resume()
        publisher.get()
        until(lambda: len(client.messages) >= 300, "all came")
        assert seen(client, names) == wrote


def test_an_id_resumes_all_streams_at_another_worker(
    site: Site, pgbus_databases: TestDatabases, names: list[str]
) -> None:
    url = str(site.instance.settings.database_url)
    query = "&".join(f"stream={name}&since=0" for name in names)
    patience = {"request_timeout": PATIENCE, "connect_timeout": PATIENCE}
    with running_site(url, public=("*",), ring_messages=20, **patience) as other, watch(site, query) as client:
        client.next("pgbus:connected")
        wrote: dict[str, list[str]] = {name: [] for name in names}
        for n in range(60):
            wrote[names[n % 3]].append(f"{n}")
            site.bus.stream(names[n % 3]).broadcast(f"{n}")
            if n % 7 == 0:
                client.url = other.url if client.url == site.url else site.url
                client.resume()
                client.next("pgbus:connected")
        until(lambda: len(client.messages) >= 60, "all came")
        assert seen(client, names) == wrote


# in the parts


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["publish", "quietly", "look", "jam", "unblock", "again"]), st.integers(0, 2)),
        max_size=40,
    )
)
def test_in_every_interleaving_each_stream_comes_whole_and_in_order(steps: list[tuple[str, int]]) -> None:
    with Parts(ring_messages=3, page_size=2) as parts:
        received = bytearray()
        ids = [0, 0, 0]

        def connect() -> FakeClient:
            request = StreamRequest(tuple(Place(name, since=id) for name, id in zip(NAMES, ids, strict=True)))
            client = FakeClient(f"{random.getrandbits(96):024x}", on_unblocked=parts._unblocked)
            parts.clients.append(client)
            parts.board.join(client, request.places)
            return client

        client = connect()
        for step, n in steps:
            if step in ("publish", "quietly"):
                parts.publish(NAMES[n], ring=step == "publish")
            elif step == "look":
                parts.look(NAMES[n])
            elif step == "jam":
                client.jammed = True
            elif step == "unblock":
                client.unblock()
            else:
                parts.leave(client)
                received += client.received
                last = [message.id for message in client.messages]
                if last:
                    ids = parse_composite(last[-1], 3)
                client = connect()
            gevent.sleep(0)
        client.unblock()
        for name in NAMES:
            parts.look(name)
        ours = [*client.subscriptions]
        wait_until(lambda: all(each.cursor == parts.table.head(each.log.name) for each in ours))
        wait_until(lambda: client.blocked_since is None)
        received += client.received
        found: dict[str, list[int]] = {name: [] for name in NAMES}
        whole = FakeClient()
        whole.received = received
        for message in whole.messages:
            index, _, cursors = message.id.partition("~")
            found[NAMES[int(index)]].append(int(cursors.split(".")[int(index)]))
        assert found == {name: parts.table.ids(name) for name in NAMES}


def test_a_message_is_encoded_once_however_many_connections_have_it_among_their_streams(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoded: list[int] = []
    encode = stream_log.encode
    monkeypatch.setattr(stream_log, "encode", lambda row: encoded.append(row.id) or encode(row))
    with Parts(ring_messages=100) as parts:
        clients = [FakeClient(f"{n:024x}", on_unblocked=parts._unblocked) for n in range(10)]
        for n, client in enumerate(clients):
            # The order differs for each client, so that no two have the same ids.
            parts.board.join(client, [Place(name, since=0) for name in (*NAMES[n % 3 :], *NAMES[: n % 3])])
        wait_until(lambda: all(client.admitted for client in clients))
        for name in NAMES:
            parts.publish(name)
        wait_until(lambda: all(len(client.messages) == 3 for client in clients))
        assert sorted(encoded) == sorted(id for name in NAMES for id in parts.table.ids(name))


# clients that come back


def test_an_id_that_a_connection_had_stays_its_own(site: Site, names: list[str]) -> None:
    with watch(site, f"stream={names[0]}") as client:
        mine = json.loads(client.next("pgbus:connected").data)["connectionId"]
        # The network path broke, but the server does not know that yet.
        with watch(site, f"stream={names[0]}&since=0&connection={mine}") as again:
            assert json.loads(again.next("pgbus:connected").data)["connectionId"] == mine
            client.wait_closed()
            site.bus.stream(names[0]).broadcast("mine", exclude=mine)
            site.bus.stream(names[0]).broadcast("everybody's")
            assert again.next().data == "everybody's"
        with watch(site, f"stream={names[0]}&since=0&connection={mine}") as replayed:
            assert replayed.next().data == "everybody's"
            assert replayed.quiet(0.1)


def test_a_client_cannot_take_the_id_of_another_owner(site: Site, names: list[str]) -> None:
    from pgbus_gevent.core.client import Subscriber
    from pgbus_gevent.web.stream_app import StreamApp

    owners = iter(["ada", "eve"])
    app = site.app
    site.app = StreamApp(site.instance, lambda environ, stream: Subscriber(next(owners)))
    try:
        with watch(site, f"stream={names[0]}") as ada:
            hers = json.loads(ada.next("pgbus:connected").data)["connectionId"]
            with watch(site, f"stream={names[0]}&connection={hers}") as eve:
                assert json.loads(eve.next("pgbus:connected").data)["connectionId"] != hers
            site.bus.stream(names[0]).broadcast("still here")
            assert ada.next().data == "still here"
    finally:
        site.app = app


def test_the_kits_client_takes_a_list(pgbus_bus: Bus, pgbus_client: Callable[..., StreamClient]) -> None:
    client = pgbus_client(["orders", "a b&c"])
    client.next("pgbus:connected")
    pgbus_bus.stream("a b&c").broadcast("x")
    assert client.next().data == "x"
    client.drop()
    pgbus_bus.stream("orders").broadcast("y")
    client.resume()
    assert client.next().data == "y"
