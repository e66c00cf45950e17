"""Labels that the authorize hook gives to a connection: on real sockets, live, by replay, and after a recheck."""

from __future__ import annotations

from typing import Any

import gevent
from site_parts import Site, running_site
from support import until

from pgbus_gevent.core.client import Subscriber
from pgbus_gevent.testing.client import StreamClient
from pgbus_gevent.web.stream_app import StreamApp


def labelled(environ: Any, stream: str) -> bool | Subscriber:
    return Subscriber(labels=[label for label in environ.get("HTTP_X_LABELS", "").split(",") if label])


def watch(site: Site, labels: str, query: str = "") -> StreamClient:
    return StreamClient(site.url, f"/pgbus/streams?stream=orders{query}", headers={"X-Labels": labels})


def test_a_connection_gets_the_messages_of_its_labels_live_and_by_replay(pgbus_database: str) -> None:
    with running_site(pgbus_database, public=("*",), ring_messages=10) as site:
        site.app = StreamApp(site.instance, labelled)
        orders = site.bus.stream("orders")
        with watch(site, "user:7,admins") as seven, watch(site, "user:8") as eight, watch(site, "") as nobody:
            for client in (seven, eight, nobody):
                client.next("pgbus:connected")
            for n in range(40):
                orders.broadcast(f"7.{n}", visible_to="user:7")
                orders.broadcast(f"8.{n}", visible_to="user:8")
            orders.broadcast("hint", visible_to="admins", ephemeral=True)
            last = orders.broadcast("all")
            for client in (seven, eight, nobody):
                until(lambda client=client: client.messages and client.messages[-1].id == str(last), "the last message")
            both = [f"7.{n}" for n in range(40)]
            assert [each.data for each in seven.messages if each.data != "hint"] == [*both, "all"]
            assert [each.data for each in seven.messages].count("hint") == 1
            assert [each.data for each in eight.messages] == [f"8.{n}" for n in range(40)] + ["all"]
            assert [each.data for each in nobody.messages] == ["all"]
        with watch(site, "user:8", "&since=0") as late, watch(site, "user:8", "&since=0&stream=stock") as two:
            for client in (late, two):
                until(lambda client=client: len(client.messages) == 41, "everything by replay")
                assert [each.data for each in client.messages] == [f"8.{n}" for n in range(40)] + ["all"]


def test_a_recheck_changes_the_labels(pgbus_database: str) -> None:
    held = {"labels": ["red"]}
    with running_site(pgbus_database, public=("*",), recheck=0.1) as site:
        site.app = StreamApp(site.instance, lambda environ, stream: Subscriber(labels=held["labels"]))
        orders = site.bus.stream("orders")
        with watch(site, "") as client:
            client.next("pgbus:connected")
            orders.broadcast("1", visible_to="red")
            orders.broadcast("2", visible_to="blue")
            assert client.next().data == "1"
            held["labels"] = ["blue"]
            until(lambda: site.instance.registry.holders("orders", ["blue"]), "the recheck")
            assert site.instance.registry.holders("orders", ["red"]) == []
            client.next("pgbus:identity")
            orders.broadcast("3", visible_to="red")
            orders.broadcast("4", visible_to="blue")
            assert client.next().data == "4"
        until(lambda: not site.instance.registry._holders, "the index is empty")
        gevent.sleep(0)
