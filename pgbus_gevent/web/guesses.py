"""Checks tokens, and limits how many wrong tokens can be tried.

After :data:`TRIES` wrong tokens within a minute from one address, on all workers together, further wrong tokens from there get 429.
The right token is still accepted. Otherwise ten requests a minute, or one program with an old token, would keep out every operator,
publisher and Prometheus behind the same proxy. But if the right token is always accepted, an attacker can look for it at any speed.
So after :data:`DIFFERENT` different wrong tokens, no token is looked at for the rest of the minute, not even the right one. A wrong
token that is repeated tells an attacker nothing, so it does not count as different, as in Microsoft's smart lockout.

A hundred tokens a minute are 2^26 in a year. The shortest token has 16 characters; if they are random, it is one of 2^100.
"""

from __future__ import annotations

import hmac
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from time import monotonic

from ..database.operators import OperatorQueries
from ..streamer.limits import network_of
from . import requests
from .responses import Environ, Refused, text
from .sessions import asked

TRIES = 10
"""Wrong tokens from one address within a minute that get 401, and not yet 429."""

DIFFERENT = 100
"""Different wrong tokens from one address after which no token is looked at."""

WINDOW = 60.0
"""Seconds for which a wrong token counts."""

REMEMBERED = 1000
"""The most addresses that a worker remembers itself."""


class Door:
    """Lets requests pass that have one of ``tokens``.

    ``name`` names the token in messages and in the database. ``secrets`` key the hash of wrong tokens, so that the database does
    not reveal them. With ``shuts=False``, the right token is accepted after any number of guesses: for a random token that
    programs present, because a stranger behind the same proxy could otherwise keep them out.
    """

    def __init__(
        self,
        name: str,
        tokens: Sequence[str],
        secrets: Sequence[str],
        queries: OperatorQueries,
        clock: Callable[[], float] = monotonic,
        *,
        shuts: bool = True,
    ) -> None:
        self._name = name
        self._tokens = tuple(tokens)
        self._shuts = shuts
        self._key = "".join(secrets[-1:] or "-").encode()
        self._guesses = Guesses(name, queries, clock)

    def check(self, environ: Environ, given: str | None) -> None:
        """Raises Refused unless ``given`` is one of the tokens: 401 if it is wrong or missing, 429 after too many wrong ones."""
        if given is None:
            raise self._unauthorized()
        address = ascii(network_of(str(environ.get("REMOTE_ADDR") or "")))[:100]
        right = any(requests.same(given.strip(), token) for token in self._tokens)
        shut = self._guesses.is_shut(address)
        if right and not self._shuts:
            return
        # This comes before the answer depends on the token. Otherwise a closed door would give away the right one.
        if shut or not (right or self._guesses.note(address, self._fingerprint(given))):
            raise Refused(text(429, "too many wrong tokens: wait a minute", ("retry-after", f"{WINDOW:.0f}")))
        if not right:
            raise self._unauthorized()

    def _unauthorized(self) -> Refused:
        return Refused(text(401, f"the {self._name} token is missing or wrong", ("www-authenticate", "Bearer")))

    def _fingerprint(self, given: str) -> int:
        """A hash that does not reveal the wrong token, which may be the right one mistyped, or the token of another site."""
        digest = hmac.digest(self._key, given.strip().encode("utf-8", "replace"), "sha256")
        return int.from_bytes(digest[:4], "big", signed=True)


class _Source:
    """The wrong tokens from one address."""

    def __init__(self) -> None:
        self.newest: deque[float] = deque(maxlen=TRIES)  # when the last wrong tokens came
        self.seen: OrderedDict[int, float] = OrderedDict()  # the different ones, and when each came first
        self.limited_until = self.shut_until = 0.0  # as the database said


class Guesses:
    """Counts wrong tokens by address, so that guesses from one address do not affect another.

    The database counts for all workers. A worker asks it about a wrong token that is new, and never about a right one, because
    right ones are frequent. So a worker may look at one more token from an address for which other workers have closed the door.

    :meth:`note` yields while it asks the database. The greenlets of other requests from the same address run meanwhile. Each of
    them adds its token to the counts of this worker before it yields, so all are counted.
    """

    def __init__(self, door: str, queries: OperatorQueries, clock: Callable[[], float] = monotonic) -> None:
        self._door = door
        self._queries = queries
        self._clock = clock
        self._sources: OrderedDict[str, _Source] = OrderedDict()

    def is_shut(self, address: str) -> bool:
        """Whether no token from this address is looked at for now."""
        source = self._sources.get(address)
        if source is None:
            return False
        now = self._clock()
        _forget(source, now)
        return len(source.seen) >= DIFFERENT or now < source.shut_until

    def note(self, address: str, guess: int) -> bool:
        """Count a wrong token from this address. True if it is answered 401, False if it is one too many."""
        source, now = self._source(address), self._clock()
        _forget(source, now)
        limited = now < source.limited_until or (len(source.newest) == TRIES and now - source.newest[0] < WINDOW)
        if limited and guess in source.seen:
            return False
        source.newest.append(now)
        source.seen.setdefault(guess, now)
        counted = asked(lambda: self._queries.note_guess(self._door, address, guess, WINDOW))
        if counted is not None:
            ends = now + WINDOW - counted.oldest
            if counted.all > TRIES:
                source.limited_until = ends
                limited = True
            if counted.different >= DIFFERENT:
                source.shut_until = ends
        return not limited

    def _source(self, address: str) -> _Source:
        source = self._sources.setdefault(address, _Source())
        self._sources.move_to_end(address)
        if len(self._sources) > REMEMBERED:
            self._sources.popitem(last=False)
        return source


def _forget(source: _Source, now: float) -> None:
    while source.seen and now - next(iter(source.seen.values())) >= WINDOW:
        source.seen.popitem(last=False)
