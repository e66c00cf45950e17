"""Opening one connection: every host and address of the URL in turn, each with a deadline, none blocking the hub.

libpq would resolve names with a blocking call and, when it connects asynchronously, neither keep ``connect_timeout``
nor step over a host that hangs. So the loop over hosts and addresses is here, and names are resolved by the patched
socket module.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from math import ceil
from typing import Any

import psycopg2
import psycopg2.extensions as ext

from ..casting import HIDDEN, redact_url
from ..errors import DatabaseError, DatabaseUnavailable, InvalidArgument
from . import green
from .green import Connection

_DEFAULTS = {
    "gssencmode": "disable",  # libpq would look for a Kerberos ticket with blocking calls
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15000,
}
_OPTIONS = (
    "-c client_connection_check_interval=2s -c idle_session_timeout=0"
    # Our statements wait for a lock and then look again, whatever the database's default is.
    " -c default_transaction_isolation=read\\ committed"
    # What a name in a statement means is not for others to say, who may create things in the schema `public`.
    " -c search_path=pg_catalog,pg_temp"
    # All of them go by an index and bring a few rows. The planner, whose statistics may be of a table that was empty a
    # minute ago, would now and then read it whole instead, or spend more on compiling a statement than it takes.
    " -c enable_seqscan=off -c jit=off"
)
_UNAVAILABLE_CLASSES = ("08", "57", "58", "53")  # connection, operator intervention, system error, out of resources
_INVALID_PARAMETER = "22023"


def connect(
    url: str, *, application_name: str, connect_timeout: float, statement_timeout: float, options: str = ""
) -> Connection:
    """Open a connection in autocommit mode; both timeouts are in seconds, ``options`` are ``-c name=value`` settings.

    Raises :class:`DatabaseUnavailable` when no host of ``url`` takes the connection, with the last one's reason.
    """
    green.ensure()
    parameters = _parse(url)
    own_path = _own_search_path(parameters.get("options", ""))
    settings = (
        f"{parameters.pop('options', '')} -c statement_timeout={round(statement_timeout * 1000)} {_OPTIONS} {options}"
    )
    factory = partial(Connection, connect_timeout=connect_timeout, statement_timeout=statement_timeout)
    last = "the URL names no host"
    for host in _hosts(parameters):
        try:
            for address in _addresses(host):
                try:
                    connection: Connection = psycopg2.connect(
                        **{**_DEFAULTS, **parameters, **address},
                        application_name=application_name,
                        client_encoding="UTF8",
                        # For a process without a wait callback; libpq takes whole seconds, and 1 for 2.
                        connect_timeout=ceil(connect_timeout),
                        options=settings.strip(),
                        connection_factory=factory,
                    )
                except psycopg2.Error as error:
                    # Its text alone, as the traceback would keep the connection's socket open.
                    last = _reason(error, address)
                else:
                    connection.autocommit = True
                    connection.own_search_path = own_path
                    return connection
        except OSError as error:
            last = f"host {_shown(host['host'])} does not resolve: {error.strerror or error}"
    raise DatabaseUnavailable(f"cannot connect to PostgreSQL: {last}")


def _parse(url: str) -> dict[str, Any]:
    try:
        parameters = dict(ext.parse_dsn(url))
    except psycopg2.ProgrammingError:
        # libpq's reason may quote the password.
        raise InvalidArgument(f"the database URL cannot be parsed: {redact_url(url)}") from None
    for ours in ("connect_timeout", "application_name", "client_encoding"):
        parameters.pop(ours, None)
    return parameters


def _own_search_path(options: str) -> str | None:
    """What the URL's ``options`` set search_path to; None where they do not."""
    found = re.findall(r"(?:-c\s*|--)search_path=((?:\\.|\S)+)", options)
    return re.sub(r"\\(.)", r"\1", found[-1]) if found else None


def _hosts(parameters: dict[str, Any]) -> list[dict[str, str]]:
    """The host, hostaddr and port of each host that the URL names, taken out of ``parameters``."""
    names, fixed, ports = (parameters.pop(key, "").split(",") for key in ("host", "hostaddr", "port"))
    count = max(len(names), len(fixed))
    if len(ports) == 1:
        ports *= count  # libpq: one port is for all hosts
    columns = (("host", names), ("hostaddr", fixed), ("port", ports))
    return [{key: values[n] for key, values in columns if n < len(values) and values[n]} for n in range(count)]


def _addresses(host: dict[str, str]) -> list[dict[str, str]]:
    """One entry for each address of a host. Raises OSError when its name does not resolve."""
    name = host.get("host", "")
    if "hostaddr" in host or not name or name.startswith(("/", "@")):
        return [host]
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return [{**host, "hostaddr": address} for address in dict.fromkeys(str(entry[4][0]) for entry in found)]


@contextmanager
def translated() -> Iterator[None]:
    """Turn psycopg2's exceptions into the package's own; the one place that does."""
    try:
        yield
    except psycopg2.Error as error:
        raise translate(error) from error


def translate(error: psycopg2.Error) -> Exception:
    """The package's exception for one of psycopg2's."""
    code = error.pgcode
    message = first_line(error)
    if code == _INVALID_PARAMETER:
        return InvalidArgument(message)
    lost = code is None and isinstance(error, (psycopg2.OperationalError, psycopg2.InterfaceError))
    if lost or (code or "").startswith(_UNAVAILABLE_CLASSES):
        return DatabaseUnavailable(f"PostgreSQL is not available: {message}", code)
    return DatabaseError(message, code)


def _reason(error: psycopg2.Error, address: dict[str, str]) -> str:
    """Why there is no connection, and where: libpq tells the place of a Unix socket itself, but not of a TCP connection."""
    reason = first_line(error)
    if "hostaddr" not in address or reason.startswith("connection to "):
        return reason
    return f"{reason} (address {_shown(address['hostaddr'])}, port {_shown(address.get('port', '5432'))})"


def _shown(name: str) -> str:
    # Of a URL with an unescaped @ in its password, the end of the password is taken for the host.
    return name if re.fullmatch(r"[\w.:-]+", name) else HIDDEN


def first_line(error: Exception) -> str:
    """What an error says, without its context."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
