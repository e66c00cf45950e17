"""Who is connected: takes connections in, within the limits, and lets them go, whichever way they end."""

from __future__ import annotations

import logging
import random
import resource
import secrets
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from time import monotonic
from typing import Any, NamedTuple

from ..core import sse
from ..core.client import Client, StreamRequest, Subscriber, Subscription, end_of, owner_of
from ..core.events import Connected, Disconnected, Events, Refused, SlowConsumer
from ..core.greeting import Identify, identified, whole
from ..core.registry import Registry
from ..core.stream_counter import StreamCounter

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


class Clients:
    """The way of a connection from its accept to its end. Nothing here yields.

    ``unready`` tells why nobody can be served now, or None. ``make_connection`` and ``make_body`` make a client of either kind;
    ``watch`` and ``unwatch`` are the heartbeat's, ``bring`` the dispatcher's; ``joined`` and ``left``
    are told of each subscription, ``renamed`` takes one over for another subscriber.
    ``identify`` makes the identity of a connection with these subscribers.
    """

    def __init__(
        self,
        registry: Registry,
        counter: StreamCounter,
        *,
        limits: Limits,
        unready: Callable[[], str | None],
        make_connection: Callable[..., Client],
        make_body: Callable[..., Client],
        bring: Callable[[Subscription], None],
        joined: Callable[[Subscription], None],
        left: Callable[[Subscription], None],
        renamed: Callable[[Subscription, Subscriber], None],
        watch: Callable[[Client], None],
        unwatch: Callable[[Client], None],
        identify: Identify = lambda *subscribers: None,
        events: Events | None = None,
    ) -> None:
        self._events = events or Events()
        self._connected = self._events.signal(Connected)
        self._disconnected = self._events.signal(Disconnected)
        self._limits = limits
        self._registry = registry
        self._counter = counter
        self._unready = unready
        self._make_connection = make_connection
        self._make_body = make_body
        self._bring = bring
        self._joined = joined
        self._left = left
        self._renamed = renamed
        self._watch = watch
        self._unwatch = unwatch
        self._identify = identify
        self._lingering: set[Client] = set()
        self._owners: Counter[str] = Counter()
        self._addresses: Counter[str] = Counter()
        # Bound once: two bound methods for each of ten thousand connections would be more than a megabyte.
        self._callbacks: dict[str, Any] = {"on_drained": self._drained, "on_gone": self._gone}

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
        ``too-many-connections`` of this owner or address."""
        unready = self._unready()
        if unready is not None:
            return unready
        limits = self._limits
        if len(self._registry) >= limits.connections:
            return "overloaded"
        if owner is not None and 0 < limits.per_owner <= self._owners[owner]:
            return "too-many-connections"
        if address and 0 < limits.per_address <= self._addresses[network_of(address)]:
            return "too-many-connections"
        return None

    def take_over(self, request: StreamRequest, sock: socket.socket, head: bytes, chunked: bool = False) -> Client:
        """Serve a client on a socket that is ours from now on; ``head`` is the response's, to go before the first frame, and
        announces chunks where ``chunked`` says so."""
        connection = self._make_connection(
            self._new_id(request),
            request,
            sock,
            head,
            chunked=chunked,
            **self._callbacks,
        )
        self._register(connection, request)
        return connection

    def body(self, request: StreamRequest) -> Client:
        """Serve a client through a response body that its server iterates over."""
        connection = self._make_body(self._new_id(request), request, **self._callbacks)
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
        refusal = self.refusal(client.owner, client.address)
        if refusal is not None:
            # Between the first look and here others may have come in.
            client.reason = refusal
            self._events.emit(Refused(refusal))
            client.finish(sse.shutdown(refusal, refusal_retry()), monotonic())
            return
        if self._limits.age:
            client.ends_at = client.opened_at + self._limits.age * random.uniform(0.8, 1.2)
        self._registry.add(client, request.places)
        self._count(client, 1)
        self._counter.connected(place.stream for place in request.places)
        self._watch(client)
        # Before anything that could end it.
        for subscription in client.subscriptions:
            self._joined(subscription)
        # It stands for all of them until the client is admitted.
        self._bring(client.subscriptions[0])
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
        known = whole(client, self._identify)
        before, client.expires_at = client.expires_at, end_of(subscribers)
        self._count(client, 1)
        for subscription, subscriber in zip(client.subscriptions, subscribers, strict=True):
            self._renamed(subscription, subscriber)
        if client.expires_at is not None and (before is None or client.expires_at < before):
            # Sooner than the heartbeat meant to look.
            self._unwatch(client)
            self._watch(client)
        changed = client.admitted and whole(client, self._identify) != known
        if changed and client.blocked_since is None:
            client.send(identified(client, self._identify), monotonic())
        elif changed:
            # Whoever cannot be told now is told when they come back.
            self.end(client, "revoked")

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
            self._watch(client)

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

    def _gone(self, client: Client, reason: str) -> None:
        """The client has left, or what waited for it after its end has gone out."""
        self._lingering.discard(client)
        self._unwatch(client)
        self._forget(client, reason)

    def _forget(self, client: Client, reason: str) -> bool:
        subscriptions = self._registry.remove(client)
        if not subscriptions:
            return False
        client.reason = reason
        for subscription in subscriptions:
            self._left(subscription)
        self._unwatch(client)
        self._count(client, -1)
        self._counter.disconnected(subscription.log.name for subscription in subscriptions)
        logger.debug("connection %s closed: %s", client.id, reason)
        if self._disconnected.handlers:
            streams = tuple(subscription.log.name for subscription in subscriptions)
            seconds = monotonic() - client.opened_at
            self._disconnected.emit(Disconnected(client.id, streams, client.owner, reason, seconds))
        return True

    def _drained(self, client: Client) -> None:
        subscriptions = client.subscriptions
        if len(subscriptions) > 1:
            # By turns, so that a busy stream, which fills the socket each time, leaves room for the quiet ones.
            client.turn = (client.turn + 1) % len(subscriptions)
            subscriptions = subscriptions[client.turn :] + subscriptions[: client.turn]
        for subscription in subscriptions:
            self._bring(subscription)


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
