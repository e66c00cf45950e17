"""What a connection is told of itself: when it begins, and when it goes on as somebody else's."""

from __future__ import annotations

from . import sse
from .client import Client, Subscriber
from .identity import Identities


def greeting(client: Client, identities: Identities | None, *, retry_after: float, heartbeat: float) -> bytes:
    """The first frame of a client that is admitted; times in seconds. Without ``identities``, nobody shares its connection."""
    streams = [
        sse.Opened(each.log.name, each.cursor or 0, each.log.head, _identity(identities, each.place.subscriber))
        for each in client.subscriptions
    ]
    return sse.connected(
        client.id, streams, retry_after=retry_after, heartbeat=heartbeat, identity=whole(client, identities)
    )


def identified(client: Client, identities: Identities | None) -> bytes:
    """The frame for a client whose subscribers have been replaced."""
    streams = [(each.log.name, _identity(identities, each.place.subscriber)) for each in client.subscriptions]
    return sse.identified(whole(client, identities), streams)


def whole(client: Client, identities: Identities | None) -> str | None:
    """The identity of a connection, by the subscribers that it has now."""
    return _identity(identities, *(each.place.subscriber for each in client.subscriptions))


def _identity(identities: Identities | None, *subscribers: Subscriber) -> str | None:
    return identities.of(*subscribers) if identities else None
