"""The plan has as many clients as were asked for, and one faulty client of each kind."""

from __future__ import annotations

import random

import pytest

from pgbus_gevent.testing.chaos.faulty import KINDS
from pgbus_gevent.testing.chaos.hooks import entitled
from pgbus_gevent.testing.chaos.plan import BROWSER, make_plan
from pgbus_gevent.testing.chaos.publishing import STREAMS


@pytest.mark.parametrize("clients", [4, 100, 101])
def test_each_client_has_its_number_and_there_is_one_faulty_client_of_each_kind(clients: int) -> None:
    plan = make_plan(random.Random(1), clients, 2)
    assert [place.number for place in plan] == list(range(clients + len(KINDS)))
    assert [place.kind for place in plan[clients - 2 :]] == [BROWSER, BROWSER, *KINDS]
    assert not any(place.kind for place in plan[: clients - 2])


def test_two_hundred_clients_watch_all_streams() -> None:
    assert {stream for place in make_plan(random.Random(1), 200, 0) for stream in place.streams} == set(STREAMS)


@pytest.mark.parametrize("clients", [100, 101])
def test_the_client_that_gets_forbidden_messages_is_permitted_more_than_the_judge_believes(clients: int) -> None:
    user = make_plan(random.Random(1), clients, 0)[-1].user
    assert entitled(user, "odd") and not entitled(user + 1, "odd")
