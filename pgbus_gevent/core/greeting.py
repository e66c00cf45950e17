"""The frames about a connection itself: at its start, and when its subscribers are replaced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from . import sse
from .client import Client, Subscriber, Subscription
from .identity import Identities


class Greeter(NamedTuple):
    """Makes the first frame of each client.

    ``retry_after`` and ``heartbeat`` are in seconds. Without ``identities``, tabs of a browser do not share the connection.
    """

    identities: Identities | None = None
    retry_after: float = 2.0
    heartbeat: float = 15.0

    def greeting(self, id: str, subscriptions: Sequence[Subscription]) -> bytes:
        """Return the first frame of the client ``id`` that is admitted with ``subscriptions``."""
        subscribers = [each.place.subscriber for each in subscriptions]
        streams = [
            sse.StreamStart(each.log.name, each.start or 0, each.log.head, _identity(self.identities, subscriber))
            for each, subscriber in zip(subscriptions, subscribers, strict=True)
        ]
        identity = _identity(self.identities, *subscribers)
        return sse.connected(id, streams, retry_after=self.retry_after, heartbeat=self.heartbeat, identity=identity)


def identified(client: Client, identities: Identities | None) -> bytes:
    """Return the frame for a client whose subscribers have been replaced."""
    streams = [(each.log.name, _identity(identities, each.place.subscriber)) for each in client.subscriptions]
    return sse.identified(identity_of(client, identities), streams)


def identity_of(client: Client, identities: Identities | None) -> str | None:
    """Return the identity of a connection, made of the subscribers that it has now."""
    return _identity(identities, *(each.place.subscriber for each in client.subscriptions))


def _identity(identities: Identities | None, *subscribers: Subscriber) -> str | None:
    return identities.of(*subscribers) if identities else None
