"""If the table has lost messages that were delivered, clients get a gap event, and end with the messages that the table has."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from gevent.event import Event
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interleaving_parts import BREATHS, CLIENT, Run, breathe, grain_finely
from streamer_parts import FakeClient, Parts, Table, wait_until

from pgbus_gevent.core.frames import agree
from pgbus_gevent.core.ring_budget import RingBudget
from pgbus_gevent.core.rows import Row
from pgbus_gevent.core.stream_log import StreamLog
from pgbus_gevent.errors import DatabaseError
from pgbus_gevent.streamer import dispatcher
from pgbus_gevent.streamer.listener import Listener


@pytest.fixture(autouse=True)
def finely_grained(monkeypatch: pytest.MonkeyPatch) -> None:
    grain_finely(monkeypatch)


def settled(parts: Parts) -> None:
    def at_rest(client: FakeClient) -> bool:
        place = client.subscription
        if place is None or client.blocked_since is not None:
            return True
        return place.cursor is not None and place.lost is None and place.cursor >= parts.table.head(client.stream)

    wait_until(lambda: all(map(at_rest, parts.clients)) and not parts.reading and not parts.delivering)


def gaps(client: FakeClient) -> list[dict[str, Any]]:
    return [json.loads(told) for told in client.controls("gap-detected")]


def reasons(client: FakeClient) -> list[str]:
    return [gap["reason"] for gap in gaps(client)]


def published(parts: Parts, count: int) -> None:
    for _ in range(count):
        parts.publish()


def live_client(parts: Parts, count: int) -> FakeClient:
    """Connect a client, and publish messages. Return the client once it has them all."""
    client = parts.connect()
    settled(parts)
    published(parts, count)
    settled(parts)
    return client


def lose_and_look(parts: Parts, count: int) -> None:
    """Have the table lose the newest messages, and a reader look at it."""
    parts.table.lose("orders", count)
    parts.look()
    settled(parts)


# Delivered messages are gone


def test_a_client_that_was_sent_lost_messages_is_told_and_gets_those_that_the_table_has() -> None:
    with Parts(ring_messages=20) as parts:
        client = live_client(parts, 10)
        lose_and_look(parts, 3)
        told = {"stream": "orders", "requestedId": 100, "oldestId": 10, "lastId": 70, "reason": "ahead"}
        assert gaps(client) == [told]
        assert client.ids == [*range(10, 101, 10), *range(10, 71, 10)]
        parts.publish()
        settled(parts)
        assert client.ids[-1] == 110
        assert reasons(client) == ["ahead"]


def test_a_newcomer_gets_nothing_that_is_lost_once_that_is_known() -> None:
    with Parts(ring_messages=20) as parts:
        parts.connect()
        settled(parts)
        published(parts, 10)
        lose_and_look(parts, 3)
        newcomer, replaying = parts.connect(since=0), parts.connect(replay=5)
        settled(parts)
        assert newcomer.ids == [10, 20, 30, 40, 50, 60, 70]
        assert replaying.ids == [30, 40, 50, 60, 70]
        assert reasons(newcomer) == reasons(replaying) == []


def test_a_message_that_follows_an_older_one_than_the_head_has_the_head_checked() -> None:
    """Ids jump after a failover, so the newest id of the table may be above a head that the table does not have."""
    with Parts(ring_messages=20) as parts:
        client = live_client(parts, 10)
        parts.table.lose("orders", 3)
        parts.publish()
        settled(parts)
        assert reasons(client) == ["ahead"]
        assert client.ids[10:] == [10, 20, 30, 40, 50, 60, 70, 110]
        newcomer = parts.connect(since=0)
        settled(parts)
        assert newcomer.ids == client.ids[10:]


def test_a_loss_that_takes_the_pruning_of_the_last_message_back_is_told() -> None:
    with Parts(ring_messages=20) as parts:
        client = live_client(parts, 10)
        earlier = parts.table.rows["orders"][:7]
        parts.table.prune("orders", 10)
        parts.look()
        settled(parts)
        parts.table.rows["orders"] = earlier
        parts.table.horizons.clear()
        parts.publish()
        settled(parts)
        assert reasons(client) == ["ahead"]
        assert client.ids[10:] == parts.table.ids("orders")


def test_a_message_that_came_while_the_table_was_asked_and_was_lost_before_it_answered_is_lost() -> None:
    """The statement waits for a connection, and gets one to a server that does not have the last commit."""
    with Parts(ring_messages=20) as parts:
        client = live_client(parts, 2)
        held = Event()
        parts.table.on_read = held.wait
        reads = len(parts.table.reads)
        parts.look()
        wait_until(lambda: len(parts.table.reads) > reads, "the look was not begun")
        parts.publish()
        wait_until(lambda: client.ids == [10, 20, 30], "the message was not sent")
        parts.table.lose("orders", 1)
        parts.publish(ring=False)
        held.set()
        settled(parts)
        assert reasons(client) == ["ahead"]
        assert client.ids == [10, 20, 30, 10, 20, 40]


def test_a_cursor_that_is_known_to_be_lost_is_ahead_though_there_are_higher_ids() -> None:
    with Parts(ring_messages=20) as parts:
        parts.connect()
        settled(parts)
        published(parts, 10)
        parts.table.lose("orders", 3)
        published(parts, 2)
        settled(parts)
        back = [parts.connect(since=since) for since in (70, 80, 100, 110)]
        settled(parts)
        assert [reasons(client) for client in back] == [[], ["ahead"], ["ahead"], []]
        whole = parts.table.ids("orders")
        assert [client.ids for client in back] == [[110, 120], whole, whole, [120]]


def test_a_slow_reader_gets_the_gap_event_when_it_takes_bytes_again() -> None:
    with Parts(ring_messages=20) as parts:
        client = parts.connect()
        settled(parts)
        client.jammed = True
        published(parts, 10)
        settled(parts)
        before = parts.connect(since=0)
        settled(parts)
        lose_and_look(parts, 10)
        parts.publish()
        settled(parts)
        client.unblock()
        settled(parts)
        sent = client.ids
        assert sent[-1] == 110 and reasons(client) == ["ahead"]
        kinds = [event.event for event in client.events]
        assert kinds.index("pgbus:gap-detected") == len(kinds) - 2, (
            "the gap event comes before the messages that follow"
        )
        assert before.ids[-1] == 110 and reasons(before) == ["ahead"]


def test_a_client_that_was_not_sent_lost_messages_is_not_told() -> None:
    with Parts(ring_messages=20) as parts:
        client = live_client(parts, 5)
        client.jammed = True
        published(parts, 1)
        settled(parts)
        published(parts, 4)
        lose_and_look(parts, 3)
        client.unblock()
        settled(parts)
        assert (reasons(client), client.ids) == ([], [10, 20, 30, 40, 50, 60, 70])


def test_all_of_a_stream_can_be_lost() -> None:
    with Parts(ring_messages=20) as parts:
        client = live_client(parts, 3)
        lose_and_look(parts, 3)
        assert gaps(client) == [{"stream": "orders", "requestedId": 30, "oldestId": 0, "lastId": 0, "reason": "ahead"}]
        parts.publish()
        settled(parts)
        assert client.ids == [10, 20, 30, 40]


def test_the_gap_event_precedes_a_message_that_comes_with_the_loss_of_all_others() -> None:
    with Parts(ring_messages=20) as parts:
        client = parts.connect()
        settled(parts)
        published(parts, 3)
        settled(parts)
        parts.table.lose("orders", 3)
        parts.board.rewind(parts.log(), 0, horizon=0)
        parts.publish()  # before the dispatcher runs, so that a pass finds the client first
        settled(parts)
        told = [event.id if event.event == "message" else event.event for event in client.events[1:]]
        assert told == ["10", "20", "30", "pgbus:gap-detected", "40"]


def test_pruned_messages_are_not_lost_even_if_the_horizon_is_forgotten() -> None:
    with Parts(ring_messages=20) as parts:
        client = live_client(parts, 3)
        parts.table.prune("orders", 3)
        parts.look()
        settled(parts)
        assert parts.log().pruned
        parts.table.forgotten = parts.table.horizons.pop("orders")
        parts.look()
        wait_until(lambda: not parts.reading)
        parts.publish()
        settled(parts)
        assert (reasons(client), client.ids) == ([], [10, 20, 30, 40])


def test_a_page_that_was_read_before_does_not_come_after_the_news() -> None:
    """A slow reader has read rows, and meanwhile another reader finds that they are gone."""
    with Parts(ring_messages=1, page_size=10) as parts:
        live = live_client(parts, 10)
        parts.reader._kept.clear()
        read = parts.table.pages

        def slow(after: list[tuple[str, int]], **limits: int) -> Any:
            found = read(after, **limits)
            if after == [("orders", 0)] and parts.table.rows["orders"][-1].id == 100:
                parts.table.lose("orders", 3)
                parts.look()
                wait_until(lambda: parts.log().epoch)
            return found

        parts.table.pages = slow  # type: ignore[method-assign, assignment]
        client = parts.connect(since=0)
        settled(parts)
        assert client.ids == [10, 20, 30, 40, 50, 60, 70]
        assert live.ids[10:] == client.ids


def test_a_client_that_was_sent_a_page_ahead_of_the_ring_is_told_as_well() -> None:
    """The newest messages came without a notification. A page brought them, and then the table lost them."""
    with Parts(ring_messages=1, page_size=10) as parts:
        published(parts, 3)
        live = parts.connect()
        settled(parts)
        for _ in range(4):
            parts.publish(ring=False)
        behind = parts.connect(since=0)
        wait_until(lambda: behind.ids == [10, 20, 30, 40, 50, 60, 70])
        lose_and_look(parts, 4)
        assert behind.ids[7:] == [10, 20, 30]
        assert reasons(behind) == ["ahead"]
        assert live.ids == [40, 50, 60, 70, 10, 20, 30]
        assert reasons(live) == ["ahead"]


def test_a_client_that_comes_after_a_session_was_lost_waits_until_the_table_was_asked() -> None:
    with Parts(ring_messages=20) as parts:
        live = live_client(parts, 10)
        parts.table.lose("orders", 3)
        parts.log().doubts += 1
        newcomers = [parts.connect(since=0), parts.connect(replay=2), parts.connect(since=100)]
        settled(parts)
        assert [client.ids for client in newcomers] == [table := parts.table.ids("orders"), table[-2:], table]
        assert [reasons(client) for client in newcomers] == [[], [], ["ahead"]]
        assert reasons(live) == ["ahead"]
        assert not parts.log().in_doubt


def test_an_answer_from_before_a_doubt_does_not_settle_it() -> None:
    log = StreamLog("orders", RingBudget(100), max_frames=1, max_bytes=1)
    log.doubts += 1
    asked = log.doubts
    log.doubts += 1
    log.settle(asked)
    assert log.in_doubt
    log.settle(log.doubts)
    log.settle(asked)
    assert not log.in_doubt


def test_a_pass_that_is_under_way_sends_no_lost_message_to_the_rest_of_its_clients() -> None:
    with Parts(ring_messages=20) as parts:
        published(parts, 1)
        clients = [parts.connect() for _ in range(9)]
        settled(parts)

        def lose() -> None:
            clients[4].on_send = lambda: None
            parts.table.lose("orders", 1)
            parts.board.rewind(parts.log(), 10, horizon=0)
            parts.publish()

        clients[4].on_send = lose  # the last one before a yield
        published(parts, 1)
        settled(parts)
        assert [client.ids for client in clients[5:]] == [[30]] * 4
        assert [reasons(client) for client in clients] == [["ahead"]] * 5 + [[]] * 4
        assert all(client.ids == [20, 10, 30] for client in clients[:5])


def test_a_page_that_is_being_sent_sends_no_lost_message_to_the_rest_of_its_clients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatcher, "BEHIND_SLICE", 2)
    with Parts(ring_messages=1, page_size=10) as parts:
        published(parts, 4)
        clients = [parts.connect() for _ in range(9)]
        settled(parts)

        def lose() -> None:
            clients[3].on_send = lambda: None
            parts.table.lose("orders", 2)
            parts.board.rewind(parts.log(), 20, horizon=0)

        clients[3].on_send = lose
        for client in clients:
            [subscription] = client.subscriptions
            subscription.cursor = 0
            parts.board.wait(subscription)
        settled(parts)
        assert [client.ids for client in clients[:4]] == [[10, 20, 30, 40, 10, 20]] * 4
        assert [client.ids for client in clients[4:]] == [[10, 20]] * 5
        assert [reasons(client) for client in clients] == [["ahead"]] * 4 + [[]] * 5


def answers_late(table: Table, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], object]) -> None:
    """Have the next page come after ``meanwhile``, but with the state of the table before."""
    pages = table.pages

    def late(*question: Any, **limits: Any) -> Any:
        answer = pages(*question, **limits)
        monkeypatch.setattr(table, "pages", pages)
        meanwhile()
        return answer

    monkeypatch.setattr(table, "pages", late)


def test_a_look_from_before_a_rewind_brings_no_lost_message(monkeypatch: pytest.MonkeyPatch) -> None:
    with Parts(ring_messages=20) as parts:
        published(parts, 1)
        client = parts.connect()
        settled(parts)
        parts.publish(ring=False)

        def lose() -> None:
            parts.table.lose("orders", 1)
            parts.board.rewind(parts.log(), 10, horizon=0)

        answers_late(parts.table, monkeypatch, lose)
        parts.look()
        settled(parts)
        parts.publish()
        settled(parts)
        assert client.ids == [30]
        assert reasons(client) == []


def test_a_look_that_began_before_a_doubt_does_not_settle_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with Parts(ring_messages=20) as parts:
        published(parts, 1)
        parts.connect()
        settled(parts)
        answers_late(parts.table, monkeypatch, parts.board.doubt)
        parts.look()
        settled(parts)
        assert parts.log().in_doubt
        parts.look()
        settled(parts)
        assert not parts.log().in_doubt


def test_a_forged_message_that_comes_while_another_is_checked_is_found_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    with Parts(ring_messages=20) as parts:
        client = live_client(parts, 1)
        log = parts.log()

        def forged_before_the_real_one() -> None:
            wake = parts.table.append("orders", None)
            parts.board.take_next(log, wake._replace(data="forged"))
            assert log.contradicts(wake)
            parts.look()

        # The table agrees with the first message. This answer says nothing about what comes meanwhile.
        parts.publish()
        settled(parts)
        log.doubt_above(parts.table.ids("orders")[0])
        answers_late(parts.table, monkeypatch, forged_before_the_real_one)
        parts.look()
        wait_until(lambda: log.head == 30 and log.recheck is None)
        settled(parts)
        [page] = parts.table.pages([("orders", log.floor)], limit=10, size=1000)
        log.doubt_above(log.floor)
        assert agree(log.take_recheck()[1], page.rows, above=log.floor, up_to=log.head)
        assert client.ids[-2:] == [20, 30]


def test_a_check_of_a_ring_that_fails_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with Parts(ring_messages=20) as parts:
        client = live_client(parts, 1)
        wake = parts.table.append("orders", None)
        parts.board.take_next(parts.log(), wake._replace(data="forged"))
        settled(parts)
        pages = parts.table.pages

        def fails(*question: Any, **limits: Any) -> Any:
            monkeypatch.setattr(parts.table, "pages", pages)
            raise DatabaseError("the database is away")

        monkeypatch.setattr(parts.table, "pages", fails)
        assert parts.log().contradicts(wake)
        parts.look()
        wait_until(lambda: reasons(client) == ["ahead"])
        settled(parts)
        assert client.ids[-2:] == parts.table.ids("orders")


def test_a_ring_that_is_longer_than_a_page_is_checked_to_its_end() -> None:
    with Parts(ring_messages=20, page_size=3) as parts:
        client = live_client(parts, 8)
        wake = parts.table.append("orders", None)
        parts.board.take_next(parts.log(), wake._replace(data="forged"))
        settled(parts)
        parts.log().doubt_above(parts.table.ids("orders")[0])
        parts.look()
        wait_until(lambda: reasons(client) == ["ahead"])
        settled(parts)
        assert client.ids[-9:] == parts.table.ids("orders")


def forged_one(parts: Parts) -> FakeClient:
    """Return a client that has a forged message in place of the second one, and the third; the ring is to be checked."""
    client = live_client(parts, 1)
    wake = parts.table.append("orders", None)
    parts.board.take_next(parts.log(), wake._replace(data="forged"))
    parts.publish()
    settled(parts)
    assert parts.log().contradicts(wake)
    return client


def gets_the_real_one(parts: Parts, client: FakeClient) -> None:
    parts.look()
    wait_until(lambda: reasons(client) == ["ahead"])
    settled(parts)
    assert client.ids[-len(parts.table.ids("orders")) :] == parts.table.ids("orders")
    assert client.ids.count(20) == 2


def test_a_rewind_goes_below_a_forged_message_for_which_no_look_was_made_yet() -> None:
    with Parts(ring_messages=20) as parts:
        client = forged_one(parts)
        parts.board.rewind(parts.log(), 20, horizon=0)
        gets_the_real_one(parts, client)


def test_a_rewind_during_a_check_hides_no_forged_message_below_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with Parts(ring_messages=20) as parts:
        client = forged_one(parts)

        def lose() -> None:
            parts.table.lose("orders", 1)
            parts.board.rewind(parts.log(), 20, horizon=0)

        answers_late(parts.table, monkeypatch, lose)
        gets_the_real_one(parts, client)


def test_a_check_notices_that_the_table_has_lost_messages_below_it_as_well() -> None:
    with Parts(ring_messages=20) as parts:
        client = live_client(parts, 2)
        client.jammed = True
        client.send(b": this waits\n", 1.0)
        published(parts, 2)
        parts.log().doubt_above(30)
        parts.table.lose("orders", 3)
        parts.table.append("orders")
        parts.look()
        wait_until(lambda: parts.log().head == 50)
        client.unblock()
        settled(parts)
        assert reasons(client) == ["ahead"]
        assert client.ids == [10, 20, 10, 50]


def test_what_a_ring_drops_during_a_check_is_compared_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    with Parts(ring_messages=20) as parts:
        client = forged_one(parts)
        answers_late(parts.table, monkeypatch, parts.log().clear_ring)
        gets_the_real_one(parts, client)


def in_the_ring(parts: Parts) -> bool:
    """Whether the ring has what the table has, and nothing else."""
    log = parts.log()
    chunk = log.after(log.floor, 10**6) if log.floor < log.head else None
    [page] = Table.pages(parts.table, [("orders", log.floor)], limit=100, size=10**6)
    return chunk is not None and agree(chunk.frames, page.rows, above=log.floor, up_to=parts.table.head("orders"))


def gets_what_the_table_has(parts: Parts, client: FakeClient) -> None:
    wait_until(lambda: in_the_ring(parts))
    settled(parts)
    assert client.messages[-1].data == parts.table.rows["orders"][-1].data


def test_a_forged_message_that_comes_during_a_look_for_the_real_one_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Parts(ring_messages=20) as parts:
        client = live_client(parts, 1)
        wake = parts.table.append("orders", None)
        answers_late(parts.table, monkeypatch, lambda: parts.board.take_next(parts.log(), wake._replace(data="forged")))
        parts.look()
        gets_what_the_table_has(parts, client)


def test_a_forged_message_that_comes_between_a_hint_and_the_look_for_the_real_one_is_replaced() -> None:
    with Parts(ring_messages=20) as parts:
        client = live_client(parts, 1)
        wake = parts.table.append("orders", None)
        # The real message was seen, and cannot be taken without the table. No other part will ever read it again.
        parts.board.take_next(parts.log(), wake._replace(prev_id=None))
        parts.board.take_next(parts.log(), wake._replace(data="forged"))
        gets_what_the_table_has(parts, client)


def test_a_look_that_fails_remembers_what_it_was_to_find() -> None:
    with Parts(ring_messages=20) as parts:
        client = live_client(parts, 1)
        wake = parts.table.append("orders", None)
        parts.table.failures = 2  # one for each reader

        def between() -> None:
            if parts.table.failures == 1:
                parts.board.take_next(parts.log(), wake._replace(data="forged"))

        parts.table.on_read = between
        parts.board.take_next(parts.log(), wake._replace(prev_id=None))
        wait_until(lambda: not parts.table.failures)
        gets_what_the_table_has(parts, client)


def test_a_real_message_that_rings_without_its_predecessor_is_found_although_a_forged_one_follows_at_once() -> None:
    with Parts(ring_messages=20) as parts:
        client = live_client(parts, 1)
        wake = parts.table.append("orders", None)
        heard = [wake._replace(prev_id=None), wake._replace(data="forged")]
        listener = Listener(None, parts.board, wall_clock=lambda: wake.id / 1e6)  # type: ignore[arg-type]
        listener.hear([json.dumps(["message", *each[:8]]) for each in heard])
        gets_what_the_table_has(parts, client)


@pytest.mark.parametrize("moved", [0, 1])
def test_a_hint_is_forgotten_once_the_table_is_asked(moved: int) -> None:
    with Parts(ring_messages=20) as parts:
        live_client(parts, 1)
        log = parts.log()
        log.hint(log.head - moved)
        assert log.take_hint() == log.head
        assert log.hinted is None
        assert (log.hinted, log.recheck, log.in_doubt) == (None, log.head - 1 if moved else None, bool(moved))


def test_the_start_that_was_found_for_a_replay_is_found_anew_after_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    with Parts(ring_messages=2) as parts:
        live_client(parts, 2)
        for _ in range(4):
            parts.table.append("orders")  # of which the worker does not know yet
        openings = parts.table.openings

        def late(*question: Any, **limits: Any) -> Any:
            answer = openings(*question, **limits)
            monkeypatch.setattr(parts.table, "openings", openings)
            parts.table.lose("orders", 5)
            parts.table.append("orders")
            return answer

        monkeypatch.setattr(parts.table, "openings", late)
        client = parts.connect(replay=3)
        settled(parts)
        assert (client.ids, reasons(client)) == ([10, 70], [])


@pytest.mark.parametrize("is_lost", [True, False])
def test_a_loss_that_pruning_hid_is_told_although_the_pruning_is_lost_as_well(is_lost: bool) -> None:
    with Parts(Table(first_id=10**15 + 10), ring_messages=20) as parts:
        table, client = parts.table, live_client(parts, 2)
        first, second = table.ids("orders")
        client.jammed = True
        client.send(b": this waits\n", 1.0)
        if is_lost:
            table.lose("orders", 1)
        third = table.append("orders").id
        before = list(table.rows["orders"])
        table.append("orders")
        table.prune("orders", 4)
        parts.look()
        wait_until(lambda: parts.log().head > third)
        # Before the client takes bytes and is told, the table goes back to what it had.
        table.rows["orders"], table.horizons["orders"] = before, 0
        parts.look()
        wait_until(lambda: parts.log().head == third)
        client.unblock()
        settled(parts)
        assert reasons(client) == (["ahead"] if is_lost else [])
        assert client.ids == ([first, second, first, third] if is_lost else [first, second, third])


def test_a_log_that_reads_many_pages_does_not_read_them_twice() -> None:
    with Parts(ring_messages=20, page_size=2) as parts:
        live_client(parts, 1)
        log = parts.log()
        wakes = [parts.table.append("orders") for _ in range(20)]
        parts.table.on_read = lambda: log.hint(log.head)  # a later message was seen, too
        parts.table.reads.clear()
        parts.board.take_next(log, wakes[-1])
        wait_until(lambda: log.head == wakes[-1].id)
        settled(parts)
        assert parts.table.reads.count("pages") <= 12
        assert log.recheck is None


def test_a_ring_is_checked_although_its_first_messages_were_pruned() -> None:
    with Parts(ring_messages=20) as parts:
        client = forged_one(parts)
        parts.log().doubt_above(0)
        parts.table.prune("orders", 1)
        gets_the_real_one(parts, client)


def test_a_page_from_before_a_rewind_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with Parts(ring_messages=1, page_size=10) as parts:
        published(parts, 4)
        client = parts.connect()
        settled(parts)

        def lose() -> None:
            parts.table.lose("orders", 2)
            parts.board.rewind(parts.log(), 20, horizon=0)
            parts.publish()

        answers_late(parts.table, monkeypatch, lose)
        [subscription] = client.subscriptions
        subscription.cursor = 0
        parts.board.wait(subscription)
        settled(parts)
        assert client.ids == [10, 20, 50]


# Gaps


@pytest.mark.parametrize("ring", [1, 20])
@pytest.mark.parametrize(("since", "told"), [(0, [40]), (10, [40]), (20, [20]), (30, []), (40, []), (50, [])])
def test_a_client_that_resumes_across_a_gap_is_told(ring: int, since: int, told: list[int]) -> None:
    """The message after the gap names one that is gone. The client gets the gap event at its place among the messages."""
    table = Table()
    for _ in range(8):
        table.append("orders")
    table.delete("orders", 30)
    if told == [40]:
        told = [20]
    with Parts(table, ring_messages=ring, page_size=3) as parts:
        client = parts.connect(since=since)
        settled(parts)
        assert client.ids == table.ids("orders", since)
        assert reasons(client) == ["expired"] * len(told)
        assert [(gap["requestedId"], gap["oldestId"]) for gap in gaps(client)] == [(20, 40)] * len(told)
        if told:
            kinds = [event.event if event.event != "message" else event.data for event in client.events]
            assert kinds[kinds.index("pgbus:gap-detected") + 1] == "40"


@pytest.mark.parametrize(("replay", "told"), [(3, 0), (4, 1), (5, 1), (100, 1)])
def test_a_replay_reports_the_gaps_in_it(replay: int, told: int) -> None:
    table = Table()
    for _ in range(6):
        table.append("orders")
    table.delete("orders", 20)
    with Parts(table, ring_messages=2, page_size=3) as parts:
        client = parts.connect(replay=replay)
        settled(parts)
        assert client.ids == table.ids("orders")[-replay:]
        assert reasons(client) == ["expired"] * told


def test_live_clients_are_told_of_messages_that_were_deleted_before_they_were_seen() -> None:
    with Parts() as parts:
        client = live_client(parts, 2)
        gone = parts.publish(ring=False)
        parts.publish(ring=False)
        parts.table.delete("orders", gone)
        parts.look()
        settled(parts)
        assert client.ids == [10, 20, 40]
        assert [(gap["requestedId"], gap["oldestId"], gap["reason"]) for gap in gaps(client)] == [(20, 40, "expired")]


@pytest.mark.parametrize("prev_id", [None, 0, 5, 10, 1000])
def test_a_message_that_names_none_or_an_older_one_proves_nothing(prev_id: int | None) -> None:
    table = Table()
    for _ in range(3):
        table.append("orders")
    table.append("orders", prev_id=prev_id)
    with Parts(table, ring_messages=1) as parts:
        for since in (10, 25, 30):
            parts.connect(since=since)
        settled(parts)
        assert [reasons(client) for client in parts.clients] == [[]] * 3


# Cursors of messages that were lost before this worker served the stream

BASE = 10**15
"""No message ever had a lower id, so lower cursors are not judged."""


def with_losses() -> tuple[Table, list[int], list[int]]:
    """Return a table that has lost three messages and has new ones since, the ids that it has, and the lost ids."""
    table = Table(first_id=BASE + 10)
    for _ in range(6):
        table.append("orders")
    lost = table.ids("orders")[3:]
    table.lose("orders", 3)
    table.skip(1000)
    for _ in range(4):
        table.append("orders")
    return table, table.ids("orders"), lost


@pytest.mark.parametrize("ring", [1, 20])
@pytest.mark.parametrize("first", ["alone", "beside others"])
def test_a_cursor_that_no_message_names_as_the_one_before_it_is_ahead(ring: int, first: str) -> None:
    table, ids, lost = with_losses()
    with Parts(table, ring_messages=ring, page_size=3) as parts:
        if first == "beside others":
            parts.connect(since=0)
            settled(parts)
        clients = {since: parts.connect(since=since) for since in [*ids, *lost, *lost]}
        settled(parts)
        for since in ids:
            assert (reasons(clients[since]), clients[since].ids) == ([], table.ids("orders", since)), since
        for since in lost:
            told = {"requestedId": since, "oldestId": ids[0], "lastId": ids[-1], "reason": "ahead", "stream": "orders"}
            assert (gaps(clients[since]), clients[since].ids) == ([told], ids), since
        new = parts.publish()
        settled(parts)
        assert all(client.ids[-1] == new and len(gaps(client)) <= 1 for client in parts.clients)


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("lost", 1),
        ("the next names none", 0),
        ("it is there, as by a copy of two streams", 0),
        ("pruned", 0),
        ("deleted by hand", 0),
        ("the first of a stream that begins anew", 1),
        ("the first after the stream was forgotten", 0),
        ("the one before the first", 0),
        ("another stream's", 0),
        ("none that we ever gave", 0),
    ],
)
def test_which_rows_prove_that_a_cursor_is_lost(case: str, told: int) -> None:
    table = Table(first_id=BASE + 10)
    kept, since, next_id = (table.append("orders").id for _ in range(3))
    prev: int | None = kept
    if case == "the next names none":
        prev = None
    elif case == "deleted by hand":
        prev = since
    elif case in ("the first of a stream that begins anew", "the first after the stream was forgotten"):
        kept = prev = 0
        table.forgotten = since if case == "the first after the stream was forgotten" else since - 1
    elif case == "the one before the first":
        kept = prev = 0
        since = next_id - 1
    elif case == "none that we ever gave":
        kept, since = 5, 7
        prev = 5
    rows = [Row(id, None, str(id), None, None, before) for id, before in ((kept, 0), (next_id, prev)) if id]
    if case.startswith("it is there"):
        rows.insert(1, Row(since, None, "copied", None, None, 0))
    elif case == "pruned":
        del rows[0]
        table.horizons["orders"] = since
    table.rows["orders"] = rows
    with Parts(table) as parts:
        client = parts.connect(since=since, foreign=case == "another stream's")
        settled(parts)
        assert reasons(client) == ["ahead"] * told
        assert client.ids == table.ids("orders", 0 if told else since)


def test_a_replay_starts_at_a_cursor_that_can_be_brought_back() -> None:
    """The floor is not a message's id if the ring was opened for a client with an invented cursor, or without a large message."""
    table = Table(first_id=BASE + 10)
    for _ in range(6):
        table.append("orders", data="x" * 100_000)
    ids = table.ids("orders")
    with Parts(table, ring_messages=20, ring_bytes=10**7) as parts:
        parts.connect(since=ids[3] + 5)
        settled(parts)
        for replay in range(1, 7):
            client = parts.connect(replay=replay)
            settled(parts)
            assert client.ids == ids[-replay:]
            back = parts.connect(since=int(client.events[0].id))
            settled(parts)
            assert (reasons(back), back.ids) == ([], ids[-replay:])


def with_one_more_for_pages(parts: Parts, *, lose: bool = False) -> None:
    """Have the next page contain a message that the log does not know. The message may be lost at once."""
    read_pages, read = parts.reader._read_pages, parts.table.pages

    def read_with_one_more(after: list[tuple[str, int]], **limits: int) -> Any:
        parts.table.pages = read  # type: ignore[method-assign]
        parts.table.append("orders")
        found = read(after, **limits)
        if lose:
            parts.table.lose("orders", 1)
        return found

    def once(starts: dict[StreamLog, int]) -> None:
        parts.reader._read_pages = read_pages  # type: ignore[method-assign]
        parts.table.pages = read_with_one_more  # type: ignore[method-assign, assignment]
        read_pages(starts)

    parts.reader._read_pages = once  # type: ignore[method-assign]


def test_a_gap_never_names_an_oldest_message_above_the_last() -> None:
    """All messages were deleted by hand, and there is a new one that the worker does not know when it reads the page."""
    with Parts(ring_messages=1) as parts:
        client = live_client(parts, 3)
        parts.table.lose("orders", 3)
        with_one_more_for_pages(parts)
        parts.look()
        settled(parts)
        assert client.ids == [10, 20, 30, *parts.table.ids("orders")]
        [gap] = gaps(client)
        assert gap["oldestId"] <= gap["lastId"]


def test_no_client_is_sent_a_message_that_the_log_does_not_know() -> None:
    """Otherwise no client would get a gap event if the message is lost before the log knows it."""
    with Parts(ring_messages=1) as parts:
        client = live_client(parts, 3)
        parts.table.lose("orders", 3)
        with_one_more_for_pages(parts, lose=True)
        parts.look()
        wait_until(lambda: reasons(client))
        parts.table.lose("orders", len(parts.table.rows["orders"]))
        new = parts.publish()
        parts.look()
        settled(parts)
        segments: list[list[int]] = [[]]
        for event in client.events:
            if event.event == "pgbus:gap-detected":
                segments.append([])
            elif not event.event.startswith("pgbus:"):
                segments[-1].append(int(event.id))
        assert segments[-1] == [new]


def test_a_client_is_told_of_a_loss_even_if_the_dispatcher_was_started_again() -> None:
    with Parts() as parts:
        client = live_client(parts, 3)
        parts.table.lose("orders", 3)
        parts.greenlets[0].kill()
        parts.look()
        wait_until(lambda: parts.log().epoch and not parts.reading)
        parts.restart(0)
        wait_until(lambda: reasons(client) == ["ahead"])


# Every interleaving

STEPS = st.one_of(
    st.tuples(st.just("publish"), st.integers(1, 6), st.booleans()),
    st.tuples(st.just("publish"), st.just(1), st.just(True)),
    st.tuples(st.just("lose"), st.integers(1, 5)),
    st.tuples(st.just("delete"), st.integers(0, 20)),
    st.tuples(st.just("prune"), st.integers(1, 3)),
    st.tuples(st.just("connect"), st.sampled_from(["now", "oldest", "middle", "newest", "replay", "other"]), CLIENT),
    st.tuples(st.just("jam"), CLIENT),
    st.tuples(st.just("unblock"), CLIENT),
    st.tuples(st.just("look")),
    st.tuples(st.just("doubt")),
    st.tuples(st.just("kill"), st.integers(0, 2)),
)


class OfLosses(Run):
    """One interleaving of messages and clients that come and go."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.open = parts.clients
        self.table = parts.table
        self.prev: dict[int, int] = {}
        self.lost: set[int] = set()

    def do_publish(self, count: int, ring: bool) -> None:
        for _ in range(count):
            before = self.table.head("orders")
            self.prev[self.parts.publish(ring=ring)] = before

    def do_lose(self, count: int) -> None:
        self.lost |= set(self.table.ids("orders")[-count:])
        self.table.lose("orders", count)

    def do_delete(self, pick: int) -> None:
        ids = self.table.ids("orders")[:-1]  # without the newest it would be lost
        if ids:
            self.table.delete("orders", ids[pick % len(ids)])

    def do_prune(self, count: int) -> None:
        self.table.prune("orders", count)

    def do_connect(self, start: str, pick: int) -> None:
        known = [place.cursor for client in self.parts.clients if (place := client.subscription) and place.cursor]
        since = known[pick % len(known)] if start == "other" and known else self.since("orders", start)
        self.parts.connect("orders", **({"replay": 3} if start == "replay" else {"since": since}))

    def do_doubt(self) -> None:
        for log in self.parts.registry.logs():
            log.doubts += 1

    def finish(self) -> None:
        for client in self.parts.clients:
            client.unblock()
        self.parts.look()
        settled(self.parts)

    def check(self, client: FakeClient) -> None:
        """Check that the client ends with the right messages, and got an event for each gap, and no other."""
        segments: list[list[int | str]] = [[]]
        for event in client.events:
            if event.event == "pgbus:gap-detected" and json.loads(event.data)["reason"] == "ahead":
                segments.append([])
            elif event.event == "pgbus:gap-detected":
                segments[-1].append("gap")
            elif not event.event.startswith("pgbus:"):
                segments[-1].append(int(event.id))
        assert all(gap["oldestId"] <= gap["lastId"] for gap in gaps(client))
        ids = [item for item in segments[-1] if isinstance(item, int)]
        assert ids == sorted(set(ids))
        # Below a horizon, lost messages cannot be distinguished from pruned ones.
        lost = {id for id in self.lost if id > self.table.horizons.get("orders", 0)}
        assert not set(ids) & lost, "what it was sent last is not there, and it was not told"
        if len(segments) > 1 or client.request.places[0].since == 0:
            assert set(self.table.ids("orders")) <= set(ids)
        elif ids:
            assert set(self.table.ids("orders", ids[0])) <= set(ids)
        for segment in segments:
            self.check_holes(segment)

    def check_holes(self, segment: list[int | str]) -> None:
        for before, item in zip([None, *segment], segment, strict=False):
            if isinstance(before, int) and isinstance(item, int):
                assert self.prev[item] <= before, f"{item} follows {before}, though {self.prev[item]} was between them"


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    before=st.integers(0, 9),
    steps=st.lists(st.tuples(STEPS, BREATHS), min_size=10, max_size=60),
    slowness=st.integers(0, 4),
    ring=st.sampled_from([1, 4, 50]),
)
def test_every_interleaving_ends_with_the_messages_of_the_table(
    before: int, steps: list[tuple[Any, int]], slowness: int, ring: int
) -> None:
    with Parts(Table(), ring_messages=ring, page_size=2) as parts:
        run = OfLosses(parts)
        run.do_publish(before, False)
        parts.table.on_read = lambda: breathe(slowness)
        for kind in ("oldest", "now"):
            run.do_connect(kind, 0)
        run.take(steps)
        run.finish()
        for client in parts.clients:
            run.check(client)
