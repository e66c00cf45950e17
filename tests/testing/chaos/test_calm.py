"""Ephemeral messages are judged only while nothing is broken, and then a missing or repeated one is found."""

from __future__ import annotations

from pgbus_gevent.testing.chaos.calm import judge_ephemerals
from pgbus_gevent.testing.chaos.journal import Attempt, History
from pgbus_gevent.testing.chaos.publishing import EPHEMERAL

CALM = [(100.0, 120.0)]


def sent(message: int, at: float) -> Attempt:
    return Attempt(message, EPHEMERAL[0], "ephemeral", at, "committed")


def client(*messages: int) -> History:
    one = History(3, 3, EPHEMERAL[0])
    one.mark(50.0, "connected", cursor=0, id="c1")
    one.ephemerals.extend((message, 110.0, 110.1) for message in messages)
    return one


def kinds(one: History, *attempts: Attempt) -> list[str]:
    return [finding.kind for finding in judge_ephemerals(attempts, [one], CALM)]


def test_a_client_that_was_there_has_it_once() -> None:
    assert kinds(client(1), sent(1, 110.0)) == []
    assert kinds(client(), sent(1, 110.0)) == ["lost"]
    assert kinds(client(1, 1), sent(1, 110.0)) == ["repeated"]


def test_one_that_was_sent_while_something_was_broken_may_be_missing() -> None:
    assert kinds(client(), sent(1, 99.0), sent(2, 101.0), sent(3, 119.0)) == []


def test_a_client_that_was_cut_off_may_miss_it() -> None:
    one = client()
    one.mark(111.0, "cut", how="closed")
    assert kinds(one, sent(1, 110.0)) == []
