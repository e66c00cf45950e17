"""What is measured while an attack lasts: the server's memory and descriptors, and whether ordinary clients are served."""

from __future__ import annotations

import re
import socket
import threading
import time
from contextlib import suppress

from .target import Served

FIRST = b"event: pgbus:connected"

_IDS = re.compile(rb"\nid: (\d+)\n\n")


class Watch(threading.Thread):
    """Samples a server's memory, descriptors and CPU until :meth:`end`."""

    def __init__(self, served: Served, every: float = 0.5) -> None:
        super().__init__(daemon=True)
        self._served = served
        self._every = every
        self._ended = threading.Event()
        self.rss = self.descriptors = 0
        """The most that was seen."""
        self.first_rss = served.rss
        self._cpu = served.cpu
        self.start()

    def run(self) -> None:
        """Sample."""
        while not self._ended.wait(self._every):
            self.rss = max(self.rss, self._served.rss)
            self.descriptors = max(self.descriptors, self._served.descriptors)

    def end(self) -> dict[str, float]:
        """Stop, and return what was seen."""
        self._ended.set()
        self.join(10)
        return {
            "memory_before_mb": mb(self.first_rss),
            "memory_most_mb": mb(max(self.rss, self._served.rss)),
            "memory_after_mb": mb(self._served.rss),
            "descriptors_most": self.descriptors,
            "descriptors_after": self._served.descriptors,
            "cpu_s": round(self._served.cpu - self._cpu, 2),
        }


class Reader(threading.Thread):
    """An ordinary client that reads one stream until :meth:`end`; ``ids`` are those of the messages that it got."""

    def __init__(self, served: Served, stream: str, since: str | None = None) -> None:
        super().__init__(daemon=True)
        self._sock = served.connect()
        query = "" if since is None else f"?since={since}"
        self._sock.sendall(request(f"/pgbus/streams/{stream}{query}"))
        self.ids: list[int] = []
        """The ids of its messages so far."""
        self.connected = self.gap = self.closed = False
        self.start()

    def run(self) -> None:
        """Read. Only ids are kept, because there may be gigabytes."""
        self._sock.settimeout(None)
        tail = b""
        with suppress(OSError):
            while more := self._sock.recv(1 << 20):
                data = tail + more
                whole = data.rfind(b"\n\n") + 2
                frames, tail = data[:whole], data[whole:]
                if len(tail) > 2 << 20:
                    tail = tail[-100:]  # in the middle of a large message; its id is its last line
                self.gap = self.gap or b"gap-detected" in frames
                found = [int(id) for id in _IDS.findall(frames)]
                if not self.connected and FIRST in frames:
                    self.connected, found = True, found[1:]
                self.ids += found
        self.closed = True

    def end(self) -> None:
        """Leave."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self.join(10)
        self._sock.close()


def request(path: str) -> bytes:
    """A request for a stream."""
    return f"GET {path} HTTP/1.1\r\nHost: test\r\nAccept: text/event-stream\r\n\r\n".encode()


def ids_in(data: bytes) -> list[int]:
    """The ids of the whole messages in the bytes of a stream. Each frame is in one chunk of HTTP."""
    return [int(found) for found in _IDS.findall(data.partition(FIRST)[2])][1:]


def gets_in(served: Served, stream: str = "ordinary", timeout: float = 10.0) -> float | None:
    """Connect as an ordinary client. Return after how many seconds the stream began, or None if it did not within ``timeout``."""
    began = time.monotonic()
    with suppress(OSError):
        sock = served.connect(timeout=timeout)
        try:
            sock.sendall(request(f"/pgbus/streams/{stream}"))
            data = b""
            while FIRST not in data and time.monotonic() - began < timeout:
                more = sock.recv(65536)
                if not more:
                    return None
                data += more
            return time.monotonic() - began if FIRST in data else None
        finally:
            sock.close()
    return None


def mb(size: float) -> float:
    """Bytes as megabytes."""
    return round(size / 2**20, 1)
