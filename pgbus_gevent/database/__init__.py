"""PostgreSQL: the only folder that knows psycopg2.

Importing the folder imports none of its modules, so that :mod:`pgbus_gevent.aio` can share its statements without the driver and
without gevent. ``Database`` is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .database import Database

__all__ = ["Database"]


def __getattr__(name: str) -> Any:
    if name == "Database":
        from .database import Database

        return Database
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
