"""Requests to an origin: connections that are kept, answers that cannot be used, and TLS."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.pywsgi import WSGIServer
from gevent.server import StreamServer
from support import PATIENCE, until

from pgbus_gevent.edge.line import OPEN_TIMEOUT
from pgbus_gevent.edge.origin import ADDRESS_TIMEOUT, PIECE, Origin
from pgbus_gevent.edge.reads import OriginReads
from pgbus_gevent.errors import DatabaseUnavailable, OriginRefused, OriginUnready, PoolTimeout

TOKEN = "a-worker-token-for-tests"


class Site:
    """A server that answers as :attr:`answer` says, and remembers the requests."""

    def __init__(self, **tls: Any) -> None:
        self.answer: Callable[[], tuple[str, bytes]] = lambda: ("200 OK", b'{"at": 1}')
        self.requests: list[dict[str, Any]] = []
        self.peers: set[str] = set()
        self._server = WSGIServer(("127.0.0.1", 0), self._serve, log=None, error_log=None, **tls)
        self._server.start()
        self.port = int(self._server.server_port)
        self.url = f"{'https' if tls else 'http'}://localhost:{self.port}/pgbus"

    def _serve(self, environ: Any, start_response: Any) -> list[bytes]:
        self.requests.append({**environ, "body": environ["wsgi.input"].read()})
        self.peers.add(environ["REMOTE_PORT"])
        status, body = self.answer()
        start_response(status, [("content-length", str(len(body)))])
        return [body]

    def stop(self) -> None:
        self._server.stop(0.1)


@pytest.fixture
def site() -> Iterator[Site]:
    found = Site()
    yield found
    found.stop()


@pytest.fixture
def origins() -> Iterator[Callable[..., Origin]]:
    made: list[Origin] = []

    def make(url: str, **more: Any) -> Origin:
        made.append(Origin(url, TOKEN, **{"connect_timeout": PATIENCE, "pool_timeout": 0.1, "size": 2, **more}))
        return made[-1]

    yield make
    for origin in made:
        origin.close()


def test_a_read_presents_the_token_and_the_connection_is_kept(site: Site, origins: Callable[..., Origin]) -> None:
    origin = origins(site.url)
    began = monotonic()
    for n in range(5):
        assert origin.ask("/edges/reads", {"n": n}, timeout=PATIENCE) == {"at": 1}
    assert [json.loads(each["body"]) for each in site.requests] == [{"n": n} for n in range(5)]
    assert {each["HTTP_AUTHORIZATION"] for each in site.requests} == {f"Bearer {TOKEN}"}
    assert {each["PATH_INFO"] for each in site.requests} == {"/pgbus/edges/reads"}
    assert len(site.peers) == 1
    assert began <= origin.answered <= monotonic()


@pytest.mark.parametrize(
    "answer",
    [
        "5", "[]", "[[], []]",
        "[[[[6, 7, 8, 9, 10, []]], 0, false, 0, 0]]", '[[[], "0", false, 0, 0]]', "[[[], 1e999, false, 0, 0]]",
        '[[[[6, null, "a\\u0000b", null, null, 5]], 0, false, 5, 0]]', "[" * 5000,
    ],
    ids=lambda answer: answer[:40],
)  # fmt: skip
def test_an_answer_of_another_shape_is_a_refusal(answer: str, site: Site, origins: Callable[..., Origin]) -> None:
    site.answer = lambda: ("200 OK", answer.encode())
    with pytest.raises(OriginRefused):
        OriginReads(origins(site.url)).pages([("orders", 5)], limit=10, size=1000)


def test_a_kept_connection_that_was_closed_is_replaced_without_an_error(
    site: Site, origins: Callable[..., Origin]
) -> None:
    origin = origins(site.url)
    origin.ask("/edges/reads", {}, timeout=PATIENCE)
    site.stop()
    again = WSGIServer(("127.0.0.1", site.port), site._serve, log=None, error_log=None)
    again.start()
    try:
        assert origin.ask("/edges/reads", {}, timeout=PATIENCE) == {"at": 1}
    finally:
        again.stop(0.1)
    assert origin.failures == 0


@pytest.mark.parametrize(
    ("status", "error", "says"),
    [
        ("401 Unauthorized", OriginRefused, "give both the same PGBUS_WORKER_TOKEN"),
        ("403 Forbidden", OriginRefused, "set PGBUS_WORKER_TOKEN there"),
        ("404 Not Found", OriginRefused, "check the path in PGBUS_UPSTREAM"),
        ("413 Content Too Large", OriginRefused, "a proxy before the origin"),
        ("426 Upgrade Required", OriginRefused, "upgrade the older of the two"),
        ("508 Loop Detected", OriginRefused, "leads back here"),
        ("301 Moved Permanently", OriginRefused, "check the address in PGBUS_UPSTREAM"),
        ("503 Service Unavailable", DatabaseUnavailable, "the origin answered 503: no"),
    ],
)
def test_an_answer_that_refuses_says_what_to_do(
    site: Site, origins: Callable[..., Origin], status: str, error: type[Exception], says: str
) -> None:
    site.answer = lambda: (status, b"no")
    with pytest.raises(error, match=says):
        origins(site.url).ask("/edges/reads", {}, timeout=PATIENCE)


def test_what_a_proxy_says_is_not_taken_for_the_origins_own_words(site: Site, origins: Callable[..., Origin]) -> None:
    site.answer = lambda: ("503 Service Unavailable", b"the database is away")
    with pytest.raises(DatabaseUnavailable) as caught:
        origins(site.url).ask("/edges/reads", {}, timeout=PATIENCE)
    assert not isinstance(caught.value, OriginUnready)


def test_an_answer_that_is_not_json_is_not_from_an_origin(site: Site, origins: Callable[..., Origin]) -> None:
    site.answer = lambda: ("200 OK", b"<html>a login page</html>")
    with pytest.raises(OriginRefused, match="what answers there is not pgbus-gevent"):
        origins(site.url).ask("/edges/reads", {}, timeout=PATIENCE)


def test_an_answer_that_does_not_come_is_given_up_in_time(site: Site, origins: Callable[..., Origin]) -> None:
    origin = origins(site.url)
    origin.ask("/edges/reads", {}, timeout=PATIENCE)

    given_up = Event()

    def late() -> tuple[str, bytes]:
        given_up.wait(PATIENCE)
        return "200 OK", b"{}"

    site.answer = late
    with pytest.raises(DatabaseUnavailable, match=r"did not answer within 0\.2 s"):
        origin.ask("/edges/reads", {}, timeout=0.2)
    given_up.set()  # so that the answering greenlet does not outlive the test
    assert (origin.in_use, origin.failures) == (0, 1)


def test_an_answer_that_breaks_off_is_an_absence_and_no_refusal(origins: Callable[..., Origin]) -> None:
    def serve(sock: Any, _: object) -> None:
        received = b""
        while not received.endswith(b"{}"):
            received += sock.recv(65536)
        sock.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"at":')

    server = StreamServer(("127.0.0.1", 0), serve)
    server.start()
    try:
        with pytest.raises(DatabaseUnavailable, match="broke off"):
            origins(f"http://127.0.0.1:{server.server_port}/pgbus").ask("/edges/reads", {}, timeout=PATIENCE)
    finally:
        server.stop(1)


def test_an_answer_may_take_longer_than_the_timeout_while_it_comes(origins: Callable[..., Origin]) -> None:
    def serve(sock: Any, _: object) -> None:
        received = b""
        while not received.endswith(b"{}"):
            received += sock.recv(65536)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (8 * PIECE))
        for _ in range(8):
            gevent.sleep(0.8)
            sock.sendall(b"x" * PIECE)

    server = StreamServer(("127.0.0.1", 0), serve)
    server.start()
    try:
        # It is refused for what it says, so it has been read to the end.
        with pytest.raises(OriginRefused, match="not JSON"):
            origins(f"http://127.0.0.1:{server.server_port}/pgbus").ask("/edges/reads", {}, timeout=6.0)
    finally:
        server.stop(1)


def test_a_read_with_too_large_an_answer_is_asked_in_halves(
    site: Site, origins: Callable[..., Origin], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgbus_gevent.edge.origin.MAX_ANSWER", 1000)

    def answer() -> tuple[str, bytes]:
        asked = json.loads(site.requests[-1]["body"])["of"]
        rows = [[cursor + 1, None, "x" * 200, None, None, cursor] for _, cursor in asked]
        return "200 OK", json.dumps([[[row], 0, False, 0, 0] for row in rows]).encode()

    site.answer = answer
    pages = OriginReads(origins(site.url)).pages([(f"s{n}", n) for n in range(10)], limit=10, size=1000)
    assert [page.rows[0].id for page in pages] == list(range(1, 11))


def test_a_very_large_message_is_read_by_itself_and_named_if_that_fails(
    site: Site, origins: Callable[..., Origin], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgbus_gevent.edge.origin.MAX_ANSWER", 1000)
    monkeypatch.setattr("pgbus_gevent.edge.reads.MAX_MESSAGE", 5000)
    sizes = {"small": 10, "large": 3000}

    def answer() -> tuple[str, bytes]:
        asked = json.loads(site.requests[-1]["body"])
        rows = [
            [[[n + 1, None, "x" * sizes[name], None, None, n] for n in range(min(2, asked["limit"]))], 0, True, 0, 0]
            for name, _ in asked["of"]
        ]
        return "200 OK", json.dumps(rows).encode()

    site.answer = answer
    reads = OriginReads(origins(site.url))
    pages = reads.pages([("small", 0), ("large", 0), ("small", 0)], limit=10, size=1000)
    assert [[row.id for row in page.rows] for page in pages] == [[1, 2], [1], [1, 2]]
    sizes["large"] = 6000
    with pytest.raises(OriginRefused, match="a message of the stream 'large' is too large to be read"):
        reads.pages([("small", 0), ("large", 0)], limit=10, size=1000)


def test_an_address_that_does_not_answer_leaves_time_for_the_next_one(
    site: Site, origins: Callable[..., Origin], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):  # the queue is full, so the kernel answers no more
            caller = stack.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(silent.getsockname())
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", address)
            for address in (silent.getsockname(), ("127.0.0.1", site.port))
        ]
        monkeypatch.setattr("gevent.socket.getaddrinfo", lambda *_: found)
        monkeypatch.setattr("pgbus_gevent.edge.origin.ADDRESS_TIMEOUT", ADDRESS_TIMEOUT)
        assert ADDRESS_TIMEOUT < OPEN_TIMEOUT / 2
        origin = origins(site.url)
        connection, response = origin.open("/edges/wakes", {}, timeout=PATIENCE, silence=6.0)
        assert response.status == 200
        connection.close()


def test_a_connection_that_cannot_be_opened_counts_as_a_failure(origins: Callable[..., Origin]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    origin = origins(f"http://127.0.0.1:{port}/pgbus")
    with pytest.raises(DatabaseUnavailable, match="cannot reach the origin"):
        origin.open("/edges/wakes", {}, timeout=PATIENCE, silence=6.0)
    assert origin.failures == 1


def test_reads_beyond_the_size_of_the_pool_wait_their_turn(site: Site, origins: Callable[..., Origin]) -> None:
    may_answer = Event()

    def slow() -> tuple[str, bytes]:
        may_answer.wait(PATIENCE)
        return "200 OK", b"{}"

    site.answer = slow
    origin = origins(site.url)
    jobs = [gevent.spawn(origin.ask, "/edges/reads", {}, timeout=PATIENCE) for _ in range(2)]
    until(lambda: origin.in_use == 2, "both are under way")
    with pytest.raises(PoolTimeout):
        origin.ask("/edges/reads", {}, timeout=PATIENCE)
    may_answer.set()
    assert [job.get(timeout=PATIENCE) for job in jobs] == [{}, {}]


def test_the_certificate_of_the_origin_is_verified(
    origins: Callable[..., Origin], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", *files, *subject], check=True, capture_output=True
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    site = Site(ssl_context=context)
    try:
        with pytest.raises(DatabaseUnavailable, match=r"does not verify .*SSL_CERT_FILE"):
            origins(site.url).ask("/edges/reads", {}, timeout=PATIENCE)
        assert site.requests == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert origins(site.url).ask("/edges/reads", {}, timeout=PATIENCE) == {"at": 1}
        with pytest.raises(DatabaseUnavailable, match="does not verify"):
            origins(site.url.replace("localhost", "127.0.0.1")).ask("/edges/reads", {}, timeout=PATIENCE)
    finally:
        site.stop()
