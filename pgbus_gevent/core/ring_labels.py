"""Which messages of a ring are for every client, and which are only for clients that hold a label.

The log of a stream keeps it beside its frames. With it, neither a pass nor a client that comes back has to look at messages that
are for others. Nothing here yields.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection


class RingLabels:
    """The ids of the messages in a ring: those that every client must be checked for, and those of each label."""

    __slots__ = ("_by_label", "_everybody")

    def __init__(self) -> None:
        self._everybody: list[int] = []
        self._by_label: dict[str, list[int]] = {}

    def add(self, id: int, label: str | None) -> None:
        """Add the newest message. Without a label, every client must be checked for it."""
        if label is None:
            self._everybody.append(id)
        else:
            self._by_label.setdefault(label, []).append(id)

    def drop(self, id: int, labels: Collection[str]) -> None:
        """Remove the messages up to ``id``. ``labels`` has all of their labels."""
        del self._everybody[: bisect_right(self._everybody, id)]
        for label in labels:
            ids = self._by_label.get(label)
            if ids is not None:
                del ids[: bisect_right(ids, id)]
                if not ids:
                    del self._by_label[label]

    def everybody_above(self, cursor: int) -> bool:
        """Whether a message above ``cursor`` is for every client."""
        return bool(self._everybody) and self._everybody[-1] > cursor

    def next_above(self, cursor: int, *labels: Collection[str]) -> int | None:
        """Return the first id above ``cursor`` of a message for every client or with one of ``labels``, or None."""
        found = _next(self._everybody, cursor)
        for some in labels:
            # Either may be large: the labels of one client or of all filters, or those of the ring.
            for label in some if len(some) < len(self._by_label) else self._by_label:
                ids = self._by_label.get(label) if label in some else None
                id = _next(ids, cursor) if ids is not None else None
                if id is not None and (found is None or id < found):
                    found = id
        return found


def _next(ids: list[int], cursor: int) -> int | None:
    """Return the first of ``ids``, which are in order, above ``cursor``, or None."""
    return ids[bisect_right(ids, cursor)] if ids and ids[-1] > cursor else None
