"""The pruner: when it takes part, its statements, and its share of time; and the command ``prune``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gevent
import pytest
from cli_parts import Cli
from database_parts import Session, until
from streamer_parts import make_board
from support import serving

from pgbus_gevent.bus import Bus
from pgbus_gevent.errors import NO_RIGHT, DatabaseError
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.streamer import pruner as module
from pgbus_gevent.streamer.pruner import HELP_FOR, HOLDS, MAX_SHARE, MESSAGES, STREAMS, Pruner


class Done(Exception):
    """Ends a loop that would otherwise go on for ever."""


class Rounds:
    """A source that records its calls, and a clock that only these calls and pauses move."""

    def __init__(self, *turns: list[str] | None) -> None:
        self.now = 0.0
        self.asked: list[tuple[Any, ...]] = []
        self.slept: list[float] = []
        self.turns = list(turns)
        self.backlog: dict[str, int] = {}
        self.ephemerals = 0
        self.positions: list[str | None] = [None]
        self.takes = 0.0
        self.failures = 0
        self.sqlstate: str | None = None
        self.told: list[float] = []
        self.overdue = 0.0
        self.on_sleep: Callable[[], object] = lambda: None
        self.pruner = Pruner(self, interval=10.0, forget_after=99.0, clock=lambda: self.now, sleep=self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        self.on_sleep()

    def _note(self, *what: Any) -> None:
        if self.failures:
            self.failures -= 1
            raise DatabaseError("away", self.sqlstate)
        self.asked.append(what)
        self.now += self.takes

    def turn(self, every: float, limit: int, patience: float = 0.0) -> list[str] | None:
        self._note("turn", every, limit, patience)
        return self.turns.pop(0) if self.turns else None

    retention = "theirs"

    def tell(self, holds: float) -> list[tuple[Any, str]]:
        self.told.append(self.now)
        return []

    def prune(self, streams: Sequence[str], limit: int) -> list[tuple[str, int, int, float]]:
        self._note("prune", tuple(streams), limit)
        found = []
        for stream in streams:
            removed = min(limit, self.backlog.get(stream, 0))
            if removed:
                limit -= removed
                self.backlog[stream] -= removed
                found.append((stream, removed, 1, self.overdue))
        return found

    def forget(self, below: str | None, unused: float, limit: int) -> str | None:
        self._note("forget", below, unused)
        return self.positions.pop(0) if self.positions else None

    def prune_ephemerals(self, limit: int) -> int:
        self._note("ephemerals")
        removed = min(limit, self.ephemerals)
        self.ephemerals -= removed
        return removed

    def kinds(self) -> list[str]:
        return [what[0] for what in self.asked]


MANY = [f"s{n}" for n in range(STREAMS)]


def test_if_it_is_not_its_turn_it_asks_nothing_else() -> None:
    rounds = Rounds(None)
    assert rounds.pruner.take_part() == 0
    assert rounds.asked == [("turn", 5.0, STREAMS, 0.0)]


def test_a_round_goes_on_until_there_are_no_more_streams() -> None:
    rounds = Rounds(MANY, ["b", "a"])
    rounds.backlog = {"s3": 5, "a": 2}
    assert rounds.pruner.take_part() == 7
    assert rounds.kinds() == ["turn", "prune", "turn", "prune", "ephemerals", "forget"]
    assert rounds.asked[3] == ("prune", ("b", "a"), MESSAGES)


@pytest.mark.parametrize("turns", [[MANY, []], [[]]])
def test_a_round_that_ends_without_streams_ends_all_the_same(turns: list[list[str]]) -> None:
    rounds = Rounds(*turns)
    rounds.pruner.take_part()
    assert rounds.kinds()[-3:] == ["turn", "ephemerals", "forget"]


def test_another_worker_may_end_the_round() -> None:
    rounds = Rounds(MANY, None)
    rounds.pruner.take_part()
    assert rounds.kinds() == ["turn", "prune", "turn"]


def test_a_backlog_is_removed_in_batches() -> None:
    rounds = Rounds(["a", "b"])
    rounds.backlog = {"a": MESSAGES * 2, "b": 10}
    rounds.ephemerals = MESSAGES + 1
    assert rounds.pruner.take_part() == MESSAGES * 2 + 10
    assert rounds.kinds() == ["turn", *["prune"] * 3, *["ephemerals"] * 2, "forget"]
    assert (rounds.pruner.removed, rounds.pruner.batches) == (MESSAGES * 2 + 10, 3)


def test_each_round_looks_through_the_next_horizons() -> None:
    rounds = Rounds(["a"], ["a"], ["a"], ["a"])
    rounds.positions = ["m", None, "k"]
    for _ in range(4):
        rounds.pruner.take_part()
    assert [what for what in rounds.asked if what[0] == "forget"] == [
        ("forget", below, 99.0) for below in (None, "m", None, "k")
    ]


def test_it_takes_no_more_than_its_share_of_the_time() -> None:
    rounds = Rounds(MANY, MANY, ["a"])
    rounds.backlog = {"s0": MESSAGES * 5}
    rounds.takes = 0.5
    rounds.pruner.take_part()
    assert rounds.pruner.seconds == pytest.approx(len(rounds.asked) * 0.5)
    assert rounds.pruner.seconds / rounds.now == pytest.approx(MAX_SHARE)


def test_it_pauses_even_if_statements_take_no_time() -> None:
    rounds = Rounds(["a"])
    rounds.pruner.take_part()
    assert len(rounds.slept) == len(rounds.asked) and min(rounds.slept) > 0


# the loop


@pytest.fixture
def looping() -> Iterator[Callable[[Rounds, int], None]]:
    def run(rounds: Rounds, count: int) -> None:
        """Run the loop until it has waited for this many rounds."""

        def stop_after() -> None:
            if sum(seconds >= 5.0 for seconds in rounds.slept) >= count:
                raise Done

        rounds.on_sleep = stop_after
        with pytest.raises(Done):
            rounds.pruner.run()

    yield run


def looks(rounds: Rounds) -> list[float]:
    """Return the pauses between two looks at the round, without those after statements."""
    return [seconds for seconds in rounds.slept if seconds >= 5.0]


def test_a_worker_leaves_the_round_to_others_and_looks_seldom_after_a_while(
    looping: Callable[[Rounds, int], None],
) -> None:
    rounds = Rounds()
    looping(rounds, 200)
    waits = looks(rounds)
    assert rounds.slept[0] >= 5.0
    first, later = waits[:10], waits[20:]
    assert min(first) >= 5.0 and max(first) <= 10.0 and sum(waits[:20]) > HELP_FOR
    assert 15.0 <= min(later) < 18.0 and 27.0 < max(later) <= 30.0
    assert set(rounds.asked) == {("turn", 5.0, STREAMS, 5.5)}


def test_a_worker_that_finds_that_nobody_else_prunes_looks_as_often_as_the_steward(
    looping: Callable[[Rounds, int], None],
) -> None:
    rounds = Rounds(*[None] * 40, *[["a"]] * 100)
    looping(rounds, 140)
    assert max(looks(rounds)[42:]) <= 10.0


def test_the_retention_is_stated_again_in_time_and_before_anything_is_removed(
    looping: Callable[[Rounds, int], None],
) -> None:
    rounds = Rounds()
    looping(rounds, 100)
    assert rounds.told[0] == 0.0
    gaps = [later - earlier for earlier, later in zip(rounds.told, rounds.told[1:], strict=False)]
    assert min(gaps) >= 120 and max(gaps) < HOLDS / 2
    rounds = Rounds(["a"])
    rounds.pruner.take_part()
    assert len(rounds.told) == 1


def test_an_outage_is_logged_once_and_it_goes_on(
    looping: Callable[[Rounds, int], None], caplog: pytest.LogCaptureFixture
) -> None:
    rounds = Rounds(["a"])
    rounds.failures = 5
    looping(rounds, 8)
    assert caplog.text.count("cannot remove old messages") == 1
    assert "prune" in rounds.kinds()
    rounds.failures = 2
    looping(rounds, 20)
    assert caplog.text.count("cannot remove old messages") == 2


# messages that are overdue


def test_it_says_by_how_much_messages_are_overdue() -> None:
    rounds = Rounds(["a"], ["a"], ["a"])
    assert rounds.pruner.overdue is None, "it has not looked yet"
    rounds.backlog, rounds.overdue = {"a": MESSAGES + 5}, 33.0
    rounds.pruner.prune()
    assert rounds.pruner.overdue == 33.0
    rounds.pruner.prune()
    assert rounds.pruner.overdue == 0.0
    rounds.now += 1000
    assert rounds.pruner.overdue is None, "others prune"


def test_while_pruning_fails_messages_are_overdue_by_more_and_more() -> None:
    rounds = Rounds(["a"], ["a"])
    rounds.backlog, rounds.overdue = {"a": 1}, 3.0
    rounds.pruner.prune()
    rounds.failures = 3
    for _ in range(3):
        with pytest.raises(DatabaseError):
            rounds.pruner.prune()
        rounds.now += 40
    assert 120 <= (rounds.pruner.overdue or 0) <= 124
    rounds.pruner.prune()
    assert rounds.pruner.overdue == 0.0


def test_a_steward_without_the_right_to_prune_does_not_say_that_messages_are_overdue() -> None:
    rounds = Rounds()
    rounds.failures, rounds.sqlstate = 3, NO_RIGHT
    for _ in range(3):
        with pytest.raises(DatabaseError):
            rounds.pruner.prune()
        rounds.now += 40
    assert rounds.pruner.overdue is None, "another worker prunes"


def test_a_backlog_that_is_made_up_for_soon_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """As after a stop of all servers for days."""
    rounds = Rounds(["a"])
    rounds.backlog, rounds.overdue = {"a": 20 * MESSAGES}, 1e6
    rounds.pruner.prune()
    assert rounds.now < 60 and "keep up" not in caplog.text


def test_a_backlog_that_lasts_is_logged_once_until_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    rounds = Rounds(["a"], ["a"], ["a"])
    rounds.backlog, rounds.overdue, rounds.takes = {"a": 200 * MESSAGES}, 61.0, 0.2
    rounds.pruner.prune()
    assert caplog.text.count("pruning cannot keep up: messages are removed 61 s after the end of their retention") == 1
    rounds.pruner.prune()
    assert caplog.text.count("keeps up again") == 1


# in an instance


def test_an_instance_prunes_by_its_settings(
    pgbus_settings: Settings, pgbus_bus: Bus, pgbus_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sql = Session(pgbus_database)
    for n in range(5):
        pgbus_bus.stream("short:1").broadcast(str(n))
        pgbus_bus.stream("long").broadcast(str(n))
    sql.run("update pgbus.messages set created_at = now() - interval '2 minutes'")
    newest = pgbus_bus.stream("counted").broadcast_many(["a", "b", "c"])
    monkeypatch.setattr(module, "STREAMS", 2)
    rules: Any = {"short:*": "1m", "counted": "1h/1"}
    with serving(pgbus_settings, prune_interval=0.05, retention_patterns=rules) as server:
        until(lambda: len(sql.data("short:1") + sql.data("counted")) == 1, "it prunes")
        until(lambda: server.instance.pruner.removed == 7, "and counts")
        assert server.instance.alive
    assert sql.data("long") == list("01234")
    assert sql.read("counted") == [(newest, "c")]
    sql.close()


def test_with_an_interval_of_0_it_leaves_it_to_others(pgbus_settings: Settings) -> None:
    with serving(pgbus_settings, prune_interval=0) as server:
        assert "pruner" not in server.instance.tasks
        assert server.instance.alive
    with serving(pgbus_settings) as server:
        assert "pruner" in server.instance.tasks


def test_two_instances_share_the_work(pgbus_settings: Settings, pgbus_database: str) -> None:
    sql = Session(pgbus_database)
    sql.run("select pgbus.broadcast_many('s' || n, array_fill('x'::text, array[20])) from generate_series(1, 50) n")
    sql.run("update pgbus.messages set created_at = now() - interval '2 hours'")
    with serving(pgbus_settings, prune_interval=0.05) as one, serving(pgbus_settings, prune_interval=0.05) as other:
        pruners = [one.instance.pruner, other.instance.pruner]
        until(lambda: sum(pruner.removed for pruner in pruners) == 1000, "all are removed, each once")
        gevent.sleep(0.1)
        assert sum(pruner.removed for pruner in pruners) == 1000
    assert sql.one("select count(*) from pgbus.messages") == 0
    assert sql.one("select count(*) from pgbus.horizons") == 50
    sql.close()


# the command


@pytest.fixture
def cli(tmp_path: Path, pgbus_database: str) -> Cli:
    return Cli(tmp_path, pgbus_database)


def test_the_command_prunes_all_streams_and_reports_each(cli: Cli, pgbus_bus: Bus, pgbus_database: str) -> None:
    sql = Session(pgbus_database)
    last = {name: pgbus_bus.stream(name).broadcast_many(["x"] * 1500) for name in ("a", "b")}
    sql.run("update pgbus.messages set created_at = now() - interval '2 hours'")
    pgbus_bus.stream("new").broadcast("x")
    assert cli.ok("prune", "--retention", "3h") == ""
    told = [json.loads(line) for line in cli.ok("prune", "--json").splitlines()]
    assert told == [{"stream": name, "removed": 1500, "up_to": last[name]} for name in ("a", "b")]
    assert sql.one("select count(*) from pgbus.messages") == 1
    sql.close()


def test_the_command_prints_a_table_and_takes_rules(cli: Cli, pgbus_bus: Bus, tmp_path: Path) -> None:
    ids = [pgbus_bus.stream("cursor:7").broadcast("x") for _ in range(3)]
    config = tmp_path / "pgbus.toml"
    config.write_text('[retention_patterns]\n"cursor:*" = "1h/1"\n')
    head, row = cli.ok("prune", "--config", str(config)).splitlines()
    assert head.split() == ["STREAM", "REMOVED", "UP", "TO"]
    assert row.split() == ["cursor:7", "2", str(ids[1])]


def test_the_command_refuses_a_database_without_a_schema(cli: Cli, pgbus_database: str) -> None:
    sql = Session(pgbus_database)
    sql.run("drop schema pgbus cascade")
    sql.close()
    assert "migrate" in cli.fails(1, "prune")


@pytest.mark.parametrize(("relayed", "least"), [(False, 15.0), (True, 100.0)])
def test_in_a_large_fleet_a_worker_looks_seldom_from_the_start(relayed: bool, least: float) -> None:
    rounds = Rounds()
    board = make_board()
    rounds.pruner = Pruner(
        rounds, board, interval=10.0, forget_after=99.0, clock=lambda: rounds.now, sleep=rounds._sleep
    )

    def learn() -> None:
        board.listening.set()
        board.relay.heard, board.workers = relayed, 100
        if len(rounds.kinds()) == 2:
            raise KeyboardInterrupt

    rounds.on_sleep = learn
    with pytest.raises(KeyboardInterrupt):
        rounds.pruner.run()
    assert rounds.kinds() == ["turn", "turn"]
    first, more, *later = [each for each in rounds.slept if each > 1.0]
    assert first <= 10.0 and least <= first + more <= 2 * least and all(least <= each <= 2 * least for each in later)
