"""Numbers of a worker's streams."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Counts(NamedTuple):
    """``broadcasts``: messages that this worker took in while the stream had a connection here, each once however many
    connections it went to. ``active_connections``: open now. ``total_connections``: opened so far.
    """

    broadcasts: int = 0
    active_connections: int = 0
    total_connections: int = 0


class StreamCounter:
    """Counts for each stream and in total.

    A stream's own counts last as long as it has a connection here, as a map that keeps every name ever seen would grow for
    ever; the totals last as long as the worker. Every :meth:`connected` is answered by exactly one :meth:`disconnected`,
    however the connection ends.
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
        """So many messages of ``stream`` came in."""
        counts = self._streams.get(stream)
        if counts is not None:
            self._streams[stream] = counts._replace(broadcasts=counts.broadcasts + messages)
            self._broadcasts += messages

    def __getitem__(self, stream: str) -> Counts:
        return self._streams.get(stream, Counts())

    @property
    def streams(self) -> dict[str, Counts]:
        """The counts of each stream that has a connection here, as they are now."""
        return dict(self._streams)

    @property
    def total(self) -> Counts:
        """The counts of all streams, those that nobody watches any more included; a connection to several counts once."""
        return Counts(self._broadcasts, self._active_connections, self._total_connections)
