"""Connections to real servers: with TLS, with a login, and to servers that refuse."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path

import gevent
import pytest
from redis_parts import PATIENCE, RedisCluster, needs_redis, redis_server
from support import free_port, full_backlog, until

from pgbus_gevent.errors import RedisUnavailable
from pgbus_gevent.redis import links
from pgbus_gevent.redis.links import Layout, Link, Pipes, find
from pgbus_gevent.redis.urls import Address, RedisURL, parse
from pgbus_gevent.testing.leaks import descriptors

pytestmark = [needs_redis, pytest.mark.program, pytest.mark.usefixtures("patient")]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("tls")
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    command += f" -keyout {folder}/key.pem -out {folder}/cert.pem"
    subprocess.run(command.split(), check=True, capture_output=True)
    yield folder / "cert.pem"


def test_tls_is_verified(certificate: Path) -> None:
    port = free_port()
    key = certificate.with_name("key.pem")
    tls = [f"tls-port {port}", f"tls-cert-file {certificate}", f"tls-key-file {key}", "tls-auth-clients no"]
    with redis_server(*tls):
        url = parse(f"rediss://localhost:{port}?ca_file={certificate}")
        pipes = Pipes(url)
        assert pipes.run([("key", ("SET", "key", "1")), ("key", ("GET", "key"))]) == [b"OK", b"1"]
        pipes.close()
        for wrong in (f"rediss://localhost:{port}", f"rediss://127.0.0.1:{port}?ca_file={certificate}"):
            with pytest.raises(RedisUnavailable, match="certificate"):
                Link(parse(wrong), parse(wrong).hosts[0])


def test_a_login_is_needed_where_the_server_asks_for_one() -> None:
    with redis_server("requirepass s3cret") as server:
        url = server.url.replace("//", "//:s3cret@")
        pipes = Pipes(parse(url))
        assert pipes.run([("key", ("PING",))]) == [b"PONG"]
        pipes.close()
        for wrong in (server.url, server.url.replace("//", "//:wrong@")):
            pipes = None
            with pytest.raises(RedisUnavailable) as caught:
                pipes = Pipes(parse(wrong))
                (answer,) = pipes.run([("key", ("PING",))])
                raise RedisUnavailable(str(answer))
            assert any(word in str(caught.value).lower() for word in ("auth", "password")) and "s3cret" not in str(
                caught.value
            )
            if pipes is not None:
                pipes.close()


def test_a_number_of_a_database_is_used() -> None:
    with redis_server() as server:
        pipes = Pipes(parse(f"{server.url}/3"))
        pipes.run([("key", ("SET", "key", "1"))])
        pipes.close()
        assert server.client.dbsize() == 0


def test_a_cluster_is_found_by_any_node_that_answers_and_a_sentinel_must_know_the_name() -> None:
    with redis_server() as server:
        with pytest.raises(RedisUnavailable, match="cluster"):
            find(parse(f"redis+cluster://127.0.0.1:1,127.0.0.1:{server.port}"))
        with pytest.raises(RedisUnavailable):
            find(parse(f"redis+sentinel://127.0.0.1:{server.port}/main"))


def test_a_slot_that_no_node_has_is_an_error() -> None:
    with pytest.raises(RedisUnavailable, match="slot"):
        Layout([(0, 0, ("h", 1))]).of("key")


def test_a_node_that_hangs_delays_the_question_where_the_servers_are_only_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with redis_server() as server, socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(links, "_slots", lambda node: node.one("PING") and [(0, 16383, node.address)])
        hanging, answering = silent.getsockname(), ("127.0.0.1", server.port)
        asked: list[Address] = []
        link = links.link

        def noted(url: RedisURL, address: Address, *, sentinel: bool = False) -> AbstractContextManager[Link]:
            asked.append(address)
            monkeypatch.setattr(links, "FIND_TIMEOUT", 0.5 if address == hanging else PATIENCE)
            return link(url, address, sentinel=sentinel)

        monkeypatch.setattr(links, "link", noted)
        pipes = Pipes(parse(f"redis+cluster://127.0.0.1:{hanging[1]},127.0.0.1:{server.port}"))
        assert asked == [hanging, answering]
        assert all(pipes.current for _ in range(5))
        assert asked[2:] == [answering] * 5
        pipes.close()


def test_no_socket_is_left_if_the_greenlet_is_killed_while_it_connects() -> None:
    with full_backlog() as address:
        before = descriptors()
        connecting = gevent.spawn(Link, parse(f"redis://127.0.0.1:{address[1]}"), address)
        until(lambda: descriptors().items() - before.items(), "it connects")
        connecting.kill()
        assert isinstance(connecting.value, gevent.GreenletExit)  # this keeps what it has in its traceback
        assert not descriptors().items() - before.items()


def test_an_answer_that_cannot_be_read_is_no_other_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with redis_server() as server:
        monkeypatch.setattr(Link, "one", lambda self, *command: [[0, None, [b"h"]]])
        with pytest.raises(RedisUnavailable, match="cannot be read"):
            find(parse(f"redis+cluster://127.0.0.1:{server.port}"))


def test_an_error_says_that_a_slot_has_moved(cluster: RedisCluster) -> None:
    with closing(Pipes(parse(cluster.url))) as pipes:
        wrong = next(address for address in pipes._layout.servers if address != pipes._layout.of("a"))
        pipes._layout = Layout([(0, 16383, wrong)])
        with pytest.raises(RedisUnavailable, match="a slot of the Redis cluster moves to another node"):
            pipes.ask("a", ("GET", "a"))
