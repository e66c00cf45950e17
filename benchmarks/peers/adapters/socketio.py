"""Socket.IO (npm) with connection state recovery. Its clients are those of its own library, in a Node.js process."""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from ..environment import program
from ..judge import Received
from ..site import Site
from .base import KEY, Message, Peer
from .listen import SERVERS


class Bridge:
    """The process with the clients. A thread reads what they received."""

    def __init__(self, url: str) -> None:
        command = [program("node") or "", str(SERVERS / "socketio_clients.mjs"), url]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self._clients: list[SocketClient] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def add(self, client: SocketClient) -> int:
        """Add a client and return its number."""
        self._clients.append(client)
        return len(self._clients) - 1

    def tell(self, **command: Any) -> None:
        """Tell the process to do something."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)
        self._reader.join(5)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = json.loads(line)
            self._clients[event["client"]].take(event)


class SocketClient:
    """A client, as :class:`~benchmarks.peers.clients.Client` is one. The library connects again by itself."""

    def __init__(self, peer: SocketIo, stream: str) -> None:
        self.received = Received(stream)
        self.cursor: str | None = None
        self.connects = 0
        self.refusals = 0
        self._peer = peer
        self._number = -1

    def cut(self) -> None:
        """Destroy the socket of its connection."""
        self._peer.bridge.tell(cut=self._number)

    def stall(self, seconds: float) -> None:
        """Read nothing for some seconds."""
        self._peer.bridge.tell(stall=self._number, ms=1000 * seconds)

    async def run(self) -> None:
        """Be connected until the task is cancelled."""
        self._number = self._peer.bridge.add(self)
        self._peer.bridge.tell(open=self._number, stream=self.received.stream)
        try:
            await asyncio.Event().wait()
        finally:
            self._peer.bridge.tell(close=self._number)

    def take(self, event: Mapping[str, Any]) -> None:
        """Take what the library reports."""
        if "text" in event:
            self.received.keys += KEY.findall(event["text"])[:1]
            self.received.times.append(time.monotonic())
        if event.get("connected"):
            self.connects += 1
            self.received.told = self.received.told or event["lost"]


class SocketIo(Peer):
    """One process with the adapter in memory; the adapter for PostgreSQL has no connection state recovery."""

    name = "socket.io"
    package = "socket.io, socket.io-client (npm)"
    needs: Sequence[str] = ("npm",)
    store = "itself"
    use = (
        "One Node.js process with `connectionStateRecovery` and the adapter in memory, since `@socket.io/postgres-adapter` has no "
        "recovery. The application sends a POST after its COMMIT, which emits to a room. Clients use Socket.IO's own library over "
        "WebSocket, and count as told if `socket.recovered` is false when they are back. Pages have no cursor"
    )
    says = (
        "What a client missed is sent after a temporary disconnection (of up to two minutes). Recovery is not always successful, "
        "so the application must be able to synchronize the client by itself"
    )

    bridge: Bridge

    def command(self, site: Site) -> list[str]:
        """Return the command that starts the server."""
        return [program("node") or "", str(SERVERS / "socketio.mjs"), str(site.port)]

    def open(self, site: Site, http: httpx.Client, streams: Sequence[str]) -> None:
        """Start the process of the clients."""
        self.bridge = Bridge(site.url(""))
        site.stack.callback(self.bridge.close)

    def client(self, stream: str) -> SocketClient:
        """Return a client of its own kind."""
        return SocketClient(self, stream)

    def publish_after(self, site: Site, http: httpx.Client, message: Message) -> None:
        """Emit to the room."""
        http.post(site.url(f"/send/{message.stream}"), content=message.text).raise_for_status()
