"""The hosts of a database URL, the addresses of each host, and the order in which they are tried."""

from __future__ import annotations

import random
import re
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address
from typing import Any, NamedTuple

import gevent
from gevent import monkey

from ..settings.casting import HIDDEN

PRIMARY = "primary"


class Target(NamedTuple):
    """One address to try: libpq's parameters, and the ``target_session_attrs`` that the server must have, if any."""

    address: dict[str, str]
    attrs: str | None


class Route:
    """Knowledge from earlier connects to one database. A caller that connects repeatedly keeps one; it starts empty."""

    def __init__(self) -> None:
        self.last: Target | None = None
        """The address of the primary, if there are several; it is tried first."""
        self.takes_options = True
        """False behind a pooler that refuses settings in the startup packet."""


class Unresolved(NamedTuple):
    """A host whose name did not resolve, with the reason."""

    reason: str


def targets(parameters: dict[str, Any], route: Route, timeout: float) -> Iterator[Target | Unresolved]:
    """Yield every address of every host, in the order in which to try them. Removes the hosts from ``parameters``.

    A name is resolved when its turn comes, within ``timeout`` seconds. With several hosts or addresses, only a primary will do,
    unless ``target_session_attrs`` asks for something else.
    """
    hosts = _hosts(parameters)
    shuffles = parameters.pop("load_balance_hosts", "disable") == "random"
    if shuffles:
        random.shuffle(hosts)
    wanted = parameters.pop("target_session_attrs", None)
    first = None if shuffles else route.last
    if first is not None:
        yield first
    # libpq is given one host at a time, so it cannot do the two rounds of prefer-standby itself.
    for attrs in ("standby", "any") if wanted == "prefer-standby" else (wanted,):
        for host in hosts:
            try:
                addresses = _addresses(host, timeout)
            except OSError as error:
                yield Unresolved(f"host {shown(host['host'])} does not resolve: {error.strerror or error}")
                continue
            if shuffles:
                random.shuffle(addresses)
            several = len(hosts) > 1 or _are_several(addresses)
            for address in addresses:
                target = Target(address, attrs or (PRIMARY if several else None))
                if target != first:
                    yield target


def _hosts(parameters: dict[str, Any]) -> list[dict[str, str]]:
    """Remove the hosts from ``parameters``, and return the host, hostaddr and port of each."""
    names, fixed, ports = (parameters.pop(key, "").split(",") for key in ("host", "hostaddr", "port"))
    count = max(len(names), len(fixed))
    if len(ports) == 1:
        ports *= count  # as in libpq, a single port is for all hosts
    columns = (("host", names), ("hostaddr", fixed), ("port", ports))
    return [{key: values[n] for key, values in columns if n < len(values) and values[n]} for n in range(count)]


def _addresses(host: dict[str, str], timeout: float) -> list[dict[str, str]]:
    """Return one entry for each address of a host. Raises OSError if its name does not resolve."""
    name = host.get("host", "")
    if "hostaddr" in host or not name or name.startswith(("/", "@")):
        return [host]
    with suppress(ValueError):
        # An address needs no resolver. gevent's would ask a thread, which a busy machine may start too late for the timeout.
        return [{**host, "hostaddr": str(ip_address(name))}]
    found = _resolved(name, timeout)
    return [{**host, "hostaddr": address} for address in dict.fromkeys(str(entry[4][0]) for entry in found)]


def _resolved(name: str, timeout: float) -> list[Any]:
    if not monkey.is_module_patched("socket"):
        return socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    late = OSError("no name server answered in time")
    with gevent.Timeout(timeout, late):
        return socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)


def _are_several(addresses: list[dict[str, str]]) -> bool:
    """Whether these addresses belong to several servers. A single server may have one IPv4 and one IPv6 address."""
    families = Counter(":" in address.get("hostaddr", "") for address in addresses)
    return max(families.values(), default=0) > 1


def shown(name: str) -> str:
    """Return a host's name as an error message may show it."""
    # If the password in a URL has an unescaped @, libpq takes the end of the password for the host.
    return name if re.fullmatch(r"[\w.:-]+", name) else HIDDEN
