"""What an edge keeps itself: the logins at its console, and wrong tokens."""

from __future__ import annotations

import logging

import pytest

from pgbus_gevent.edge import local
from pgbus_gevent.edge.local import LocalOperators
from pgbus_gevent.web.guesses import TRIES, Guesses
from pgbus_gevent.web.sessions import Sessions


def test_logins_at_an_edge_are_kept_and_end(caplog: pytest.LogCaptureFixture) -> None:
    operators = LocalOperators()
    with caplog.at_level(logging.DEBUG):
        sessions = Sessions(operators, b"token", lambda: 60.0)  # type: ignore[arg-type]
        cookie = sessions.open()
        assert sessions.is_open(cookie)
        assert not Sessions(operators, b"another token", lambda: 60.0).is_open(cookie)  # type: ignore[arg-type]
        assert sessions.end(cookie)
        assert not sessions.is_open(cookie)
        short = Sessions(operators, b"token", lambda: 0.0)  # type: ignore[arg-type]
        assert not short.is_open(short.open())
    assert not caplog.records, "nothing is wrong"


def test_a_worker_of_an_edge_keeps_so_many_logins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "SESSIONS", 3)
    operators = LocalOperators()
    ids = [bytes([n]) for n in range(5)]
    for id in ids:
        operators.open_session(id, b"token", 60.0)
    assert [operators.session_is_open(id, b"token", 60.0) for id in ids] == [False, False, True, True, True]


def test_wrong_tokens_at_an_edge_are_counted_by_its_worker_and_are_no_fault_of_a_database(
    caplog: pytest.LogCaptureFixture,
) -> None:
    guesses = Guesses("operator", LocalOperators())  # type: ignore[arg-type]
    with caplog.at_level(logging.DEBUG):
        found = [guesses.note("an address", n) for n in range(TRIES + 3)]
    assert found == [True] * TRIES + [False] * 3
    assert not caplog.records
