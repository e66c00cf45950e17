"""The console's two tables: rows of streams and connections, filtered, sorted and paged here, so that ten thousand stay quick."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from time import monotonic
from typing import Any, NamedTuple, TypeVar

from ..core.board import Board
from ..core.client import Client
from ..core.stream_counter import Counts
from ..streamer.turns import breathe

ROWS = 15
"""Rows of a page."""

_SLICE = 500  # rows that are made before everything else of the process has a turn
_SHORTEST, _LONGEST = 1.5, 10.0  # seconds over which rates are measured

T = TypeVar("T")
Row = dict[str, Any]


class Wanted(NamedTuple):
    """Which part of a table: the column that it is sorted by, which way, what rows must have in them, and the page from 0."""

    sort: str
    down: bool
    text: str
    page: int


STREAM_COLUMNS = ("name", "readers", "behind", "rate", "messages", "head", "ring")
CONNECTION_COLUMNS = ("id", "streams", "owner", "address", "age", "bytes", "lag", "state")


class Tables:
    """Of one worker. The methods give way where there are many rows."""

    def __init__(self, board: Board, clock: Callable[[], float] = monotonic) -> None:
        self._board = board
        self._registry = board.registry
        self._counter = board.counter
        self._clock = clock
        # What each stream had counted when somebody last looked.
        self._counted: deque[tuple[float, dict[str, Counts]]] = deque()

    def streams(self, wanted: Wanted) -> dict[str, Any]:
        """A page of the streams that somebody is connected to."""
        counts, rate = self._counter.streams, self._rates()
        text = wanted.text.casefold()
        names = [name for name in counts if text in name.casefold()]
        # Who is behind takes a look at each reader, so it is left for the rows that are shown, if it can be.
        by_all = wanted.sort == "behind"
        rows = [self._stream(name, counts[name], rate, by_all) for name in _in_slices(names)]
        page = _page([row for row in rows if row is not None], len(counts), wanted)
        for row in page["rows"]:
            row["behind"] = self._behind(row["name"])
        return page

    def _stream(self, name: str, counts: Counts, rate: Callable[[str], float], behind: bool) -> Row | None:
        log = self._registry.log(name)
        if log is None:
            return None  # the last one left while others were looked at
        return {
            "name": name,
            "readers": counts.active_connections,
            "behind": self._behind(name) if behind else 0,
            "rate": rate(name),
            "messages": counts.broadcasts,
            "head": log.head,
            "ring": log.missing(0),
        }

    def _behind(self, name: str) -> int:
        return sum(each.cursor is None or each.cursor < each.log.head for each in self._registry.subscriptions(name))

    def _rates(self) -> Callable[[str], float]:
        """Messages a second of a stream, as of the last seconds in which somebody looked."""
        now, counts = self._clock(), self._counter.streams
        while len(self._counted) > 1 and now - self._counted[0][0] > _LONGEST:
            self._counted.popleft()
        if not self._counted or now - self._counted[-1][0] >= _SHORTEST:
            self._counted.append((now, counts))
        since, before = self._counted[0]
        seconds = now - since

        def rate(name: str) -> float:
            if seconds <= 0 or name not in before:
                return 0.0
            # One that nobody watched for a moment has begun to count anew.
            return max(0, counts[name].broadcasts - before[name].broadcasts) / seconds if name in counts else 0.0

        return rate

    def connections(self, wanted: Wanted) -> dict[str, Any]:
        """A page of the connections."""
        clients, now = self._registry.clients(), self._clock()
        text = wanted.text.casefold()
        rows = [self._connection(client, now) for client in _in_slices(clients) if not text or _has(client, text)]
        return _page(rows, len(clients), wanted)

    def _connection(self, client: Client, now: float) -> Row:
        places = client.subscriptions
        blocked = client.blocked_since
        lag = sum(
            each.log.missing(each.cursor) for each in places if each.cursor is not None and each.cursor < each.log.head
        )
        state = (
            "blocked" if blocked is not None
            else "starting" if not client.admitted
            else "replay" if any(each in self._board.waiting(each.log) for each in places)
            else "behind" if lag
            else "live"
        )  # fmt: skip
        return {
            "id": client.id,
            "streams": [each.log.name for each in places[:3]],
            "more": max(0, len(places) - 3),
            "owner": client.owner or "",
            "address": client.address,
            "age": round(now - client.opened_at, 1),
            "bytes": client.bytes_sent,
            "lag": lag,
            "state": state,
            "blocked": None if blocked is None else round(now - blocked, 1),
        }


def _has(client: Client, text: str) -> bool:
    given = (client.id, client.owner or "", client.address, *(each.log.name for each in client.subscriptions))
    return any(text in part.casefold() for part in given)


def _in_slices(things: Iterable[T]) -> Iterator[T]:
    for n, thing in enumerate(things, 1):
        if n % _SLICE == 0:
            breathe()
        yield thing


def _page(rows: list[Row], total: int, wanted: Wanted) -> dict[str, Any]:
    rows.sort(key=itemgetter(wanted.sort), reverse=wanted.down)
    pages = max(1, -(-len(rows) // ROWS))
    page = min(wanted.page, pages - 1)
    shown = rows[page * ROWS : (page + 1) * ROWS]
    return {"total": total, "matched": len(rows), "page": page, "pages": pages, "rows": shown}
