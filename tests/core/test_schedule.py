"""A client is in one slot of the schedule, and comes out of it when it is due."""

from __future__ import annotations

import pytest
from streamer_parts import FakeClient

from pgbus_gevent.core.schedule import Schedule


@pytest.fixture
def schedule() -> Schedule:
    return Schedule(0.5)


def test_a_client_is_due_at_its_time_or_up_to_one_tick_later(schedule: Schedule) -> None:
    client = FakeClient()
    schedule.put(client, 1.1)
    assert list(schedule.due(1.4)) == []
    assert list(schedule.due(1.5)) == [client]
    assert list(schedule.due(9.0)) == []
    assert len(schedule) == 0


def test_a_client_that_is_put_for_a_time_that_is_over_is_due_in_the_next_slot(schedule: Schedule) -> None:
    client = FakeClient()
    assert list(schedule.due(10.0)) == []
    schedule.put(client, 3.0)
    assert list(schedule.due(10.4)) == []
    assert list(schedule.due(10.5)) == [client]


def test_a_client_is_in_the_slot_of_its_last_put_only(schedule: Schedule) -> None:
    client = FakeClient()
    schedule.put(client, 1.0)
    schedule.put(client, 2.0)
    assert len(schedule) == 1
    assert list(schedule.due(1.5)) == []
    assert list(schedule.due(2.0)) == [client]


def test_a_client_that_is_added_again_loses_its_slot(schedule: Schedule) -> None:
    client = FakeClient()
    schedule.put(client, 1.0)
    schedule.add(client)
    assert list(schedule.new) == [client]
    assert len(schedule) == 1
    assert list(schedule.due(5.0)) == []
    schedule.put(client, 6.0)
    assert list(schedule.new) == []


def test_a_client_that_is_removed_is_not_due(schedule: Schedule) -> None:
    new, put, other = FakeClient("1"), FakeClient("2"), FakeClient("3")
    schedule.add(new)
    schedule.put(put, 1.0)
    schedule.put(other, 1.0)
    for client in (new, put, put):
        schedule.remove(client)
    assert list(schedule.new) == []
    assert list(schedule.due(1.0)) == [other]


def test_a_client_that_is_removed_while_others_are_being_checked_is_not_due(schedule: Schedule) -> None:
    clients = [FakeClient(str(n)) for n in range(3)]
    for client in clients:
        schedule.put(client, 1.0)
    due = schedule.due(1.0)
    first = next(due)
    others = [client for client in clients if client is not first]
    schedule.remove(others[0])
    schedule.put(first, 2.0)
    assert list(due) == [others[1]]
    assert list(schedule.due(2.0)) == [first]
