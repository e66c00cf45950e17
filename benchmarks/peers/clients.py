"""Clients: an HTTP client and an SSE parser that are not ours. They reconnect with the peer's own cursor, as EventSource does."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import Iterable
from contextlib import suppress

import httpx
from httpx_sse import EventSource, SSEError

from .adapters.base import Peer
from .judge import Received
from .site import Site

RECONNECT = (0.2, 1.0)
"""The seconds between two connections of a client, the same for all peers. It is random, as the time of a browser's network is."""

SILENCE = 40.0
"""A connection without a byte for so many seconds is given up."""


class Client:
    """One client of one stream. It keeps the cursor that the server sent last, and sends it when it connects again."""

    def __init__(self, peer: Peer, site: Site, stream: str, rng: random.Random) -> None:
        self.received = Received(stream)
        self.cursor: str | None = None
        self.connects = 0
        self.refusals = 0
        self._peer = peer
        self._site = site
        self._rng = rng
        self._connection: asyncio.Task[None] | None = None
        self._stalled_until = 0.0

    def cut(self) -> None:
        """Cut the line: the connection ends at once, with all bytes that are on their way."""
        if self._connection is not None:
            self._connection.cancel()

    def stall(self, seconds: float) -> None:
        """Read nothing for some seconds."""
        self._stalled_until = time.monotonic() + seconds

    async def run(self) -> None:
        """Be connected until the task is cancelled."""
        try:
            while True:
                self._connection = asyncio.create_task(self._connect())
                with suppress(asyncio.CancelledError, httpx.HTTPError, SSEError, OSError):
                    await asyncio.shield(self._connection)
                if not self._connection.done():  # this task is cancelled, not the connection
                    return
                await asyncio.sleep(self._rng.uniform(*RECONNECT))
        finally:
            self.cut()

    async def _connect(self) -> None:
        path, headers = self._peer.request(self.received.stream, self.cursor)
        # A small receive buffer, so that a client that does not read is noticed by the server and not hidden by the kernel.
        options = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)]
        async with (
            httpx.AsyncClient(
                transport=httpx.AsyncHTTPTransport(verify=False, socket_options=options),
                timeout=httpx.Timeout(5.0, read=SILENCE),
            ) as http,
            http.stream(
                "GET",
                self._site.url(path),
                headers={"Accept": "text/event-stream", "Cache-Control": "no-store", **headers},
            ) as response,
        ):
            if response.status_code != 200:
                self.refusals += 1
                self.received.told = self.received.told or response.status_code == 410
                return
            self.connects += 1
            async for event in EventSource(response).aiter_sse():
                self._take(event.event, event.data, event.id)
                if (stall := self._stalled_until - time.monotonic()) > 0:
                    await asyncio.sleep(stall)

    def _take(self, event: str, data: str, event_id: str) -> None:
        reading = self._peer.read(event, data, event_id)
        now = time.monotonic()
        self.received.keys += reading.keys
        self.received.times += [now] * len(reading.keys)
        self.received.told = self.received.told or reading.gap
        if reading.cursor is not None:
            self.cursor = reading.cursor


async def stop(tasks: Iterable[asyncio.Task[None]]) -> None:
    """End the tasks of clients."""
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
