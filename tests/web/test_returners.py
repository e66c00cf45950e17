"""Clients that come back at once after a refusal are slowed down; no others are."""

from __future__ import annotations

from time import monotonic

import gevent
import pytest
from site_parts import Site, running_site
from support import until

from pgbus_gevent.testing.databases import TestDatabases
from pgbus_gevent.web import returners
from pgbus_gevent.web.requests import client_number
from pgbus_gevent.web.returners import BURST, LEAST, MAX_HELD, MAX_KNOWN, Returners

EVENTS = {"Accept": "text/event-stream"}


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only sleep() advances. Its first item is the time."""
    time = [1000.0]

    def sleep(seconds: float) -> None:
        time[0] += seconds

    monkeypatch.setattr(returners.gevent, "sleep", sleep)
    return time


def test_a_client_that_comes_back_at_once_is_refused_once_per_retry_time(naps: list[float]) -> None:
    slowed = Returners(lambda: naps[0])
    for _ in range(BURST):
        slowed.hold(1, lambda: False)
    assert naps[0] == 1000.0
    for n in range(1, 10):
        slowed.hold(1, lambda: False)
        assert naps[0] == pytest.approx(1000.0 + n * LEAST)
    slowed.hold(2, lambda: False)
    assert naps[0] == pytest.approx(1000.0 + 9 * LEAST)


def test_a_client_that_keeps_to_the_retry_time_never_waits(naps: list[float]) -> None:
    slowed = Returners(lambda: naps[0])
    for n in range(100):
        slowed.hold(1, lambda: False)
        assert naps[0] == 1000.0 + n * LEAST
        naps[0] += LEAST


def test_a_client_that_starts_to_keep_to_the_retry_time_no_longer_waits(naps: list[float]) -> None:
    slowed = Returners(lambda: naps[0])
    for _ in range(BURST + 5):
        slowed.hold(1, lambda: False)
    naps[0] += 2 * LEAST
    began = naps[0]
    slowed.hold(1, lambda: False)
    assert naps[0] == began


def test_the_number_of_remembered_clients_is_limited(naps: list[float]) -> None:
    slowed = Returners(lambda: naps[0])
    for client in range(3 * MAX_KNOWN):
        slowed.hold(client, lambda: False)
    assert len(slowed._due) == MAX_KNOWN and naps[0] == 1000.0


def test_the_number_of_held_clients_is_limited() -> None:
    slowed = Returners()
    over = False
    for _ in range(BURST):
        slowed.hold(1, lambda: over)
    waiting = [gevent.spawn(slowed.hold, 1, lambda: over) for _ in range(MAX_HELD + 20)]
    until(lambda: sum(map(bool, waiting)) == MAX_HELD and slowed.held == MAX_HELD, "the others were let go")
    over = True
    gevent.joinall(waiting, timeout=20, raise_error=True)
    assert slowed.held == 0


@pytest.fixture
def full(request: pytest.FixtureRequest, pgbus_databases: TestDatabases, monkeypatch: pytest.MonkeyPatch):
    """A site without room, and its only client. A test may have clients held for longer."""
    least = getattr(request, "param", LEAST)
    monkeypatch.setattr(returners, "LEAST", least)
    with running_site(pgbus_databases.make(), max_connections=1) as site, site.watch("demo:taken") as client:
        client.next("pgbus:connected")
        for _ in range(BURST):
            assert b"overloaded" in site.get("/streams/demo:x", **EVENTS).body
        # As if all had come at this moment, however long they took.
        site.app._returners._due = dict.fromkeys(site.app._returners._due, monotonic() + BURST * least)
        yield site, client


FOR_LONG = 100.0  # seconds; longer than anything here waits


def test_a_client_that_does_not_wait_gets_few_answers_and_each_is_200(full: tuple[Site, object]) -> None:
    site, _ = full
    (due,) = site.app._returners._due.values()
    assert b"overloaded" in site.get("/streams/demo:x", **EVENTS).body
    assert monotonic() >= due - (BURST - 1) * LEAST - 0.1


@pytest.mark.parametrize("full", [FOR_LONG], indirect=True)
def test_other_clients_are_not_held_and_neither_are_clients_that_another_status_stops(full) -> None:
    site, _ = full
    assert b"overloaded" in site.get("/streams/demo:y", **EVENTS).body
    assert site.get("/streams/demo:x").status == 503


@pytest.mark.parametrize("full", [FOR_LONG], indirect=True)
def test_a_held_client_is_served_as_soon_as_there_is_room(full) -> None:
    site, client = full
    with site.watch("demo:x", Accept="text/event-stream") as held:
        until(lambda: site.app._returners.held == 1, "it is held")
        client.close()
        held.next("pgbus:connected")


@pytest.mark.parametrize("full", [FOR_LONG], indirect=True)
def test_a_held_client_is_released_when_the_server_shuts_down(full) -> None:
    site, _ = full
    with site.watch("demo:x", Accept="text/event-stream") as held:
        until(lambda: site.app._returners.held == 1, "it is held")
        gevent.spawn(site.instance.shutdown)
        assert held.next("pgbus:shutdown").data == '{"reason":"restart"}'


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("REMOTE_ADDR", "192.0.2.2"),
        ("HTTP_USER_AGENT", "another"),
        ("PATH_INFO", "/pgbus/streams/y"),
        ("QUERY_STRING", "since=1"),
        ("SCRIPT_NAME", "/elsewhere"),
    ],
)
def test_another_address_agent_or_url_counts_as_another_client(field: str, other: str) -> None:
    asked = {"REMOTE_ADDR": "192.0.2.1", "HTTP_USER_AGENT": "one", "PATH_INFO": "/pgbus/streams/x", "SCRIPT_NAME": ""}
    assert client_number(asked) == client_number({**asked, "HTTP_COOKIE": "what it likes", "REMOTE_PORT": "2"})
    assert client_number(asked) != client_number({**asked, field: other})
