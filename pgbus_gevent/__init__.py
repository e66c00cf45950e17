"""Live updates from PostgreSQL to browsers, over Server-Sent Events.

Importing the package imports no other module, so a program can still patch itself for gevent afterwards. The names in ``__all__``
are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bus import Bus, Stream
    from .core.client import Subscriber
    from .errors import PgbusError
    from .messages import Member, Message
    from .settings.table import Settings
    from .web.stream_app import StreamApp

__version__ = "0.1.0"

__all__ = ["Bus", "Member", "Message", "PgbusError", "Settings", "Stream", "StreamApp", "Subscriber", "__version__"]

_HOMES = {
    "Bus": "bus",
    "Member": "messages",
    "Message": "messages",
    "PgbusError": "errors",
    "Settings": "settings.table",
    "Stream": "bus",
    "StreamApp": "web.stream_app",
    "Subscriber": "core.client",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
