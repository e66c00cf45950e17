"""pgbus in a Django project: ``INSTALLED_APPS += ["pgbus_gevent.django"]``.

The app has a migration that makes the schema, the template tag ``{% pgbus_stream "orders" %}``, and the command
``manage.py pgbus``. :func:`get_bus` returns the bus, whose database is the one in ``DATABASES``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..bus import Bus

__all__ = ["get_bus"]


def get_bus() -> Bus:
    """Return the bus of this project. It is made at the first call, with the settings in ``settings.PGBUS``.

    Raises :class:`InvalidSetting` for a setting that is not allowed, and ImproperlyConfigured if its database is no PostgreSQL.
    """
    # Imported here, because Django imports this module before the project is set up, and a server may still have to patch itself.
    from .project import get_bus

    return get_bus()
