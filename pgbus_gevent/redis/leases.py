"""The renewal of leases through Redis: few statements for the leases of many workers.

A worker writes its leases in Redis, and the steward renews those of all workers. Its answer says which leases are not there any
more. The worker reads it when it renews the next time, a third of a lease later, and then those members join again.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import gevent

from ..core.retries import Trouble
from ..errors import RedisRefused, RedisUnavailable
from . import hashes
from .keys import Keys
from .links import Command, Pipes
from .session import RedisSession, Wakes
from .urls import RedisURL

logger = logging.getLogger("pgbus_gevent.leases")

COLLECT = 5.0
"""The longest time in seconds between two rounds of the steward."""

MOST = 100
"""The most leases of a worker that go through Redis. Of more, each costs little in a statement of its own."""

LEAST_TTL = 30.0
"""The shortest time to live of a lease, in seconds, with which the steward's answer comes before the next renewal."""

AT_ONCE = 2000
"""About how many leases the steward renews in one statement, which takes tens of milliseconds."""

COUNTED = 12
"""Seconds for which a request counts. One that is repeated later would keep members whose worker is gone."""

KEPT = 60
"""Seconds for which requests and answers are kept in Redis."""

SIZE = 10_000
"""The most bytes of an answer that are read. What is longer is not of the steward."""

TIMEOUT = 1.0
"""Seconds for an answer of Redis to a worker, which then asks the database."""

Lease = tuple[str, str, str]
"""Stream, member and connection."""


class Presence(Protocol):
    """The statement; :class:`pgbus_gevent.database.presence.PresenceQueries` has it."""

    def touch_many(self, places: Sequence[Lease], *, ttl: float) -> list[int]: ...


class Request(NamedTuple):
    """The leases of a worker, which it wants renewed for ``ttl`` seconds; ``number`` counts its requests."""

    worker: str
    number: int
    ttl: float
    leases: list[Lease]


class RedisLeases:
    """Renews the leases of this worker's members, and as a duty of the steward those of all workers.

    A worker's first leases are renewed in the database too, and so are its leases whenever its last request was not answered.
    So a lease of which the renewal in Redis was lost is renewed when two thirds of its time are over.
    """

    def __init__(self, url: RedisURL, presence: Presence, wakes: Wakes) -> None:
        self._url = url
        self._presence = presence
        self._wakes = wakes
        self._worker = ""
        self._number = 0
        self._asked: tuple[RedisSession, Request] | None = None
        self._refusals = Trouble(logger, "the leases of this worker are renewed in PostgreSQL: %s")

    # a worker

    def touch_many(self, leases: Sequence[Lease], *, ttl: float) -> list[int]:
        """Renew leases. Return the indexes of those that are known not to be there any more. Raises :class:`DatabaseError`."""
        gone = self._through_redis(leases, ttl)
        if gone is None:
            return self._presence.touch_many(leases, ttl=ttl)
        return [index for index, lease in enumerate(leases) if lease in gone]

    def _through_redis(self, leases: Sequence[Lease], ttl: float) -> set[Lease] | None:
        """Ask the steward to renew leases. Return which ones of the last request were gone; None if it was not answered."""
        asked, self._asked = self._asked, None
        session = self._wakes.session
        if session is None or not session.fresh or len(leases) > MOST or ttl < LEAST_TTL:
            return None
        self._worker = self._worker or secrets.token_hex(8)  # made here, because the process may have forked before
        self._number += 1
        request = Request(self._worker, self._number, ttl, list(leases))
        try:
            answer = self._exchange(session, request)
        except RedisUnavailable as error:
            if isinstance(error, RedisRefused):
                self._refusals.begins(error)
            return None
        self._refusals.ends()
        self._asked = session, request
        # With another session, the database may be another server, which has none of the leases.
        if asked is None or asked[0] is not session or answer is None or answer[0] != asked[1].number:
            return None
        return {asked[1].leases[index] for index in answer[1]}

    def _exchange(self, session: RedisSession, request: Request) -> tuple[int, list[int]] | None:
        """Write a request. Return the last answer: the number of its request, and the indexes of the leases that were gone."""
        keys, name = session.keys, session.keys.leases
        place = keys.lease_answer(request.worker)
        pipes = Pipes(self._url, timeout=TIMEOUT)
        try:
            time, found = pipes.ask(name, ("TIME",), ("GETRANGE", place, 0, SIZE))
            text = json.dumps([int(time[0]), request.ttl, request.leases])
            sealed = keys.seal(session.reign, request.number, text, place=f"{name} {request.worker}")
            pipes.ask(name, ("HSET", name, request.worker, sealed), ("EXPIRE", name, KEPT))
        finally:
            pipes.close()
        answer = keys.open(found, place=place)
        return (answer.number, json.loads(answer.payload)) if answer is not None else None

    # the steward

    def collect(self) -> None:
        """Renew the leases of all workers that have asked since the last round: a duty of the steward."""
        session = self._wakes.session
        if session is None or not session.fresh:
            return
        name = session.keys.leases
        pipes = Pipes(self._url)
        try:
            found, (time,) = hashes.read(pipes, name, ("TIME",))
            if not found:
                return
            waiting: dict[float, list[Request]] = {}  # by their ttl, which a statement has one of
            sizes: dict[float, int] = {}
            for worker, data in zip(found[::2], found[1::2], strict=True):
                request = _request(session.keys, worker, data, int(time[0]))
                if request is None:
                    continue
                waiting.setdefault(request.ttl, []).append(request)
                sizes[request.ttl] = sizes.get(request.ttl, 0) + len(request.leases)
                if sizes[request.ttl] >= AT_ONCE:
                    del sizes[request.ttl]
                    self._renew(session, pipes, waiting.pop(request.ttl))
                gevent.sleep(0)
            for batch in waiting.values():
                self._renew(session, pipes, batch)
            # A request that was written meanwhile is removed as well. Its worker gets no answer, and renews its leases itself.
            pipes.ask(name, *hashes.removal(name, found[::2]))
        finally:
            pipes.close()

    def _renew(self, session: RedisSession, pipes: Pipes, requests: Sequence[Request]) -> None:
        """Renew the leases of some workers in one statement, and answer them."""
        keys = session.keys
        leases = [lease for request in requests for lease in request.leases]
        gone = set(self._presence.touch_many(leases, ttl=requests[0].ttl)) if leases else set()
        commands: list[Command] = []
        start = 0
        for request in requests:
            indexes = [index for index in range(len(request.leases)) if start + index in gone]
            start += len(request.leases)
            place = keys.lease_answer(request.worker)
            sealed = keys.seal(session.reign, request.number, json.dumps(indexes), place=place)
            commands.append(("SET", place, sealed, "EX", KEPT))
        pipes.ask(keys.leases, *commands)


def _request(keys: Keys, name: bytes, data: bytes, now: int) -> Request | None:
    """Return a request that a worker of this database has made lately, or None."""
    worker = name.decode(errors="replace")
    sealed = keys.open(data, place=f"{keys.leases} {worker}")
    if sealed is None:
        return None
    at, ttl, leases = json.loads(sealed.payload)
    if abs(now - at) > COUNTED:
        return None
    return Request(worker, sealed.number, ttl, [(stream, member, connection) for stream, member, connection in leases])
