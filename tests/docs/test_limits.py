"""The page of limits has the values of the code. Whoever changes a limit has to change the page."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from pgbus_gevent.settings.table import entries

pytestmark = pytest.mark.docs

ROOT = Path(__file__).parents[2]
PAGE = "docs/operations/limits.md"
UNITS = {"bytes": 1, "kB": 1024, "MB": 1024**2, "GB": 1024**3, "s": 1, "minute": 60, "hour": 3600, "hours": 3600}
UNITS |= {"days": 86400, "characters": 1}
ELSEWHERE = {"PostgreSQL", "PostgreSQL: `max_notify_queue_pages`", "the system", "by design"}
"""What sets a limit that is not ours."""


EXPRESSIONS = {
    "name of a stream, in SQL": "database/sql/0001_messages.sql: octet_length(stream) between 1 and 255",
    "idempotency key, in SQL": "database/sql/0001_messages.sql: octet_length(key) between 1 and 1000",
    "a message within its notification": "database/sql/0008_tracing.sql: octet_length(payload) <= 7900",
    "locks of streams": "database/sql/0001_messages.sql: share 2048",
    "large ephemeral messages are kept for": "database/sql/0002_publishing.sql: interval '1 minute'",
    "secrets and tokens": "settings/table.py: kinds.secrets(16)",
}
"""Where a limit is that is no constant."""


class Row(NamedTuple):
    """A row of the page."""

    limit: str
    value: str
    beyond: str
    set_by: str

    @property
    def source(self) -> str:
        """The setting, or the file with the constant, or with the expression."""
        return EXPRESSIONS.get(self.limit, self.set_by.strip("`"))


def rows() -> list[Row]:
    lines = (ROOT / PAGE).read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return [Row(*each) for each in cells if each[0] not in ("limit", "---")]


def number(value: str) -> float:
    """Return the number that a cell names: ``1,000``, ``32 kB``, ``at least 16 characters``, ``0 (none)``."""
    if value == "none":
        return 0
    found = re.fullmatch(r"(?:at least )?([\d.,]+)(?: (\w+))?(?: a second)?(?: \(none\))?", value)
    assert found, f"{value!r} is no number with a unit"
    return float(found[1].replace(",", "")) * UNITS.get(found[2], 1)


def in_code(source: str) -> float:
    """Return the value of a setting, of a constant, or of the last number in an expression of a file."""
    path, _, what = source.partition(": ")
    if not what:
        return float(entries()[path].default or 0)
    if re.fullmatch(r"[A-Z_]+", what):
        module = importlib.import_module(f"pgbus_gevent.{path.removesuffix('.py').replace('/', '.')}")
        return float(getattr(module, what))
    assert what in (ROOT / "pgbus_gevent" / path).read_text(encoding="utf-8"), f"{path} has no {what!r} any more"
    return float(re.findall(r"\d+", what)[-1]) * (60 if "minute" in what else 1)


def test_the_limits_of_the_page_are_those_of_the_code() -> None:
    ours = [row for row in rows() if row.set_by not in ELSEWHERE]
    shown = {(row.limit, row.source): number(row.value) for row in ours}
    assert shown == {(row.limit, row.source): in_code(row.source) for row in ours}, f"correct {PAGE}"


def test_each_setting_that_limits_something_is_on_the_page() -> None:
    limits = {name for name, entry in entries().items() if entry.metadata["group"] == "Limits"}
    limits |= {name for name in entries() if re.match(r"max_|.*_(?:timeout|size|deadline)$", name)}
    assert limits <= {row.source for row in rows()}


def test_each_expression_is_in_the_file_that_its_row_names() -> None:
    named = {row.limit: row.set_by.strip("`") for row in rows()}
    for limit, source in EXPRESSIONS.items():
        assert source.partition(": ")[0].endswith(named[limit])


def test_each_row_says_what_happens_beyond_it() -> None:
    assert len(rows()) > 50
    assert [row.limit for row in rows() if not (row.value and row.set_by and row.beyond)] == []
