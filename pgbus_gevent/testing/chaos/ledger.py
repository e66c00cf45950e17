"""Reads from the database what was committed."""

from __future__ import annotations

from .journal import payload_of
from .judge import Row, Truth
from .postgres import Cluster
from .publishing import SHORT

_MESSAGES = "select stream, msg_id, data, visible_to, exclude from pgbus.messages where stream like 'chaos:%'"
_LEDGER = "select message, stream, msg_id from chaos.ledger"


def row_of(id: int, data: str, visible_to: str | None, exclude: str | None) -> Row:
    """Return a row from the columns of pgbus.messages."""
    return Row(id, payload_of(data)[0], visible_to, exclude)


def read_truth(cluster: Cluster, taken: list[tuple[str, Row]]) -> tuple[dict[str, Truth], dict[int, str]]:
    """Return the truth of each stream, and the stream of each message in the ledger.

    ``taken`` are the messages that a former primary had alone. A message of the stream that is pruned is known by the
    ledger, which has its id.
    """
    truths: dict[str, Truth] = {}
    for stream, *columns in cluster.sql(_MESSAGES):
        row = row_of(*columns)
        truths.setdefault(stream, Truth()).present[row.id] = row
    for stream, row in taken:
        truths.setdefault(stream, Truth()).taken[row.id] = row
    ledger = {}
    for message, stream, id in cluster.sql(_LEDGER):
        ledger[message] = stream
        truth = truths.setdefault(stream, Truth())
        if stream in SHORT and id is not None and id not in truth.present and id not in truth.taken:
            truth.pruned[id] = Row(id, message)
    return truths, ledger
