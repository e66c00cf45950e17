"""Faulty clients: each run has one of each kind, so that it shows that the judge finds what they do.

They connect and come back like all others, but one in twenty messages they lose, take twice, or take after the next one. One is
logged in as somebody else than the judge believes. They note what they do, and the judge, which does not read the notes, has to
find exactly that. Their deliveries do not count in the figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from .journal import History
from .judge import Finding, Truth

KINDS = ("lost", "repeated", "out of order", "forbidden")
"""What they do, as the judge calls it."""

_EVERY = 20

_PLANTED = "planted"


class FaultyHistory(History):
    """The history of a faulty client. ``kind`` is one of :data:`KINDS`."""

    def __init__(self, client: int, user: int, stream: str, kind: str) -> None:
        # The client logs in as ``user``, for whom the filter permits more than for the user whom the judge takes it for.
        super().__init__(client, user + 1 if kind == "forbidden" else user, stream)
        self._kind = kind
        self._count = 0
        self._held: tuple[int, int, float, float] | None = None

    def message(self, id: int, message: int, sent: float, received: float) -> None:
        """Add a message, or do what is wrong."""
        self._count += 1
        wrong = self._count % _EVERY == 0
        if self._held is not None:
            super().message(id, message, sent, received)
            super().mark(received, _PLANTED, id=self._held[0])
            self.settle()
        elif wrong and self._kind == "out of order":
            self._held = (id, message, sent, received)
        else:
            if not (wrong and self._kind == "lost"):
                super().message(id, message, sent, received)
            if wrong and self._kind == "repeated":
                super().message(id, message, sent, received)
            if wrong and self._kind in ("lost", "repeated"):
                super().mark(received, _PLANTED, id=id)

    def mark(self, time: float, what: str, **data: Any) -> None:
        """Add something else. No message is held back beyond it."""
        self.settle()
        super().mark(time, what, **data)

    def settle(self) -> None:
        """Take the message that was held back."""
        held, self._held = self._held, None
        if held is not None:
            super().message(*held)


class Verdict(NamedTuple):
    """How many wrong things a faulty client did, and which findings show that the judge is wrong: deeds that it did not find, and
    findings that were no deeds."""

    planted: int
    findings: list[Finding]


def check(kind: str, history: History, truth: Truth, findings: Iterable[Finding]) -> Verdict:
    """Compare what a faulty client did with what the judge found in its history."""
    found = list(findings)
    planted = _seen_by_others(history, truth) if kind == "forbidden" else set(_deeds(kind, history, truth))
    ids = {finding.id for finding in found if finding.kind == kind}
    # A client that has done nothing would prove nothing.
    missed = sorted(planted - ids) if planted else [0]
    others = [finding for finding in found if finding.kind != kind or finding.id not in planted]
    if kind == "forbidden":
        others = [finding for finding in others if finding.kind != "lost"]  # what the other user would have got
    return Verdict(
        len(planted), [Finding("unnoticed", history.stream, history.client, id, 0, 0.0) for id in missed] + others
    )


def _seen_by_others(history: History, truth: Truth) -> set[int]:
    rows = [truth.row(id) for id in history.ids]
    return {row.id for row in rows if row is not None and row.visible_to not in (None, f"user:{history.user}")}


def _deeds(kind: str, history: History, truth: Truth) -> Iterator[int]:
    """Yield the ids of its deeds. A message that a server took along, or that comes again after a gap, is not lost."""
    marks = [mark for mark in history.marks if mark.what in (_PLANTED, "gap")]
    for mark, following in zip(marks, [*marks[1:], None], strict=False):
        if mark.what == _PLANTED:
            told = following is not None and following.what == "gap" and following.at == mark.at
            if kind != "lost" or not (told or mark.data["id"] in truth.taken):
                yield mark.data["id"]
