"""Asks an application's ``authorize`` hook who may watch, and lets in for good answers alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic, time

import gevent

from ..core.client import Place, StreamRequest, Subscriber, check_subscriber
from ..core.retries import Seldom
from ..errors import InvalidArgument
from .responses import Environ, Refused, text

logger = logging.getLogger("pgbus_gevent.web")

Authorize = Callable[[Environ, str], "bool | Subscriber"]

Recheck = Callable[[], "tuple[Subscriber, ...] | None"]


class Hook:
    """``authorize(environ, stream)`` answers False, True, or a :class:`Subscriber`.

    One that raises, answers anything else, or nothing within ``timeout`` seconds, refuses: 403 for the client, a line in the log,
    and after it silence for a minute.
    """

    def __init__(self, authorize: Authorize, timeout: float = 10.0, clock: Callable[[], float] = monotonic) -> None:
        self._authorize = authorize
        self._timeout = timeout
        self._complaints = Seldom(clock, most=100)

    def authorized(self, environ: Environ, request: StreamRequest, *, recheck: bool) -> StreamRequest:
        """The request as the hook lets it in, asked about each of its streams. Raises Refused: 403.

        With ``recheck`` the hook can be asked again later.
        """
        places = tuple(place._replace(subscriber=self.subscriber(environ, place)) for place in request.places)
        for place in places:
            expires_at = place.subscriber.expires_at
            if expires_at is not None and expires_at <= time():
                raise Refused(text(403, "the right to watch this stream has expired"))
        return request._replace(places=places, recheck=self._rechecker(environ, request.places) if recheck else None)

    def subscriber(self, environ: Environ, place: Place) -> Subscriber:
        """Who asks for one stream. Raises Refused: 403."""
        try:
            answer = self._answer(environ, place.stream)
        except (Exception, gevent.Timeout) as error:
            self._complain(f"the authorize hook raised for stream {place.stream!r}", error)
            answer = False
        found = self._judged(answer, place)
        if found is None:
            raise Refused(text(403, "you may not watch this stream"))
        return found

    def _answer(self, environ: Environ, stream: str) -> object:
        # Whoever waits for it has a greenlet and a socket, and of those who are asked about again all others wait too.
        with gevent.Timeout(self._timeout):
            return self._authorize(environ, stream)

    def _rechecker(self, environ: Environ, places: tuple[Place, ...]) -> Recheck:
        # Texts alone: the rest is of a request that is over by then, its socket among it.
        kept = {key: value for key, value in environ.items() if isinstance(value, str)}

        def ask() -> tuple[Subscriber, ...] | None:
            found = []
            for place in places:
                subscriber = self._judged(self._answer(kept, place.stream), place)
                if subscriber is None:
                    return None
                found.append(subscriber)
            return tuple(found)

        return ask

    def _judged(self, answer: object, place: Place) -> Subscriber | None:
        """Who it is that the answer lets in, for no longer than the signed name is good; None where it lets nobody in."""
        signed = place.subscriber
        if answer is True:
            return signed
        if isinstance(answer, Subscriber):
            try:
                check_subscriber(answer)
            except InvalidArgument as error:
                self._complain(
                    f"the authorize hook answered a Subscriber that is none for stream {place.stream!r}", error
                )
                return None
            times = [at for at in (signed.expires_at, answer.expires_at) if at is not None]
            return Subscriber(answer.owner, answer.context, answer.member, min(times, default=None))
        if answer is not False:
            kind = type(answer).__name__
            self._complain(
                f"the authorize hook answered a {kind} for stream {place.stream!r}, and not a bool or a Subscriber"
            )
        return None

    def _complain(self, what: str, error: BaseException | None = None) -> None:
        kind = type(error).__name__ if error is not None else "answer"
        silent = self._complaints.turn(kind)
        if silent is None:
            return
        more = f" ({silent} more since the last line of this kind)" if silent else ""
        raised = error is not None and not isinstance(error, InvalidArgument)
        logger.error(
            "%s: refused%s%s",
            what,
            f": {error}" if error and not raised else "",
            more,
            exc_info=error if raised else None,
        )
