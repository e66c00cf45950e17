"""Every fault says what it does."""

from __future__ import annotations

import re

from pgbus_gevent.testing.chaos.register import FAULTS


def test_every_fault_has_a_description_of_one_sentence_or_two() -> None:
    assert len(FAULTS) > 40
    assert [fault.name for fault in FAULTS.values() if not re.fullmatch(r"[A-Z].{15,160}\.", fault.description)] == []
