"""Asks the authorize hook again, now and then, about those who are connected."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import gevent

from ..core.client import Client, Subscriber
from ..core.registry import Registry

logger = logging.getLogger("pgbus_gevent.rechecks")

_PAUSE = 1.0  # seconds: how soon a first connection is noticed


class Rechecks:
    """The greenlet that asks; :meth:`run` is its loop. Each connection is asked about every ``interval`` seconds, one after the
    other, so that a slow hook delays the next question and nobody's messages. ``end`` is called with whom the hook refuses, and
    ``adopt`` with whom it lets stay, and as whom, at each of the streams.

    A hook that raises changes nothing: an outage of what it asks must not throw everybody out. It is asked again in time.
    """

    def __init__(
        self,
        registry: Registry,
        end: Callable[[Client, str], None],
        adopt: Callable[[Client, Sequence[Subscriber]], None],
        interval: float,
    ) -> None:
        self._registry = registry
        self._interval = interval
        self._end = end
        self._adopt = adopt

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
                    answer = client.recheck()
                except (Exception, gevent.Timeout):
                    if not failed:
                        logger.exception("the authorize hook raised when it was asked again; asking later")
                    failed = True
                    continue
                if client.closed:
                    continue  # while the hook was asked
                if answer is None:
                    self._end(client, "revoked")
                else:
                    self._adopt(client, answer)
            if not clients:
                gevent.sleep(min(_PAUSE, self._interval))
