"""Edges and origins that wait for longer, and edges that start at once."""

from __future__ import annotations

import pytest
from support import PATIENCE

from pgbus_gevent.database import notifications
from pgbus_gevent.edge import line, origin, reads, session
from pgbus_gevent.streamer.listener import Listener
from pgbus_gevent.web import edges

LONG = 3 * PATIENCE


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets edges and origins wait for a minute where they wait for seconds.

    Otherwise an edge would give up its lines, and ephemeral messages be lost, because this process or PostgreSQL stood still for
    a moment. A test of a deadline sets it itself.
    """
    monkeypatch.setattr(origin, "ADDRESS_TIMEOUT", LONG)
    monkeypatch.setattr(reads, "TIMEOUT", LONG)
    monkeypatch.setattr(line, "OPEN_TIMEOUT", LONG)
    monkeypatch.setattr(line, "SILENCE", LONG)
    monkeypatch.setattr(session, "OPEN_PATIENCE", LONG)
    monkeypatch.setattr(session, "OVERLAP", LONG)
    monkeypatch.setattr(edges, "OPEN_WAIT", PATIENCE)
    monkeypatch.setattr(notifications, "LIFE", LONG)


@pytest.fixture
def starting_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has an edge that its origin does not serve start without waiting for it. The setting ``connect_timeout`` keeps its length."""
    monkeypatch.setattr(Listener, "await_session", lambda self, timeout, *, unless: None)
