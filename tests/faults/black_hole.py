"""A program of test_black_hole.py that runs in its own network namespace, and whose path to the database goes silent.

``unshare --net python black_hole.py URL`` serves with the real constants and prints, as JSON, the seconds until each part noticed.
"""

from __future__ import annotations

from gevent import monkey

if __name__ == "__main__":
    monkey.patch_all()

import json
import logging
import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from time import monotonic
from typing import Any

import gevent
import psycopg2.extensions as ext

from pgbus_gevent.bus import Bus
from pgbus_gevent.errors import DatabaseUnavailable
from pgbus_gevent.hosts.pywsgi import Server, listen
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.streamer.instance import Instance
from pgbus_gevent.testing.client import StreamClient
from pgbus_gevent.web.stream_app import StreamApp

HERE, THERE, PORT = "10.0.0.1", "10.0.0.2", 5432

FORWARDER = """
import socket, sys, threading

def pump(source, target):
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass

sys.stdin.readline()
server = socket.create_server(("0.0.0.0", 5432))
print("ready", flush=True)
while True:
    client = server.accept()[0]
    database = socket.socket(socket.AF_UNIX)
    database.connect(sys.argv[1])
    for pair in ((client, database), (database, client)):
        threading.Thread(target=pump, args=pair, daemon=True).start()
"""

PLAIN_BUS = """
import sys, time
from pgbus_gevent import Bus, PgbusError

bus = Bus(sys.argv[1], secret="x" * 16, migrate=False)
bus.stream("orders").broadcast("from a plain process")
print("ready", flush=True)
sys.stdin.readline()
began = time.monotonic()
try:
    bus.stream("orders").broadcast("lost")
except PgbusError:
    print(time.monotonic() - began, flush=True)
"""


class Noticed(logging.Handler):
    """The time at which each message was first logged after :attr:`began`."""

    def __init__(self) -> None:
        super().__init__()
        self.began: float | None = None
        self.seconds: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if self.began is not None:
            self.seconds.setdefault(str(record.msg), monotonic() - self.began)


def command(*words: Any) -> None:
    subprocess.run([str(word) for word in words], check=True)


@contextmanager
def child(*arguments: str) -> Any:
    process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def told(process: Any, line: str = "") -> str:
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
    return str(process.stdout.readline())


def until_unshared(pid: int) -> None:
    """Wait until a process has a network namespace of its own."""
    end = monotonic() + 30.0
    while os.readlink(f"/proc/{pid}/ns/net") == os.readlink("/proc/self/ns/net"):
        assert monotonic() < end, "unshare has made no namespace"
        gevent.sleep(0.02)


def connected(pid: int) -> None:
    """Join this namespace with that of a process."""
    command("ip", "link", "set", "lo", "up")
    command("ip", "link", "add", "here", "type", "veth", "peer", "name", "there", "netns", pid)
    command("ip", "addr", "add", f"{HERE}/24", "dev", "here")
    command("ip", "link", "set", "here", "up")
    inside = ("nsenter", "-t", pid, "-n", "ip")
    command(*inside, "addr", "add", f"{THERE}/24", "dev", "there")
    command(*inside, "link", "set", "there", "up")


def seconds_until(condition: Any, began: float, most: float = 40.0) -> float:
    while not condition():
        if monotonic() - began > most:
            return most
        gevent.sleep(0.02)
    return monotonic() - began


def seconds_of(act: Any) -> float:
    began = monotonic()
    try:
        act()
    except DatabaseUnavailable:
        return monotonic() - began
    return 0.0


def main(url: str) -> None:
    own = ext.parse_dsn(url)
    noticed = Noticed()
    logging.getLogger("pgbus_gevent").addHandler(noticed)
    with ExitStack() as stack:
        path = f"{own['host']}/.s.PGSQL.{own.get('port', '5432')}"
        forwarder = stack.enter_context(child("unshare", "--net", sys.executable, "-c", FORWARDER, path))
        until_unshared(forwarder.pid)
        connected(forwarder.pid)
        told(forwarder)
        through = str(ext.make_dsn(url, host=THERE, port=PORT))
        settings = Settings(database_url=through, secret="x" * 16, public=("*",))
        instance = Instance(settings).start()
        stack.callback(instance.shutdown, 1.0)
        server = Server(listen("127.0.0.1", 0), StreamApp(instance))
        server.start()
        stack.callback(server.stop, 1)
        http = f"http://127.0.0.1:{server.server_port}"
        client = stack.enter_context(StreamClient(http, "/pgbus/streams/orders"))
        client.next("pgbus:connected", timeout=20)
        bus = stack.enter_context(Bus(settings=settings))
        bus.stream("orders").broadcast("before")
        plain = stack.enter_context(child(sys.executable, "-c", PLAIN_BUS, through))
        plain.stdout.readline()

        blackhole = ("nsenter", "-t", forwarder.pid, "-n", "ip", "route")
        command(*blackhole, "add", "blackhole", HERE)
        began = noticed.began = monotonic()
        publishing = gevent.spawn(seconds_of, lambda: bus.stream("orders").broadcast("lost"))
        in_plain = gevent.spawn(told, plain)
        reading = gevent.spawn(seconds_of, lambda: instance.database.queries.last_id("orders"))
        figures = {"readyz": seconds_until(lambda: instance.unready, began)}
        figures |= {"bus": publishing.get(), "plain bus": float(in_plain.get()), "pool": reading.get()}
        logged = {
            "listen": "the session for new messages is lost, opening a new one: %s",
            "pulse": "the database does not answer: %s",
        }
        seconds_until(lambda: noticed.seconds.keys() >= set(logged.values()), began)
        figures |= {name: noticed.seconds[message] for name, message in logged.items()}
        command(*blackhole, "del", "blackhole", HERE)
        began = monotonic()
        with Bus(url, secret="x" * 16) as direct:
            direct.stream("orders").broadcast("after")
        figures["delivered again"] = seconds_until(lambda: client.messages[-1].data == "after", began)
        figures["ready again"] = seconds_until(lambda: not instance.unready, began)
        assert not client.closed
    print(json.dumps({name: round(seconds, 1) for name, seconds in figures.items()}))


if __name__ == "__main__":
    main(sys.argv[1])
