"""The logs of the programs, on stderr: one line for each record, as text or as JSON. The library itself configures no logging."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone

from ..core.shown import visible, visible_lines
from ..web.connection_log import FIELDS

_TEXT = "%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"


def hold() -> None:
    """Keep log records until :func:`configure`, which knows the settings, writes them."""
    _replace(_Held())


def configure(level: str, format: str) -> None:
    """Log records of ``level`` (``debug``, ``info``, ``warning``, ``error``) and above to stderr, as ``text`` or ``json``.

    This sets our handler of the root logger, so the application's records are logged too. A later call replaces the handler.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter(_TEXT))
    logging.getLogger().setLevel(level.upper())
    for record in _replace(handler):
        if logging.getLogger(record.name).isEnabledFor(record.levelno):
            handler.handle(record)


class TextFormatter(logging.Formatter):
    """Time, process id, level, logger and message in a line, and a traceback below it. Control characters are escaped."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return _time(record)

    def formatMessage(self, record: logging.LogRecord) -> str:
        return visible(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        return visible_lines(super().format(record))


class JsonFormatter(logging.Formatter):
    """One JSON object per line, with ``time``, ``pid``, ``level``, ``logger``, ``message``, and ``exception`` if there is one.

    The records of :mod:`pgbus_gevent.web.connection_log` have their fields too.
    """

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": _time(record),
            "pid": record.process,  # with several workers, it tells which one wrote the line
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


class _Held(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


_current: logging.Handler | None = None


def _replace(handler: logging.Handler) -> list[logging.LogRecord]:
    """Replace our handler of the root logger by ``handler``, and return the records that the old one held."""
    global _current
    root, old, _current = logging.getLogger(), _current, handler
    if old is not None:
        root.removeHandler(old)
    root.addHandler(handler)
    return old.records if isinstance(old, _Held) else []


def _time(record: logging.LogRecord) -> str:
    """The time of a record in ISO 8601, in UTC, with milliseconds."""
    at = datetime.fromtimestamp(record.created, timezone.utc)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
