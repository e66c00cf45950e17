"""The last warnings that this process logged, for the console."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

KEPT = 100
"""How many are kept."""

_LONGEST = 500  # characters that are kept of a message


class Warned(NamedTuple):
    """A log record of level warning or higher. ``number`` rises by one; ``at`` is in Unix seconds."""

    number: int
    at: float
    level: str
    logger: str
    message: str


class RecentWarnings(logging.Handler):
    """A log handler that keeps the last records of the package, from level warning upwards, while it is :meth:`listening`."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._kept: deque[Warned] = deque(maxlen=KEPT)
        self.number = 0
        self.errors = 0
        """How many of the records so far were errors."""

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Keep records during this block."""
        package = logging.getLogger("pgbus_gevent")
        package.addHandler(self)
        try:
            yield
        finally:
            package.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
            if record.exc_info and record.exc_info[1] is not None:
                message += f" ({type(record.exc_info[1]).__name__}: {_text_of(record.exc_info[1])})"
        except Exception:
            self.handleError(record)
            return
        self.number += 1
        self.errors += record.levelno >= logging.ERROR
        name = record.name.removeprefix("pgbus_gevent.")
        self._kept.append(Warned(self.number, record.created, record.levelname.lower(), name, message[:_LONGEST]))
        if logging.lastResort is not None and not logging.getLogger().handlers:
            # Without this handler, a program that has not configured logging would see the record on stderr.
            logging.lastResort.handle(record)

    def newest(self) -> list[Warned]:
        """The records that are kept, newest first."""
        return list(reversed(self._kept))


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "it cannot be shown"  # an exception of the application's own code
