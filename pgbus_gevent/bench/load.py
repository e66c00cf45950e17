"""The clients: a process with thousands of connections, cheap enough not to affect the measurement.

It has one epoll loop and one receive buffer. Messages are counted and timed by the marks that they carry.
"""

from __future__ import annotations

import resource
import select
import socket
import struct
from collections.abc import Callable, Sequence
from time import monotonic, process_time
from typing import Any

from pgbus_gevent.bench import stamps
from pgbus_gevent.bench.program import answer, serve

WINDOW = 400
"""The most connections that are being opened at a time. It is below every server's backlog, so that no SYN has to be repeated."""

_BUFFER = 256 * 1024
_RESET = struct.pack(
    "ii", 1, 0
)  # avoids TIME_WAIT, in which ten thousand sockets would hold the ports for the next run
_HEAD_LIMIT = 8192


class Group:
    """Connections that are counted together."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.connections: list[Connection] = []
        self.lost = 0
        self.reset()

    def reset(self) -> None:
        """Set all counts to zero."""
        self.opened = 0
        self.opened_at = 0.0
        self.caught = 0
        self.caught_at = 0.0
        self.frames = 0
        self.bytes = 0
        self.last = 0
        self.ages: dict[int, list[int]] = {}  # by the message's time stamp, in the order of receipt
        self.at_start = [connection.frames for connection in self.connections]

    def report(self, began: float, ages: bool) -> dict[str, Any]:
        """Report what came since the last reset. Times are in milliseconds, except ``…_in`` (seconds) and ``last`` (a time stamp).

        With ``ages``, also report the age of each message in microseconds at each receipt, by the message's time stamp.
        """
        each = [c.frames - (self.at_start[n] if n < len(self.at_start) else 0) for n, c in enumerate(self.connections)]
        return {
            "open": sum(connection.head is None for connection in self.connections) - self.lost,
            "lost": self.lost,
            "opened_in": self.opened_at - began if self.opened else None,
            "caught": self.caught,
            "caught_in": self.caught_at - began if self.caught else None,
            "frames": self.frames,
            "bytes": self.bytes,
            "last": self.last,
            "fewest": min(each, default=0),
            "most": max(each, default=0),
            **percentiles([age for found in self.ages.values() for age in found]),
            **({"ages": self.ages} if ages else {}),
        }


class Connection:
    """One client. ``head`` is the response so far, None once the client is open. With ``goal`` messages it has caught up."""

    __slots__ = ("frames", "goal", "group", "head", "reads", "sock")

    def __init__(self, group: Group, sock: socket.socket, reads: bool, goal: int) -> None:
        self.group = group
        self.sock = sock
        self.head: bytes | None = b""
        self.reads = reads
        self.goal = goal
        self.frames = 0


class Load:
    """All connections, and the loop."""

    def __init__(self) -> None:
        self._groups: dict[str, Group] = {}
        self._connections: dict[int, Connection] = {}
        self._epoll = select.epoll()
        self._opening = 0
        self._opened_at = 0
        self._pending: list[tuple[Group, tuple[str, int], bytes, bool, int, bool]] = []
        self._marker = b""
        self._mark = stamps.MARK

    def run(
        self,
        *,
        seconds: float,
        open: Sequence[dict[str, Any]] = (),
        until: dict[str, int] | None = None,
        caught_up: dict[str, int] | None = None,
        quiet: float | None = None,
        marker: str = "\r\n\r\n",
        mark: str | None = None,
        timed: bool = True,
        ages: bool = False,
    ) -> dict[str, Any]:
        """Open connections and receive, for at most ``seconds``. Answers twice: when it begins, and with the report.

        It ends earlier once all connections are open and each group has the number of frames in ``until`` and the number of
        clients in ``caught_up`` that have caught up, or once nothing has come for ``quiet`` seconds after something has, or
        after the last connection that this call opens.
        ``marker`` is the text in a response that shows that its client is connected. ``mark`` is the text that is counted as a
        frame, by default the mark of our publishers.
        """
        self._marker = marker.encode()
        self._mark = stamps.MARK if mark is None else mark.encode()
        for group in self._groups.values():
            group.reset()
        for opening in open:
            self._plan(**opening)
        self._pending.reverse()
        self._opened_at = 0
        answer(running=True)
        began, cpu = monotonic(), process_time()
        self._loop(began + seconds, lambda: self._reached(until, caught_up, quiet), timed)
        return {
            "seconds": monotonic() - began,
            "cpu": process_time() - cpu,
            "groups": {name: group.report(began, ages) for name, group in self._groups.items()},
        }

    def _plan(
        self,
        group: str,
        port: int,
        requests: Sequence[str],
        count: int,
        reads: bool = True,
        goals: Sequence[int] = (0,),
        greeted: bool = True,
    ) -> None:
        found = self._groups.setdefault(group, Group(group))
        address = ("127.0.0.1", port)
        for n in range(count):
            request, goal = requests[n % len(requests)].encode(), goals[n % len(goals)]
            self._pending.append((found, address, request, reads, goal, greeted))

    def _loop(self, deadline: float, reached: Callable[[], bool], timed: bool) -> None:
        buffer = bytearray(_BUFFER)
        view = memoryview(buffer)
        connections = self._connections
        while (left := deadline - monotonic()) > 0 and not reached():
            while self._pending and self._opening < WINDOW:
                self._connect(*self._pending.pop())
            for descriptor, _ in self._epoll.poll(min(left, 0.01 if self._pending else 0.1), 1024):
                connection = connections[descriptor]
                try:
                    size = connection.sock.recv_into(buffer)
                except BlockingIOError:
                    continue
                except OSError:
                    size = 0
                if not size:
                    self._lose(descriptor)
                    continue
                group = connection.group
                group.bytes += size
                if connection.head is not None:
                    self._opened(connection, bytes(view[:size]))
                found = buffer.count(self._mark, 0, size)
                if found:
                    connection.frames += found
                    group.frames += found
                    group.last = now = stamps.now()
                    if 0 < connection.goal <= connection.frames:
                        connection.goal = 0
                        group.caught += 1
                        group.caught_at = monotonic()
                    if timed:
                        _time(group, buffer, size, now)

    def _reached(self, until: dict[str, int] | None, caught_up: dict[str, int] | None, quiet: float | None) -> bool:
        groups = self._groups
        if self._pending or self._opening:
            return False
        if quiet is not None:
            # Without _opened_at, the presence scenario would wait in vain if all members came before the first announcement.
            last = max((group.last for group in groups.values()), default=0) or self._opened_at
            return last > 0 and stamps.now() - last > quiet * 1e6
        if until is None and caught_up is None:
            return False
        return all(groups[name].frames >= frames for name, frames in (until or {}).items()) and all(
            groups[name].caught >= clients for name, clients in (caught_up or {}).items()
        )

    def _connect(
        self, group: Group, address: tuple[str, int], request: bytes, reads: bool, goal: int, greeted: bool
    ) -> None:
        sock = socket.create_connection(address, timeout=5.0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        sock.sendall(request)
        sock.setblocking(False)
        connection = Connection(group, sock, reads, goal)
        self._connections[sock.fileno()] = connection
        group.connections.append(connection)
        self._opening += 1
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        if not greeted:
            self._is_open(connection)

    def _opened(self, connection: Connection, more: bytes) -> None:
        assert connection.head is not None
        connection.head += more
        if self._marker in connection.head:
            if not connection.head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"the server refused a client: {connection.head[:200]!r}")
            self._is_open(connection)
        elif len(connection.head) > _HEAD_LIMIT:
            raise RuntimeError(f"the server's response does not contain the marker: {connection.head[:200]!r}")

    def _is_open(self, connection: Connection) -> None:
        connection.head = None
        self._opening -= 1
        connection.group.opened += 1
        connection.group.opened_at = monotonic()
        self._opened_at = stamps.now()
        if not connection.reads:
            self._epoll.unregister(connection.sock.fileno())

    def _lose(self, descriptor: int) -> None:
        connection = self._connections.pop(descriptor)
        if connection.head is not None:
            self._opening -= 1
            connection.head = None
        connection.group.lost += 1
        connection.sock.close()

    def close(self, *, group: str) -> dict[str, Any]:
        """Close all connections of a group."""
        for connection in self._groups.pop(group).connections:
            if self._connections.pop(connection.sock.fileno(), None) is not None:
                connection.sock.close()
        return {}


def _time(group: Group, buffer: bytearray, size: int, now: int) -> None:
    """Record the age of each message in the buffer. A time stamp that is split over two reads is skipped."""
    at = buffer.find(stamps.MARK, 0, size)
    while 0 <= at < size - stamps.DIGITS:
        stamp = int(buffer[at + 1 : at + 1 + stamps.DIGITS])
        group.ages.setdefault(stamp, []).append(now - stamp)
        at = buffer.find(stamps.MARK, at + 1, size)


def percentiles(values: list[int]) -> dict[str, float]:
    """Return p50, p90, p99 and max in milliseconds, of values in microseconds."""
    if not values:
        return {}
    ordered = sorted(values)
    last = len(ordered) - 1
    found = {f"p{share}": ordered[min(last, len(ordered) * share // 100)] / 1000 for share in (50, 90, 99)}
    return {**found, "max": ordered[-1] / 1000}


def main() -> None:
    """Run the commands that come on stdin."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    load = Load()
    serve({"run": load.run, "close": load.close})


if __name__ == "__main__":
    main()
