"""Writes the pages of docs/reference that are made from the code: ``.venv/bin/python -m website.reference``.

They are files of the repository, so that they can be read there too. A test fails if one is not as the code makes it. The page of
the Python interface is not among them: mkdocstrings makes it when the site is built.
"""

from __future__ import annotations

if __name__ == "__main__":
    from gevent import monkey

    monkey.patch_all()

import argparse
import inspect
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2

from pgbus_gevent import errors
from pgbus_gevent.commands.main import COMMANDS, command_of
from pgbus_gevent.commands.program import PROGRAM, Parser, add_common_flags
from pgbus_gevent.core import events
from pgbus_gevent.database import Database, green
from pgbus_gevent.database.embedded import EmbeddedPostgres
from pgbus_gevent.settings.table import Settings

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs/reference"
SQL = ROOT / "pgbus_gevent/database/sql"
MADE = "<!-- Made by `python -m website.reference`: change the code, not this page. -->\n"
ROLES = ("publisher", "reader", "server", "pruner", "operator")


# commands


def cli_page() -> str:
    """Return the page of the commands."""
    parts = [
        MADE,
        "# Commands\n",
        "This page lists each command with its arguments. The program is `pgbus-gevent COMMAND`, or"
        " `python -m pgbus_gevent COMMAND`, which is the same. Without a database URL, a command uses the embedded PostgreSQL"
        " in the data directory. The flags of [settings](../settings.md) can also be given as variables, or in a TOML file with"
        " `--config`. See also the [exit statuses](exit-codes.md).\n",
        "## serve\n",
        "Serve the streams, and an application beside them: `pgbus-gevent serve [APP]`, or `python -m pgbus_gevent.serve [APP]`."
        " `APP` is `module:application`, a WSGI application to serve at `/`. `--no-demo` serves the streams alone. Without both,"
        " the demo is served, which publishes all the time and keeps its tables in the same database. Every"
        " [setting](../settings.md) is a flag. [The server](../serving.md) describes the rest.\n",
    ]
    for command in map(command_of, COMMANDS):
        parser = Parser(prog=f"{PROGRAM} {command.name}", description=command.about, epilog=command.examples)
        command.add_arguments(parser)
        own = _actions(parser)
        add_common_flags(parser, *command.flags, log_level=command.log_level)
        parts += [f"## {command.name}\n", *_about(command.about), _arguments(own)]
        names = [f"`{_flag(action)}`" for action in _actions(parser)[len(own) :]]
        parts.append(f"Flags of settings and of the log: {', '.join(names)}.\n")
        if examples := command.examples.partition("examples:\n")[2]:
            parts.append(f"```text\n{inspect.cleandoc(examples)}\n```\n")
    return "\n".join(parts)


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if "--help" not in action.option_strings]


def _flag(action: argparse.Action) -> str:
    return action.option_strings[-1] if action.option_strings else str(action.metavar or action.dest)


def _arguments(actions: list[argparse.Action]) -> str:
    """Return a table of arguments."""
    rows = ["| argument | meaning |\n| --- | --- |\n"]
    for action in actions:
        value = f" {action.metavar or action.dest.upper()}" if action.option_strings and action.nargs != 0 else ""
        meaning = str(action.help).replace("%(default)s", _default(action)).replace("%%", "%")
        rows.append(f"| `{_flag(action)}{value}` | {_escaped(meaning)} |\n")
    return "".join(rows) if actions else ""


def _default(action: argparse.Action) -> str:
    value = action.default
    return "/".join(value.parts[-3:]) if isinstance(value, Path) else str(value)


def _about(text: str) -> Iterator[str]:
    """Yield the paragraphs of a help text. Those with a list in columns become text as it is."""
    for paragraph in text.split("\n\n"):
        if "\n  " in paragraph:
            yield f"```text\n{paragraph}\n```\n"
        else:
            yield f"{_escaped(' '.join(paragraph.split()))}\n"


# exceptions


def exceptions_page() -> str:
    """Return the page of the exceptions."""
    tree = inspect.cleandoc(errors.__doc__ or "").partition("::\n\n")[2].partition("\n\nThe message")[0]
    parts = [
        MADE,
        "# Exceptions\n",
        "This page lists the exceptions that the package raises on purpose. They are in `pgbus_gevent.errors`. The message of each"
        " says what is wrong and what to do, and data that a handler may need are attributes. To catch all of them, catch"
        " `pgbus_gevent.PgbusError`. The commands print the message in one line, and end with an [exit"
        " status](exit-codes.md).\n",
        f"```text\n{inspect.cleandoc(tree)}\n```\n",
    ]
    for one in _classes(errors, Exception):
        bases = ", ".join(f"`{base.__name__}`" for base in one.__bases__)
        parts += [f"## {one.__name__}\n", f"Base: {bases}.\n", _docstring(one)]
    return "\n".join(parts)


# events


def events_page() -> str:
    """Return the page of the events for hooks."""
    parts = [
        MADE,
        "# Events for hooks\n",
        "This page lists the events that an [Instance](../glossary.md#instance) reports to handlers of your application: named"
        " tuples of `pgbus_gevent.core.events`. [Instrumentation](../instrumentation.md) says how to subscribe to them, and what"
        " a handler may do. The events that browsers get are listed in [the browser](../browser.md#events).\n",
    ]
    for kind in events.KINDS:
        parts += [f"## {kind.__name__}\n", _docstring(kind)]
        fields = [f"- `{name}`: `{_type_of(kind, name)}`\n" for name in kind._fields]
        parts.append("".join(["Fields:\n\n", *fields]) if fields else "It has no fields.\n")
    return "\n".join(parts)


def _type_of(kind: type, field: str) -> str:
    annotation = kind.__annotations__[field]
    return str(getattr(annotation, "__forward_arg__", annotation))


def _classes(module: Any, base: type) -> list[type]:
    found = [one for one in vars(module).values() if isinstance(one, type) and issubclass(one, base)]
    return [one for one in found if one.__module__ == module.__name__]


def _docstring(one: type) -> str:
    """Return a docstring as Markdown: names of our classes without the markup of reStructuredText."""
    text = re.sub(r":\w+:`[~.]*([^`]+)`", r"`\1`", inspect.getdoc(one) or "").replace("``", "`")
    return "\n\n".join(_escaped(" ".join(paragraph.split())) for paragraph in text.split("\n\n")) + "\n"


# functions of SQL

FUNCTIONS = """
select proname, pg_get_function_arguments(oid), pg_get_function_result(oid), obj_description(oid, 'pg_proc'),
    array(select role from unnest(%s::text[]) role where has_function_privilege('pgbus_reference_' || role, oid, 'execute'))
from pg_proc
where pronamespace = 'pgbus'::regnamespace and left(proname, 1) <> '_' and obj_description(oid, 'pg_proc') is not null
"""

TITLES = {
    "0002_publishing": "Publishing",
    "0001_messages": "Reading, locks and channels",
    "0003_presence": "Presence",
    "0004_watching": "Watching tables",
    "0005_retention": "Retention",
    "0006_fleet": "Connections",
    "0007_rights": "Rights",
}
"""The headings of the page, by the file that has the functions."""


def sql_page(url: str) -> str:
    """Return the page of the SQL functions, from a database with the schema. The user must be allowed to create roles."""
    functions: dict[str, list[tuple[str, str, str, list[str]]]] = {}
    for name, arguments, result, comment, roles in _functions(url):
        functions.setdefault(name, []).append((arguments, result, comment, roles))
    parts = [
        MADE,
        "# SQL functions\n",
        "This page lists the functions of schema `pgbus` that applications and operators may call, from their comments in the"
        " database. [Publishing from SQL](../sql.md) explains them with examples. A role may call a function after the owner of"
        " the schema has granted it with the `grant_` function that is named. Functions whose names start with `_` are internal.\n",
    ]
    for file, title in TITLES.items():
        source = (SQL / f"{file}.sql").read_text(encoding="utf-8")
        names = [
            name
            for name in dict.fromkeys(re.findall(r"^create function pgbus\.(\w+)", source, re.M))
            if name in functions
        ]
        parts += [f"## {title}\n"] if names else []
        for name in names:
            parts.append(f"### {name}\n")
            first, *others = functions.pop(name)
            parts += _function(name, *first)
            # Those that take data of another type have the same arguments and rights.
            same = [one for one in others if one[2].startswith("Does the same as ")]
            parts += [f"{_escaped(' '.join(one[2].split()))}\n" for one in same]
            for one in others:
                parts += [] if one in same else _function(name, *one)
    if functions:
        raise ValueError(f"no heading in TITLES has the functions {', '.join(functions)}")
    return "\n".join(parts)


def _functions(url: str) -> list[Any]:
    """Return the functions, with the roles that may call them. The roles exist only in a transaction that is rolled back."""
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        for role in ROLES:
            cursor.execute(f"create role pgbus_reference_{role}")
            cursor.execute(f"select pgbus.grant_{role}('pgbus_reference_{role}')")
        cursor.execute(f"{FUNCTIONS} order by oid", [list(ROLES)])
        return cursor.fetchall()


def _function(name: str, arguments: str, result: str, comment: str, roles: list[str]) -> Iterator[str]:
    about, _, fails = " ".join(comment.split()).partition(" Errors: ")
    given = [re.sub(r" DEFAULT (\w+|'[^']*')(::[\w ]+(\[\])?)?", r" default \1", one) for one in _split(arguments)]
    given = [re.sub(r"default NULL$", "default null", one) for one in given]
    line = f"{name}({', '.join(given)}) → {result}"
    if len(line) > 100:
        line = f"{name}(\n    " + ",\n    ".join(given) + f"\n) → {result}"
    yield f"```text\n{line}\n```\n"
    yield f"{_escaped(about)}\n"
    if fails:
        yield f"*Errors:* {_escaped(fails)}\n"
    granted = ", ".join(f"`grant_{role}`" for role in roles)
    yield f"*Granted by:* {granted}.\n" if granted else "*For the owner of the schema only.*\n"


def _split(arguments: str) -> list[str]:
    """Split a list of arguments at its commas, except in a type with parentheses."""
    return re.split(r", (?![^(]*\))", arguments) if arguments else []


def _escaped(text: str) -> str:
    """Return plain text as Markdown. Words in backquotes stay as they are, and so do underscores within words."""
    pieces = re.split(r"(`[^`]*`)", text)
    special = r"([<*|\\]|(?<!\w)_|_(?!\w))"
    return "".join(piece if n % 2 else re.sub(special, r"\\\1", piece) for n, piece in enumerate(pieces))


PURE: dict[str, Callable[[], str]] = {
    "cli.md": cli_page,
    "exceptions.md": exceptions_page,
    "events.md": events_page,
}
"""The pages that need no database."""


def main() -> None:
    """Write all pages, with an embedded PostgreSQL for those that need one."""
    green.install()
    for name, make in PURE.items():
        (PAGES / name).write_text(make(), encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder, EmbeddedPostgres.open(Path(folder)) as server:
        with closing(Database(Settings(database_url=server.url))) as database:
            database.migrate()
        (PAGES / "sql-functions.md").write_text(sql_page(server.url), encoding="utf-8")


if __name__ == "__main__":
    main()
