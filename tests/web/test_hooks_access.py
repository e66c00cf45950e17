"""Access to streams over time: caps, revocations, and rechecks by the authorize hook."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import gevent
import gevent.subprocess
import pytest
from gevent.event import Event
from site_parts import Site, running_site
from streamer_parts import wait_until
from support import PATIENCE, run, session, until

from pgbus_gevent.bus import Bus
from pgbus_gevent.core.client import Subscriber
from pgbus_gevent.database.connect import connect as connect_to
from pgbus_gevent.database.queries import Queries
from pgbus_gevent.errors import DatabaseError, InvalidArgument
from pgbus_gevent.testing.client import StreamClient
from pgbus_gevent.web.stream_app import StreamApp


def owner_of(environ: Any, stream: str) -> bool | Subscriber:
    owner = environ.get("HTTP_X_OWNER")
    return Subscriber(owner) if owner else True


@contextmanager
def guarded(database: str, **changes: Any) -> Iterator[Site]:
    """A site whose clients name their owner in a header."""
    with running_site(database, public=("*",), **changes) as site:
        site.app = StreamApp(site.instance, owner_of)
        yield site


def watch(site: Site, owner: str, **headers: str) -> StreamClient:
    return StreamClient(site.url, "/pgbus/streams/orders", headers={"X-Owner": owner, **headers})


def reason(client: StreamClient) -> str:
    told = json.loads(client.next("pgbus:shutdown").data)
    client.wait_closed()
    return str(told["reason"])


# caps


@pytest.mark.parametrize("setting", ["max_per_owner", "max_per_address"])
def test_a_cap_holds_for_a_burst_of_connects_and_a_place_becomes_free_again(pgbus_database: str, setting: str) -> None:
    with guarded(pgbus_database, **{setting: 3}) as site, ExitStack() as stack:
        clients = [stack.enter_context(watch(site, "ada")) for _ in range(20)]
        until(lambda: sum(client.closed for client in clients) == 17, "all but three were refused")
        refused = [client for client in clients if client.closed]
        for client in refused:
            assert reason(client) == "too-many-connections"
            assert 5000 <= int(client.raw.split(b"retry: ")[1].split(b"\n")[0]) <= 15000
        served = [client for client in clients if not client.closed]
        for client in served:
            client.next("pgbus:connected")
        if setting == "max_per_owner":
            with watch(site, "bob") as bob:
                bob.next("pgbus:connected")
        served[0].close()
        wait_until(lambda: len(site.instance.registry) == 2)
        with watch(site, "ada") as again:
            again.next("pgbus:connected")


def test_a_client_that_is_no_event_source_gets_429_with_retry_after(pgbus_database: str) -> None:
    with guarded(pgbus_database, max_per_owner=1) as site, watch(site, "ada") as client:
        client.next("pgbus:connected")
        answer = site.get("/streams/orders", X_Owner="ada")
        assert answer.status == 429 and 5 <= int(answer.headers["retry-after"]) <= 15


# revocations


@pytest.mark.parametrize("way", ["sql", "python", "in a transaction"])
def test_disconnect_ends_the_connections_of_one_owner_on_every_worker(
    pgbus_database: str, pgbus_bus: Bus, way: str
) -> None:
    # Without the notification, they would find it after a minute.
    rarely = {"catch_up_interval": 60.0}
    with guarded(pgbus_database, **rarely) as one, guarded(pgbus_database, **rarely) as two, ExitStack() as stack:
        theirs = [stack.enter_context(watch(site, "ada")) for site in (one, two) for _ in range(3)]
        bob = stack.enter_context(watch(one, "bob"))
        for client in (*theirs, bob):
            client.next("pgbus:connected")
        if way == "sql":
            with session(pgbus_database) as connection:
                run(connection, "select pgbus.disconnect('ada')")
        elif way == "python":
            pgbus_bus.disconnect("ada")
        else:
            with pgbus_bus.transaction() as cursor:
                pgbus_bus.disconnect("ada", using=cursor)
                gevent.sleep(0.1)
                assert not any(client.closed for client in theirs)
        assert [reason(client) for client in theirs] == ["revoked"] * 6
        pgbus_bus.stream("orders").broadcast("still here")
        assert bob.next().data == "still here"
        # The hook decides about a client that comes back, and an old revocation does not end its connection.
        with watch(one, "ada") as again:
            again.next("pgbus:connected")
            gevent.sleep(0.3)
            assert not again.closed


def test_a_disconnect_that_is_rolled_back_ends_no_connection(pgbus_database: str, pgbus_bus: Bus) -> None:
    with guarded(pgbus_database) as site, watch(site, "ada") as client:
        client.next("pgbus:connected")
        with pytest.raises(ZeroDivisionError), pgbus_bus.transaction() as cursor:
            pgbus_bus.disconnect("ada", using=cursor)
            raise ZeroDivisionError
        gevent.sleep(0.3)
        assert not client.closed


def test_a_revocation_is_found_without_listen(pgbus_database: str, pgbus_bus: Bus) -> None:
    with guarded(pgbus_database, wake="poll") as site, watch(site, "ada") as client:
        client.next("pgbus:connected")
        pgbus_bus.disconnect("ada")
        assert reason(client) == "revoked"


def test_a_revocation_while_the_listener_was_away_is_found_when_it_is_back(pgbus_database: str, pgbus_bus: Bus) -> None:
    with guarded(pgbus_database, catch_up_interval=60) as site, watch(site, "ada") as client:
        client.next("pgbus:connected")
        listener = site.instance.tasks["listener"]
        listener.stop(1.0)
        pgbus_bus.disconnect("ada")
        listener.start()
        assert reason(client) == "revoked"


def test_a_worker_ignores_revocations_older_than_itself(pgbus_database: str, pgbus_bus: Bus) -> None:
    pgbus_bus.disconnect("ada")
    with guarded(pgbus_database) as site, watch(site, "ada") as client:
        client.next("pgbus:connected")
        pgbus_bus.disconnect("bob")
        gevent.sleep(0.3)
        assert not client.closed


def test_a_revocation_before_the_first_read_of_a_worker_is_not_lost(
    pgbus_database: str, pgbus_bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, may_read = Queries.revocations, Event()

    def late(*given: Any, **named: Any) -> Any:
        may_read.wait(PATIENCE)
        return read(*given, **named)

    monkeypatch.setattr(Queries, "revocations", late)
    with guarded(pgbus_database, connect_timeout=0.5) as site, watch(site, "ada") as client, watch(site, "bob") as bob:
        client.next("pgbus:connected")
        bob.next("pgbus:connected")
        pgbus_bus.disconnect("ada")
        may_read.set()
        assert reason(client) == "revoked"
        assert not bob.closed


@pytest.mark.parametrize("owner", ["", None, 7, "a\0b"])
def test_an_invalid_owner_is_refused(pgbus_bus: Bus, owner: Any) -> None:
    with pytest.raises(InvalidArgument, match="owner is a text"):
        pgbus_bus.disconnect(owner)


def test_sql_refuses_an_empty_owner(pgbus_database: str) -> None:
    connection = connect_to(pgbus_database, application_name="x", connect_timeout=5.0, statement_timeout=5.0)
    try:
        with pytest.raises(Exception, match="bad owner"), connection.cursor() as cursor:
            cursor.execute("select pgbus.disconnect('')")
    finally:
        connection.close()


def test_the_command_disconnects_an_owner(pgbus_database: str) -> None:
    with guarded(pgbus_database) as site, watch(site, "ada") as client:
        client.next("pgbus:connected")
        command = [sys.executable, "-m", "pgbus_gevent", "disconnect", "ada", "--database-url", pgbus_database]
        done = gevent.subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert reason(client) == "revoked"


# rechecks


def test_a_connection_that_a_recheck_refuses_is_closed(pgbus_database: str) -> None:
    allowed = {"ada", "bob"}
    asked: list[str] = []

    def authorize(environ: Any, stream: str) -> bool | Subscriber:
        owner = environ["HTTP_X_OWNER"]
        asked.append(stream)
        return Subscriber(owner) if owner in allowed else False

    with running_site(pgbus_database, public=("*",), recheck=0.2) as site:
        site.app = StreamApp(site.instance, authorize)
        with watch(site, "ada") as ada, watch(site, "bob") as bob:
            ada.next("pgbus:connected")
            bob.next("pgbus:connected")
            until(lambda: len(asked) > 6, "both are checked again")
            assert not ada.closed and not bob.closed
            allowed.discard("ada")
            assert reason(ada) == "revoked"
            assert not bob.closed


def test_a_hook_that_raises_in_a_recheck_closes_no_connection(
    pgbus_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    broken: list[bool] = []

    def authorize(environ: Any, stream: str) -> bool:
        if broken:
            raise DatabaseError("away")
        return True

    with running_site(pgbus_database, public=("*",), recheck=0.1) as site:
        site.app = StreamApp(site.instance, authorize)
        with watch(site, "ada") as client:
            client.next("pgbus:connected")
            broken.append(True)
            until(lambda: "raised when it was asked again" in caplog.text, "the hook was asked again")
            gevent.sleep(0.2)
            assert not client.closed


# rows written by hand


def test_invalid_rows_written_by_hand_are_delivered_to_no_client(
    pgbus_database: str, pgbus_bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    broken = [
        ("", None, None),  # no filter can be registered under this label
        (None, "x\nid: 5\ndata: injected\n\ndata: ", None),
        (None, "pgbus:shutdown", None),
        (None, "a\rb", None),
        ("not-registered", None, None),
    ]
    with guarded(pgbus_database) as site, watch(site, "ada") as live:
        live.next("pgbus:connected")
        with session(pgbus_database) as connection:
            for visible_to, event, exclude in broken:
                run(
                    connection,
                    "insert into pgbus.messages (stream, msg_id, event, data, visible_to, exclude)"
                    " values ('orders', nextval('pgbus.message_ids'), %s, 'secret', %s, %s)",
                    event, visible_to, exclude,
                )  # fmt: skip
        pgbus_bus.stream("orders").broadcast("for all")
        assert live.next().data == "for all"
        with StreamClient(site.url, "/pgbus/streams/orders?since=0", headers={"X-Owner": "ada"}) as replayed:
            assert replayed.next().data == "for all"
        for client in (live, replayed):
            assert [frame.data for frame in client.messages] == ["for all"]
            assert b"secret" not in client.raw and b"injected" not in client.raw
    assert caplog.text.count("has an event name that broadcast() refuses") == 1
