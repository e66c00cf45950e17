"""Who is connected, and to which streams; the streams that a worker serves are those that somebody is connected to."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .client import Client, Place, Subscription
from .stream_log import StreamLog


class Registry:
    """The clients of one worker. Nothing here yields, so that each method is atomic.

    A stream's log is made with its first client and goes with its last one: nothing stays behind of a stream that nobody
    watches. ``make_log`` makes one for a name.
    """

    def __init__(self, make_log: Callable[[str], StreamLog]) -> None:
        self._make_log = make_log
        self._clients: dict[str, Client] = {}
        self._logs: dict[str, StreamLog] = {}
        self._subscriptions: dict[str, dict[Subscription, None]] = {}

    def __len__(self) -> int:
        return len(self._clients)

    def __contains__(self, client: object) -> bool:
        return isinstance(client, Client) and self._clients.get(client.id) is client

    def add(self, client: Client, places: Iterable[Place]) -> None:
        """Take a client in, with a subscription for each place; the first one of a stream makes its log."""
        self._clients[client.id] = client
        client.subscriptions = tuple(self._subscribe(client, place) for place in places)

    def _subscribe(self, client: Client, place: Place) -> Subscription:
        name = place.stream
        log = self._logs.get(name)
        if log is None:
            log = self._logs[name] = self._make_log(name)
            self._subscriptions[name] = {}
        subscription = Subscription(client, log, place)
        self._subscriptions[name][subscription] = None
        return subscription

    def remove(self, client: Client) -> tuple[Subscription, ...]:
        """Let a client go; what it was subscribed to, or nothing when it has gone already."""
        if client not in self:
            return ()
        del self._clients[client.id]
        subscriptions, client.subscriptions = client.subscriptions, ()  # they would keep each other alive
        for subscription in subscriptions:
            name = subscription.log.name
            members = self._subscriptions[name]
            del members[subscription]
            if not members:
                del self._subscriptions[name]
                self._logs.pop(name).retire()
        return subscriptions

    def client(self, id: str) -> Client | None:
        """The client of that id, if it is connected."""
        return self._clients.get(id)

    def log(self, name: str) -> StreamLog | None:
        """The log of a stream that somebody is connected to."""
        return self._logs.get(name)

    def logs(self) -> list[StreamLog]:
        """All of them, as they are now."""
        return list(self._logs.values())

    def subscriptions(self, name: str) -> list[Subscription]:
        """The places in one stream, as they are now."""
        return list(self._subscriptions.get(name, ()))

    def clients(self) -> list[Client]:
        """All clients, as they are now."""
        return list(self._clients.values())
