"""pg-sse (PyPI): a table with its trigger, and a route that reads after a cursor."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..site import Site
from .base import Message, Peer

SERVER = Path(__file__).resolve().parents[1] / "servers/pg_sse_app.py"


class PgSse(Peer):
    """pg-sse under uvicorn, as its README shows it, with ``order_column``."""

    name = "pg-sse"
    package = "pg-sse (PyPI)"
    needs: Sequence[str] = ("python",)
    patience = 65.0
    use = (
        'Starlette under uvicorn; a table with `trigger_sql(…, order_column="id", on=("insert",))`; reads on a connection pool. '
        "The application inserts a row in its transaction. A page's cursor is `max(id)` of the stream in its snapshot"
    )
    says = (
        "A lost notification costs a delay of up to a minute, never an event; with `order_column`, ids follow commit order, and an "
        "insert locks its key until it commits"
    )

    def prepare(self, site: Site) -> None:
        """Make the table and the trigger, with the SQL that pg-sse writes."""
        command = [str(site.environment.python), str(SERVER), "--prepare", "--database-url", site.database_url]
        subprocess.run(command, check=True)

    def command(self, site: Site) -> list[str]:
        """Return the command that starts the server."""
        return [
            *(str(site.environment.python), str(SERVER)),
            *("--database-url", site.database_url, "--port", str(site.port)),
        ]

    def publish(self, cursor: Any, message: Message) -> None:
        """Insert the message; the trigger notifies."""
        cursor.execute("insert into messages (room, body) values (%s, %s)", (message.stream, message.text))

    def request(self, stream: str, cursor: str | None) -> tuple[str, Mapping[str, str]]:
        """Return the request of a room."""
        return f"/rooms/{stream}", {} if cursor is None else {"Last-Event-ID": cursor}

    def page(self, site: Site, http: Any, cursor: Any, stream: str) -> str | None:
        """Return the highest id in the snapshot, which the README's ``latest_id`` returns."""
        found = cursor.execute("select coalesce(max(id), 0) from messages where room = %s", (stream,)).fetchone()
        return str(found[0])
