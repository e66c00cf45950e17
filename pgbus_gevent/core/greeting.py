"""What a connection is told of itself: when it begins, and when it goes on as somebody else's."""

from __future__ import annotations

from collections.abc import Callable

from . import sse
from .client import Client

Identify = Callable[..., str | None]
"""Makes the identity of a connection with these subscribers, one for each stream."""


def greeting(client: Client, identify: Identify, *, retry_after: float, heartbeat: float) -> bytes:
    """The first frame of a client that is admitted; times in seconds."""
    streams = [
        sse.Opened(each.log.name, each.cursor or 0, each.log.head, identify(each.place.subscriber))
        for each in client.subscriptions
    ]
    return sse.connected(
        client.id, streams, retry_after=retry_after, heartbeat=heartbeat, identity=whole(client, identify)
    )


def identified(client: Client, identify: Identify) -> bytes:
    """The frame for a client whose subscribers have been replaced."""
    streams = [(each.log.name, identify(each.place.subscriber)) for each in client.subscriptions]
    return sse.identified(whole(client, identify), streams)


def whole(client: Client, identify: Identify) -> str | None:
    """The identity of a connection, by the subscribers that it has now."""
    return identify(*(each.place.subscriber for each in client.subscriptions))
