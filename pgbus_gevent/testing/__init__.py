"""The testing kit for applications: pytest fixtures with a real PostgreSQL, server and client, and a Bus in memory.

The fixtures come with the package, as a pytest plugin. Importing this module imports nothing else: its names are imported when
they are first used, so that a test process can be patched for gevent first.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client import StreamClient
    from .fake_bus import FakeBus

__all__ = ["FakeBus", "StreamClient"]

_HOMES = {"FakeBus": "fake_bus", "StreamClient": "client"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
