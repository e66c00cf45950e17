"""The statements that run on an application's own cursor, in its transaction; their errors stay psycopg2's."""

from __future__ import annotations

from collections.abc import Sequence

from .queries import LAST_IDS, Cursor, Publication


def broadcast_on_commit(cursor: Cursor, stream: str, data: str, publication: Publication) -> None:
    """Queue one message in the transaction of ``cursor``."""
    cursor.execute("select pgbus.broadcast_on_commit(%s, %s, %s, %s, %s, %s)", (stream, data, *publication))


def broadcast_ephemeral(cursor: Cursor, stream: str, data: str, publication: Publication) -> None:
    """Reach who is connected once the transaction of ``cursor`` commits."""
    cursor.execute("select pgbus.broadcast_ephemeral(%s, %s, %s, %s, %s)", (stream, data, *publication[:3]))


def last_ids(cursor: Cursor, streams: Sequence[str]) -> list[int]:
    """The newest id of each stream in the snapshot of the transaction of ``cursor``."""
    cursor.execute(LAST_IDS, (list(streams),))
    # An application may use a RealDictCursor.
    return [int(row["last_id"] if isinstance(row, dict) else row[0]) for row in cursor.fetchall()]


def disconnect(cursor: Cursor, owner: str) -> None:
    """End every connection of an owner once the transaction of ``cursor`` commits."""
    cursor.execute("select pgbus.disconnect(%s)", (owner,))
