"""The clients of a run: a program with some hundred of them, each of which does what a browser's EventSource does.

They parse with httpx-sse, come back with their Last-Event-ID after the time that the server asked for, and write what they were
sent to a file when stdin ends. Each connection goes to any worker, as behind a load balancer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import httpx_sse

from .browsers import Batch, collect
from .faulty import KINDS, FaultyHistory
from .journal import History, payload_of
from .plan import BROWSER, Place
from .publishing import EXCLUDING

SILENCE = 7.0
"""Seconds without a byte after which a client gives a connection up: more than three heartbeats."""

_CONNECTING = 5.0

_CUTS: dict[type[Exception], str] = {
    httpx.RemoteProtocolError: "cut off",
    httpx.ReadError: "reset",
    httpx.ReadTimeout: "silent",
    httpx.ConnectError: "refused",
    httpx.ConnectTimeout: "no answer",
}
"""What the ends of a connection are called in the report."""


class Client:
    """One EventSource with one stream or several."""

    def __init__(self, folder: Path, place: Place, places: Sequence[str]) -> None:
        number, user, streams, kind = place
        self.histories = [_history(number, user, stream, kind) for stream in streams]
        self.is_browser = kind == BROWSER
        self.connected = False
        self._places = list(places)
        self._user = user
        self._streams = list(streams)
        self._last_event_id = ""
        self._connection = ""
        self._retry = 1.0
        self._note = folder / f"connection-{number}" if streams[0] in EXCLUDING else None

    def _url(self) -> str:
        place = random.choice(self._places)
        again = {"connection": self._connection} if self._connection else {}
        if len(self._streams) == 1:
            query = f"?{urlencode(again)}" if again else ""
            return f"{place}/pgbus/streams/{self._streams[0]}{query}"
        query = urlencode([*(("stream", stream) for stream in self._streams), *again.items()])
        return f"{place}/pgbus/streams?{query}"

    def take_batch(self, batch: Batch) -> None:
        """Take what a page has got, which is in a browser."""
        for name, data, id in batch:
            if name == "cut":
                self.connected = False
                self._mark("cut", how=data)
            else:
                self._take(httpx_sse.ServerSentEvent(event=name, data=data, id=id))

    async def run(self, http: httpx.AsyncClient) -> None:
        """Keep it connected, for ever."""
        while True:
            try:
                await self._connect(http)
                self._mark("cut", how="ended")
            except httpx.HTTPError as error:
                self._mark("cut", how=_CUTS.get(type(error), type(error).__name__))
            self.connected = False
            await asyncio.sleep(self._retry * random.uniform(0.5, 1.0))

    async def _connect(self, http: httpx.AsyncClient) -> None:
        headers = {"Cookie": f"login={self._user}"}
        if self._last_event_id:
            headers["Last-Event-ID"] = self._last_event_id
        async with httpx_sse.aconnect_sse(http, "GET", self._url(), headers=headers) as source:
            if source.response.status_code != 200:
                self._mark("status", status=source.response.status_code)
                return
            async for event in source.aiter_sse():
                self._take(event)

    def _take(self, event: httpx_sse.ServerSentEvent) -> None:
        now = time.monotonic()
        if event.retry is not None:
            self._retry = event.retry / 1000
        if event.event.startswith("pgbus:"):
            self._control(event.event.removeprefix("pgbus:"), json.loads(event.data or "{}"), now)
        elif event.event == "ephemeral":
            self.histories[0].ephemerals.append((*payload_of(event.data), now))
        elif event.event != "presence" and event.data:
            message, sent = payload_of(event.data)
            index, id = _position(event.id)
            self.histories[index].message(id, message, sent, now)
        if event.id:
            self._last_event_id = event.id

    def _control(self, name: str, data: dict[str, Any], now: float) -> None:
        if name == "connected":
            self.connected = True
            self._connection = data["connectionId"]
            if self._note is not None:
                self._note.write_text(self._connection)
            for history, stream in zip(self.histories, data["streams"], strict=True):
                history.mark(now, "connected", cursor=int(stream["lastId"]), id=self._connection)
        elif name == "gap-detected":
            stream = data.get("stream", self._streams[0])
            history = self.histories[self._streams.index(stream)]
            history.mark(now, "gap", reason=data["reason"], oldest=int(data.get("oldestId") or 0))
        else:
            self._mark("told", event=name, reason=data.get("reason", ""))

    def _mark(self, what: str, **data: Any) -> None:
        # What concerns the connection is written down once, with its first stream.
        for history in self.histories[: None if what == "cut" else 1]:
            history.mark(time.monotonic(), what, **data)


def _history(number: int, user: int, stream: str, kind: str) -> History:
    return FaultyHistory(number, user, stream, kind) if kind in KINDS else History(number, user, stream)


def _position(id: str) -> tuple[int, int]:
    """Return the index of the stream, and the id of the message in it, from the id of a frame."""
    index, composite, cursors = id.rpartition("~")
    if not composite:
        return 0, int(id)
    return int(index), int(cursors.split(".")[int(index)])


async def main() -> None:
    """Connect, report to stdout whenever asked by a line on stdin, and write the histories at its end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("plan", type=Path, help="a file of JSON: [number, user, streams, kind] for each client")
    parser.add_argument("out", type=Path)
    parser.add_argument("--collector", type=int, default=0, help="the port to which these pages pass what they get")
    parser.add_argument("places", nargs="+", help="the URLs of the workers")
    arguments = parser.parse_args()
    plan = [Place(*place) for place in json.loads(arguments.plan.read_text())]
    folder = arguments.out.parent
    clients = [Client(folder, place, arguments.places) for place in plan]
    timeout = httpx.Timeout(SILENCE, connect=_CONNECTING)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(timeout=timeout, limits=limits, trust_env=False) as http:
        tasks = [asyncio.create_task(client.run(http)) for client in clients if not client.is_browser]
        if len(tasks) < len(clients):
            tasks.append(
                asyncio.create_task(collect(arguments.collector, lambda n, batch: clients[n].take_batch(batch)))
            )
        loop = asyncio.get_running_loop()
        while await loop.run_in_executor(None, sys.stdin.readline):
            delivered = sum(len(history.ids) for client in clients for history in client.histories)
            last = [[int(h.ids[-1]) if h.ids else 0 for h in client.histories] for client in clients]
            connected = sum(client.connected for client in clients)
            failed = [repr(task.exception()) for task in tasks if task.done()]
            answer = {"connected": connected, "delivered": delivered, "last": last, "failed": failed}
            print(json.dumps(answer), flush=True)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    with arguments.out.open("w") as file:
        for client in clients:
            for history in client.histories:
                history.settle()
                history.dump(file)


if __name__ == "__main__":
    asyncio.run(main())
