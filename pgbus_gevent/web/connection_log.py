"""A line in the log when a connection opens, and one when it closes. No line has a token: a stream has its name there."""

from __future__ import annotations

import logging
from typing import Any

from ..core.events import Connected, Disconnected, Events
from ..core.shown import json_line, visible

logger = logging.getLogger("pgbus_gevent.connections")

FIELDS = "pgbus_fields"
"""The attribute of a record with what its line says, for logs that are not text."""


class ConnectionLog:
    """Logs the connections of a streamer from now on, at the level ``info``. With ``owners``, the name of the owner too.

    Polls are logged at the level ``debug``, because each is a connection.

    The events may come in the event loop, so nothing here waits but the write of the line itself.
    """

    def __init__(self, events: Events, *, owners: bool) -> None:
        self._owners = owners
        events.subscribe(Connected, self._opened)
        events.subscribe(Disconnected, self._closed)

    def _opened(self, event: Connected) -> None:
        level = _level(event)
        if logger.isEnabledFor(level):
            fields = {"event": "opened", "connection": event.connection, **self._whose(event)}
            text = "connection %s opened: %s"
            logger.log(level, text, event.connection, _told(self._whose(event)), extra={FIELDS: fields})

    def _closed(self, event: Disconnected) -> None:
        level = _level(event)
        if not logger.isEnabledFor(level):
            return
        facts = {
            "seconds": round(event.seconds, 3),
            "messages": event.messages,
            "bytes": event.bytes,
            "last_ids": list(event.last_ids),
            **self._whose(event),
        }
        fields = {"event": "closed", "connection": event.connection, "reason": event.reason, **facts}
        reason = visible(event.reason)
        text = "connection %s closed: %s; %s"
        logger.log(level, text, event.connection, reason, _told(facts), extra={FIELDS: fields})

    def _whose(self, event: Connected | Disconnected) -> dict[str, Any]:
        found: dict[str, Any] = {"streams": list(event.streams), "address": event.address}
        if event.poll:
            found["poll"] = True
        return {**found, "owner": event.owner} if self._owners else found


def _level(event: Connected | Disconnected) -> int:
    return logging.DEBUG if event.poll else logging.INFO


def _told(facts: dict[str, Any]) -> str:
    # Safe in one line, also for the formatters of other programs.
    return ", ".join(f"{name}={json_line(value)}" for name, value in facts.items())
