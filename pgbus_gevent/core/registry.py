"""The clients of a worker, and the logs of the streams that it serves: those that have a client."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .client import Client, Place, Subscriber, Subscription
from .stream_log import StreamLog


class Registry:
    """The clients and logs of one worker. Nothing here yields, so each method is atomic.

    A stream's log is made with the stream's first client and removed with its last one, so no memory is kept for a stream
    without clients. An edge that follows a stream counts as a client. ``make_log`` makes a log for a stream's name.
    """

    def __init__(self, make_log: Callable[[str], StreamLog]) -> None:
        self._make_log = make_log
        self._clients: dict[str, Client] = {}
        self._logs: dict[str, StreamLog] = {}
        self._subscriptions: dict[str, dict[Subscription, None]] = {}
        self._holds: dict[str, int] = {}
        self._holders: dict[tuple[str, str], dict[Subscription, None]] = {}  # by stream and label
        self.labels_held = False
        """Whether there has been a subscriber with labels."""

    def __len__(self) -> int:
        return len(self._clients)

    def __contains__(self, client: object) -> bool:
        return isinstance(client, Client) and self._clients.get(client.id) is client

    def add(self, client: Client, places: Iterable[Place]) -> None:
        """Add a client, with a subscription for each place. The first subscription of a stream makes its log."""
        self._clients[client.id] = client
        client.subscriptions = tuple(self._subscribe(client, place) for place in places)

    def _subscribe(self, client: Client, place: Place) -> Subscription:
        name = place.stream
        log = self._logs.get(name)
        if log is None:
            log = self._logs[name] = self._make_log(name)
        subscription = Subscription(client, log, place)
        self._subscriptions.setdefault(name, {})[subscription] = None
        self._add_to_index(subscription)
        return subscription

    def hold(self, name: str) -> StreamLog:
        """Return the log of a stream, and keep it until :meth:`release`, even if the stream has no client."""
        log = self._logs.get(name)
        if log is None:
            log = self._logs[name] = self._make_log(name)
        self._holds[name] = self._holds.get(name, 0) + 1
        return log

    def release(self, name: str) -> None:
        """Undo one call of :meth:`hold`."""
        self._holds[name] -= 1
        if not self._holds[name]:
            del self._holds[name]
            if name not in self._subscriptions:
                self._logs.pop(name).retire()

    def _add_to_index(self, subscription: Subscription) -> None:
        for label in subscription.place.subscriber.labels:
            self._holders.setdefault((subscription.log.name, label), {})[subscription] = None
            self.labels_held = True

    def _remove_from_index(self, subscription: Subscription) -> None:
        for label in subscription.place.subscriber.labels:
            key = (subscription.log.name, label)
            holders = self._holders[key]
            del holders[subscription]
            if not holders:
                del self._holders[key]

    def replace(self, subscription: Subscription, subscriber: Subscriber) -> None:
        """Replace the subscriber of a subscription, and with it the labels that it holds."""
        self._remove_from_index(subscription)
        subscription.place = subscription.place._replace(subscriber=subscriber)
        self._add_to_index(subscription)

    def remove(self, client: Client) -> tuple[Subscription, ...]:
        """Remove a client. Return its subscriptions, or an empty tuple if it was removed before."""
        if client not in self:
            return ()
        del self._clients[client.id]
        subscriptions, client.subscriptions = client.subscriptions, ()  # the reference cycle would delay freeing both
        for subscription in subscriptions:
            self._remove_from_index(subscription)
            name = subscription.log.name
            others = self._subscriptions[name]
            del others[subscription]
            if not others:
                del self._subscriptions[name]
                if name not in self._holds:
                    self._logs.pop(name).retire()
        return subscriptions

    def client(self, id: str) -> Client | None:
        """Return the client with this id, or None if it is not connected."""
        return self._clients.get(id)

    def log(self, name: str) -> StreamLog | None:
        """Return the log of a stream, or None if the stream has no client."""
        return self._logs.get(name)

    def logs(self) -> list[StreamLog]:
        """Return all logs, as a list that does not change."""
        return list(self._logs.values())

    def subscriptions(self, name: str) -> list[Subscription]:
        """Return the subscriptions of one stream, as a list that does not change."""
        return list(self._subscriptions.get(name, ()))

    def holders(self, name: str, labels: Iterable[str]) -> list[Subscription]:
        """Return the subscriptions of one stream that hold one of ``labels``, as a list that does not change."""
        found: dict[Subscription, None] = {}
        for label in labels:
            found.update(self._holders.get((name, label), {}))
        return list(found)

    def clients(self) -> list[Client]:
        """Return all clients, as a list that does not change."""
        return list(self._clients.values())
