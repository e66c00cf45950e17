"""What is measured while an attack lasts: the server's memory and descriptors, and whether ordinary clients are served."""

from __future__ import annotations

import re
import socket
import threading
import time
from contextlib import suppress

from .target import Served

FIRST = b"event: pgbus:connected"


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
        self.data = bytearray()
        self.closed = False
        self.start()

    def run(self) -> None:
        """Read."""
        self._sock.settimeout(None)
        with suppress(OSError):
            while more := self._sock.recv(1 << 20):
                self.data += more
        self.closed = True

    @property
    def connected(self) -> bool:
        """Whether the stream has begun."""
        return FIRST in self.data

    @property
    def ids(self) -> list[int]:
        """The ids of its messages."""
        return ids_in(bytes(self.data))

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
    """The ids of the whole messages in the bytes of a stream, with or without the chunked coding around them."""
    plain = re.sub(rb"\r\n[0-9a-f]+\r\n", b"", b"\r\n" + data.partition(b"\r\n\r\n")[2])
    messages = plain.partition(FIRST)[2].partition(b"\n\n")[2]
    return [int(found) for found in re.findall(rb"\nid: (\d+)\n\n", messages)]


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
