"""Pauses that grow, and faults that are logged once."""

from __future__ import annotations

import logging

import pytest

from pgbus_gevent.core.retries import Backoff, Seldom, Trouble
from pgbus_gevent.errors import OriginRefused, RedisRefused

logger = logging.getLogger("pgbus_gevent.tests")


def test_pauses_double_up_to_the_longest_and_begin_anew_after_a_success() -> None:
    backoff = Backoff(1.0, 5.0, least_share=1.0)
    assert [backoff.next() for _ in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    backoff.reset()
    assert backoff.next() == 1.0


def test_pauses_differ_so_that_workers_do_not_come_back_together() -> None:
    pauses = {Backoff(8.0, 8.0).next() for _ in range(100)}
    assert len(pauses) > 90
    assert all(4.0 <= pause <= 8.0 for pause in pauses)


def test_trouble_is_logged_when_it_begins_and_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    trouble = Trouble(logger, "it fails: %s", over="it works again")
    trouble.ends()
    for error in ("a", "b"):
        trouble.begins(error)
        assert trouble.lasts
    trouble.ends()
    trouble.ends()
    trouble.begins("c")
    assert caplog.messages == ["it fails: a", "it works again", "it fails: c"]


def test_trouble_that_the_pulse_logs_is_not_logged_here(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    trouble = Trouble(logger, "it fails: %s", over="it works again")
    trouble.begins(OriginRefused("token", known=True))
    assert trouble.lasts
    trouble.ends()
    assert not trouble.lasts
    trouble.begins(OriginRefused("token", known=True))
    trouble.begins("another cause")
    trouble.ends()
    assert caplog.messages == ["it fails: another cause", "it works again"]


def test_a_refusal_of_redis_is_an_error_once_for_each_change_of_its_kind(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    trouble = Trouble(logger, "it fails: %s")
    login, right = RedisRefused("no login", "correct it", "login"), RedisRefused("no right", "grant it", "right")
    for error in ("away", "away", login, login, "away", login, right, right, login):
        trouble.begins(error)
    trouble.ends()
    trouble.begins(login)
    trouble.ends()
    trouble.begins("away")
    levels = [(record.levelname, record.getMessage()[10:18]) for record in caplog.records]
    assert levels == [
        ("WARNING", "away"), ("ERROR", "no login"), ("ERROR", "no right"), ("ERROR", "no login"), ("ERROR", "no login"),
        ("WARNING", "away"),
    ]  # fmt: skip
    assert caplog.messages[1] == "it fails: no login: correct it"


def test_each_kind_is_logged_once_a_minute_and_the_others_are_counted() -> None:
    now = [0.0]
    seldom = Seldom(lambda: now[0])
    assert (seldom.due("a"), seldom.due("b")) == (0, 0)
    assert [seldom.due("a") for _ in range(3)] == [None] * 3
    now[0] = 60.0
    assert (seldom.due("a"), seldom.due("b")) == (3, 0)
    assert seldom.due("a") is None
    seldom.forget("a")
    assert seldom.due("a") == 0


def test_without_a_clock_each_kind_has_one_turn() -> None:
    seldom = Seldom()
    assert [seldom.due("a") for _ in range(3)] == [0, None, None]


def test_kinds_are_bounded_and_make_room_once_their_time_is_over() -> None:
    now = [0.0]
    seldom = Seldom(lambda: now[0], most=10)
    assert sum(seldom.due(n) is not None for n in range(100)) == 10
    assert len(seldom) == 10
    now[0] = 61.0
    assert seldom.due("new") == 0
    assert len(seldom) == 1
