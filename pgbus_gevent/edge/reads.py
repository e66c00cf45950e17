"""The reads of the streamer, which an edge asks its origin for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from ..core import hop
from ..core.rows import EphemeralRow, Mark, Opening, OpenQuestion, PageRows, Revoked, TailRow
from ..errors import OriginRefused
from .origin import MAX_MESSAGE, AnswerTooLarge, Origin

TIMEOUT = 8.0
"""Seconds until an answer to a read must begin, and for which it may stop."""

RANGES_PER_READ = 1000
"""The most ranges of one question about an inventory."""


class OriginReads:
    """The same reads as :class:`pgbus_gevent.database.queries.Queries`. Raises only exceptions of :mod:`pgbus_gevent.errors`."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self.counts: Counter[str] = Counter()
        """How many reads of each kind were sent."""

    def _ask(self, kind: str, most: int | None = None, **question: Any) -> Any:
        self.counts[kind] += 1
        return self._origin.ask(hop.READS, {"read": kind, **question}, timeout=TIMEOUT, most=most)

    def _ask_for_each(self, kind: str, of: Sequence[Any], *, limit: int, size: int) -> list[Any]:
        """Ask about several streams: in halves if large messages make the answer too large, and at last for one message."""
        try:
            with _Shape():
                return list(self._ask(kind, of=of, limit=limit, size=size))
        except AnswerTooLarge:
            if not of:
                raise
        if len(of) == 1:
            try:
                with _Shape():
                    return list(self._ask(kind, MAX_MESSAGE, of=of, limit=1, size=1))
            except AnswerTooLarge as error:
                raise OriginRefused(f"a message of the stream {of[0][0]!r} is too large to be read: {error}") from None
        half = len(of) // 2
        found = self._ask_for_each(kind, of[:half], limit=limit, size=size)
        return found + self._ask_for_each(kind, of[half:], limit=limit, size=size)

    def openings(self, questions: Sequence[OpenQuestion], *, limit: int, size: int) -> list[Opening]:
        """Return the state of each stream, and its newest messages."""
        found = self._ask_for_each("openings", questions, limit=limit, size=size)
        with _Shape():
            return hop.openings(found, len(questions))

    def pages(self, after: Sequence[tuple[str, int]], *, limit: int, size: int) -> list[PageRows]:
        """Return a page for each (stream, cursor)."""
        found = self._ask_for_each("pages", after, limit=limit, size=size)
        with _Shape():
            return hop.pages(found, len(after))

    def moved(self, heads: dict[str, int], pruned: Collection[str] = ()) -> tuple[int, dict[str, int]]:
        """Return the newest id of all streams, and the newest ids of the streams whose newest id differs from the given head."""
        found = self._ask("moved", of=heads, pruned=list(pruned))
        with _Shape():
            return hop.moved(found)

    def inventory(self, ranges: Sequence[tuple[str, int, int]]) -> list[tuple[int, int, int]]:
        """Return, for each (stream, floor, head): the horizon, the number of messages between, and the sum of their ids."""
        found = []
        for start in range(0, len(ranges), RANGES_PER_READ):
            with _Shape():
                found += self._ask("inventory", of=ranges[start : start + RANGES_PER_READ])
        with _Shape():
            return hop.inventory(found, len(ranges))

    def revocations(self, after: Mark | None = None, *, recent: bool = False) -> Revoked:
        """Return the revocations since the mark ``after``, and with ``recent`` those of the last ten minutes."""
        found = self._ask("revocations", after=after, recent=recent)
        with _Shape():
            return hop.revoked(found)

    def clock(self) -> float:
        """Return the clock of the origin's database, in Unix seconds.

        Raises :class:`DatabaseUnavailable` if the origin, or its database, is away.
        """
        found = self._ask("clock")
        with _Shape():
            return float(found["at"])

    # what an edge need not ask

    def tail(self, above: int, holes: Sequence[int], streams: Sequence[str] | None, *, limit: int) -> list[TailRow]:
        """Return no messages: the origin finds those without a notification itself, and passes them on."""
        return []

    def ephemerals(self, ids: Sequence[int]) -> dict[int, EphemeralRow]:
        """Return no messages: an origin sends large ephemeral messages whole."""
        return {}


class _Shape:
    """Turns the errors of an answer that has another form than this release expects into :class:`OriginRefused`."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, (ValueError, TypeError, LookupError, OverflowError)):
            raise OriginRefused(f"its answer to a read is not as this release expects it: {error}") from None
