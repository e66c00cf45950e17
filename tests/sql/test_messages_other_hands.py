"""Rows that logical replication inserts: workers find them, and later appends get higher ids."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import psycopg2.extensions as ext
import pytest
from database_parts import Session, opened_sessions, own_server, until
from support import received, serving

from pgbus_gevent.database.embedded import EmbeddedPostgres
from pgbus_gevent.database.migrating import migrate
from pgbus_gevent.settings.table import Settings

CATCH_UP = 0.5


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    with own_server({"wal_level": "logical"}) as postgres:
        yield postgres


def subscribed(old: Session, new: Session, url: str) -> None:
    old.run("create publication messages for table pgbus.messages, pgbus.horizons")
    # Within one cluster, the subscription would wait for itself if it made the slot.
    old.run("select pg_create_logical_replication_slot('mirror', 'pgoutput')")
    new.run(f"create subscription mirror connection '{url}' publication messages with (create_slot = false)")


def test_replicated_rows_are_delivered_and_ids_continue_above_them_after_a_cut_over(
    server: EmbeddedPostgres, pgbus_settings: Settings
) -> None:
    """Neither sequences nor notifications are replicated."""
    copy = str(ext.make_dsn(server.url, dbname="copy"))
    with opened_sessions(server.url) as sources, opened_sessions(copy) as copies:
        sources().run("create database copy")
        migrate(copy)
        old, new = sources(), copies()
        before = [old.call("broadcast", "orders", f"before {n}") for n in range(3)]
        subscribed(old, new, server.url)
        until(lambda: len(new.data("orders")) == 3, "the table is copied", 80)
        with serving(replace(pgbus_settings, database_url=copy), catch_up_interval=CATCH_UP) as serves:
            live, behind = serves.live("orders"), serves.live("orders", since=before[0])
            for n in range(5):
                old.call("broadcast", "orders", f"live {n}")
                old.call("broadcast_many", "stock", ["x", "y"])
            until(lambda: len(live.messages) == 5 and len(behind.messages) == 7, "the rows arrive")
            assert received(live) == old.read("orders", before[-1])
            assert received(behind) == old.read("orders", before[0])
            last = old.read("orders")[-1][0]
            new.run("drop subscription mirror")
            assert new.call("broadcast", "orders", "after") > last
            assert new.call("broadcast", "stock", "after") > last
            for client in (live, behind):
                until(lambda client=client: client.messages[-1].data == "after", "the client gets the next message")  # type: ignore[misc]
                assert not [frame for frame in client.frames if frame.event == "pgbus:gap-detected"]
            back = serves.live("orders", since=last)
            until(
                lambda: received(back) == new.read("orders", last),
                "a client with an id of the former database gets the rest",
            )
            assert not [frame for frame in back.frames if frame.event == "pgbus:gap-detected"]
