"""The command line: finds a command by its name, and runs it. ``__main__`` calls it in a process that is patched for gevent."""

from __future__ import annotations

import difflib
import sys
from io import TextIOWrapper

from .. import __version__
from ..database import green
from ..errors import InvalidArgument
from .program import PROGRAM, Command, Parser, add_common_flags, load_settings, program_errors

COMMANDS = (
    "broadcast",
    "tail",
    "streams",
    "connections",
    "sign",
    "disconnect",
    "migrate",
    "prune",
    "relay",
    "doctor",
    "bench",
)
"""The names of the commands beside ``serve``."""

_SERVE = "serve the streams, and an application beside them"


def main(argv: list[str] | None = None) -> int:
    """Run a command, and return the exit status.

    ``argv`` are the arguments without the program's name; by default, those of the process. Raises SystemExit for ``--help`` and
    for wrong flags, as argparse does.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["serve"]:
        # Imported here, because no other command needs a server and an application.
        from ..serve import main as serve

        return serve(arguments[1:])
    with program_errors(PROGRAM) as outcome:
        if not arguments or arguments[0].startswith("-"):
            _top_parser().parse_args(arguments)
            raise InvalidArgument(f"no command was given; there are {_names()} (see `{PROGRAM} --help`)")
        outcome.status = _run(*arguments)
    return outcome.status


def _run(name: str, *rest: str) -> int:
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, ["serve", *COMMANDS], 1)
        hint = f"did you mean {close[0]}?" if close else f"there are {_names()}"
        raise InvalidArgument(f"there is no command {name!r}; {hint}")
    command = command_of(name)
    parser = Parser(prog=f"{PROGRAM} {name}", description=command.about, epilog=command.examples)
    command.add_arguments(parser)
    add_common_flags(parser, *command.flags, log_level=command.log_level)
    # Intermixed, so that flags may stand between the names of several streams.
    arguments = parser.parse_intermixed_args(list(rest))
    settings = load_settings(arguments)
    if isinstance(sys.stdout, TextIOWrapper):
        # Names of streams are UTF-8, and the output to a pipe must not depend on the locale.
        sys.stdout.reconfigure(encoding="utf-8")
    green.install()
    return command.run(arguments, settings)


def command_of(name: str) -> Command:
    """Return the command with a name of :data:`COMMANDS`.

    Each is imported only if it is used: all together take several times as long to import as most of them to run.
    """
    match name:
        case "broadcast":
            from .streams import BROADCAST

            return BROADCAST
        case "tail":
            from .tail import TAIL

            return TAIL
        case "streams":
            from .streams import STREAMS

            return STREAMS
        case "connections":
            from .connections import CONNECTIONS

            return CONNECTIONS
        case "sign":
            from .streams import SIGN

            return SIGN
        case "disconnect":
            from .connections import DISCONNECT

            return DISCONNECT
        case "migrate":
            from .upkeep import MIGRATE

            return MIGRATE
        case "prune":
            from .upkeep import PRUNE

            return PRUNE
        case "relay":
            from .relay import RELAY

            return RELAY
        case "doctor":
            from .doctor import DOCTOR

            return DOCTOR
        case "bench":
            from ..bench.command import BENCH

            return BENCH
        case _:
            raise KeyError(name)


def _names() -> str:
    *names, last = ["serve", *COMMANDS]
    return f"{', '.join(names)} and {last}"


def _top_parser() -> Parser:
    summaries = {"serve": _SERVE, **{name: command_of(name).summary for name in COMMANDS}}
    listed = "\n".join(f"  {name:12} {summary}" for name, summary in summaries.items())
    parser = Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} COMMAND [ARGUMENT…]",
        description="Live updates from PostgreSQL to browsers, over Server-Sent Events.",
        epilog=f"commands:\n{listed}\n{_ENVIRONMENT}",
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    return parser


_ENVIRONMENT = f"""
`{PROGRAM} COMMAND --help` explains a command.

The database is given by --database-url, PGBUS_DATABASE_URL or DATABASE_URL; without any, it is the embedded one that
`serve` keeps in its data directory. An edge (PGBUS_UPSTREAM) has none: run commands at its
origin. Exit status: 0 done, 1 failed, 2 wrong usage. Errors are one line on stderr.

examples:
  {PROGRAM} serve
  {PROGRAM} tail orders
  {PROGRAM} broadcast orders '<p>paid</p>' --event order.paid"""
