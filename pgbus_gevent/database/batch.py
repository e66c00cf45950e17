"""Publishes messages of several streams in one statement, and so in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class Outgoing(NamedTuple):
    """One message to publish: the arguments of a broadcast, already checked."""

    stream: str
    data: str
    event: str | None = None
    visible_to: str | None = None
    exclude: str | None = None
    ephemeral: bool = False


# broadcast_on_commit() queues the messages. The commit then locks the streams in one order, so that two batches cannot deadlock.
STATEMENT = """
select case when m.ephemeral then pgbus.broadcast_ephemeral(m.stream, m.data, m.event, m.visible_to, m.exclude)
            else pgbus.broadcast_on_commit(m.stream, m.data, m.event, m.visible_to, m.exclude) end
from unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::boolean[])
  with ordinality as m(stream, data, event, visible_to, exclude, ephemeral, n)
order by m.n
"""


def parameters(messages: Sequence[Outgoing]) -> tuple[list[Any], ...]:
    """Return the statement's parameters for these messages."""
    return tuple(list(column) for column in zip(*messages, strict=True))
