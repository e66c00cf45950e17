"""A client that polls: it asks again and again, and keeps its cursor and what it was answered."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

import gevent
from raw_http import Answer, ask

PATIENCE = 40.0
"""Seconds for what takes a moment on a machine of its own."""


class Poller:
    """Polls ``path``, which may have a query, at the server of ``url``. ``cursor`` is None for a client that has none yet."""

    def __init__(self, url: str, path: str, cursor: Any = None, **headers: str) -> None:
        self.url = url
        self.path = path
        self.cursor = cursor
        self.connection: str | None = None
        self.messages: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self._headers = headers

    def target(self, seconds: object) -> str:
        given = {"since": self.cursor, "connection": self.connection, "poll": seconds}
        query = "&".join(f"{name}={value}" for name, value in given.items() if value is not None)
        return f"{self.path}{'&' if '?' in self.path else '?'}{query}"

    def raw(self, seconds: object = 0) -> Answer:
        """Ask once. Return the whole answer."""
        return ask(urlsplit(self.url).port or 80, self.target(seconds), **self._headers)

    def ask(self, seconds: object = 0) -> dict[str, Any]:
        """Ask once, keep the answer, which must be one of 200, and return it."""
        answer = self.raw(seconds)
        assert answer.status == 200, answer
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["content-length"] == str(len(answer.body))
        assert answer.headers["cache-control"] == "no-store"
        found: dict[str, Any] = json.loads(answer.body)
        self.cursor, self.connection = found["cursor"], found["connectionId"]
        self.messages += found["messages"]
        self.events += found["events"]
        return found

    def start(self, seconds: object = 30) -> gevent.Greenlet[..., dict[str, Any]]:
        """Ask once in a greenlet."""
        return gevent.spawn(self.ask, seconds)

    def read(self, count: int) -> list[dict[str, Any]]:
        """Ask until there have been ``count`` messages. Return all so far."""
        with gevent.Timeout(PATIENCE):
            while len(self.messages) < count:
                self.ask(20)
        return self.messages

    @property
    def data(self) -> list[str]:
        return [each["data"] for each in self.messages]
