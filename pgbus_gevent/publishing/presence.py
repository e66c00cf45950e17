"""Who is at a stream, from Python: what :attr:`Stream.presence <pgbus_gevent.bus.Stream.presence>` gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from ..core.members import check_connection, check_member, metadata_text
from ..messages import Member

__all__ = ["Member", "Presence"]


class Source(Protocol):
    """What it needs of the database."""

    def join(self, stream: str, member: str, metadata: str, connection: str, ttl: float) -> bool: ...
    def leave(self, stream: str, member: str, connection: str) -> bool: ...
    def touch(self, stream: str, member: str, connection: str, ttl: float) -> bool: ...
    def members(self, stream: str) -> list[Member]: ...
    def count(self, stream: str) -> int: ...


class Presence:
    """The members of one stream.

    A member is there through one or more connections. Where the setting ``presence`` names the stream, those of browsers are
    tracked by the workers. An application can add members itself: such a connection lasts ``ttl`` seconds (the setting
    ``presence_ttl``) from its last :meth:`join` or :meth:`touch`. ``connection`` keeps several of one member apart; left out,
    there is one. Whoever follows the stream gets an ephemeral message with the event ``presence`` when a member comes or goes.

    Everything raises :class:`InvalidArgument` for a value that makes no sense, and :class:`DatabaseError` when the database
    refuses or cannot be reached; each call is a transaction of its own.
    """

    def __init__(self, stream: str, source: Callable[[], Source], *, ttl: float) -> None:
        self.stream = stream
        self.ttl = ttl
        self._source = source

    def __repr__(self) -> str:
        return f"<Presence of {self.stream!r}>"

    def join(self, member: str, metadata: Mapping[str, Any] | None = None, *, connection: str = "") -> bool:
        """Add a member, or go on with one that is there; True where it is new, which is announced.

        ``member`` has 1 to 255 bytes and no control characters, ``metadata`` at most 4096 bytes as a JSON object.
        """
        text = metadata_text(metadata)
        return self._source().join(self.stream, check_member(member), text, check_connection(connection), self.ttl)

    def leave(self, member: str, *, connection: str = "") -> bool:
        """End a member's connection, at once; True where the member is gone by it, which is announced."""
        return self._source().leave(self.stream, check_member(member), check_connection(connection))

    def touch(self, member: str, *, connection: str = "") -> bool:
        """Keep a connection for another ``ttl`` seconds; False where it has expired, and is to be joined again."""
        return self._source().touch(self.stream, check_member(member), check_connection(connection), self.ttl)

    def members(self) -> list[Member]:
        """Who is there now, in the order in which they came."""
        return self._source().members(self.stream)

    def count(self) -> int:
        """How many members are there now."""
        return self._source().count(self.stream)
