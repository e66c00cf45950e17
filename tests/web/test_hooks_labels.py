"""Labels that the authorize hook gives to a connection: on real sockets, live, by replay, and after a recheck."""

from __future__ import annotations

import random
from typing import Any

import gevent
import pytest
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
                until(lambda client=client: any(each.id == str(last) for each in client.messages), "the last message")
            # It has no promised order against stored messages.
            until(lambda: any(each.data == "hint" for each in seven.messages), "the ephemeral message")
            both = [f"7.{n}" for n in range(40)]
            assert [each.data for each in seven.messages if each.data != "hint"] == [*both, "all"]
            assert [each.data for each in seven.messages].count("hint") == 1
            assert [each.data for each in eight.messages] == [f"8.{n}" for n in range(40)] + ["all"]
            assert [each.data for each in nobody.messages] == ["all"]
        with watch(site, "user:8", "&since=0") as late, watch(site, "user:8", "&since=0&stream=stock") as two:
            for client in (late, two):
                until(lambda client=client: len(client.messages) == 41, "everything by replay")
                assert [each.data for each in client.messages] == [f"8.{n}" for n in range(40)] + ["all"]


@pytest.mark.slow
def test_clients_that_are_cut_off_lose_and_repeat_nothing_and_see_nothing_of_others(pgbus_database: str) -> None:
    names, dice, sent = [f"user:{n}" for n in range(6)], random.Random(), []
    with running_site(pgbus_database, public=("*",), ring_messages=20, send_buffer=8192, heartbeat=1.0) as site:
        site.app = StreamApp(site.instance, labelled)
        orders = site.bus.stream("orders")
        first = orders.broadcast("the first")
        held = [dice.sample(names, n % 3) for n in range(12)]
        clients = [watch(site, ",".join(labels), f"&since={first}") for labels in held]

        def publish(who: str) -> None:
            for n in range(80):
                label = dice.choice([*names, *names, None, "nobody"])
                data = f"{who}{n} " + "x" * dice.choice([1, 3000])
                sent.append((data, label))
                orders.broadcast(data, visible_to=label)
                gevent.sleep(dice.random() * 0.02)

        def cut() -> None:
            for _ in range(30):
                client = dice.choice(clients)
                client.drop()
                gevent.sleep(dice.random() * 0.05)
                client.resume()

        gevent.joinall([gevent.spawn(publish, "a"), gevent.spawn(publish, "b"), gevent.spawn(cut)], raise_error=True)
        orders.broadcast("the last")
        for client, labels in zip(clients, held, strict=True):
            until(lambda client=client: client.messages and client.messages[-1].data == "the last", "the last message")
            *got, _ = [message.data for message in client.messages]
            assert sorted(got) == sorted(data for data, label in sent if label is None or label in labels)
            ids = [int(message.id or 0) for message in client.messages]
            assert ids == sorted(ids)
            assert not any(frame.event == "pgbus:gap-detected" for frame in client.frames)
            client.close()


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
