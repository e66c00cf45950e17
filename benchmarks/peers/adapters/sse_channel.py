"""sse-channel (npm): a Node.js server with a history for each channel, fed by LISTEN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg

from ..environment import program
from ..site import Site
from .base import Message, Peer
from .listen import SERVERS


class SseChannel(Peer):
    """A channel for each stream. Its history is filled from the table at the start, which the package has an option for."""

    name = "sse-channel"
    package = "sse-channel, pg (npm)"
    needs: Sequence[str] = ("npm",)
    use = (
        "A Node.js server with a channel for each stream. The application inserts a row in its transaction, a trigger "
        "notifies with it, and the server calls `send` with the row's id. The history (500) is filled from the table at the start. "
        "Clients resume with `Last-Event-ID`; a page's cursor is `max(id)`. When its session of LISTEN has ended, the server "
        "listens again after half a second, and does not read what it missed"
    )
    says = "Sends missed events to clients that reconnect, from a history in memory of messages with ascending ids"

    def prepare(self, site: Site) -> None:
        """Make the table and its trigger."""
        with psycopg.connect(site.database_url) as connection:
            connection.execute((SERVERS / "sse_channel.sql").read_text())

    def command(self, site: Site) -> list[str]:
        """Return the command that starts the server."""
        return [program("node") or "", str(SERVERS / "sse_channel.mjs"), str(site.port), site.database_url]

    def publish(self, cursor: Any, message: Message) -> None:
        """Insert the message."""
        cursor.execute("insert into feed (stream, body) values (%s, %s)", (message.stream, message.text))

    def page(self, site: Site, http: Any, cursor: Any, stream: str) -> str | None:
        """Return the highest id in the snapshot."""
        return str(cursor.execute("select coalesce(max(id), 0) from feed where stream = %s", (stream,)).fetchone()[0])
