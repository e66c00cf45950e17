"""Several workers under gunicorn with our worker class: real processes and sockets, observed from outside."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
from collections import Counter
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from time import monotonic
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from host_parts import Browser, Host, check_streams, gunicorn, host, publish, shutdown_retry
from page_parts import block_of
from poll_parts import Poller
from support import PATIENCE, received, run, session, stored, until

from pgbus_gevent.gunicorn_worker import Worker
from pgbus_gevent.testing.client import StreamClient

CLIENTS = 200


class Publishing:
    """Publish ``rate`` messages a second to a stream, during the block."""

    def __init__(self, url: str, stream: str, rate: float) -> None:
        self._url, self._stream, self._rate = url, stream, rate
        self.sent = 0

    def __enter__(self) -> Publishing:
        self._greenlet = gevent.spawn(self._run)
        return self

    def _run(self) -> None:
        began = monotonic()
        with session(self._url) as connection:
            while True:
                run(connection, "select pgbus.broadcast(%s, %s)", self._stream, str(self.sent))
                self.sent += 1
                gevent.sleep(max(0.0, began + self.sent / self._rate - monotonic()))

    def __exit__(self, *_: object) -> None:
        self._greenlet.kill()


# our worker class ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [(), ("--preload",)], ids=["plain", "preload"])
def test_each_worker_starts_its_streamer_after_the_fork_and_says_farewell_to_clients(
    flags: tuple[str, ...], tmp_path: Path, pgbus_database: str
) -> None:
    command = gunicorn("-w", "2", "--graceful-timeout", "20", "--access-logfile", "-", *flags)
    with host(tmp_path, pgbus_database, *command, workers=2) as served, session(pgbus_database) as admin:
        listeners = "select count(*) from pg_stat_activity where (application_name, datname) = (%s, current_database())"
        # One of them is the steward, which has a second session.
        until(lambda: run(admin, listeners, "pgbus-listen") == [(3,)], "each of them listens, and the steward twice")
        with ExitStack() as stack:
            clients = [stack.enter_context(served.live()) for _ in range(40)]
            id = publish(pgbus_database, "hello")
            assert [client.next().id for client in clients] == [str(id)] * 40
            assert run(admin, listeners, "pgbus-listen") == [(3,)], "the master listens too"
            began = monotonic()
            served.signal()
            retries = [shutdown_retry(client) for client in clients]
            assert served.wait() == 0 and monotonic() - began < 15
        assert all(1000 <= retry <= 5000 for retry in retries) and len(set(retries)) > 20
        assert '"GET /pgbus/streams/orders HTTP/1.1" 200' in served.errors
        assert "Traceback" not in served.errors and "[CRITICAL]" not in served.errors


def test_a_client_that_does_not_read_does_not_prolong_a_shutdown(tmp_path: Path, pgbus_database: str) -> None:
    command = gunicorn("--graceful-timeout", "30")
    variables = {"PGBUS_SEND_BUFFER": "4kB", "PGBUS_GRACE": "2"}
    with host(tmp_path, pgbus_database, *command, **variables) as served, served.live() as client:
        client.pause()
        for _ in range(20):
            publish(pgbus_database, "x" * 500_000)
        began = monotonic()
        served.signal()
        assert served.wait() == 0
        assert monotonic() - began < 15
        assert "SIGKILL" not in served.errors


def test_a_worker_has_drained_a_second_before_the_master_would_kill_it(monkeypatch: pytest.MonkeyPatch) -> None:
    drained: list[float] = []
    instance = SimpleNamespace(settings=SimpleNamespace(grace=60.0), shutdown=drained.append)
    monkeypatch.setattr("pgbus_gevent.gunicorn_worker.streamer.instances", lambda: [instance])
    monkeypatch.setattr("pgbus_gevent.gunicorn_worker.publish_held_back", drained.append)
    worker: Any = Worker.__new__(Worker)
    worker.cfg, worker._slot = SimpleNamespace(graceful_timeout=60), SimpleNamespace(leave=lambda: None)
    worker._drain([])
    assert len(drained) == 2 and 40.0 < drained[1] <= drained[0] <= 59.0


def test_a_started_instance_is_refused_with_preload_in_one_line(tmp_path: Path, pgbus_database: str) -> None:
    (tmp_path / "app.py").write_text(
        "from pgbus_gevent.streamer import current\nfrom pgbus_gevent import StreamApp\napp = StreamApp(current())\n"
    )
    (tmp_path / "gunicorn.conf.py").write_text("from gevent import monkey\nmonkey.patch_all()\n")
    refused = Host(tmp_path, pgbus_database, gunicorn("--preload"))
    try:
        assert refused.wait() == 1
        assert "with --preload, the application must not start an Instance" in refused.errors
        assert "Booting worker" not in refused.errors
    finally:
        refused.close()


def test_a_worker_that_hangs_is_replaced_and_its_clients_continue_on_others(
    tmp_path: Path, pgbus_database: str
) -> None:
    with ExitStack() as stack:
        served = stack.enter_context(host(tmp_path, pgbus_database, *gunicorn("-w", "2", "-t", "8"), workers=2))
        before = served.serving()
        browsers = [Browser(served.port, "orders") for _ in range(20)]
        for browser in browsers:
            stack.callback(browser.close)
        until(lambda: all(browser.connections for browser in browsers), "all are connected")
        ids = [publish(pgbus_database, "before")]
        until(lambda: all(browser.ids == ids for browser in browsers), "all have the first message")
        hung = gevent.spawn(served.ask, "/hang")
        stack.callback(hung.kill)
        until(lambda: "WORKER TIMEOUT" in served.errors, "the master has noticed", 2 * PATIENCE)
        ids.append(publish(pgbus_database, "after"))
        until(lambda: all(browser.ids == ids for browser in browsers), "all have both messages")
        until(lambda: len(served.serving() & before) == 1 and len(served.serving()) == 2, "one was replaced")
        assert 0 < sum(browser.connections == 2 for browser in browsers) < 20


def test_a_worker_with_a_failed_part_shuts_down_gracefully_and_is_replaced(tmp_path: Path, pgbus_database: str) -> None:
    with host(tmp_path, pgbus_database, *gunicorn()) as served, served.live() as client:
        before = served.serving()
        served.ask("/fail")
        assert 1000 <= shutdown_retry(client) <= 5000
        until(lambda: served.serving() and not served.serving() & before, "another serves")
        assert "reader-0 has failed for good: this worker ends, and gunicorn" in served.errors


def test_clients_of_a_killed_worker_reconnect_to_others_with_their_cursors(tmp_path: Path, pgbus_database: str) -> None:
    with ExitStack() as stack:
        served = stack.enter_context(host(tmp_path, pgbus_database, *gunicorn("-w", "2"), workers=2))
        browsers = [Browser(served.port, "orders") for _ in range(40)]
        for browser in browsers:
            stack.callback(browser.close)
        until(lambda: all(browser.connections for browser in browsers), "all are connected")
        # The one that has more of them. If a worker stands still meanwhile, the shares are not even.
        most, fullest = until(lambda: _fullest(served, 40), "both workers tell how many they have")
        with Publishing(pgbus_database, "orders", 100) as publishing:
            until(lambda: publishing.sent > 30, "some were published")
            os.kill(fullest, signal.SIGKILL)
            until(lambda: sum(browser.connections > 1 for browser in browsers) >= most, "its clients have come back")
            sent = publishing.sent
            until(lambda: publishing.sent > sent + 30, "some more were published")
        with session(pgbus_database) as connection:
            ids = [id for id, _ in stored(connection, "orders")]
        until(lambda: all(browser.ids[-1:] == ids[-1:] for browser in browsers), "all have the last")
        assert all(browser.ids == ids[-len(browser.ids) :] for browser in browsers)


def test_polls_that_several_workers_answer_miss_nothing(tmp_path: Path, pgbus_database: str) -> None:
    with host(tmp_path, pgbus_database, *gunicorn("-w", "2"), workers=2) as served:
        poller = Poller(served.url, "/pgbus/streams/orders")
        poller.ask(0)
        with Publishing(pgbus_database, "orders", 60) as publishing:
            until(lambda: poller.ask(1) and publishing.sent >= 60, "all are published")
        with session(pgbus_database) as connection:
            ids = [id for id, _ in stored(connection, "orders")]
        assert [each["id"] for each in poller.read(len(ids))] == ids


def test_workers_of_a_killed_master_say_farewell_and_end(tmp_path: Path, pgbus_database: str) -> None:
    with host(tmp_path, pgbus_database, *gunicorn("-w", "2"), workers=2) as served, served.live() as client:
        workers = served.children()
        served.signal(signal.SIGKILL)
        assert 1000 <= shutdown_retry(client) <= 5000
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), "they have ended")


def test_a_quick_stop_still_tells_clients_to_reconnect(tmp_path: Path, pgbus_database: str) -> None:
    with host(tmp_path, pgbus_database, *gunicorn("-w", "2"), workers=2) as served, served.live() as client:
        began = monotonic()
        served.signal(signal.SIGINT)
        assert 1000 <= shutdown_retry(client) <= 5000
        assert served.wait() == 0 and monotonic() - began < 15


def test_workers_wait_for_a_database_that_is_away_and_report_it(tmp_path: Path, pgbus_database: str) -> None:
    with session(pgbus_database) as connection:
        name = run(connection, "select current_database()")[0][0]
        run(connection, "create role not_yet login")
        run(connection, "select pgbus.grant_server('not_yet')")
        run(connection, f'revoke connect on database "{name}" from public')
    url = f"{pgbus_database} user=not_yet"
    served = Host(tmp_path, url, gunicorn(), PGBUS_MIGRATE="false", PGBUS_WAKE="poll")
    try:
        until(lambda: _status(served, "/pgbus/healthz") == 200, "it lives")
        assert _status(served, "/pgbus/readyz") == 503
        with session(pgbus_database) as connection:
            run(connection, f'grant connect on database "{name}" to public')
        until(lambda: _status(served, "/pgbus/readyz") == 200, "it is ready")
        assert served.errors.count("Booting worker") == 1
    finally:
        served.close()
        with session(pgbus_database) as connection:
            run(connection, "select pgbus.revoke_rights('not_yet')")
            run(connection, "drop role not_yet")


def _status(served: Host, path: str) -> int:
    try:
        return served.ask(path).status
    except OSError:
        return 0


def test_a_worker_that_serves_tls_streams_through_the_body(tmp_path: Path, pgbus_database: str) -> None:
    subprocess.run(
        ["openssl", *TLS_KEY],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    served = Host(tmp_path, pgbus_database, gunicorn("--certfile", "cert.pem", "--keyfile", "key.pem"))
    context = ssl._create_unverified_context()
    try:
        sock = until(lambda: _tls(context, served.port), "it takes connections")
        with sock:
            sock.sendall(b"GET /pgbus/streams/orders HTTP/1.1\r\nHost: t\r\nAccept: text/event-stream\r\n\r\n")
            sock.settimeout(20)
            found = b""
            while b"pgbus:connected" not in found:
                found += sock.recv(65536)
            publish(pgbus_database, "in secret")
            while b"data: in secret" not in found:
                found += sock.recv(65536)
            served.signal()
            while b"pgbus:shutdown" not in found:
                found += sock.recv(65536)
        assert served.wait() == 0
    finally:
        served.close()


def _tls(context: ssl.SSLContext, port: int) -> ssl.SSLSocket | None:
    import socket

    try:
        return context.wrap_socket(socket.create_connection(("127.0.0.1", port), 5))
    except OSError:
        return None


# deployments ---------------------------------------------------------------------------------------------------------


def test_a_reload_and_a_new_master_lose_and_repeat_no_message(tmp_path: Path, pgbus_database: str) -> None:
    command = gunicorn("-w", "2", "--graceful-timeout", "8", "-p", "pid")
    with ExitStack() as stack:
        served = stack.enter_context(host(tmp_path, pgbus_database, *command, workers=2))
        browsers = [Browser(served.port, "ticks") for _ in range(CLIENTS)]
        for browser in browsers:
            stack.callback(browser.close)
        until(lambda: all(browser.connections for browser in browsers), "all are connected")
        first = served.serving()
        with Publishing(pgbus_database, "ticks", 200) as publishing:
            until(lambda: publishing.sent > 100, "some were published")
            served.signal(signal.SIGHUP)
            until(
                lambda: all(browser.connections > 1 for browser in browsers),
                "all have come back after the reload",
                2 * PATIENCE,
            )
            assert not served.serving() & first
            served.signal(signal.SIGUSR2)
            until(lambda: (tmp_path / "pid.2").exists(), "there is a new master", timeout=40)
            new = int((tmp_path / "pid.2").read_text())
            stack.callback(_kill, new)
            until(lambda: served.about()[1] == new, "its workers serve", 3 * PATIENCE)
            counts = [browser.connections for browser in browsers]
            served.signal(signal.SIGTERM)
            assert served.wait() == 0
            until(
                lambda: sum(b.connections > n for b, n in zip(browsers, counts, strict=True)) > CLIENTS / 2,
                "back again",
            )
            sent = publishing.sent
            until(lambda: publishing.sent > sent + 100, "some more were published")
        with session(pgbus_database) as connection:
            ids = [id for id, _ in stored(connection, "ticks")]
        until(lambda: all(browser.ids[-1:] == ids[-1:] for browser in browsers), "all have the last")
        assert Counter(browser.ids == ids for browser in browsers) == {True: CLIENTS}
        told = [retry for browser in browsers for retry in browser.told]
        assert len(told) >= 1.5 * CLIENTS and all(1000 <= retry <= 5000 for retry in told)
        assert {browser.stopped for browser in browsers} == {None}
        os.kill(new, signal.SIGTERM)
        until(lambda: not (tmp_path / "pid").exists(), "the new master has ended")


TLS_KEY = [
    "req",
    "-x509",
    "-newkey",
    "rsa:2048",
    "-nodes",
    "-keyout",
    "key.pem",
    "-out",
    "cert.pem",
    "-subj",
    "/CN=test",
]


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        pass


@pytest.mark.parametrize("workers", [2, 4])
def test_the_workers_get_even_shares(workers: int, tmp_path: Path, pgbus_database: str) -> None:
    command = gunicorn("-w", str(workers))
    with host(tmp_path, pgbus_database, *command, workers=workers, PGBUS_READERS="1") as served:
        for pause in (None, 0.0, 0.01):
            clients: list[StreamClient] = []
            # A worker that stands still for a moment gets fewer. It gets the more of those that come next, so a second crowd, or
            # a third one, makes the shares even. Without the balance, they would be as uneven as those of the first one.
            for crowd in range(1, 4):
                clients += _connect(served, 40 * workers, pause)
                shares = until(partial(_shares, served, workers, len(clients)), "all workers have reported their share")
                print(f"shares of {len(clients)}: {sorted(shares)}")
                if all(abs(share - 40 * crowd) <= 12 for share in shares):
                    break
            else:
                pytest.fail(f"the shares stay uneven: {shares}")
            for client in clients:
                client.close()
            until(lambda: _shares(served, workers, 0), "all have left")


def _connect(served: Host, count: int, pause: float | None) -> list[StreamClient]:
    """Connect this many clients, with ``pause`` seconds between them. With None, connect all at once."""
    clients: list[StreamClient] = []

    def connect() -> None:
        clients.append(served.live())
        gevent.sleep(pause or 0)

    if pause is None:
        gevent.joinall([gevent.spawn(connect) for _ in range(count)], raise_error=True)
    else:
        for _ in range(count):
            connect()
    return clients


def _shares(served: Host, workers: int, count: int) -> list[int]:
    """Return how many streams each worker has; an empty list if they are not yet ``count`` in all."""
    return list(_loads(served, workers, count).values())


def _fullest(served: Host, count: int) -> tuple[int, int] | None:
    """Return the number of streams, and the process, of the worker that has more of them, once both have ``count`` in all."""
    found = _loads(served, 2, count)
    return max(((streams, pid) for pid, streams in found.items()), default=None)


def _loads(served: Host, workers: int, count: int) -> dict[int, int]:
    found: dict[int, int] = {}
    for _ in range(20 * workers):
        pid, _, streams = served.about()
        found[pid] = streams
        if len(found) == workers:
            return found if sum(found.values()) == count else {}
    return {}


# gunicorn's own workers ----------------------------------------------------------------------------------------------

HOOK = block_of("docs/workers.md", "hook")


@pytest.mark.parametrize("worker", ["gevent", "gunicorn.workers.ggevent.GeventPyWSGIWorker"], ids=["gevent", "pywsgi"])
def test_the_application_runs_under_gunicorns_own_workers(worker: str, tmp_path: Path, pgbus_database: str) -> None:
    (tmp_path / "gunicorn.conf.py").write_text(HOOK)
    command = gunicorn("--graceful-timeout", "20", "--access-logfile", "-", worker=worker)
    variables = {"PGBUS_HEARTBEAT": "1", "PGBUS_WRITE_DEADLINE": "4"}
    with (
        host(tmp_path, pgbus_database, *command, **variables) as served,
        served.live() as client,
        served.live() as slow,
    ):
        check_streams(served, pgbus_database, client, slow)
        began = monotonic()
        served.signal()
        assert 1000 <= shutdown_retry(client) <= 5000
        assert served.wait() == 0 and monotonic() - began < 15
        assert "Traceback" not in served.errors
        if worker == "gevent":
            assert '"GET /pgbus/streams/orders HTTP/1.1" 200' in served.errors


def test_gunicorns_own_worker_streams_through_the_body_behind_a_middleware(tmp_path: Path, pgbus_database: str) -> None:
    (tmp_path / "app.py").write_text(MIDDLEWARE)
    with host(tmp_path, pgbus_database, *gunicorn(worker="gevent")) as served, served.live() as client:
        assert client.wait_for_response().headers["x-middleware"] == "yes"
        publish(pgbus_database, "through it")
        assert client.next().data == "through it"
        assert received(client)[-1][1] == "through it"
        poller = Poller(served.url, "/pgbus/streams/orders", cursor=0)
        assert poller.ask(30)["messages"][-1]["data"] == "through it"
        assert poller.raw(0).headers["x-middleware"] == "yes"


MIDDLEWARE = """
import os

from pgbus_gevent import Settings, StreamApp
from pgbus_gevent.streamer.instance import Instance

streams = StreamApp(Instance(Settings.load()))


def app(environ, start_response):
    if not streams.serves(environ["PATH_INFO"]):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [f"{os.getpid()} {os.getppid()} 0 None".encode()]
    def start(status, headers, *error):
        return start_response(status, [*headers, ("X-Middleware", "yes")], *error)
    return (part for part in streams(environ, start))
"""
