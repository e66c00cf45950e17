"""The hop between an edge and its origin: rows have the columns that each release of this version of the hop reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

from pgbus_gevent.core import hop
from pgbus_gevent.core.rows import Opening, OpenQuestion, PageRows, Row

ROW = Row(7, "paid", "x", None, None, 6, 1764000000.25, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")


class Source:
    """Has one message of each stream."""

    def pages(self, after: Sequence[tuple[str, int]], *, limit: int, size: int) -> list[PageRows]:
        return [PageRows([ROW], 0, False) for _ in after]

    def openings(self, questions: Sequence[OpenQuestion], *, limit: int, size: int) -> list[Opening]:
        return [Opening(7, 0, 7, 0, 0, [ROW]) for _ in questions]


def answered(read: dict[str, Any]) -> Any:
    return json.loads(hop.written(hop.answer(cast(hop.Source, Source()), {"limit": 10, "size": 1000, **read})))


def test_neither_time_nor_trace_of_a_message_goes_to_an_edge() -> None:
    pages = answered({"read": "pages", "of": [["orders", 0]]})
    openings = answered({"read": "openings", "of": [["orders", 0, None]]})
    assert [page[0] for page in pages] == [opening[-1] for opening in openings] == [[[7, "paid", "x", None, None, 6]]]
    assert hop.pages(pages, 1)[0].rows == hop.openings(openings, 1)[0].rows == [Row(*ROW[:6])]
