"""The session of an edge: few connections for any number of streams, and nothing lost or repeated when they change."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress

import gevent
import pytest
from edge_parts import TOKEN, hop
from support import PATIENCE, Serving, free_port, serving, until

from pgbus_gevent.bus import Bus
from pgbus_gevent.core import wakes
from pgbus_gevent.core.board import Board
from pgbus_gevent.core.registry import Registry
from pgbus_gevent.core.ring_budget import RingLimits
from pgbus_gevent.core.wakes import Ephemeral, Moved, NewMessage, Wake
from pgbus_gevent.core.work import Flag
from pgbus_gevent.edge import line as lines
from pgbus_gevent.edge import session as subject
from pgbus_gevent.edge.line import Line
from pgbus_gevent.edge.origin import Origin
from pgbus_gevent.edge.session import SMALL, WakeSession
from pgbus_gevent.errors import DatabaseUnavailable, OriginRefused
from pgbus_gevent.settings.table import Settings


@pytest.fixture
def origin(pgbus_settings: Settings) -> Iterator[Serving]:
    with serving(pgbus_settings, worker_token=TOKEN) as found:
        yield found


@pytest.fixture
def board() -> Board:
    from gevent.event import Event

    make: type[Flag] = Event
    return Board(make, RingLimits(1000, 2**20, 2**24))


def requests_to(url: str, token: str = TOKEN) -> Origin:
    return Origin(f"{url}/pgbus", token, connect_timeout=PATIENCE, pool_timeout=PATIENCE, size=2)


@pytest.fixture
def session(origin: Serving, board: Board) -> Iterator[WakeSession]:
    found = WakeSession(requests_to(origin.url), board.registry)
    yield found
    found.close()


def heard(session: WakeSession, sent: Mapping[str, Collection[int | None]], hints: int = 0) -> list[Wake]:
    """Return what the session hears, until it has heard of all messages of each stream and of ``hints`` ephemeral ones.

    An origin may say that a stream has moved instead of passing a message on, and the edge reads all of the stream then.
    """
    found: list[Wake] = []

    def enough() -> bool:
        found.extend(wakes.parse(payload) for payload in session.receive(0.1)[0])
        read = {name for each in found if isinstance(each, Moved) for name in each.streams}
        ids = {each.id for each in found if isinstance(each, NewMessage)}
        ids.update(id for name in read for id in sent.get(name, ()))
        numbers = {each[:2] for each in found if isinstance(each, Ephemeral)}
        return ids >= {id for each in sent.values() for id in each} and len(numbers) >= hints

    until(enough, "all messages come", PATIENCE)
    return found


def open_logs(board: Board, streams: Iterable[str]) -> None:
    """Have the edge know that the streams have no message yet."""
    for name in streams:
        board.registry.hold(name).open(head=0, horizon=0, oldest=0, floor=0, rows=[])


def follow(session: WakeSession, streams: list[str]) -> None:
    """Follow streams, and wait until they are heard."""
    flag = session.follow(streams)
    assert flag is None or flag.wait(PATIENCE)


def names(count: int, prefix: str = "many") -> list[str]:
    return [f"{prefix}:{n}" for n in range(count)]


def test_from_the_moment_on_at_which_a_stream_is_followed_each_message_is_heard(
    session: WakeSession, board: Board, pgbus_bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "LINGER", PATIENCE)  # a message may be on its way for longer than usual
    open_logs(board, names(30))
    sent = {}
    for name in names(30):
        follow(session, [name])
        sent[name] = [pgbus_bus.stream(name).broadcast("durable")]
        pgbus_bus.stream(name).broadcast("hint", ephemeral=True)
    found = heard(session, sent, hints=30)
    # A message that is on its way while a line is replaced may come twice, and is known by its id.
    assert all([each.id] == sent[each.stream] for each in found if isinstance(each, NewMessage))
    assert sorted(each.stream for each in found if isinstance(each, Ephemeral)) == sorted(names(30))
    assert session.lines == 1


def test_a_stream_that_moves_to_another_line_loses_nothing_that_is_on_its_way(
    session: WakeSession, board: Board, pgbus_bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "LINGER", PATIENCE)  # a message may be on its way for longer than usual
    open_logs(board, ["orders"])
    follow(session, ["orders"])
    ids = []
    for n in range(20):
        ids.append(pgbus_bus.stream("orders").broadcast(str(n)))
        pgbus_bus.stream("orders").broadcast(f"hint {n}", ephemeral=True)
        follow(session, [f"another:{n}"])  # replaces the line, while the messages may be anywhere
    found = heard(session, {"orders": ids}, hints=20)
    assert {each.id for each in found if isinstance(each, NewMessage)} <= set(ids)
    hints = [each.data for each in found if isinstance(each, Ephemeral)]
    assert sorted(hints) == sorted(set(hints)) == sorted(f"hint {n}" for n in range(20))


def test_an_ephemeral_message_that_an_origin_hears_late_comes_once(session: WakeSession) -> None:
    [line] = session._lines
    payloads = [json.dumps(["ephemeral", "a", n, None, "x", None, None], separators=(",", ":")) for n in range(2)]

    def heard_from(found: Line, payload: str) -> list[str]:
        session._inbox.put(found, payload)
        return session.receive(1.0)[0]

    assert heard_from(line, payloads[0]) == payloads[:1]
    follow(session, ["another"])
    [later] = session._lines
    assert heard_from(later, payloads[0]) == []
    assert heard_from(later, payloads[1]) == payloads[1:]


def test_messages_are_heard_while_a_line_opens(origin: Serving, board: Board, pgbus_bus: Bus) -> None:
    with hop(origin.url) as network:
        session = WakeSession(requests_to(network.url), board.registry)
        try:
            open_logs(board, ["orders", "another"])
            follow(session, ["orders"])
            network.opens.clear()
            flag = session.follow(["another"])
            heard(session, {"orders": [pgbus_bus.stream("orders").broadcast("x")]})
            assert session.follow(["orders"]) is None
            assert flag is not None
            assert not flag.is_set()
            network.opens.set()
            until(lambda: session.receive(0.1) and flag.is_set(), "the other stream is followed", PATIENCE)
            heard(session, {"another": [pgbus_bus.stream("another").broadcast("y")]})
        finally:
            session.close()


def test_a_session_ends_while_a_line_opens_and_leaves_no_line(origin: Serving) -> None:
    with hop(origin.url) as network:
        session = WakeSession(requests_to(network.url), Registry(lambda name: None))  # type: ignore[arg-type,return-value]
        network.opens.clear()
        flag = session.follow(["orders"])
        until(lambda: network.waiting, "the line is being opened")
        session.close()
        assert network.waiting, "it did not wait for the line"
        network.opens.set()
        until(lambda: len(origin.instance.board.taps) == 0, "the origin has no line of it", PATIENCE)
        assert flag is not None
        assert not flag.is_set()


def test_lines_become_one_again_although_the_first_try_fails(
    origin: Serving, session: WakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow(session, names(SMALL + 10))
    follow(session, ["another"])
    assert session.lines == 2
    monkeypatch.setattr(subject, "FOLD_AFTER", 0.0)
    really, failures = session._line, [DatabaseUnavailable("not now")]

    def failing(streams: Iterable[str]) -> Line:
        if failures:
            raise failures.pop()
        return really(streams)

    monkeypatch.setattr(session, "_line", failing)
    session.ping()
    until(lambda: not failures, "it fails")
    assert session.receive(0.05) is not None
    assert session.lines == 2
    session.ping()
    until(lambda: session.lines == 1, "one line is left", PATIENCE)


def test_a_stream_that_moves_to_another_line_before_its_first_read_is_read_again(session: WakeSession) -> None:
    follow(session, ["orders"])  # the edge has no head of it yet
    follow(session, ["another"])
    found: list[str] = []

    def looked() -> bool:
        found.extend(session.receive(0.1)[0])
        return bool(found)

    until(looked, "it is told to read", PATIENCE)
    assert found == ['["moved", "orders"]']


def test_an_inbox_has_room_for_so_many_payloads_and_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "BACKLOG", 3)
    monkeypatch.setattr(lines, "BACKLOG_SIZE", 100)
    for payloads, room in (["a" * 200, "b"], 1), (["a" * 60, "b" * 30, "c" * 20], 2), (list("abcd"), 3):
        inbox = lines.Inbox()
        writer = gevent.spawn(lambda inbox=inbox, payloads=payloads: [inbox.put(None, each) for each in payloads])
        until(lambda inbox=inbox: inbox.blocked == 1, "it is full")
        assert [found for _, found in inbox.take(1.0)] == payloads[:room]
        writer.join(PATIENCE)
        assert inbox.blocked == 0
        assert [found for _, found in inbox.take(1.0)] == payloads[room:]


def test_a_large_line_stays_while_a_small_one_takes_new_streams(
    session: WakeSession, board: Board, origin: Serving, monkeypatch: pytest.MonkeyPatch, pgbus_bus: Bus
) -> None:
    open_logs(board, ["many:5"])
    follow(session, names(4 * SMALL))
    [large] = session._lines
    for name in names(20, "new"):
        follow(session, [name])
    assert session.lines == 2
    assert large in session._lines
    for prefix in ("a", "b", "c", "d"):
        follow(session, names(SMALL + 10, prefix))
        assert session.lines <= subject.MOST_LINES
    monkeypatch.setattr(subject, "FOLD_AFTER", 0.0)
    session.narrow([*names(20, "new"), "many:5"])
    session.ping()
    until(lambda: [len(line.streams) for line in session._lines] == [21], "one line is left", PATIENCE)
    heard(session, {"many:5": [pgbus_bus.stream("many:5").broadcast("x")]})
    until(lambda: session.receive(0.05) and len(origin.instance.board.taps) == 1, "the others end", PATIENCE)


def test_a_session_begins_with_the_streams_of_the_worker(origin: Serving, board: Board, pgbus_bus: Bus) -> None:
    first = pgbus_bus.stream("orders").broadcast("a")
    board.registry.hold("orders").open(head=first, horizon=0, oldest=0, floor=first, rows=[])
    with_head = WakeSession(requests_to(origin.url), board.registry)
    try:
        assert with_head.lines == 1
        follow(with_head, ["orders"])
        assert with_head.lines == 1
        missed = pgbus_bus.stream("orders").broadcast("b")
        found = heard(with_head, {"orders": [missed]})
        assert {each.id for each in found if isinstance(each, NewMessage)} <= {missed}
    finally:
        with_head.close()


def test_a_cut_ends_the_session_after_what_came_before_it(origin: Serving, pgbus_bus: Bus) -> None:
    with hop(origin.url) as network:
        session = WakeSession(requests_to(network.url), Registry(lambda name: None))  # type: ignore[arg-type,return-value]
        try:
            network.cut()
            with pytest.raises(DatabaseUnavailable, match=r"ended the connection|was cut"):
                until(lambda: session.receive(0.1) is None, "it raises")
        finally:
            session.close()


def test_a_new_line_that_leads_to_a_server_that_stops_is_tried_again(
    origin: Serving, board: Board, pgbus_bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hop(origin.url) as network:
        session = WakeSession(requests_to(network.url), board.registry)
        try:
            open_logs(board, names(6))
            [port] = network.targets
            network.targets = [port, free_port()]  # each second connection is refused
            for name in names(6):
                follow(session, [name])
            heard(session, {"many:5": [pgbus_bus.stream("many:5").broadcast("x")]})
            monkeypatch.setattr(subject, "OPEN_PATIENCE", 0.3)
            network.open = False
            flag = session.follow(["another"])
            with pytest.raises(DatabaseUnavailable, match="did not answer"):
                until(lambda: session.receive(0.1) is None, "it raises")
            assert flag is not None
            assert not flag.is_set()
        finally:
            session.close()


def test_silence_ends_the_session(origin: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "SILENCE", 0.5)
    with hop(origin.url) as network:

        def opened() -> WakeSession | None:
            with suppress(DatabaseUnavailable):  # the greeting is late
                return WakeSession(requests_to(network.url), Registry(lambda name: None))  # type: ignore[arg-type,return-value]
            return None

        session = until(opened, "the origin greets", PATIENCE)
        try:
            network.flows.clear()
            with pytest.raises(DatabaseUnavailable, match="not even a heartbeat"):
                until(lambda: session.receive(0.1) is None, "it raises")
        finally:
            session.close()


def test_an_origin_with_a_new_session_has_the_edge_look_for_missed_messages(
    origin: Serving, session: WakeSession
) -> None:
    origin.instance.board.resync()
    lost = []

    def told() -> bool:
        lost.append(session.receive(0.1)[1])
        return any(lost)

    until(told, "the session says that messages may be lost", PATIENCE)


def test_an_origin_that_stops_says_so(origin: Serving, session: WakeSession) -> None:
    for tap in origin.instance.board.taps:
        tap.end()
    with pytest.raises(DatabaseUnavailable, match="the origin is stopping"):
        until(lambda: session.receive(0.1) is None, "it raises")


def test_a_wrong_token_ends_the_attempt_with_what_to_do(origin: Serving, board: Board) -> None:
    with pytest.raises(OriginRefused, match="give both the same PGBUS_WORKER_TOKEN"):
        WakeSession(requests_to(origin.url, "another-worker-token"), board.registry)


@pytest.mark.parametrize(("greeting", "says"), [({"hop": 2}, "upgrade the older"), ([], "not as this release")])
def test_a_greeting_of_another_release_is_refused(greeting: object, says: str) -> None:
    with pytest.raises(OriginRefused, match=says):
        lines._greeting(json.dumps(greeting))


def test_an_interrupt_ends_a_wait_and_is_not_lost(session: WakeSession) -> None:
    session.interrupt()
    assert session.receive(PATIENCE) == ([], False)
