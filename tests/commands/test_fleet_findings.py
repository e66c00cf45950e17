"""What the command ``doctor`` finds about the workers together: their sessions, their steward, Redis and its relay."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import pytest
from doctor_parts import checked
from page_parts import block_of
from redis_parts import RedisServer, needs_redis, redis_cluster, redis_sentinels, redis_server
from support import Serving, free_port, run, serving, session, until, until_messages

from pgbus_gevent.bus import Bus
from pgbus_gevent.commands.finding import FAIL, OK, WARN, Finding
from pgbus_gevent.commands.findings import findings
from pgbus_gevent.database import Database
from pgbus_gevent.settings.table import Settings

pytestmark = pytest.mark.program

USER = block_of("docs/redis.md", "user").removeprefix("ACL SETUSER pgbus ")
"""The user that the page describes, as a command of Redis over several lines."""


def look(settings: Settings, **changes: Any) -> dict[str, Finding]:
    changes = {"connect_timeout": 20.0, "max_connections": 10, **changes}
    return {found.check: checked(found) for found in findings(replace(settings, **changes))}


def worker(settings: Settings, **changes: Any) -> Any:
    return serving(settings, public=("*",), **changes)


# sessions and the steward


@pytest.mark.parametrize(("wake", "wanted"), [("postgres", 2 * 6 + 1), ("poll", 2 * 5)])
def test_the_sessions_of_a_server_are_those_of_the_pools_of_the_listeners_and_of_the_steward(
    wake: str, wanted: int, pgbus_settings: Settings
) -> None:
    assert f"up to {wanted}:" in look(pgbus_settings, workers=2, pool_size=5, wake=wake)["sessions"].text


def test_besides_its_pool_a_worker_has_one_session_and_the_steward_another_one(pgbus_settings: Settings) -> None:
    with worker(pgbus_settings) as first, worker(pgbus_settings) as second:
        until(lambda: first.instance.ear.hears or second.instance.ear.hears, "the steward hears", 30)
        with session(str(pgbus_settings.database_url)) as sql:
            statement = "select application_name from pg_stat_activity where datname = current_database()"

            def others() -> list[str]:
                return [name for (name,) in run(sql, statement) if name.startswith("pgbus-") and name != "pgbus-pool"]

            # For a moment, a session may be replaced by another one.
            until(lambda: others() == ["pgbus-listen"] * 3, "there are three")


def test_the_steward_is_named_and_so_is_that_there_is_none(pgbus_settings: Settings) -> None:
    found = look(pgbus_settings)["steward"]
    assert (found.level, found.todo) == (OK, "") and "no worker runs" in found.text
    with worker(pgbus_settings):
        name = f"the worker {socket.gethostname()}, process {os.getpid()}"
        found = until(lambda: (one := look(pgbus_settings)["steward"]) and name in one.text and one, "it is named")
        assert found.level == OK and "is the steward; its last sign is" in found.text
    assert "the last one has ended" in look(pgbus_settings)["steward"].text
    database = Database(pgbus_settings)
    database.fleet.beat("w1", "web-1", 4711, 0.0, {})
    found = look(pgbus_settings)["steward"]
    assert found.level == WARN and "1 worker runs" in found.text and "pgbus.grant_server" in found.todo
    database.fleet.leave("w1")
    database.close()


def test_a_steward_that_hears_nothing_is_a_warning_unless_the_database_is_polled(pgbus_settings: Settings) -> None:
    with worker(pgbus_settings, wake="poll") as one:
        until(lambda: one.instance.steward.leads, "it is the steward", 30)
        found = look(pgbus_settings)["steward"]
        assert found.level == WARN and "hears no notifications" in found.text and "the check listen" in found.todo
        assert look(pgbus_settings, wake="poll")["steward"].level == OK


# Redis


def test_without_a_redis_in_the_settings_nothing_is_said_of_it(pgbus_settings: Settings) -> None:
    assert not {"redis", "redis-rights", "relay"} & look(pgbus_settings).keys()


def test_a_redis_that_is_away_fails_also_while_the_database_is_away(pgbus_settings: Settings) -> None:
    url = f"redis://127.0.0.1:{free_port()}"
    for found in (
        look(pgbus_settings, wake=url),
        look(pgbus_settings, wake=url, database_url=f"postgresql://nobody@127.0.0.1:{free_port()}/x"),
    ):
        assert found["redis"].level == FAIL and "PGBUS_WAKE" in found["redis"].todo
        assert "relay" not in found


@needs_redis
@pytest.mark.parametrize(
    ("login", "reason", "todo"),
    [
        ("", "NOAUTH", "give the user and the password in PGBUS_WAKE"),
        (":wrong@", "WRONGPASS", "correct the user and the password in PGBUS_WAKE"),
        ("nobody:s3cret@", "WRONGPASS", "correct the user and the password in PGBUS_WAKE"),
    ],
)
def test_a_refused_login_is_told_from_a_redis_that_is_away(
    login: str, reason: str, todo: str, pgbus_settings: Settings
) -> None:
    with redis_server("requirepass s3cret") as server:
        found = look(pgbus_settings, wake=server.url.replace("//", f"//{login}"))["redis"]
    assert found.level == FAIL and reason in found.text and todo in found.todo
    assert "s3cret" not in found.text + found.todo


def allow(server: RedisServer, *rights: str) -> None:
    """Make the user that the page describes, with these changes."""
    words = USER.replace("\\\n", " ").split()
    assert server.client.execute_command("ACL", "SETUSER", "pgbus", "reset", *words, *rights)


@needs_redis
def test_a_missing_right_is_named_and_nothing_is_changed_in_redis(pgbus_settings: Settings) -> None:
    with redis_server() as server:
        url = server.url.replace("//", "//pgbus:s3cret@")
        allow(server, "-xadd", "-hset")
        found = look(pgbus_settings, wake=url)["redis-rights"]
        assert found.level == FAIL and "docs/redis.md" in found.todo
        assert "XADD (" in found.text and "HSET (" in found.text and "EXPIRE" not in found.text
        allow(server, "-multi")
        assert look(pgbus_settings, wake=url)["redis-rights"].level == WARN
        allow(server, "resetchannels", "&pgbus:*")
        found = look(pgbus_settings, wake=url)["relay"]
        assert found.level == FAIL and "NOPERM" in found.text and "docs/redis.md" in found.todo
        assert server.client.keys("*") == []


@contextmanager
def with_users(kind: str) -> Iterator[tuple[str, list[RedisServer]]]:
    """Run servers with the user that the page describes. Gives the URL with its login, and the servers."""
    with ExitStack() as stack:
        if kind == "single":
            servers = [stack.enter_context(redis_server())]
            url = servers[0].url
        elif kind == "cluster":
            cluster = stack.enter_context(redis_cluster())
            servers, url = cluster.nodes, cluster.url
        else:
            sentinels = stack.enter_context(redis_sentinels())
            servers, url = sentinels.servers, f"{sentinels.url}?sentinel_username=asker&sentinel_password=other"
            rights = "-@all", "+sentinel|get-master-addr-by-name"
            for each in sentinels.sentinels:
                each.client.execute_command("ACL", "SETUSER", "asker", "on", ">other", *rights)
        for each in servers:
            allow(each)
        yield url.replace("//", "//pgbus:s3cret@"), servers


@needs_redis
@pytest.mark.parametrize("kind", ["single", "cluster", "sentinel"])
def test_the_user_that_the_page_describes_has_all_rights_that_workers_need(
    kind: str, pgbus_settings: Settings, pgbus_bus: Bus
) -> None:
    with with_users(kind) as (url, servers):
        found = look(pgbus_settings, wake=url)
        assert (found["redis"].level, found["redis-rights"].level) == (OK, OK)
        with worker(pgbus_settings, wake=url, max_per_owner=5) as one:
            until(lambda: on_redis(one), "it uses Redis", 30)
            client = one.live("orders")
            for n in range(20):
                pgbus_bus.stream("orders").broadcast(str(n))
            until_messages(client, 20)
            until(lambda: "1 of 1" in look(pgbus_settings, wake=url)["relay"].text, "it reports", 30)
        for server in servers:
            log = server.client.execute_command("ACL", "LOG")
            assert [entry for entry in log if "info" not in str(entry)] == []  # which doctor can do without


@needs_redis
@pytest.mark.parametrize("kind", ["single", "sentinel", "cluster"])
def test_the_servers_and_the_worker_whose_beacons_arrive_are_named(kind: str, pgbus_settings: Settings) -> None:
    make: Any = {"single": redis_server, "sentinel": redis_sentinels, "cluster": redis_cluster}[kind]
    with make() as servers:
        found = look(pgbus_settings, wake=servers.url)
        assert found["relay"].level == WARN and "no worker runs" in found["relay"].text
        with worker(pgbus_settings, wake=servers.url) as one:
            until(lambda: on_redis(one), "it uses Redis", 30)
            name = f"the worker {socket.gethostname()}, process {os.getpid()}"

            def sound() -> dict[str, Finding] | None:
                found = look(pgbus_settings, wake=servers.url)
                levels = {found[check].level for check in ("redis", "redis-rights", "relay", "steward")}
                return found if name in found["relay"].text and levels == {OK} else None

            # Once, a beacon may be late.
            found = until(sound, "it is named, and there is nothing to complain of", 60)
        words = {"single": "a single server", "sentinel": "the Sentinels know as 'pgbus'", "cluster": "a cluster of 3"}
        assert words[kind] in found["redis"].text
        assert "a beacon came within" in found["relay"].text


@needs_redis
def test_workers_with_another_redis_than_doctor_are_noticed(pgbus_settings: Settings, server: RedisServer) -> None:
    with worker(pgbus_settings, wake=server.url) as one, redis_server() as other:
        until(lambda: on_redis(one), "it uses Redis", 30)
        until(lambda: "1 of 1" in look(pgbus_settings, wake=server.url)["relay"].text, "it is on the roll")
        found = look(pgbus_settings, wake=other.url)["relay"]
    assert found.level == FAIL and "the same PGBUS_WAKE" in found.todo


@needs_redis
def test_a_redis_that_cannot_be_written_to_is_noticed(pgbus_settings: Settings) -> None:
    with redis_server("replicaof 127.0.0.1 1") as server:
        found = look(pgbus_settings, wake=server.url)["redis-rights"]
        assert found.level == WARN and "is a replica" in found.text
    with redis_server("maxmemory 1kb") as server:
        assert "maxmemory" in look(pgbus_settings, wake=server.url)["redis-rights"].text


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server() as one:
        yield one


def on_redis(one: Serving) -> bool:
    redis = one.instance.redis
    return redis is not None and redis.wakes.on_redis and redis.wakes.session is not None and redis.relay.publishing
