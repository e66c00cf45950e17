"""Collects from the database what was committed."""

from __future__ import annotations

from .journal import payload_of
from .judge import Loss, Row, Truth
from .postgres import Cluster
from .publishing import SHORT, STREAMS

_AFTER = (
    "select msg_id, data, visible_to, exclude from pgbus.messages where stream = %s and msg_id > %s order by msg_id"
)
_LEDGER = "select message, stream, msg_id from chaos.ledger"
_OVERLAP = 10_000_000
"""How far below the newest id that is known the next look begins: ten seconds, in microseconds. Ids follow the order of the
commits, and this would find one that did not."""


def row_of(id: int, data: str, visible_to: str | None, exclude: str | None) -> Row:
    """Return a row from the columns of pgbus.messages."""
    return Row(id, payload_of(data)[0], visible_to, exclude)


class Ledger:
    """All messages that were ever seen in the table. It has to look more often than messages are pruned."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[int, Row]] = {stream: {} for stream in STREAMS}
        self._heads = dict.fromkeys(STREAMS, 0)

    def look(self, cluster: Cluster) -> None:
        """Read what is new."""
        for stream, head in self._heads.items():
            rows = [row_of(*columns) for columns in cluster.sql(_AFTER, stream, head - _OVERLAP)]
            self._rows[stream].update((row.id, row) for row in rows)
            self._heads[stream] = max((row.id for row in rows), default=head)

    def truth(self, cluster: Cluster, losses: list[Loss]) -> tuple[dict[str, Truth], dict[int, str]]:
        """Return the truth of each stream, and the stream of each message in the table ``chaos.ledger``.

        What was seen before, is not in the table any more, and was not taken along in ``losses``, was pruned. The messages of the
        stream that is pruned after seconds are known by ``chaos.ledger``.
        """
        truths = {}
        for stream, seen in self._rows.items():
            truth = truths[stream] = Truth()
            truth.present = {row.id: row for row in (row_of(*one) for one in cluster.sql(_AFTER, stream, 0))}
            for loss in losses:
                taken = {row.id: row for where, row in loss.taken if where == stream}
                truth.taken.update(taken)
                if taken:
                    truth.losses.append(loss.at)
            gone = seen.keys() - truth.present.keys() - truth.taken.keys()
            truth.pruned = {id: seen[id] for id in gone}
        ledger = {}
        for message, stream, id in cluster.sql(_LEDGER):
            ledger[message] = stream
            truth = truths[stream]
            if stream in SHORT and id is not None and truth.row(id) is None:
                truth.pruned[id] = Row(id, message)
        return truths, ledger
