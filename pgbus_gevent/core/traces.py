"""The traces of messages: the ``traceparent`` that a publisher gives, as in W3C Trace Context."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .events import Signal, Traced
from .frames import Stored

# The last digits are flags, of which the lowest bit says that the trace is sampled.
_SAMPLED = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f][13579bdf]", re.ASCII)


def sampled(text: object) -> str | None:
    """Return a ``traceparent`` if it is well formed and says that its trace is sampled, otherwise None."""
    return text if isinstance(text, str) and _SAMPLED.fullmatch(text) else None


def report(signal: Signal[Traced], stream: str, rows: Iterable[Stored], above: int) -> None:
    """Emit an event for each message above the id ``above`` that has a trace."""
    for row in rows:
        if row.trace is not None and row.id > above and sampled(row.trace):
            signal.emit(Traced(stream, row.id, row.trace, row.created_at))
