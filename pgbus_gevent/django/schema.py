"""The work of the Django migrations."""

from __future__ import annotations

from typing import Any

from ..database.migrating import migrate
from .project import database_alias, database_dsn


def bring_up_to_date(apps: Any, schema_editor: Any) -> None:
    """Apply the numbered migrations that are missing in the bus's database. Other databases are left alone.

    Raises :class:`DatabaseError` as :func:`pgbus_gevent.database.migrating.migrate` does.
    """
    if schema_editor.connection.alias == database_alias():
        migrate(database_dsn())


def keep(apps: Any, schema_editor: Any) -> None:
    """Keep the schema when the migration is reversed, because it contains messages."""
