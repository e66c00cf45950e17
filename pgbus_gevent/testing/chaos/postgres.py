"""PostgreSQL servers of a run: each has a data directory of its own, and is a child of the conductor."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.extensions

from ..databases import OPTIONS
from .processes import Account, ChaosFailed, Part, until

USER = "postgres"
DATABASE = "chaos"
STARTING = 120.0

_SETTINGS = {
    **OPTIONS,
    "unix_socket_directories": "",
    "autovacuum_naptime": "10s",
    "wal_sender_timeout": "5s",
    "wal_receiver_timeout": "5s",
    "wal_retrieve_retry_interval": "500ms",
    "max_wal_senders": "10",
    "wal_keep_size": "64MB",
    "log_line_prefix": "%m [%p] ",
    "max_wal_size": "128MB",
    "max_notify_queue_pages": "64",
    "dynamic_shared_memory_type": "mmap",
}
"""The programs crash, the machine does not: so nothing depends on fsync. The queue of notifications is small, so that it
can be filled. Shared memory is in files of the data directory, so that it is removed with it also after a SIGKILL."""


class Programs:
    """PostgreSQL's programs in ``folder``, which run as ``account``, because PostgreSQL refuses to run as root."""

    def __init__(self, folder: Path, account: Account | None) -> None:
        self.folder, self.account = folder, account
        self.version = int(self.run("postgres", "--version").split()[2].partition(".")[0])

    def run(self, program: str, *arguments: str) -> str:
        """Run a program to its end and return what it prints. Raises :class:`ChaosFailed`."""
        done = subprocess.run(
            [str(self.folder / program), *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            cwd="/",
            user=self.account.uid if self.account else None,
            group=self.account.gid if self.account else None,
            extra_groups=[] if self.account else None,
        )
        if done.returncode != 0:
            raise ChaosFailed(f"{program} failed: {done.stderr.strip()[-500:]}")
        return done.stdout


class Cluster:
    """One server: ``port`` of 127.0.0.1, and the data in ``data``."""

    def __init__(self, programs: Programs, data: Path, port: int, log: Path) -> None:
        self.data, self.port = data, port
        self._programs = programs
        settings = {**_SETTINGS, "port": str(port), "listen_addresses": "127.0.0.1"}
        if programs.version < 17:
            del settings["max_notify_queue_pages"]
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        command = [str(programs.folder / "postgres"), "-D", str(data), *words]
        self.part = Part(command, log, {"LC_ALL": "C"}, programs.account, cwd=data)

    def make(self) -> None:
        """Make an empty cluster."""
        words = ["-U", USER, "-E", "UTF8", "--locale=C", "--auth=trust", "--no-sync"]
        self._programs.run("initdb", "-D", str(self.data), *words)
        self.data.chmod(0o700)

    def copy_of(self, port: int) -> None:
        """Make a standby of the server at ``port``."""
        shutil.rmtree(self.data, ignore_errors=True)
        conninfo = ["-h", "127.0.0.1", "-p", str(port), "-U", USER]
        self._programs.run("pg_basebackup", *conninfo, "-D", str(self.data), "-R", "-c", "fast", "--no-sync")

    def start(self, extra: dict[str, str] | None = None, *, wait: bool = True) -> None:
        """Start the server if it does not run, and wait until it answers."""
        if not self.part.running:
            (self.data / "postmaster.pid").unlink(missing_ok=True)  # its process id may belong to another process now
            self.part.start(extra)
        if wait:
            until(self.answers, STARTING, f"PostgreSQL at port {self.port} does not answer")

    def start_first(self) -> None:
        """Start a new cluster, and make the database in it."""
        self.start()
        self.sql(f"create database {DATABASE}", database="postgres")

    def stop(self, number: int = signal.SIGINT) -> None:
        """Stop it: SIGINT is the mode "fast", SIGQUIT is "immediate"."""
        self.part.stop(number, 30.0)

    def answers(self) -> bool:
        """Return whether the server answers a query."""
        try:
            self.sql("select 1", database="postgres")
        except psycopg2.Error:
            return False
        return True

    def connect(self, database: str = DATABASE, **options: Any) -> Any:
        """Open a session of our own, not through a line, in autocommit."""
        name = options.pop("application_name", "chaos-conductor")
        connection: Any = psycopg2.connect(
            host="127.0.0.1",
            port=self.port,
            user=USER,
            dbname=database,
            connect_timeout=3,
            application_name=name,
            options="-c statement_timeout=20s",
            **options,
        )
        connection.autocommit = True
        return connection

    def sql(self, statement: str, *arguments: object, database: str = DATABASE) -> list[tuple[Any, ...]]:
        """Run a statement in a session of its own."""
        connection = self.connect(database)
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement, arguments or None)
                return list(cursor.fetchall()) if cursor.description else []
        finally:
            connection.close()

    def backends(self) -> list[int]:
        """Return the ids of the server's processes for clients. Works with a server that does not answer, too."""
        found = []
        for pid in self.part.children():
            try:
                title = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if f" {USER} {DATABASE} " in title:
                found.append(pid)
        return found

    def caught_up(self, standby: Cluster) -> bool:
        """Return whether ``standby`` has replayed what this server has written."""
        ((position,),) = self.sql("select pg_current_wal_lsn()")
        ((done,),) = standby.sql("select pg_last_wal_replay_lsn() >= %s::pg_lsn", position)
        return bool(done)

    def cut_replication(self) -> None:
        """As a standby: receive no more from the primary."""
        for setting in ("primary_conninfo = ''", "wal_retrieve_retry_interval = '1h'"):
            self.sql(f"alter system set {setting}")
        self.sql("select pg_reload_conf()")
        receives = "select 1 from pg_stat_activity where backend_type = 'walreceiver'"
        until(lambda: not self.sql(receives), 20, "the standby still has a connection to the primary")

    def promote(self) -> None:
        """Make the standby a primary."""
        self.sql("select pg_promote()")
        until(lambda: self.sql("select not pg_is_in_recovery()")[0][0], STARTING, "the standby is not promoted")
        self.sql("alter system reset all")


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that nothing uses. It is outside the range from which the kernel takes ports for connections."""
    first = 10000 + (os.getpid() * 37 + time.monotonic_ns() // 1000) % 15000
    for port in range(first, first + 5000):
        with socket.socket() as sock:
            try:
                sock.bind((host, port))
            except OSError:
                continue
            return port
    raise ChaosFailed(f"there is no free port at {host}")
