"""The frames about a connection itself: at its start, and when its subscribers are replaced."""

from __future__ import annotations

from . import sse
from .client import Client, Subscriber
from .identity import Identities


def greeting(client: Client, identities: Identities | None, *, retry_after: float, heartbeat: float) -> bytes:
    """Return the first frame of a client that is admitted.

    ``retry_after`` and ``heartbeat`` are in seconds. Without ``identities``, tabs of a browser do not share the connection.
    """
    streams = [
        sse.StreamStart(each.log.name, each.cursor or 0, each.log.head, _identity(identities, each.place.subscriber))
        for each in client.subscriptions
    ]
    return sse.connected(
        client.id, streams, retry_after=retry_after, heartbeat=heartbeat, identity=identity_of(client, identities)
    )


def identified(client: Client, identities: Identities | None) -> bytes:
    """Return the frame for a client whose subscribers have been replaced."""
    streams = [(each.log.name, _identity(identities, each.place.subscriber)) for each in client.subscriptions]
    return sse.identified(identity_of(client, identities), streams)


def identity_of(client: Client, identities: Identities | None) -> str | None:
    """Return the identity of a connection, made of the subscribers that it has now."""
    return _identity(identities, *(each.place.subscriber for each in client.subscriptions))


def _identity(identities: Identities | None, *subscribers: Subscriber) -> str | None:
    return identities.of(*subscribers) if identities else None
