"""Asks the authorize hook again, now and then, about those who are connected."""

from __future__ import annotations

import logging
from collections.abc import Callable

import gevent

from ..core.client import Client
from ..core.registry import Registry

logger = logging.getLogger("pgbus_gevent.rechecks")

_PAUSE = 1.0  # seconds: how soon a first connection is noticed


class Rechecks:
    """The greenlet that asks; :meth:`run` is its loop. Each connection is asked about every ``interval`` seconds, one after the
    other, so that a slow hook delays the next question and nobody's messages. ``on_end`` is given whom the hook refuses.

    A hook that raises changes nothing: an outage of what it asks must not throw everybody out. It is asked again in time.
    """

    def __init__(self, registry: Registry, *, interval: float, on_end: Callable[[Client, str], None]) -> None:
        self._registry = registry
        self._interval = interval
        self._on_end = on_end

    def run(self) -> None:
        """Ask, for ever."""
        while True:
            clients = [client for client in self._registry.clients() if client.recheck is not None]
            failed = False
            for client in clients:
                gevent.sleep(self._interval / len(clients))
                if client.closed or client.recheck is None:
                    continue
                try:
                    if not client.recheck():
                        self._on_end(client, "revoked")
                except (Exception, gevent.Timeout):
                    if not failed:
                        logger.exception("the authorize hook raised when it was asked again; asking later")
                    failed = True
            if not clients:
                gevent.sleep(min(_PAUSE, self._interval))
