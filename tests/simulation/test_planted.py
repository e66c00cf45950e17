"""The edits that plant faults fit the product, and are taken back."""

from __future__ import annotations

import pytest

from pgbus_gevent.core.tail import Tail
from tests.simulation.planted import Edit, Fault, planted
from tests.simulation.planted.faults import FAULTS

SOME_HOLE = Fault("some", "", (Edit("pgbus_gevent.core.tail:Tail.holes", "return list(self._holes)", "return [7]"),))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_can_be_planted(fault: Fault) -> None:
    with planted(fault):
        pass


def test_a_fault_changes_the_product_while_it_is_planted() -> None:
    with planted(SOME_HOLE):
        assert Tail().holes(0.0) == [7]
    assert Tail().holes(0.0) == []


def test_an_edit_that_does_not_fit_is_an_error() -> None:
    other = SOME_HOLE._replace(edits=(SOME_HOLE.edits[0]._replace(old="return set(self._holes)"),))
    with pytest.raises(ValueError, match="exactly once"), planted(other):
        pass
