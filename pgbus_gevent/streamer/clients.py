"""Takes connections in, within the limits, and ends them."""

from __future__ import annotations

import logging
import random
import secrets
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from time import monotonic
from typing import Protocol

from ..core import sse
from ..core.audience import Audience
from ..core.board import Board
from ..core.client import Client, StreamRequest, Subscriber, Subscription, end_of, ended, owner_of
from ..core.events import Connected, Disconnected, Refused, SlowConsumer
from ..core.filters import Filters
from ..core.fleet_counts import FleetCounts
from ..core.greeting import identified, identity_of
from ..core.identity import Identities
from ..core.polled import settled
from .body_connection import BodyConnection
from .connection import Connection
from .limits import Limits, network_of, refusal_retry
from .poll_connection import PollBody, PollConnection

logger = logging.getLogger("pgbus_gevent.streamer")


class Presence(Protocol):
    """What ``Clients`` calls when members come and go; :class:`pgbus_gevent.streamer.presence.PresenceKeeper` is one."""

    def joined(self, subscription: Subscription) -> None: ...
    def left(self, subscription: Subscription) -> None: ...
    def renamed(self, subscription: Subscription, before: Subscriber) -> None: ...


class Gate(Protocol):
    """Says whether the worker takes clients in; :class:`pgbus_gevent.streamer.health.Health` is one."""

    @property
    def refusing(self) -> str | None: ...
    @property
    def trouble(self) -> str: ...


class Clients:
    """The life of a connection, from its accept to its end. Nothing here yields, except the generator :meth:`end_all`.

    Greenlets that accept, several tasks and the event loop call these methods. No other greenlet sees a client that is half
    registered or half removed: a context's own code, which may yield, runs before or after that.

    ``presence`` is called for every member that comes, goes or changes. ``elsewhere`` has the connections on other workers, which
    caps count too. ``send_buffer`` is the size of a socket's send buffer in bytes. ``dead_after`` is how many seconds the kernel
    waits for a peer that acknowledges nothing.
    """

    def __init__(
        self,
        board: Board,
        *,
        limits: Limits,
        health: Gate | None = None,
        presence: Presence | None = None,
        filters: Filters | None = None,
        identities: Identities | None = None,
        elsewhere: FleetCounts | None = None,
        send_buffer: int = 65536,
        dead_after: float = 30.0,
    ) -> None:
        self._board = board
        self._registry = board.registry
        self._counter = board.counter
        self._events = board.events
        self._connected = self._events.signal(Connected)
        self._disconnected = self._events.signal(Disconnected)
        self._limits = limits
        self._health = health
        self._presence = presence
        self._audience = Audience(filters or Filters(), board.registry)
        self._identities = identities
        self._elsewhere = elsewhere or FleetCounts()
        self._send_buffer = send_buffer
        self._dead_after = dead_after
        self._lingering: set[Client] = set()
        self._owners: Counter[str] = Counter()
        self._addresses: Counter[str] = Counter()

    # arrivals

    @property
    def most(self) -> int:
        """The most connections that this worker takes."""
        return self._limits.connections

    def fit(self) -> None:
        """Lower the limit of connections to the limit of open files, so that descriptors are left for health checks."""
        self._limits = self._limits.fitted()

    def refusal(self, owner: str | None = None, address: str = "") -> str | None:
        """Return why a new connection of this owner and address is refused now, or None.

        The reason is ``restart``, ``unavailable``, ``overloaded`` or ``too-many-connections``.
        """
        if self._health is not None and self._health.refusing is not None:
            return self._health.refusing
        limits = self._limits
        if len(self._registry) >= limits.connections:
            return "overloaded"
        if owner is not None and self._at_cap("owner", owner, self._owners, limits.per_owner):
            return "too-many-connections"
        if address and self._at_cap("address", network_of(address), self._addresses, limits.per_address):
            return "too-many-connections"
        return None

    def _at_cap(self, kind: str, text: str, counts: Mapping[str, int], cap: int) -> bool:
        here = counts.get(text, 0)
        if not 0 < cap <= here + self._elsewhere.elsewhere(kind, text):
            return False
        if here < cap:
            self._elsewhere.ask()  # the others may have room by now, so the client should not be refused again
        return True

    def counts(self) -> list[tuple[str, Mapping[str, int], int]]:
        """Return, for owners and for addresses, the connections of each, and the cap; 0 for none."""
        return [("owner", self._owners, self._limits.per_owner), ("address", self._addresses, self._limits.per_address)]

    @property
    def unready(self) -> str | None:
        """Why new clients cannot be served now, or None. ``readyz`` answers with it."""
        return self.refusal() or ("unavailable" if self._health is not None and self._health.trouble else None)

    def take_over(self, request: StreamRequest, sock: socket.socket, head: bytes, chunked: bool = False) -> Client:
        """Serve a client on a socket that the streamer owns from now on.

        ``head`` is the response's status line and headers, which are sent before the first frame. ``chunked`` says whether they
        announce HTTP's chunked coding.
        """
        make: Callable[..., Client] = partial(Connection, chunked=chunked) if request.poll is None else PollConnection
        connection = make(
            self._new_id(request),
            request,
            sock,
            head,
            clients=self,
            send_buffer=self._send_buffer,
            dead_after=self._dead_after,
            backlog=self._board.backlog,
        )
        self._register(connection, request)
        return connection

    def body(self, request: StreamRequest) -> BodyConnection:
        """Serve a client through a response body, over which the WSGI server iterates."""
        connection = BodyConnection(self._new_id(request), request, clients=self)
        self._register(connection, request)
        return connection

    def poll(self, request: StreamRequest) -> PollBody:
        """Serve a client that polls and whose socket the server keeps."""
        connection = PollBody(self._new_id(request), request, clients=self)
        self._register(connection, request)
        return connection

    def _new_id(self, request: StreamRequest) -> str:
        """Return the id for a client. A client that comes back keeps its id, so that messages which exclude it still do."""
        if request.connection is None:
            return secrets.token_hex(12)
        old = self._registry.client(request.connection)
        if old is not None:
            if old.owner != request.owner:
                return secrets.token_hex(12)  # the id belongs to another owner
            # A client has one connection with this id, so the old one is left over from a network path that broke.
            self._remove(old, "replaced")
            old.abort()
        return request.connection

    def _register(self, client: Client, request: StreamRequest) -> None:
        # Checked again, because other greenlets may have registered clients since this request was checked.
        refusal = self.refusal(client.owner, client.address)
        if refusal is not None:
            client.reason = refusal
            self._events.emit(Refused(refusal))
            client.finish(sse.shutdown(refusal, refusal_retry()), monotonic())
            return
        if self._limits.age and not client.polls:
            client.ends_at = client.opened_at + self._limits.age * random.uniform(0.8, 1.2)
        self._board.join(client, request.places)
        self._count(client, 1)
        streams = tuple(place.stream for place in request.places)
        self._counter.connected(streams)
        logger.debug("connection %s opened, streams %r", client.id, [*streams])
        if self._connected.handlers:
            self._connected.emit(Connected(client.id, streams, client.owner, client.address, client.polls))
        if self._presence is not None:
            for subscription in client.subscriptions:
                self._presence.joined(subscription)

    def adopt(self, client: Client, subscribers: Sequence[Subscriber]) -> None:
        """Replace a client's subscribers, given in the order of its streams. Caps, revocations, labels, filters and presence
        go by the new ones from now on.
        """
        known = identity_of(client, self._identities)  # by the context's own code, which may wait
        if client not in self._registry:
            return
        owner = owner_of(subscribers)
        if owner != client.owner:
            self._count(client, -1)
            client.owner = owner
            self._count(client, 1)
        before, client.expires_at = client.expires_at, end_of(subscribers)
        earlier = [self._replace(*each) for each in zip(client.subscriptions, subscribers, strict=True)]
        if client.expires_at is not None and (before is None or client.expires_at < before):
            self._board.schedule.add(client)  # the connection may end before the slot in which the client stands
        if self._presence is not None:
            for subscription, old in zip(client.subscriptions, earlier, strict=False):
                self._presence.renamed(subscription, old)
        if client.admitted and identity_of(client, self._identities) != known:
            frame = identified(client, self._identities)
            if client.blocked_since is None:
                self.give(client, frame, monotonic())
            elif not client.closed:
                self.end(client, "revoked")  # it gets the new identity when it comes back

    def _replace(self, subscription: Subscription, subscriber: Subscriber) -> Subscriber:
        before = subscription.place.subscriber
        if before.labels != subscriber.labels and subscription.cursor is not None:
            # Messages that were for others while its cursor rested stay past, even if it holds their label from now on.
            self._audience.move_past_others(subscription)
        self._registry.replace(subscription, subscriber)
        return before

    def _count(self, client: Client, one: int) -> None:
        for kind, counts, key, cap in (
            ("owner", self._owners, client.owner, self._limits.per_owner),
            ("address", self._addresses, network_of(client.address), self._limits.per_address),
        ):
            if key:
                before = counts[key]
                counts[key] += one
                if not counts[key]:
                    del counts[key]
                self._elsewhere.changed((kind, key), max(before, before + one), cap, grew=one > 0)

    # departures

    def end(self, client: Client, reason: str, retry: float | None = None) -> None:
        """Close a connection, after a last frame with the reason unless the client is blocked or cannot be written to.

        ``retry`` is the seconds after which the client is to come back.
        """
        if reason == "slow-consumer" and client in self._registry and client.blocked_since is not None:
            # Not for a client that was sent away before and takes nothing: its Disconnected has been emitted.
            seconds = monotonic() - client.blocked_since
            self._events.emit(SlowConsumer(client.id, tuple(each.log.name for each in client.subscriptions), seconds))
        if client in self._lingering or reason in ("slow-consumer", "error"):
            # The socket is full or broken, so there is no room for a last frame.
            self._remove(client, reason)
            client.abort()
            self._lingering.discard(client)
            return
        if not self._remove(client, reason):
            return
        if reason in ("unavailable", "too-many-connections"):
            retry = refusal_retry()
        self._lingering.add(client)
        client.finish(sse.shutdown(reason, retry), monotonic())
        if client in self._lingering:
            client.ends_at = None
            self._board.schedule.add(client)

    def end_owner(self, owner: str) -> int:
        """Close all connections of one owner, because its right was taken back. Return how many."""
        if owner not in self._owners:
            return 0
        theirs = [client for client in self._registry.clients() if client.owner == owner]
        for client in theirs:
            self.end(client, "revoked")
        return len(theirs)

    def end_all(self, *, owned: bool = False) -> Iterator[None]:
        """Send every client away, or each that has an owner. A step of the generator ends one, with a random time to come back."""
        for client in [each for each in self._registry.clients() if each.owner is not None or not owned]:
            self.end(client, "restart", retry=random.uniform(1.0, 5.0))
            yield

    @property
    def lingering(self) -> bool:
        """Whether bytes still wait for a client that was sent away."""
        return bool(self._lingering)

    def cut_off(self) -> None:
        """Close the connections of clients that were sent away and for which bytes still wait."""
        for client in list(self._lingering):
            client.abort()
        self._lingering.clear()

    def give(self, client: Client, data: bytes, now: float) -> None:
        """Send whole frames to a client that is not blocked. If sending raises, close the connection."""
        try:
            client.send(data, now)
        except Exception:
            self.broken(client)

    def settle(self, client: Client) -> bool:
        """End a client that polls and has been sent all that there is. Return whether it has been."""
        if settled(self._board, client):
            self.end(client, "answered")
        return client.closed

    def broken(self, client: Client) -> None:
        """Close the connection of a client to which sending raised, so that the others go on getting their messages."""
        logger.exception("delivery to connection %s failed; closing it", client.id)
        self.end(client, "error")

    # called by connections, in the event loop, where nothing may wait

    def unblocked(self, client: Client) -> None:
        """Make a client's subscriptions ready, because the client takes bytes again."""
        subscriptions = client.subscriptions
        if len(subscriptions) > 1:
            # Each time another stream comes first, because a busy stream may fill the socket before the others are served.
            client.first = (client.first + 1) % len(subscriptions)
            subscriptions = subscriptions[client.first :] + subscriptions[: client.first]
        for subscription in subscriptions:
            self._board.ready.add(subscription)

    def gone(self, client: Client, reason: str) -> None:
        """Remove a client that has left, or whose last bytes have been sent."""
        self._lingering.discard(client)
        self._board.schedule.remove(client)
        self._remove(client, reason)

    def _remove(self, client: Client, reason: str) -> bool:
        subscriptions = self._board.leave(client)
        if not subscriptions:
            return False
        client.reason = reason
        if self._presence is not None:
            for subscription in subscriptions:
                self._presence.left(subscription)
        self._count(client, -1)
        self._counter.disconnected(subscription.log.name for subscription in subscriptions)
        logger.debug("connection %s closed: %s", client.id, reason)
        if self._disconnected.handlers:
            self._disconnected.emit(ended(client, subscriptions, reason, monotonic()))
        return True
