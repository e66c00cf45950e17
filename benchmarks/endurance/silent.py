"""``silent``: clients that connect and send no request, or a part of one, while ordinary clients come."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

from pgbus_gevent.streamer.limits import most_waiting

from .target import Served, site, until
from .witness import Reader, Watch, gets_in

KINDS: dict[str, bytes] = {
    "nothing": b"",
    "half a request line": b"GET /pgbus/str",
    "half a head": b"GET /pgbus/streams/a HTTP/1.1\r\nHost: test\r\nX-Long: ",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300),
    "no HTTP": b"\x00\xff" * 50,
}
HOLDER = "import socket, sys, time; a = sys.argv; s = [socket.create_connection((a[1], int(a[2]))) for _ in range(int(a[3]))]"
_TCP_REPAIR = 19  # of <linux/tcp.h>; a socket in this state is closed without telling the other side


def silent(
    connections: int = 8000, limit: int = 2000, seconds: float = 30.0, database_url: str | None = None, say: Any = print
) -> dict[str, Any]:
    """Open ``connections`` at a server that may have ``limit`` descriptors, and let them drip bytes for ``seconds``."""
    with site(database_url=database_url, limit=limit, request_timeout="5") as target:
        served = target.front
        reader = Reader(served, "ordinary")
        until(lambda: reader.connected, 20, "the first client is served")
        watch = Watch(served)
        stopped = _stopped_holder(served, min(500, connections // 10))
        socks, waits = _open(served, connections)
        say(f"{len(socks)} connections are open on this side", flush=True)
        waits += _drip(served, socks, seconds)
        vanished = sum(map(_vanish, socks))
        target.query("select pgbus.broadcast('ordinary', 'still there')")
        until(lambda: reader.ids, 20, "the first client gets a message")
        for sock in socks:
            sock.close()
        stopped.kill()
        stopped.wait()
        until(lambda: served.metric("pgbus_waiting_connections") <= 1, 30, "their deadlines end the connections")
        closed = served.metric("pgbus_waiting_connections_closed_total")
        reader.end()
        found = watch.end()
        lines = served.errors.count("have no request")
    served_waits = [wait for wait in waits if wait is not None]
    return {
        "connections": connections, "limit": limit, "bound": most_waiting(limit), "vanished_without_a_packet": vanished,
        "ordinary_clients": len(waits), "kept_out": len(waits) - len(served_waits),
        "longest_wait_s": round(max(served_waits, default=0.0), 2),
        "closed_for_room": int(closed), "log_lines": lines, **found,
    }  # fmt: skip


def _stopped_holder(served: Served, count: int) -> subprocess.Popen[bytes]:
    """Another process with ``count`` silent connections, which is then stopped, as a laptop that sleeps."""
    program = f"{HOLDER}; print('held', flush=True); time.sleep(600)"
    command = [sys.executable, "-c", program, served.host, str(served.port), str(count)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    os.kill(process.pid, signal.SIGSTOP)
    return process


def _open(served: Served, connections: int) -> tuple[list[socket.socket], list[float | None]]:
    socks: list[socket.socket] = []
    waits: list[float | None] = []
    parts = list(KINDS.values())
    for number in range(connections):
        with suppress(OSError):
            sock = served.connect()
            socks.append(sock)
            sock.sendall(parts[number % len(parts)])
        if number % 400 == 399:
            waits.append(gets_in(served))
    return socks, waits


def _drip(served: Served, socks: list[socket.socket], seconds: float) -> list[float | None]:
    """Send one more byte on every connection again and again, and have an ordinary client come in between."""
    waits: list[float | None] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for sock in socks:
            with suppress(OSError):
                sock.setblocking(False)
                sock.send(b"a")
        waits.append(gets_in(served))
        time.sleep(0.5)
    return waits


def _vanish(sock: socket.socket) -> bool:
    """Close a socket without a packet, as if its host had lost power. False if this process may not do that."""
    try:
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
    except OSError:
        return False
    sock.close()
    return True


def is_broken(report: dict[str, Any]) -> bool:
    """Whether somebody was kept out, or the bounds did not hold."""
    streams = report["ordinary_clients"]
    return (
        report["kept_out"] > 0
        or report["descriptors_most"] > report["bound"] + 256 + streams
        or report["log_lines"] > 3
    )
