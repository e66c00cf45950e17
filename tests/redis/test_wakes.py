"""A worker's wakes come from Redis, and from PostgreSQL while Redis is of no use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from time import monotonic
from typing import Any

import gevent
import pytest
from redis_parts import RedisServer, beating, needs_redis, redis_server
from streamer_parts import make_board
from support import free_port, until

from pgbus_gevent.core import relay_signs
from pgbus_gevent.core.board import Board
from pgbus_gevent.errors import RedisUnavailable
from pgbus_gevent.redis import wakes
from pgbus_gevent.redis.keys import Keys
from pgbus_gevent.redis.publisher import Publisher
from pgbus_gevent.redis.session import RedisSession
from pgbus_gevent.redis.urls import parse
from pgbus_gevent.redis.wakes import RedisWakes

pytestmark = [needs_redis, pytest.mark.program, pytest.mark.usefixtures("patient")]


class Database:
    """PostgreSQL, as the wakes need it. Its session hears nothing."""

    cause = "none"

    def __init__(self) -> None:
        self.generation = "g1"
        self.asked = 0
        self.listens = 0
        self._interrupted = False

    def redis_names(self) -> tuple[str, str]:
        self.asked += 1
        return "secret", self.generation

    def listen(self) -> Any:
        self.listens += 1
        return self

    def receive(self, timeout: float) -> tuple[list[str], bool]:
        gevent.sleep(0.01)
        return ["from postgres"], False

    def interrupt(self) -> None:
        self._interrupted = True

    def follow(self, streams: Any) -> None: ...
    def narrow(self, streams: Any) -> None: ...
    def hears(self) -> bool:
        return True

    def ping(self) -> None: ...
    def close(self) -> None: ...
    def discard_idle(self) -> None: ...


@contextmanager
def relay(server: RedisServer, generation: str = "g1") -> Iterator[Publisher]:
    keys = Keys("secret", generation, sharded=False)
    with closing(Publisher(parse(server.url), keys)) as publisher, beating(publisher):
        yield publisher


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wakes, "RETURN", 0.3)


def source(url: str) -> tuple[RedisWakes, Database, Board]:
    database, board = Database(), make_board()
    return RedisWakes(parse(url), database, database, board), database, board


def test_with_a_relay_wakes_come_from_redis_and_its_signs_of_life_are_on_the_board(single: RedisServer) -> None:
    found, database, board = source(single.url)
    with relay(single):
        began = monotonic()
        session = found.listen()
        assert session.hears() and found.session is not None and found.trouble == ""
        session.receive(0.5)
        assert board.relay.heard and board.relay.reaches
        assert board.steward_until > began + 2 and board.relay.until > began + 1
        session.close()
    assert not board.relay.heard and found.session is None and database.listens == 0


def test_a_worker_that_hears_no_beacon_asks_for_the_steward_early_enough_for_a_takeover_in_two_seconds(
    single: RedisServer,
) -> None:
    found, _, board = source(single.url)
    with relay(single):
        session = found.listen()
        asks = set()
        while len(asks) < 20:
            session.receive(0.5)
            assert found.session is not None and found.session.beacon_at is not None
            asks.add(board.relay.until - found.session.beacon_at)
        session.close()
    assert min(asks) > 1.2 and max(asks) < 1.9


def test_without_redis_postgresql_is_used_until_redis_is_back(fast: None) -> None:
    port = free_port()
    found, _, board = source(f"redis://127.0.0.1:{port}")
    session = found.listen()
    assert session.receive(1.0) == (["from postgres"], False)
    assert (found.fallbacks, board.relay.heard, board.relay.reaches) == (1, False, False) and str(port) in found.trouble
    with pytest.raises(RedisUnavailable):
        found.listen().close()
        raise RedisUnavailable("it was tried again, and counted once")
    assert found.fallbacks == 1
    other = RedisServer(port=port)
    try:
        with relay(other), pytest.raises(RedisUnavailable, match="back"):
            until(lambda: session.receive(0.1) is None, "the session ends")
        session.close()
        found.listen().close()
        assert found.on_redis
    finally:
        other.close()


def test_a_redis_without_a_relay_is_of_no_use(single: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RedisSession.hears, "__defaults__", (1.0,))
    found, database, board = source(single.url)
    database.generation = "another"
    found.listen().close()
    assert board.relay.reaches and "relay" in found.trouble and database.listens == 1


def test_in_a_large_fleet_few_workers_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_signs, "MOST_SPREAD", 0.01)
    listening = 0
    for _ in range(200):
        found, database, board = source("redis://127.0.0.1:1")
        board.workers = 1000
        try:
            found.listen().close()
        except RedisUnavailable:
            pass
        listening += database.listens
    assert listening < 40  # of a thousand workers, about forty listen


def test_after_a_failover_of_postgresql_the_names_are_asked_for_again(single: RedisServer) -> None:
    found, database, _ = source(single.url)
    with relay(single, "g1"):
        session = found.listen()
        assert session.hears()
        database.generation = "g2"
    with relay(single, "g2"):
        with pytest.raises(RedisUnavailable):
            until(lambda: session.receive(0.1) is None, "the session ends")
        session.close()

        def returned() -> bool:
            found.listen().close()
            return found.on_redis

        until(returned, "Redis is used with the new names")


def test_a_long_outage_does_not_make_more_workers_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_signs, "MOST_SPREAD", 0.01)
    listening = 0
    for _ in range(50):
        found, database, board = source("redis://127.0.0.1:1")
        board.workers = 1000
        for _ in range(20):  # the listener tries again and again
            try:
                found.listen().close()
            except RedisUnavailable:
                pass
        listening += database.listens > 0
        assert database.asked == 1  # nor does each try ask for the names
    assert listening < 15


def test_a_worker_that_learns_how_large_the_fleet_is_leaves_postgresql_to_others() -> None:
    found, _, board = source("redis://127.0.0.1:1")
    found._lot = 0.5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("random.random", lambda: 0.5)
        session = found.listen()
    session.receive(0.1)
    board.workers = 1000
    with pytest.raises(RedisUnavailable, match="from time to time"):
        session.receive(0.1)
    session.close()


def test_after_a_change_of_the_names_redis_is_used_at_once(single: RedisServer) -> None:
    found, database, _ = source(single.url)
    with relay(single, "g1"):
        session = found.listen()
        database.generation = "g2"
        with relay(single, "g2"), pytest.raises(RedisUnavailable, match="names"):
            until(lambda: session.receive(0.1) is None, "the session ends")
    with relay(single, "g2"):
        session.close()
        found.listen().close()
        assert (found.on_redis, found.fallbacks, database.listens) == (True, 0, 0)


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]


def connections(admin: Any) -> int:
    """How many connections there were."""
    return int(admin.info("stats")["total_connections_received"])


@pytest.mark.parametrize(
    ("login", "kind", "setting"),
    [
        ("", "NOAUTH", "give the user and the password in PGBUS_WAKE"),
        ("app:pw-one@", "WRONGPASS", "correct the user and the password in PGBUS_WAKE"),
        ("app:pw-two@", "NOPERM", "docs/redis.md"),
    ],
)
def test_a_refusal_is_one_error_and_what_is_corrected_in_redis_heals_by_itself(
    login: str,
    kind: str,
    setting: str,
    fast: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(wakes, "REFUSED", 1.0)
    with redis_server("requirepass secret") as one, one.client as admin:
        admin.execute_command("ACL", "SETUSER", "app", "on", ">pw-two", "-@all", "resetchannels")
        found, _, _ = source(one.url.replace("//", f"//{login}"))
        session = found.listen()
        assert session.receive(1.0) == (["from postgres"], False)
        before = connections(admin)
        until(lambda: connections(admin) - before >= 3, "it tries again")
        (message,) = refusals(caplog)
        assert kind in message and setting in message and "workers listen to PostgreSQL" in message
        assert kind in found.trouble and "pw-" not in message
        admin.execute_command("ACL", "SETUSER", "app", "on", ">pw-one", ">pw-two", "+@all", "&*", "~*")
        admin.execute_command("ACL", "SETUSER", "default", "nopass")
        with relay(one):
            with pytest.raises(RedisUnavailable, match="back"):
                until(lambda: session.receive(0.1) is None, "the session ends")
            session.close()
            found.listen().close()
        assert found.on_redis and found.fallbacks == 1 and len(refusals(caplog)) == 1


def test_after_a_refusal_redis_is_left_alone_for_a_while(fast: None) -> None:
    """Neither the look for its return nor the listener, which may try again after a tenth of a second, connects each time."""
    with redis_server("requirepass secret") as one, one.client as admin:
        found, _, board = source(one.url)
        board.workers = 10_000  # so that this worker does not LISTEN in PostgreSQL
        found._lot = 1.0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(relay_signs, "MOST_SPREAD", 0.01)
            patch.setattr("random.random", lambda: 1.0)
            before = connections(admin)
            for _ in range(20):
                with pytest.raises(RedisUnavailable, match="NOAUTH"):
                    found.listen()
                assert not found.look()
        assert connections(admin) - before == 1


def test_an_outage_that_becomes_a_refusal_is_told_as_that(fast: None, caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    found, _, _ = source(f"redis://127.0.0.1:{port}")
    session = found.listen()
    assert refusals(caplog) == []
    other = RedisServer("requirepass secret", port=port)
    try:
        until(lambda: refusals(caplog), "it is told")
        assert "NOAUTH" in refusals(caplog)[0] and "NOAUTH" in found.trouble
    finally:
        session.close()
        other.close()
