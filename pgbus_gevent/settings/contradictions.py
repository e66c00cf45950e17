"""Settings that contradict one another."""

from __future__ import annotations

from typing import Protocol

from ..errors import InvalidSetting
from .casting import format_size, redact_url


class Values(Protocol):
    """The settings that this module looks at. :class:`pgbus_gevent.settings.table.Settings` has them."""

    @property
    def database_url(self) -> str | None: ...
    @property
    def wake(self) -> str: ...
    @property
    def listen_url(self) -> str | None: ...
    @property
    def replica_url(self) -> str | None: ...
    @property
    def upstream(self) -> str | None: ...
    @property
    def presence(self) -> tuple[str, ...]: ...
    @property
    def ring_bytes(self) -> int: ...
    @property
    def ring_budget(self) -> int: ...


def refuse_contradictions(settings: Values) -> None:
    """Raise :class:`InvalidSetting` if two settings contradict each other."""
    url = settings.listen_url and redact_url(settings.listen_url)
    if url and settings.wake == "poll":
        raise InvalidSetting("listen_url", url, "it is not used with wake=poll; leave out one of the two")
    if url and not settings.database_url:
        raise InvalidSetting("listen_url", url, "it needs a database_url; leave it out for the embedded server")
    replica = settings.replica_url and redact_url(settings.replica_url)
    if replica and not settings.database_url:
        raise InvalidSetting("replica_url", replica, "it needs a database_url; leave it out for the embedded server")
    if settings.upstream and settings.presence:
        raise InvalidSetting(
            "presence", settings.presence, "an edge keeps none; set it at the origin, for clients there"
        )
    if settings.upstream and settings.wake != "postgres":
        raise InvalidSetting("wake", settings.wake, "an edge hears of new messages from its origin; leave it out")
    if (ring := settings.ring_bytes) > (budget := settings.ring_budget):
        raise InvalidSetting("ring_bytes", ring, f"expected at most ring_budget, {format_size(budget)}")
