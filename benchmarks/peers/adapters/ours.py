"""Ours: pgbus_gevent, started with its command line."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from ..site import Site, python
from .base import KEY, Message, Peer, Reading


class Ours(Peer):
    """One worker, with the settings that it has by itself."""

    name = "pgbus_gevent"
    package = "this checkout"
    needs: Sequence[str] = ()
    use = (
        "`pgbus-gevent serve`, one worker. The application calls `pgbus.broadcast_on_commit` in its transaction, as `using=` does. "
        "A page's cursor is the stream's last id in its snapshot (`pgbus.last_id`)"
    )
    says = "Committed means delivered, in order, once; what is gone before a client comes back is told as `pgbus:gap-detected`"

    def command(self, site: Site) -> list[str]:
        """Return the command that starts the server."""
        options = ["--port", str(site.port), "--public", "s*", "--database-url", site.database_url]
        return [python(), "-m", "pgbus_gevent", "serve", *options, "--log-level", "warning"]

    def variables(self, site: Site) -> Mapping[str, str]:
        """Return the secret, which signs names that are not public."""
        return {"PGBUS_SECRET": "the secret of the comparison"}

    def open(self, site: Site, http: httpx.Client, streams: Sequence[str]) -> None:
        """Wait until it has made its schema; it answers before."""
        deadline = time.monotonic() + 30
        while http.get(site.url("/pgbus/readyz")).status_code != 200 and time.monotonic() < deadline:
            time.sleep(0.1)

    def publish(self, cursor: Any, message: Message) -> None:
        """Publish on commit."""
        cursor.execute("select pgbus.broadcast_on_commit(%s, %s)", (message.stream, message.text))

    def request(self, stream: str, cursor: str | None) -> tuple[str, Mapping[str, str]]:
        """Return the request of a stream by its bare name."""
        return f"/pgbus/streams/{stream}", {} if cursor is None else {"Last-Event-ID": cursor}

    def read(self, event: str, data: str, event_id: str) -> Reading:
        """Read an event; the greeting has an id as well."""
        keys = KEY.findall(data) if event == "message" else []
        return Reading(keys, event_id or None, gap=event == "pgbus:gap-detected")

    def page(self, site: Site, http: Any, cursor: Any, stream: str) -> str | None:
        """Return the watermark."""
        return str(cursor.execute("select pgbus.last_id(%s)", (stream,)).fetchone()[0])
