"""Heartbeats for quiet connections, and the end of connections whose deadline is over, with a clock that the tests move."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from streamer_parts import FakeClient, make_board, wait_until

from pgbus_gevent.core import backlog, sse
from pgbus_gevent.core.backlog import HURRY
from pgbus_gevent.core.client import Client, Subscription
from pgbus_gevent.core.ring_budget import RingBudget
from pgbus_gevent.core.stream_log import StreamLog
from pgbus_gevent.streamer.clients import Clients
from pgbus_gevent.streamer.heartbeat import Heartbeat, tick_of
from pgbus_gevent.streamer.limits import Limits

START = 1000.0
WALL = 1_764_000_000.0
"""The time of the wall clock at START."""

INTERVAL, WRITE_DEADLINE, ADMIT_DEADLINE = 15.0, 20.0, 10.0
LATE = WRITE_DEADLINE / 4 + 0.25
"""How late a connection is found that changed just after it was checked."""


class Beating:
    """A heartbeat with its clock."""

    def __init__(self) -> None:
        self.now = START
        self.ended: list[tuple[Client, str]] = []
        self.on_end: Callable[[Client, str], None] = lambda client, reason: None
        self.board = make_board(tick=tick_of(INTERVAL, WRITE_DEADLINE, ADMIT_DEADLINE))
        self.heartbeat = Heartbeat(
            self.board,
            self,  # type: ignore[arg-type]  # it ends clients, which is all that is needed
            interval=INTERVAL,
            write_deadline=WRITE_DEADLINE,
            admit_deadline=ADMIT_DEADLINE,
            clock=lambda: self.now,
            wall_clock=lambda: WALL + self.now - START,
        )

    def end(self, client: Client, reason: str) -> None:
        """Do what ``Clients`` does: remove the client, and cut it off if it takes nothing."""
        self.ended.append((client, reason))
        client.reason = client.reason or reason
        client.ends_at = None
        client.subscriptions = ()
        if reason == "slow-consumer" and isinstance(client, FakeClient):
            client.blocked_since = None
        self.on_end(client, reason)

    def client(self, *, admitted: bool = True, ends_at: float | None = None, **request: Any) -> FakeClient:
        client = FakeClient(now=self.now, **request)
        log = StreamLog("orders", RingBudget(0), max_frames=1, max_bytes=1)
        subscription = Subscription(client, log, client.request.places[0])
        subscription.cursor = 0 if admitted else None
        client.subscriptions = (subscription,)
        client.ends_at = ends_at
        self.board.schedule.add(client)
        return client

    def run_for(self, seconds: float, at_each: Callable[[], object] = lambda: None) -> None:
        """Check the clients that are due, as the greenlet does, until this time."""
        end = self.now + seconds
        while self.now < end:
            self.now += self.heartbeat._tick
            self.heartbeat.check_due()
            at_each()

    def when_ended(self, seconds: float) -> float:
        """Return after how many seconds the only client is ended."""
        start = self.now
        times: list[float] = []
        self.on_end = lambda client, reason: times.append(self.now - start)
        self.run_for(seconds)
        [found] = times
        return found


@pytest.fixture
def beating() -> Beating:
    return Beating()


# Heartbeats


@pytest.mark.parametrize("busy", [False, True])
def test_heartbeats_come_within_the_interval_and_not_long_before_its_end(beating: Beating, busy: bool) -> None:
    clients = [beating.client() for _ in range(50)]
    silences: list[float] = []
    for client in clients:
        client.on_send = lambda client=client: silences.append(beating.now - client.last_sent)  # type: ignore[misc]

    def now_and_then() -> None:
        if busy and random.random() < 0.05:
            client = random.choice(clients)
            client.last_sent = beating.now

    beating.run_for(INTERVAL * 20, now_and_then)
    assert len(silences) == beating.heartbeat.sent > 50 * 15
    assert max(silences) <= INTERVAL
    assert min(silences) >= INTERVAL * 0.75 - 0.5


def test_a_heartbeat_carries_the_time(beating: Beating) -> None:
    client = beating.client()
    said: list[int] = []
    client.on_send = lambda: said.append(int(WALL + beating.now - START))
    beating.run_for(100)
    assert bytes(client.received) == b"".join(map(sse.heartbeat, said))
    assert 100 / INTERVAL - 1 <= len(said) <= 100 / (INTERVAL * 0.7)


def test_a_connection_that_was_sent_something_gets_none(beating: Beating) -> None:
    client = beating.client()

    def send_now_and_then() -> None:
        if beating.now - client.last_sent >= INTERVAL / 2:
            client.send(b"x", beating.now)

    beating.run_for(200, send_now_and_then)
    assert set(bytes(client.received)) == {ord("x")}
    assert beating.heartbeat.sent == 0


def test_a_connection_for_which_something_waits_gets_none(beating: Beating) -> None:
    client = beating.client()
    client.jammed = True
    client.send(b"x", beating.now)
    beating.run_for(INTERVAL + 3)
    assert bytes(client.waiting) == b"x"


def test_a_connection_that_was_not_greeted_yet_gets_none() -> None:
    beating = Beating()
    client = beating.client(admitted=False)
    beating.heartbeat._admit_deadline = 1000.0
    beating.run_for(100)
    assert client.received == b""


@pytest.mark.slow
def test_a_cursor_that_rests_below_messages_for_others_is_moved_within_the_interval(beating: Beating) -> None:
    client, at_the_head = beating.client(), beating.client()
    client.subscriptions[0].log.head = 10
    beating.run_for(INTERVAL)
    assert client.subscriptions[0] in beating.board.ready
    assert at_the_head.subscriptions[0] not in beating.board.ready


def test_after_a_broadcast_to_all_the_heartbeats_are_spread(beating: Beating) -> None:
    clients = [beating.client() for _ in range(10_000)]
    beating.run_for(7)
    for client in clients:
        client.last_sent = beating.now
    sweeps: Counter[float] = Counter()
    for client in clients:
        client.on_send = lambda: sweeps.update([beating.now])
    beating.run_for(INTERVAL)
    assert sum(sweeps.values()) == 10_000
    assert max(sweeps.values()) < 2_500


@pytest.mark.slow
def test_clients_that_come_at_the_same_moment_are_not_checked_at_the_same_moment(beating: Beating) -> None:
    for _ in range(10_000):
        beating.client()
    beating.heartbeat.check_due()
    assert max(map(len, beating.board.schedule._slots.values())) < 3_000


# Ends


def test_a_client_that_takes_no_byte_is_ended_at_the_deadline(beating: Beating) -> None:
    client = beating.client()
    client.jammed = True
    client.send(b"x", beating.now)
    assert WRITE_DEADLINE <= beating.when_ended(60) <= WRITE_DEADLINE + LATE
    assert beating.ended[0] == (client, "slow-consumer")


def test_a_client_that_takes_some_bytes_is_not(beating: Beating) -> None:
    client = beating.client()
    client.jammed = True
    client.send(b"x", beating.now)

    def trickle() -> None:
        if beating.now - (client.blocked_since or 0.0) > WRITE_DEADLINE - 1:
            client.blocked_since = beating.now

    beating.run_for(200, trickle)
    assert beating.ended == []


@pytest.mark.parametrize("after", [0.1, 3.3, 7.3, 100.0])
def test_a_connection_ends_when_its_token_expires(beating: Beating, after: float) -> None:
    client = beating.client(expires_at=WALL + after)
    assert after <= beating.when_ended(after + 10) <= after + 0.5
    assert beating.ended == [(client, "expired")]


@pytest.mark.parametrize("after", [1.0, 60.0])
def test_a_connection_ends_at_its_greatest_age(beating: Beating, after: float) -> None:
    client = beating.client(ends_at=START + after)
    assert after <= beating.when_ended(after + 10) <= after + LATE
    assert beating.ended == [(client, "max-age")]


def test_a_client_that_is_not_admitted_in_time_is_sent_away(beating: Beating) -> None:
    client = beating.client(admitted=False)
    assert ADMIT_DEADLINE <= beating.when_ended(60) <= ADMIT_DEADLINE + LATE
    assert beating.ended == [(client, "unavailable")]


def test_a_connection_that_was_ended_is_looked_at_no_more(beating: Beating) -> None:
    beating.client(expires_at=WALL + 5)
    beating.run_for(100)
    assert len(beating.ended) == 1
    assert len(beating.board.schedule) == 0


def test_a_client_that_was_sent_away_has_the_whole_deadline_to_take_its_bytes(beating: Beating) -> None:
    client = beating.client(expires_at=WALL + 5, ends_at=START + 5)
    client.jammed = True
    beating.run_for(4)
    client.send(b"x", beating.now)
    blocked = beating.now
    ends: list[tuple[float, str]] = []
    beating.on_end = lambda client, reason: ends.append((beating.now - blocked, reason))
    beating.run_for(60)
    assert [reason for _, reason in ends] == ["expired", "slow-consumer"]
    assert ends[1][0] >= WRITE_DEADLINE
    assert len(beating.board.schedule) == 0


# What is left behind


def test_ten_thousand_that_came_and_left_leave_nothing_behind(beating: Beating) -> None:
    for _ in range(100):
        clients = [beating.client() for _ in range(100)]
        beating.run_for(1)
        for client in clients:
            beating.board.schedule.remove(client)
    assert len(beating.board.schedule) == 0
    beating.run_for(60)
    assert beating.heartbeat.sent == 0


def test_forgetting_one_twice_or_one_that_was_never_there_does_nothing(beating: Beating) -> None:
    client, other = beating.client(), beating.client()
    for _ in range(2):
        beating.board.schedule.remove(client)
    beating.board.schedule.remove(FakeClient())
    beating.run_for(INTERVAL)
    assert other.received


def test_a_client_that_is_removed_while_it_is_ended_stays_removed(beating: Beating) -> None:
    beating.client(expires_at=WALL + 5)
    beating.on_end = lambda client, reason: beating.board.schedule.remove(client)
    beating.run_for(60)
    assert len(beating.ended) == 1
    assert len(beating.board.schedule) == 0


def test_a_client_that_was_sent_away_and_takes_a_byte_now_and_then_is_cut_off(beating: Beating) -> None:
    client = beating.client()
    client.jammed = True
    client.send(b"x" * 100, beating.now)
    client.reason = "restart"

    def takes_a_byte() -> None:
        if client.blocked_since is not None:
            client.blocked_since = beating.now

    began = beating.now
    beating.run_for(3 * WRITE_DEADLINE, takes_a_byte)
    assert [reason for _, reason in beating.ended] == ["slow-consumer"]
    assert beating.now - began >= WRITE_DEADLINE


def test_a_client_that_raises_does_not_cost_the_others_their_heartbeat(beating: Beating) -> None:
    clients = [beating.client() for _ in range(100)]
    clients[50].raises = True
    raised = 0
    for _ in range(100):
        try:
            beating.run_for(1)
        except ValueError:
            raised += 1
    assert raised == 1
    assert all(client.received for client in clients if not client.raises)


def test_a_process_that_slept_checks_all_clients_at_once(beating: Beating) -> None:
    clients = [beating.client() for _ in range(100)]
    beating.heartbeat.check_due()
    beating.now += 3600
    beating.heartbeat.check_due()
    assert all(client.received.count(b"heartbeat") == 1 for client in clients)
    beating.run_for(INTERVAL / 2)
    assert beating.heartbeat.sent == 100


def test_the_greenlet_sweeps_by_itself() -> None:
    deadlines = {"interval": 0.02, "write_deadline": 1.0, "admit_deadline": 1.0}
    board = make_board(tick=tick_of(**deadlines))
    heartbeat = Heartbeat(board, Clients(board, limits=Limits(1)), **deadlines)
    client = FakeClient()
    log = StreamLog("orders", RingBudget(0), max_frames=1, max_bytes=1)
    client.subscriptions = (Subscription(client, log, client.request.places[0]),)
    client.subscriptions[0].cursor = 0
    greenlet = gevent.spawn(heartbeat.run)
    try:
        board.schedule.add(client)
        wait_until(lambda: heartbeat.sent >= 3)
    finally:
        greenlet.kill()


def test_while_too_many_bytes_wait_those_that_wait_longest_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "MAX_BYTES", 1000)
    beating = Beating()
    clients = [beating.client() for _ in range(3)]
    for client in clients[:2]:
        beating.board.backlog.hold(client, [memoryview(bytes(800))], beating.now)
    beating.on_end = lambda client, reason: beating.board.backlog.release(client)
    beating.run_for(HURRY - 0.5)
    assert beating.ended == []
    beating.run_for(1.0)
    assert beating.ended == [(clients[0], "slow-consumer")], "one was enough"
