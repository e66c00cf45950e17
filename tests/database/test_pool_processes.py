"""The pool in other kinds of processes: forked, with threads, patched for gevent or not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pgbus_gevent.database import pool

ROOT = Path(pool.__file__).parents[2]

PRELUDE = """
import gc, os, sys, threading
from functools import partial
import gevent.os
from gevent.monkey import get_original
from pgbus_gevent.database import green
from pgbus_gevent.database.connect import connect
from pgbus_gevent.database.pool import Pool
if sys.argv[2] == "patched":
    green.install()
# Not the patched ones: gevent may miss the end of a child that ends at once.
fork = gevent.os.fork_gevent if sys.argv[2] == "patched" else os.fork
waitpid = get_original("os", "waitpid")
def run(pool, statement="select pg_backend_pid()"):
    with pool.connection() as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone()[0]
def make(size):
    opener = partial(connect, sys.argv[1], application_name="x", connect_timeout=120, statement_timeout=30)
    return Pool(opener, size=size, timeout=60)
"""

FORK = """
pool = make(2)
idle = run(pool)
with pool.connection() as used:
    child = fork()
    if child == 0:
        other = run(pool)
        pool.close()
        os._exit(0 if other not in (idle, used.info.backend_pid) else 1)
    assert waitpid(child, 0)[1] == 0, "the child got its parent's connection"
    with used.cursor() as cursor:
        cursor.execute("select 1")
assert run(pool) == idle, "the child ended its parent's session"
child = fork()
if child == 0:
    with pool.connection():
        pass
    del pool
    gc.collect()
    os._exit(0)
assert waitpid(child, 0)[1] == 0
assert run(pool) == idle
print("ok")
"""

FORK_IN_USE = """
pool = make(1)
with pool.connection() as used:
    pid = used.info.backend_pid
    child = fork()
if child == 0:
    os._exit(0)
assert waitpid(child, 0)[1] == 0
assert run(pool) == pid, "the child ended its parent's session"
print("ok")
"""

THREADS = """
pool = make(3)
used, pids, lock, errors = set(), set(), threading.Lock(), []
def work():
    try:
        for _ in range(50):
            with pool.connection() as connection:
                with lock:
                    assert id(connection) not in used
                    used.add(id(connection))
                with connection.cursor() as cursor:
                    cursor.execute("select pg_backend_pid()")
                    pids.add(cursor.fetchone()[0])
                with lock:
                    used.discard(id(connection))
    except BaseException as error:
        errors.append(error)
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not errors, errors
assert len(pids) <= 3, pids
print("ok")
"""


@pytest.mark.parametrize("patched", ["patched", "not patched"])
@pytest.mark.parametrize("code", [FORK, FORK_IN_USE, THREADS], ids=["fork", "fork in use", "threads"])
def test_forks_and_threads_work(code: str, patched: str, database: str) -> None:
    patch = "import gevent.monkey; gevent.monkey.patch_all()\n" if patched == "patched" else ""
    done = subprocess.run(
        [sys.executable, "-c", patch + PRELUDE + code, database, patched],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.stdout.strip(), done.returncode) == ("ok", 0), done.stderr
