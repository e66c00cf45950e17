"""Counts of a worker's streams: messages and connections."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Counts(NamedTuple):
    """The counts of one stream, or of all streams.

    ``broadcasts`` is the number of messages that came in while the stream had a connection here; a message counts once, however
    many connections it was sent to. ``active_connections`` are open now. ``total_connections`` have been opened so far.
    """

    broadcasts: int = 0
    active_connections: int = 0
    total_connections: int = 0


class StreamCounter:
    """Counts messages and connections, for each stream and in total.

    A stream's own counts are kept as long as the stream has a connection here, because a map of all names ever seen would grow
    without bound. The totals are kept as long as the worker lives. After each :meth:`connected`, :meth:`disconnected` is called
    exactly once, however the connection ends.
    """

    def __init__(self) -> None:
        self._streams: dict[str, Counts] = {}
        self._broadcasts = 0
        self._active_connections = 0
        self._total_connections = 0

    def connected(self, streams: Iterable[str]) -> None:
        """A connection to these streams was opened."""
        for stream in streams:
            counts = self._streams.get(stream, Counts())
            self._streams[stream] = counts._replace(
                active_connections=counts.active_connections + 1, total_connections=counts.total_connections + 1
            )
        self._active_connections += 1
        self._total_connections += 1

    def disconnected(self, streams: Iterable[str]) -> None:
        """A connection to these streams has ended."""
        for stream in streams:
            counts = self._streams[stream]
            if counts.active_connections > 1:
                self._streams[stream] = counts._replace(active_connections=counts.active_connections - 1)
            else:
                del self._streams[stream]
        self._active_connections -= 1

    def broadcast(self, stream: str, messages: int = 1) -> None:
        """``messages`` messages of ``stream`` came in. They count only if the stream has a connection here."""
        counts = self._streams.get(stream)
        if counts is not None:
            self._streams[stream] = counts._replace(broadcasts=counts.broadcasts + messages)
            self._broadcasts += messages

    def __getitem__(self, stream: str) -> Counts:
        """Return the counts of one stream; all are 0 if it has no connection here."""
        return self._streams.get(stream, Counts())

    @property
    def streams(self) -> dict[str, Counts]:
        """The counts of each stream that has a connection here, as a copy."""
        return dict(self._streams)

    @property
    def total(self) -> Counts:
        """The counts of all streams together, also of streams without connections. A connection to several streams counts once."""
        return Counts(self._broadcasts, self._active_connections, self._total_connections)
