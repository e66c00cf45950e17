"""``python -m benchmarks.hosts``: four hosts with two workers each, two relays, Redis Cluster, PgBouncer, a standby, and HAProxy.

Clients watch over HTTP/1.1 and HTTP/2 while messages are published and parts are killed, cut off and restored. At the end, the
table says what was committed, and what each client was sent is compared with it. It needs root, for the network namespaces.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

from .faults import Faults
from .ledger import judge
from .network import Network
from .site import Site, until

_QUIET = 90.0  # seconds in which the clients must have everything after the last fault


class Publisher(threading.Thread):
    """Publishes ``rate`` messages per second through a program on the clients' host, until :meth:`end` is called."""

    def __init__(self, site: Site, rate: int, streams: int) -> None:
        super().__init__(daemon=True)
        command = [sys.executable, "-m", "benchmarks.hosts.publisher", site.url, str(rate), str(streams)]
        self.process = site.clients.start("publisher", command, site.logs)

    def end(self) -> None:
        """Stop publishing."""
        self.process.end()


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hosts", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--clients", type=int, default=6000)
    parser.add_argument("--streams", type=int, default=1500)
    parser.add_argument("--rate", type=int, default=500, help="messages per second")
    parser.add_argument("--every", type=float, default=20, help="seconds between the starts of two faults")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--wake", choices=["redis", "postgres"], default="redis")
    parser.add_argument("--binaries", type=Path, default=Path("/usr/lib/postgresql/15/bin"))
    parser.add_argument("--out", type=Path, default=Path("hosts-report"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with Network() as network:
        site = Site(network, options.out.resolve(), options.binaries, redis=options.wake == "redis")
        try:
            _run(site, options)
        finally:
            site.close()


def _run(site: Site, options: argparse.Namespace) -> None:
    print("starting", flush=True)
    site.start()
    received = options.out / "clients.json"
    crowd = subprocess.Popen(
        [
            *(
                "ip",
                "netns",
                "exec",
                site.clients.namespace,
                sys.executable,
                "-m",
                "benchmarks.hosts.clients",
                site.balancer.address,
            ),
            *("--clients", str(options.clients), "--streams", str(options.streams), "--out", str(received)),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert crowd.stdin is not None and crowd.stdout is not None
    try:
        if crowd.stdout.readline().strip() != "connected":
            raise RuntimeError("the clients could not connect")
        print("connected", flush=True)
        publisher = Publisher(site, options.rate, options.streams)
        history = _shake(site, options, crowd)
        publisher.end()
        until(lambda: _settled(site, crowd), _QUIET, "the number of received messages still grows")
        crowd.stdin.close()
        crowd.wait(_QUIET)
    finally:
        crowd.kill()
    table: dict[str, list[int]] = {}
    rows = site.database.run(
        [
            "psql",
            "-h",
            site.database.address,
            "-U",
            "postgres",
            "-At",
            "-F",
            " ",
            "-c",
            "select stream, msg_id from pgbus.messages order by msg_id",
            "postgres",
        ],
        timeout=300,
    )
    for line in rows.splitlines():
        stream, id = line.split()
        table.setdefault(stream, []).append(int(id))
    verdict = judge(table, json.loads(received.read_text()))
    committed = sum(map(len, table.values()))
    report = {
        "committed": committed,
        "seconds": options.minutes * 60,
        "seed": options.seed,
        **verdict._asdict(),
        "faults": history,
    }
    (options.out / "report.json").write_text(json.dumps(report, indent=1))
    print(json.dumps({**report, "faults": len(history)}, indent=1))
    sys.exit(1 if verdict.lost or verdict.repeated or verdict.disordered or verdict.unknown else 0)


def _shake(site: Site, options: argparse.Namespace, crowd: subprocess.Popen[str]) -> list[str]:
    faults = Faults(site, options.seed)
    began = time.monotonic()
    history: list[str] = []
    running: list[threading.Thread] = []
    while time.monotonic() - began < options.minutes * 60:
        time.sleep(options.every)
        running = [thread for thread in running if thread.is_alive()]
        if len(running) < 2:
            name, act = faults.draw()
            thread = threading.Thread(target=_attempt, args=(name, act))
            thread.start()
            running.append(thread)
            history.append(name)
            print(f"{time.monotonic() - began:6.0f} s  {name:45} {_state(crowd)}", flush=True)
    for thread in running:
        thread.join(60)
    return history


def _attempt(name: str, act: object) -> None:
    try:
        act()  # type: ignore[operator]
    except Exception as error:
        print(f"         {name}: {error}", flush=True)


def _state(crowd: subprocess.Popen[str]) -> str:
    assert crowd.stdin is not None and crowd.stdout is not None
    crowd.stdin.write("\n")
    crowd.stdin.flush()
    return crowd.stdout.readline().strip()


_last = {"messages": -1, "since": 0.0}


def _settled(site: Site, crowd: subprocess.Popen[str]) -> bool:
    """Return whether no client was sent a message for 15 seconds."""
    time.sleep(1)
    messages = json.loads(_state(crowd))["messages"]
    if messages != _last["messages"]:
        _last.update(messages=messages, since=time.monotonic())
    return time.monotonic() - _last["since"] > 15


if __name__ == "__main__":
    main()
