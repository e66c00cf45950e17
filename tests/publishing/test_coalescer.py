"""Coalesced writes: with a fake clock in any order of writes, time and failures, and with real time and a real database."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import pytest
from database_parts import PATIENCE, until
from gevent.event import Event
from hypothesis import given
from hypothesis import strategies as st
from page_parts import block_of

from pgbus_gevent.bus import Bus
from pgbus_gevent.core.windows import Windows
from pgbus_gevent.database.batch import Outgoing
from pgbus_gevent.errors import DatabaseError, DatabaseUnavailable
from pgbus_gevent.hosts import running
from pgbus_gevent.publishing import coalescer as coalescer_module
from pgbus_gevent.publishing.coalescer import Coalescer
from pgbus_gevent.testing import FakeBus

ROOT = Path(__file__).parents[2]
AWAY = DatabaseUnavailable("nobody listens there")


class World:
    """A clock, timers that go off when it is moved, and a database that can be away or refuse messages."""

    def __init__(self, **options: Any) -> None:
        self.now = 100.0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.batches: list[list[Outgoing]] = []
        self.times: dict[Outgoing, float] = {}
        self.error: BaseException | None = None
        self.refused: set[str] = set()
        self.tries = 0
        self.meanwhile: Callable[[], None] = lambda: None
        self.coalescer = Coalescer(self.publish, later=self.later, clock=lambda: self.now, **options)

    def publish(self, messages: Sequence[Outgoing]) -> None:
        self.tries += 1
        self.meanwhile()
        if self.error is not None:
            raise self.error
        if self.refused & {one.data for one in messages}:
            raise DatabaseError("invalid byte sequence", "22021")
        self.batches.append(list(messages))
        self.times.update(dict.fromkeys(messages, self.now))

    def later(self, delay: float, function: Callable[[], None]) -> Callable[[], None]:
        timer = (self.now + delay, function)
        self.timers.append(timer)
        return lambda: self.timers.remove(timer)

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while self.timers and min(self.timers, key=lambda timer: timer[0])[0] <= end:
            timer = min(self.timers, key=lambda timer: timer[0])
            self.timers.remove(timer)
            self.now = timer[0]
            timer[1]()
        self.now = end

    def write(
        self,
        data: str,
        target: str | None = None,
        *,
        window: float = 1.0,
        stream: str = "s",
        ephemeral: bool = False,
        **audience: str,
    ) -> None:
        self.coalescer.write(Outgoing(stream, data, ephemeral=ephemeral, **audience), target, window)

    @property
    def data(self) -> list[list[str]]:
        return [[one.data for one in batch] for batch in self.batches]

    @property
    def counts(self) -> dict[str, int]:
        return {name: number for name, number in self.coalescer.counts._asdict().items() if number}


# windows


def test_only_the_last_write_of_a_window_is_published() -> None:
    world = World()
    for n in range(5):
        world.write(str(n), "t")
        world.pass_time(0.1)
    assert world.data == []
    world.pass_time(0.6)
    assert world.data == [["4"]]
    assert world.counts == {"written": 5, "replaced": 4, "published": 1}
    assert world.timers == []


def test_a_window_ends_after_its_first_write_even_if_many_follow() -> None:
    """A target that is written to without a pause is published once for each window."""
    world = World()
    for n in range(40):
        world.write(str(n), "t")
        world.pass_time(0.125)
    assert world.data == [["7"], ["15"], ["23"], ["31"], ["39"]]


@pytest.mark.parametrize(
    "other",
    [
        {"target": "u"},
        {"stream": "other"},
        {"event": "e"},
        {"visible_to": "admins"},
        {"exclude": "c1"},
        {"ephemeral": True},
        {"target": None},
    ],
    ids=lambda other: next(iter(other)),
)
def test_writes_that_differ_are_not_replaced(other: dict[str, Any]) -> None:
    world = World()
    world.write("one", "t")
    world.write("two", **{"target": "t", **other})
    world.pass_time(1)
    assert sorted(text for batch in world.data for text in batch) == ["one", "two"]


def test_a_window_is_published_in_one_go_in_the_order_of_the_last_writes() -> None:
    world = World()
    for data, target in (("a1", "a"), ("b1", "b"), ("a2", "a"), ("c1", "c")):
        world.write(data, target)
    world.pass_time(1)
    assert world.data == [["b1", "a2", "c1"]]


def test_windows_of_different_lengths_end_each_in_its_time() -> None:
    world = World()
    world.write("slow", "a", window=2.0)
    world.write("fast", "b", window=0.5)
    world.pass_time(0.5)
    assert world.data == [["fast"]]
    world.pass_time(1.5)
    assert world.data == [["fast"], ["slow"]]


@pytest.mark.parametrize(("first", "second"), [(2.0, 0.5), (0.5, 2.0)])
def test_one_target_with_two_lengths_is_served_by_the_window_that_ends_first(first: float, second: float) -> None:
    """Otherwise the older value could come after the newer one."""
    world = World()
    world.write("old", "t", window=first)
    world.write("new", "t", window=second)
    world.pass_time(0.5)
    assert world.data == [["new"]]
    world.pass_time(5)
    assert world.data == [["new"]] and world.timers == []


def test_one_timer_serves_all_windows() -> None:
    world = World()
    for n in range(50):
        world.write("x", f"{n}", stream=f"s{n}", window=1.0 + n % 7)
        assert len(world.timers) == 1
    world.pass_time(10)
    assert world.coalescer.counts.published == 50 and world.timers == []


def test_a_large_batch_goes_in_several_statements_in_order() -> None:
    world = World()
    for n in range(2500):
        world.write(str(n), str(n))
    world.pass_time(1)
    assert [len(batch) for batch in world.batches] == [1000, 1000, 500]
    assert [one for batch in world.data for one in batch] == [str(n) for n in range(2500)]


# the end


def test_flush_publishes_now_and_leaves_no_timer() -> None:
    world = World()
    world.write("one", "t")
    world.coalescer.flush()
    assert world.data == [["one"]] and world.timers == []
    world.coalescer.flush()
    assert world.tries == 1


def test_close_publishes_and_it_can_be_used_again() -> None:
    world = World()
    world.write("one", "t")
    world.coalescer.close()
    world.coalescer.close()
    assert world.data == [["one"]] and world.timers == []
    world.write("two", "t")
    world.pass_time(1)
    assert world.data == [["one"], ["two"]]


def test_close_drops_messages_that_cannot_be_published_and_says_how_many(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.write("one", "t")
    world.write("two", "u")
    world.error = AWAY
    world.coalescer.close()
    assert world.counts == {"written": 2, "dropped": 2, "failed": 1} and world.timers == []
    assert "2 coalesced messages are lost" in caplog.text
    world.error = None
    world.write("three", "t")
    world.pass_time(1)
    assert world.data == [["three"]]


def test_all_of_a_process_can_be_closed() -> None:
    one, other = World(), World()
    one.write("one")
    other.write("other")
    coalescer_module.close_all()
    assert one.data == [["one"]] and other.data == [["other"]]


def test_an_idle_one_is_collected() -> None:
    world = World()
    before = len(coalescer_module._coalescers)
    del world
    gc.collect()
    assert len(coalescer_module._coalescers) < before


# failures


def test_while_the_database_is_away_the_last_values_are_kept(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pgbus_gevent.coalescer")
    world = World()
    world.error = AWAY
    world.write("old", "t")
    world.write("other", "u")
    for n in range(40):
        world.write(str(n), "t")
        world.pass_time(0.25)
    assert world.data == [] and 4 <= world.tries <= 12  # with growing pauses, and not for each window
    world.error = None
    world.pass_time(3)
    assert world.data == [["other", "39"]]
    assert world.coalescer.counts.failed == world.tries - 1
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert world.timers == []


def test_messages_that_the_database_did_not_take_in_time_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """The age of the last write counts, so a target that is still written to keeps its value."""
    world = World(keep_seconds=10.0)
    world.error = AWAY
    world.write("lost", "t")
    for n in range(15):
        world.write(str(n), "u")
        world.pass_time(1)
    world.error = None
    world.pass_time(5)
    assert world.data == [["14"]]
    assert world.coalescer.counts.dropped == 1
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]


def test_one_message_that_is_refused_does_not_take_the_others_with_it(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.refused = {"bad"}
    for data in ("one", "bad", "two"):
        world.write(data, data)
    world.pass_time(1)
    assert world.data == [["one"], ["two"]]
    assert world.counts == {"written": 3, "published": 2, "dropped": 1}
    assert [record.levelname for record in caplog.records] == ["ERROR"] and "bad" not in caplog.messages[0]


def test_a_refusal_of_everything_is_an_outage() -> None:
    """A role without rights, or a standby: the operator may correct it."""
    world = World()
    world.error = DatabaseError("cannot execute INSERT in a read-only transaction", "25006")
    world.write("one", "t")
    world.pass_time(3)
    world.error = None
    world.pass_time(3)
    assert world.data == [["one"]]


def test_a_bug_is_logged_with_its_trace_and_loses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.error = KeyError("oops")
    world.write("one", "t")
    world.pass_time(1)
    assert "Traceback" in caplog.text
    world.error = None
    world.pass_time(3)
    assert world.data == [["one"]]


def test_flush_raises_and_its_messages_are_tried_again() -> None:
    world = World()
    world.error = AWAY
    world.write("one", "t")
    with pytest.raises(DatabaseUnavailable):
        world.coalescer.flush()
    world.error = None
    world.pass_time(1)
    assert world.data == [["one"]]


def test_a_write_during_a_try_that_fails_is_the_newer_one() -> None:
    world = World()
    world.write("old", "t")
    world.error = AWAY
    world.meanwhile = lambda: world.write("new", "t") if world.tries == 1 else None
    world.pass_time(1)
    world.error = None
    world.pass_time(3)
    assert world.data == [["new"]]
    assert world.counts == {"written": 2, "replaced": 1, "published": 1, "failed": 1}


def test_a_write_during_a_publication_waits_for_a_new_window() -> None:
    world = World()
    world.write("old", "t")
    world.meanwhile = lambda: world.write("new", "t") if world.tries == 1 else None
    world.pass_time(1)
    assert world.data == [["old"]]
    world.pass_time(1)
    assert world.data == [["old"], ["new"]]


# how much may wait


def test_at_the_limit_the_next_write_publishes_the_waiting_ones() -> None:
    world = World(max_waiting=3)
    for n in range(4):
        world.write(str(n), str(n))
    assert world.data == [["0", "1", "2"]] and world.coalescer.counts.waiting == 1


def test_at_the_limit_without_a_database_a_write_is_refused() -> None:
    """There is at most one try for each pause, and none for a write that only replaces a waiting one."""
    world = World(max_waiting=3)
    world.error = AWAY
    for n in range(3):
        world.write(str(n), str(n))
    for _ in range(9):
        with pytest.raises(DatabaseUnavailable):
            world.write("too much", "another")
    assert world.tries == 1
    world.write("newer", "2")
    world.error = None
    world.pass_time(3)
    assert world.data == [["0", "1", "newer"]]
    assert world.counts == {"written": 4, "replaced": 1, "published": 3, "failed": 1}


# any order

TARGETS = st.sampled_from(["a", "b", "c"])
LENGTHS = st.sampled_from([0.5, 1.0, 3.0])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), TARGETS, LENGTHS),
        st.tuples(st.just("time"), st.floats(0.01, 2.0), st.none()),
        st.tuples(st.just("flush"), st.none(), st.none()),
        st.tuples(st.sampled_from(["away", "back"]), st.none(), st.none()),
    ),
    max_size=60,
)


def run(world: World, steps: list[tuple[str, Any, Any]]) -> list[tuple[str, str, float, float]]:
    """Do the steps. Return the writes as data, target, time and length."""
    written: list[tuple[str, str, float, float]] = []
    for n, (step, what, length) in enumerate(steps):
        if step == "write":
            written.append((str(n), what, world.now, length))
            world.write(str(n), what, window=length)
        elif step == "time":
            world.pass_time(what)
        elif step == "flush":
            try:
                world.coalescer.flush()
            except DatabaseUnavailable:
                assert world.error is not None
        else:
            world.error = AWAY if step == "away" else None
        counts = world.coalescer.counts
        assert counts.written == counts.replaced + counts.published + counts.dropped + counts.waiting
        assert len(world.timers) == (counts.waiting > 0) or not counts.waiting
    return written


@given(steps=STEPS)
def test_the_last_write_to_each_target_wins_and_none_comes_late(steps: list[tuple[str, Any, Any]]) -> None:
    world = World()
    written = run(world, [step for step in steps if step[0] != "away"])
    world.pass_time(10)
    at = {one.data: time for one, time in world.times.items()}
    for target in ("a", "b", "c"):
        mine = [write for write in written if write[1] == target]
        published = [data for data, *_ in mine if data in at]
        assert published[-1:] == [data for data, *_ in mine][-1:]
        assert [at[data] for data in published] == sorted(at[data] for data in published)
        for n, (_, _, time, length) in enumerate(mine):
            # It was there in time, or the write that replaced it was.
            assert min(at[data] for data, *_ in mine[n:] if data in at) <= time + length + 1e-9


@given(steps=STEPS, length=LENGTHS)
def test_writes_of_one_length_are_published_in_their_order(steps: list[tuple[str, Any, Any]], length: float) -> None:
    """The order also holds between different targets of a stream, and through outages."""
    world = World()
    run(world, [(step, what, length) for step, what, _ in steps])
    world.error = None
    world.pass_time(10)
    order = [int(data) for batch in world.data for data in batch]
    assert order == sorted(order)


@pytest.mark.slow
@given(steps=STEPS)
def test_the_last_write_to_each_target_comes_last_after_any_failure(steps: list[tuple[str, Any, Any]]) -> None:
    world = World()
    written = run(world, steps)
    world.error = None
    world.pass_time(10)
    order = [data for batch in world.data for data in batch]
    for target in ("a", "b", "c"):
        mine = [data for data, to, *_ in written if to == target]
        published = [data for data in order if data in mine]
        assert published == sorted(published, key=int) and published[-1:] == mine[-1:]
    assert world.coalescer.counts.waiting == 0 and world.timers == []


def test_windows_that_ended_leave_nothing_behind() -> None:
    windows = Windows()
    for n in range(100):
        windows.write(n % 3, n, n % 2, 1.0 + n % 4, float(n))
        windows.done(published=len(windows.take(float(n))))
    windows.done(published=len(windows.take()))
    assert len(windows) == 0 and windows.next_due is None
    assert not windows._windows and not windows._waiting


# with a real database


def test_greenlets_that_publish_do_not_overtake_one_another() -> None:
    """A flush waits for a batch that is being published, so that it keeps its promise."""
    done: list[str] = []

    def publish(messages: Sequence[Outgoing]) -> None:
        gevent.sleep(0.05)
        done.extend(one.data for one in messages)

    coalescer = Coalescer(publish)
    coalescer.write(Outgoing("s", "first"), "t", 0.01)
    gevent.sleep(0.03)  # it is being published
    coalescer.write(Outgoing("s", "second"), "t", 30.0)
    coalescer.flush()
    assert done == ["first", "second"]


def test_a_killed_publisher_loses_nothing() -> None:
    done: list[str] = []
    hang = [True]

    def publish(messages: Sequence[Outgoing]) -> None:
        if hang[0]:
            gevent.sleep(30)
        done.extend(one.data for one in messages)

    coalescer = Coalescer(publish)
    coalescer.write(Outgoing("s", "one"), "t", 30.0)
    with gevent.Timeout(0.05, False):
        coalescer.flush()
    hang[0] = False
    until(lambda: done == ["one"], "published by the next try")


def test_a_window_of_a_real_bus(pgbus_bus: Bus) -> None:
    s = pgbus_bus.stream("s")
    for n in range(10):
        assert s.broadcast(f"{n}", coalesce=0.05, target="t", event="e", visible_to="v", exclude="x") is None
    s.broadcast("other", coalesce=0.05, target="u")
    until(lambda: s.last_id() > 0, "published")
    assert [one[3:] for one in s] == [("e", "9", "v", "x"), (None, "other", None, None)]


def test_a_batch_of_several_streams_is_one_transaction(pgbus_bus: Bus) -> None:
    for n in range(20):
        pgbus_bus.stream(f"s{n % 4}").broadcast(f"{n}", coalesce=30, target=str(n))
    pgbus_bus.stream("s0").broadcast("hint", coalesce=30, ephemeral=True)
    pgbus_bus.coalescer.flush()
    for m in range(4):
        assert [one.data for one in pgbus_bus.stream(f"s{m}")] == [str(n) for n in range(m, 20, 4)]
    with pgbus_bus.transaction() as cursor:
        cursor.execute("select count(distinct xmin::text) from pgbus.messages")
        assert cursor.fetchone() == (1,)


SCRIPT = """
{patch}
import sys
from pgbus_gevent import Bus
bus = Bus(sys.argv[1], migrate=False)
for n in range(100):
    bus.stream("s").broadcast(str(n), coalesce={window}, target="t")
{then}
"""


@pytest.mark.parametrize("patch", ["", "from gevent import monkey; monkey.patch_all()"], ids=["plain", "patched"])
@pytest.mark.parametrize(
    ("window", "then"),
    [
        (
            0.05,
            "import time\nwhile bus.coalescer.counts.waiting: time.sleep(0.01)\nimport os; os._exit(0)",
        ),  # it has ended
        (30, ""),  # the interpreter has ended
        (30, "bus.close(); import os; os._exit(0)"),
        (30, "import os; pid = os.fork(); os.waitpid(pid, 0) if pid else sys.exit(0)"),  # once, by the parent
        (30, "raise SystemExit(3)"),
    ],
    ids=["window", "exit", "close", "fork", "status"],
)
def test_a_program_of_either_kind_publishes(
    pgbus_database: str, pgbus_bus: Bus, patch: str, window: float, then: str
) -> None:
    program = SCRIPT.format(patch=patch, window=window, then=then)
    found = subprocess.run(
        [sys.executable, "-c", program, pgbus_database], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert found.returncode == (3 if "3" in then else 0) and found.stderr == ""
    *earlier, last = [one.data for one in pgbus_bus.stream("s")]
    assert last == "99"
    # A short window may end while the program is still writing, if that stood still for a moment.
    assert len(earlier) < 50 if window < 1 else earlier == []


FORKS = """
import os, sys, time

def count():
    # The kernel lists a thread for a moment after it was joined.
    end = time.monotonic() + 30
    while len(os.listdir("/proc/self/task")) > 1 and time.monotonic() < end:
        time.sleep(0.001)
    threads.append(len(os.listdir("/proc/self/task")))

threads = []  # the hook that is registered first runs last before a fork, so this one counts after all others
os.register_at_fork(before=count)
from pgbus_gevent import Bus

bus = Bus(sys.argv[1], migrate=False)
bus.stream("s").broadcast("before", coalesce=30, target="t")
pid = os.fork()
if not pid:
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0 and threads == [1], threads
bus.stream("s").broadcast("after", coalesce=0.05, target="t")
while bus.coalescer.counts.waiting:
    time.sleep(0.01)
os._exit(0)
"""


def test_a_process_that_forks_has_no_thread_of_ours_at_that_moment(pgbus_database: str, pgbus_bus: Bus) -> None:
    found = subprocess.run(
        [sys.executable, "-c", FORKS, pgbus_database], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (found.returncode, found.stderr) == (0, "")
    assert [one.data for one in pgbus_bus.stream("s")] == ["before", "after"]


def test_the_example_of_the_documentation(pgbus_database: str, pgbus_bus: Bus) -> None:
    """Each message is a beginning of the whole text, the last one is all of it, and there are fewer messages than words."""
    program = block_of("docs/coalescing.md", "answer")
    found = subprocess.run(
        [sys.executable, "-c", program, pgbus_database], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert "written=15" in found.stdout and found.stderr == ""
    *answers, done = pgbus_bus.stream("chat")
    assert done.event == "answer-done" and answers[-1].data == done.data
    assert 1 <= len(answers) < 15 and all(done.data.startswith(answer.data) for answer in answers)


def test_the_fake_bus_publishes_after_the_window_too() -> None:
    bus = FakeBus()
    bus.stream("s").broadcast("one", coalesce=0.02, target="t")
    bus.stream("s").broadcast("two", coalesce=0.02, target="t")
    assert bus.sent == []
    until(lambda: [one.data for one in bus.sent] == ["two"], "published")
    assert bus.coalescer.counts.replaced == 1


def test_after_a_fork_the_child_starts_empty() -> None:
    world = World()
    world.write("the parent's", "t")
    world.coalescer._pid = os.getpid() + 1  # as it is in a child process
    world.coalescer.close()
    assert world.data == []
    world.write("the child's", "t")
    world.coalescer.flush()
    assert world.data == [["the child's"]]


def test_a_server_that_stops_publishes_the_held_back_messages() -> None:
    bus = FakeBus()
    bus.stream("s").broadcast("one", coalesce=30)
    running.publish_held_back(1.0)
    assert [one.data for one in bus.sent] == ["one"]


@pytest.mark.slow
def test_a_server_does_not_wait_for_a_database_that_hangs() -> None:
    answers = Event()
    coalescer = Coalescer(lambda messages: answers.wait(100))
    coalescer.write(Outgoing("s", "one"), "t", 30.0)
    began = monotonic()
    running.publish_held_back(0)
    assert 0.9 < monotonic() - began < 50
    answers.set()
    until(lambda: coalescer.counts.published, "it came to its end all the same")


def test_a_bus_without_its_database_says_how_many_messages_it_lost(caplog: pytest.LogCaptureFixture) -> None:
    """Writes go on without an error or a wait."""
    with Bus("postgresql://nobody@127.0.0.1:1/none", migrate=False) as bus:
        for n in range(3):
            assert bus.stream("s").broadcast(str(n), coalesce=0.02, target="t") is None
        until(lambda: bus.coalescer.counts.failed, "tried")
        assert bus.coalescer.counts.waiting == 1
    assert bus.coalescer.counts.dropped == 1
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]


def test_clients_get_the_last_write(pgbus_bus: Bus, pgbus_client: Callable[..., Any]) -> None:
    """A hundred writes of a growing answer become a few messages, the last of them complete. Plain messages are not held back."""
    client = pgbus_client("chat")
    client.next("pgbus:connected", timeout=PATIENCE)
    chat = pgbus_bus.stream("chat")
    for n in range(100):
        chat.broadcast("x" * n, coalesce=0.5, target="answer", event="answer")
        gevent.sleep(0.002)
    chat.broadcast("at once", event="other")
    pgbus_bus.coalescer.flush()
    chat.broadcast("done", event="done")
    got = []
    while (frame := client.next(timeout=PATIENCE)).event != "done":
        got.append(frame)
    lengths = [len(frame.data) for frame in got if frame.event == "answer"]
    assert lengths == sorted(lengths) and lengths[-1] == 99 and len(lengths) < 50
    assert [frame.data for frame in got if frame.event == "other"] == ["at once"]
