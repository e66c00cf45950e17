"""What is promised only while nothing is broken, judged in the calm times alone: ephemeral messages, and who is present."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from .journal import Attempt, History
from .judge import Finding
from .publishing import EPHEMERAL

SETTLING = 3.0
"""Seconds after everything is ready until the workers surely LISTEN again."""

_ARRIVING = 3.0

Span = tuple[float, float]


def judge_ephemerals(
    attempts: Iterable[Attempt], histories: Sequence[History], calms: Sequence[Span]
) -> Iterator[Finding]:
    """Yield the ephemeral messages that a client missed, or got twice.

    A client is due one that was committed in a calm time, while the client was connected and stayed so.
    """
    sent = [one for one in attempts if one.stream in EPHEMERAL and one.outcome == "committed" and _is_calm(one, calms)]
    for history in histories:
        if history.stream not in EPHEMERAL:
            continue
        got = Counter(message for message, *_ in history.ephemerals)
        for attempt in sent:
            if not got[attempt.message] and _stayed(history, attempt.sent):
                yield Finding("lost", attempt.stream, history.client, 0, attempt.message, 0.0)
        for message, count in got.items():
            if count > 1:
                yield Finding("repeated", history.stream, history.client, 0, message, 0.0)


def _is_calm(attempt: Attempt, calms: Sequence[Span]) -> bool:
    return any(began + SETTLING < attempt.sent < ended - _ARRIVING for began, ended in calms)


def _stayed(history: History, sent: float) -> bool:
    """Return whether the client was connected at a time, and for some seconds before and after."""
    changes = [mark for mark in history.marks if mark.what in ("connected", "cut") and mark.time < sent + _ARRIVING]
    return bool(changes) and changes[-1].what == "connected" and changes[-1].time < sent - 1.0
