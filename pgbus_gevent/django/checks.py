"""``manage.py check`` for the settings in ``PGBUS``, which otherwise fail only when the first page is shown."""

from __future__ import annotations

from typing import Any

from django.core.checks import CheckMessage, Error
from django.core.exceptions import ImproperlyConfigured

from ..errors import PgbusError
from .project import load_hook, load_settings


def check_settings(app_configs: Any, **options: Any) -> list[CheckMessage]:
    """Return an error for each part of the project's settings that the bus or the server would refuse."""
    found: list[CheckMessage] = []
    for number, load in enumerate((load_settings, load_hook), 1):
        try:
            load()
        except (PgbusError, ImproperlyConfigured) as error:
            found.append(Error(str(error), id=f"pgbus.E00{number}"))
    return found
