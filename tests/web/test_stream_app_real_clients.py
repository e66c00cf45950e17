"""Client libraries from npm and PyPI, whose connections are cut at every byte of a frame.

Each client is connected without a cursor, and is cut off while its first message is on the way. A second message is published
while it is away, and a third, of two bytes, when it is back. docs/streams.md has a table of the results.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import gevent
import pytest
from cutting_proxy import CuttingProxy, Line
from gevent.pool import Pool
from gevent.subprocess import PIPE, Popen
from site_parts import PATIENCE, Site, running_site

from pgbus_gevent.core import chunked, sse
from pgbus_gevent.testing.databases import TestDatabases
from pgbus_gevent.web.returners import BURST, LEAST

HERE = Path(__file__).parents[1]
RETRY = 3.5
"""Seconds; longer than what any of the libraries does by itself."""

FIRST, SECOND, THIRD = "one\ntwo", "meanwhile", "ok"
CUTS = len(chunked.chunk(sse.message(FIRST, id=10**15))) + 1

NODE = (
    "eventsource-1", "eventsource-2", "eventsource-3", "eventsource-4", "undici", "extended-eventsource",
    "event-source-polyfill", "reconnecting-eventsource", "launchdarkly-eventsource", "sse.js", "@microsoft/fetch-event-source",
    "eventsource-client", "event-source-plus", "eventsource-parser", "fetch-event-stream",
)  # fmt: skip
PYTHON = (
    "sseclient-py", "sseclient-py over urllib3", "httpx-sse", "sseclient", "requests-sse", "python launchdarkly-eventsource",
    "aiohttp-sse-client",
)  # fmt: skip


ID_LINE_ENDED = CUTS - 1 - len("\n\r\n")
"""The one cut at which the id's line is there and the blank line that makes the message whole is not."""

EAGER = {
    "eventsource-1", "eventsource-2", "reconnecting-eventsource", "extended-eventsource", "@microsoft/fetch-event-source",
}  # fmt: skip
"""These take the id when its line ends, and so lose the message at that cut: no server can help it."""

LAST_LINE_ALONE = {"event-source-plus"}
"""These hand out the last line of data that has several."""

OWN_TIME = {"event-source-plus", "python launchdarkly-eventsource"}
"""These ignore ``retry`` and choose themselves when to come back."""


class Event(NamedTuple):
    event: str
    data: str | None
    id: str


class Outcome:
    """The events that the clients of one library handed out, one client for each cut, and when they came back."""

    def __init__(self, lines: list[Line]) -> None:
        self.lines = lines
        self.ids: list[int] = []
        self.events: dict[int, list[Event]] = {cut: [] for cut in range(CUTS)}
        self.errors = ""


def run(site: Site, proxy: CuttingProxy, library: str, stream: str) -> Outcome:
    command = ["node", "browser/clients.mjs"] if library in NODE else [sys.executable, "parts/sse_clients.py"]
    url = f"{proxy.url}/pgbus/streams/{stream}?"
    process = Popen(
        [*command, library.removeprefix("python "), url, str(CUTS)], stdin=PIPE, stdout=PIPE, stderr=PIPE, cwd=HERE
    )
    outcome = Outcome([proxy.lines.setdefault((stream, cut), Line(cut)) for cut in range(CUTS)])
    readers = [gevent.spawn(_read, process, outcome), gevent.spawn(_read_errors, process, outcome)]
    try:
        _go_through(outcome, site.bus.stream(stream).broadcast)
    finally:
        process.stdin.close()
        process.wait(PATIENCE)
        gevent.joinall(readers, PATIENCE)
        process.stdout.close()
        process.stderr.close()
    return outcome


def _go_through(outcome: Outcome, publish: Callable[[str], int]) -> None:
    if not _wait(lambda: all(line.greeted for line in outcome.lines)):
        return
    outcome.ids.append(publish(FIRST))
    _wait(lambda: all(line.cut_at for line in outcome.lines))
    outcome.ids.append(publish(SECOND))
    _wait(lambda: all(line.greeted > 1 for line in outcome.lines))
    outcome.ids.append(publish(THIRD))
    # Before the next heartbeat, which would flush data that the client holds back.
    _wait(lambda: all(events and events[-1].data == THIRD for events in outcome.events.values()))


def _read(process: Popen, outcome: Outcome) -> None:
    for line in process.stdout:
        told = json.loads(line)
        outcome.events[told.pop("cut")].append(Event(**told))


def _read_errors(process: Popen, outcome: Outcome) -> None:
    outcome.errors = process.stderr.read().decode()


def _wait(condition: Callable[[], bool], seconds: float = 50.0) -> bool:
    deadline = monotonic() + seconds
    while not condition() and monotonic() < deadline:
        gevent.sleep(0.02)
    return condition()


def missing() -> str | None:
    """Return why the clients cannot be run, or None."""
    if shutil.which("node") is None:
        return "node is not installed: apt-get install nodejs npm"
    if not (HERE / "browser/node_modules/eventsource-1").exists():
        return "the libraries are not installed: npm ci --prefix tests/browser"
    return None


pytestmark = pytest.mark.skipif(missing() is not None, reason=missing() or "")


@pytest.mark.pgbus_timeout(300)
def test_every_message_comes_once_and_in_order_wherever_the_connection_is_cut(pgbus_databases: TestDatabases) -> None:
    # One test for all libraries: several run at a time, because they spend nearly all their time waiting.
    libraries = [*NODE, *PYTHON]
    with running_site(pgbus_databases.make(), retry=RETRY, heartbeat=60.0, request_timeout=10.0) as site:
        proxy = CuttingProxy(site.port)
        pool = Pool(8)
        try:
            running = [pool.spawn(run, site, proxy, name, f"demo:{n}") for n, name in enumerate(libraries)]
            gevent.joinall(running, raise_error=True)
        finally:
            pool.kill()
            proxy.close()
    outcomes = {name: each.get() for name, each in zip(libraries, running, strict=True)}
    faults = {name: found for name, outcome in outcomes.items() if (found := [*_faults(name, outcome)])}
    assert not faults, json.dumps(faults, indent=1)


def _faults(library: str, outcome: Outcome) -> Iterator[str]:
    first = FIRST.rpartition("\n")[2] if library in LAST_LINE_ALONE else FIRST
    for cut, events in outcome.events.items():
        expected = [first, SECOND, THIRD]
        if cut == ID_LINE_ENDED and library in EAGER:
            expected.remove(first)
        messages = [event for event in events if not event.event.startswith("pgbus:")]
        if [event.data for event in messages] != expected:
            yield f"cut at byte {cut}: {events}; {outcome.errors[-300:]}"
        elif [event.id for event in messages] != [str(id) for id in outcome.ids[-len(expected) :]]:
            yield f"cut at byte {cut}: other ids than {outcome.ids}: {events}"
        if not all(event.data and event.event in ("message", "pgbus:connected") for event in events):
            yield f"cut at byte {cut}: something that is no event: {events}"
    soonest = min(line.away for line in outcome.lines)
    if soonest < RETRY - 0.1 and library not in OWN_TIME:
        yield f"it came back after {soonest:.1f} s"


def test_a_refused_client_that_comes_back_at_once_makes_few_connections(pgbus_databases: TestDatabases) -> None:
    with running_site(pgbus_databases.make(), max_connections=1, request_timeout=10.0) as site:
        original, seen = site.app, []

        def counting(environ: dict[str, Any], start_response: Any) -> Any:
            seen.append(monotonic())
            return original(environ, start_response)

        with site.watch("demo:taken") as client:
            client.next("pgbus:connected")
            site.app = counting
            command = ["node", "browser/clients.mjs", "event-source-plus", f"{site.url}/pgbus/streams/demo:x?", "1"]
            process = Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, cwd=HERE)
            try:
                assert _wait(lambda: original._returners.held == 1), "it is held"
                gevent.sleep(2.0)
                # One more each time that a client may come back; at a standstill of this process or of the client, that is several.
                assert BURST < len(seen) <= BURST + 1 + (monotonic() - seen[0]) / LEAST
                client.close()
                assert _wait(lambda: len(site.instance.registry) == 1), "it is served when there is room"
            finally:
                process.stdin.close()
                process.wait(PATIENCE)
                process.stdout.close()
                process.stderr.close()
