"""An edge delivers the streams of its origin, exactly as the origin does, without a database."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from database_parts import Proxy
from edge_parts import TOKEN, edge_of, edge_settings, hop
from poll_parts import Poller
from raw_http import ask
from serve_parts import environment
from support import PATIENCE, Serving, gaps, get, received, run, serving, session, stored, until, until_messages

from pgbus_gevent.bus import Bus
from pgbus_gevent.core.client import Subscriber
from pgbus_gevent.core.filters import Filters
from pgbus_gevent.core.hop import READS
from pgbus_gevent.errors import DatabaseError, InvalidSetting, MissingSetting
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.streamer import pulse
from pgbus_gevent.streamer.instance import Instance
from pgbus_gevent.web.stream_app import StreamApp

URL = "postgresql://h/d"


@pytest.fixture
def origin(pgbus_settings: Settings) -> Iterator[Serving]:
    with serving(pgbus_settings, worker_token=TOKEN) as found:
        yield found


@pytest.fixture
def edge(pgbus_settings: Settings, origin: Serving) -> Iterator[Serving]:
    with edge_of(pgbus_settings, origin.url) as found:
        yield found


def streams_at(origin: Serving) -> int:
    """How many streams the edges of an origin follow."""
    return sum(len(tap) for tap in origin.instance.board.taps)


def test_a_poll_at_an_edge_is_answered_as_at_the_origin(origin: Serving, edge: Serving, pgbus_bus: Bus) -> None:
    orders = pgbus_bus.stream("orders")
    orders.broadcast("before")
    here, there = (Poller(each.url, "/pgbus/streams/orders", cursor=0) for each in (edge, origin))
    assert here.ask(30)["messages"] == there.ask(30)["messages"]
    waits = [each.start(60) for each in (here, there)]
    until(lambda: all(len(each.instance.registry) for each in (edge, origin)), "both wait")
    orders.broadcast("now", event="e")
    assert len({str(each.get(timeout=PATIENCE)["messages"]) for each in waits}) == 1
    assert here.data == there.data == ["before", "now"] and here.cursor == there.cursor


def test_messages_pass_through_exactly_as_the_origin_sends_them(origin: Serving, edge: Serving, pgbus_bus: Bus) -> None:
    orders = pgbus_bus.stream("orders")
    orders.broadcast("before")
    here, there = edge.live("orders", since=0), origin.live("orders", since=0)
    orders.broadcast("two\nlines", event="order.paid")
    orders.broadcast("crlf\r\nand \u2028 and \r")
    orders.broadcast("")
    orders.broadcast("x" * 300_000)
    orders.broadcast_many([str(n) for n in range(50)])
    for client in (here, there):
        until_messages(client, 55)
    assert [(each.id, each.event, each.data) for each in here.messages] == [
        (each.id, each.event, each.data) for each in there.messages
    ]


def test_a_client_resumes_at_the_edge_from_a_cursor_of_the_origin_and_back(
    origin: Serving, edge: Serving, pgbus_bus: Bus, pgbus_database: str
) -> None:
    orders = pgbus_bus.stream("orders")
    client = origin.live("orders")
    for n in range(30):
        orders.broadcast(str(n))
        if n % 5 == 4:
            client.drop()
            client.url = edge.url if client.url == origin.url else origin.url
            orders.broadcast(f"{n} while away")
            client.resume()
    with session(pgbus_database) as connection:
        until_messages(client, 36)
        assert received(client) == stored(connection, "orders")
    assert gaps(client) == []


def test_an_ephemeral_message_sent_right_after_the_greeting_arrives_once(edge: Serving, pgbus_bus: Bus) -> None:
    for n in range(20):
        stream = pgbus_bus.stream(f"fresh:{n}")
        client = edge.live(f"fresh:{n}")
        stream.broadcast(f"hint {n}", ephemeral=True)
        stream.broadcast("y" * 100_000, ephemeral=True)
        stream.broadcast("end")
        until(lambda client=client: len(client.messages) >= 3, "all three arrive")
        assert sorted(len(each.data) for each in client.messages) == [3, 6 + (n > 9), 100_000]


def test_the_right_people_see_a_message_and_its_publisher_does_not(
    origin: Serving, pgbus_settings: Settings, pgbus_bus: Bus
) -> None:
    filters = Filters(lambda: 0.0)
    filters.register("admins", lambda context, stream: context == "admin")

    def authorize(environ: Any, stream: str) -> Subscriber:
        return Subscriber(owner="ada", context=environ.get("HTTP_X_ROLE"))

    with edge_of(pgbus_settings, origin.url, parts={"filters": filters}) as edge:
        edge.server.app = StreamApp(edge.instance, authorize)
        admin, guest = edge.live("orders", headers={"X-Role": "admin"}), edge.live("orders")
        mine = json.loads(guest.frames[0].data)["connectionId"]
        orders = pgbus_bus.stream("orders")
        orders.broadcast("secret", visible_to="admins")
        orders.broadcast("nobody", visible_to="a label that only the origin knows")
        orders.broadcast("hint", visible_to="admins", ephemeral=True)
        orders.broadcast("not to the guest", exclude=mine)
        orders.broadcast("to all")
        until_messages(admin, 4)
        until_messages(guest, 1)
        assert sorted(each.data for each in admin.messages) == ["hint", "not to the guest", "secret", "to all"]
        assert [each.data for each in guest.messages] == ["to all"]


def test_disconnect_ends_the_connections_of_an_owner_at_the_edge(
    origin: Serving, edge: Serving, pgbus_bus: Bus
) -> None:
    edge.server.app = StreamApp(edge.instance, lambda environ, stream: Subscriber(owner=environ["HTTP_X_OWNER"]))
    ada, bob = (edge.live("orders", headers={"X-Owner": name}) for name in ("ada", "bob"))
    # A revocation that is in the first read is older than every connection, so it ends none.
    until(lambda: edge.instance.revocations._mark, "the edge has read the revocations", PATIENCE)
    pgbus_bus.disconnect("ada")
    until(lambda: ada.closed, "ada's connection ends")
    assert json.loads(ada.frames[-1].data) == {"reason": "revoked"}
    pgbus_bus.stream("orders").broadcast("on")
    until_messages(bob, 1)


def test_signed_names_are_verified_at_the_edge(edge: Serving, pgbus_settings: Settings, pgbus_bus: Bus) -> None:
    edge.server.app = StreamApp(edge.instance)
    private = edge.client(pgbus_bus.sign("private"))
    private.next("pgbus:connected", timeout=PATIENCE)
    pgbus_bus.stream("private").broadcast("for the holder")
    assert private.next(timeout=PATIENCE).data == "for the holder"
    assert get(edge.url, f"/pgbus/streams/{pgbus_bus.sign('private', expires_in=0.01)}x").status == 404

    def expired() -> list[str]:
        """Return the data of all frames of a connection whose name expires; none if it has expired before the connection begins."""
        short = edge.client(pgbus_bus.sign("private", expires_in=1.5))
        until(lambda: short.closed, "the connection ends when the name expires")
        return [frame.data for frame in short.frames]

    assert json.loads(until(expired, "it connects in time")[-1]) == {"reason": "expired"}


def test_one_connection_and_one_set_of_streams_for_many_clients(origin: Serving, edge: Serving, pgbus_bus: Bus) -> None:
    clients = [edge.live(f"many:{n % 40}") for n in range(120)]
    until(lambda: len(origin.instance.board.taps) == 1, "one connection is left", PATIENCE)
    assert streams_at(origin) == 40
    pgbus_bus.stream("many:7").broadcast("seven")
    for client in clients[7::40]:
        until_messages(client, 1)
    assert sum(len(client.messages) for client in clients) == 3


def test_messages_that_were_pruned_at_the_origin_are_a_gap_at_the_edge(
    origin: Serving, edge: Serving, pgbus_bus: Bus, pgbus_database: str
) -> None:
    ids = [pgbus_bus.stream("orders").broadcast(str(n)) for n in range(6)]
    with session(pgbus_database) as connection:
        old = "update pgbus.messages set created_at = created_at - interval '1 day' where msg_id <= %s"
        run(connection, old, ids[3])
        run(connection, "select pgbus.prune(array['orders'], array['1 hour'::interval])")
    for serving_one in (origin, edge):
        client = serving_one.client("orders", since=ids[0])
        until(lambda client=client: gaps(client), "it is told of the gap")
        until_messages(client, 2)
        assert [each.data for each in client.messages] == ["4", "5"]
        expected = {
            "stream": "orders",
            "requestedId": ids[0],
            "oldestId": ids[4],
            "lastId": ids[5],
            "reason": "expired",
        }
        assert gaps(client) == [expected]


def test_a_rewound_database_is_a_gap_at_the_edge_as_at_the_origin(
    origin: Serving, edge: Serving, pgbus_bus: Bus, pgbus_database: str
) -> None:
    here, there = edge.live("orders"), origin.live("orders")
    ids = [pgbus_bus.stream("orders").broadcast(each) for each in "abcde"]
    for client in (here, there):
        until_messages(client, 5)
    with session(pgbus_database) as connection:
        run(connection, "delete from pgbus.messages where msg_id > %s", ids[2])
        for client in (here, there):
            until(lambda client=client: gaps(client), "it is told of the gap", PATIENCE)
            until_messages(client, 8)
        assert gaps(here) == gaps(there)
        assert gaps(here)[0]["reason"] == "ahead"
        new = pgbus_bus.stream("orders").broadcast("f")
        for client in (here, there):
            until(lambda client=client: client.last_id == str(new), "it goes on")
        assert received(here)[-4:] == stored(connection, "orders")


def test_publishing_at_an_edge_is_refused_with_the_reason(edge: Serving) -> None:
    found = ask(edge.server.port, "/pgbus/streams/orders", "POST", b"x")
    assert (found.status, found.body) == (
        403,
        b"this server is an edge, which only delivers: broadcast at its origin\n",
    )


def test_an_edge_needs_a_worker_token_and_keeps_no_presence(pgbus_settings: Settings) -> None:
    with pytest.raises(MissingSetting, match="PGBUS_WORKER_TOKEN"):
        Instance(edge_settings(pgbus_settings, "http://127.0.0.1:1", worker_token=()))
    with pytest.raises(InvalidSetting, match="an edge keeps none"):
        Instance(edge_settings(pgbus_settings, "http://127.0.0.1:1", presence=("room:*",)))
    with pytest.raises(MissingSetting, match="this process is an edge"):
        Bus(settings=edge_settings(pgbus_settings, "http://127.0.0.1:1")).stream("orders").broadcast("x")


@pytest.mark.usefixtures("starting_at_once")
def test_an_edge_with_a_wrong_token_is_not_ready_and_says_what_to_do(
    origin: Serving, pgbus_settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    settings = edge_settings(pgbus_settings, origin.url, worker_token="another-worker-token")
    with caplog.at_level(logging.WARNING), serving(settings) as edge:

        def told() -> bool:
            state = json.loads(get(edge.url, "/pgbus/readyz").body)
            return state["status"] == "unready" and "give both the same PGBUS_WORKER_TOKEN" in state["detail"]

        until(told, "it is not ready, and says why")
    assert "the origin does not serve this edge: its worker token" in caplog.text
    assert "an edge at 127.0.0.1 was refused" in caplog.text


def refused_edge(settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> str:
    """Run an edge that its origin refuses for a while, and return the detail of its readyz at the end."""
    for name, value in (("INTERVAL", 0.05), ("UNREADY_AFTER", 0.3)):
        monkeypatch.setattr(pulse, name, value)
    caplog.set_level(logging.INFO)
    with serving(settings, away_after=0.5) as edge:
        upstream = edge.instance.upstream
        assert upstream is not None
        end = monotonic() + 2.0
        until(lambda: upstream.pool.failures > 30 and monotonic() > end, "it is refused for a while", PATIENCE)

        def state() -> dict[str, str] | None:
            found: dict[str, str] = json.loads(get(edge.url, "/pgbus/readyz").body)
            assert found["status"] == "unready"
            # A process that stands still has had no answer for longer than this edge waits for one, for the moment.
            return None if "has not answered" in found["detail"] else found

        detail = until(state, "it says why", PATIENCE)["detail"]
    said = [each for each in caplog.records if "the origin does not serve this edge" in each.getMessage()]
    assert [(each.name, each.levelname) for each in said] == [("pgbus_gevent.pulse", "ERROR")]
    assert "pgbus.workers" not in caplog.text
    return str(detail)


@pytest.mark.usefixtures("starting_at_once")
def test_the_first_cause_is_shown_once_in_the_log_and_in_readyz_while_the_origin_refuses_an_edge(
    origin: Serving, pgbus_settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The origin answers 401, and 429 after ten wrong tokens."""
    settings = edge_settings(pgbus_settings, origin.url, worker_token="another-worker-token")
    detail = refused_edge(settings, monkeypatch, caplog)
    assert detail.startswith("the origin does not serve this edge: its worker token is not one of the origin's")
    assert "it answered 401" in detail


@pytest.mark.usefixtures("starting_at_once")
def test_an_edge_that_starts_when_too_many_wrong_tokens_have_come_is_told_to_check_its_token(
    origin: Serving, pgbus_settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(11):
        ask(origin.server.port, f"/pgbus{READS}", "POST", b"{}", Authorization="Bearer a-wrong-worker-token")
    settings = edge_settings(pgbus_settings, origin.url, worker_token="another-worker-token")
    detail = refused_edge(settings, monkeypatch, caplog)
    assert "it answered 429" in detail
    assert "its worker token is not one of the origin's" in detail


@pytest.mark.usefixtures("starting_at_once")
def test_an_origin_without_a_worker_token_is_named_as_the_cause(
    pgbus_settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(pgbus_settings) as origin:
        detail = refused_edge(edge_settings(pgbus_settings, origin.url), monkeypatch, caplog)
    assert "the origin takes no edges: set PGBUS_WORKER_TOKEN there" in detail


@pytest.mark.usefixtures("starting_at_once")
@pytest.mark.parametrize("starts", ["before", "meanwhile"])
def test_an_origin_whose_database_is_away_is_told_from_one_that_is_silent(
    starts: str,
    pgbus_settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name, value in (("INTERVAL", 0.1), ("UNREADY_AFTER", 1.5)):
        monkeypatch.setattr(pulse, name, value)
    caplog.set_level(logging.INFO, "pgbus_gevent.pulse")

    def detail(of: Serving) -> str:
        return str(json.loads(get(of.url, "/pgbus/readyz").body).get("detail", ""))

    def messages() -> list[str]:
        return [each.getMessage() for each in caplog.records if "the origin" in each.getMessage()]

    with ExitStack() as stack:
        proxy = Proxy(str(pgbus_settings.database_url))
        stack.callback(proxy.stop)
        origin = stack.enter_context(serving(pgbus_settings, worker_token=TOKEN, database_url=proxy.url, migrate=False))
        settings = edge_settings(pgbus_settings, origin.url)
        if starts == "before":
            edge = stack.enter_context(serving(settings))
            # On a busy machine, both may have been in doubt for a moment.
            until(lambda: edge.instance.listener.live and not detail(edge) and not detail(origin), "the edge serves")
        caplog.clear()
        proxy.dead = True
        until(lambda: "the database has not answered" in detail(origin), "the origin's database is away")
        if starts == "meanwhile":
            edge = stack.enter_context(serving(settings))
        says = r"the origin cannot serve: the database has not answered for \d+ s"
        until(lambda: re.fullmatch(says, detail(edge)), "the edge says whose fault it is")
        assert len([each for each in messages() if each.startswith("the origin cannot serve: ")]) == 1
        proxy.dead = False
        until(lambda: not detail(edge), "the edge serves again")
        until(lambda: "the origin can serve again" in messages(), "the log says so")


def test_an_edge_of_an_edge_delivers_too(
    origin: Serving, edge: Serving, pgbus_settings: Settings, pgbus_bus: Bus
) -> None:
    with edge_of(pgbus_settings, edge.url) as second:
        client = second.live("orders", since=0)
        pgbus_bus.stream("orders").broadcast("far")
        pgbus_bus.stream("orders").broadcast("hint", ephemeral=True)
        until_messages(client, 2)
        assert {each.data for each in client.messages} == {"far", "hint"}


@pytest.mark.usefixtures("starting_at_once")
def test_edges_that_name_each_other_as_origin_say_so_at_once(pgbus_settings: Settings) -> None:
    with ExitStack() as stack:
        network = stack.enter_context(hop("http://127.0.0.1:1"))
        first = stack.enter_context(serving(edge_settings(pgbus_settings, network.url)))
        second = stack.enter_context(serving(edge_settings(pgbus_settings, first.url)))
        network.targets = [second.server.port]
        for each in (first, second):
            # If the question went round and round, the answer would be that the origin did not answer in time.
            with pytest.raises(DatabaseError, match="whose own origin leads back here"):
                each.instance.database.queries.revocations()


def test_the_metrics_tell_of_the_hop(origin: Serving, edge: Serving, pgbus_bus: Bus) -> None:
    client = edge.live("orders")
    pgbus_bus.stream("orders").broadcast("x")
    until_messages(client, 1)
    until(lambda: len(origin.instance.board.taps) == 1, "one connection is left")
    at_edge, at_origin = (get(each.url, "/pgbus/metrics").body.decode() for each in (edge, origin))
    for name in ("pgbus_hop_reads_total", "pgbus_hop_failures_total", "pgbus_hop_lines"):
        assert f"\n{name}" in at_edge
    assert re.search(r"^pgbus_edge_connections\{.*\} 1.0$", at_origin, re.MULTILINE)
    assert re.search(r"^pgbus_edge_streams\{.*\} 1.0$", at_origin, re.MULTILINE)


def test_live_messages_come_over_the_connection_and_cost_no_read(
    origin: Serving, pgbus_settings: Settings, pgbus_bus: Bus
) -> None:
    # A probe may see a message before it has come over the connection, and have it read. So there are few.
    with edge_of(pgbus_settings, origin.url, catch_up_interval=60.0) as edge:
        check_that_live_messages_cost_no_read(edge, pgbus_bus)


def check_that_live_messages_cost_no_read(edge: Serving, pgbus_bus: Bus) -> None:
    client = edge.live("orders")
    upstream = edge.instance.upstream
    assert upstream is not None
    # One follows the first client.
    until(lambda: upstream.queries.counts["moved"] and not upstream.pool.in_use, "the first probe is over", PATIENCE)
    before = upstream.queries.counts["pages"] + upstream.queries.counts["openings"]
    for n in range(60):
        pgbus_bus.stream("orders").broadcast(str(n))
    until_messages(client, 60)
    # A message that overtakes the answer to the first read of the stream costs one more read, however many follow.
    assert upstream.queries.counts["pages"] + upstream.queries.counts["openings"] <= before + 1


def test_messages_come_while_a_new_stream_waits_for_its_connection(
    origin: Serving, pgbus_settings: Settings, pgbus_bus: Bus
) -> None:
    with hop(origin.url) as network, edge_of(pgbus_settings, network.url) as edge:
        client = edge.live("orders")
        network.opens.clear()
        late = edge.client("another", since=0)
        until(lambda: network.waiting, "the connection for it is being opened")
        for n in range(10):
            pgbus_bus.stream("orders").broadcast(str(n))
            pgbus_bus.stream("orders").broadcast(f"hint {n}", ephemeral=True)
            assert {client.next(timeout=PATIENCE).data for _ in range(2)} == {str(n), f"hint {n}"}
        assert not late.frames
        network.opens.set()
        late.next("pgbus:connected", timeout=PATIENCE)
        pgbus_bus.stream("another").broadcast("x")
        assert late.next(timeout=PATIENCE).data == "x"
        assert edge.instance.listener.reconnects == 0


def test_the_console_and_the_metrics_of_an_edge_show_its_own_connections(
    origin: Serving, pgbus_settings: Settings
) -> None:
    operator = "operator-token-of-the-edge"
    with edge_of(pgbus_settings, origin.url, operator_token=operator) as edge:
        edge.live("orders")
        headers = {"Authorization": f"Bearer {operator}"}
        found = json.loads(get(edge.url, "/pgbus/console/connections", **headers).body)
        assert [row["streams"] for row in found["rows"]] == [["orders"]]
        until(lambda: edge.instance.database.fleet.workers(), "the edge has a row of its own", PATIENCE)
        [row] = edge.instance.database.fleet.with_samples()
        assert (row.id, row.facts["service"]) == (edge.instance.roll_call.id, edge.instance.roll_call.service)
        assert get(edge.url, "/pgbus/console/retained?stream=orders", **headers).status == 503
        wrong = {"Authorization": "Bearer another-operator-token"}
        assert get(edge.url, "/pgbus/metrics", **wrong).status == 401
        assert get(edge.url, "/pgbus/metrics?hosts=all", **headers).status == 200


def test_serve_names_the_origin_and_refuses_a_database_beside_it(origin: Serving, tmp_path: Path) -> None:
    upstream = f"{origin.url}/pgbus"
    with running_program(tmp_path, "--upstream", upstream, PGBUS_WORKER_TOKEN=TOKEN, PGBUS_SECRET="s" * 16) as program:
        assert program.stdout is not None
        line = program.stdout.readline()
        found = re.fullmatch(rf"pgbus_gevent serves (http://127\.0\.0\.1:\d+)/ origin {upstream} pid \d+\n", line)
        assert found is not None, line
        assert get(found[1], "/").body == b"This is an edge of pgbus-gevent. It serves the streams of its origin.\n"
    with running_program(tmp_path, "--upstream", upstream, "--database-url", "postgresql://h/d") as program:
        assert program.wait(PATIENCE) == 2
        assert "an edge has no database: leave out --database-url, or --upstream" in (tmp_path / "log").read_text()


def test_serve_names_the_variable_and_the_file_from_which_a_database_and_an_origin_come(tmp_path: Path) -> None:
    file = tmp_path / "pgbus.toml"
    file.write_text('upstream = "http://127.0.0.1:1/pgbus"\n')
    with running_program(tmp_path, "--config", str(file), PGBUS_REPLICA_URL=URL, PGBUS_DATABASE_URL=URL) as program:
        assert program.wait(PATIENCE) == 2
    said = f"an edge has no database: leave out PGBUS_DATABASE_URL, or upstream in {file}\n"
    assert (tmp_path / "log").read_text().endswith(said)


@contextmanager
def running_program(folder: Path, *flags: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """Run ``serve`` as an edge, and end it with SIGTERM."""
    command = [sys.executable, "-m", "pgbus_gevent.serve", "--port", "0", *flags]
    environ = environment(DATABASE_URL="postgresql://elsewhere/ignored", **variables)
    with (
        open(folder / "log", "w") as log,
        subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=log, text=True) as program,
    ):
        try:
            yield program
        finally:
            program.terminate()
            program.wait(PATIENCE)
