"""``stalled``: thousands of clients stop reading while large messages are published. The others go on, and memory stays bounded."""

from __future__ import annotations

import select
import socket
import time
from contextlib import suppress
from typing import Any

from pgbus_gevent.streamer.dispatcher import CHUNK_BYTES

from .target import Served, Site, site, until
from .witness import FIRST, Reader, Watch, ids_in, mb, request

HEALTHY = 20
RESUMED = 50
"""How many of the stalled clients come back with their cursors."""

BUFFER = 4096
"""The receive buffer of a stalled client, in bytes."""

OWN = 20_000
"""Bytes that a connection costs without any message: the objects of client and subscription, and what Python allocates around."""


def stalled(
    clients: int = 10_000, size: int = 65536, messages: int = 40, rate: float = 2.0, deadline: float = 20.0,
    distinct: bool = False, database_url: str | None = None, send_buffer: str = "64KB", say: Any = print,
) -> dict[str, Any]:  # fmt: skip
    """Let ``clients`` stall while ``messages`` of ``size`` bytes come at ``rate`` per second.

    With ``distinct``, each begins at a cursor of its own, so that no two share the bytes that wait for them.
    """
    settings = {
        "max_connections": str(clients + 200), "write_deadline": f"{deadline:g}", "send_buffer": send_buffer,
        "retention": "1h", "max_body": "16MB",
    }  # fmt: skip
    with site(database_url=database_url, **settings) as target:
        served = target.front
        starts = _prepare(target, clients, size) if distinct else [None]
        readers = [Reader(served, "big") for _ in range(HEALTHY)]
        until(lambda: all(reader.connected for reader in readers), 30, "the others are served")
        watch = Watch(served)
        kernel = _kernel_bytes()
        socks = _connect(served, clients, starts)
        say(f"{len(socks)} connected, {mb(served.rss)} MB", flush=True)
        connected = served.rss
        ids, most_kernel = _publish(target, size, messages, rate)
        until(lambda: all(set(ids) <= set(reader.ids) for reader in readers), 60, "the others have all messages")
        in_order = all([id for id in reader.ids if id in set(ids)] == ids for reader in readers)
        until(lambda: _left(served) <= HEALTHY, deadline * 2 + 90, "the stalled are cut off", pause=0.5)
        # The kernel ends a connection whose buffer is never acknowledged, if we had nothing more to send that did not fit.
        cut = [
            served.metric(f'pgbus_disconnects_total{{reason="{reason}"')
            for reason in ("slow-consumer", "connection-lost")
        ]
        # The last ones, because with cursors of their own the first would read everything again.
        resumed = sum(_resumes(served, sock, ids[-1]) for sock in socks[-RESUMED:])
        for sock in socks:
            sock.close()
        for reader in readers:
            reader.end()
        found = watch.end()
    each = (found["memory_most_mb"] - mb(connected)) * 2**20 / max(1, len(socks))
    return {
        "clients": len(socks), "size": size, "messages": messages, "distinct_cursors": distinct,
        "healthy": HEALTHY, "healthy_complete_and_in_order": in_order,
        "cut_off_by_us": int(cut[0]), "cut_off_by_the_kernel": int(cut[1]),
        "resumed": resumed, "resumed_of": min(RESUMED, len(socks)),
        "memory_connected_mb": mb(connected), "bytes_for_each_blocked_client": round(each),
        "bound_for_each": CHUNK_BYTES + size + OWN, "kernel_mb": mb(most_kernel - kernel), **found,
    }  # fmt: skip


def _prepare(target: Site, clients: int, size: int) -> list[int | None]:
    """Publish messages to begin at: one for each client."""
    each = size if size > CHUNK_BYTES else max(1000, CHUNK_BYTES // 8)
    target.query(
        f"select pgbus.broadcast_many('big', array(select repeat('x', {each}) from generate_series(1, {clients})))"
    )
    return [int(id) for (id,) in target.query("select msg_id from pgbus.messages where stream = 'big' order by 1")]


def _connect(served: Served, clients: int, starts: list[int | None]) -> list[socket.socket]:
    """Connect, and do not read. Connections are made in groups, each of which the server has greeted before the next."""
    socks: list[socket.socket] = []
    for number in range(clients):
        start = starts[number % len(starts)]
        query = "" if start is None else f"?since={start}"
        sock = served.connect(buffer=BUFFER)
        sock.sendall(request(f"/pgbus/streams/big{query}"))
        socks.append(sock)
        if number % 250 == 249 or number == clients - 1:
            group = socks[-250:]
            until(lambda group=group: all(map(_has_first, group)), 60, "a group is greeted", pause=0.02)
    return socks


def _has_first(sock: socket.socket) -> bool:
    return FIRST in sock.recv(BUFFER, socket.MSG_PEEK | socket.MSG_DONTWAIT) if _readable(sock) else False


def _readable(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _publish(target: Site, size: int, messages: int, rate: float) -> tuple[list[int], float]:
    ids, most = [], 0.0
    for number in range(messages):
        began = time.monotonic()
        statement = f"select pgbus.broadcast('big', '{number} ' || repeat('x', {size}))"
        ids.append(int(target.query(statement)[0][0]))
        most = max(most, _kernel_bytes())
        time.sleep(max(0.0, 1 / rate - (time.monotonic() - began)))
    return ids, most


def _left(served: Served) -> float:
    return served.metric("pgbus_connections")


def _resumes(served: Served, sock: socket.socket, last: int) -> bool:
    """Read what a stalled client has, come back with its cursor, and see that it gets the rest up to ``last``, in order."""
    data = b""
    sock.settimeout(20)
    with suppress(OSError):
        while more := sock.recv(65536):
            data += more
    had = ids_in(data)
    cursor = had[-1] if had else _first_cursor(data)
    again = Reader(served, "big", str(cursor))
    try:
        until(lambda: again.ids and again.ids[-1] == last, 30, "it has the rest", pause=0.05)
    except TimeoutError:
        return False
    finally:
        again.end()
    whole = had + again.ids
    return whole == sorted(set(whole)) and not again.gap


def _first_cursor(data: bytes) -> int:
    """The cursor in ``pgbus:connected``, which a client has that got no message."""
    return int(data.partition(FIRST)[2].partition(b"\nid: ")[2].partition(b"\n")[0])


def _kernel_bytes() -> float:
    """The memory of all TCP sockets of this network namespace, on both sides, in bytes."""
    with open("/proc/net/sockstat", encoding="ascii") as file:
        (line,) = (line for line in file if line.startswith("TCP:"))
    return float(line.split()[-1]) * 4096


def is_broken(report: dict[str, Any]) -> bool:
    """Whether somebody was held up, a stalled client could not resume, or memory was above the bound."""
    return (
        not report["healthy_complete_and_in_order"]
        or report["resumed"] < report["resumed_of"]
        or report["cut_off_by_us"] + report["cut_off_by_the_kernel"] < report["clients"]
        or report["bytes_for_each_blocked_client"] > report["bound_for_each"]
    )
