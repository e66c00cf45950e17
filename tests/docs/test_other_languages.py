"""The program in Go of the guide about other languages is compiled, and publishes in its transaction."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from page_parts import block_of
from page_running_parts import as_url

from pgbus_gevent.bus import Bus
from pgbus_gevent.testing.client import StreamClient

LIBRARIES = Path("/usr/share/gocode")
"""Where Debian's packages have the libraries of Go, which then need no download."""


def missing() -> str:
    """Return what is not installed, or an empty text."""
    wanted = {
        "golang-go": shutil.which("go"),
        "golang-github-lib-pq-dev": (LIBRARIES / "src/github.com/lib/pq").is_dir(),
    }
    packages = [package for package, is_there in wanted.items() if not is_there]
    return f"apt-get install --no-install-recommends {' '.join(packages)}" if packages else ""


pytestmark = [pytest.mark.docs, pytest.mark.program, pytest.mark.skipif(bool(missing()), reason=missing())]


class Program:
    """The program of the guide in a folder of its own, on a database."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        kept = {"GO111MODULE": "off", "GOPATH": str(LIBRARIES), "GOCACHE": str(folder / "cache"), "GOFLAGS": ""}
        self.environ = {**os.environ, **kept, "PGBUS_DATABASE_URL": url}

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )


def test_a_program_in_go_publishes_at_its_commit_and_knows_the_id(
    pgbus_bus: Bus, pgbus_client: Callable[..., StreamClient], tmp_path: Path
) -> None:
    commands = block_of("docs/guides/other-languages.md", "go").splitlines()
    code = block_of("docs/guides/other-languages.md", "order.go")
    assert f'_ "{commands[1].removeprefix("go get ")}"' in code and commands[-1] == "go run ."
    (tmp_path / "order.go").write_text(code, encoding="utf-8")
    program = Program(tmp_path, as_url(str(pgbus_bus.settings.database_url)))
    assert program.run("gofmt", "-l", ".").stdout == ""
    done = program.run("go", "build", "-o", "order", "order.go")
    assert done.returncode == 0, done.stderr
    with pgbus_bus.transaction() as cursor:
        cursor.execute(
            "create table orders (id int generated always as identity primary key, item text,"
            " unique (item) deferrable initially deferred)"
        )
    client = pgbus_client("orders")
    client.next("pgbus:connected")

    printed = re.fullmatch(r"order 1 is message (\d+)\n", (done := program.run("./order")).stdout)
    frame = client.next()
    assert printed and frame.id == printed[1], done.stderr
    assert (frame.event, json.loads(frame.data)) == ("order", {"id": 1, "item": "white tea"})

    refused = program.run("./order")  # at the commit, when the message is appended already
    assert refused.returncode == 1 and "duplicate key" in refused.stderr
    assert [message.id for message in pgbus_bus.stream("orders")] == [int(printed[1])]
