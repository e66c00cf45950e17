"""What the commands and ``serve`` share: errors that become one line and a status, flags, the database, the secret."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, NoReturn

import gevent

from ..core.shown import visible
from ..database.embedded import EmbeddedPostgres
from ..errors import DatabaseError, InvalidArgument, PgbusError
from ..hosts import logs
from ..settings.flags import add_flags, flags_given
from ..settings.table import Settings

PROGRAM = "pgbus-gevent"

FAILED, USAGE, INTERRUPTED = 1, 2, 130
"""Exit statuses beside 0; the last is what a shell makes of a program that SIGINT ended."""

_NO_RIGHT = "42501"  # insufficient_privilege

_NO_SCHEMA = ("3F000", "42P01", "42883")  # invalid_schema_name, undefined_table, undefined_function


@dataclass
class Outcome:
    """``status`` is the exit status: set it to what the program's work says, unless an error does."""

    status: int = 0


@contextmanager
def program_errors(program: str) -> Iterator[Outcome]:
    """Run a program: what it raises on purpose becomes one line on stderr and an exit status, never a traceback."""
    outcome = Outcome()
    logs.hold()
    hub = gevent.get_hub()
    hub.NOT_ERROR = (*hub.NOT_ERROR, KeyboardInterrupt)  # else the hub prints it before it comes here
    try:
        yield outcome
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        outcome.status = INTERRUPTED
    except BrokenPipeError:
        # Who read our output has enough of it.
        _drop_output()
        outcome.status = 0
    except InvalidArgument as error:
        outcome.status = _complain(program, error, USAGE)
    except (PgbusError, OSError) as error:
        outcome.status = _complain(program, error, FAILED)
        _drop_output()


def _drop_output() -> None:
    """What is still buffered, and cannot be written, must not fail once more at the exit, and change the status."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(program: str, error: Exception, status: int) -> int:
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    say(" ".join(text.splitlines()), program)
    return status


def say(sentence: str, program: str = PROGRAM) -> None:
    """Tell the user something that is not output."""
    if sys.stderr is not None:  # for None, print would take stdout
        print(f"{program}: {visible(sentence)}", file=sys.stderr, flush=True)


class Command(NamedTuple):
    """One command of the command line.

    ``summary`` is for the list of commands, ``about`` and ``examples`` are for its own help. ``flags`` are the settings
    that it takes, ``add_arguments`` puts what else it takes into its parser, ``run`` returns its exit status.
    """

    name: str
    summary: str
    about: str
    examples: str
    flags: tuple[str, ...]
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Settings], int]


class Parser(argparse.ArgumentParser):
    """Tells of wrong usage in one line; shows the description and the examples as they are written."""

    def __init__(self, *, prog: str, description: str, epilog: str, **more: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **more,  # type: ignore[arg-type]
        )

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog.split()[0]}: {visible(message)} (see `{self.prog} --help`)\n")


def add_common_flags(parser: argparse.ArgumentParser, *names: str) -> None:
    """Adds the flags of the settings ``names``, the TOML file's, and those of logging."""
    add_flags(parser, *names, "config")
    group = parser.add_argument_group("Logging, to stderr")
    group.add_argument(
        "--log-level",
        metavar="LEVEL",
        help="the least severe records to log: debug, info, warning or error; PGBUS_LOG_LEVEL; default: warning",
    )
    group.add_argument("--log-format", metavar="FORMAT", help="text or json; PGBUS_LOG_FORMAT; default: text")


def load_settings(arguments: argparse.Namespace) -> Settings:
    """The settings by flags, variables and file; logging is set up by them."""
    settings = Settings.load(**flags_given(arguments))
    level = settings.log_level
    if level == "info" and not arguments.log_level and not os.environ.get("PGBUS_LOG_LEVEL"):
        # The default of a server. A command's stderr is for what the user has to know.
        level = "warning"
    logs.configure(level, settings.log_format)
    return settings


@contextmanager
def database_settings(settings: Settings) -> Iterator[Settings]:
    """The settings with a ``database_url``: where none is given, the embedded server's, which runs for this block.

    Raises :class:`EmbeddedError` when the data directory has no database.
    """
    if settings.database_url is not None:
        yield settings
        return
    with EmbeddedPostgres.open(settings.data_dir, create=False) as server:
        yield replace(settings, database_url=server.url)


@contextmanager
def schema_expected() -> Iterator[None]:
    """Around what reads from a database that nobody has migrated, perhaps: says so, and what to do."""
    try:
        yield
    except DatabaseError as error:
        if error.sqlstate == _NO_RIGHT and "docs/" not in str(error):
            raise DatabaseError(
                f"{error}; ask the owner of the schema to grant this role its rights: docs/sql.md, Roles",
                error.sqlstate,
            ) from error
        if error.sqlstate not in _NO_SCHEMA:
            raise
        raise DatabaseError(
            f"there are no streams in this database: run `{PROGRAM} migrate` on it first, or check the URL",
            error.sqlstate,
        ) from error


def read_or_make_secret(data_dir: str, create: bool) -> str:
    """The secret that signs stream names where none is configured: the line of ``<data_dir>/secret``.

    With ``create`` it is made when it is missing, readable by its owner alone. Raises :class:`InvalidArgument` when it
    is missing or is no secret, and OSError when it cannot be read or made.
    """
    path = Path(data_dir, "secret")
    if create and not path.exists():
        _make_secret(path)
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        raise InvalidArgument(
            f"there is no secret to sign with: set PGBUS_SECRET to the server's, or start `{PROGRAM} serve` on its"
            f" embedded database, which makes {path}"
        ) from None
    if len(lines) != 1 or len(lines[0]) < 16:
        raise InvalidArgument(
            f"{path} does not hold a secret, which is one line of 16 characters or more: remove it to have a new one"
            " made (names signed so far will no longer verify)"
        )
    return lines[0]


def _make_secret(path: Path) -> None:
    """Several may do this at the same time: the first one's is everybody's, and nobody ever sees half of one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(f"secret.{secrets.token_hex(8)}")
    descriptor = os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(new, path)
        except FileExistsError:
            pass
    finally:
        new.unlink()
