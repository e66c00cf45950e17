"""The bus of a Django project, with settings from ``settings.PGBUS`` and ``settings.DATABASES``.

``PGBUS`` is a dict. Its keys are settings of :class:`Settings` in capitals, such as ``PREFIX``, and these two:

- ``DATABASE``: the alias of the database in ``DATABASES``; by default ``default``.
- ``AUTHORIZE``: the authorize hook, ``hook(request, stream)``, or its dotted name. ``request`` has ``user`` and ``session`` if the
  project has the middleware for them. It answers True, False, or a :class:`Subscriber`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, cast

from django.conf import settings as project
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.wsgi import WSGIRequest
from django.db import connections
from django.http import HttpRequest
from django.utils.module_loading import import_string

from ..bus import Bus
from ..core.client import ANYBODY, Subscriber
from ..core.names import derived_secret
from ..settings.table import Settings
from ..web.responses import Environ

Hook = Callable[[HttpRequest, str], "bool | Subscriber"]

page_request: ContextVar[HttpRequest | None] = ContextVar("page_request", default=None)
"""The request whose page is being rendered."""

_bus: Bus | None = None
_made_from: object = None


def get_bus() -> Bus:
    """Return the bus. It is made again if the settings have changed, as in tests."""
    global _bus, _made_from
    facts = (database_dsn(), repr(_given()), project.SECRET_KEY)
    if _bus is None or facts != _made_from:
        former, _bus, _made_from = _bus, Bus(settings=load_settings()), facts
        _bus.subscriber_of = _subscriber
        if former is not None:
            former.close()
    return _bus


def load_settings() -> Settings:
    """Return the settings: those in ``PGBUS``, then those of the environment.

    Without a secret, one is derived from ``SECRET_KEY``. The schema is left to ``manage.py migrate``.
    """
    given = {name.lower(): value for name, value in _given().items() if name not in ("DATABASE", "AUTHORIZE")}
    keys = [*reversed(project.SECRET_KEY_FALLBACKS), project.SECRET_KEY]
    derived = [derived_secret(key) for key in keys]
    own = Settings.load(**given)
    # Whatever the environment says, messages are published in the transactions of the project's own database.
    given = {"migrate": False, **given, "database_url": database_dsn(), "secret": own.secret or derived}
    return Settings.load(**given)


def _given() -> dict[str, Any]:
    return dict(getattr(project, "PGBUS", {}))


def database_alias() -> str:
    """Return the alias of the bus's database in ``DATABASES``."""
    return str(_given().get("DATABASE", "default"))


_NOT_OF_LIBPQ = ("client_encoding", "cursor_factory", "context", "prepare_threshold", "server_side_binding")


def database_dsn() -> str:
    """Return the DSN of the bus's database, as Django connects to it now: in tests, to the test database."""
    connection = connections[database_alias()]
    if connection.vendor != "postgresql":
        raise ImproperlyConfigured(
            f"pgbus needs PostgreSQL, but the database {database_alias()!r} in DATABASES is {connection.vendor}: name another"
            ' with PGBUS = {"DATABASE": …}'
        )
    given = connection.get_connection_params().items()
    parameters = {name: str(value) for name, value in given if name not in _NOT_OF_LIBPQ and value is not None}
    role = connection.settings_dict["OPTIONS"].get("assume_role")
    if role is not None:
        parameters["options"] = f"{parameters.get('options', '')} -c role={role}".strip()
    return " ".join(f"{name}={_quoted(value)}" for name, value in parameters.items())


def _quoted(value: str) -> str:
    if re.fullmatch(r"[\w.,/-]+", value):
        return value  # which is shown in announcements and errors as it is
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


# who watches


def authorize(environ: Environ, stream: str) -> bool | Subscriber:
    """Ask the project's hook about the request of a stream, which passes none of its middleware."""
    hook = load_hook()
    if hook is None:
        return True
    request = WSGIRequest({"wsgi.input": _NoBody(), **environ})
    try:
        for middleware in _OF_USERS:
            if middleware in project.MIDDLEWARE:
                import_string(middleware)(_no_response).process_request(request)
        return hook(request, stream)
    finally:
        # The greenlet of this request keeps its connections of Django's to itself, and now waits for as long as the page is open.
        connections.close_all()


_OF_USERS = (
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
)


class _NoBody:
    """The body of a GET."""

    def read(self, size: int = -1) -> bytes:
        return b""


def _no_response(request: HttpRequest) -> Any:
    raise NotImplementedError("only process_request() of this middleware is called")


def load_hook() -> Hook | None:
    """Return the project's authorize hook; None without one.

    Raises ImproperlyConfigured if there is no function of the name that ``PGBUS["AUTHORIZE"]`` has.
    """
    given = _given().get("AUTHORIZE")
    try:
        hook = import_string(given) if isinstance(given, str) else given
    except ImportError as error:
        raise ImproperlyConfigured(f"PGBUS['AUTHORIZE'] is {given!r}, which cannot be imported: {error}") from error
    if hook is not None and not callable(hook):
        raise ImproperlyConfigured(f"PGBUS['AUTHORIZE'] is {given!r}, which is no function")
    return cast("Hook | None", hook)


def _subscriber(stream: str) -> Subscriber | None:
    """The subscriber of the request whose page is being rendered; None if there is none, or if the hook refuses."""
    hook, request = load_hook(), page_request.get()
    if hook is None:
        return ANYBODY
    return None if request is None else cast("Subscriber | None", hook(request, stream))
