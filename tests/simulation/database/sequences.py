"""The WAL, and the sequences: no rollback takes them back, and only the loss of WAL does."""

from __future__ import annotations

from typing import NamedTuple

AHEAD = 32
"""How many draws of a sequence one record of the WAL covers. After a crash, the sequence goes on behind them."""


class Record(NamedTuple):
    """A record of the WAL: the new value of a sequence, or the commit of a transaction if ``sequence`` is empty."""

    sequence: str
    value: int


class Wal:
    """The records since the start; of those before ``first``, only their result is kept. ``end`` is the present position."""

    def __init__(self) -> None:
        self.first = 0
        self._records: list[Record] = []
        self._before: dict[str, int] = {}

    @property
    def end(self) -> int:
        return self.first + len(self._records)

    def append(self, sequence: str, value: int) -> int:
        """Return the position behind the new record."""
        self._records.append(Record(sequence, value))
        return self.end

    def values(self, position: int) -> dict[str, int]:
        """Return the values of the sequences at a position, and the highest number of a transaction under the empty name."""
        found = dict(self._before)
        for name, value in self._records[: position - self.first]:
            found[name] = max(value, found.get(name, 0)) if not name else value
        return found

    def cut(self, position: int) -> None:
        """Lose the records after a position."""
        del self._records[max(0, position - self.first) :]

    def forget(self, position: int) -> None:
        """Keep only the result of the records up to a position."""
        if position > self.first:
            self._before = self.values(position)
            del self._records[: position - self.first]
            self.first = position

    def restart(self, values: dict[str, int]) -> None:
        """Begin anew with these values. Positions go on."""
        self.first, self._records, self._before = self.end, [], dict(values)


class Sequence:
    """``last`` is the last value that was drawn or set, None if none was."""

    def __init__(self, name: str, wal: Wal, start: int, *, logged: bool = True) -> None:
        self.name = name
        self.last: int | None = None
        self._wal = wal
        self._start = start
        self._logged = logged
        self._covered = 0

    @property
    def last_value(self) -> int:
        return self._start if self.last is None else self.last

    def next(self) -> int:
        self.last = self._start if self.last is None else self.last + 1
        if self._logged and self._covered == 0:
            self._wal.append(self.name, self.last + AHEAD)
            self._covered = AHEAD + 1
        self._covered -= 1
        return self.last

    def set(self, value: int) -> int:
        self.last, self._covered = value, 0
        if self._logged:
            self._wal.append(self.name, value)
        return value

    def recover(self, values: dict[str, int]) -> None:
        """Take the value of the WAL, after a crash. An unlogged sequence starts anew."""
        self.last, self._covered = values.get(self.name) if self._logged else None, 0
