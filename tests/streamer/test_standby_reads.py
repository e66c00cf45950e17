"""Replay, pages and probes come from a standby that lags, jumps, is promoted or is wrong, and no client notices."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from database_parts import Proxy
from psycopg2.extensions import make_dsn, parse_dsn
from support import Serving, gaps, get, holds, reasons, received, run, serving, session, since_the_gap, stored, until
from ways import Address, cut_off, kill_server, promote, standby

from pgbus_gevent.bus import Bus
from pgbus_gevent.database.patience import Patience
from pgbus_gevent.database.standby import Session
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.testing.client import StreamClient
from pgbus_gevent.testing.databases import TestDatabases

PATIENCE = 20.0
READS = "select 1 from pg_stat_activity where query like '%%pg_sleep(60)) from pgbus%%' and wait_event = 'PgSleep'"


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[TestDatabases, str]]:
    """A primary, and the URL of its standby."""
    databases = TestDatabases()
    try:
        with standby(databases.url) as url:
            yield databases, url
    finally:
        databases.close()


class Pair:
    """A database of the primary, and the same database on the standby."""

    def __init__(self, primary: str, replica: str, settings: Settings) -> None:
        self.primary, self.replica = primary, replica
        self.settings = replace(settings, database_url=primary, replica_url=replica, ring_messages=4, page_size=50)

    def on_primary(self, statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
        with session(self.primary) as connection:
            return run(connection, statement, *arguments)

    def on_standby(self, statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
        with session(self.replica) as connection:
            return run(connection, statement, *arguments)

    def stored(self, stream: str = "orders") -> list[tuple[int, str]]:
        with session(self.primary) as connection:
            return stored(connection, stream)

    def replayed(self) -> None:
        """Wait until the standby has what the primary has."""
        [(position,)] = self.on_primary("select pg_current_wal_flush_lsn()")
        until(lambda: self.on_standby("select pg_last_wal_replay_lsn() >= %s::pg_lsn", position)[0][0], "it replays")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Pause the standby's replay in the block."""
        self.on_standby("select pg_wal_replay_pause()")
        until(lambda: self.on_standby("select pg_get_wal_replay_pause_state()") == [("paused",)], "it has paused")
        try:
            yield
        finally:
            self.on_standby("select pg_wal_replay_resume()")


@pytest.fixture
def pair(cluster: tuple[TestDatabases, str], pgbus_settings: Settings) -> Pair:
    databases, other = cluster
    url = databases.make()
    found = Pair(url, str(make_dsn(other, dbname=parse_dsn(url)["dbname"])), pgbus_settings)
    with session(other) as connection:
        name = parse_dsn(url)["dbname"]
        until(lambda: run(connection, "select 1 from pg_database where datname = %s", name), "the standby has it")
    found.replayed()
    return found


def used(server: Serving) -> None:
    until(lambda: server.instance.standby_watch.fault == "", "the standby is read", PATIENCE)


def counts(server: Serving) -> dict[str, int]:
    return dict(server.instance.standby_reads.counts)


def fill(pair: Pair, count: int, stream: str = "orders") -> None:
    pair.on_primary(
        "select pgbus.broadcast_many(%s, array(select n::text from generate_series(1, %s) n))", stream, count
    )


def has_all(client: StreamClient, pair: Pair, stream: str = "orders", after: int = 0) -> None:
    expected = [message for message in pair.stored(stream) if message[0] > after]
    try:
        until(lambda: len(client.messages) >= len(expected), f"all {len(expected)} messages arrive", PATIENCE)
    finally:
        assert received(client) == expected
    assert gaps(client) == []


# what the standby serves


def test_replay_and_pages_come_from_the_standby(pair: Pair) -> None:
    fill(pair, 500)
    pair.replayed()
    # The interval is long, because sweeps ask the primary, too.
    with serving(pair.settings, catch_up_interval=60.0) as server:
        used(server)
        before = counts(server)
        clients = [server.client("orders", since=since) for since in (0, pair.stored()[100][0], 0)]
        for client, after in zip(clients, (0, pair.stored()[100][0], 0), strict=True):
            has_all(client, pair, after=after)
        after_it = counts(server)
        assert after_it["standby"] - before["standby"] >= 10, "ten pages of fifty messages"
        assert after_it["primary"] - before["primary"] <= 4, "the state of the stream, and the first sweep"


def test_readyz_and_metrics_show_the_standby(pair: Pair) -> None:
    with serving(pair.settings) as server:
        used(server)
        assert json.loads(get(server.url, "/pgbus/readyz").body)["standby"] == "used"
        metrics = get(server.url, "/pgbus/metrics").body.decode()
        assert "pgbus_standby_up" in metrics and "pgbus_standby_lag_seconds" in metrics
        assert 'pgbus_reads_by_server_total{server="standby"' in metrics
        server.instance.standby_watch.fault = "for the test"
        assert json.loads(get(server.url, "/pgbus/readyz").body)["standby"] != "used"
    with serving(replace(pair.settings, replica_url=None)) as server:
        assert "standby" not in json.loads(get(server.url, "/pgbus/readyz").body)
        assert "standby" not in get(server.url, "/pgbus/metrics").body.decode()


def test_probes_and_checks_of_rings_come_from_the_standby(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    # On a busy machine, the standby may replay later than a probe waits.
    monkeypatch.setattr("pgbus_gevent.streamer.standby_watch.PATIENCE", 10.0)
    with serving(pair.settings, catch_up_interval=0.1) as server:
        used(server)
        server.live("orders")
        fill(pair, 3)
        before = counts(server)
        until(lambda: counts(server)["standby"] >= before["standby"] + 6, "probes and checks", 3 * PATIENCE)


def test_a_message_without_a_notification_is_found_although_probes_ask_the_standby(pair: Pair) -> None:
    with serving(pair.settings, wake="poll", catch_up_interval=1.0) as server:
        used(server)
        client = server.live("orders")
        for n in range(5):
            fill(pair, 1)
            until(lambda n=n: len(client.messages) == n + 1, "it arrives")
        has_all(client, pair)


# a standby that lags


def test_a_standby_that_has_stopped_hides_nothing(pair: Pair) -> None:
    fill(pair, 300)
    pair.replayed()
    with serving(pair.settings, wake="poll", catch_up_interval=0.5) as server:
        used(server)
        live = server.live("orders")
        with pair.paused():
            fill(pair, 300)
            until(lambda: len(live.messages) == 300, "what is new", PATIENCE)
            # A stream that the standby does not know, and clients that start above, at and below its end.
            fill(pair, 100, "unknown")
            known = pair.stored()
            clients = [(server.client("orders", since=after), after) for after in (0, known[299][0], known[450][0])]
            unknown = server.client("unknown", since=0)
            for client, after in clients:
                has_all(client, pair, after=after)
            has_all(unknown, pair, "unknown")
            newest = server.live("orders", since=known[-1][0])
            holds(lambda: not gaps(newest) and not newest.messages, "it is not ahead", 1.0)
            fill(pair, 1)
            has_all(newest, pair, after=known[-1][0])
        assert gaps(live) == []


def test_a_probe_sees_what_the_primary_has_although_replay_is_paused(pair: Pair) -> None:
    """Tails would find the message too, so the source is asked directly."""
    fill(pair, 3)
    pair.replayed()
    with serving(pair.settings, catch_up_interval=60.0) as server:
        used(server)
        server.live("orders")
        reads, known = server.instance.standby_reads, pair.stored()
        until(lambda: not server.instance.registry.log("orders").in_doubt, "the table was asked")
        before = counts(server)

        def asked_the_standby() -> bool:
            """The primary answers instead if the standby replays late, as on a busy machine, and until the next check."""
            assert reads.moved({"orders": known[-1][0]}) == (known[-1][0], {})
            return counts(server)["standby"] > before["standby"]

        until(asked_the_standby, "the standby has answered", PATIENCE)
        with pair.paused():
            fill(pair, 2)
            newest = pair.stored()[-1][0]
            assert reads.moved({"orders": known[-1][0]}) == (newest, {"orders": newest})
            server.instance.standby_watch.late = False
            ids = [id for id, _ in pair.stored()]
            assert reads.inventory([("orders", 0, newest)]) == [(0, 5, sum(ids))]


def test_a_watermark_that_the_standby_does_not_know_is_not_ahead(pair: Pair) -> None:
    with serving(pair.settings) as server:
        used(server)
        with pair.paused():
            fill(pair, 1)
            watermark = pair.stored()[-1][0]
            client = server.live("orders", since=watermark)
            fill(pair, 1)
            has_all(client, pair, after=watermark)


def test_a_standby_far_behind_is_not_used_and_the_log_says_what_to_do(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr("pgbus_gevent.core.standby.LAG_LIMIT", 1.0)
    monkeypatch.setattr("pgbus_gevent.streamer.standby_watch.INTERVAL", 0.3)
    with serving(pair.settings) as server:
        used(server)
        with pair.paused():
            until(lambda: "behind" in server.instance.standby_watch.fault, "it is given up", PATIENCE)
            assert server.instance.standby_watch.lag > 1.0
            assert len([one for one in caplog.messages if "pg_wal_replay_resume" in one]) == 1
        used(server)
        assert "reading from the standby again" in caplog.messages


def test_a_commit_that_only_the_standby_shows_rewinds_nothing(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    """With synchronous replication, a standby shows a commit before the primary does. Here, the primary waits for nobody."""
    fill(pair, 20)
    pair.replayed()
    known = pair.stored()
    with serving(pair.settings, catch_up_interval=0.5) as server:
        used(server)
        live = server.live("orders")
        pair.on_primary("alter system set synchronous_standby_names = 'nobody'")
        pair.on_primary("select pg_reload_conf()")
        until(lambda: pair.on_primary("show synchronous_standby_names") == [("nobody",)], "it has read that")
        both = "select pgbus.broadcast('orders', 'x'), pgbus.broadcast('new', 'x')"
        publisher = gevent.spawn(pair.on_primary, both)
        try:
            until(lambda: pair.on_standby("select count(*) from pgbus.messages") == [(22,)], "the standby shows both")
            assert pair.on_primary("select count(*) from pgbus.messages") == [(20,)]
            used(server)
            clients = [server.live("orders", since=0), server.live("new", since=0)]
            until(lambda: len(clients[0].messages) == 20, "what the primary has")
            before = server.instance.reader.reads
            holds(lambda: len(clients[0].messages) == 20 and not clients[1].messages, "no more than that", 1.5)
            assert server.instance.reader.reads - before < 20, "it does not spin"
        finally:
            pair.on_primary("alter system reset synchronous_standby_names")
            pair.on_primary("select pg_reload_conf()")
        publisher.get(timeout=PATIENCE)
        has_all(clients[0], pair)
        has_all(clients[1], pair, "new")
        has_all(live, pair, after=known[-1][0])
        assert "lost messages" not in caplog.text


def test_a_new_log_does_not_begin_with_the_head_of_a_late_standby(pair: Pair) -> None:
    fill(pair, 10)
    pair.replayed()
    with serving(pair.settings) as server:
        used(server)
        with pair.paused():
            fill(pair, 5)
            after = pair.stored()[-3][0]
            client = server.live("orders", since=after)
            has_all(client, pair, after=after)
            assert not gaps(client)


def test_a_page_of_the_standby_that_ends_early_is_continued_by_the_primary(pair: Pair) -> None:
    fill(pair, 120)
    pair.replayed()
    with serving(pair.settings) as server:
        used(server)
        server.live("orders")
        with pair.paused():
            fill(pair, 120)
            client = server.client("orders", since=pair.stored()[60][0])
            has_all(client, pair, after=pair.stored()[60][0])


def test_messages_that_only_the_primary_has_pruned_are_still_sent_or_reported_once(pair: Pair) -> None:
    fill(pair, 200)
    pair.replayed()
    with serving(pair.settings, prune_interval=0) as server:
        used(server)
        live = server.live("orders")
        first = pair.stored()[0][0]
        with pair.paused():
            pair.on_primary("delete from pgbus.messages where stream = 'orders' and msg_id <= %s", first + 99)
            pair.on_primary("insert into pgbus.horizons (stream, msg_id) values ('orders', %s)", first + 99)
            fill(pair, 10)
            until(lambda: len(live.messages) == 10, "what is new")
            client = server.client("orders", since=first)
            last = pair.stored()[-1]
            until(lambda: received(client)[-1:] == [last], "it gets the end", PATIENCE)
            ids = [id for id, _ in received(client)]
            assert ids == sorted(set(ids))
            assert len(gaps(client)) + (ids[0] == first + 1) == 1, "it got everything, or was told"
    assert gaps(live) == []


# a standby that is lost, or wrong


def test_a_standby_that_is_cut_off_delays_nobody_for_long(pair: Pair) -> None:
    fill(pair, 200)
    pair.replayed()
    proxy = Proxy(pair.replica)
    try:
        with serving(replace(pair.settings, replica_url=proxy.url)) as server:
            used(server)
            has_all(server.client("orders", since=0), pair)
            proxy.dead = True
            has_all(server.client("orders", since=0), pair)
            until(lambda: server.instance.standby_watch.fault, "it is noticed", PATIENCE)
            assert server.instance.unready is None
            reads, asked = server.instance.standby_reads, 0
            standby = reads._standby

            @contextmanager
            def lend() -> Iterator[Session]:
                nonlocal asked
                asked += 1
                with standby.session() as session:
                    yield session

            reads._standby = SimpleNamespace(session=lend)
            has_all(server.client("orders", since=0), pair)
            assert asked == 0, "nobody waits for a standby that is known to be silent"
            reads._standby = standby
            proxy.dead = False
            used(server)
            has_all(server.client("orders", since=0), pair)
    finally:
        proxy.stop()


@pytest.mark.parametrize("wrong", ["another database", "the primary", "nothing"])
def test_a_wrong_url_is_noticed_and_the_primary_is_read(
    wrong: str, pair: Pair, pgbus_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    fill(pair, 100)
    url = {"another database": pgbus_database, "the primary": pair.primary, "nothing": "postgresql://127.0.0.1:1/x"}[
        wrong
    ]
    with serving(replace(pair.settings, replica_url=url)) as server:
        until(lambda: "instead of the standby" in caplog.text, "it is logged", PATIENCE)
        has_all(server.client("orders", since=0), pair)
        assert counts(server)["standby"] == 0
        assert server.instance.unready is None
    expected = "does not answer" if wrong == "nothing" else "is not a standby"
    assert [one for one in caplog.messages if "instead of the standby" in one and expected in one]


def test_a_read_that_conflicts_with_replay_leaves_the_standby_in_use(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    pair.on_standby("alter system set max_standby_streaming_delay = '100ms'")
    pair.on_standby("select pg_reload_conf()")
    with serving(pair.settings) as server:
        used(server)
        reads, watch = server.instance.standby_reads, server.instance.standby_watch
        reads._standby._patience = Patience(60.0)  # the read lasts until it is cancelled, however late that is seen

        def slow(session: Session) -> None:
            with session.queries.pool.connection() as connection, connection.cursor() as cursor:
                cursor.execute("select count(pg_sleep(60)) from pgbus.messages m right join (select 1) one on true")

        read = gevent.spawn(reads._of_standby, slow)
        until(lambda: pair.on_standby(READS), "it reads")
        with session(pair.primary) as connection:
            run(connection, "begin")
            run(connection, "lock pgbus.messages in access exclusive mode")
            run(connection, "commit")
        assert read.get(timeout=PATIENCE) is None, "the primary is asked"
        assert watch.fault == ""
        [warning] = [one for one in caplog.messages if "hot_standby_feedback" in one]
        assert "conflict with recovery" in warning
    pair.on_standby("alter system reset max_standby_streaming_delay")
    pair.on_standby("select pg_reload_conf()")


def test_a_standby_of_another_primary_serves_nothing(
    pair: Pair, pgbus_settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """It has the same schema, and even the same messages, but another server writes its marks."""
    other = TestDatabases()
    try:
        url = other.make()
        fill(Pair(url, url, pgbus_settings), 100)
        pair.on_primary("select pgbus._mark()")
        pair.replayed()
        # Otherwise, its position alone would give it away.
        ahead = "select %s::pg_lsn < pg_last_wal_replay_lsn()"
        with session(url) as connection:
            [(position,)] = run(connection, "select pg_current_wal_insert_lsn()")
        assert pair.on_standby(ahead, position) == [(True,)]
        with serving(replace(pair.settings, database_url=url)) as server, Bus(settings=server.instance.settings) as bus:
            until(lambda: "follows another primary" in caplog.text, "it is noticed", PATIENCE)
            bus.stream("orders").broadcast("x")
            has_all(server.client("orders", since=0), Pair(url, url, pgbus_settings))
            assert counts(server)["standby"] == 0
    finally:
        other.close()


def test_a_standby_that_is_promoted_is_not_read_again(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its sessions do not end, and no check comes in between: the read itself must notice."""
    monkeypatch.setattr("pgbus_gevent.streamer.standby_watch.INTERVAL", 60.0)
    fill(pair, 100)
    with standby(pair.primary) as url:
        other = Pair(pair.primary, url, pair.settings)
        other.replayed()
        with serving(other.settings) as server:
            used(server)
            live = server.client("orders", since=0)
            has_all(live, pair)
            other.on_standby("select pg_promote()")
            other.on_standby("select pgbus.broadcast('orders', 'of another history')")
            fill(pair, 10)
            has_all(live, pair)
            has_all(server.client("orders", since=0), pair)
            assert "was promoted" in server.instance.standby_watch.fault
        assert len([one for one in caplog.messages if "was promoted" in one]) == 1


def test_a_standby_that_replays_late_serves_what_it_has(pair: Pair) -> None:
    fill(pair, 300)
    pair.replayed()
    pair.on_standby("alter system set recovery_min_apply_delay = '2s'")
    pair.on_standby("select pg_reload_conf()")
    try:
        with serving(pair.settings, catch_up_interval=0.5) as server:
            used(server)
            live = server.live("orders")
            old = pair.stored()
            for _ in range(20):
                fill(pair, 5)
                gevent.sleep(0.05)
            before = counts(server)
            has_all(server.client("orders", since=0), pair)
            assert counts(server)["standby"] > before["standby"]
            has_all(live, pair, after=old[-1][0])
    finally:
        pair.on_standby("alter system reset recovery_min_apply_delay")
        pair.on_standby("select pg_reload_conf()")


def test_a_standby_of_the_old_primary_serves_no_lost_messages_after_a_failover(
    pgbus_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One standby is promoted without the last commits. The other one, which the worker reads, still has them."""
    monkeypatch.setattr("pgbus_gevent.streamer.standby_watch.INTERVAL", 60.0)
    monkeypatch.setattr("pgbus_gevent.streamer.standby_watch._MARK_LASTS", 60.0)
    databases = TestDatabases()
    try:
        url = databases.make()
        with standby(url) as heir, standby(url) as witness:
            places = [parse_dsn(one) for one in (url, heir)]
            both = make_dsn(
                url, host=",".join(one["host"] for one in places), port=",".join(str(one["port"]) for one in places)
            )
            pair = Pair(url, witness, pgbus_settings)
            settings = replace(pair.settings, database_url=str(both), catch_up_interval=60.0)
            fill(pair, 100)
            pair.replayed()
            with serving(settings) as server, session(heir) as on_heir:
                used(server)
                live = server.client("orders", since=0)
                until(lambda: len(live.messages) == 100, "all of them")
                until(lambda: len(stored(on_heir, "orders")) == 100, "the heir has them")
                cut_off(on_heir)
                fill(pair, 60)
                until(lambda: len(live.messages) == 160, "they are delivered")
                pair.replayed()
                server.instance.standby_watch.check()
                kill_server(url)
                promote(on_heir)
                run(on_heir, "select pgbus.broadcast_many('orders', array(select 'new' from generate_series(1, 10)))")
                until(lambda: live.messages[-1].data == "new", "it goes on", PATIENCE)
                newcomer = server.client("orders", since=0)
                until(lambda: newcomer.messages and newcomer.messages[-1].data == "new", "all of it", PATIENCE)
                assert received(newcomer) == stored(on_heir, "orders")
    finally:
        databases.close()


def test_after_a_failover_a_paused_standby_of_the_new_primary_tells_nobody_of_another_loss(
    pgbus_settings: Settings,
) -> None:
    databases = TestDatabases()
    try:
        url = databases.make()
        with standby(url) as heir, session(heir) as on_heir:
            database, replica = Address(url, heir), Address(heir, heir)
            pair = Pair(database.url, replica.url, pgbus_settings)
            fill(pair, 50)
            pair.replayed()
            with serving(pair.settings, catch_up_interval=0.5) as server:
                used(server)
                live = server.client("orders", since=0)
                until(lambda: len(live.messages) == 50, "all of them", PATIENCE)
                cut_off(on_heir)
                fill(pair, 20)
                until(lambda: len(live.messages) == 70, "those that will be lost", PATIENCE)
                lost = live.messages[-1].id
                database.lead_to(heir)
                kill_server(url)
                promote(on_heir)
                until(lambda: reasons(live) == ["ahead"], "it is told", PATIENCE)
                with standby(heir) as late:
                    replica.lead_to(late)
                    fill(pair, 10)
                    pair.replayed()
                    used(server)
                    with pair.paused():
                        fill(pair, 30)
                        kept = pair.stored()
                        before = counts(server)["standby"]
                        clients = [server.client("orders", since=after) for after in (0, kept[55][0], kept[-1][0])]
                        told = server.client("orders", since=lost)
                        fill(pair, 1)
                        for client, after in zip(clients, (0, kept[55][0], kept[-1][0]), strict=True):
                            has_all(client, pair, after=after)
                        until(lambda: since_the_gap(told) == pair.stored(), "it gets everything again", PATIENCE)
                        until(lambda: since_the_gap(live) == pair.stored(), "it gets everything again", PATIENCE)
                        until(lambda: counts(server)["standby"] > before, "the standby was read", PATIENCE)
                        holds(lambda: reasons(live) == reasons(told) == ["ahead"], "they are told once", 1.5)
                        assert not any(map(gaps, clients))
            for way in (database, replica):
                way.stop()
    finally:
        databases.close()


# all at once


def test_a_ledger_while_the_standby_lags_and_jumps(pair: Pair) -> None:
    """Clients connect, resume and replay all the time. Nothing is lost, repeated, or reported as a gap."""
    streams = [f"s:{n}" for n in range(4)]
    chance = random.Random(13)
    with serving(pair.settings, catch_up_interval=0.5, ring_messages=8) as server:
        used(server)
        before = counts(server)["standby"]
        stop = False

        def publish() -> None:
            with session(pair.primary) as connection:
                for n in range(4000):
                    if stop:
                        return
                    run(connection, "select pgbus.broadcast(%s, %s)", chance.choice(streams), str(n))
                    gevent.sleep(0.004)

        def jump() -> None:
            for _ in range(6):
                with pair.paused():
                    gevent.sleep(chance.uniform(0.1, 1.0))
                gevent.sleep(chance.uniform(0.1, 0.6))

        clients = [(server.client(name, since=0), name) for name in streams for _ in range(4)]
        publisher, jumper = gevent.spawn(publish), gevent.spawn(jump)
        for _ in range(200):
            if jumper.ready():
                break
            client, _ = chance.choice(clients)
            client.drop()
            gevent.sleep(chance.uniform(0, 0.05))
            client.resume()
            clients.append((server.client(name := chance.choice(streams), since=0), name))
        jumper.get(timeout=3 * PATIENCE)
        stop = True
        publisher.get(timeout=PATIENCE)
        for client, name in clients:
            has_all(client, pair, name)
        assert counts(server)["standby"] > before + 5
