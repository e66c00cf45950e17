"""``serve`` as a separate program, from its announcement to its end."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gevent
from raw_http import Answer, ask
from support import PATIENCE

ROOT = Path(__file__).parents[2]


SECRET = "a secret of the test"


ANNOUNCED = re.compile(r"pgbus_gevent serves http://([\d.]+|\[::1\]):(\d+)/ database (.+) pid (\d+)\n")


def environment(**variables: str) -> dict[str, str]:
    ours = ("PGBUS_", "PG", "DATABASE_URL")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "PYTHONPATH": str(ROOT), **variables}


def command(*arguments: str, program: tuple[str, ...] = ("pgbus_gevent.serve",)) -> list[str]:
    return [sys.executable, "-m", *program, "--port", "0", *arguments]


class Serving:
    """A running ``serve`` that has announced itself."""

    def __init__(self, process: subprocess.Popen[str], stderr: Path) -> None:
        self.process = process
        self._stderr = stderr
        assert process.stdout is not None
        with gevent.Timeout(4 * PATIENCE):  # it may have to make a cluster of databases first
            self.line = process.stdout.readline()
        match = ANNOUNCED.fullmatch(self.line)
        assert match is not None, (self.line, self.stderr)
        self.host, self.port, self.database, self.pid = match[1], int(match[2]), match[3], int(match[4])
        self.url = f"http://{self.host}:{self.port}"

    @property
    def stderr(self) -> str:
        return self._stderr.read_text()

    def get(self, path: str) -> Answer:
        return ask(self.port, path)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(3 * PATIENCE)


@contextmanager
def serving(
    tmp_path: Path,
    *arguments: str,
    program: tuple[str, ...] = ("pgbus_gevent.serve",),
    limit: int | None = None,
    **variables: str,
) -> Iterator[Serving]:
    """Run ``serve`` in ``tmp_path``. It is stopped at the end, and must return status 0."""
    log = tmp_path / f"stderr-{len(list(tmp_path.glob('stderr-*')))}"
    with open(log, "w") as stderr:
        process = subprocess.Popen(
            command(*arguments, program=program),
            cwd=tmp_path,
            env=environment(**variables),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            preexec_fn=None if limit is None else lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)),
        )
    with process:
        try:
            running = Serving(process, log)
            yield running
            assert running.stop() == 0
            assert process.stdout is not None and process.stdout.read() == ""
        finally:
            if process.poll() is None:
                process.kill()
