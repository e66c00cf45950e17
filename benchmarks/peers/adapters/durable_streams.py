"""The reference server of Durable Streams (npm), with its file store."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from ..environment import program
from ..site import Site
from .base import KEY, Message, Peer, Reading

SERVER = Path(__file__).resolve().parents[1] / "servers/durable_streams.mjs"


class DurableStreams(Peer):
    """A stream of JSON, read with ``live=sse``. As in its own client, data counts when the control event has come."""

    name = "durable-streams"
    package = "@durable-streams/server (npm)"
    needs: Sequence[str] = ("npm",)
    store = "itself"
    use = (
        "The Node.js reference server with its file store. The application appends with a POST after its COMMIT, with the headers "
        "of an idempotent producer. Clients read with `live=sse` from the offset of the last control event, and take data when its "
        "control event has come, as the protocol's own client does. A page's cursor is `Stream-Next-Offset`"
    )
    says = (
        "Reads resume from any offset; appends of idempotent producers can be repeated without duplicates. The reference server is "
        "for development and testing; for production, a plugin for Caddy is recommended, which is on none of the registries"
    )

    def __init__(self) -> None:
        self._appended: dict[str, int] = {}

    def command(self, site: Site) -> list[str]:
        """Return the command that starts the server."""
        return [program("node") or "", str(SERVER), str(site.port), str(site.directory / "streams")]

    def open(self, site: Site, http: httpx.Client, streams: Sequence[str]) -> None:
        """Create the streams."""
        self._appended.clear()
        for stream in streams:
            http.put(site.url(f"/{stream}"), headers={"Content-Type": "application/json"}).raise_for_status()

    def publish_after(self, site: Site, http: httpx.Client, message: Message) -> None:
        """Append the message, with the producer's next number, so that a repeated call appends it once."""
        producer = message.key.rpartition("/")[0]
        number = self._appended.setdefault(producer, 0)
        headers = {
            "Content-Type": "application/json",
            "Producer-Id": producer,
            "Producer-Epoch": "0",
            "Producer-Seq": str(number),
        }
        http.post(site.url(f"/{message.stream}"), content=json.dumps(message.text), headers=headers).raise_for_status()
        self._appended[producer] = number + 1

    def request(self, stream: str, cursor: str | None) -> tuple[str, Mapping[str, str]]:
        """Return the request from an offset."""
        return f"/{stream}?offset={cursor or 'now'}&live=sse", {}

    def read(self, event: str, data: str, event_id: str) -> Reading:
        """Read a data event or a control event."""
        if event == "control":
            return Reading((), json.loads(data)["streamNextOffset"])
        return Reading(KEY.findall(data), None)

    def page(self, site: Site, http: httpx.Client, cursor: Any, stream: str) -> str | None:
        """Return the offset of the stream's end."""
        return http.head(site.url(f"/{stream}")).headers["Stream-Next-Offset"]
