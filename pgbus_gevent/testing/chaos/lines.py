"""A program with TCP lines that can be cut, held, slowed down and led elsewhere, and :class:`Lines`, which controls it.

Each line is a port that leads to another port. The program takes commands as lines of JSON on stdin.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import sys
from typing import Any

from .processes import Part

_CHUNK = 65536
_BACKLOG = 1024
_FORGOTTEN = 12.0  # seconds
_MOST = 1 << 20  # bytes on the way in one direction of one connection


class Lines:
    """The conductor's side. ``part`` is the started program."""

    def __init__(self, part: Part) -> None:
        self._part = part

    def open(self, name: str, host: str, target: tuple[str, int]) -> int:
        """Open a line at ``host`` that leads to ``target``. Returns its port."""
        self._send(line=name, host=host, target=target)
        return int(json.loads(self._part.stdout.readline())["port"])

    def lead(self, name: str, target: tuple[str, int]) -> None:
        """Lead new connections elsewhere, and cut the present ones."""
        self._send(line=name, target=target, cut=1.0)

    def cut(self, name: str, share: float = 1.0) -> None:
        """End this share of the connections with a reset."""
        self._send(line=name, cut=share)

    def hold(self, name: str, held: bool) -> None:
        """Let no byte through, in either direction. New connections are accepted, and hang too."""
        self._send(line=name, held=held)

    def half_open(self, name: str, share: float) -> None:
        """Forget this share of the connections: no byte comes through any more, and nobody is told for 12 seconds.

        Then they are reset, as the keepalive of TCP does. A browser's EventSource, unlike pgbus.js, has nothing else to notice it.
        """
        self._send(line=name, half_open=share)

    def slow(self, name: str, delay: float = 0.0, rate: float = 0.0) -> None:
        """Delay every byte by ``delay`` seconds each way, and let at most ``rate`` bytes a second through; 0 is no limit."""
        self._send(line=name, delay=delay, rate=rate)

    def _send(self, **command: Any) -> None:
        self._part.stdin.write(json.dumps(command) + "\n")
        self._part.stdin.flush()


class _Line:
    """A port, where it leads, and its connections."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.delay = self.rate = 0.0
        self.open = asyncio.Event()
        self.open.set()
        self.pairs: set[_Pair] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection to the port."""
        pair = _Pair(self, writer)
        self.pairs.add(pair)
        try:
            await self.open.wait()
            other = await asyncio.wait_for(asyncio.open_connection(*self.target), 5)
            pair.upstream = other[1]
            await asyncio.gather(pair.pump(reader, other[1]), pair.pump(other[0], writer))
        except (OSError, asyncio.TimeoutError, asyncio.CancelledError):
            pass
        finally:
            self.pairs.discard(pair)
            pair.abort()


class _Pair:
    """A connection to the port, and the one to its target."""

    def __init__(self, line: _Line, writer: asyncio.StreamWriter) -> None:
        self.line, self.writer = line, writer
        self.upstream: asyncio.StreamWriter | None = None
        self.alive = asyncio.Event()
        self.alive.set()

    def abort(self) -> None:
        """End both connections at once."""
        for writer in (self.writer, self.upstream):
            if writer is not None:
                writer.transport.abort()

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on the bytes of one direction until its end."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_MOST // _CHUNK)
        clock = asyncio.get_running_loop().time
        taker = asyncio.create_task(self._give(queue, writer))
        try:
            while data := await reader.read(_CHUNK if not self.line.rate else 512):
                await queue.put((clock() + self.line.delay, data))
            await queue.put((clock() + self.line.delay, b""))
            await taker
        finally:
            taker.cancel()

    async def _give(self, queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            due, data = await queue.get()
            await asyncio.sleep(max(0.0, due - clock()))
            await self.line.open.wait()
            await self.alive.wait()
            if not data:
                break
            writer.write(data)
            await writer.drain()
            if self.line.rate:
                await asyncio.sleep(len(data) / self.line.rate)
        # One side has said its last word. For HTTP and PostgreSQL, that is the end of the connection.
        self.abort()


class _Exchange:
    """All lines of the program."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}
        self._servers: list[asyncio.base_events.Server] = []

    async def do(self, command: dict[str, Any]) -> None:
        """Carry out one command."""
        name = command["line"]
        if "host" in command:
            line = self._lines[name] = _Line(tuple(command["target"]))
            server = await asyncio.start_server(line.serve, command["host"], 0, backlog=_BACKLOG)
            self._servers.append(server)
            print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
            return
        line = self._lines[name]
        line.target = tuple(command.get("target", line.target))
        line.delay, line.rate = command.get("delay", line.delay), command.get("rate", line.rate)
        if "held" in command:
            (line.open.clear if command["held"] else line.open.set)()
        for pair in _some(line.pairs, command.get("half_open", 0.0)):
            pair.alive.clear()
            asyncio.get_running_loop().call_later(_FORGOTTEN, pair.abort)
        for pair in _some(line.pairs, command.get("cut", 0.0)):
            _reset(pair)


def _some(pairs: set[_Pair], share: float) -> list[_Pair]:
    return [pair for pair in pairs if random.random() < share]


def _reset(pair: _Pair) -> None:
    for writer in (pair.writer, pair.upstream):
        connection = writer and writer.get_extra_info("socket")
        if connection:
            try:
                # A close with this option sends RST, as a host does that was restarted.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            except OSError:
                pass  # it is closed already
    pair.abort()


async def main() -> None:
    """Take commands until stdin ends."""
    exchange = _Exchange()
    commands = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while line := await commands.readline():
        await exchange.do(json.loads(line))


if __name__ == "__main__":
    asyncio.run(main())
