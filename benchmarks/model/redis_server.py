"""Measures what a message costs a Redis server."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

from pgbus_gevent.bench import machine

FEW, MOST = 1, 101
"""Subscribers: the two sizes give the costs."""

MESSAGES = 100_000


def costs() -> list[tuple[str, float, str]]:
    """Return the name of each constant, its value in seconds, and how it was measured."""
    used = {}
    with _redis_server() as (port, pid):
        for count, messages in ((FEW, MESSAGES), (MOST, MESSAGES // 20)):
            with ExitStack() as stack:
                ears = [stack.enter_context(closing(_connected(port))) for _ in range(count)]
                for ear in ears:
                    ear.sendall(b"*2\r\n$9\r\nSUBSCRIBE\r\n$1\r\nc\r\n")
                    ear.recv(100)
                began = machine.cpu([pid])
                _publish(port, ears, messages)
                used[count] = (machine.cpu([pid]) - began) / messages
        hop = _hop(port)
    slope = (used[MOST] - used[FEW]) / (MOST - FEW)
    source = f"redis-server, PUBLISH of 400 bytes in pipelines of 20, {FEW} and {MOST} subscribers"
    return [
        ("redis_subscriber_cpu", slope, f"{source}: slope"),
        ("redis_publish_cpu", used[FEW] - FEW * slope, f"{source}: the rest"),
        ("redis_hop", hop, "redis-server, PUBLISH to the receipt by one subscriber, plain sockets, p50 of 2,000"),
    ]


@contextmanager
def _redis_server() -> Iterator[tuple[int, int]]:
    binary = shutil.which("redis-server")
    if binary is None:
        raise SystemExit("redis-server is not installed: apt install redis-server")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder],
            stdout=subprocess.DEVNULL,
        )
        try:
            for _ in range(200):
                try:
                    _connected(port).close()
                    break
                except OSError:
                    time.sleep(0.05)
            yield port, process.pid
        finally:
            process.terminate()
            process.wait(10)


def _hop(port: int) -> float:
    delays = []
    with closing(_connected(port)) as ear, closing(_connected(port)) as publisher:
        ear.sendall(b"*2\r\n$9\r\nSUBSCRIBE\r\n$1\r\nh\r\n")
        ear.recv(100)
        for _ in range(2000):
            began = time.perf_counter()
            publisher.sendall(b"*3\r\n$7\r\nPUBLISH\r\n$1\r\nh\r\n$1\r\nx\r\n")
            ear.recv(1000)
            delays.append(time.perf_counter() - began)
            publisher.recv(100)
    return sorted(delays)[1000]


def _connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), 10)


def _publish(port: int, ears: list[socket.socket], messages: int) -> None:
    command = b"*3\r\n$7\r\nPUBLISH\r\n$1\r\nc\r\n$400\r\n" + b"x" * 400 + b"\r\n"
    with closing(_connected(port)) as publisher:
        for _ in range(messages // 20):
            publisher.sendall(command * 20)
            answers = b""
            while answers.count(b"\r\n") < 20:
                answers += publisher.recv(4096)
            for ear in ears:
                left = 20 * (400 + 32)
                while left > 0:
                    left -= len(ear.recv(65536))
