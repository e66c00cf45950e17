"""Where a URL may lead: its hosts, all addresses of each, and in which order they are tried."""

from __future__ import annotations

import random
import re
import socket
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import gevent
from gevent import monkey

from ..settings.casting import HIDDEN

PRIMARY = "primary"


class Target(NamedTuple):
    """One address to try: parameters of libpq, and the ``target_session_attrs`` that the server has to have, if any."""

    address: dict[str, str]
    attrs: str | None


class Route:
    """What was learnt on the way to one database, for who connects again and again; empty at first."""

    def __init__(self) -> None:
        self.last: Target | None = None
        """The address that was a primary, of several; it is tried first."""
        self.takes_options = True
        """False behind a pooler that refuses settings in the start-up packet."""


class Unresolved(NamedTuple):
    """A host without an address, and why."""

    reason: str


def targets(parameters: dict[str, Any], route: Route, timeout: float) -> Iterator[Target | Unresolved]:
    """Every address of every host, which are taken out of ``parameters``; names are resolved when it is their turn, each within
    ``timeout`` seconds.

    Where there are several, the primary is wanted, unless ``target_session_attrs`` says otherwise.
    """
    hosts = _hosts(parameters)
    shuffles = parameters.pop("load_balance_hosts", "disable") == "random"
    if shuffles:
        random.shuffle(hosts)
    wanted = parameters.pop("target_session_attrs", None)
    first = None if shuffles else route.last
    if first is not None:
        yield first
    # One host at a time, libpq cannot know which is the next best.
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
    """The host, hostaddr and port of each host that the URL names, taken out of ``parameters``."""
    names, fixed, ports = (parameters.pop(key, "").split(",") for key in ("host", "hostaddr", "port"))
    count = max(len(names), len(fixed))
    if len(ports) == 1:
        ports *= count  # libpq: one port is for all hosts
    columns = (("host", names), ("hostaddr", fixed), ("port", ports))
    return [{key: values[n] for key, values in columns if n < len(values) and values[n]} for n in range(count)]


def _addresses(host: dict[str, str], timeout: float) -> list[dict[str, str]]:
    """One entry for each address of a host. Raises OSError when its name does not resolve."""
    name = host.get("host", "")
    if "hostaddr" in host or not name or name.startswith(("/", "@")):
        return [host]
    found = _resolved(name, timeout)
    return [{**host, "hostaddr": address} for address in dict.fromkeys(str(entry[4][0]) for entry in found)]


def _resolved(name: str, timeout: float) -> list[Any]:
    if not monkey.is_module_patched("socket"):
        return socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    late = OSError("no name server answers in time")
    with gevent.Timeout(timeout, late):
        return socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)


def _are_several(addresses: list[dict[str, str]]) -> bool:
    """Whether they are of several servers: one that has IPv4 and IPv6 has an address of each."""
    families = Counter(":" in address.get("hostaddr", "") for address in addresses)
    return max(families.values(), default=0) > 1


def shown(name: str) -> str:
    """A host's name as an error may show it."""
    # Of a URL with an unescaped @ in its password, the end of the password is taken for the host.
    return name if re.fullmatch(r"[\w.:-]+", name) else HIDDEN
