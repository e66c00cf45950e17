"""Messages of any streams that are published together, in one statement and so in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class Outgoing(NamedTuple):
    """One of them; the arguments of a broadcast, checked already."""

    stream: str
    data: str
    event: str | None = None
    visible_to: str | None = None
    exclude: str | None = None
    ephemeral: bool = False


# At the commit the streams are locked in the order of their locks, and the messages of each appended as a set.
STATEMENT = """
select case when m.ephemeral then pgbus.broadcast_ephemeral(m.stream, m.data, m.event, m.visible_to, m.exclude)
            else pgbus.broadcast_on_commit(m.stream, m.data, m.event, m.visible_to, m.exclude) end
from unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::boolean[])
  with ordinality as m(stream, data, event, visible_to, exclude, ephemeral, n)
order by m.n
"""


def parameters(messages: Sequence[Outgoing]) -> tuple[list[Any], ...]:
    """Those of the statement."""
    return tuple(list(column) for column in zip(*messages, strict=True))
