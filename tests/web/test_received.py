"""``?received``: the answer that says what of a request arrived."""

from __future__ import annotations

import json
from collections.abc import Iterator
from time import monotonic
from urllib.parse import quote

import gevent
import pytest
from raw_http import ask, exchange, get
from site_parts import Site, running_site

from pgbus_gevent.testing.databases import TestDatabases
from pgbus_gevent.web import received

PATH = "/pgbus/streams/demo:x"


@pytest.fixture(scope="module")
def site(pgbus_databases: TestDatabases) -> Iterator[Site]:
    with running_site(pgbus_databases.make()) as site:
        yield site


def test_it_repeats_what_proxies_change(site: Site) -> None:
    answer = ask(site.port, f"{PATH}?received&since=7", Accept="text/event-stream", Last_Event_ID="é\t")
    assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")
    assert json.loads(answer.body) == {
        "protocol": "HTTP/1.1", "accept": "text/event-stream", "lastEventId": "é", "query": "received&since=7",
    }  # fmt: skip
    old = exchange(site.port, get(f"{PATH}?received", version="1.0"))
    assert json.loads(old.partition(b"\r\n\r\n")[2])["protocol"] == "HTTP/1.0"
    assert json.loads(old.partition(b"\r\n\r\n")[2])["lastEventId"] is None


def test_it_needs_a_name_as_the_stream_does(site: Site) -> None:
    assert ask(site.port, "/pgbus/streams/secret?received").status == 404
    assert ask(site.port, "/pgbus/streams?stream=demo:a&stream=secret&received").status == 404
    assert ask(site.port, "/pgbus/streams?stream=demo:a&stream=demo:b&received").status == 200
    assert ask(site.port, f"{PATH}?received&since=x").status == 400


@pytest.mark.parametrize("wrong", ["301", "-1", "1.5", "x", "0001", "\u0661", "1&received=1"])
def test_a_wrong_time_is_refused(wrong: str, site: Site) -> None:
    assert ask(site.port, f"{PATH}?received={quote(wrong, safe='&=')}").status == 400


def test_a_server_that_drains_answers_at_once() -> None:
    began = monotonic()
    answer = received.Received(lambda: True).answer({"SERVER_PROTOCOL": "HTTP/1.1"}, "60")
    assert answer.status == 200 and monotonic() - began < 30


@pytest.mark.slow
def test_it_takes_the_time_that_was_asked_for_and_only_some_may_wait(site: Site) -> None:
    began = monotonic()
    waiting = [gevent.spawn(ask, site.port, f"{PATH}?received=2") for _ in range(received.MOST + 1)]
    gevent.joinall(waiting)
    found = [one.get() for one in waiting]
    assert sorted(one.status for one in found) == [200] * received.MOST + [503]
    assert monotonic() - began >= 2.0
    assert [one.headers["retry-after"] for one in found if one.status == 503] == ["2"]
    assert ask(site.port, f"{PATH}?received=0").status == 200
