"""Who is connected: takes connections in, within the limits, and lets them go, whichever way they end."""

from __future__ import annotations

import logging
import random
import resource
import secrets
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from time import monotonic
from typing import Any, NamedTuple, Protocol

from ..core import sse
from ..core.board import Board
from ..core.client import Client, StreamRequest, Subscriber, Subscription, end_of, owner_of
from ..core.events import Connected, Disconnected, Refused, SlowConsumer
from ..core.greeting import identified, whole
from ..core.identity import Identities
from .body_connection import BodyConnection
from .connection import Connection

logger = logging.getLogger("pgbus_gevent.streamer")


RESERVE = 256
"""Descriptors that are left for what is no stream: health checks, the database, files; or half of them where there are few."""


_TRANSLATED = IPv6Network("64:ff9b::/96")


class Limits(NamedTuple):
    """How many connections there may be, of all, of one owner and of one address, and for how many seconds; 0 is no limit."""

    connections: int
    per_owner: int = 0
    per_address: int = 0
    age: float = 0.0

    @classmethod
    def of(cls, settings: Any) -> Limits:
        """Those that the ``Settings`` set."""
        return cls(settings.max_connections, settings.max_per_owner, settings.max_per_address, settings.max_age)


class Presence(Protocol):
    """Who wants to know which members are connected; :class:`pgbus_gevent.streamer.presence.PresenceKeeper` does."""

    def joined(self, subscription: Subscription) -> None: ...
    def left(self, subscription: Subscription) -> None: ...
    def renamed(self, subscription: Subscription, before: Subscriber) -> None: ...


class Gate(Protocol):
    """Whether the worker takes clients in at all; :class:`pgbus_gevent.streamer.health.Health` is one."""

    @property
    def refusing(self) -> str | None: ...
    @property
    def trouble(self) -> str: ...


class Clients:
    """The way of a connection from its accept to its end. Nothing here yields.

    ``presence`` is told of every member that comes, goes or changes. A socket's send buffer has ``send_buffer`` bytes, and the
    kernel gives up on a peer that acknowledges nothing for ``dead_after`` seconds.
    """

    def __init__(
        self,
        board: Board,
        *,
        limits: Limits,
        health: Gate | None = None,
        presence: Presence | None = None,
        identities: Identities | None = None,
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
        self._identities = identities
        self._send_buffer = send_buffer
        self._dead_after = dead_after
        self._lingering: set[Client] = set()
        self._owners: Counter[str] = Counter()
        self._addresses: Counter[str] = Counter()

    # coming

    @property
    def most(self) -> int:
        """How many connections are taken."""
        return self._limits.connections

    def fit(self) -> None:
        """Take no more connections than the process may have descriptors, so that there are some for who asks after its health."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        reserve = min(RESERVE, soft // 2)
        if soft == resource.RLIM_INFINITY or soft - reserve >= self.most:
            return
        logger.warning(
            "the limit of %d open files is below max_connections=%d and a reserve of %d: %d connections are accepted at most;"
            " raise it (ulimit -n), or lower max_connections",
            *(soft, self.most, reserve, soft - reserve),
        )
        self._limits = self._limits._replace(connections=soft - reserve)

    def refusal(self, owner: str | None = None, address: str = "") -> str | None:
        """Why a new connection is to be refused now, or None: ``restart``, ``unavailable``, ``overloaded`` or
        ``too-many-connections`` of this owner or address.
        """
        if self._health is not None and self._health.refusing is not None:
            return self._health.refusing
        limits = self._limits
        if len(self._registry) >= limits.connections:
            return "overloaded"
        if owner is not None and 0 < limits.per_owner <= self._owners[owner]:
            return "too-many-connections"
        if address and 0 < limits.per_address <= self._addresses[network_of(address)]:
            return "too-many-connections"
        return None

    @property
    def unready(self) -> str | None:
        """Why new clients cannot be served now, or None; what readyz tells."""
        return self.refusal() or ("unavailable" if self._health is not None and self._health.trouble else None)

    def take_over(self, request: StreamRequest, sock: socket.socket, head: bytes, chunked: bool = False) -> Client:
        """Serve a client on a socket that is ours from now on.

        ``head`` is the response's, which goes out before the first frame and announces chunks if ``chunked`` says so.
        """
        connection = Connection(
            self._new_id(request),
            request,
            sock,
            head,
            clients=self,
            chunked=chunked,
            send_buffer=self._send_buffer,
            dead_after=self._dead_after,
        )
        self._register(connection, request)
        return connection

    def body(self, request: StreamRequest) -> BodyConnection:
        """Serve a client through a response body that its server iterates over."""
        connection = BodyConnection(self._new_id(request), request, clients=self)
        self._register(connection, request)
        return connection

    def _new_id(self, request: StreamRequest) -> str:
        """The one that the client had before stays, so that messages which exclude it go on to."""
        if request.connection is None:
            return secrets.token_hex(12)
        old = self._registry.client(request.connection)
        if old is not None:
            if old.owner != request.owner:
                return secrets.token_hex(12)  # somebody else's
            # A client has one connection of that id: this one is what is left of a path that broke.
            self._forget(old, "replaced")
            old.abort()
        return request.connection

    def _register(self, client: Client, request: StreamRequest) -> None:
        # Others may have come in since the request was looked at.
        refusal = self.refusal(client.owner, client.address)
        if refusal is not None:
            client.reason = refusal
            self._events.emit(Refused(refusal))
            client.finish(sse.shutdown(refusal, refusal_retry()), monotonic())
            return
        if self._limits.age:
            client.ends_at = client.opened_at + self._limits.age * random.uniform(0.8, 1.2)
        self._board.join(client, request.places)
        self._count(client, 1)
        self._counter.connected(place.stream for place in request.places)
        if self._presence is not None:
            for subscription in client.subscriptions:
                self._presence.joined(subscription)
        logger.debug("connection %s opened, streams %r", client.id, [place.stream for place in request.places])
        if self._connected.handlers:
            streams = tuple(place.stream for place in request.places)
            self._connected.emit(Connected(client.id, streams, client.owner))

    def adopt(self, client: Client, subscribers: Sequence[Subscriber]) -> None:
        """A client is now known as these, in the order of its streams: caps, kicks, filters and presence go by them from here."""
        if client not in self._registry:
            return
        self._count(client, -1)
        client.owner = owner_of(subscribers)
        known = whole(client, self._identities)
        before, client.expires_at = client.expires_at, end_of(subscribers)
        self._count(client, 1)
        for subscription, subscriber in zip(client.subscriptions, subscribers, strict=True):
            self._rename(subscription, subscriber)
        if client.expires_at is not None and (before is None or client.expires_at < before):
            self._board.schedule.add(client)  # its end is sooner than the heartbeat meant to look
        changed = client.admitted and whole(client, self._identities) != known
        if changed and client.blocked_since is None:
            client.send(identified(client, self._identities), monotonic())
        elif changed:
            # Whoever cannot be told now is told when they come back.
            self.end(client, "revoked")

    def _rename(self, subscription: Subscription, subscriber: Subscriber) -> None:
        before = subscription.place.subscriber
        subscription.place = subscription.place._replace(subscriber=subscriber)
        if self._presence is not None:
            self._presence.renamed(subscription, before)

    def _count(self, client: Client, one: int) -> None:
        for counts, key in ((self._owners, client.owner), (self._addresses, network_of(client.address))):
            if key:
                counts[key] += one
                if not counts[key]:
                    del counts[key]

    # going

    def end(self, client: Client, reason: str, retry: float | None = None) -> None:
        """Close a connection from our side, with the reason as its last frame where it can still be told."""
        if reason == "slow-consumer" and client in self._registry and client.blocked_since is not None:
            # One that was sent away already and still takes nothing has had its Disconnected.
            seconds = monotonic() - client.blocked_since
            self._events.emit(SlowConsumer(client.id, tuple(each.log.name for each in client.subscriptions), seconds))
        if client in self._lingering or reason in ("slow-consumer", "error"):
            # Its socket is full, or cannot be written to: there is no room for a last frame.
            self._forget(client, reason)
            client.abort()
            self._lingering.discard(client)
            return
        if not self._forget(client, reason):
            return
        if reason == "unavailable":
            retry = refusal_retry()
        self._lingering.add(client)
        client.finish(sse.shutdown(reason, retry), monotonic())
        if client in self._lingering:
            client.ends_at = None
            self._board.schedule.add(client)

    def end_owner(self, owner: str) -> int:
        """Close all connections of one owner, as its right was taken back; how many."""
        if owner not in self._owners:
            return 0
        theirs = [client for client in self._registry.clients() if client.owner == owner]
        for client in theirs:
            self.end(client, "revoked")
        return len(theirs)

    def end_all(self) -> Iterator[None]:
        """Send everybody away to come back, each with its own time for it; a step is one client."""
        for client in self._registry.clients():
            self.end(client, "restart", retry=random.uniform(1.0, 5.0))
            yield

    @property
    def lingering(self) -> bool:
        """Whether something still waits for a client that was sent away."""
        return bool(self._lingering)

    def cut_off(self) -> None:
        """Close those for whom something still waits."""
        for client in list(self._lingering):
            client.abort()
        self._lingering.clear()

    def give(self, client: Client, data: bytes, now: float) -> None:
        """Send whole frames to a client for which nothing waits."""
        try:
            client.send(data, now)
        except Exception:
            self.broken(client)

    def broken(self, client: Client) -> None:
        """A delivery raised. One client's trouble must not keep the others from their messages."""
        logger.exception("delivery to connection %s failed; closing it", client.id)
        self.end(client, "error")

    # what connections tell; in the hub, where nothing may wait

    def drained(self, client: Client) -> None:
        """The client can take more again."""
        subscriptions = client.subscriptions
        if len(subscriptions) > 1:
            # By turns, so that a busy stream, which fills the socket each time, leaves room for the quiet ones.
            client.turn = (client.turn + 1) % len(subscriptions)
            subscriptions = subscriptions[client.turn :] + subscriptions[: client.turn]
        for subscription in subscriptions:
            self._board.ready.add(subscription)

    def gone(self, client: Client, reason: str) -> None:
        """The client has left, or what waited for it after its end has gone out."""
        self._lingering.discard(client)
        self._board.schedule.remove(client)
        self._forget(client, reason)

    def _forget(self, client: Client, reason: str) -> bool:
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
            streams = tuple(subscription.log.name for subscription in subscriptions)
            seconds = monotonic() - client.opened_at
            self._disconnected.emit(Disconnected(client.id, streams, client.owner, reason, seconds))
        return True


@lru_cache(maxsize=4096)
def network_of(address: str) -> str:
    """What one client has for itself: an IPv4 address, also one that is written as IPv6, or an IPv6 network of 64 bits.

    The other 64 are its own to choose (RFC 4291, section 2.5.1). IPv4 is written so where it is mapped, and by a translator in
    front of a network that has IPv6 alone (RFC 6052).
    """
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, IPv4Address):
        return str(found)
    if found in _TRANSLATED:
        return str(IPv4Address(int(found) & 0xFFFFFFFF))
    return str(found.ipv4_mapped or f"{IPv6Address(int(found) >> 64 << 64)}/64")


def refusal_retry() -> float:
    """When somebody who was refused for a passing reason is to come back: 5 to 15 seconds, so that not all do at once."""
    return random.uniform(5.0, 15.0)
