"""Thousands of clients over HTTP/1.1 and HTTP/2, each of which comes back with its Last-Event-ID, as a browser does.

Run as a program on the host ``clients``: it connects, prints a line when all clients are connected, and writes what each of them
was sent to a file when its standard input ends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from array import array
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
from httpx_sse._decoders import SSEDecoder

SILENCE = 15.0
"""Seconds without a byte after which a client gives its connection up: three heartbeats."""

STREAMS_PER_CONNECTION = 100
"""How many clients share one connection with HTTP/2. Servers allow about as many."""

_SECOND = 1.0


class Client:
    """One EventSource: what it was sent, and where it starts again."""

    def __init__(self, stream: str) -> None:
        self.stream = stream
        self.start: int | None = None
        self.last_event_id = ""
        self.retry = 1.0
        self.ids = array("q")
        self.delays = array("f")
        self.told: dict[str, int] = {}
        self.connects = 0
        self.connected = asyncio.Event()
        self._decoder, self._rest = SSEDecoder(), b""

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The headers of the next request."""
        last = [("last-event-id", self.last_event_id)] if self.last_event_id else []
        return [("accept", "text/event-stream"), *last]

    def begin(self) -> None:
        """Forget an unfinished frame, because a new connection begins."""
        self._decoder, self._rest = SSEDecoder(), b""
        self.connects += 1

    def feed(self, data: bytes) -> None:
        """Take bytes of a body."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            event = self._decoder.decode(line.decode("utf-8"))
            if event is None:
                continue
            if event.id:
                self.last_event_id = event.id
            if event.retry is not None:
                self.retry = event.retry / 1000
            if event.event.startswith("pgbus:"):
                self._control(event.event, json.loads(event.data))
            elif event.event != "message" or event.data:
                self.ids.append(int(event.id))
                self.delays.append(time.time() - float(event.data.split()[0]))

    def _control(self, name: str, data: dict[str, Any]) -> None:
        if name == "pgbus:connected":
            if self.start is None:
                self.start = int(data["streams"][0]["lastId"])
            self.connected.set()
            return
        what = f"{name.removeprefix('pgbus:')} {data.get('reason', '')}".strip()
        self.told[what] = self.told.get(what, 0) + 1

    async def pause(self) -> None:
        """Wait before the next request."""
        await asyncio.sleep(self.retry * random.uniform(0.5, 1.0))


async def over_http1(client: Client, host: str, port: int) -> None:
    """Keep one client connected, for ever."""
    while True:
        writer = None
        try:
            reader, writer = await asyncio.wait_for(asyncio.open_connection(host, port), 5)
            lines = [
                f"GET /pgbus/streams/{client.stream} HTTP/1.1",
                f"host: {host}",
                *(f"{k}: {v}" for k, v in client.headers),
            ]
            writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), SILENCE)
            if b" 200 " in head.split(b"\r\n")[0]:
                client.begin()
                async for chunk in _chunks(reader, chunked=b"chunked" in head.lower()):
                    client.feed(chunk)
            else:
                client.told[head[:12].decode()] = client.told.get(head[:12].decode(), 0) + 1
        except (OSError, asyncio.TimeoutError, asyncio.IncompleteReadError, ValueError):
            pass
        finally:
            if writer is not None:
                writer.transport.abort()
        await client.pause()


async def _chunks(reader: asyncio.StreamReader, *, chunked: bool) -> AsyncIterator[bytes]:
    while not chunked:
        data = await asyncio.wait_for(reader.read(65536), SILENCE)
        if not data:
            return
        yield data
    while True:
        size = int(await asyncio.wait_for(reader.readuntil(b"\r\n"), SILENCE), 16)
        body = await asyncio.wait_for(reader.readexactly(size + 2), SILENCE)
        if size == 0:
            return
        yield body[:-2]


class Shared:
    """One connection with HTTP/2, and the clients that share it."""

    def __init__(self, clients: list[Client], host: str, port: int) -> None:
        self._clients, self._host, self._port = clients, host, port
        self._open: dict[int, Client] = {}
        self._heard: dict[int, float] = {}

    async def run(self) -> None:
        """Keep the clients connected, for ever."""
        while True:
            writer = None
            try:
                reader, writer = await asyncio.wait_for(asyncio.open_connection(self._host, self._port), 5)
                connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
                connection.initiate_connection()
                connection.increment_flow_control_window(2**30)
                self._open, self._heard = {}, {}
                waiting = dict.fromkeys(self._clients, 0.0)
                await self._serve(connection, reader, writer, waiting)
            except (OSError, asyncio.TimeoutError, h2.exceptions.ProtocolError, ValueError):
                pass
            finally:
                if writer is not None:
                    writer.transport.abort()
            await asyncio.sleep(random.uniform(0.5, 2.0))

    async def _serve(
        self,
        connection: h2.connection.H2Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        waiting: dict[Client, float],
    ) -> None:
        heard = time.monotonic()
        while True:
            now = time.monotonic()
            for client in [client for client, due in waiting.items() if due <= now]:
                del waiting[client]
                self._request(connection, client, now)
            for number in [number for number, at in self._heard.items() if now - at > SILENCE]:
                connection.reset_stream(number, h2.errors.ErrorCodes.CANCEL)
                self._ended(number, waiting, now)
            writer.write(connection.data_to_send())
            try:
                data = await asyncio.wait_for(reader.read(65536), 0.5)
            except asyncio.TimeoutError:
                if now - heard > SILENCE:
                    raise
                continue
            if not data:
                return
            heard = time.monotonic()
            for event in connection.receive_data(data):
                self._take(connection, event, waiting, heard)

    def _request(self, connection: h2.connection.H2Connection, client: Client, now: float) -> None:
        number = connection.get_next_available_stream_id()
        path = f"/pgbus/streams/{client.stream}"
        pseudo = [(":method", "GET"), (":scheme", "http"), (":authority", self._host), (":path", path)]
        connection.send_headers(number, [*pseudo, *client.headers], end_stream=True)
        self._open[number], self._heard[number] = client, now
        client.begin()

    def _take(
        self, connection: h2.connection.H2Connection, event: object, waiting: dict[Client, float], now: float
    ) -> None:
        number = getattr(event, "stream_id", None)
        if isinstance(event, h2.events.DataReceived):
            connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            if event.stream_id in self._open:
                self._heard[event.stream_id] = now
                self._open[event.stream_id].feed(event.data)
        elif isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset)) and number is not None:
            self._ended(number, waiting, now)
        elif isinstance(event, h2.events.ConnectionTerminated):
            raise h2.exceptions.ProtocolError("the server ends the connection")

    def _ended(self, number: int, waiting: dict[Client, float], now: float) -> None:
        client = self._open.pop(number, None)
        self._heard.pop(number, None)
        if client is not None:
            waiting[client] = now + client.retry * random.uniform(0.5, 1.0)


async def main() -> None:
    """Connect, report, and write what was received."""
    parser = argparse.ArgumentParser()
    parser.add_argument("host")
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--share", type=float, default=0.8, help="the share of the clients that use HTTP/2")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    clients = [Client(f"room:{n % arguments.streams}") for n in range(arguments.clients)]
    random.Random(1).shuffle(clients)
    shared = clients[: int(arguments.share * len(clients))]
    tasks = [asyncio.create_task(over_http1(client, arguments.host, 8080)) for client in clients[len(shared) :]]
    for n in range(0, len(shared), STREAMS_PER_CONNECTION):
        connection = Shared(shared[n : n + STREAMS_PER_CONNECTION], arguments.host, 8443)
        tasks.append(asyncio.create_task(connection.run()))
        await asyncio.sleep(0.05)
    await asyncio.wait_for(asyncio.gather(*(client.connected.wait() for client in clients)), 120)
    print("connected", flush=True)
    loop = asyncio.get_running_loop()
    # A line asks for the state; the end of the input ends the program.
    while await loop.run_in_executor(None, sys.stdin.readline):
        print(
            json.dumps({"messages": sum(len(c.ids) for c in clients), "connects": sum(c.connects for c in clients)}),
            flush=True,
        )
    for task in tasks:
        task.cancel()
    report = [
        {
            "stream": c.stream,
            "start": c.start,
            "ids": list(c.ids),
            "delays": [round(d, 4) for d in c.delays],
            "told": c.told,
            "connects": c.connects,
        }
        for c in clients
    ]
    arguments.out.write_text(json.dumps(report))


if __name__ == "__main__":
    asyncio.run(main())
