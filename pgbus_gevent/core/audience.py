"""Selects the connections that have to be looked at for some messages, and the frames that one connection may see."""

from __future__ import annotations

from collections.abc import Collection

from . import sse
from .client import Subscription
from .cursor import composite_id
from .filters import NOBODY, Filters
from .frames import Chunk, Frame
from .registry import Registry


class Audience:
    """Decides which frames a client gets: by the labels of its subscriber, by ``filters``, and by the excluded connection.

    A label that has a filter may concern every connection. A label without one concerns only the subscriptions that hold it, and
    ``registry`` has an index of these.
    """

    def __init__(self, filters: Filters, registry: Registry) -> None:
        self._filters = filters
        self._registry = registry

    # which connections

    def receivers(self, stream: str, labels: Collection[str] | None) -> list[Subscription]:
        """Return the subscriptions to look at for messages with these labels; None stands for messages that have none.

        They are only candidates: :meth:`frames_for` decides when the frames are sent.
        """
        if labels is None or self._filters.decide(labels):
            return self._registry.subscriptions(stream)
        if not self._registry.labels_held:
            for label in labels:
                self._filters.permits(label, None, stream)  # logs that there is no filter
        return self._registry.holders(stream, labels)

    def past_others(self, subscription: Subscription) -> int:
        """Return a subscription's cursor past the messages of the ring that are only for holders of labels that it lacks.

        Call it only for a subscription that has a cursor.
        """
        log, cursor = subscription.log, subscription.cursor
        assert cursor is not None
        if self._filters.has_default:
            return cursor
        if subscription.lost is not None or (subscription.unproven and log.suspects(cursor)):
            return cursor  # the client must be told of a loss, for which the database is asked
        return log.past_others(cursor, subscription.place.subscriber.labels, self._filters.labels)

    def move_past_others(self, subscription: Subscription) -> int:
        """Move the cursor of a subscription to :meth:`past_others`, and return it."""
        cursor = subscription.cursor = self.past_others(subscription)
        return cursor

    # which frames

    def frames_for(self, subscription: Subscription, chunk: Chunk) -> bytes:
        """Return the frames of a chunk that one connection may see, joined; empty bytes if it may see none.

        They count as sent to its client.
        """
        client = subscription.client
        if len(client.subscriptions) > 1:
            return self._of_several(subscription, chunk)
        if chunk.data is not None:
            client.messages_sent += len(chunk.frames)
            return chunk.data
        if (self._registry.labels_held or not chunk.labels) and self._sees_unlabelled_only(subscription, chunk):
            client.messages_sent += chunk.open
            return chunk.unlabelled
        return b"".join([frame.data for frame in self._permitted(subscription, chunk)])

    def ephemerals_for(self, subscription: Subscription, chunk: Chunk) -> bytes:
        """Return ephemeral frames, which have no ids, for one connection. They count as sent to its client.

        If the connection has several streams, each frame names its stream in a comment.
        """
        subscriptions = subscription.client.subscriptions
        if len(subscriptions) == 1:
            return self.frames_for(subscription, chunk)
        index = subscriptions.index(subscription)
        return b"".join([sse.of_stream(frame.data, index) for frame in self._permitted(subscription, chunk)])

    def _of_several(self, subscription: Subscription, chunk: Chunk) -> bytes:
        """Return the frames for a connection with several streams: each id carries the client's cursor in every stream."""
        subscriptions = subscription.client.subscriptions
        index = subscriptions.index(subscription)
        cursors = [each.cursor or 0 for each in subscriptions]
        parts = []
        for frame in self._permitted(subscription, chunk):
            cursors[index] = frame.id
            parts.append(sse.readdressed(frame.data, composite_id(index, cursors)))
        return b"".join(parts)

    def _sees_unlabelled_only(self, subscription: Subscription, chunk: Chunk) -> bool:
        """Whether a connection may see each frame without a label, and no other one. If so, the frames are joined once for all.

        Call it only if labels are held or the chunk has none. Otherwise a filter has to decide, or to log that it is missing.
        """
        labels = chunk.labels
        if labels and (NOBODY in labels or self._filters.decide(labels)):
            return False
        held = subscription.place.subscriber.labels
        return subscription.client.id not in chunk.excluded and labels.isdisjoint(held)

    def _permitted(self, subscription: Subscription, chunk: Chunk) -> list[Frame]:
        """Return the frames that one connection may see, and count them."""
        subscriber = subscription.place.subscriber
        own, labels, permits = subscription.client.id, subscriber.labels, self._filters.permits
        found = []
        for frame in chunk.frames:
            if frame.exclude == own:
                continue
            label = frame.visible_to
            if (
                label is None
                or label in labels
                or permits(label, subscriber.context, subscription.log.name, held=self._registry.labels_held)
            ):
                found.append(frame)
        subscription.client.messages_sent += len(found)
        return found
