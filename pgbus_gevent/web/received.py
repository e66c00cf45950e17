"""``?received``: tells a client what of its request arrived, so that ``doctor`` can find a proxy that changes requests."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

import gevent
from gevent.lock import BoundedSemaphore

from .responses import Answer, Environ, Refused, json_answer, text

LONGEST = 300
"""The longest time, in seconds, that an answer can be asked to take."""

MOST = 16
"""The most requests that may wait for their answer at the same time, because each of them holds a greenlet and a socket."""

_LOOK = 0.5  # seconds between two looks whether the server is draining

_SHOWN = 1000  # characters of a field that are repeated


class Received:
    """Answers requests with what arrived of them. With ``received=45``, the answer takes 45 seconds.

    A proxy that gives up an answer that is silent for so long also gives up a stream without heartbeats. The request must have been
    authorised. The greenlet of the request waits here, but not while the server is ``draining``.
    """

    def __init__(self, draining: Callable[[], bool]) -> None:
        self._draining = draining
        self._room = BoundedSemaphore(MOST)

    def answer(self, environ: Environ, wanted: str) -> Answer:
        """Return the answer, a JSON object. Raises Refused: 400 for an invalid time, 503 if too many requests wait."""
        if not (
            wanted == "" or (wanted.isascii() and wanted.isdigit() and len(wanted) <= 3 and int(wanted) <= LONGEST)
        ):
            raise Refused(
                text(400, f"received is the number of seconds that the answer shall take, from 0 to {LONGEST}")
            )
        if wanted and int(wanted):
            self._wait(int(wanted))
        return json_answer(
            200,
            {
                "protocol": str(environ.get("SERVER_PROTOCOL", "")),
                "accept": _shown(environ.get("HTTP_ACCEPT")),
                "lastEventId": _shown(environ.get("HTTP_LAST_EVENT_ID")),
                "query": _shown(environ.get("QUERY_STRING")),
            },
        )

    def _wait(self, seconds: int) -> None:
        if not self._room.acquire(blocking=False):
            raise Refused(text(503, f"{MOST} requests wait for their answers already", ("retry-after", str(seconds))))
        end = monotonic() + seconds
        try:
            while (rest := end - monotonic()) > 0 and not self._draining():
                gevent.sleep(min(_LOOK, rest))
        finally:
            self._room.release()


def _shown(value: object) -> str | None:
    return None if value is None else str(value)[:_SHOWN]
