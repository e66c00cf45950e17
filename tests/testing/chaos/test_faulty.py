"""Faulty clients do wrong what they say, and a judge that does not find it is found out."""

from __future__ import annotations

import pytest

from pgbus_gevent.testing.chaos.faulty import KINDS, FaultyHistory, check
from pgbus_gevent.testing.chaos.judge import Row, Truth, judge_client

COUNT = 100
OTHERS = 1001  # as whom the client of the kind "forbidden" logs in


def truth() -> Truth:
    """A hundred messages, of which every fifth is for users whom the filter permits."""
    return Truth(present={n: Row(n, n, "odd" if n % 5 == 0 else None) for n in range(1, COUNT + 1)})


def history(kind: str) -> FaultyHistory:
    one = FaultyHistory(7, OTHERS, "chaos:audience", kind)
    one.mark(0.5, "connected", cursor=0, id="c1")
    for n in range(1, COUNT + 1):
        one.message(n, n, float(n), n + 0.1)
    one.settle()
    return one


@pytest.mark.parametrize("kind", KINDS)
def test_the_judge_finds_what_a_faulty_client_does_and_nothing_else(kind: str) -> None:
    one = history(kind)
    verdict = check(kind, one, truth(), judge_client(one, truth()))
    assert verdict.planted == (20 if kind == "forbidden" else 4 if kind == "out of order" else 5)
    assert verdict.findings == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_judge_that_overlooks_one_deed_is_found_out(kind: str) -> None:
    one = history(kind)
    found = judge_client(one, truth())
    overlooked = next(finding for finding in found if finding.kind == kind)
    found.remove(overlooked)
    (finding,) = check(kind, one, truth(), found).findings
    assert (finding.kind, finding.id) == ("unnoticed", overlooked.id)


@pytest.mark.parametrize("kind", KINDS)
def test_a_faulty_client_that_got_nothing_proves_nothing(kind: str) -> None:
    one = FaultyHistory(7, OTHERS, "chaos:audience", kind)
    assert [finding.kind for finding in check(kind, one, Truth(), []).findings] == ["unnoticed"]


def test_what_is_wrong_beside_its_deeds_counts() -> None:
    one = history("lost")
    one.message(99, 99, 1.0, 200.0)
    assert [finding.kind for finding in check("lost", one, truth(), judge_client(one, truth())).findings] == [
        "repeated"
    ]


def test_a_message_that_a_gap_brings_again_was_not_lost() -> None:
    one, what = FaultyHistory(7, OTHERS, "chaos:plain-0", "lost"), truth()
    what.losses = [5.0]
    one.mark(0.5, "connected", cursor=0, id="c1")
    for n in range(1, 21):
        one.message(n, n, float(n), 4.0)
    one.mark(6.0, "gap", reason="ahead", oldest=1)
    for n in range(1, COUNT + 1):
        one.message(n, n, float(n), 7.0)
    verdict = check("lost", one, what, judge_client(one, what))
    assert (verdict.planted, verdict.findings) == (5, [])
