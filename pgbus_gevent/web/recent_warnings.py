"""The last warnings of this process, for the console."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

KEPT = 100
_LONGEST = 500  # characters of a message


class Warned(NamedTuple):
    """A record of a warning or worse; ``number`` rises, ``at`` is Unix seconds."""

    number: int
    at: float
    level: str
    logger: str
    message: str


class RecentWarnings(logging.Handler):
    """Keeps the last of what the package logs, from warnings upwards, while it is :meth:`listening`."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._kept: deque[Warned] = deque(maxlen=KEPT)
        self.number = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear for this block."""
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
                message += f" ({type(record.exc_info[1]).__name__}: {record.exc_info[1]})"
        except Exception:
            self.handleError(record)
            return
        self.number += 1
        name = record.name.removeprefix("pgbus_gevent.")
        self._kept.append(Warned(self.number, record.created, record.levelname.lower(), name, message[:_LONGEST]))
        if logging.lastResort is not None and not logging.getLogger().handlers:
            # A program that has set up no logging would have had it on stderr, were it not for us.
            logging.lastResort.handle(record)

    def newest(self) -> list[Warned]:
        """Those that are kept, newest first."""
        return list(reversed(self._kept))
