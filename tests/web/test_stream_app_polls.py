"""Long polling from outside: what a client sends, and what it is answered."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from time import monotonic
from typing import Any

import gevent
import pytest
from plain_parts import plain
from poll_parts import PATIENCE, Poller
from raw_http import ask, connected, exchange, get, read_to_end
from site_parts import Site, running_site
from support import greenlets, holds, until

from pgbus_gevent.bus import Bus
from pgbus_gevent.core import events
from pgbus_gevent.core.client import Subscriber
from pgbus_gevent.core.polled import FULL
from pgbus_gevent.core.sse_parser import Parser
from pgbus_gevent.testing.databases import TestDatabases
from pgbus_gevent.web.connection_log import FIELDS, ConnectionLog
from pgbus_gevent.web.stream_app import StreamApp
from pgbus_gevent.web.tables import Tables, Wanted

PATH = "/pgbus/streams/demo:x"


@pytest.fixture(scope="module")
def site(pgbus_databases: TestDatabases) -> Iterator[Site]:
    with running_site(pgbus_databases.make(), public=("*",)) as site:
        yield site


@pytest.fixture
def stream(request: pytest.FixtureRequest) -> str:
    """A stream of the test's own."""
    return request.node.name.removeprefix("test_")[:80]


@pytest.fixture
def poller(site: Site, stream: str) -> Poller:
    return Poller(site.url, f"/pgbus/streams/{stream}")


def waiting(site: Site, count: int) -> None:
    """Wait until ``count`` clients have been admitted."""
    until(lambda: sum(client.admitted for client in site.instance.registry.clients()) == count, f"{count} wait")


# the answer


def test_what_is_there_is_answered_at_once(site: Site, stream: str, poller: Poller) -> None:
    ids = [site.bus.stream(stream).broadcast(f"m{n}", event="e" if n else None) for n in range(3)]
    poller.cursor = 0
    found = poller.ask(60)
    assert found["messages"] == [
        {"id": id, "event": "e" if n else None, "data": f"m{n}", "stream": stream} for n, id in enumerate(ids)
    ]
    assert found["cursor"] == ids[-1]
    assert found["events"] == []
    assert found["streams"] == [{"name": stream, "lastId": ids[-1]}]


def test_a_message_ends_the_wait(site: Site, stream: str, poller: Poller) -> None:
    waits = poller.start(60)
    waiting(site, 1)
    id = site.bus.stream(stream).broadcast("now")
    assert waits.get(timeout=PATIENCE)["messages"] == [{"id": id, "event": None, "data": "now", "stream": stream}]
    assert poller.cursor == id


def test_an_ephemeral_message_ends_it_too_and_has_no_id(site: Site, stream: str, poller: Poller) -> None:
    head = site.bus.stream(stream).broadcast("before")
    waits = poller.start(60)
    waiting(site, 1)
    site.bus.stream(stream).broadcast("hint", event="e", ephemeral=True)
    assert waits.get(timeout=PATIENCE)["messages"] == [{"id": None, "event": "e", "data": "hint", "stream": stream}]
    assert poller.cursor == head


@pytest.mark.parametrize("seconds", [1, 4])
def test_without_a_message_the_answer_comes_when_the_time_is_over(
    seconds: int, site: Site, stream: str, poller: Poller
) -> None:
    head = site.bus.stream(stream).broadcast("before")
    began = monotonic()
    found = poller.ask(seconds)
    assert monotonic() - began >= seconds - 0.01
    assert (found["messages"], found["cursor"]) == ([], head)


def test_a_client_without_a_cursor_starts_now_and_loses_nothing_afterwards(
    site: Site, stream: str, poller: Poller
) -> None:
    site.bus.stream(stream).broadcast("before")
    assert poller.ask(0)["messages"] == []
    site.bus.stream(stream).broadcast("between")
    poller.ask(0)
    assert poller.data == ["between"]


def test_a_stream_without_messages_has_the_cursor_zero(site: Site, stream: str, poller: Poller) -> None:
    assert poller.ask(0)["cursor"] == 0
    site.bus.stream(stream).broadcast("first")
    assert poller.ask(30)["messages"][0]["data"] == "first"


def test_replay_asks_for_the_last_messages(site: Site, stream: str) -> None:
    site.bus.stream(stream).broadcast_many([f"m{n}" for n in range(5)])
    poller = Poller(site.url, f"/pgbus/streams/{stream}?replay=2")
    poller.ask(30)
    assert poller.data == ["m3", "m4"]


def test_an_answer_is_bounded_and_the_next_one_goes_on(site: Site, stream: str, poller: Poller) -> None:
    size, count = 1000, 600
    site.bus.stream(stream).broadcast_many([f"{n} {'x' * size}" for n in range(count)])
    poller.cursor = 0
    first = poller.raw(30)
    assert len(first.body) < 4 * FULL
    poller.read(count)
    assert [int(data.split()[0]) for data in poller.data] == list(range(count))


def test_a_message_larger_than_an_answer_comes_whole(site: Site, stream: str, poller: Poller) -> None:
    text = "é\n" * 500_000
    poller.cursor = 0
    site.bus.stream(stream).broadcast(text)
    assert poller.ask(30)["messages"][0]["data"] == text


def test_several_streams_have_one_cursor(site: Site, stream: str) -> None:
    names = [f"{stream}{n}" for n in range(3)]
    ids = {name: site.bus.stream(name).broadcast(f"in {name}") for name in names[:2]}
    query = "&".join(f"stream={name}&since=0" for name in names)
    poller = Poller(site.url, f"/pgbus/streams?{query}")
    poller.read(2)
    assert {each["stream"]: each["id"] for each in poller.messages} == ids
    poller.path = "/pgbus/streams?" + "&".join(f"stream={name}" for name in names)
    assert poller.cursor == f"0~{ids[names[0]]}.{ids[names[1]]}.0"
    site.bus.stream(names[2]).broadcast("last", event="e")
    site.bus.stream(names[1]).broadcast("hint", ephemeral=True)
    found = poller.ask(30)["messages"]
    assert [(each["stream"], each["data"]) for each in found] == [(names[2], "last")]


def test_last_event_id_wins_over_the_query(site: Site, stream: str, poller: Poller) -> None:
    first, second = site.bus.stream(stream).broadcast("a"), site.bus.stream(stream).broadcast("b")
    poller.cursor = 0
    answer = ask(site.port, poller.target(0), Last_Event_ID=str(first))
    assert [each["id"] for each in json.loads(answer.body)["messages"]] == [second]
    answer = ask(site.port, f"{poller.target(0)}&lastEventId={second}")
    assert json.loads(answer.body)["messages"] == []


# for clients of streams


def test_a_client_that_accepts_streams_is_answered_with_frames(site: Site, stream: str) -> None:
    head = site.bus.stream(stream).broadcast("a\nb", event="e")
    answer = ask(site.port, f"/pgbus/streams/{stream}?since=0&poll=60", Accept="text/event-stream")
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["content-length"] == str(len(answer.body))
    hello, message = Parser().feed(answer.body)
    assert (hello.event, hello.id) == ("pgbus:connected", "0")
    assert (message.event, message.data, message.id) == ("e", "a\nb", str(head))


def test_it_is_answered_before_it_misses_heartbeats(pgbus_databases: TestDatabases) -> None:
    with running_site(pgbus_databases.make(), heartbeat=0.3) as site:
        began = monotonic()
        answer = ask(site.port, f"{PATH}?poll=60", Accept="text/event-stream")
        assert [frame.event for frame in Parser().feed(answer.body)] == ["pgbus:connected"]
        assert monotonic() - began < 30


def test_an_event_source_that_polls_misses_nothing(site: Site, stream: str) -> None:
    with site.watch(stream, "poll=60", Accept="text/event-stream") as client:
        for data in ("one", "two", "three"):
            waiting(site, 1)
            site.bus.stream(stream).broadcast(data)
            client.wait_closed(timeout=PATIENCE)
            site.bus.stream(stream).broadcast(f"after {data}")
            client.resume()
            client.wait_closed(timeout=PATIENCE)
            client.resume()
        assert [each.data for each in client.messages] == [
            "one",
            "after one",
            "two",
            "after two",
            "three",
            "after three",
        ]


# gaps, and ends of the connection


def test_a_gap_is_told_at_once_and_before_what_follows(site: Site, stream: str, poller: Poller) -> None:
    site.bus.stream(stream).broadcast("a")
    poller.cursor = 9_000_000_000_000_000
    poller.ask(30)
    (gap,) = poller.events
    assert (gap["event"], gap["after"], gap["data"]["reason"]) == ("pgbus:gap-detected", 0, "ahead")
    assert poller.read(1)[0]["data"] == "a"
    assert len(poller.events) == 1


def test_an_invalid_last_event_id_is_a_gap_and_not_an_error(site: Site, stream: str, poller: Poller) -> None:
    head = site.bus.stream(stream).broadcast("a")
    found = json.loads(ask(site.port, poller.target(30), Last_Event_ID="x").body)
    assert [event["data"]["reason"] for event in found["events"]] == ["invalid-cursor"]
    assert (found["messages"], found["cursor"]) == ([], head)


def test_a_revocation_ends_the_wait_and_the_hook_decides_the_next_one(site: Site, stream: str) -> None:
    allowed = [True]
    site.app = StreamApp(site.instance, lambda environ, name: allowed[0] and Subscriber(owner="ada"))
    poller = Poller(site.url, f"/pgbus/streams/{stream}")
    waits = poller.start(60)
    waiting(site, 1)
    allowed[0] = False
    site.bus.disconnect("ada")
    found = waits.get(timeout=PATIENCE)
    assert [event["data"] for event in found["events"]] == [{"reason": "revoked"}]
    assert poller.raw(0).status == 403
    site.app = StreamApp(site.instance)


def test_a_right_that_expires_ends_the_wait(site: Site, stream: str) -> None:
    poller = Poller(site.url, f"/pgbus/streams/{site.sign(stream, expires_in=1.2)}")
    found = poller.ask(60)
    assert [event["data"] for event in found["events"]] == [{"reason": "expired"}]
    assert poller.raw(0).status == 403


# audiences


def test_messages_go_to_their_audience_and_the_cursor_passes_the_others(site: Site, stream: str) -> None:
    def authorize(environ: Any, name: str) -> Subscriber:
        return Subscriber(labels={"admins"} if environ.get("HTTP_X_ADMIN") else ())

    site.app = StreamApp(site.instance, authorize)
    admin = Poller(site.url, f"/pgbus/streams/{stream}", 0, X_Admin="1")
    guest = Poller(site.url, f"/pgbus/streams/{stream}", 0)
    site.bus.stream(stream).broadcast("for all")
    last = site.bus.stream(stream).broadcast("for admins", visible_to="admins")
    for poller in (admin, guest):
        poller.ask(30)
        poller.ask(0)
    assert (admin.data, guest.data) == (["for all", "for admins"], ["for all"])
    assert admin.cursor == guest.cursor == last
    site.app = StreamApp(site.instance)


def test_a_client_keeps_its_id_from_poll_to_poll_and_is_excluded_by_it(site: Site, stream: str, poller: Poller) -> None:
    poller.ask(0)
    connection = poller.connection
    for data in ("one", "two"):
        site.bus.stream(stream).broadcast(f"not for {data}", exclude=connection)
        site.bus.stream(stream).broadcast(data)
        poller.ask(30)
        assert poller.connection == connection
    assert poller.data == ["one", "two"]


# requests that are refused


@pytest.mark.parametrize("wrong", ["61", "-1", "1.5", "", "x", "001", "%D9%A1", "1&poll=1", "25&poll="])
def test_a_wrong_time_is_refused(wrong: str, site: Site) -> None:
    for path in (PATH, "/pgbus/streams?stream=demo:a&stream=demo:b"):
        answer = ask(site.port, f"{path}{'&' if '?' in path else '?'}poll={wrong}")
        assert answer.status == 400 and "poll" in answer.line


def test_what_is_refused_for_a_stream_is_refused_for_a_poll(site: Site) -> None:
    assert ask(site.port, f"{PATH}?poll=1&since=x").status == 400
    assert ask(site.port, f"{PATH}?poll=1", "POST").status == 403 or site.bus
    assert ask(site.port, "/pgbus/streams?poll=1").status == 400
    forged = site.sign("secret")[:-2] + "xx"
    assert ask(site.port, f"/pgbus/streams/{forged}?poll=1").status == 404


def test_a_refusal_for_a_passing_reason_is_a_status_or_a_frame(pgbus_databases: TestDatabases) -> None:
    with running_site(pgbus_databases.make(), max_per_owner=1) as site:
        site.app = StreamApp(site.instance, lambda environ, stream: Subscriber(owner="ada"))
        poller = Poller(site.url, PATH)
        waits = poller.start(60)
        waiting(site, 1)
        answer = poller.raw(30)
        assert answer.status == 429 and answer.line == "not now: too-many-connections"
        assert 5 <= int(answer.headers["retry-after"]) <= 15
        answer = ask(site.port, poller.target(30), Accept="text/event-stream")
        assert answer.status == 200 and b'"too-many-connections"' in answer.body
        site.bus.stream("demo:x").broadcast("end")
        waits.get(timeout=PATIENCE)
        assert poller.ask(0)["messages"] == []


def test_a_server_that_drains_answers_those_who_wait_and_refuses_others(pgbus_databases: TestDatabases) -> None:
    with running_site(pgbus_databases.make()) as site:
        site.bus.stream("demo:x").broadcast("before")
        poller = Poller(site.url, PATH)
        waits = poller.start(60)
        waiting(site, 1)
        draining = gevent.spawn(site.instance.shutdown)
        found = waits.get(timeout=PATIENCE)
        draining.join()
        assert [event["data"] for event in found["events"]] == [{"reason": "restart"}]
        assert 1000 <= found["retry"] <= 5000 and found["cursor"] > 0
        answer = poller.raw(30)
        assert answer.status == 503 and answer.line == "not now: restart"


# what operators and applications see


def test_a_member_that_polls_stays_present_between_polls(pgbus_databases: TestDatabases) -> None:
    with running_site(pgbus_databases.make(), presence=("demo:*",), presence_grace=30.0) as site:
        site.app = StreamApp(site.instance, lambda environ, stream: Subscriber(member=environ.get("HTTP_X_MEMBER")))
        with site.watch("demo:x") as other:
            other.next("pgbus:connected", timeout=PATIENCE)
            poller = Poller(site.url, PATH, X_Member="ada")
            for _ in range(3):
                poller.ask(1)
                until(lambda: site.bus.stream("demo:x").presence.members(), "the member is there")
            until(lambda: site.instance.presence.settled, "all is written")
            site.bus.stream("demo:x").broadcast("end")
            until(lambda: other.messages and other.messages[-1].data == "end", "the other has all")
            changes = [json.loads(frame.data) for frame in other.frames if frame.event == "presence"]
            assert [change["op"] for change in changes] == ["join"]


def test_events_console_and_log_say_that_it_is_a_poll(
    site: Site, stream: str, poller: Poller, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[Any] = []
    ends = [site.instance.events.subscribe(kind, heard.append) for kind in (events.Connected, events.Disconnected)]
    ConnectionLog(site.instance.events, owners=False)
    with caplog.at_level("INFO", "pgbus_gevent.connections"):
        waits = poller.start(60)
        waiting(site, 1)
        rows = Tables(site.instance.board).connections(Wanted("id", False, stream, 0))["rows"]
        assert [row["state"] for row in rows] == ["polling"]
        site.bus.stream(stream).broadcast("end")
        waits.get(timeout=PATIENCE)
        assert caplog.records == []
    with caplog.at_level("DEBUG", "pgbus_gevent.connections"):
        poller.ask(0)
    assert [getattr(record, FIELDS)["poll"] for record in caplog.records] == [True, True]
    for end in ends:
        end()
    assert [(type(each).__name__, each.poll) for each in heard] == [("Connected", True), ("Disconnected", True)] * 2
    assert [each.reason for each in heard if isinstance(each, events.Disconnected)] == ["answered"] * 2


# HTTP


def test_head_and_options_answer_at_once(site: Site) -> None:
    answer = ask(site.port, f"{PATH}?poll=60", "HEAD")
    assert (answer.status, answer.headers["content-type"], answer.body) == (200, "application/json", b"")
    assert ask(site.port, f"{PATH}?poll=x", "HEAD").status == 400
    assert ask(site.port, f"{PATH}?poll=60", "PUT").status == 405


def test_a_page_of_a_configured_origin_may_read_the_answer(pgbus_databases: TestDatabases) -> None:
    origin = "https://app.example"
    with running_site(pgbus_databases.make(), cors_origins=(origin,)) as site:
        for path in (f"{PATH}?poll=0", f"{PATH}?poll=x"):
            answer = ask(site.port, path, Origin=origin)
            assert answer.headers["access-control-allow-origin"] == origin
            assert answer.headers["vary"] == "origin"
        assert ask(site.port, f"{PATH}?poll=60", "OPTIONS", Origin=origin).status == 204


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_the_connection_ends_with_the_answer(version: str, site: Site) -> None:
    head, _, body = exchange(site.port, get(f"{PATH}?poll=0", version=version)).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower() and b"connection: close" in head.lower()
    assert head.lower().count(b"content-length") == 1
    assert json.loads(body)["messages"] == []


def test_a_client_that_leaves_is_forgotten_at_once(site: Site) -> None:
    with connected(site.port, get(f"{PATH}?poll=60")):
        waiting(site, 1)
    until(lambda: not len(site.instance.registry), "the client is gone")


@pytest.mark.parametrize("seconds", [0, 60])
def test_a_client_that_closes_its_sending_side_has_left_and_gets_no_answer(seconds: int, site: Site) -> None:
    with connected(site.port, get(f"{PATH}?poll={seconds}")) as sock:
        sock.shutdown(socket.SHUT_WR)
        assert read_to_end(sock) == b""
    until(lambda: not len(site.instance.registry), "the client is gone")


def test_a_waiting_poll_occupies_no_greenlet_and_they_share_one_log(site: Site, stream: str) -> None:
    with connected(site.port, get(f"/pgbus/streams/{stream}?poll=60")):
        waiting(site, 1)
        before = len(greenlets())
        socks = [connected(site.port, get(f"/pgbus/streams/{stream}?poll=60")) for _ in range(40)]
        opened = [sock.__enter__() for sock in socks]
        waiting(site, 41)
        until(lambda: len(greenlets()) <= before, "the greenlets of the requests have ended")
        assert len(site.instance.registry.logs()) == 1
        site.bus.stream(stream).broadcast("for all")
        found = [json.loads(read_to_end(sock).partition(b"\r\n\r\n")[2])["messages"] for sock in opened]
        assert [[each["data"] for each in messages] for messages in found] == [["for all"]] * 40
        for sock in socks:
            sock.__exit__(None, None, None)
    until(lambda: not len(site.instance.registry), "all are gone")


def test_a_server_that_keeps_its_sockets_answers_the_same(pgbus_databases: TestDatabases, site: Site) -> None:
    with (
        plain(site.instance.settings, database_url=pgbus_databases.make()) as host,
        Bus(settings=host.instance.settings) as bus,
    ):
        poller = Poller(host.url, PATH)
        waits = poller.start(60)
        until(lambda: any(client.admitted for client in host.instance.registry.clients()), "the poll waits")
        with host.live("demo:x") as other:
            id = bus.stream("demo:x").broadcast("now")
            assert waits.get(timeout=PATIENCE)["cursor"] == id
            assert other.next(timeout=PATIENCE).id == str(id)
        assert poller.ask(1)["messages"] == []
        assert poller.raw("x").status == 400
        until(lambda: not len(host.instance.registry), "all are gone")


def test_a_database_that_is_away_too_long_is_a_503_and_nothing_is_lost(pgbus_databases: TestDatabases) -> None:
    with running_site(pgbus_databases.make(), away_after=1.0) as site:
        poller = Poller(site.url, PATH)
        poller.ask(0)
        site.bus.stream("demo:x").broadcast("kept")
        queries = site.instance.database.queries
        original = queries.openings

        def hangs(*arguments: Any, **named: Any) -> Any:
            gevent.sleep(60)
            return original(*arguments, **named)

        queries.openings = hangs  # type: ignore[method-assign]
        answer = poller.raw(20)
        assert answer.status == 503 and answer.line == "not now: unavailable", answer
        assert int(answer.headers["retry-after"]) >= 1
        queries.openings = original  # type: ignore[method-assign]


def test_the_wait_holds_while_others_get_their_messages(site: Site, stream: str, poller: Poller) -> None:
    waits = poller.start(60)
    waiting(site, 1)
    site.bus.stream(f"{stream} another").broadcast("not for it")
    site.bus.stream(stream).broadcast("not for it", visible_to="nobody")
    holds(lambda: not waits.ready(), "the poll waits", 0.3)
    site.bus.stream(stream).broadcast("for it")
    assert [each["data"] for each in waits.get(timeout=PATIENCE)["messages"]] == ["for it"]
