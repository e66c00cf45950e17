"""Presence from end to end: browsers come, reload and go, and workers stop, restart, or are killed."""

from __future__ import annotations

import html
import json
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gevent
import pytest
from page_parts import block_of
from program_parts import Program, program
from raw_http import ask
from streamer_parts import seat
from support import PATIENCE, Serving, run, serving, session, until

from pgbus_gevent.bus import Bus
from pgbus_gevent.core.client import Subscriber
from pgbus_gevent.core.names import PublicNames
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.streamer import presence
from pgbus_gevent.streamer.instance import Instance
from pgbus_gevent.streamer.presence import PresenceKeeper
from pgbus_gevent.testing.client import StreamClient
from pgbus_gevent.web.stream_app import StreamApp

GRACE = 1.0
ROOM = "room:1"

Serve = Callable[..., Serving]


def app(instance: Instance) -> StreamApp:
    """Return an application whose authorize hook believes the headers of a request."""

    def authorize(environ: dict[str, Any], stream: str) -> Subscriber:
        member = environ.get("HTTP_X_MEMBER")
        return Subscriber(member=member, context={"presence": {"name": f"name of {member}"}})

    return StreamApp(instance, authorize=authorize)


@pytest.fixture
def serve(pgbus_settings: Settings) -> Iterator[Serve]:
    """Starts workers, which share a database."""
    with ExitStack() as stack:

        def one(**changes: Any) -> Serving:
            changes = {"presence": ("room:*",), "presence_grace": GRACE, "presence_ttl": 30.0, **changes}
            return stack.enter_context(serving(pgbus_settings, app=app, **changes))

        yield one


def come(worker: Serving, member: str, stream: str = ROOM) -> StreamClient:
    return worker.live(stream, headers={"X-Member": member})


def news(client: StreamClient) -> list[tuple[str, str, int]]:
    """Return op, member and count of each announcement that a client got."""
    changes = [(one, told["count"]) for told in announcements(client) for one in told.get("members", [told])]
    return [(one["op"], one["member"], count) for one, count in changes if "member" in one]


def announcements(client: StreamClient) -> list[dict[str, Any]]:
    return [json.loads(frame.data) for frame in client.messages if frame.event == "presence"]


def names(bus: Bus, stream: str = ROOM) -> list[str]:
    return [member.member for member in bus.stream(stream).presence.members()]


def test_browsers_see_one_another_come_and_go(serve: Serve, pgbus_bus: Bus) -> None:
    worker = serve()
    ada = come(worker, "ada")
    # A client may or may not get its own arrival, depending on which is first, so clients ask for the members once connected.
    until(lambda: names(pgbus_bus) == ["ada"], "ada is there")
    tabs = [come(worker, "max") for _ in range(2)]
    until(lambda: ("join", "max", 2) in news(ada), "ada sees max come")
    until(lambda: pgbus_bus.stream(ROOM).presence.members()[1].connections == 2, "both tabs are there")
    frame = ada.messages[-1]
    assert frame.id is None
    assert json.loads(frame.data)["metadata"] == {"name": "name of max"}
    tabs[0].close()
    gevent.sleep(2 * GRACE)
    assert names(pgbus_bus) == ["ada", "max"]
    tabs[1].close()
    until(lambda: ("leave", "max", 1) in news(ada), "ada sees max go")
    assert names(pgbus_bus) == ["ada"]
    assert [one for one in news(ada) if one[1] == "max"] == [("join", "max", 2), ("leave", "max", 1)]


def test_a_reload_is_no_event_at_whichever_worker_it_ends(serve: Serve, pgbus_bus: Bus, pgbus_database: str) -> None:
    # The grace is over when the test says so, because a reload may take long on a busy machine.
    workers = [serve(presence_grace=60.0), serve(presence_grace=60.0)]
    follower = workers[0].live(ROOM)
    come(workers[0], "ada")
    tab = come(workers[0], "max")
    until(lambda: len(news(follower)) == 2, "both have come")
    for n in range(1, 5):
        tab.close()
        tab = come(workers[n % 2], "max")
    keepers = [worker.instance.presence for worker in workers]
    until(lambda: sum(map(len, keepers)) == 2 and all(keeper.settled for keeper in keepers), "the old tabs have left")
    with session(pgbus_database) as connection:
        run(connection, "update pgbus.presence set expires_at = clock_timestamp() where leaving")
        until(lambda: not run(connection, "select from pgbus.presence where leaving"), "their leases are removed")
    # Announcements arrive in their order, so whatever was announced by now has come before this one.
    pgbus_bus.stream(ROOM).presence.join("zoe")
    until(lambda: ("join", "zoe", 3) in news(follower), "the next news comes")
    pgbus_bus.stream(ROOM).presence.leave("zoe")
    assert [one[:2] for one in news(follower) if one[1] != "zoe"] == [("join", "ada"), ("join", "max")]
    assert sorted(names(pgbus_bus)) == ["ada", "max"]


def test_a_connection_to_another_stream_or_without_a_name_is_no_member(serve: Serve, pgbus_bus: Bus) -> None:
    worker = serve()
    come(worker, "ada", "orders")
    worker.live(ROOM)
    come(worker, "max")
    until(lambda: names(pgbus_bus) == ["max"], "max is there")
    assert names(pgbus_bus, "orders") == []


def test_a_member_that_an_application_joins_is_announced_to_browsers(serve: Serve, pgbus_bus: Bus) -> None:
    worker = serve(presence=())
    client = worker.live("orders")
    orders = pgbus_bus.stream("orders").presence
    orders.ttl = 0.3
    orders.join("bot")
    until(lambda: news(client) == [("join", "bot", 1), ("leave", "bot", 0)], "it comes, and expires")


def test_a_worker_that_restarts_does_not_make_members_flicker(
    serve: Serve, pgbus_bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        presence, "RESTART_GRACE", 60.0
    )  # the test may take longer than the ten seconds on a busy machine
    stays, stops = serve(), serve()
    follower = stays.live(ROOM)
    come(stays, "ada")
    max_ = come(stops, "max")
    until(lambda: len(news(follower)) == 2, "both have come")
    stops.instance.shutdown()
    until(lambda: max_.closed, "max is sent away")
    gevent.sleep(2 * GRACE)  # longer than a reload may take
    come(stays, "max")
    gevent.sleep(GRACE)
    assert len(news(follower)) == 2 and sorted(names(pgbus_bus)) == ["ada", "max"]


def test_ghosts_of_a_worker_that_was_killed_leave_once(serve: Serve, pgbus_bus: Bus, pgbus_database: str) -> None:
    workers = [serve(), serve()]
    clients = [come(worker, f"ada{n}") for n, worker in enumerate(workers)]
    until(lambda: len(names(pgbus_bus)) == 2, "both have come")
    with session(pgbus_database) as connection:  # stands for a worker: it joins, and is not heard of again
        run(connection, "select pgbus.presence_join(%s, 'ghost', '{}', 'c1', interval '0.3 seconds')", ROOM)
    until(lambda: all(("leave", "ghost", 2) in news(client) for client in clients), "the ghost leaves")
    gevent.sleep(0.5)
    assert [sum(one[:2] == ("leave", "ghost") for one in news(client)) for client in clients] == [1, 1]


def test_members_that_come_at_once_at_two_workers_are_each_announced_once(serve: Serve, pgbus_bus: Bus) -> None:
    workers = [serve(), serve()]
    follower = workers[0].live(ROOM)
    for n in range(60):
        workers[n % 2].client(ROOM, headers={"X-Member": f"m{n}"})
    until(lambda: len(names(pgbus_bus)) == 60, "all are there")
    until(lambda: len(news(follower)) >= 60, "all are announced")
    gevent.sleep(0.3)
    assert sorted(news(follower), key=lambda one: one[2]) == news(follower)
    assert sorted(member for _, member, _ in news(follower)) == sorted(names(pgbus_bus))
    assert {op for op, *_ in news(follower)} == {"join"}


def test_what_a_worker_that_died_did_not_announce_is_announced_by_the_steward(
    serve: Serve, pgbus_bus: Bus, pgbus_database: str
) -> None:
    stays, dies = serve(), serve()
    follower = stays.live(ROOM)
    pgbus_bus.database.presence.record([(ROOM, f"m{n}", "c", "{}") for n in range(30)], ttl=60.0, grace=0.0)
    until(lambda: len(news(follower)) == 30, "the crowd is announced")
    with session(pgbus_database) as connection:
        run(
            connection,
            "create or replace function pgbus._presence_pause(members bigint) returns interval"
            " language sql immutable parallel safe return interval '1 hour'",
        )
        come(dies, "ada")
        until(lambda: "ada" in names(pgbus_bus), "she is written")
        dies.instance.tasks["presence"].stop(1.0)
        assert len(news(follower)) == 30
        run(connection, "update pgbus.presence_crowds set due_at = clock_timestamp()")
    until(lambda: news(follower)[30:] == [("join", "ada", 31)], "she is announced")


def test_a_large_crowd_is_counted_and_a_smaller_one_is_named_again(serve: Serve, pgbus_bus: Bus) -> None:
    client = serve().live(ROOM)
    source = pgbus_bus.database.presence
    changes = [(ROOM, f"m{n}", "c", "{}") for n in range(300)]
    source.record(changes, ttl=60.0, grace=0.0)
    until(lambda: announcements(client) == [{"count": 300}], "its number comes")
    source.record([(*change[:3], None) for change in changes[100:]], ttl=60.0, grace=0.0)
    until(lambda: announcements(client)[1:] == [{"op": "refresh", "count": 100}], "names come back")
    pgbus_bus.stream(ROOM).presence.join("ada")
    until(lambda: news(client) == [("join", "ada", 101)], "she is named")


def test_streams_go_on_while_presence_cannot_be_written(
    serve: Serve, pgbus_bus: Bus, pgbus_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    worker = serve()
    with session(pgbus_database) as connection:
        run(connection, "alter table pgbus.presence rename to elsewhere")
        ada = come(worker, "ada")
        come(worker, "max").close()
        until(lambda: worker.instance.presence.failing, "presence fails")
        pgbus_bus.stream(ROOM).broadcast("all the same")
        assert ada.next(timeout=PATIENCE).data == "all the same" and worker.instance.alive
        run(connection, "alter table pgbus.elsewhere rename to presence")
    until(lambda: names(pgbus_bus) == ["ada"], "it is made up for", timeout=2 * PATIENCE)
    assert sum("cannot write presence" in record.message for record in caplog.records) == 1


def test_a_crash_of_the_database_which_empties_the_table_is_made_up_for(
    serve: Serve, pgbus_bus: Bus, pgbus_database: str
) -> None:
    worker = serve(presence_ttl=1.5)
    come(worker, "ada")
    until(lambda: names(pgbus_bus) == ["ada"], "ada is there")
    with session(pgbus_database) as connection:
        # In one transaction, because the worker notices at any moment.
        assert run(connection, "truncate pgbus.presence; select count(*) from pgbus.presence") == [(0,)]
    until(lambda: names(pgbus_bus) == ["ada"], "ada is there again")


def test_the_lease_of_a_member_is_renewed_and_nothing_is_announced(
    serve: Serve, pgbus_bus: Bus, pgbus_database: str
) -> None:
    # The lease outlasts a worker that stands still for some seconds. It is renewed every four to five seconds.
    worker = serve(presence_ttl=15.0)
    follower = worker.live(ROOM)
    come(worker, "ada")
    until(lambda: names(pgbus_bus) == ["ada"], "ada is there")
    with session(pgbus_database) as connection:
        [(first,)] = run(connection, "select expires_at from pgbus.presence")
        until(lambda: run(connection, "select true from pgbus.presence where expires_at > %s", first), "it is renewed")
    assert names(pgbus_bus) == ["ada"] and news(follower) == [("join", "ada", 1)]


def test_thousands_of_members_come_in_a_few_statements(pgbus_bus: Bus) -> None:
    """With the part alone on a real database, one statement renews all leases, and one removes them."""
    source = pgbus_bus.database.presence
    keeper = PresenceKeeper(source, tracked=PublicNames(("*",)), ttl=30.0, grace=0.0)
    for n in range(2000):
        keeper.joined(seat(f"c{n}", f"room {n % 100}", f"m{n}"))
    job = gevent.spawn(keeper.run)
    try:
        until(lambda: keeper.settled, "all are written")
    finally:
        job.kill()
    assert pgbus_bus.stream("room 7").presence.count() == 20
    keeper._touch()
    assert keeper.settled
    keeper.finish(60.0)
    assert [member.connections for member in pgbus_bus.stream("room 7").presence.members()] == [0] * 20


# the application of docs/presence.md, as it stands there


def log_in(one: Program, member: str) -> dict[str, str]:
    return {"Cookie": one.post(f"/login/{member}").headers["set-cookie"].partition(";")[0]}


def follow(one: Program, cookie: dict[str, str]) -> StreamClient:
    found = re.search(r'EventSource\("([^"]+)"', one.page())
    assert found is not None
    client = StreamClient(one.url, html.unescape(found[1]), headers=cookie)
    client.next("pgbus:connected", timeout=20)
    return client


def listed(one: Program, cookie: dict[str, str]) -> Any:
    return json.loads(ask(one.port, "/members", **cookie).body)


def test_the_application_in_the_documentation_and_a_worker_of_it_that_is_killed(
    tmp_path: Path, pgbus_database: str, pgbus_bus: Bus
) -> None:
    (tmp_path / "rooms.py").write_text(block_of("docs/presence.md", "rooms"))
    how: dict[str, Any] = {"database_url": pgbus_database, "cwd": tmp_path, "PGBUS_PRESENCE_TTL": "60s"}
    with program("rooms.py", **how) as stays, program("rooms.py", **how) as dies, ExitStack() as clients:
        assert ask(stays.port, "/members").status == 403
        cookies = {name: log_in(stays, name) for name in ("ada", "max", "zoe")}
        ada = clients.enter_context(follow(stays, cookies["ada"]))
        until(lambda: listed(stays, cookies["ada"]) == {"ada": {"name": "Ada"}}, "ada is there")
        clients.enter_context(follow(dies, cookies["max"]))
        zoe = clients.enter_context(follow(dies, cookies["zoe"]))
        until(lambda: {("join", "max"), ("join", "zoe")} <= {one[:2] for one in news(ada)}, "all have come")
        assert set(listed(dies, cookies["max"])) == {"ada", "max", "zoe"}

        dies.process.send_signal(signal.SIGKILL)
        until(lambda: zoe.closed, "the connection is cut")
        clients.enter_context(follow(stays, cookies["zoe"]))
        members = pgbus_bus.stream(ROOM).presence.members
        until(lambda: {one.member: one.connections for one in members()}["zoe"] == 2, "zoe is back")
        with session(pgbus_database) as connection:  # stands for the time until the leases of the dead worker end
            run(
                connection,
                "update pgbus.presence set expires_at = clock_timestamp() where member = 'max'"
                " or member = 'zoe' and connected_at = (select min(connected_at) from pgbus.presence where member = 'zoe')",
            )
        until(lambda: ("leave", "max", 2) in news(ada), "the ghost leaves")
        assert set(listed(stays, cookies["ada"])) == {"ada", "zoe"}
        assert not any(op == "leave" and member == "zoe" for op, member, _ in news(ada))
        assert stays.stop() == 0
    assert {one.connections for one in pgbus_bus.stream(ROOM).presence.members()} <= {0}
