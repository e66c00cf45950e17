"""Opens one connection: tries every host and address of the URL in turn, each with a deadline, without blocking the hub.

libpq resolves names with a blocking call. When it connects asynchronously, it ignores ``connect_timeout`` and does not
skip a host that hangs. So the loop over hosts and addresses is here, and the patched socket module resolves the names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from math import ceil
from typing import Any, NamedTuple

import psycopg2
import psycopg2.extensions as ext

from ..errors import DatabaseUnavailable, InvalidArgument
from ..settings.casting import redact_url
from . import green
from .addresses import PRIMARY, Route, Target, Unresolved, shown, targets
from .failures import first_line, meaning
from .green import Connection
from .session_settings import MARK, NETWORK, SessionSettings


def connect(
    url: str,
    *,
    application_name: str,
    connect_timeout: float,
    statement_timeout: float,
    settings: Mapping[str, str] | None = None,
    route: Route | None = None,
) -> Connection:
    """Open a connection in autocommit mode. Timeouts are in seconds; ``settings`` are PostgreSQL's, by name.

    Of several hosts or addresses, the first primary is taken, unless ``target_session_attrs`` in the URL asks for something
    else. Give the same ``route`` each time you connect to one database. Raises :class:`DatabaseUnavailable`, with the reason
    of the last address, if no address accepts the connection.
    """
    green.ensure()
    route = route or Route()
    parameters = _parse(url)
    attempt = _Attempt(
        {**NETWORK, **parameters, "application_name": application_name, "client_encoding": "UTF8"},
        SessionSettings(statement_timeout, settings or {}),
        partial(Connection, connect_timeout=connect_timeout, statement_timeout=statement_timeout),
        route,
    )
    # For a process without a wait callback. libpq takes whole seconds, and waits 2 s if it is given 1.
    attempt.parameters["connect_timeout"] = ceil(connect_timeout)
    last = "the URL names no host"
    for target in targets(attempt.parameters, route, connect_timeout):
        if isinstance(target, Unresolved):
            last = target.reason
            continue
        try:
            connection = attempt.open(target)
        except psycopg2.Error as error:
            # Only its text: the traceback would keep the connection's socket open.
            last = _reason(error, target.address)
        else:
            connection.own_search_path = _own_search_path(parameters.get("options", ""))
            route.last = target if target.attrs == PRIMARY else None
            return connection
    raise DatabaseUnavailable(f"cannot connect to PostgreSQL: {last}")


class _Attempt(NamedTuple):
    """Everything that is the same for all addresses."""

    parameters: dict[str, Any]
    settings: SessionSettings
    factory: Callable[..., Connection]
    route: Route

    def open(self, target: Target) -> Connection:
        """Connect to one address. Raises psycopg2.Error."""
        if self.route.takes_options:
            try:
                return self._open(target, self.settings.options(self.parameters.get("options", "")))
            except psycopg2.OperationalError as error:
                # This is PgBouncer's message. If PgBouncer is configured to ignore the options, the check in _open() finds out.
                if "options" in self.parameters or not re.search("startup parameter.*options", str(error)):
                    raise
                self.route.takes_options = False
        return self._open(target, "")

    def _open(self, target: Target, options: str) -> Connection:
        wanted = {} if target.attrs is None else {"target_session_attrs": target.attrs}
        at = {**self.parameters, **target.address, **wanted, "options": options}
        connection: Connection = psycopg2.connect(**at, connection_factory=self.factory)
        try:
            connection.autocommit = True
            question, answer = MARK
            with connection.cursor() as cursor:
                cursor.execute(question)
                if cursor.fetchone() != (answer,):
                    connection.prefix = self.settings.prefix
        except BaseException:
            connection.close()
            raise
        return connection


def _parse(url: str) -> dict[str, Any]:
    try:
        parameters = dict(ext.parse_dsn(url))
    except psycopg2.ProgrammingError:
        # libpq's reason may quote the password.
        raise InvalidArgument(f"the database URL cannot be parsed: {redact_url(url)}") from None
    for ours in ("connect_timeout", "application_name", "client_encoding"):
        parameters.pop(ours, None)
    return parameters


def names_in(url: str) -> tuple[str | None, str | None]:
    """Return the role and the database that a URL names, if it does. Raises InvalidArgument."""
    parameters = _parse(url)
    return parameters.get("user"), parameters.get("dbname")


def _own_search_path(options: str) -> str | None:
    """Return the search_path that the URL's ``options`` set, or None."""
    found = re.findall(r"(?:-c\s*|--)search_path=((?:\\.|\S)+)", options)
    return re.sub(r"\\(.)", r"\1", found[-1]) if found else None


@contextmanager
def translated() -> Iterator[None]:
    """Turn psycopg2's exceptions into the package's own. No other code does this."""
    try:
        yield
    except psycopg2.Error as error:
        raise translate(error) from error


def translate(error: psycopg2.Error) -> Exception:
    """Return the package's exception for one of psycopg2's."""
    lost = error.pgcode is None and isinstance(error, (psycopg2.OperationalError, psycopg2.InterfaceError))
    return meaning(error, error.pgcode, lost=lost)


def _reason(error: psycopg2.Error, address: dict[str, str]) -> str:
    """Return the reason of a failed connect, with the address, which libpq leaves out of some messages about TCP connections."""
    reason = first_line(error)
    if "hostaddr" not in address or reason.startswith("connection to "):
        return reason
    return f"{reason} (address {shown(address['hostaddr'])}, port {shown(address.get('port', '5432'))})"
