"""The command line: finds the command, and runs it. ``__main__`` calls it in a process that is patched for gevent."""

from __future__ import annotations

import difflib
import sys
from io import TextIOWrapper

from .. import __version__
from ..bench.command import BENCH
from ..database import green
from ..errors import InvalidArgument
from .common import PROGRAM, Parser, add_common_flags, load_settings, program_errors
from .doctor import DOCTOR
from .operators import CONNECTIONS, DISCONNECT
from .simple import BROADCAST, MIGRATE, PRUNE, SIGN, STREAMS
from .tail import TAIL

COMMANDS = {
    command.name: command
    for command in (BROADCAST, TAIL, STREAMS, CONNECTIONS, SIGN, DISCONNECT, MIGRATE, PRUNE, DOCTOR, BENCH)
}

_SERVE = "serve the streams to browsers, and an application beside them"


def main(argv: list[str] | None = None) -> int:
    """Run a command; the exit status. Raises SystemExit for ``--help`` and wrong flags, as argparse does."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["serve"]:
        # It loads a server and an application, which no other command needs.
        from ..serve import main as serve

        return serve(arguments[1:])
    with program_errors(PROGRAM) as outcome:
        if not arguments or arguments[0].startswith("-"):
            _top_parser().parse_args(arguments)
            raise InvalidArgument(f"which command? There are {_names()} (see `{PROGRAM} --help`)")
        outcome.status = _run(*arguments)
    return outcome.status


def _run(name: str, *rest: str) -> int:
    command = COMMANDS.get(name)
    if command is None:
        close = difflib.get_close_matches(name, ["serve", *COMMANDS], 1)
        hint = f"did you mean {close[0]}?" if close else f"there are {_names()}"
        raise InvalidArgument(f"there is no command {name!r}; {hint}")
    parser = Parser(prog=f"{PROGRAM} {name}", description=command.about, epilog=command.examples)
    command.add_arguments(parser)
    add_common_flags(parser, *command.flags)
    # Intermixed: flags may stand between the names of several streams.
    arguments = parser.parse_intermixed_args(list(rest))
    settings = load_settings(arguments)
    if isinstance(sys.stdout, TextIOWrapper):
        # Names of streams are UTF-8, and what a pipe carries must not depend on the locale.
        sys.stdout.reconfigure(encoding="utf-8")
    green.install()
    return command.run(arguments, settings)


def _names() -> str:
    *names, last = ["serve", *COMMANDS]
    return f"{', '.join(names)} and {last}"


def _top_parser() -> Parser:
    summaries = {"serve": _SERVE, **{name: command.summary for name, command in COMMANDS.items()}}
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
Each explains itself: `{PROGRAM} COMMAND --help`.

The database is that of --database-url, of PGBUS_DATABASE_URL or of DATABASE_URL; without any, the embedded one that
`serve` keeps in its data directory. Status: 0 done, 1 failed, 2 wrong usage; errors are one line on stderr.

examples:
  {PROGRAM} serve
  {PROGRAM} tail orders
  {PROGRAM} broadcast orders '<p>paid</p>' --event order.paid"""
