"""What an origin serves to edges, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from raw_http import Answer, ask
from site_parts import Site, running_site

from pgbus_gevent.core.hop import HOP, VERSION_HEADER
from pgbus_gevent.testing.databases import TestDatabases
from pgbus_gevent.web import guesses
from pgbus_gevent.web.guesses import TRIES

OLD, NEW = "the-old-worker-token", "the-new-worker-token"


@pytest.fixture(scope="module")
def site(pgbus_databases: TestDatabases) -> Iterator[Site]:
    with running_site(pgbus_databases.make(), worker_token=(OLD, NEW)) as site:
        yield site


def read(site: Site, question: Any, token: str | None = NEW, version: str = str(HOP)) -> Answer:
    headers = {VERSION_HEADER: version} | ({} if token is None else {"Authorization": f"Bearer {token}"})
    return ask(site.port, "/pgbus/edges/reads", "POST", json.dumps(question).encode(), **headers)


def test_each_of_the_worker_tokens_is_accepted_and_no_other(site: Site) -> None:
    for token, status in ((OLD, 200), (NEW, 200), ("a-token-of-somebody", 401), (None, 401)):
        assert read(site, {"read": "clock"}, token).status == status


def test_guesses_through_the_same_proxy_do_not_keep_edges_out(
    pgbus_databases: TestDatabases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guesses, "DIFFERENT", TRIES + 2)
    with running_site(pgbus_databases.make(), worker_token=(NEW,)) as site:
        found = [read(site, {"read": "clock"}, f"a-guess-of-somebody-{n}").status for n in range(TRIES + 5)]
        assert set(found[:TRIES]) == {401}
        assert set(found[TRIES + 1 :]) == {429}
        assert read(site, {"read": "clock"}).status == 200


def test_without_worker_tokens_no_edge_is_let_in(pgbus_databases: TestDatabases) -> None:
    with running_site(pgbus_databases.make()) as site:
        answer = read(site, {"read": "clock"})
        assert (answer.status, answer.body) == (
            403,
            b"this server takes no edges: set PGBUS_WORKER_TOKEN to turn that on\n",
        )


def test_another_version_is_refused_by_name(site: Site) -> None:
    answer = read(site, {"read": "clock"}, version="99")
    assert (answer.status, answer.body) == (
        426,
        b"this server speaks version 1 of the protocol between edge and origin\n",
    )


@pytest.mark.parametrize(
    "question",
    [
        [],
        {},
        {"read": "drop table"},
        {"read": "pages", "of": [["a", -1]], "limit": 1, "size": 1},
        {"read": "pages", "of": [["", 1]], "limit": 1, "size": 1},
        {"read": "pages", "of": [["a"]], "limit": 1, "size": 1},
        {"read": "pages", "of": 5, "limit": 1, "size": 1},
        {"read": "openings", "of": [["a", "x", None]], "limit": 1, "size": 1},
        {"read": "moved", "of": {"a": 2.5}, "pruned": []},
        {"read": "moved", "of": ["a"], "pruned": []},
        {"read": "inventory", "of": [["a", 1, None]]},
        {"read": "revocations", "after": ["x"], "recent": True},
    ],
)
def test_a_malformed_read_is_refused_and_asks_the_database_nothing(site: Site, question: Any) -> None:
    assert read(site, question).status == 400


def test_a_read_is_bounded_whatever_it_asks_for(site: Site) -> None:
    site.bus.stream("orders").broadcast_many([str(n) for n in range(20)])
    answer = read(site, {"read": "pages", "of": [["orders", 0]], "limit": 2**40, "size": 2**50})
    [[rows, _, more, _, _]] = json.loads(answer.body)
    assert (len(rows), more) == (20, False)


def test_only_post_is_taken(site: Site) -> None:
    answer = ask(site.port, "/pgbus/edges/wakes", **{"Authorization": f"Bearer {NEW}"})
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("streams", [None, [], {"": None}, {"a": -1}, {"a": "x"}])
def test_malformed_streams_are_refused(site: Site, streams: Any) -> None:
    headers = {VERSION_HEADER: str(HOP), "Authorization": f"Bearer {NEW}"}
    body = json.dumps({"streams": streams}).encode()
    assert ask(site.port, "/pgbus/edges/wakes", "POST", body, **headers).status == 400
