"""The origin in place of a database: an :class:`Upstream` has what the parts of an Instance use of one."""

from __future__ import annotations

import logging
from typing import NoReturn
from urllib.parse import urlsplit

from ..core.registry import Registry
from ..errors import DatabaseUnavailable, MissingSetting, OriginRefused
from ..settings.table import Settings
from .local import LocalOperators, LocalRoll
from .origin import Origin
from .reads import OriginReads
from .session import WakeSession

logger = logging.getLogger("pgbus_gevent.edge")

_LOOPBACK = ("localhost", "::1")


class Upstream:
    """The origin of an edge, as the settings describe it. Connections are opened when they are needed.

    ``registry`` is that of the worker, which knows the heads of its streams; the Instance sets it.
    Raises :class:`MissingSetting` if there is no worker token.
    """

    def __init__(self, settings: Settings) -> None:
        if not settings.worker_token:
            raise MissingSetting(
                "worker_token", "put the token that the origin has in PGBUS_WORKER_TOKEN into PGBUS_WORKER_TOKEN here"
            )
        self.settings = settings
        self.registry: Registry | None = None
        self.session: WakeSession | None = None
        self.url = str(settings.upstream)
        self.pool = Origin(
            self.url,
            settings.worker_token[-1],
            connect_timeout=settings.connect_timeout,
            pool_timeout=settings.pool_timeout,
            size=settings.pool_size,
        )
        self.queries = OriginReads(self.pool)
        self.fleet = LocalRoll(self.queries)
        self.operators = LocalOperators()
        self.standby = None

    def __getattr__(self, name: str) -> Absent:
        """Return a stand-in for what only a database has. The parts that would use it are made, but not run at an edge."""
        return Absent(name)

    def listen(self) -> WakeSession:
        """Open a session for new messages."""
        assert self.registry is not None  # the Instance has set it
        self.session = WakeSession(self.pool, self.registry)
        return self.session

    def discard_idle(self) -> None:
        """Close the connections that are kept for reads. The same name may lead to another origin now."""
        self.pool.discard_idle()

    def prepare(self) -> bool:
        """Ask the origin whether it takes this edge. Returns False if it is away; the edge starts all the same."""
        parts = urlsplit(self.url)
        host = parts.hostname or ""
        if parts.scheme == "http" and host not in _LOOPBACK and not host.startswith("127."):
            logger.warning(
                "the origin is reached over http, so the worker token and all messages pass the network in plain text: use"
                " https, or a network that you trust"
            )
        try:
            self.check_life()
        except OriginRefused:
            pass  # the pulse asks at once, too, and logs it
        except DatabaseUnavailable as error:
            logger.warning("the origin is away, and the edge waits for it: %s", error)
            return False
        return True

    @property
    def answered(self) -> float:
        """When the origin last answered a read, on the monotonic clock."""
        return self.pool.answered

    def check_life(self) -> None:
        """Raise :class:`DatabaseError`, within seconds, unless the origin answers and its database does too."""
        try:
            self.queries.clock()
        except OriginRefused as error:
            self.pool.refusal = error.reason
            raise
        self.pool.refusal = ""

    def close(self) -> None:
        """Close the connections that are kept. Idempotent."""
        self.pool.close()


class Absent:
    """A part of a database that an edge does not have. Using it raises :class:`DatabaseUnavailable`."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __getattr__(self, name: str) -> NoReturn:
        raise DatabaseUnavailable(f"an edge has no database, so no {self._what}")
