"""``Database``: one database, with its pool, queries, LISTEN sessions and migrations."""

from __future__ import annotations

import logging
from functools import partial

from ..errors import DatabaseError, DatabaseUnavailable, MissingSetting
from ..settings.retention import Retention
from ..settings.table import Settings
from .addresses import Route
from .caps import CapQueries
from .checks import Checks
from .connect import connect
from .fleet import Fleet
from .migrating import migrate
from .notifications import ListenSession
from .operators import OperatorQueries
from .pool import Pool
from .presence import PresenceQueries
from .pruning import Pruning
from .queries import Queries
from .schema import check, check_serving
from .standby import Standby
from .stewardship import Stewardship

logger = logging.getLogger("pgbus_gevent.database")

_READ_ONLY = {"default_transaction_read_only": "on"}


class Database:
    """One database, as the settings describe it: its pool, queries, LISTEN sessions and migrations.

    Connections are opened when they are needed. With ``read_only``, sessions refuse to write.
    Raises :class:`MissingSetting` if the settings have no ``database_url``.
    """

    def __init__(self, settings: Settings, *, read_only: bool = False) -> None:
        if settings.database_url is None:
            raise MissingSetting(
                "database_url",
                "give a postgresql:// URL as database_url, or in PGBUS_DATABASE_URL or DATABASE_URL;"
                " serve prints the URL of its embedded database"
                if settings.upstream is None
                else "this process is an edge (PGBUS_UPSTREAM is set), which has no database: publish at the origin",
            )
        self.settings = settings
        self.url = settings.database_url
        self._route = Route()
        self._session_settings = _READ_ONLY if read_only else {}
        self.pool = Pool(
            partial(
                connect,
                self.url,
                application_name="pgbus-pool",
                connect_timeout=settings.connect_timeout,
                statement_timeout=settings.statement_timeout,
                settings=self._session_settings,
                route=self._route,
            ),
            size=settings.pool_size,
            timeout=settings.pool_timeout,
        )
        self.queries = Queries(self.pool)
        self.standby: Standby | None = None
        """The standby that serves reads, if the settings name one."""
        if settings.replica_url is not None:
            self.standby = Standby(
                settings.replica_url,
                self.pool,
                size=settings.pool_size,
                connect_timeout=settings.connect_timeout,
                statement_timeout=settings.statement_timeout,
            )
        self.presence = PresenceQueries(self.pool)
        self.fleet = Fleet(self.pool)
        self.caps = CapQueries(self.pool)
        self.stewardship = Stewardship(self.pool)
        self.operators = OperatorQueries(self.pool)
        self.pruning = Pruning(
            self.pool, Retention(settings.retention, settings.retention_patterns, settings.forget_after)
        )

    def listen(self) -> ListenSession:
        """Open a new LISTEN session. It follows no stream yet. It does not come from the pool, because it is held until it ends."""
        return ListenSession(
            self.settings.listen_url or self.url,
            connect_timeout=self.settings.connect_timeout,
            statement_timeout=self.settings.statement_timeout,
            pool=self.pool,
            settings=self._session_settings,
            route=None if self.settings.listen_url else self._route,
        )

    def discard_idle(self) -> None:
        """Close the pool's idle sessions. After a failover, the same host name may lead to another server."""
        self.pool.discard_idle()

    def migrate(self) -> list[int]:
        """Bring the schema up to date. Returns the versions that were applied."""
        return migrate(self.url, connect_timeout=self.settings.connect_timeout)

    def prepare(self) -> bool:
        """Migrate the schema at the start of a server, or only check it if the setting ``migrate`` is off.

        Returns False if the schema could not be checked because the database is away. Raises :class:`DatabaseError`.
        """
        if self.settings.migrate:
            self.migrate()
        else:
            try:
                self.check_schema()
            except DatabaseUnavailable:
                return False  # the server starts all the same: the database may come later
        if fault := self.check_ids():
            logger.warning("%s", fault)
        return True

    def check_ids(self) -> str | None:
        """Describe the fault of the sequence of ids. Returns None if it has none, or cannot be read."""
        try:
            ids = Checks(self.pool).ids()
        except DatabaseError:
            return None
        return ids.fault if ids else None

    def check_schema(self) -> None:
        """Raise :class:`DatabaseError` if this release cannot work on the schema. Changes nothing."""
        with self.pool.connection() as connection:
            check(connection)

    @property
    def answered(self) -> float:
        """The time, on the monotonic clock, at which the database last answered a statement of the pool."""
        return self.pool.answered

    def check_life(self) -> None:
        """Raise :class:`DatabaseError`, within seconds, unless the database answers and has a schema that can be used."""
        self.pool.ask(check_serving)

    def close(self) -> None:
        """Close the pools. Idempotent."""
        self.pool.close()
        if self.standby is not None:
            self.standby.close()
