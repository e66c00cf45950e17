"""The tables: messages, horizons, the outbox, large ephemeral messages and revocations, with the versions of their rows."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from operator import attrgetter
from typing import Generic, TypeVar

from .transactions import GENESIS, Snapshot, Transaction, Version

_ID = attrgetter("id")


class MessageRow(Version):
    """A row of ``pgbus.messages``. ``created_at`` is in Unix seconds; ``size`` is the number of bytes of the data."""

    __slots__ = ("created_at", "data", "event", "exclude", "id", "key", "prev_id", "size", "stream", "visible_to")

    def __init__(
        self,
        born: Transaction,
        stream: str,
        id: int,
        prev_id: int | None,
        created_at: float,
        event: str | None,
        data: str,
        visible_to: str | None = None,
        exclude: str | None = None,
        key: str | None = None,
    ) -> None:
        super().__init__(born)
        self.stream, self.id, self.prev_id, self.created_at = stream, id, prev_id, created_at
        self.event, self.data, self.visible_to, self.exclude, self.key = event, data, visible_to, exclude, key
        self.size = len(data.encode())

    def copy(self) -> MessageRow:
        """Return the same row as one that was written before all transactions."""
        return MessageRow(
            GENESIS,
            *(self.stream, self.id, self.prev_id, self.created_at, self.event, self.data),
            *(self.visible_to, self.exclude, self.key),
        )


class Messages:
    """The rows of all streams, those of open transactions too, by stream and by id."""

    def __init__(self, rows: Iterable[MessageRow] = ()) -> None:
        self._streams: dict[str, list[MessageRow]] = {}
        self._all: list[MessageRow] = []
        self._keys: dict[tuple[str, str], list[MessageRow]] = {}
        for row in rows:
            self.add(row)

    def __iter__(self) -> Iterator[MessageRow]:
        return iter(self._all)

    def add(self, row: MessageRow) -> None:
        own = self._streams.setdefault(row.stream, [])
        own.insert(bisect_right(own, row.id, key=_ID), row)
        self._all.insert(bisect_right(self._all, row.id, key=_ID), row)
        if row.key is not None:
            self._keys.setdefault((row.stream, row.key), []).append(row)

    def remove(self, row: MessageRow) -> None:
        own = self._streams[row.stream]
        own.remove(row)
        if not own:
            del self._streams[row.stream]
        place = bisect_left(self._all, row.id, key=_ID)
        del self._all[next(n for n in range(place, len(self._all)) if self._all[n] is row)]
        if row.key is not None:
            self._keys[(row.stream, row.key)].remove(row)
            if not self._keys[(row.stream, row.key)]:
                del self._keys[(row.stream, row.key)]

    def keep(self, rows: Iterable[MessageRow]) -> None:
        """Replace all rows by these."""
        self.__init__(rows)  # type: ignore[misc]

    def above(self, stream: str, id: int, snapshot: Snapshot) -> Iterator[MessageRow]:
        """Return the rows of a stream above an id, upwards."""
        own = self._streams.get(stream, [])
        for place in range(bisect_right(own, id, key=_ID), len(own)):
            if snapshot.sees(own[place]):
                yield own[place]

    def newest(self, stream: str, above: int, snapshot: Snapshot) -> Iterator[MessageRow]:
        """Return the rows of a stream above an id, downwards."""
        own = self._streams.get(stream, [])
        for place in range(len(own) - 1, bisect_right(own, above, key=_ID) - 1, -1):
            if snapshot.sees(own[place]):
                yield own[place]

    def of_all_above(self, id: int, snapshot: Snapshot) -> Iterator[MessageRow]:
        """Return the rows of all streams above an id, upwards."""
        for place in range(bisect_right(self._all, id, key=_ID), len(self._all)):
            if snapshot.sees(self._all[place]):
                yield self._all[place]

    def newest_of_all(self, snapshot: Snapshot) -> Iterator[MessageRow]:
        return (row for row in reversed(self._all) if snapshot.sees(row))

    def with_id(self, id: int, snapshot: Snapshot) -> list[MessageRow]:
        """Return the rows with an id. They are several only if the sequence was set back: then of several streams."""
        places = range(bisect_left(self._all, id, key=_ID), bisect_right(self._all, id, key=_ID))
        return [self._all[place] for place in places if snapshot.sees(self._all[place])]

    def with_key(self, stream: str, key: str, snapshot: Snapshot | None) -> MessageRow | None:
        """Return the row with a key; without a snapshot, also one that is only committed, or of an open transaction."""
        for row in self._keys.get((stream, key), []):
            is_there = row.died is None or row.died.csn is None if snapshot is None else snapshot.sees(row)
            if is_there:
                return row
        return None

    def streams(self, snapshot: Snapshot) -> list[str]:
        """Return the streams that have rows, in the order of the collation "C"."""
        found = [name for name, rows in self._streams.items() if any(map(snapshot.sees, reversed(rows)))]
        return sorted(found, key=str.encode)

    def __len__(self) -> int:
        return len(self._all)


class HorizonRow(Version):
    __slots__ = ("id", "pruned_at")

    def __init__(self, born: Transaction, id: int, pruned_at: float) -> None:
        super().__init__(born)
        self.id, self.pruned_at = id, pruned_at


class EphemeralRow(Version):
    __slots__ = ("created_at", "data", "event", "exclude", "stream", "visible_to")

    def __init__(
        self,
        born: Transaction,
        created_at: float,
        stream: str,
        event: str | None,
        data: str,
        visible_to: str | None,
        exclude: str | None,
    ) -> None:
        super().__init__(born)
        self.created_at, self.stream, self.event, self.data = created_at, stream, event, data
        self.visible_to, self.exclude = visible_to, exclude


class RevocationRow(Version):
    __slots__ = ("id", "owner", "revoked_at", "xid")

    def __init__(self, born: Transaction, id: int, owner: str, revoked_at: float, xid: int) -> None:
        super().__init__(born)
        self.id, self.owner, self.revoked_at, self.xid = id, owner, revoked_at, xid


Key = TypeVar("Key")
Row = TypeVar("Row", bound=Version)


class Keyed(Generic[Key, Row]):
    """A small table: the versions of the rows by their primary key."""

    def __init__(self) -> None:
        self._versions: dict[Key, list[Row]] = {}

    def add(self, key: Key, row: Row) -> None:
        self._versions.setdefault(key, []).append(row)

    def remove(self, key: Key, row: Row) -> None:
        self._versions[key].remove(row)
        if not self._versions[key]:
            del self._versions[key]

    def get(self, key: Key, snapshot: Snapshot) -> Row | None:
        return next((row for row in reversed(self._versions.get(key, [])) if snapshot.sees(row)), None)

    def items(self, snapshot: Snapshot) -> Iterator[tuple[Key, Row]]:
        for key in list(self._versions):
            row = self.get(key, snapshot)
            if row is not None:
                yield key, row

    def all(self) -> list[tuple[Key, Row]]:
        """Return all versions."""
        return [(key, row) for key, versions in self._versions.items() for row in versions]

    def clear(self) -> None:
        self._versions.clear()
