"""What all commands and ``serve`` share: errors that become one line and an exit status, flags, and the database."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple, NoReturn

import gevent

from ..core.shown import visible
from ..database import Database
from ..database.embedded import EmbeddedPostgres
from ..errors import DatabaseError, InvalidArgument, PgbusError
from ..hosts import logs
from ..settings.flags import add_flags, flags_given
from ..settings.table import Settings

PROGRAM = "pgbus-gevent"

FAILED, USAGE, INTERRUPTED = 1, 2, 130
"""Exit statuses other than 0. The last one is that of a program that SIGINT ended, as shells report it."""

_NO_RIGHT = "42501"  # insufficient_privilege

_NO_SCHEMA = ("3F000", "42P01", "42883")  # invalid_schema_name, undefined_table, undefined_function


@dataclass
class Outcome:
    """The outcome of a program. The program sets ``status``, its exit status; an error replaces it."""

    status: int = 0


@contextmanager
def program_errors(program: str) -> Iterator[Outcome]:
    """Run a program. Errors that it raises on purpose become one line on stderr and an exit status, without a traceback."""
    outcome = Outcome()
    logs.hold()
    hub = gevent.get_hub()
    hub.NOT_ERROR = (*hub.NOT_ERROR, KeyboardInterrupt)  # or the hub would print a traceback
    try:
        yield outcome
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        outcome.status = INTERRUPTED
    except BrokenPipeError:
        # The reader of our output, such as `head`, has ended.
        _drop_output()
        outcome.status = 0
    except InvalidArgument as error:
        outcome.status = _complain(program, error, USAGE)
    except (PgbusError, OSError) as error:
        outcome.status = _complain(program, error, FAILED)
        _drop_output()


def _drop_output() -> None:
    """Drop buffered output that cannot be written. Otherwise it would fail again at the exit, and change the status."""
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
    """Print a sentence to stderr, after the name of the program."""
    if sys.stderr is not None:  # with file=None, print would write to stdout
        print(f"{program}: {visible(sentence)}", file=sys.stderr, flush=True)


class Command(NamedTuple):
    """One command of the command line.

    ``summary`` is its line in the list of commands; ``about`` and ``examples`` are texts of its own help. ``flags`` are the
    settings that it takes, ``add_arguments`` adds its other arguments to a parser, and ``run`` returns its exit status.
    ``log_level`` is the level of its log if none is given.
    """

    name: str
    summary: str
    about: str
    examples: str
    flags: tuple[str, ...]
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Settings], int]
    log_level: str = "warning"


class Parser(argparse.ArgumentParser):
    """Reports wrong usage in one line, and prints the description and the examples without reformatting them."""

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


def add_common_flags(parser: argparse.ArgumentParser, *names: str, log_level: str) -> None:
    """Add the flags of the settings ``names``, of the TOML file, and of logging, whose default is ``log_level``."""
    add_flags(parser, *names, "config")
    group = parser.add_argument_group("Logging to stderr")
    group.add_argument(
        "--log-level",
        metavar="LEVEL",
        help="the least severe records that are logged: debug, info, warning or error; PGBUS_LOG_LEVEL;"
        f" default: {log_level}",
    )
    group.add_argument("--log-format", metavar="FORMAT", help="text or json; PGBUS_LOG_FORMAT; default: text")


def add_json(parser: argparse.ArgumentParser, keys: str) -> None:
    """Add the flag ``--json``. ``keys`` names the keys of each object, for the help."""
    parser.add_argument("--json", action="store_true", help=f"print JSON, one object per line, with {keys}")


def load_settings(arguments: argparse.Namespace) -> Settings:
    """Return the settings from flags, variables and file, and configure logging by them."""
    settings = Settings.load(**flags_given(arguments))
    level = settings.log_level
    if level == "info" and not arguments.log_level and not os.environ.get("PGBUS_LOG_LEVEL"):
        # "info" is the default for servers. A command logs only warnings and errors.
        level = "warning"
    logs.configure(level, settings.log_format)
    return settings


@contextmanager
def database_settings(settings: Settings) -> Iterator[Settings]:
    """Yield the settings with a ``database_url``. If none is given, it is that of the embedded server, which runs for the block.

    The setting ``upstream`` is left out, because only ``serve`` can be an edge. Raises :class:`InvalidArgument` if it is set
    without a ``database_url``, and :class:`EmbeddedError` if the data directory has no database.
    """
    if settings.database_url is not None:
        yield replace(settings, upstream=None)
        return
    if settings.upstream is not None:
        # The embedded database of this machine is not that of the origin, so a message in it would reach nobody.
        raise InvalidArgument(
            "upstream is set, so this is an edge, which has no database: run the command at the origin, or give --database-url"
        )
    with EmbeddedPostgres.open(settings.data_dir, create=False) as server:
        yield replace(settings, database_url=server.url)


@contextmanager
def schema_expected() -> Iterator[None]:
    """Explain errors of a block that reads from a database whose schema or whose rights may be missing."""
    try:
        yield
    except DatabaseError as error:
        if error.sqlstate == _NO_RIGHT and "docs/" not in str(error):
            raise DatabaseError(
                f"{error}; ask the owner of the schema to grant this role its rights (docs/sql.md, Roles)",
                error.sqlstate,
            ) from error
        if error.sqlstate not in _NO_SCHEMA:
            raise
        raise DatabaseError(
            f"there are no streams in this database; run `{PROGRAM} migrate` on it first, or check the URL",
            error.sqlstate,
        ) from error


@contextmanager
def read_only_database(settings: Settings) -> Iterator[Database]:
    """Open the database for a command that only reads. Explain errors of the block if the schema or rights are missing."""
    with (
        database_settings(settings) as settings,
        schema_expected(),
        closing(Database(settings, read_only=True)) as database,
    ):
        yield database
