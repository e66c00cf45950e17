"""The checks of ``doctor`` on the way into the database: whether it answers, and which rights the role lacks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import monotonic

from ..core.shown import json_line
from ..database import Database
from ..database.checks import Checks
from ..database.connect import names_in
from ..errors import DatabaseError
from ..settings.table import Settings
from .finding import FAIL, OK, WARN, Finding, rounded

OLDEST_SERVER = 140000
_SLOW = 0.05  # seconds; an answer that takes longer is a warning

_NO_CONNECT = "permission denied for database"
"""What PostgreSQL says to a role without the right CONNECT. libpq passes on no error code of a failed connection."""


def reach(checks: Checks, settings: Settings) -> Finding:
    """Ask the database twice, and tell how long an answer takes."""
    try:
        number, name = checks.server()
        began = monotonic()
        checks.server()
    except DatabaseError as error:
        return _unreached(error, settings)
    took = monotonic() - began
    text = f"PostgreSQL {name} answers in {took * 1000:.1f} ms"
    figures = {"answer_seconds": rounded(took), "server_version": number}
    if number < OLDEST_SERVER:
        return Finding("database", FAIL, text, "upgrade the server to PostgreSQL 14 or later", figures)
    if took > _SLOW:
        return Finding("database", WARN, text, "move it closer or relieve it: every broadcast waits that long", figures)
    return Finding("database", OK, text, figures=figures)


def _unreached(error: DatabaseError, settings: Settings) -> Finding:
    if _NO_CONNECT not in str(error):
        return Finding("database", FAIL, str(error), "check the URL, the password, and that the server runs")
    role, name = names_in(settings.database_url or "")
    text = f"role {json_line(role) if role else 'of the URL'} lacks connect on database {json_line(name)}"
    todo = "let the owner of the database run: grant connect on database … to … (docs/sql.md, Roles)"
    return Finding("database", FAIL, f"{text}: {error}", todo)


_SHOWN = 5  # rights in a line that a person reads


def rights(checks: Checks, grants: Sequence[str], otherwise: str = "say so by --rights") -> Iterator[Finding]:
    """Name the role, the rights of these grants that it lacks, and what gives them.

    ``otherwise`` is what to do if the role is not meant to have them. Nothing is yielded if there is no schema.
    """
    try:
        role, owner = checks.role()
        missing = {grant: checks.missing_rights(grant) for grant in grants}
    except DatabaseError as error:
        yield Finding("rights", FAIL, f"could not be checked: {error}", "run the command again")
        return
    if owner is None:
        return  # the check "schema" says so
    every = {right for rights in missing.values() for right in rights}
    lacking = sorted(
        every, key=lambda right: (not right.startswith("usage "), right)
    )  # without usage, no other right counts
    figures = {"role": role, "missing": lacking}
    if not lacking:
        text = f"role {json_line(role)} has the rights of {', '.join(grants)}"
        yield Finding("rights", OK, text, figures=figures)
        return
    calls = "; ".join(f"select pgbus.grant_{grant}({_literal(role)})" for grant, rights in missing.items() if rights)
    more = f" and {len(lacking) - _SHOWN} more rights (--json has all)" if len(lacking) > _SHOWN else ""
    text = f"role {json_line(role)} lacks {', '.join(lacking[:_SHOWN])}{more}"
    todo = f"let the owner, role {json_line(owner)}, run: {calls} (docs/sql.md, Roles)"
    if missing.get("pruner"):
        todo += "; a server without pruner needs prune_interval=0 (docs/retention.md)"
    yield Finding("rights", FAIL, text, f"{todo}; if the role is not meant to have them, {otherwise}", figures)


def _literal(name: str) -> str:
    quoted = name.replace("'", "''")
    return f"'{quoted}'"


def obstacles(settings: Settings) -> list[Finding]:
    """Return what keeps these settings from publishing: failures of the checks above, or nothing."""
    database = Database(settings, read_only=True)
    try:
        checks = Checks(database.pool)
        reached = reach(checks, settings)
        found = [reached] if reached.level == FAIL else rights(checks, ["publisher"], "give --stream")
        return [one for one in found if one.level == FAIL]
    finally:
        database.close()
