"""Runs the code blocks of one page of the documentation, in their order, on a real database and with real programs.

CONTRIBUTING.md describes what authors write. ``page_parts`` reads the pages, and ``expected_parts`` compares outputs.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from itertools import chain
from pathlib import Path
from time import monotonic
from types import ModuleType
from typing import Any
from urllib.parse import quote

import gevent
import psycopg2
import psycopg2.extensions as ext
import pytest
import sqlparse
from expected_parts import Expected
from page_background_parts import Background
from page_ledger_parts import is_listed
from page_parts import ROOT, Block
from page_shims_parts import make_environment
from page_tester_parts import Tester
from support import free_port

PATIENCE = 150.0
"""Seconds for a block that ends by itself, and for an output that is still to come."""

_PORT = re.compile(r"\b808\d\b")
_DATABASE = re.compile(r"postgresql://[^\s\"'`)]*")
_LEFT_OUT = re.compile(r"\b([A-Z][A-Z0-9_]+)=…(?=\s|$)")


def as_url(dsn: str) -> str:
    """Return a connection string as a URL, without characters that a shell would interpret between quotes or outside."""
    parts = ext.parse_dsn(dsn)
    login = ":".join(quote(parts[key], safe="") for key in ("user", "password") if key in parts)
    host = parts.get("host", "")
    is_folder = host.startswith("/")
    place = f"{'' if is_folder else host}:{parts.get('port', '5432')}"
    return f"postgresql://{login}@{place}/{parts['dbname']}" + (f"?host={quote(host)}" if is_folder else "")


class Page:
    """One page while its blocks run. ``names`` are the names of its Python blocks."""

    def __init__(self, parts: Sequence[Block], folder: Path, request: pytest.FixtureRequest) -> None:
        self.blocks = parts
        self.folder = folder
        self._request = request
        self.ports: dict[str, int] = {}
        self._expected = Expected()
        self._outputs: dict[str, str] = {}
        self._last: Block | None = None
        self._running: dict[str, list[Background]] = {}
        self._server: Background | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._database_url: str | None = None
        self.stack = ExitStack()
        module = ModuleType("a_page_of_the_documentation")
        self.names = vars(module)
        sys.modules[module.__name__] = module
        self.stack.callback(sys.modules.pop, module.__name__, None)
        self.names["tester"] = Tester(self)

    # what the blocks get

    @property
    def database_url(self) -> str:
        """Return the URL of the page's database, which is made when a block first needs it."""
        if self._database_url is None:
            self._database_url = as_url(self._request.getfixturevalue("pgbus_database"))
            os.environ["PGBUS_DATABASE_URL"] = self._database_url
        return self._database_url

    def port(self, written: str = "8080") -> int:
        """Return the port that stands for one of the pages' ports, 8080 to 8089."""
        return self.ports.setdefault(written, free_port())

    def fixture(self, name: str) -> Any:
        return self._request.getfixturevalue(name)

    def put_in(self, block: Block, text: str) -> str:
        """Return a text of the page with the addresses of this run."""
        for rule in block.values("replace"):
            old, _, new = rule.partition("=>")
            assert old in text, f"{block}: there is no {old!r} to replace"
            text = text.replace(old, new)
        text = _DATABASE.sub(lambda match: self.database_url, text)
        text = _PORT.sub(lambda match: str(self.port(match[0])), text)
        text = text.replace("/path/to/the/clone", str(ROOT))
        return text if block.has("output") else self._expected.put_in(text)

    # running

    def run(self) -> None:
        """Run all blocks. Raises AssertionError, or what a block raises."""
        try:
            for block in self.blocks:
                if block.value("by") or is_listed(block):
                    continue
                if block.has("output"):
                    self._compare(block)
                elif block.runner or block.value("file"):
                    self._run(block)
            for running in chain(*self._running.values()):
                running.check()
        except BaseException:
            for running in chain(*self._running.values()):
                print(f"{running.name} printed:\n{running.output[-4000:]}")
            raise

    def _run(self, block: Block) -> None:
        if (file := block.value("file")) is not None:
            path = self.folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.put_in(block, block.text), encoding="utf-8")
            if not block.has("serves"):
                return
        elif block.language == "python" and block.has("serves"):
            file = f"program_{block.line}.py"
            (self.folder / file).write_text(self.put_in(block, block.text), encoding="utf-8")
        if block.has("serves") and block.language == "python":
            command = f"exec {shlex.quote(sys.executable)} {file}"
            self._start(block, command)
            return
        runner = {"python": self._python, "sh": self._sh, "console": self._console, "sql": self._sql}
        self._outputs[str(block)] = runner[str(block.runner)](block)
        if not block.hidden:
            self._last = block

    def output(self, of: str | None = None) -> str:
        """Return what the last visible block has printed so far, or the one that a comment calls ``of``."""
        if of is not None:
            (block,) = [one for one in self.blocks if one.value("name") == of]
        else:
            assert self._last is not None, "no block has run yet"
            block = self._last
        running = self._running.get(str(block))
        return "".join(one.output for one in running) if running else self._outputs[str(block)]

    def text(self, name: str) -> str:
        """Return the text of the block that a comment calls ``name``, with the addresses of this run."""
        (block,) = [one for one in self.blocks if one.value("name") == name]
        return self.put_in(block, block.text)

    def _compare(self, shown: Block) -> None:
        of = shown.value("of")
        block = self._last if of is None else next(one for one in self.blocks if one.value("name") == of)
        assert block is not None, f"{shown}: no block before it has run"
        runs_on = str(block) in self._running
        deadline = monotonic() + (PATIENCE if runs_on else 0)
        text = self.put_in(shown, shown.text)
        while why := self._expected.compare(text, self.output(of), start=runs_on):
            assert monotonic() < deadline, f"{shown}: {why}"
            gevent.sleep(0.02)

    def _python(self, block: Block) -> str:
        text = self.put_in(block, block.text)
        tree = compile(
            "\n" * (block.line - 1) + text, str(ROOT / block.page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, True
        )
        before = set(self.names)
        wanted = block.value("raises")
        with redirect_stdout(io.StringIO()) as printed:
            try:
                result = eval(tree, self.names)
                if inspect.iscoroutine(result):
                    self.loop.run_until_complete(result)
            except Exception as error:
                if type(error).__name__ != wanted:
                    raise
            else:
                assert wanted is None, f"{block}: it did not raise {wanted}"
            for name in [one for one in self.names if one.startswith("test_") and one not in before]:
                self._call_test(self.names[name])
        return printed.getvalue()

    def _call_test(self, function: Any) -> None:
        arguments = {
            name: self.names[name] if name in self.names else self.fixture(name)
            for name in inspect.signature(function).parameters
        }
        function(**arguments)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Return the event loop of all blocks of the page that await something."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self.stack.callback(self._loop.close)
        return self._loop

    def _sql(self, block: Block) -> str:
        rows: list[str] = []
        connection: Any = psycopg2.connect(self.database_url)
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                for statement in sqlparse.split(self.put_in(block, block.text)):
                    try:
                        cursor.execute(statement)
                    except psycopg2.Error as error:
                        if type(error).__name__ != block.value("raises"):
                            raise AssertionError(f"{block}: {statement}\n{error}") from error
                        continue
                    if cursor.description:
                        rows += ["|".join("" if one is None else str(one) for one in row) for row in cursor.fetchall()]
        finally:
            connection.close()
        return "\n".join(rows)

    def _command(self, block: Block, text: str) -> str:
        text = text.replace(".venv/bin/", f"{self.folder}/.venv/bin/")
        text = _LEFT_OUT.sub(r'\1="$\1"', text)
        place = ROOT if block.value("in") == "clone" else self.folder
        return f"cd {shlex.quote(str(place))}\n{text}"

    def _environment(self) -> dict[str, str]:
        assert self.database_url
        return make_environment(self.folder, PORT=str(self.port()), PGBUS_PORT=str(self.port()))

    def _shell(self, block: Block, text: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self._command(block, self.put_in(block, text))],
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE,
            check=False,
        )
        printed = done.stdout.decode()
        wanted = int(block.value("status") or 0)
        assert done.returncode == wanted, f"{block}: status {done.returncode}, not {wanted}\n{text}\n{printed}"
        return printed

    def _sh(self, block: Block) -> str:
        if not (block.has("background") or block.has("serves")):
            return self._shell(block, block.text)
        text = self.put_in(block, block.text)
        texts = re.sub(r"\\\n", "", text).splitlines() if block.has("each-line") else [text]
        for text in texts:
            if text.strip() and not text.lstrip().startswith("#"):
                self._start(block, self._command(block, text))
        return ""

    def _start(self, block: Block, command: str) -> None:
        if block.has("serves") and self._server is not None:
            self._server.close()
        environment = self._environment()
        running = Background(str(block), command, self.folder, environment)
        self.stack.callback(running.close)
        self._running.setdefault(str(block), []).append(running)
        self._last = self._last if block.hidden else block
        if block.has("serves"):
            self._server = running
            running.wait_for_port(self.port())

    def _console(self, block: Block) -> str:
        printed = ""
        for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            lines = part.split("\n")
            count = 1 + next(n for n, line in enumerate(lines) if not line.endswith("\\"))
            printed = self._shell(block, "\n".join(lines[:count]))
            why = self._expected.compare("\n".join(lines[count:]), printed)
            assert not why, f"{block}: {why}"
        return printed

    def close(self) -> None:
        """End what the blocks have started, and close what they have opened."""
        for value in list(self.names.values()):
            if type(value).__module__.split(".")[0] in {"pgbus_gevent", "psycopg2", "psycopg"}:
                close = getattr(value, "shutdown" if hasattr(value, "shutdown") else "close", None)
                if (inspect.ismethod(close) or inspect.isbuiltin(close)) and not inspect.iscoroutinefunction(close):
                    self.stack.callback(close)
        self.stack.close()


@contextmanager
def opened(parts: Sequence[Block], folder: Path, request: pytest.FixtureRequest) -> Iterator[Page]:
    """Open a page, which consists of these blocks, with its own folder as the working directory, and its own environment."""
    before, place = dict(os.environ), Path.cwd()
    running = Page(parts, folder, request)
    try:
        from pgbus_gevent.testing.servers import SECRET

        for name in [name for name in os.environ if name.startswith(("PGBUS_", "PG", "DATABASE_"))]:
            del os.environ[name]
        os.environ["PGBUS_SECRET"] = SECRET
        os.chdir(folder)
        assert running.database_url  # sets the variable
        yield running
    finally:
        running.close()
        os.chdir(place)
        os.environ.clear()
        os.environ.update(before)
