"""The limits of connections: how many there may be, what counts as one address, and when a refused client comes back."""

from __future__ import annotations

import logging
import random
import resource
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any, NamedTuple

logger = logging.getLogger("pgbus_gevent.streamer")

RESERVE = 256
"""File descriptors that are kept free for health checks, the database and files."""

WAITING = 1000
"""The most connections of our server that have no request. They take at most an eighth of the process's limit of descriptors."""

_WAITING_SHARE = 8

_TRANSLATED = IPv6Network("64:ff9b::/96")


class Limits(NamedTuple):
    """How many connections there may be: in all, of one owner and of one address. ``age`` is their longest time in seconds.

    0 means no limit, except for ``connections``.
    """

    connections: int
    per_owner: int = 0
    per_address: int = 0
    age: float = 0.0

    @classmethod
    def of(cls, settings: Any) -> Limits:
        """Return the limits of a ``Settings``."""
        return cls(settings.max_connections, settings.max_per_owner, settings.max_per_address, settings.max_age)

    def fitted(self) -> Limits:
        """Return these limits, lowered to the limit of open files, so that descriptors are left for health checks."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        kept = reserve(soft)
        if soft == resource.RLIM_INFINITY or soft - kept >= self.connections:
            return self
        logger.warning(
            "the limit of %d open files is below max_connections=%d and a reserve of %d: %d connections are accepted at most;"
            " raise the limit (ulimit -n), or lower max_connections",
            *(soft, self.connections, kept, soft - kept),
        )
        return self._replace(connections=soft - kept)


@lru_cache(maxsize=4096)
def network_of(address: str) -> str:
    """Return what identifies one host in the cap of addresses: an IPv4 address, or an IPv6 network of 64 bits.

    A host chooses the other 64 bits itself (RFC 4291, section 2.5.1). An IPv4 address may be written as IPv6: mapped, or by a
    translator in front of a network that has only IPv6 (RFC 6052).
    """
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, IPv4Address):
        return str(found)
    if found in _TRANSLATED:
        return str(IPv4Address(int(found) & 0xFFFFFFFF))
    return str(found.ipv4_mapped or f"{IPv6Address(int(found) >> 64 << 64)}/64")


def most_waiting(descriptors: int) -> int:
    """Return how many connections may be without a request in a process that may have this many descriptors."""
    return WAITING if descriptors == resource.RLIM_INFINITY else max(1, min(WAITING, descriptors // _WAITING_SHARE))


def reserve(descriptors: int) -> int:
    """Return how many of a process's descriptors are not for streams: those of :data:`RESERVE` and of connections without a
    request, but at most half of all."""
    return min(RESERVE + most_waiting(descriptors), descriptors // 2)


def refusal_retry() -> float:
    """Return after how many seconds a refused client is to come back: a random time from 5 to 15, to spread the load."""
    return random.uniform(5.0, 15.0)
