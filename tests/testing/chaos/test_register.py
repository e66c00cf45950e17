"""Every fault says what it does, and has its row on the page that has the figures."""

from __future__ import annotations

import re
from pathlib import Path

from pgbus_gevent.testing.chaos.register import FAULTS

PAGE = (Path(__file__).parents[3] / "docs/reliability.md").read_text(encoding="utf-8")


def test_every_fault_has_a_description_of_one_sentence_or_two() -> None:
    assert len(FAULTS) > 40
    assert [fault.name for fault in FAULTS.values() if not re.fullmatch(r"[A-Z].{15,160}\.", fault.description)] == []


def test_every_fault_is_on_the_page() -> None:
    assert [name for name in FAULTS if f"| `{name}` |" not in PAGE] == []
