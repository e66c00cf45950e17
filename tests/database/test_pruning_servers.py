"""Servers of one database with different retentions: none removes messages that another keeps, and each logs the differences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_parts import Cli
from database_parts import Session, until
from hypothesis import given, settings
from hypothesis import strategies as st
from support import serving

from pgbus_gevent.bus import Bus
from pgbus_gevent.commands.finding import OK, WARN
from pgbus_gevent.commands.findings import findings
from pgbus_gevent.database.pruning import Pruning
from pgbus_gevent.settings.retention import Retention, Rule, keep_longest
from pgbus_gevent.settings.table import Settings

QUICK = 0.05
SHORT, LONG = "retention=1m", "retention=1d"


@pytest.fixture
def sql(pgbus_database: str, pgbus_bus: Bus) -> Any:
    """A database with messages that are two hours old."""
    session = Session(pgbus_database)
    for name in ("orders", "audit:1"):
        pgbus_bus.stream(name).broadcast_many(["one", "two", "three"])
    session.run("update pgbus.messages set created_at = now() - interval '2 hours'")
    yield session
    session.close()


def rounds(sql: Session) -> Any:
    """A value that changes with each round of the pruners."""
    return sql.one("select due from pgbus.prune_round")


def let_them_prune(sql: Session) -> None:
    for _ in range(6):
        before = rounds(sql)
        until(lambda before=before: rounds(sql) != before, "a round is done")


def test_the_longer_one_applies_and_both_say_so(
    sql: Session,
    pgbus_settings: Settings,
    pgbus_database: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cli = Cli(tmp_path, pgbus_database)
    with (
        serving(pgbus_settings, prune_interval=QUICK, retention="1d"),
        serving(pgbus_settings, prune_interval=QUICK, retention="1m") as shorter,
    ):
        until(lambda: caplog.text.count("disagree about retention") == 2, "each of them says it")
        let_them_prune(sql)
        assert shorter.instance.pruner.removed == 0
        (line,) = [one for one in cli.run("doctor").out.splitlines() if "retention " in one]
        assert line.startswith("warn") and SHORT in line and LONG in line
    said = [r.getMessage() for r in caplog.records if "disagree" in r.getMessage()]
    assert [said[0].index(LONG) < said[0].index(SHORT), said[1].index(LONG) < said[1].index(SHORT)].count(True) == 1
    assert all(" pid " in text for text in said)
    assert sql.data("orders") == ["one", "two", "three"]


def test_each_server_may_have_the_longer_retention_for_a_pattern(sql: Session, pgbus_settings: Settings) -> None:
    short: Any = {"audit:*": "1m"}
    counted: Any = {"orders": "1d/2", "audit:*": "1d"}
    with serving(pgbus_settings, prune_interval=3600, retention="30m", retention_patterns=short):
        until(lambda: sql.one("select count(*) from pgbus.retentions") == 1, "it tells")
        with serving(pgbus_settings, prune_interval=QUICK, retention="1m", retention_patterns=counted):
            let_them_prune(sql)
        # The server with the shorter age has no limit on the number, so the longer age applies without a limit.
        assert sql.data("orders") == ["one", "two", "three"] and sql.data("audit:1") == ["one", "two", "three"]


def test_the_retention_of_a_server_holds_while_it_is_replaced_and_lapses_later(
    sql: Session, pgbus_settings: Settings
) -> None:
    with serving(pgbus_settings, prune_interval=3600, retention="1d"):
        until(
            lambda: sql.one("select count(*) from pgbus.retentions") == 1, "it tells at once, however rarely it prunes"
        )
    with serving(pgbus_settings, prune_interval=QUICK, retention="1m") as shorter:
        let_them_prune(sql)
        assert shorter.instance.pruner.removed == 0
        sql.run("update pgbus.retentions set until = now() where kept like %s", '%"1d"%')
        until(lambda: shorter.instance.pruner.removed == 6, "no server that keeps them has reported lately")


def test_servers_that_agree_say_nothing(
    sql: Session, pgbus_settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(pgbus_settings, prune_interval=QUICK), serving(pgbus_settings, prune_interval=QUICK):
        until(lambda: sql.data("orders") == sql.data("audit:1") == [], "they prune")
    assert "disagree" not in caplog.text


def test_the_command_removes_nothing_that_a_server_keeps(
    sql: Session, pgbus_settings: Settings, pgbus_database: str, tmp_path: Path
) -> None:
    cli = Cli(tmp_path, pgbus_database)
    with serving(pgbus_settings, prune_interval=3600, retention="1d"):
        until(lambda: sql.one("select count(*) from pgbus.retentions") == 1, "it tells")
        ended = cli.run("prune", "--retention", "1m", "--json")
        assert (ended.status, ended.out) == (0, "")
        assert LONG in ended.err and SHORT in ended.err and " pid " in ended.err and len(ended.err.splitlines()) == 1
    sql.run("delete from pgbus.retentions")
    assert json.loads(cli.ok("prune", "--retention", "1m", "--json").splitlines()[0])["removed"] == 3


def test_the_latest_stream_is_found_with_several_statements_or_it_says_how_many_were_looked_at(
    sql: Session, pgbus_bus: Bus
) -> None:
    pruning = pgbus_bus.database.pruning
    assert pruning.overdue(2) is None, "no server has stated a retention"
    pruning.tell(600.0)
    for n in range(5):
        pgbus_bus.stream(f"room:{n}").broadcast("new")
    sql.run("update pgbus.messages set created_at = now() - interval '3 hours' where stream = 'audit:1'")
    for limit in (1, 2, 7, 8):
        found = pruning.overdue(limit)
        assert found is not None and (found.stream, found.streams, found.all) == ("audit:1", 7, True)
        assert 7200 <= found.seconds < 7300
    found = pruning.overdue(3, statements=2)
    assert found is not None and (found.stream, found.streams, found.all) == ("orders", 6, False)


def test_doctor_says_if_it_has_not_looked_at_all_streams(
    sql: Session, pgbus_bus: Bus, pgbus_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pgbus_bus.stream("room:1").broadcast("new")
    pgbus_bus.database.pruning.tell(600.0)
    overdue = Pruning.overdue
    for statements, level, text in (
        (1, OK, "no message is long beyond its retention (of the 1 streams whose names sort last)"),
        (2, WARN, "60 minutes beyond its retention (of the 2 streams whose names sort last)"),
        (9, WARN, '"audit:1" is 60 minutes beyond its retention'),
    ):
        sql.run("update pgbus.messages set created_at = now() - interval '2 hours' where stream <> 'room:1'")
        monkeypatch.setattr(Pruning, "overdue", lambda self, statements=statements: overdue(self, 1, statements))
        [found] = [each for each in findings(Settings(database_url=pgbus_database)) if each.check == "pruning"]
        assert found.level == level and found.text.endswith(text)


def test_doctor_says_if_messages_are_kept_longer_than_the_retention(
    sql: Session, pgbus_settings: Settings, pgbus_database: str, tmp_path: Path
) -> None:
    def told() -> list[str]:
        return [one for one in Cli(tmp_path, pgbus_database).run("doctor").out.splitlines() if " pruning " in one]

    assert told() == [], "no server keeps anything"
    with serving(pgbus_settings, prune_interval=3600, retention="1h"):
        until(lambda: sql.one("select count(*) from pgbus.retentions") == 1, "it tells")
        sql.run("update pgbus.messages set created_at = now() - interval '150 minutes' where stream = 'audit:1'")
        (line,) = told()
        assert line.startswith("warn") and 'the oldest message of "audit:1" is 90 minutes beyond its retention' in line
        sql.run("update pgbus.messages set created_at = now()")
        assert told() == []


def test_nothing_is_removed_while_a_retention_cannot_be_read(
    sql: Session, pgbus_settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    sql.run("insert into pgbus.retentions values ('{\"newer\": 1}', 'host pid 1', now() + interval '1 hour')")
    with serving(pgbus_settings, prune_interval=QUICK, retention="1m"):
        until(lambda: "does not understand the retention that host pid 1 has stated" in caplog.text, "it says so")
        assert sql.data("orders") == ["one", "two", "three"]


AGES = st.floats(0.001, 1e8, allow_nan=False)
RETENTIONS = st.builds(
    Retention,
    AGES,
    st.lists(
        st.builds(Rule, st.text('abc*?[],=/"\\é日 ', min_size=1), AGES, st.none() | st.integers(1, 1000)),
        max_size=4,
        unique_by=lambda rule: rule.pattern,
    ),
    AGES,
)


@settings(max_examples=100, deadline=None)
@given(RETENTIONS)
def test_a_stated_retention_is_read_back_unchanged(retention: Retention) -> None:
    assert Retention.read(retention.statement).statement == retention.statement


@settings(max_examples=100, deadline=None)
@given(st.lists(RETENTIONS, min_size=1, max_size=4), st.text("abc", max_size=3))
def test_together_servers_keep_everything_that_one_of_them_keeps(retentions: list[Retention], stream: str) -> None:
    age, count = keep_longest(retentions, stream)
    for own_age, own_count in (retention.keep(stream) for retention in retentions):
        assert age >= own_age
        assert count is None or (own_count is not None and count >= own_count)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"retention": 1}', "null", '{"retention": "x", "retention_patterns": [], "forget_after": "1s"}'],
)
def test_text_that_states_no_retention_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Retention.read(text)
