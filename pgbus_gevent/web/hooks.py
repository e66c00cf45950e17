"""Calls the ``authorize`` hook of an application, and lets a client in only for a valid answer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic, time
from typing import cast

import gevent

from ..core.client import Place, StreamRequest, Subscriber, check_subscriber
from ..core.retries import Seldom
from ..core.shown import described, kind_of, traceable
from ..errors import InvalidArgument
from .responses import Environ, Refused, text

logger = logging.getLogger("pgbus_gevent.web")

Authorize = Callable[[Environ, str], "bool | Subscriber"]
"""An authorize hook. It may declare its first argument as ``dict[str, Any]`` or as a Mapping."""

Recheck = Callable[[], "tuple[Subscriber, ...] | None"]


class Hook:
    """Calls ``authorize(environ, stream)``, which returns False, True, or a :class:`Subscriber`.

    If the hook raises, returns anything else, or takes longer than ``timeout`` seconds, the client gets 403. Such a fault is logged
    once a minute for each kind.
    """

    def __init__(self, authorize: Authorize, timeout: float = 10.0, clock: Callable[[], float] = monotonic) -> None:
        self._authorize = authorize
        self._timeout = timeout
        self._complaints = Seldom(clock, most=100)

    def authorized(self, environ: Environ, request: StreamRequest, *, recheck: bool) -> StreamRequest:
        """The request with the subscriber of each stream, as the hook returned it. Raises Refused: 403.

        With ``recheck`` the hook can be called again later.
        """
        places = tuple(place._replace(subscriber=self.subscriber(environ, place)) for place in request.places)
        for place in places:
            expires_at = place.subscriber.expires_at
            if expires_at is not None and expires_at <= time():
                raise Refused(text(403, "the right to watch this stream has expired"))
        return request._replace(places=places, recheck=self._rechecker(environ, request.places) if recheck else None)

    def subscriber(self, environ: Environ, place: Place) -> Subscriber:
        """The subscriber for one stream. Raises Refused: 403."""
        found = None
        try:
            found = self._judged(self._answer(environ, place.stream), place)
        except (
            BaseException
        ) as error:  # SystemExit too, which would end the process, and what an answer's own methods raise
            self._complain(f"the authorize hook raised for stream {place.stream!r}", error)
        if found is None:
            raise Refused(text(403, "you may not watch this stream"))
        return found

    def _answer(self, environ: Environ, stream: str) -> object:
        # The greenlet of a request waits here, and holds a socket. In a recheck the task ``rechecks`` waits, and with it all
        # clients that it has not checked yet. So the time is bounded.
        with gevent.Timeout(self._timeout):
            return self._authorize(environ, stream)

    def _rechecker(self, environ: Environ, places: tuple[Place, ...]) -> Recheck:
        # Only strings. Everything else belongs to a request that is over by then, such as its socket.
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
        """The subscriber that an answer lets in, for no longer than the signed name is valid; None if it refuses or is invalid."""
        signed = place.subscriber
        if answer is True:
            return signed
        if issubclass(type(answer), Subscriber):  # not isinstance(), which asks the answer what it is
            try:
                plain = check_subscriber(cast(Subscriber, answer))
            except BaseException as error:  # InvalidArgument, or what the values' own methods raise
                self._complain(
                    f"the authorize hook answered with an invalid Subscriber for stream {place.stream!r}", error
                )
                return None
            times = [at for at in (signed.expires_at, plain.expires_at) if at is not None]
            return plain._replace(expires_at=min(times, default=None))
        if answer is not False:
            self._complain(
                f"the authorize hook answered a {kind_of(answer)} for stream {place.stream!r}, and not a bool or a Subscriber"
            )
        return None

    def _complain(self, fault: str, error: BaseException | None = None) -> None:
        kind = kind_of(error) if error is not None else "answer"
        silent = self._complaints.due(kind)
        if silent is None:
            return
        more = f" ({silent} more since the last line of this kind)" if silent else ""
        said, shown = "", None
        if issubclass(type(error), InvalidArgument):
            said = f": {error}"
        elif error is not None:
            shown = traceable(error)
            said = "" if shown is not None else f": {described(error)}"
        logger.error("%s: refused%s%s", fault, said, more, exc_info=shown)
