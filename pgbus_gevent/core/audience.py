"""Selects the frames that one connection may see, and gives them the ids that this connection needs."""

from __future__ import annotations

from . import sse
from .client import Subscription
from .cursor import composite_id
from .filters import Filters
from .stream_log import Chunk, Frame


class Audience:
    """Decides by ``filters``, and by the connection that a message excludes, which frames a client gets."""

    def __init__(self, filters: Filters) -> None:
        self._filters = filters

    def frames_for(self, subscription: Subscription, chunk: Chunk) -> bytes:
        """Return the frames of a chunk that one connection may see, joined; empty bytes if it may see none."""
        if len(subscription.client.subscriptions) > 1:
            return self._of_several(subscription, chunk)
        if chunk.data is not None:
            return chunk.data
        return b"".join(frame.data for frame in chunk.frames if self._permits(subscription, frame))

    def ephemerals_for(self, subscription: Subscription, chunk: Chunk) -> bytes:
        """Return ephemeral frames, which have no ids, for one connection.

        If the connection has several streams, each frame names its stream in a comment.
        """
        subscriptions = subscription.client.subscriptions
        if len(subscriptions) == 1:
            return self.frames_for(subscription, chunk)
        index = subscriptions.index(subscription)
        return b"".join(
            sse.of_stream(frame.data, index) for frame in chunk.frames if self._permits(subscription, frame)
        )

    def _of_several(self, subscription: Subscription, chunk: Chunk) -> bytes:
        """Return the frames for a connection with several streams: each id carries the client's cursor in every stream."""
        subscriptions = subscription.client.subscriptions
        index = subscriptions.index(subscription)
        cursors = [each.cursor or 0 for each in subscriptions]
        parts = []
        for frame in chunk.frames:
            if self._permits(subscription, frame):
                cursors[index] = frame.id
                parts.append(sse.readdressed(frame.data, composite_id(index, cursors)))
        return b"".join(parts)

    def _permits(self, subscription: Subscription, frame: Frame) -> bool:
        if frame.exclude is not None and frame.exclude == subscription.client.id:
            return False
        return frame.visible_to is None or self._filters.permits(
            frame.visible_to, subscription.place.subscriber.context, subscription.log.name
        )
