"""The Django app: its label ``pgbus``, by which Django knows its migrations."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import register


class PgbusConfig(AppConfig):  # type: ignore[misc]  # Django has no types
    """The configuration that ``INSTALLED_APPS`` finds."""

    name = "pgbus_gevent.django"
    label = "pgbus"
    verbose_name = "pgbus streams"

    def ready(self) -> None:
        """Let ``manage.py check`` look at the settings."""
        from .checks import (
            check_settings,
        )  # not at the top: Django imports this module before its settings are complete

        register(check_settings, "pgbus")
