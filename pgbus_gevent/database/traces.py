"""Statements that publish with the trace of their publisher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SET_TRACE = "select set_config('pgbus.traceparent', %s, true)"
"""For a transaction that publishes with statements of another form."""


def traced(statement: str, arguments: Sequence[Any], trace: str | None) -> tuple[str, tuple[Any, ...]]:
    """Return a statement ``select function(...)`` that publishes with a traceparent, and its arguments; as it is if that is None.

    The setting holds until the end of the transaction. A function in FROM is called before those that are selected.
    """
    if trace is None:
        return statement, tuple(arguments)
    return f"{statement} from set_config('pgbus.traceparent', %s, true)", (*arguments, trace)  # nosec B608 # a constant
