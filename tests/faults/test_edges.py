"""What an edge delivers is exact while the network to its origin is cut, held up and slow, and origins are killed."""

from __future__ import annotations

import random
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from time import monotonic

import gevent
import pytest
from edge_parts import TOKEN, Hop, hop
from support import (
    PATIENCE,
    ServeProcess,
    connect,
    free_port,
    gaps,
    get,
    received,
    run,
    serve_process,
    session,
    stored,
    until,
)
from ways import found

from pgbus_gevent.testing.client import StreamClient

STREAMS = [f"ledger:{n}" for n in range(8)]
SECONDS = 6.0
"""How long the network misbehaves while messages are published."""


@pytest.fixture
def processes() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def origin(processes: ExitStack, database_url: str, **more: str) -> ServeProcess:
    return processes.enter_context(serve_process(database_url, PGBUS_WORKER_TOKEN=TOKEN, **more))


def edge(processes: ExitStack, url: str, **more: str) -> ServeProcess:
    return processes.enter_context(serve_process("", PGBUS_UPSTREAM=f"{url}/pgbus", PGBUS_WORKER_TOKEN=TOKEN, **more))


def publish(database_url: str, seed: int, until_time: float) -> None:
    """Publish to random streams: single messages, batches, ephemeral messages, and messages that nobody may see."""
    choose = random.Random(seed)
    with session(database_url) as connection:
        while monotonic() < until_time:
            stream, kind = choose.choice(STREAMS), choose.random()
            if kind < 0.6:
                run(connection, "select pgbus.broadcast(%s, %s)", stream, f"{seed}: {choose.random()}")
            elif kind < 0.8:
                run(
                    connection,
                    "select pgbus.broadcast_many(%s, %s)",
                    stream,
                    [str(n) for n in range(choose.randint(1, 40))],
                )
            elif kind < 0.85:
                run(connection, "select pgbus.broadcast_ephemeral(%s, %s)", stream, f"hint {seed}: {choose.random()}")
            elif kind < 0.9:
                run(connection, "select pgbus.broadcast(%s, 'secret', visible_to => 'nobody')", stream)
            else:
                run(connection, "select pgbus.broadcast(%s, %s)", stream, "x" * 20_000)
            gevent.sleep(choose.random() * 0.02)


def come_and_go(client: StreamClient, urls: list[str], seed: int) -> None:
    """Forever: read for a while, leave for a while, come back, to an edge or to the origin."""
    choose = random.Random(seed)
    while True:
        gevent.sleep(choose.random() * 0.8)
        client.drop()
        gevent.sleep(choose.random() * 0.2)
        client.url = choose.choice(urls)
        client.resume()


def misbehave(network: Hop, seed: int, until_time: float) -> None:
    """Cut the connections, hold their bytes back, slow them down, or refuse new ones, again and again."""
    choose = random.Random(seed)
    while monotonic() < until_time:
        gevent.sleep(choose.random() * 0.4)
        kind = choose.choice(["cut", "stall", "delay", "refuse"])
        if kind == "stall":
            network.flows.clear()
            gevent.sleep(choose.random() * 0.5)
            network.flows.set()
        elif kind == "delay":
            network.delay = choose.random() * 0.03
        elif kind == "refuse":
            network.open = False
            network.cut()
            gevent.sleep(choose.random() * 0.3)
            network.open = True
        else:
            network.cut()
    network.delay = 0.0


def durable(client: StreamClient) -> list[tuple[int, str]]:
    """Return id and data of the stored messages that a client has got."""
    return [each for each in received(client) if each[0]]


def assert_exact(clients: list[tuple[StreamClient, str]], database_url: str) -> int:
    """Check that each client has got each message of its stream that it may see once, in order, and no other."""
    total = 0
    with session(database_url) as connection:
        for client, stream in clients:
            expected = [each for each in stored(connection, stream) if each[1] != "secret"]
            until(
                lambda client=client, expected=expected: len(durable(client)) >= len(expected),
                f"a client of {stream} gets all",
                60.0,
            )
            assert durable(client) == expected
            assert gaps(client) == []
            total += len(expected)
    return total


@pytest.mark.parametrize("seed", [1, 2])
def test_the_ledger_is_exact_while_the_network_misbehaves(pgbus_database: str, processes: ExitStack, seed: int) -> None:
    first = origin(processes, pgbus_database)
    network = processes.enter_context(hop(first.url))
    # Small rings at the edge, so that it must often read from its origin.
    here = edge(processes, network.url, PGBUS_RING_MESSAGES="20", PGBUS_PAGE_SIZE="15")
    clients = [(connect(here.url, STREAMS[n % len(STREAMS)], since=0), STREAMS[n % len(STREAMS)]) for n in range(24)]
    end = monotonic() + SECONDS
    jobs = [gevent.spawn(publish, pgbus_database, n, end) for n in range(4)]
    walkers = [
        gevent.spawn(come_and_go, client, [here.url, here.url, first.url], n)
        for n, (client, _) in enumerate(clients[:8])
    ]
    misbehave(network, seed, end)
    gevent.joinall(jobs, raise_error=True)
    gevent.killall(walkers)
    for client, _ in clients[:8]:
        client.url = here.url
        client.resume()
    assert assert_exact(clients, pgbus_database) > 1000

    def hints(client: StreamClient) -> list[str]:
        return [each.data for each in client.messages if each.id is None]

    # How many ephemeral messages came through is up to chance. Now that the network behaves, each client gets one, once the edge
    # has a connection for new messages again.
    last = count()
    with session(pgbus_database) as connection:

        def all_get_one() -> bool:
            number = next(last)
            for stream in STREAMS:
                run(connection, "select pgbus.broadcast_ephemeral(%s, %s)", stream, f"last hint {number}")
            return all(any(hint.startswith("last") for hint in hints(client)) for client, _ in clients)

        until(all_get_one, "each client gets one", 30.0, pause=0.2)
    for client, _ in clients[8:]:
        assert len(hints(client)) == len(set(hints(client)))
    for client, _ in clients:
        client.close()


def test_the_ledger_is_exact_while_origins_are_killed_and_come_back(pgbus_database: str, processes: ExitStack) -> None:
    origins = [origin(processes, pgbus_database) for _ in range(2)]
    network = processes.enter_context(hop(*(each.url for each in origins)))
    here = edge(processes, network.url)
    clients = [(connect(here.url, stream, since=0), stream) for stream in STREAMS]
    end = monotonic() + SECONDS
    jobs = [gevent.spawn(publish, pgbus_database, n, end) for n in range(3)]
    gevent.sleep(1.0)
    origins[0].process.send_signal(signal.SIGKILL)
    network.targets = network.targets[1:]
    gevent.sleep(1.0)
    third = origin(processes, pgbus_database)
    network.targets = [int(third.url.rpartition(":")[2])]
    origins[1].process.send_signal(signal.SIGTERM)
    late = [(connect(here.url, stream, since=0), stream) for stream in STREAMS]
    gevent.joinall(jobs, raise_error=True)
    assert assert_exact(clients + late, pgbus_database) > 500
    for client, _ in clients + late:
        client.close()


def test_a_hop_that_falls_silent_is_noticed_and_replaced(pgbus_database: str, processes: ExitStack) -> None:
    first = origin(processes, pgbus_database)
    network = processes.enter_context(hop(first.url))
    here = edge(processes, network.url)
    client = connect(here.url, "orders")
    client.next("pgbus:connected", timeout=PATIENCE)
    network.flows.clear()
    with session(pgbus_database) as connection:
        run(connection, "select pgbus.broadcast('orders', 'while silent')")
        until(lambda: get(here.url, "/pgbus/readyz").status == 503, "the edge is not ready", 40.0)
        network.cut()
        network.flows.set()
        assert client.next(timeout=PATIENCE).data == "while silent"
        until(lambda: get(here.url, "/pgbus/readyz").status == 200, "the edge is ready", PATIENCE)
    assert gaps(client) == []
    client.close()


def test_a_database_that_goes_back_during_a_cut_is_a_gap_and_never_a_silent_loss(
    pgbus_database: str, processes: ExitStack
) -> None:
    first = origin(processes, pgbus_database)
    network = processes.enter_context(hop(first.url))
    here = edge(processes, network.url)
    client = connect(here.url, "orders", since=0)
    with session(pgbus_database) as connection:
        ids = [run(connection, "select pgbus.broadcast('orders', %s)", str(n))[0][0] for n in range(5)]
        until(lambda: len(client.messages) == 5, "all arrive")
        network.open = False
        network.cut()
        run(connection, "delete from pgbus.messages where msg_id > %s", ids[2])
        run(connection, "select pgbus.broadcast('orders', 'new')")
        network.open = True
        until(lambda: gaps(client), "it is told", PATIENCE)
        until(lambda: len(client.messages) == 9, "it gets all that is retained")
        assert gaps(client)[0]["reason"] == "ahead"
        assert received(client)[-4:] == stored(connection, "orders")
    client.close()


@pytest.fixture
def haproxy(tmp_path: Path, processes: ExitStack, pgbus_database: str) -> Iterator[tuple[str, list[ServeProcess]]]:
    """The URL of HAProxy, and the two origins behind it."""
    origins = [origin(processes, pgbus_database) for _ in range(2)]
    port = free_port()
    servers = "".join(
        f"  server s{n} {each.url.removeprefix('http://')} check inter 100ms fall 1\n" for n, each in enumerate(origins)
    )
    (tmp_path / "haproxy.cfg").write_text(
        "defaults\n  mode http\n  timeout connect 2s\n  timeout client 30s\n  timeout server 30s\n"
        f"frontend f\n  bind 127.0.0.1:{port}\n  default_backend b\n"
        f"backend b\n  balance roundrobin\n  option httpchk GET /pgbus/readyz\n{servers}"
    )
    with (
        open(tmp_path / "log", "w") as log,
        subprocess.Popen([found("haproxy"), "-f", str(tmp_path / "haproxy.cfg")], stdout=log, stderr=log) as process,
    ):
        try:
            yield f"http://127.0.0.1:{port}", origins
        finally:
            process.kill()


def test_the_ledger_is_exact_behind_haproxy_while_one_of_two_origins_is_killed(
    pgbus_database: str, processes: ExitStack, haproxy: tuple[str, list[ServeProcess]]
) -> None:
    url, origins = haproxy
    here = edge(processes, url)
    until(lambda: get(here.url, "/pgbus/readyz").status == 200, "the edge is ready", PATIENCE)
    end = monotonic() + SECONDS
    jobs = [gevent.spawn(publish, pgbus_database, n, end) for n in range(3)]
    clients = []
    for n, stream in enumerate(STREAMS):  # one after the other, so that there are new connections to both origins
        clients.append((connect(here.url, stream, since=0), stream))
        gevent.sleep(0.3)
        if n == len(STREAMS) // 2:
            origins[0].process.send_signal(signal.SIGKILL)
    gevent.joinall(jobs, raise_error=True)
    assert assert_exact(clients, pgbus_database) > 500
    for client, _ in clients:
        client.close()
