"""The judge: what each client was sent, against what the database has. It does no I/O.

For each stream, a client has a cursor. It is due every message above the cursor that it may see, in the order of the ids, once.
Only two events change that:

- A gap with reason ``expired`` excuses messages that were pruned, and no others. It is right only if there are such messages.
- A gap with reason ``ahead`` is right only after messages of the stream were really lost with a server. A client is told once
  of each such loss, or again if it was sent lost messages again. It then gets all messages that are retained when they are
  read, from the oldest on.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from .hooks import entitled
from .journal import Attempt, History, Mark

WRONG = ("lost", "repeated", "out of order", "forbidden", "unfounded gap", "untold loss", "presence", "unnoticed")
"""The kinds of findings. Each of them fails a run. The last one is a deed of a faulty client that the judge has not found."""

_UNSTORED = "ephemeral"
_UNLEDGERED = ("http", "coalesced", _UNSTORED)
"""Kinds whose publishers cannot write to the ledger in the same transaction."""


class Row(NamedTuple):
    """A committed message."""

    id: int
    message: int
    visible_to: str | None = None
    exclude: str | None = None


class Loss(NamedTuple):
    """A server that ended at ``at``, and took committed messages along: ``taken``, with their streams."""

    at: float
    taken: list[tuple[str, Row]]


@dataclass
class Truth:
    """What was committed to one stream: the rows that the table has, those that were pruned, and those that a server took along."""

    present: dict[int, Row] = field(default_factory=dict)
    pruned: dict[int, Row] = field(default_factory=dict)
    taken: dict[int, Row] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    """When these servers ended."""

    def row(self, id: int) -> Row | None:
        """Return the row with this id, wherever it is now."""
        return self.present.get(id) or self.pruned.get(id) or self.taken.get(id)


class Finding(NamedTuple):
    """One thing that was wrong. ``kind`` is one of :data:`WRONG`; ``message`` is the number in the data, or 0."""

    kind: str
    stream: str
    client: int
    id: int
    message: int
    time: float
    """When the client was sent it; 0 if it was not."""


class _Walk:
    """The judgement of one history, from its beginning to its end."""

    def __init__(self, history: History, truth: Truth) -> None:
        self._history, self._truth = history, truth
        self._mine = {mark.data["id"] for mark in history.marks if mark.what == "connected"}
        everything = [*truth.present.values(), *truth.pruned.values()]
        self._gone = {**truth.pruned, **truth.taken}
        self._due = sorted(row.id for row in everything if self._is_due(row))
        self._cursor: int | None = None
        self._connection = ""
        self._seen: set[int] = set()  # since the last gap with reason "ahead"
        self._missing: set[int] = set()
        self._excused = 0
        self._has_taken = False
        self._told = 0.0  # when it was last told of a loss
        self.found: list[Finding] = []

    def _is_due(self, row: Row) -> bool:
        return entitled(self._history.user, row.visible_to) and row.exclude not in self._mine

    def run(self) -> list[Finding]:
        """Return what is wrong."""
        history, marks = self._history, deque(self._history.marks)
        for index, id in enumerate(history.ids):
            while marks and marks[0].at <= index:
                self._mark(marks.popleft())
            self._message(id, history.messages[index], history.received[index])
        for mark in marks:
            self._mark(mark)
        if self._cursor is not None:
            self._skip(self._cursor, self._due[-1] + 1 if self._due else 0)
        self._settle()
        if self._has_taken:
            self._find("untold loss", 0, 0, 0.0)
        return self.found

    def _mark(self, mark: Mark) -> None:
        if mark.what == "connected":
            self._connection = mark.data["id"]
            if self._cursor is None:
                self._cursor = mark.data["cursor"]
        elif mark.what == "gap":
            self._gap(mark)

    def _gap(self, mark: Mark) -> None:
        # Nothing is retained if there is no oldest message.
        self._excused = mark.data["oldest"] or 1 << 60
        if mark.data["reason"] == "expired":
            if not any((self._cursor or 0) < id < self._excused for id in self._gone):
                self._find("unfounded gap", 0, 0, mark.time)
            return
        lost = self._has_taken or any(self._told < loss <= mark.time for loss in self._truth.losses)
        if mark.data["reason"] != "ahead" or not lost:
            self._find("unfounded gap", 0, 0, mark.time)
        self._settle()
        # What is retained is read after this gap was written, and messages may be pruned in between. So all that was pruned is
        # excused below the first message that comes.
        self._excused = 1 << 60
        self._cursor, self._seen, self._has_taken, self._told = 0, set(), False, mark.time

    def _message(self, id: int, message: int, time: float) -> None:
        row = self._truth.row(id)
        if row is None or row.message != message or not entitled(self._history.user, row.visible_to):
            self._find("forbidden", id, message, time)
            return
        if row.exclude is not None and row.exclude == self._connection:
            self._find("forbidden", id, message, time)
            return
        if id in self._seen:
            self._find("repeated", id, message, time)
            return
        self._seen.add(id)
        if self._cursor is not None and id <= self._cursor:
            self._find("out of order", id, message, time)
            self._missing.discard(id)
            return
        if id in self._truth.taken:
            self._has_taken = True
        elif self._has_taken:
            # A message that a server took along came before, and the client has gone on without being told.
            self._find("untold loss", id, message, time)
            self._has_taken = False
        if self._cursor is not None:
            self._skip(self._cursor, id)
        self._cursor, self._excused = id, 0

    def _skip(self, after: int, before: int) -> None:
        """Note as missing what is due between two ids."""
        for id in self._due[bisect_right(self._due, after) : bisect_left(self._due, before)]:
            if id not in self._seen and not (id in self._truth.pruned and id < self._excused):
                self._missing.add(id)

    def _settle(self) -> None:
        for id in sorted(self._missing):
            row = self._truth.row(id)
            self._find("lost", id, row.message if row else 0, 0.0)
        self._missing = set()

    def _find(self, kind: str, id: int, message: int, time: float) -> None:
        self.found.append(Finding(kind, self._history.stream, self._history.client, id, message, time))


def judge_client(history: History, truth: Truth) -> list[Finding]:
    """Return what is wrong with one history."""
    return _Walk(history, truth).run()


def judge_publishing(
    attempts: Iterable[Attempt], ledger: Mapping[int, str], truths: Mapping[str, Truth]
) -> Iterator[Finding]:
    """Yield what is wrong with the table itself. ``ledger`` has the stream of each message in the ledger.

    A message whose COMMIT was acknowledged is in the table; one that was rolled back is not; a transaction's messages are there
    if and only if its rows of the ledger are; and no message is there twice, unless it was coalesced: a Bus tries such a message
    again after an outage in the middle of a COMMIT.
    """
    attempts = list(attempts)
    coalesced = {attempt.message for attempt in attempts if attempt.kind == "coalesced"}
    kept: dict[int, list[Row]] = {}
    for stream, truth in truths.items():
        for row in truth.present.values():
            kept.setdefault(row.message, []).append(row)
            if len(kept[row.message]) > 1 and row.message not in coalesced:
                yield Finding("repeated", stream, 0, row.id, row.message, 0.0)
    gone = {row.message for truth in truths.values() for row in (*truth.pruned.values(), *truth.taken.values())}
    for attempt in attempts:
        if attempt.kind == _UNSTORED:
            continue
        there = attempt.message in kept
        if attempt.outcome == "committed" and not there and attempt.message not in gone:
            yield Finding("lost", attempt.stream, 0, 0, attempt.message, 0.0)
        elif attempt.outcome == "rolled back" and there:
            yield Finding("forbidden", attempt.stream, 0, 0, attempt.message, 0.0)
        elif attempt.kind not in _UNLEDGERED and there != (attempt.message in ledger) and attempt.message not in gone:
            yield Finding("lost" if not there else "forbidden", attempt.stream, 0, 0, attempt.message, 0.0)
