"""PostgreSQL: the only folder that knows psycopg2."""

from __future__ import annotations

import logging
from functools import partial

from ..errors import DatabaseError, DatabaseUnavailable, InvalidSetting
from ..settings.retention import Retention
from ..settings.table import Settings
from .addresses import Route
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

__all__ = ["Database"]

logger = logging.getLogger("pgbus_gevent.database")

_READ_ONLY = {"default_transaction_read_only": "on"}


class Database:
    """One database as the settings describe it: its pool, its queries, its LISTEN sessions, its migrations.

    Nothing is opened before it is needed. With ``read_only`` its sessions refuse to write.
    Raises :class:`InvalidSetting` when there is no ``database_url``.
    """

    def __init__(self, settings: Settings, *, read_only: bool = False) -> None:
        if settings.database_url is None:
            raise InvalidSetting("database_url", None, "a postgresql:// URL, in PGBUS_DATABASE_URL or as an argument")
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
        self.presence = PresenceQueries(self.pool)
        self.fleet = Fleet(self.pool)
        self.operators = OperatorQueries(self.pool)
        self.pruning = Pruning(
            self.pool, Retention(settings.retention, settings.retention_patterns, settings.forget_after)
        )

    def listen(self) -> ListenSession:
        """A new LISTEN session; outside the pool, as it is held for good."""
        return ListenSession(
            self.settings.listen_url or self.url,
            connect_timeout=self.settings.connect_timeout,
            statement_timeout=self.settings.statement_timeout,
            pool=self.pool,
            settings=self._session_settings,
            route=None if self.settings.listen_url else self._route,
        )

    def discard_idle(self) -> None:
        """Close the pool's idle sessions: the server may have gone, and another may have its name."""
        self.pool.discard_idle()

    def migrate(self) -> list[int]:
        """Bring the schema up to date; the versions that were applied."""
        return migrate(self.url, connect_timeout=self.settings.connect_timeout)

    def prepare(self) -> bool:
        """For a server's start: migrate, or, where that is off, check the schema; whether the database could be reached."""
        if self.settings.migrate:
            self.migrate()
        else:
            try:
                self.check_schema()
            except DatabaseUnavailable:
                return False  # it may come later
        if told := self.check_ids():
            logger.warning("%s", told)
        return True

    def check_ids(self) -> str | None:
        """What is wrong with the sequence of ids; None where nothing is, or where it cannot be looked at."""
        try:
            ids = Checks(self.pool).ids()
        except DatabaseError:
            return None
        return ids.told if ids else None

    def check_schema(self) -> None:
        """Raise :class:`DatabaseError` where this release cannot work on the schema as it is, which stays so."""
        with self.pool.connection() as connection:
            check(connection)

    @property
    def answered(self) -> float:
        """When the database last answered a statement of the pool, on the monotonic clock."""
        return self.pool.answered

    def check_life(self) -> None:
        """Return when the database answers and has a schema to work on; takes seconds at most. Raises :class:`DatabaseError`."""
        self.pool.ask(check_serving)

    def close(self) -> None:
        """Close the pool. May be called again."""
        self.pool.close()
