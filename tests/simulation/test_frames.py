"""The bytes of a worker are read as a client reads them."""

from __future__ import annotations

from pgbus_gevent.core import sse
from tests.simulation.frames import read


def test_messages_have_cursors_and_ends() -> None:
    first, second = sse.message("a\nb", event="e", id=7), sse.message("c", id=8)
    found = read(first + second)
    assert [(event.name, event.data, event.cursors) for event in found] == [("e", "a\nb", (7,)), ("", "c", (8,))]
    assert [event.end for event in found] == [len(first), len(first + second)]


def test_an_id_with_several_cursors_names_its_stream() -> None:
    (event,) = read(sse.message("a", id="1~5.6"))
    assert (event.place, event.cursors) == (1, (5, 6))


def test_an_ephemeral_message_has_no_cursor_and_may_name_its_stream() -> None:
    (event,) = read(sse.of_stream(sse.message("a"), 2))
    assert (event.place, event.cursors, event.is_control) == (2, (), False)


def test_heartbeats_are_no_events() -> None:
    assert read(sse.heartbeat(5.0)) == []
    (event,) = read(sse.heartbeat(5.0) + sse.shutdown("restart", 2.0))
    assert event.is_control
