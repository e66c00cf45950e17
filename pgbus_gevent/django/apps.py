"""The Django app: its label ``pgbus``, by which Django knows its migrations."""

from __future__ import annotations

from django.apps import AppConfig


class PgbusConfig(AppConfig):  # type: ignore[misc]  # Django has no types
    """The configuration that ``INSTALLED_APPS`` finds."""

    name = "pgbus_gevent.django"
    label = "pgbus"
    verbose_name = "pgbus streams"
