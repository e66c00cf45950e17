"""The members that are present at a stream, from Python: :attr:`Stream.presence <pgbus_gevent.bus.Stream.presence>`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from ..core.members import check_connection, check_member, metadata_text
from ..messages import Member

__all__ = ["Member", "Presence"]


class Source(Protocol):
    """The statements that ``Presence`` runs."""

    def join(self, stream: str, member: str, metadata: str, connection: str, ttl: float) -> bool: ...
    def leave(self, stream: str, member: str, connection: str) -> bool: ...
    def touch(self, stream: str, member: str, connection: str, ttl: float) -> bool: ...
    def members(self, stream: str) -> list[Member]: ...
    def count(self, stream: str) -> int: ...


class Presence:
    """The members of one stream.

    A member is present while it has at least one connection. If the setting ``presence`` matches the stream, the workers track the
    connections of browsers. An application can add connections itself with :meth:`join`. Such a connection lasts ``ttl`` seconds
    (the setting ``presence_ttl``) after its last :meth:`join` or :meth:`touch`. The argument ``connection`` tells several
    connections of one member apart; by default there is one. When a member comes or goes, the clients of the stream get an
    ephemeral message with the event ``presence``.

    All methods raise :class:`InvalidArgument` for an argument that is not allowed, and :class:`DatabaseError` if the database
    refuses a statement or cannot be reached. Each call is a transaction of its own.
    """

    def __init__(self, stream: str, source: Callable[[], Source], *, ttl: float) -> None:
        self.stream = stream
        self.ttl = ttl
        self._source = source

    def __repr__(self) -> str:
        return f"<Presence of {self.stream!r}>"

    def join(self, member: str, metadata: Mapping[str, Any] | None = None, *, connection: str = "") -> bool:
        """Add a connection of a member, or prolong it. Return True, and announce the member, if the member was not present.

        ``member`` has 1 to 255 UTF-8 bytes and no control characters. ``metadata`` must fit into a JSON object of 4096 bytes.
        """
        text = metadata_text(metadata)
        return self._source().join(self.stream, check_member(member), text, check_connection(connection), self.ttl)

    def leave(self, member: str, *, connection: str = "") -> bool:
        """End a connection of a member at once. Return True, and announce it, if the member is no longer present."""
        return self._source().leave(self.stream, check_member(member), check_connection(connection))

    def touch(self, member: str, *, connection: str = "") -> bool:
        """Prolong a connection by ``ttl`` seconds from now. Return False if it has expired; then call :meth:`join` again."""
        return self._source().touch(self.stream, check_member(member), check_connection(connection), self.ttl)

    def members(self) -> list[Member]:
        """Return the members that are present now, in the order in which they joined."""
        return self._source().members(self.stream)

    def count(self) -> int:
        """Return the number of members that are present now."""
        return self._source().count(self.stream)
