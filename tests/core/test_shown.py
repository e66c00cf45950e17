"""Untrusted text cannot control a terminal, neither through the log nor through a command."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import gevent
import pytest
from fuzzing.answers import HIDDEN, Liar, Secretive
from hypothesis import given
from hypothesis import strategies as st
from raw_http import exchange, get
from support import PATIENCE, serve_process, until

from pgbus_gevent.bus import Bus
from pgbus_gevent.commands.output import table
from pgbus_gevent.core.shown import described, json_line, kind_of, traceable, visible, visible_lines
from pgbus_gevent.database import Database
from pgbus_gevent.hosts import logs

BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
OBEYED = BIDI + "\u2028\u2029\x1b\x07\x08\x00\x7f\x9b\x9d\x85"


def harmless(text: str) -> bool:
    return not any(character in text for character in OBEYED + "\r")


@given(st.text(st.sampled_from("a é\t\n\r🚀" + OBEYED)))
def test_nothing_is_left_that_a_terminal_obeys(text: str) -> None:
    assert harmless(visible(text)) and "\n" not in visible(text)
    assert harmless(visible_lines(text)) and visible_lines(text).count("\n") == text.count("\n")
    assert harmless(json_line({"data": text})) and json.loads(json_line({"data": text})) == {"data": text}
    assert all(harmless(line) for line in table(("A", "B"), [("x", text)], right=(1,)))


@pytest.mark.parametrize("text", ["plain", "é ü 中", "שלום", "👩\u200d🚀", "a\tb"])
def test_other_text_is_shown_as_it_is(text: str) -> None:
    assert visible(text) == text


@pytest.mark.parametrize("format", ["text", "json"])
def test_the_log_spells_it_out(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    root = logging.getLogger()
    level = root.level
    try:
        logs.configure("info", format)
        try:
            raise ValueError(f"bad {OBEYED}\nsecond line")
        except ValueError:
            logging.getLogger("x").exception("of %s\nINFO forged: line", OBEYED)
    finally:
        assert logs._current is not None
        root.removeHandler(logs._current)
        logs._current = None
        root.setLevel(level)
    assert harmless(stderr.getvalue())
    assert not any(line.startswith("INFO forged") for line in stderr.getvalue().splitlines())
    if format == "json":
        assert json.loads(stderr.getvalue())["message"] == f"of {OBEYED}\nINFO forged: line"


def command(database: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pgbus_gevent", *arguments, "--database-url", database],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_no_command_prints_it(pgbus_database: str, pgbus_bus: Bus) -> None:
    name = f"orders{BIDI}"
    pgbus_bus.stream(name).broadcast(f"data {OBEYED}".replace("\0", ""), event=f"event{BIDI}\x1b")
    facts: Any = {"connections": 1, "unready": f"{BIDI}\x1b"}
    database: Database = pgbus_bus.database
    database.fleet.beat("x", f"host{BIDI}", 1, 0.0, facts)
    with database.queries.transaction() as cursor:  # the worker stays on the roll, however long the commands take
        cursor.execute("update pgbus.workers set seen_at = clock_timestamp() + interval '1 hour'")
    for arguments in (
        ("streams",), ("streams", "--json"), ("connections",), ("connections", "--json"),
        ("broadcast", name, "x", "--event", f"pgbus:{BIDI}\x1b"), ("streams", f"--{BIDI}\x1b"),
    ):  # fmt: skip
        done = command(pgbus_database, *arguments)
        assert harmless(done.stdout) and harmless(done.stderr), arguments
        assert done.stdout or done.returncode == 2, (arguments, done)


@pytest.mark.parametrize("form", [(), ("--json",)], ids=["text", "json"])
def test_nor_does_tail(form: tuple[str, ...], pgbus_database: str, pgbus_bus: Bus) -> None:
    name = f"orders{BIDI}"
    pgbus_bus.stream(name).broadcast(f"first {OBEYED}\nlast".replace("\0", ""), event=f"event{BIDI}\x1b")
    arguments = ["tail", name, "other", "--replay", "1", *form, "--database-url", pgbus_database]
    with subprocess.Popen(
        [sys.executable, "-m", "pgbus_gevent", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as tail:
        assert tail.stdout is not None and tail.stderr is not None
        with gevent.Timeout(3 * PATIENCE):  # it starts a Python of its own
            lines = [tail.stdout.readline() for _ in range(1 if form else 2)]
        tail.terminate()
        assert all(harmless(line) for line in lines) and "last" in lines[-1]
        assert harmless(tail.stderr.read())


def test_a_request_cannot_control_the_terminal_of_the_server(pgbus_database: str, tmp_path: Path) -> None:
    with serve_process(pgbus_database) as server:
        port = int(server.url.rpartition(":")[2])
        for target in ("/\x9b31m", "/%1b[31m", "/%E2%80%AE", "/\xe2\x80\xae"):
            exchange(port, get(target, {"Connection": "close"}), timeout=PATIENCE)
        until(lambda: server.errors.count('" 200') >= 4, "the access log has them")
        assert harmless(server.errors)


def test_what_an_application_made_is_described_even_if_it_hides_everything() -> None:
    assert (kind_of(7), kind_of(HIDDEN[0]())) == ("int", "Hidden")
    assert described([7]) == "[7]"
    assert described(Liar(SystemExit())) == "a Liar that cannot be shown"
    assert len(described("x" * 1000)) == 300


def test_only_an_exception_of_which_a_traceback_can_be_made_is_traceable() -> None:
    error = ValueError("x")
    assert traceable(error) is error
    assert traceable(Secretive()) is None
