"""Shortens a history that breaks a promise, by delta debugging: what remains is needed for the failure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .history import History

Fails = Callable[[History], float | None]
"""Runs a history. Returns the time of the failure, in seconds, or None if it does not fail in the same way."""


class Shrinker:
    """Runs at most ``most`` histories. ``fails`` runs one."""

    def __init__(self, fails: Fails, *, most: int = 400) -> None:
        self._fails = fails
        self._left = most

    def shrink(self, history: History) -> History:
        """Return the shortest history that it finds; ``history`` itself fails."""
        best = self._cut_off(history) or history
        before = None
        while before != len(best.operations) and self._left > 0:
            before = len(best.operations)
            best = self._without_chunks(best)
        return self._simpler(best)

    def _try(self, history: History, operations: list[list[Any]]) -> History | None:
        if self._left <= 0:
            return None
        self._left -= 1
        candidate = replace(history, operations=operations)
        return None if self._fails(candidate) is None else candidate

    def _cut_off(self, history: History) -> History | None:
        """Leave out what was done after the failure."""
        at = self._fails(history)
        if at is None:
            return None
        return self._try(history, [operation for operation in history.operations if operation[0] <= at])

    def _without_chunks(self, history: History) -> History:
        """Leave out chunks, which get smaller and smaller."""
        size = max(1, len(history.operations) // 2)
        while self._left > 0:
            start = 0
            while start < len(history.operations):
                operations = history.operations[:start] + history.operations[start + size :]
                found = self._try(history, operations)
                if found is None:
                    start += size
                else:
                    history = found
            if size == 1:
                break
            size //= 2
        return history

    def _simpler(self, history: History) -> History:
        """Publish one message where several were."""
        for place, operation in enumerate(history.operations):
            if operation[1] == "publish" and len(operation[2]) > 1:
                one = [*operation[:2], operation[2][:1], *operation[3:]]
                found = self._try(history, [*history.operations[:place], one, *history.operations[place + 1 :]])
                history = found or history
        return history
