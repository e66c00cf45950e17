"""The duties: one worker does each of them for all, another one takes over, and without a steward every worker does."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import gevent
import pytest
from database_parts import Session, opened_sessions
from streamer_parts import make_board, wait_until
from support import PATIENCE, Serving, serving, until

from pgbus_gevent.bus import Bus
from pgbus_gevent.core.rows import DutyAnswer, DutyQuestion
from pgbus_gevent.errors import DatabaseError, DatabaseUnavailable
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.streamer import steward as steward_module
from pgbus_gevent.streamer.steward import ALONE, Steward
from pgbus_gevent.streamer.steward_duties import do_duty
from pgbus_gevent.streamer.steward_ear import Ear


class Nobody:
    """An election that this worker never wins. ``error`` is raised instead of the answer."""

    answered = 0.0

    def __init__(self, age: float | None = None, error: Exception | None = None) -> None:
        self.age, self.error, self.asked = age, error, 0

    def duty(self, question: DutyQuestion) -> DutyAnswer:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return DutyAnswer(False, self.age, rings=False, company=False)

    def leave_duty(self, me: int) -> None: ...


@pytest.fixture
def asking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steward_module, "ASK", (0.01, 0.02))


@pytest.mark.parametrize(
    ("office", "does"),
    [
        (Nobody(), True), (Nobody(error=DatabaseError("permission denied", "42501")), True),
        (Nobody(age=0.3), False), (Nobody(error=DatabaseUnavailable("away")), False),
    ],
    ids=["there is no steward", "the role may not ask", "there is a steward", "the database is away"],
)  # fmt: skip
def test_a_worker_that_knows_of_no_steward_does_the_duties_itself(office: Nobody, does: bool, asking: None) -> None:
    now = 100.0
    part = Steward(office, make_board(), Ear(None), clock=lambda: now)
    greenlet = gevent.spawn(part.run)
    try:
        wait_until(lambda: office.asked > 1)
        assert not part.on_duty, "it waits for one first"
        now += ALONE + 0.1
        asked = office.asked
        wait_until(lambda: office.asked > asked + 1)
        assert part.on_duty == does
    finally:
        greenlet.kill()


def test_a_duty_may_ask_to_be_done_again_sooner() -> None:
    now, done = 100.0, 0
    part = Steward(Nobody(), make_board(), Ear(None), clock=lambda: now)
    part._answered = True
    now += ALONE + 1

    def work() -> float | None:
        nonlocal done
        done += 1
        return 0.01 if done < 5 else None

    part.add_duty("tidy", work, 8.0)
    greenlet = gevent.spawn(do_duty, part.duties[0], part)
    try:
        wait_until(lambda: done == 5, "it is done again at once", 15.0)
    finally:
        greenlet.kill()


# in a fleet


@pytest.fixture
def lasting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A steward that stands still for some seconds, as all workers of this process do on a busy machine, stays the steward."""
    monkeypatch.setattr(steward_module, "LEASE", 60.0)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Serving], Counter[str]]:
    """Count the duties of a server, by name."""

    def count(server: Serving) -> Counter[str]:
        found: Counter[str] = Counter()

        def counting(name: str, run: Callable[[], float | None]) -> Callable[[], float | None]:
            def work() -> float | None:
                found[name] += 1
                return run()

            return work

        duties = server.instance.steward.duties
        for n, duty in enumerate(duties):
            duties[n] = duty._replace(run=counting(duty.name, duty.run))
        # The tasks have the duties already.
        for task, duty in zip([f"duty-{duty.name}" for duty in duties], duties, strict=True):
            server.instance.tasks[task].stop(1.0)
            server.instance.tasks[task]._target = partial(do_duty, duty, server.instance.steward)
            server.instance.tasks[task].start()
        return found

    return count


QUICK: dict[str, Any] = {"catch_up_interval": 0.2, "presence_grace": 0.3, "prune_interval": 0.3}
DUTIES = {"revocations", "presence", "pruning"}


def test_one_worker_does_the_duties_and_another_one_takes_over(
    pgbus_settings: Settings, pgbus_bus: Bus, counted: Callable[[Serving], Counter[str]], lasting: None
) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(serving(pgbus_settings, **QUICK)) for _ in range(3)]
        counts = [counted(server) for server in servers]
        until(lambda: any(set(count) == DUTIES for count in counts), "one of them does all duties")
        before = [count.total() for count in counts]
        until(lambda: sum(count.total() for count in counts) > sum(before) + 20, "and goes on")
        busy = [n for n, count in enumerate(counts) if count.total() > before[n]]
        assert len(busy) == 1 and servers[busy[0]].instance.steward.leads
        others = [n for n in range(3) if n not in busy]
        servers[busy[0]].instance.shutdown(1.0)
        before = [count.total() for count in counts]
        until(lambda: any(counts[n].total() > before[n] for n in others), "another one takes over")


def test_members_expire_and_messages_are_pruned_when_the_steward_has_died(
    pgbus_settings: Settings, pgbus_bus: Bus, pgbus_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies without a word: it is not stopped, and its sessions stay open."""
    monkeypatch.setattr(steward_module, "ALONE", 600.0)  # the other one does the duties only as the steward
    with opened_sessions(pgbus_database) as opener, ExitStack() as stack:
        sql = opener()
        servers = [stack.enter_context(serving(pgbus_settings, **QUICK, presence=("room",))) for _ in range(2)]
        workers = [server.instance for server in servers]
        dead = until(lambda: next((worker for worker in workers if worker.steward.leads), None), "one leads")
        dead.steward._leave = lambda: None  # type: ignore[method-assign]
        for task in dead.tasks.values():
            task.stop(1.0)
        fill(sql)
        until(lambda: sql.one("select count(*) from pgbus.presence") == 0, "the member leaves")
        until(lambda: sql.one("select count(*) from pgbus.messages") == 0, "the messages are removed")


def fill(sql: Session) -> None:
    """Have something to do for the duties."""
    sql.run("select pgbus.broadcast('orders', 'x')")
    sql.run("update pgbus.messages set created_at = now() - interval '2 hours'")
    sql.run("select pgbus.presence_join('room', 'ada', ttl => interval '0.5 s')")


def test_a_steward_that_leaves_pruning_to_others_does_not_keep_them_from_it(
    pgbus_settings: Settings, pgbus_bus: Bus, pgbus_database: str, lasting: None
) -> None:
    with opened_sessions(pgbus_database) as opener:
        sql = opener()
        fill(sql)
        with serving(pgbus_settings, prune_interval=0) as first:
            until(lambda: first.instance.steward.leads, "it leads")
            with serving(pgbus_settings, prune_interval=0.2) as other:
                until(lambda: sql.one("select count(*) from pgbus.messages") == 0, "the other one prunes")
                assert first.instance.steward.leads and not other.instance.steward.leads


def test_two_that_do_the_duties_at_once_do_no_harm(
    pgbus_settings: Settings, pgbus_bus: Bus, pgbus_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes itself for the steward."""
    monkeypatch.setattr(Steward, "leads", True)
    with opened_sessions(pgbus_database) as opener:
        sql = opener()
        for n in range(300):
            sql.call("broadcast", f"s {n % 7}", "x")
        sql.run("update pgbus.messages set created_at = now() - interval '2 hours'")
        with ExitStack() as stack:
            servers = [stack.enter_context(serving(pgbus_settings, **QUICK)) for _ in range(3)]
            client = servers[0].live("room")
            sql.run(
                "select pgbus.presence_join('room', 'm' || n, ttl => interval '0.5 s') from generate_series(1, 20) n"
            )
            until(lambda: sum(server.instance.pruner.removed for server in servers) == 300, "each is removed once")
            until(lambda: sql.one("select count(*) from pgbus.presence") == 0, "the members leave")
            pgbus_bus.stream("room").broadcast("end")
            events = []
            while (event := client.next(timeout=PATIENCE)).data != "end":
                events.append(json.loads(event.data))
            changes = [change for event in events for change in event.get("members", [event])]
            gone = [change["member"] for change in changes if change.get("op") == "leave"]
            assert sorted(gone) == sorted(f"m{n}" for n in range(1, 21)), "each left once"
            assert all(server.instance.alive for server in servers)


def test_a_revocation_that_no_notification_announced_reaches_all_workers(
    pgbus_settings: Settings, pgbus_bus: Bus, pgbus_database: str
) -> None:
    """As when the notification queue is half full. Only the steward looks often."""
    with opened_sessions(pgbus_database) as opener, ExitStack() as stack:
        servers = [stack.enter_context(serving(pgbus_settings, catch_up_interval=0.3)) for _ in range(3)]
        until(lambda: any(server.instance.steward.leads for server in servers), "one leads")
        parts = [server.instance.revocations for server in servers]
        until(lambda: all(part._mark is not None for part in parts), "all have read once")
        ended: list[str] = []
        for server in servers:
            server.instance.clients.end_owner = lambda owner: ended.append(owner) or 1  # type: ignore[func-returns-value, method-assign]
        opener().run("insert into pgbus.revocations (owner) values ('ada')")
        until(lambda: ended == ["ada"] * 3, "all end them")
