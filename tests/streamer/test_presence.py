"""Presence from Python: the members of a stream on a Bus, and the part of the streamer that keeps connected members."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from fuzzing.answers import Bad, Liar, odd
from hypothesis import given, settings
from hypothesis import strategies as st
from streamer_parts import seat, wait_until

from pgbus_gevent import Bus
from pgbus_gevent.core.members import NAMED, NAMED_AGAIN
from pgbus_gevent.core.names import PublicNames
from pgbus_gevent.errors import DatabaseError, DatabaseUnavailable, InvalidArgument
from pgbus_gevent.publishing.presence import Presence
from pgbus_gevent.streamer import presence as part
from pgbus_gevent.streamer.presence import PresenceKeeper, metadata_of
from pgbus_gevent.testing import FakeBus

# a Bus


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.database)])
def bus(request: pytest.FixtureRequest) -> Bus:
    found: Bus = FakeBus() if request.param == "fake" else request.getfixturevalue("pgbus_bus")
    return found


@pytest.fixture
def room(bus: Bus) -> Presence:
    return bus.stream("room").presence


def test_members_of_a_bus_join_and_leave(room: Presence) -> None:
    before = datetime.now(timezone.utc)
    assert room.join("7", {"name": "Ada"}) is True
    assert room.join("8") is True
    ada, other = room.members()
    assert (ada.member, ada.metadata, ada.connections) == ("7", {"name": "Ada"}, 1)
    assert abs((ada.joined_at - before).total_seconds()) < 60
    assert (other.member, other.metadata) == ("8", {}) and room.count() == 2
    assert room.leave("7") is True and room.leave("7") is False
    assert [member.member for member in room.members()] == ["8"]


def test_connections_of_a_member_of_a_bus_are_one_member(room: Presence) -> None:
    assert [room.join("7", {"n": n}, connection=str(n)) for n in range(2)] == [True, False]
    [member] = room.members()
    assert (member.metadata, member.connections, room.count()) == ({"n": 1}, 2, 1)
    assert room.leave("7", connection="0") is False and room.leave("7") is False
    assert room.leave("7", connection="1") is True


def test_a_touch_returns_whether_the_member_is_still_there(room: Presence) -> None:
    assert room.touch("7") is False
    room.join("7")
    assert room.touch("7") is True and room.touch("7", connection="x") is False


def test_a_member_that_is_not_renewed_expires(room: Presence) -> None:
    room.ttl = 0.03
    room.join("7")
    wait_until(lambda: room.count() == 0)
    assert room.members() == [] and room.touch("7") is False
    room.ttl = 60
    assert room.join("7") is True


def test_rooms_are_apart(bus: Bus, room: Presence) -> None:
    room.join("7")
    assert bus.stream("Room").presence.members() == []


@pytest.mark.parametrize("member", ["", "a\nb", "x" * 256, "\ud800", "\0", 7, None])
def test_a_member_that_makes_no_sense_is_refused(room: Presence, member: Any) -> None:
    for act in (room.join, room.leave, room.touch):
        with pytest.raises(InvalidArgument, match="member"):
            act(member)


@pytest.mark.parametrize(
    "metadata",
    [[1], "text", {"x": object()}, {"x": float("nan")}, {"x": "\0"}, {"x": "\ud800"}, {"x": "x" * 4096}, {(1, 2): 1}],
)
def test_metadata_that_makes_no_sense_is_refused(room: Presence, metadata: Any) -> None:
    with pytest.raises(InvalidArgument, match="metadata"):
        room.join("7", metadata)
    assert room.count() == 0


@pytest.mark.parametrize("connection", ["x" * 256, "\0", None])
def test_a_connection_that_makes_no_sense_is_refused(room: Presence, connection: Any) -> None:
    with pytest.raises(InvalidArgument, match="connection"):
        room.join("7", connection=connection)


def test_metadata_of_any_kind_comes_back(room: Presence) -> None:
    metadata = {"é": ["\U0001f600", None, True, 1.5, {"x": 'a"b\\c'}], "n": 2**60}
    room.join("7", metadata)
    assert room.members()[0].metadata == metadata


def test_the_largest_metadata_is_taken_by_postgresql_too(pgbus_bus: Bus) -> None:
    metadata = {"x": "x" * (4096 - len('{"x": ""}'))}
    assert pgbus_bus.stream("room").presence.join("7", metadata)


def test_the_fake_bus_has_what_was_announced() -> None:
    bus = FakeBus()
    room = bus.stream("room").presence
    assert room.join("7", {"name": "Ada"})
    room.leave("7")
    assert [(one.id, one.event, json.loads(one.data)) for one in bus.sent] == [
        (None, "presence", {"op": "join", "member": "7", "metadata": {"name": "Ada"}, "count": 1}),
        (None, "presence", {"op": "leave", "member": "7", "metadata": {"name": "Ada"}, "count": 0}),
    ]


def test_the_fake_bus_counts_the_members_of_a_crowd_as_the_database_does(pgbus_bus: Bus) -> None:
    bus = FakeBus()
    room = bus.stream("room").presence
    for n in range(NAMED + 1):
        room.join(str(n))
    for n in range(NAMED + 1 - NAMED_AGAIN):
        room.leave(str(n))
    room.leave(str(NAMED))
    news = [json.loads(one.data) for one in bus.sent]
    assert news[NAMED - 1] == {"op": "join", "member": str(NAMED - 1), "metadata": {}, "count": NAMED}
    assert news[NAMED] == {"count": NAMED + 1}
    assert news[-3:] == [
        {"count": NAMED_AGAIN + 1},
        {"op": "refresh", "count": NAMED_AGAIN},
        {"op": "leave", "member": str(NAMED), "metadata": {}, "count": NAMED_AGAIN - 1},
    ]
    with pgbus_bus.database.queries.transaction() as database_cursor:
        database_cursor.execute("select pgbus._presence_named(), pgbus._presence_named() * 4 / 5")
        assert database_cursor.fetchall() == [(NAMED, NAMED_AGAIN)]


# the part


class Memory:
    """The table of presence, in memory: answers as PresenceQueries does, and notes what was announced.

    While ``failure`` is set, every statement fails with it; ``busy`` are the streams that somebody else is at.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.rows: dict[tuple[str, str, str], tuple[float, bool]] = {}  # when it expires, and whether it is leaving
        self.announced: list[tuple[str, str, str]] = []
        self.statements: list[str] = []
        self.sizes: list[int] = []
        self.failure: Exception | None = None
        self.due: list[float] = []  # in how many seconds announcements are due
        self.held: float | None = None  # in how many seconds to try again to announce
        self.busy: set[str] = set()
        self.on_statement: Callable[[], object] = lambda: None

    def _statement(self, kind: str) -> None:
        self.statements.append(kind)
        self.on_statement()
        if self.failure is not None:
            raise self.failure

    def members(self, stream: str) -> set[str]:
        return {member for (where, member, _), (end, _) in self.rows.items() if where == stream and end > self.now}

    def record(
        self, changes: Sequence[tuple[str, str, str, str | None]], *, ttl: float, grace: float
    ) -> tuple[list[int], list[float]]:
        self._statement("record")
        self.sizes.append(len(changes))
        if any(member == "poison" for _, member, _, _ in changes):
            raise DatabaseError("no", "22P05")
        done = [change for change in changes if change[0] not in self.busy]
        for arriving in (True, False):
            for stream, member, connection, metadata in done:
                place = (stream, member, connection)
                if arriving and metadata is not None:
                    if member not in self.members(stream):
                        self.announced.append(("join", stream, member))
                    self.rows[place] = (self.now + ttl, False)
                elif not arriving and metadata is None and place in self.rows:
                    self.rows[place] = (min(self.rows[place][0], self.now + grace), True)
        self._expire({change[:2] for change in done})
        return [place for place, change in enumerate(changes) if change[0] in self.busy], self.due

    def flush(self) -> float | None:
        self._statement("flush")
        return self.held

    def _expire(self, concerned: set[tuple[str, str]]) -> None:
        gone = {place[:2] for place, (end, _) in self.rows.items() if place[:2] in concerned and end <= self.now}
        self.rows = {
            place: lease for place, lease in self.rows.items() if place[:2] not in concerned or lease[0] > self.now
        }
        self.announced += [("leave", *who) for who in sorted(gone - {place[:2] for place in self.rows})]

    def touch_many(self, places: Sequence[tuple[str, str, str]], *, ttl: float) -> list[int]:
        self._statement("touch")
        missing = []
        for n, place in enumerate(places):
            end, leaving = self.rows.get(place, (0.0, True))
            if leaving or end <= self.now:
                missing.append(n)
            else:
                self.rows[place] = (self.now + ttl, False)
        return missing

    def sweep(self) -> float | None:
        self._statement("sweep")
        self._expire({place[:2] for place in self.rows})
        return min((end - self.now for end, _ in self.rows.values()), default=None)


class Kept:
    """A keeper over a table in memory. The test runs its steps itself, with its own clock."""

    def __init__(self, memory: Memory | None = None, *, ttl: float = 30.0, grace: float = 4.0) -> None:
        self.memory = memory or Memory()
        self.keeper = PresenceKeeper(
            self.memory,
            tracked=PublicNames(("room*",)),
            ttl=ttl,
            grace=grace,
            clock=lambda: self.memory.now,
        )
        self._sweep_at = 0.0

    def step(self) -> None:
        """Do what is due in the worker, and in the steward."""
        self.keeper._do_due_work()
        if self.memory.now >= self._sweep_at:
            pause, asked = self.keeper.expire_interval, self.keeper.expire()
            self._sweep_at = self.memory.now + (pause if asked is None else min(pause, asked))

    def at(self, now: float) -> None:
        """Move the clock, and do everything that comes due until then, as the greenlet would."""
        while self.memory.now < now:
            self.memory.now = min(now, self.memory.now + 0.5)
            self.step()


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def running() -> Iterator[Callable[[Kept], gevent.Greenlet[..., None]]]:
    jobs: list[gevent.Greenlet[..., None]] = []

    def run(kept: Kept) -> gevent.Greenlet[..., None]:
        jobs.append(gevent.spawn(kept.keeper.run))
        return jobs[-1]

    yield run
    gevent.killall(jobs)


def test_members_that_are_not_tracked_are_ignored(kept: Kept) -> None:
    kept.keeper.joined(seat("c1", "room", None))
    kept.keeper.joined(seat("c1", "orders", "ada"))
    kept.keeper.left(seat("c1", "room"))
    kept.keeper.left(seat("c2", "nowhere"))
    assert len(kept.keeper) == 0 and kept.keeper.settled


def test_tabs_of_a_member_are_one_member(kept: Kept) -> None:
    for tab in ("c1", "c2", "c3"):
        kept.keeper.joined(seat(tab, "room", "ada", {"name": "Ada"}))
    kept.step()
    kept.keeper.left(seat("c1", "room"))
    kept.keeper.left(seat("c2", "room"))
    kept.at(20)
    assert kept.memory.members("room") == {"ada"}
    kept.keeper.left(seat("c3", "room"))
    kept.at(40)
    assert kept.memory.announced == [("join", "room", "ada"), ("leave", "room", "ada")]
    assert kept.memory.rows == {} and len(kept.keeper) == 0


def test_a_connection_at_several_streams_is_at_each(kept: Kept) -> None:
    for stream in ("room 1", "room 2"):
        kept.keeper.joined(seat("c1", stream, "ada"))
    kept.step()
    kept.keeper.left(seat("c1", "room 1"))
    kept.at(10)
    assert (kept.memory.members("room 1"), kept.memory.members("room 2")) == (set(), {"ada"})


@pytest.mark.parametrize("away", [0.0, 1.0, 3.0])
def test_a_reload_announces_nothing(kept: Kept, away: float) -> None:
    kept.keeper.joined(seat("before", "room", "ada"))
    kept.step()
    kept.keeper.left(seat("before", "room"))
    kept.at(away)
    kept.keeper.joined(seat("after", "room", "ada"))
    kept.at(60)
    assert kept.memory.announced == [("join", "room", "ada")] and kept.memory.members("room") == {"ada"}


def test_a_leave_is_announced_when_the_grace_is_over_and_not_when_the_next_removal_is_due(kept: Kept) -> None:
    kept.keeper.joined(seat("c1", "room", "ada"))
    kept.step()
    kept.keeper.left(seat("c1", "room"))
    kept.step()
    kept.at(3.5)
    assert kept.memory.announced == [("join", "room", "ada")]
    kept.at(4.5)
    assert kept.memory.announced[1:] == [("leave", "room", "ada")]


def test_a_member_that_leaves_before_it_was_written_is_not_written(kept: Kept) -> None:
    kept.keeper.joined(seat("c1", "room", "ada"))
    kept.keeper.left(seat("c1", "room"))
    assert kept.keeper.settled
    kept.step()
    assert "record" not in kept.memory.statements


def test_announcements_that_wait_are_flushed_when_they_are_due(kept: Kept) -> None:
    kept.memory.due = [0.61, 0.6, 1.7]
    kept.keeper.joined(seat("c1", "room", "ada"))
    kept.step()
    kept.at(0.5)
    assert "flush" not in kept.memory.statements
    kept.at(1.5)
    assert kept.memory.statements.count("flush") == 1
    kept.at(10)
    assert kept.memory.statements.count("flush") == 2


def test_announcements_that_could_not_be_made_are_tried_again(kept: Kept) -> None:
    kept.memory.due, kept.memory.held = [0.1], 0.25
    kept.keeper.joined(seat("c1", "room", "ada"))
    kept.step()
    kept.at(2)
    assert kept.memory.statements.count("flush") == 4
    kept.memory.held = None
    kept.at(10)
    assert kept.memory.statements.count("flush") == 5


def test_a_flush_that_fails_is_tried_again(kept: Kept) -> None:
    kept.memory.due = [0.1]
    kept.keeper.joined(seat("c1", "room", "ada"))
    kept.step()
    kept.memory.now, kept.memory.failure = 1.0, DatabaseUnavailable("away")
    with pytest.raises(DatabaseUnavailable):
        kept.step()
    kept.memory.failure = None
    kept.step()
    kept.at(3)
    assert kept.memory.statements.count("flush") == 2


def test_all_are_kept_alive_by_one_statement(kept: Kept) -> None:
    for n in range(1200):
        kept.keeper.joined(seat(f"c{n}", f"room {n % 7}", f"m{n}"))
    while not kept.keeper.settled:
        kept.step()
    assert kept.memory.sizes == [500, 500, 200]
    kept.memory.statements.clear()
    kept.at(11)
    assert kept.memory.statements.count("touch") == 1 and "record" not in kept.memory.statements
    kept.at(300)
    assert len(kept.memory.announced) == 1200


def test_a_member_whose_lease_the_database_lost_joins_again(kept: Kept) -> None:
    kept.keeper.joined(seat("c1", "room", "ada"))
    kept.step()
    kept.memory.rows.clear()
    kept.at(12)
    assert kept.memory.members("room") == {"ada"}


def test_ghosts_of_a_killed_worker_are_announced_by_another_once() -> None:
    memory = Memory()
    killed, others = Kept(memory), [Kept(memory) for _ in range(3)]
    killed.keeper.joined(seat("c1", "room", "ada"))
    killed.keeper.joined(seat("c2", "room", "max"))
    killed.step()
    others[0].keeper.joined(seat("c3", "room", "max"))
    for step in range(1, 90):
        memory.now = step / 2
        for other in others:
            other.step()
    assert memory.announced == [("join", "room", "ada"), ("join", "room", "max"), ("leave", "room", "ada")]


def test_connections_come_and_go_without_the_database_and_the_outage_is_logged_once(
    kept: Kept, running: Callable[[Kept], Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part, "_BACKOFF", (0.002, 0.01))
    caplog.set_level(logging.INFO, "pgbus_gevent.presence")
    memory, keeper = kept.memory, kept.keeper
    keeper.joined(seat("c0", "room", "zoe"))
    running(kept)
    wait_until(lambda: keeper.settled)
    memory.failure = DatabaseUnavailable("PostgreSQL is not available: pulled out")
    keeper.joined(seat("c1", "room", "ada"))
    keeper.joined(seat("c2", "room", "max"))
    keeper.left(seat("c0", "room"))
    wait_until(lambda: keeper.failing and memory.statements.count("record") > 4)
    keeper.left(seat("c2", "room"))
    memory.failure = None
    wait_until(lambda: keeper.settled)
    assert memory.members("room") == {"zoe", "ada"}  # zoe for as long as the grace is
    wait_until(lambda: not keeper.failing)
    warning, mended = caplog.records
    assert "pulled out; clients stay connected" in warning.message and mended.message == "presence works again"


def test_a_schema_without_presence_says_what_to_do(
    kept: Kept, running: Callable[[Kept], Any], caplog: pytest.LogCaptureFixture
) -> None:
    kept.memory.failure = DatabaseError("function pgbus._presence_record does not exist", "42883")
    kept.keeper.joined(seat("c1", "room", "ada"))
    running(kept)
    wait_until(lambda: kept.keeper.failing)
    assert "run `python -m pgbus_gevent migrate`" in caplog.text


def test_an_outage_holds_no_more_departures_than_it_may(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(part, "MAX_DEPARTURES", 10)
    for n in range(25):
        kept.keeper.joined(seat(f"c{n}", "room", f"m{n}"))
    kept.step()
    for n in range(25):
        kept.keeper.left(seat(f"c{n}", "room"))
    assert len(kept.keeper._departures) == 10 and len(caplog.records) == 1
    kept.at(60)
    assert kept.memory.rows == {} and len(kept.memory.announced) == 50


@pytest.mark.parametrize("member", ["", "a\nb", "x" * 256, "\ud800", 7])
def test_a_bad_member_does_not_affect_the_others(kept: Kept, caplog: pytest.LogCaptureFixture, member: Any) -> None:
    for n in range(3):
        kept.keeper.joined(seat(f"c{n}", "room", member))
    kept.keeper.joined(seat("c9", "room", "ada", {"not": object()}))
    kept.keeper.joined(seat("c10", "room", "max"))
    kept.step()
    assert kept.memory.members("room") == {"max"} and len(caplog.records) == 1


class Hostile(dict[str, Any]):
    """A context that ends the process of whoever asks it for its metadata."""

    def get(self, *_: Any) -> Any:
        raise SystemExit


class Faceless:
    """A context that raises when it is asked what it is."""

    @property
    def __class__(self) -> Any:  # type: ignore[override]
        raise SystemExit


@pytest.mark.parametrize("kind", [Hostile, Faceless])
def test_a_context_that_raises_does_not_affect_the_others(kept: Kept, kind: Callable[[], Any]) -> None:
    faulty, late, context = seat("c1", "room", "ada"), seat("c3", "room", "eve"), kind()
    kept.keeper.joined(faulty)
    before = faulty.place.subscriber
    faulty.place.subscriber = SimpleNamespace(member="ada", context=context)
    kept.keeper.renamed(faulty, before)  # the answer of a recheck
    kept.keeper.renamed(faulty, faulty.place.subscriber)
    late.place.subscriber.context = context
    kept.keeper.joined(late)
    kept.keeper.joined(seat("c2", "room", "max"))
    kept.step()
    assert kept.memory.members("room") == {"ada", "max"}


def test_a_recheck_that_finds_nothing_new_writes_nothing(kept: Kept) -> None:
    ada = seat("c1", "room", "ada", {"presence": {"name": "Ada"}})
    kept.keeper.joined(ada)
    kept.step()
    kept.keeper.renamed(ada, ada.place.subscriber)
    assert kept.keeper.settled


def test_a_member_that_postgresql_refuses_does_not_affect_the_others(
    kept: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    for n in range(7):
        kept.keeper.joined(seat(f"c{n}", "room", "poison" if n == 3 else f"m{n}"))
    kept.step()
    assert kept.memory.members("room") == {f"m{n}" for n in range(7) if n != 3}
    assert kept.keeper.settled and "refuses the member 'poison'" in caplog.text


def test_a_stream_whose_lock_is_taken_is_tried_again_and_holds_up_no_other(
    kept: Kept, running: Callable[[Kept], Any]
) -> None:
    kept.memory.busy = {"room 1"}
    kept.keeper.joined(seat("c1", "room 1", "ada"))
    kept.keeper.joined(seat("c2", "room 2", "max"))
    running(kept)
    wait_until(lambda: kept.memory.members("room 2") == {"max"})
    assert kept.memory.members("room 1") == set()
    kept.memory.busy = set()
    wait_until(lambda: kept.memory.members("room 1") == {"ada"})


@pytest.mark.slow
def test_a_greenlet_that_is_killed_in_a_statement_forgets_nothing(kept: Kept, running: Callable[[Kept], Any]) -> None:
    kept.keeper.joined(seat("c1", "room", "ada"))
    kept.memory.on_statement = lambda: gevent.sleep(60)
    job = running(kept)
    wait_until(lambda: kept.memory.statements)
    job.kill()
    assert not kept.keeper.settled
    kept.memory.on_statement = lambda: None
    running(kept)
    wait_until(lambda: kept.memory.members("room") == {"ada"})


def test_at_the_end_all_leave_in_one_statement_with_time_to_come_back() -> None:
    memory = Memory()
    old, new = Kept(memory), Kept(memory)
    for n in range(700):
        old.keeper.joined(seat(f"c{n}", "room", f"m{n}"))
    while not old.keeper.settled:
        old.step()
    memory.statements.clear()
    old.keeper.finish(1.0)
    old.keeper.finish(1.0)
    assert memory.statements == ["record"]
    for n in range(1, 700):
        new.keeper.joined(seat(f"d{n}", "room", f"m{n}"))
    new.at(60)
    assert [news for news in memory.announced if news[0] == "leave"] == [("leave", "room", "m0")]


@pytest.mark.parametrize("trouble", ["slow", "away", "held"])
def test_the_end_takes_no_longer_than_it_may(kept: Kept, caplog: pytest.LogCaptureFixture, trouble: str) -> None:
    kept.keeper.joined(seat("c1", "room", "ada"))
    kept.step()
    if trouble == "slow":
        kept.memory.on_statement = lambda: gevent.sleep(60)
    elif trouble == "away":
        kept.memory.failure = DatabaseUnavailable("PostgreSQL is not available")
    else:
        kept.memory.busy = {"room"}
    with gevent.Timeout(30):
        kept.keeper.finish(0.05)
    assert "1 leases of members are left to expire, within 30 s" in caplog.text


def test_another_deadline_than_its_own_goes_through(kept: Kept) -> None:
    kept.keeper.joined(seat("c1", "room", "ada"))
    kept.step()
    kept.memory.on_statement = lambda: gevent.sleep(60)
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.02):
        kept.keeper.finish(60)


@pytest.mark.parametrize(
    ("context", "expected"),
    [(None, {}), (object(), {}), ({}, {}), ({"presence": {"name": "Ada"}}, {"name": "Ada"}), ({"presence": "x"}, {})],
)
def test_the_metadata_of_a_member_come_from_its_context(context: Any, expected: dict[str, Any]) -> None:
    assert metadata_of(context) == expected


# any interleaving

_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["joined", "left", "round", "wait", "fail", "busy", "crash"]),
        st.integers(0, 1),  # which worker
        st.integers(0, 3),  # which tab; two of them are of one member
    ),
    max_size=40,
)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, derandomize=True)
@given(steps=_STEPS)
def test_however_tabs_come_and_go_followers_end_up_with_the_members_that_are_there(
    steps: list[tuple[str, int, int]],
) -> None:
    memory = Memory()
    workers = [Kept(memory), Kept(memory)]
    open_tabs: dict[tuple[int, int], str] = {}
    serial = 0
    for step, which, tab in steps:
        worker, place = workers[which], (which, tab)
        if step == "joined" and place not in open_tabs:
            serial += 1
            open_tabs[place] = f"c{serial}"
            worker.keeper.joined(seat(open_tabs[place], "room", f"m{tab // 2}"))
        elif step == "left" and place in open_tabs:
            worker.keeper.left(seat(open_tabs.pop(place), "room"))
        elif step == "wait":
            memory.now += 2.5
        elif step in ("round", "fail", "busy", "crash"):
            memory.failure = DatabaseUnavailable("away") if step == "fail" else None
            memory.busy = {"room"} if step == "busy" else set()
            try:
                worker.step()
            except DatabaseUnavailable:
                pass
            if step == "crash":
                memory.rows.clear()
                memory.announced += [("leave", "room", "m0"), ("leave", "room", "m1")]  # followers load the page again
    memory.failure, memory.busy = None, set()
    for _ in range(160):
        memory.now += 0.5
        for worker in workers:
            worker.step()
    there = {f"m{tab // 2}" for _, tab in open_tabs}
    assert memory.members("room") == there
    followed: dict[str, set[str]] = defaultdict(set)
    for op, stream, member in memory.announced:
        (followed[stream].add if op == "join" else followed[stream].discard)(member)
    assert followed["room"] == there
    assert {connection for _, _, connection in memory.rows} == set(open_tabs.values())


@pytest.mark.parametrize("error", [ValueError, SystemExit, gevent.GreenletExit, Bad])
def test_a_context_that_raises_makes_no_member_and_harms_no_other(
    error: Any, kept: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    for context in (Liar(error()), {"presence": odd({"a": 1}, error, hashable=True)}):
        found = seat("c1", "room", "eve")
        found.place.subscriber.context = context
        kept.keeper.joined(found)
    assert len(kept.keeper) == 0
    assert caplog.text.count("a member of 'room' is not tracked") == 1
    kept.keeper.joined(seat("c2", "room", "ada"))
    assert len(kept.keeper) == 1


def test_a_member_whose_new_context_raises_stays(kept: Kept) -> None:
    ada = seat("c1", "room", "ada", {"name": "Ada"})
    kept.keeper.joined(ada)
    before = ada.place.subscriber
    for context in (Liar(SystemExit()), {"presence": odd({"a": 1}, ValueError, hashable=True)}):
        ada.place.subscriber = SimpleNamespace(member="ada", context=context)
        kept.keeper.renamed(ada, before)
    assert len(kept.keeper) == 1


def test_a_member_whose_client_left_while_its_context_waited_is_not_here(kept: Kept) -> None:
    found = seat("c1", "room", "ada")

    class Slow(dict[str, Any]):
        def get(self, *_: Any) -> Any:
            found.client.closed = True  # in the greenlet that runs meanwhile
            return {}

    found.place.subscriber.context = Slow()
    kept.keeper.joined(found)
    assert len(kept.keeper) == 0
