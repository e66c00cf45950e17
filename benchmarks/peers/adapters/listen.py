"""What teams write by hand: a server that LISTENs and passes on what it hears."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg

from ..site import Site
from .base import Message, Peer

SERVERS = Path(__file__).resolve().parents[1] / "servers"


class Fanout(Peer):
    """The notification is the message."""

    name = "listen-fanout"
    package = "by hand: Starlette, psycopg (PyPI)"
    needs: Sequence[str] = ("python",)
    use = (
        "40 lines by hand (`servers/listen_fanout.py`): the application calls `pg_notify` with the message in its transaction; a "
        "server that LISTENs passes it on to a queue for each client. There are no ids and no cursors"
    )
    says = "Nothing: NOTIFY reaches the sessions that listen at that moment, in commit order"
    script = "listen_fanout.py"

    def command(self, site: Site) -> list[str]:
        """Return the command that starts the server."""
        return [str(site.environment.python), str(SERVERS / self.script), site.database_url, str(site.port)]

    def publish(self, cursor: Any, message: Message) -> None:
        """Notify with the message as payload."""
        cursor.execute("select pg_notify('feed', %s)", (json.dumps([message.stream, message.text]),))


class Reread(Fanout):
    """The notification says that there is something new, which is read from a table after the client's cursor."""

    name = "listen-table"
    use = (
        "60 lines by hand (`servers/listen_table.py`): the application inserts a row in its transaction, a trigger notifies, and "
        "each client's loop reads the rows after its last id. `Last-Event-ID` is that id; a page's cursor is `max(id)`"
    )
    says = "Nothing: ids of a sequence do not follow commit order"
    script = "listen_table.py"

    def prepare(self, site: Site) -> None:
        """Make the table and its trigger."""
        with psycopg.connect(site.database_url) as connection:
            connection.execute((SERVERS / "listen_table.sql").read_text())

    def publish(self, cursor: Any, message: Message) -> None:
        """Insert the message."""
        cursor.execute("insert into feed (stream, body) values (%s, %s)", (message.stream, message.text))

    def page(self, site: Site, http: Any, cursor: Any, stream: str) -> str | None:
        """Return the highest id in the snapshot."""
        return str(cursor.execute("select coalesce(max(id), 0) from feed where stream = %s", (stream,)).fetchone()[0])
