"""The yardstick: a bare Python loop of non-blocking ``send`` on all sockets, without HTTP, database or care for slow clients.

Subscribers (``GET``) and publishers (``PUB``, then frames, each preceded by its length in four bytes) connect to one port.
"""

from __future__ import annotations

import os
import resource
import select
import socket
import struct
import sys
from collections.abc import Callable

from pgbus_gevent.bench.program import answer

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"


def main() -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    listener.setblocking(False)
    port = listener.getsockname()[1]
    answer(pids=[os.getpid()], port=port, path="/", marker="\r\n\r\n", way="raw", options={"port": port})
    serve(listener)


def serve(listener: socket.socket) -> None:
    epoll = select.epoll()
    epoll.register(listener.fileno(), select.EPOLLIN)
    epoll.register(sys.stdin.fileno(), select.EPOLLIN)
    sockets: dict[int, socket.socket] = {}
    sends: dict[int, Callable[[bytes], int]] = {}
    publishers: dict[int, bytearray] = {}
    while True:
        for descriptor, _ in epoll.poll():
            if descriptor == sys.stdin.fileno():
                return
            if descriptor == listener.fileno():
                sock, _ = listener.accept()
                sock.setblocking(False)
                sockets[sock.fileno()] = sock
                epoll.register(sock.fileno(), select.EPOLLIN)
                continue
            try:
                data = sockets[descriptor].recv(65536)
            except OSError:
                data = b""
            if descriptor in publishers and data:
                fan_out(publishers[descriptor], data, sends)
            elif data.startswith(b"GET "):
                sockets[descriptor].send(HEAD)
                sends[descriptor] = sockets[descriptor].send
            elif data.startswith(b"PUB \n"):
                publishers[descriptor] = bytearray()
                fan_out(publishers[descriptor], data[5:], sends)
            else:
                for table in (sends, publishers):
                    table.pop(descriptor, None)
                sockets.pop(descriptor).close()


def fan_out(waiting: bytearray, data: bytes, sends: dict[int, Callable[[bytes], int]]) -> None:
    waiting += data
    while len(waiting) >= 4:
        (size,) = struct.unpack_from("!I", waiting)
        if len(waiting) < 4 + size:
            return
        frame = bytes(waiting[4 : 4 + size])
        del waiting[: 4 + size]
        for send in sends.values():
            try:
                send(frame)
            except OSError:
                pass


if __name__ == "__main__":
    main()
