"""Asks for a token that is configured, and bounds how many can be tried.

After :data:`TRIES` wrong ones within a minute from one address, at whatever workers, further wrong ones there are answered 429. The
right one is let in all the same: else anybody behind the same proxy could keep the operators, their Prometheus and every publisher
out with ten requests a minute, and so could one program that still sends an old token. But where the right one is always let in,
it can be looked for at any speed. So after :data:`DIFFERENT` different ones nothing is looked at for the rest of the minute, the
right one included. The same wrong one again tells a guesser nothing, and does not count there, as in Microsoft's smart lockout.

A hundred a minute are 2^26 in a year. The least token has 16 characters: at random, they are of 2^100.
"""

from __future__ import annotations

import hmac
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from time import monotonic

from ..database.operators import OperatorQueries
from ..streamer.clients import network_of
from . import requests
from .responses import Environ, Refused, text
from .sessions import asked

TRIES = 10
"""Wrong tokens of one address that are answered as wrong within a minute."""

DIFFERENT = 100
"""Different wrong tokens of one address after which none is looked at."""

WINDOW = 60.0
"""Seconds for which a wrong token counts."""

REMEMBERED = 1000
"""Addresses that a worker remembers itself."""


class Door:
    """What ``token`` opens; ``name`` is what the database calls it. ``secrets`` hide which wrong tokens were tried."""

    def __init__(
        self,
        name: str,
        token: str,
        secrets: Sequence[str],
        queries: OperatorQueries,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._name = name
        self._token = token
        self._key = "".join(secrets[-1:] or "-").encode()
        self._guesses = Guesses(name, queries, clock)

    def check(self, environ: Environ, given: str | None) -> None:
        """Raises Refused unless ``given`` is the token: 401 for a wrong one or none, 429 after too many wrong ones."""
        if given is None:
            raise self._unauthorized()
        address = ascii(network_of(str(environ.get("REMOTE_ADDR") or "")))[:100]
        right = requests.same(given.strip(), self._token)
        # Before it is told whether it is right: else the right one would be told from all others.
        if self._guesses.is_shut(address) or not (right or self._guesses.note(address, self._print_of(given))):
            raise Refused(text(429, "too many wrong tokens: wait a minute", ("retry-after", f"{WINDOW:.0f}")))
        if not right:
            raise self._unauthorized()

    def _unauthorized(self) -> Refused:
        return Refused(text(401, f"the {self._name} token is missing or wrong", ("www-authenticate", "Bearer")))

    def _print_of(self, given: str) -> int:
        """Tells two tokens apart, and nothing else: a wrong one may be the right one with a slip, or another site's."""
        digest = hmac.digest(self._key, given.strip().encode("utf-8", "replace"), "sha256")
        return int.from_bytes(digest[:4], "big", signed=True)


class _Source:
    """What has come from one address."""

    def __init__(self) -> None:
        self.newest: deque[float] = deque(maxlen=TRIES)  # when wrong ones came
        self.seen: OrderedDict[int, float] = OrderedDict()  # different ones, and when each came first
        self.limited_until = self.shut_until = 0.0  # what the database has told


class Guesses:
    """Wrong tokens by the address that they came from: nobody's guesses keep anybody at another address out.

    The database counts for all workers. A worker asks it with a wrong token that tells something new, and with no right one, which
    are many. So it may look at one more from an address that others have shut.
    """

    def __init__(self, door: str, queries: OperatorQueries, clock: Callable[[], float] = monotonic) -> None:
        self._door = door
        self._queries = queries
        self._clock = clock
        self._sources: OrderedDict[str, _Source] = OrderedDict()

    def is_shut(self, address: str) -> bool:
        """Whether nothing more is to be looked at from there for a while."""
        source = self._sources.get(address)
        if source is None:
            return False
        now = self._clock()
        _forget(source, now)
        return len(source.seen) >= DIFFERENT or now < source.shut_until

    def note(self, address: str, guess: int) -> bool:
        """A wrong token has come from there; whether it is to be answered as one, and not as one too many."""
        source, now = self._source(address), self._clock()
        _forget(source, now)
        limited = now < source.limited_until or (len(source.newest) == TRIES and now - source.newest[0] < WINDOW)
        if limited and guess in source.seen:
            return False
        source.newest.append(now)
        source.seen.setdefault(guess, now)
        told = asked(lambda: self._queries.note_guess(self._door, address, guess, WINDOW))
        if told is not None:
            ends = now + WINDOW - told.oldest
            if told.all > TRIES:
                source.limited_until = ends
                limited = True
            if told.different >= DIFFERENT:
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
