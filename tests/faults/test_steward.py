"""The steward's process is killed, suspended, shut down or cut off from the database: another worker takes its place in time."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from time import monotonic
from typing import Any

import gevent
import pytest
from support import ServeProcess, connect, get, received, run, serve_process, session, stored, until

from pgbus_gevent.bus import Bus
from pgbus_gevent.testing.client import StreamClient

INSERT = "insert into pgbus.messages (stream, msg_id, data) values (%s, nextval('pgbus.message_ids'), %s)"
"""Appends a message by hand. It does not ring."""

TAKEOVER = 2.0
"""The promised seconds from the steward's last sign until another worker leads."""

SLACK = 15.0
"""Seconds for a machine with other work, on which a process may stand still for some seconds. The promise is measured, and
printed, in an idle one."""


def leads(server: ServeProcess) -> bool:
    return bool(json.loads(get(server.url, "/pgbus/readyz").body)["steward"] == "this worker")


class Fleet:
    """Three servers, with a client each."""

    def __init__(self, servers: list[ServeProcess]) -> None:
        self.servers = servers
        self.steward = until(self._leader, "one leads, and all rely on it", 60)
        self.others = [server for server in servers if server is not self.steward]
        self.clients: list[StreamClient] = [connect(server.url, "orders") for server in self.others]
        for client in self.clients:
            client.next("pgbus:connected", timeout=20)

    def _leader(self) -> ServeProcess | None:
        leaders = [server for server in self.servers if leads(server)]
        relying = all("relying on the steward" in server.errors for server in self.servers)
        return leaders[0] if len(leaders) == 1 and relying else None

    def new_steward(self) -> ServeProcess | None:
        return next((server for server in self.others if leads(server)), None)


@pytest.fixture
def fleet(pgbus_database: str) -> Iterator[Fleet]:
    with ExitStack() as stack:
        flags = ("--grace", "2")
        # A probe comes once a minute only, so that what arrives earlier was rung for.
        env = {"PGBUS_CATCH_UP_INTERVAL": "60"}
        found = Fleet([stack.enter_context(serve_process(pgbus_database, *flags, **env)) for _ in range(3)])
        yield found
        for client in found.clients:
            client.close()


@pytest.fixture
def sql(pgbus_database: str) -> Iterator[Any]:
    with session(pgbus_database) as connection:
        yield connection


def test_another_worker_takes_the_place_of_a_steward_that_was_killed(fleet: Fleet, sql: Any, pgbus_bus: Bus) -> None:
    # Clients that are new have their stream looked at once more, which would find the message.
    for n in range(10):
        run(sql, INSERT, "orders", str(n))
        gevent.sleep(0.1)
    others = gevent.spawn(publish, pgbus_bus, "stock")  # a ring for the stream itself would bring the message, too
    fleet.steward.process.kill()
    killed = monotonic()
    run(sql, INSERT, "orders", "in between")
    for client in fleet.clients:
        until(lambda client=client: "in between" in [m.data for m in client.messages], "it arrives", pause=0.002)  # type: ignore[misc]
    took = monotonic() - killed
    print(f"\na message that did not ring arrived {took:.2f} s after the steward was killed")
    assert took < TAKEOVER + SLACK
    until(fleet.new_steward, "another one leads")
    others.get(timeout=30)
    publish(pgbus_bus, "orders")
    for client in fleet.clients:
        until(lambda client=client: received(client) == stored(sql, "orders"), "all arrive once, in order")  # type: ignore[misc]


def test_a_steward_that_was_suspended_finds_another_one_in_its_place(fleet: Fleet, sql: Any) -> None:
    own = connect(fleet.steward.url, "orders")
    own.next("pgbus:connected", timeout=20)
    fleet.clients.append(own)
    fleet.steward.signal(signal.SIGSTOP)
    try:
        until(fleet.new_steward, "another one leads", TAKEOVER + SLACK)
        for n in range(50):
            run(sql, INSERT, "orders", str(n))
        for client in fleet.clients[:2]:
            until(lambda client=client: len(client.messages) == 50, "they arrive at the others")  # type: ignore[misc]
    finally:
        fleet.steward.signal(signal.SIGCONT)
    for n in range(50, 100):
        run(sql, INSERT, "orders", str(n))
    for client in fleet.clients:
        until(lambda client=client: received(client) == stored(sql, "orders"), "each arrives once, in order")  # type: ignore[misc]
    until(lambda: [leads(server) for server in fleet.servers].count(True) == 1, "one leads")
    # It may be elected again later, if the machine is so busy that the other one stands still.
    assert "another worker is the steward now" in fleet.steward.errors


def test_a_steward_that_is_shut_down_gives_its_place_away(fleet: Fleet, sql: Any) -> None:
    fleet.steward.signal()
    assert fleet.steward.wait() == 0
    began = monotonic()
    until(fleet.new_steward, "another one leads", 1.0 + SLACK)
    run(sql, INSERT, "orders", "afterwards")
    assert fleet.clients[0].next(timeout=20).data == "afterwards"
    print(f"\nanother one led, and found a message, after {monotonic() - began:.2f} s")


def test_nothing_is_lost_if_all_sessions_are_cut_while_the_steward_hangs(fleet: Fleet, sql: Any) -> None:
    """As after a failure of the network. The suspended steward finds its sessions closed."""
    mine = f"pid <> {sql.info.backend_pid} and datname = current_database()"
    fleet.steward.signal(signal.SIGSTOP)
    try:
        until(fleet.new_steward, "another one leads", TAKEOVER + SLACK)
        run(sql, INSERT, "orders", "while it is cut off")
        assert fleet.clients[0].next(timeout=20).data == "while it is cut off"
        for _ in range(3):
            run(sql, f"select pg_terminate_backend(pid) from pg_stat_activity where {mine}")
            gevent.sleep(0.3)
    finally:
        fleet.steward.signal(signal.SIGCONT)
    run(sql, INSERT, "orders", "after all were cut")
    for client in fleet.clients:
        until(lambda client=client: received(client) == stored(sql, "orders"), "both arrive once")  # type: ignore[misc]
    until(lambda: [leads(server) for server in fleet.servers].count(True) == 1, "one leads")


def publish(bus: Bus, stream: str) -> None:
    for n in range(100):
        bus.stream(stream).broadcast(str(n))
        gevent.sleep(0.01)
