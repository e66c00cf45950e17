"""What an edge has in place of a database: its origin, over HTTP. Nothing here imports the database's driver."""

from __future__ import annotations

from .upstream import Upstream

__all__ = ["Upstream"]
