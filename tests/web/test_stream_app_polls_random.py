"""A client that polls and one with a stream see the same, whatever happens to them: in any order of publishing, polls and cuts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from random import Random
from typing import Any

import gevent
import pytest
from poll_parts import Poller
from raw_http import ask, connected, get
from site_parts import Site, running_site
from support import until

from pgbus_gevent.core.client import Subscriber
from pgbus_gevent.core.sse_parser import ParsedFrame
from pgbus_gevent.testing.client import StreamClient
from pgbus_gevent.testing.databases import TestDatabases
from pgbus_gevent.web.stream_app import StreamApp

STEPS = 60


@pytest.fixture(scope="module")
def site(pgbus_databases: TestDatabases) -> Iterator[Site]:
    # Small rings, so that replay often needs the database.
    with running_site(pgbus_databases.make(), public=("*",), ring_messages=16) as site:
        site.app = StreamApp(site.instance, lambda environ, stream: Subscriber(labels={"mine"}))
        yield site


Seen = tuple[str, int, str | None, str]


def seen(frame: ParsedFrame, streams: list[str]) -> Seen:
    """Return the stream, the id, the event and the data of a message."""
    assert frame.id is not None
    event = None if frame.event == "message" else frame.event
    if len(streams) == 1:
        return streams[0], int(frame.id), event, frame.data
    index, _, cursors = frame.id.partition("~")
    return streams[int(index)], int(cursors.split(".")[int(index)]), event, frame.data


class Twins:
    """A poller and a stream's client, of the same subscriber and the same streams, and the steps that a test makes with them."""

    def __init__(self, site: Site, random: Random, streams: list[str]) -> None:
        self.site, self.random, self.streams = site, random, streams
        self.count = 0
        self.visible: list[Seen] = []
        self.waits: gevent.Greenlet[..., Any] | None = None
        more = "&".join(f"stream={name}" for name in streams)
        path = f"/pgbus/streams/{streams[0]}" if len(streams) == 1 else f"/pgbus/streams?{more}"
        self.poller = Poller(site.url, path)
        self.poller.ask(0)
        self.client = StreamClient(site.url, path)
        self.client.next("pgbus:connected", timeout=40)

    def publish(self) -> None:
        stream = self.random.choice(self.streams)
        for _ in range(self.random.choice([1, 1, 1, 2, 40])):
            self.count += 1
            label = self.random.choice([None, None, "mine", "other"])
            event, data = (
                self.random.choice([None, "e", "é"]),
                f"{self.count}\n{'x' * self.random.choice([0, 1, 3000])}",
            )
            id = self.site.bus.stream(stream).broadcast(data, event=event, visible_to=label)
            if label != "other":
                self.visible.append((stream, id, event, data))

    def hint(self) -> None:
        self.site.bus.stream(self.random.choice(self.streams)).broadcast("hint", ephemeral=True)

    def poll(self) -> None:
        self.settle()
        self.poller.ask(0)

    def wait(self) -> None:
        if self.waits is None:
            self.waits = self.poller.start(self.random.choice([1, 30]))

    def settle(self) -> None:
        """Let the poll that waits be answered."""
        if self.waits is not None:
            waits, self.waits = self.waits, None
            while not waits.ready():
                self.hint()
                waits.join(0.2)
            waits.get()

    def cut_poll(self) -> None:
        """Leave before the answer, or while it comes. The cursor stays."""
        self.settle()
        with connected(self.site.port, get(self.poller.target(30))) as sock:
            gevent.sleep(self.random.choice([0, 0.001, 0.005]))
            sock.settimeout(0.001)
            try:
                sock.recv(self.random.choice([1, 4096]))
            except OSError:
                pass

    def cut_stream(self) -> None:
        self.client.drop()
        gevent.sleep(self.random.choice([0, 0.002]))
        self.client.resume()

    def judge(self) -> None:
        self.settle()
        expected = sorted(self.visible)
        stored = lambda: sorted(seen(each, self.streams) for each in self.client.messages if each.id is not None)  # noqa: E731
        until(lambda: len(stored()) >= len(expected), "the stream has all")
        with gevent.Timeout(60):
            while [each for each in self.poller.ask(0)["messages"] if each["id"]] or len(self.polled()) < len(expected):
                pass
        assert sorted(self.polled()) == stored() == expected
        for found in (
            self.polled(),
            [seen(each, self.streams) for each in self.client.messages if each.id is not None],
        ):
            for stream in self.streams:
                ids = [id for name, id, *_ in found if name == stream]
                assert ids == sorted(ids)
        # Each goes on from the other's cursor.
        answer = ask(self.site.port, self.poller.target(0), Last_Event_ID=str(self.client.last_id))
        assert [each["id"] for each in json.loads(answer.body)["messages"]] == []
        self.client.last_id = str(self.poller.cursor)
        self.cut_stream()
        until(lambda: self.client.frames[-1].event == "pgbus:connected", "it is back")
        assert self.poller.events == [] and len(stored()) == len(expected)
        self.client.close()

    def polled(self) -> list[Seen]:
        found = [each for each in self.poller.messages if each["id"] is not None]
        return [(each["stream"], each["id"], each["event"], each["data"]) for each in found]


@pytest.mark.parametrize("seed", range(8))
def test_a_poller_and_a_stream_see_the_same(seed: int, site: Site) -> None:
    random = Random(seed)
    streams = [f"random {seed} {n}" for n in range(random.choice([1, 3]))]
    twins = Twins(site, random, [name.replace(" ", "-") for name in streams])
    steps = [twins.publish] * 6 + [twins.hint, twins.poll, twins.poll, twins.wait, twins.wait]
    steps += [twins.settle, twins.cut_poll, twins.cut_stream]
    for _ in range(STEPS):
        random.choice(steps)()
    twins.judge()
