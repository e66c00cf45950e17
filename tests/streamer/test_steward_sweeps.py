"""Several workers on one database: the steward rings for messages that did not ring, and the others rely on it.

The interval of the workers' own probes is a minute, so a message that arrives earlier was rung for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from time import monotonic, time
from typing import Any

import psycopg2
import pytest
from database_parts import BELL, Session, Sessions, opened_sessions
from support import PATIENCE, Serving, serving, until

from pgbus_gevent.bus import Bus
from pgbus_gevent.core.buckets import bucket_of, channel
from pgbus_gevent.database.stewardship import _ABOVE, _FIRST, _IN_HOLES, _NEWEST
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.streamer import steward as steward_module
from pgbus_gevent.streamer import steward_sweeps

LEASE, RELY = steward_module.LEASE, steward_module.RELY

INSERT = "insert into pgbus.messages (stream, msg_id, data) values (%s, nextval('pgbus.message_ids'), %s)"
"""Appends a message by hand. It does not ring."""


@pytest.fixture
def sessions(pgbus_database: str) -> Iterator[Sessions]:
    with opened_sessions(pgbus_database) as found:
        yield found


@pytest.fixture
def sql(sessions: Sessions) -> Session:
    return sessions()


class Fleet:
    """Workers in this process, each with its own Instance."""

    def __init__(self, settings: Settings, stack: ExitStack) -> None:
        self._settings = settings
        self._stack = stack
        self.workers: list[Serving] = []

    def add(self, **changes: Any) -> Serving:
        worker = self._stack.enter_context(serving(self._settings, **{"catch_up_interval": 60.0, **changes}))
        self.workers.append(worker)
        return worker

    @property
    def leaders(self) -> list[Serving]:
        return [worker for worker in self.workers if worker.instance.steward.leads]

    def settled(self) -> bool:
        """Whether one worker is the steward, hears everything, and all rely on it."""
        return (
            len(self.leaders) == 1
            and self.leaders[0].instance.ear.hears
            and all(not worker.instance.board.follow_all for worker in self.workers)
        )


@pytest.fixture
def fleet(pgbus_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    # Less waiting before the workers know of one another.
    monkeypatch.setattr(steward_module, "RENEW_ALONE", 0.05)
    monkeypatch.setattr(steward_module, "ASK", (0.1, 0.2))
    # A steward that stands still for some seconds, as all workers of this process do on a busy machine, stays the steward.
    monkeypatch.setattr(steward_module, "LEASE", 30.0)
    with ExitStack() as stack:
        yield Fleet(pgbus_settings, stack)


@pytest.fixture
def pair(fleet: Fleet) -> Fleet:
    """Two workers that rely on one of them."""
    fleet.add()
    fleet.add()
    until(fleet.settled, "there is a steward, and all rely on it")
    return fleet


def test_a_worker_without_company_sweeps_for_itself(fleet: Fleet, sql: Session) -> None:
    worker = fleet.add(catch_up_interval=0.5)
    client = worker.live("orders")
    until(lambda: worker.instance.steward.leads, "it is the steward")
    sql.run(INSERT, "orders", "by hand")
    assert client.next(timeout=PATIENCE).data == "by hand"
    assert worker.instance.board.follow_all
    assert not worker.instance.ear.hears
    assert worker.instance.steward.sweeps.tails == 0


def rely_for_long(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the workers rely on the steward's last sign even if this process stands still for some seconds."""
    monkeypatch.setattr(steward_module, "RELY", 600.0)
    boards = [worker.instance.board for worker in fleet.workers]
    until(lambda: all(board.steward_until > monotonic() + 300.0 for board in boards), "the workers have had a sign")


def test_a_message_that_did_not_ring_arrives_at_all_workers(
    pair: Fleet, sql: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    rely_for_long(pair, monkeypatch)
    clients = [worker.live("orders") for worker in pair.workers]
    for n in range(5):
        sql.run(INSERT, "orders", str(n))
        assert [client.next(timeout=PATIENCE).data for client in clients] == [str(n)] * 2
    assert sum(worker.instance.steward.sweeps.rung for worker in pair.workers) == 5


def test_messages_whose_transactions_could_not_ring_arrive_in_order(
    pair: Fleet, sessions: Sessions, sql: Session
) -> None:
    clients = [worker.live("orders") for worker in pair.workers]
    holder = sessions()
    with holder.transaction():
        holder.run("select pg_advisory_xact_lock(%s, n) from generate_series(0, 1) n", BELL)
        holder.run("lock table pgbus.jumping in access share mode")  # so that it does not count as a squatter
        for n in range(50):
            sql.call("broadcast", "orders", str(n))
        for client in clients:
            assert [client.next(timeout=PATIENCE).data for _ in range(50)] == [str(n) for n in range(50)]


def test_a_message_that_rang_is_not_rung_for_again(
    pair: Fleet, pgbus_bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine, a notification may be later than the tail that finds its message.
    monkeypatch.setattr(steward_sweeps, "GRACE", 0.5)
    clients = [worker.live("orders") for worker in pair.workers]
    for n in range(20):
        pgbus_bus.stream("orders").broadcast(str(n))
        assert [client.next(timeout=PATIENCE).data for client in clients] == [str(n)] * 2
    steward = pair.leaders[0].instance.steward
    before = steward.sweeps.tails
    until(lambda: steward.sweeps.tails > before + 3, "it sweeps on")
    assert steward.sweeps.rung <= 2


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
def test_a_transaction_that_stays_open_while_others_commit_is_found_when_it_commits(
    pair: Fleet, sessions: Sessions, pgbus_bus: Bus, isolation: str
) -> None:
    client = pair.workers[0].live("orders")
    slow = sessions()
    slow.run(f"begin isolation level {isolation}")
    slow.run(INSERT, "orders", "drawn first")
    for n in range(30):
        pgbus_bus.stream("stock").broadcast(str(n))
    tails = sum(worker.instance.steward.sweeps.tails for worker in pair.workers)
    until(lambda: sum(worker.instance.steward.sweeps.tails for worker in pair.workers) > tails + 12, "seconds pass")
    slow.run("commit")
    assert client.next(timeout=PATIENCE).data == "drawn first"


def test_a_large_message_that_did_not_ring_arrives(pair: Fleet, sql: Session) -> None:
    client = pair.workers[0].live("orders")
    sql.run(INSERT, "orders", "x" * 20_000)
    assert len(client.next(timeout=PATIENCE).data) == 20_000


def test_a_flood_of_messages_that_did_not_ring_arrives_in_order(pair: Fleet, sql: Session) -> None:
    clients = [worker.live("orders") for worker in pair.workers]
    sql.run(
        "insert into pgbus.messages (stream, msg_id, data)"
        " select 'orders', nextval('pgbus.message_ids'), n::text from generate_series(1, 12000) n"
    )
    for client in clients:
        until(lambda client=client: len(client.messages) >= 12_000, "all arrive", 2 * PATIENCE)  # type: ignore[misc]
        assert [message.data for message in client.messages] == [str(n) for n in range(1, 12_001)]
    sql.run(INSERT, "orders", "after the flood")
    assert clients[0].next(timeout=PATIENCE)


def test_messages_from_before_a_takeover_are_found(fleet: Fleet, sql: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        fleet.add()
    until(fleet.settled, "there is a steward, and all rely on it")
    assert LEASE + max(steward_module.ASK) + steward_sweeps.RENEW < RELY, "a takeover is over before"
    rely_for_long(fleet, monkeypatch)
    monkeypatch.setattr(steward_module, "LEASE", LEASE)
    first = fleet.leaders[0]
    others = [worker for worker in fleet.workers if worker is not first]
    client = others[0].live("orders")
    # As a killed process: it neither sweeps nor gives its lease back.
    first.instance.steward._leave = lambda: None  # type: ignore[method-assign]
    first.instance.tasks["steward"].stop(5)
    sql.run(INSERT, "orders", "while there is no steward")
    assert client.next(timeout=PATIENCE).data == "while there is no steward"
    assert not any(worker.instance.board.follow_all for worker in others), "a takeover makes nobody sweep"
    until(lambda: sum(worker.instance.steward.leads for worker in others) == 1, "another one leads")


def test_workers_sweep_for_themselves_if_no_worker_leads(pair: Fleet, sql: Session) -> None:
    for worker in pair.workers:
        worker.instance.steward._may_lead = False
    client = pair.workers[0].live("orders")
    until(lambda: all(worker.instance.board.follow_all for worker in pair.workers), "they do not rely on anybody")
    sql.run(INSERT, "orders", "by hand")
    sql.call("broadcast", "stock", "this one rings")
    assert client.next(timeout=PATIENCE).data == "by hand"


def test_two_stewards_at_once_do_no_harm(pair: Fleet, sql: Session) -> None:
    clients = [worker.live("orders") for worker in pair.workers]
    for worker in pair.workers:
        steward = worker.instance.steward
        steward._source = Both(steward._source)  # type: ignore[assignment]
    until(lambda: len(pair.leaders) == 2, "both take themselves for the steward")
    for n in range(200):
        sql.run(INSERT, "orders", str(n))
    for client in clients:
        assert [client.next(timeout=PATIENCE).data for _ in range(200)] == [str(n) for n in range(200)]
    assert len(pair.leaders) == 2


class Both:
    """Tells whoever asks that it is the steward."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def duty(self, question: Any) -> Any:
        return self._source.duty(question)._replace(leads=True, rings=question.rings, company=True)

    def ids(self, question: Any, *arguments: Any, **named: Any) -> Any:
        rows = self._source.ids(question, *arguments, **named)
        return rows._replace(duty=rows.duty._replace(leads=True, rings=question.rings, company=True))


def test_messages_arrive_while_the_steward_does_not_hear(pair: Fleet, sql: Session, pgbus_bus: Bus) -> None:
    clients = [worker.live("orders") for worker in pair.workers]
    leader = pair.leaders[0]
    assert leader.instance.tasks["ear"].stop(5)
    until(lambda: not leader.instance.ear.hears, "it is deaf")
    for n in range(10):
        if n % 2:
            sql.run(INSERT, "orders", str(n))
        else:
            pgbus_bus.stream("orders").broadcast(str(n))
        assert [client.next(timeout=PATIENCE).data for client in clients] == [str(n)] * 2
    assert pair.leaders == [leader]


def test_the_steward_hears_again_after_its_session_was_cut(pair: Fleet, sql: Session) -> None:
    leader = pair.leaders[0]
    client = leader.live("orders")
    sql.run("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgbus-listen'"
            " and datname = current_database()")  # fmt: skip
    until(lambda: pair.settled() and leader.instance.board.listening.is_set(), "all hear again")
    sql.run(INSERT, "orders", "by hand")
    assert client.next(timeout=PATIENCE).data == "by hand"


def test_a_half_full_notification_queue_ends_the_reliance_and_messages_arrive(
    pair: Fleet, sql: Session, pgbus_database: str
) -> None:
    client = pair.workers[0].live("orders")
    sql.run("create or replace function pgbus._can_notify() returns boolean language sql volatile return false")
    sql.run(INSERT, "orders", "first")
    for worker in pair.workers:
        worker.instance.sweeper._interval = 0.5
    until(lambda: all(worker.instance.board.follow_all for worker in pair.workers), "nobody relies on rings")
    assert client.next(timeout=PATIENCE).data == "first"
    sql.run(
        "create or replace function pgbus._can_notify() returns boolean language sql volatile"
        " return pg_notification_queue_usage() < 0.5"
    )
    until(pair.settled, "all rely on the steward again")


def test_the_sequence_of_ids_may_be_set_back_by_hand(pair: Fleet, sql: Session, pgbus_bus: Bus) -> None:
    client = pair.workers[0].live("orders")
    steward = pair.leaders[0].instance.steward
    pgbus_bus.stream("orders").broadcast("before")
    assert client.next(timeout=PATIENCE).data == "before"
    until(lambda: steward.sweeps.top, "the steward has seen it")
    last = sql.one("select last_value from pgbus.message_ids")
    sql.run("select setval('pgbus.message_ids', %s)", last - 1_000_000)
    until(lambda: steward.sweeps.top <= last - 1_000_000, "the steward follows the sequence")
    sql.run(INSERT, "stock", "by hand, below")
    other = pair.workers[1].live("stock", since=0)
    assert other.next(timeout=PATIENCE).data == "by hand, below"
    sql.run(INSERT, "stock", "and another")
    assert other.next(timeout=PATIENCE).data == "and another"


def test_a_message_with_an_id_far_ahead_does_not_blind_the_steward(pair: Fleet, sql: Session) -> None:
    client = pair.workers[0].live("orders")
    sql.run("insert into pgbus.messages (stream, msg_id, data) values ('stock', 9000000000000000, 'far ahead')")
    for n in range(3):
        sql.run(INSERT, "orders", str(n))
        assert client.next(timeout=PATIENCE).data == str(n)


class Recorded:
    """An outlet that records what it gets."""

    def __init__(self) -> None:
        self.payloads: list[str] = []
        self.ids: list[int] = []
        self.restarts = 0

    def heard(self, payloads: list[str]) -> None:
        self.payloads += payloads

    def found(self, ids: Sequence[int]) -> None:
        self.ids += ids

    def restarted(self) -> None:
        self.restarts += 1


def test_an_outlet_gets_every_message_of_every_stream_heard_or_found_even_without_company(
    fleet: Fleet, sql: Session, pgbus_bus: Bus
) -> None:
    worker = fleet.add(catch_up_interval=1.0)
    outlet = Recorded()
    worker.instance.steward.outlets.append(outlet)
    until(lambda: worker.instance.ear.hears and outlet.restarts == 1, "the steward sweeps")
    for n in range(50):
        if n % 5:
            pgbus_bus.stream(f"s{n % 7}").broadcast(str(n))
        else:
            sql.run(INSERT, f"s{n % 7}", str(n))
    pgbus_bus.stream("s1").broadcast("x" * 20_000)  # its wake has no content, so it counts as not heard
    stored = {id for (id,) in sql.run("select msg_id from pgbus.messages")}

    def got() -> set[int]:
        wakes = [json.loads(payload) for payload in outlet.payloads]
        return {wake[2] for wake in wakes if wake[0] == "message"} | set(outlet.ids)

    until(lambda: got() == stored, "it gets them all")
    pgbus_bus.stream("s1").broadcast("now", ephemeral=True)
    until(lambda: any(json.loads(payload)[0] == "ephemeral" for payload in outlet.payloads), "ephemeral ones, too")
    assert not worker.instance.steward.sweeps.rings
    assert [wake for _, _, wake in pgbus_bus.database.stewardship.wakes([max(stored)], size=100)] == ['["moved", "s1"]']


def test_the_statement_that_asks_for_ids_reads_an_index(sql: Session, pgbus_bus: Bus) -> None:
    sql.run("insert into pgbus.messages (stream, msg_id, data)"
            " select 's' || n % 50, nextval('pgbus.message_ids'), 'x' from generate_series(1, 20000) n")  # fmt: skip
    sql.run("analyze pgbus.messages")
    last = sql.one("select last_value from pgbus.message_ids")
    parameters: dict[str, Any] = {
        "me": 1, "may_lead": True, "lease": 1200, "hears": True, "rings": True, "rank": 0, "bind": False, "limit": 1000,
        "above": last - 10,
        "lows": [last - 5000, last - 900], "highs": [last - 4990, last - 900],
    }  # fmt: skip
    with closing(psycopg2.connect(pgbus_bus.database.url)) as connection, connection.cursor() as cursor:
        for statement, most, scans in (
            (_FIRST + _ABOVE, 50, 1),
            (_FIRST + _IN_HOLES + _ABOVE, 100, 2),
            (_FIRST + _NEWEST, 200, 1),
        ):
            cursor.execute("explain (analyze, buffers) " + statement, parameters)
            plan = "\n".join(row[0] for row in cursor.fetchall())
            assert "Seq Scan on messages" not in plan, plan
            assert plan.count("messages_by_id") == scans, plan
            hits = int(plan.split("shared hit=")[1].split()[0])
            assert hits < most * 10, plan


def test_a_forged_ring_with_the_next_id_keeps_the_steward_from_ringing_for_no_message(
    pair: Fleet, pgbus_bus: Bus, sql: Session, sessions: Sessions
) -> None:
    clients = [worker.live("orders") for worker in pair.workers]
    head = pgbus_bus.stream("orders").broadcast("a")
    assert head is not None
    until(lambda: all([frame.data for frame in each.messages] == ["a"] for each in clients), "they get the message")
    [(doorbell,)] = sql.run("select doorbell from pgbus.channels()")
    forged = json.dumps(["message", "orders", head + 1, head, time(), None, "forged", None, None])
    sql.run("select pg_notify(%s, %s)", channel(doorbell, bucket_of("orders")), forged)
    until(lambda: all(each.messages[-1].data == "forged" for each in clients), "they are sent the forged one")
    [leader] = pair.leaders
    until(lambda: head + 1 not in leader.instance.ear.heard, "the steward does not find it in the table")
    squatter = sessions()
    squatter.run("select pg_advisory_lock(%s, bell) from generate_series(0, 1) bell", BELL)
    assert sql.call("broadcast", "orders", "b") == head + 1
    until(lambda: all(each.messages[-1].data == "b" for each in clients), "they get the message that did not ring")
