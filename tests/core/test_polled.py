"""The answer to a poll, made of the frames that a stream would have sent."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgbus_gevent.core import sse
from pgbus_gevent.core.cursor import composite_id
from pgbus_gevent.core.polled import FULL, Polled, refused

HELLO = sse.connected(
    "c0ffee", [sse.StreamStart("orders", 7, 9, "a.b.c")], retry_after=2.0, heartbeat=15.0, identity="a.b.c"
)
GAP = sse.gap_detected("orders", requested=5, oldest=8, last=9, reason="expired")


def answered(
    greeting: bytes, *parts: bytes, streams: Any = ("orders",), cursors: Any = (9,), farewell: bytes = b""
) -> Any:
    polled = Polled()
    for part in parts:
        polled.add(part)
    return json.loads(polled.answer(streams, cursors, greeting, farewell))


def test_an_answer_has_the_messages_the_cursor_and_the_facts_of_the_connection() -> None:
    stored = sse.message("a\nb", event="order.paid", id=8) + sse.message("", id=9)
    assert answered(HELLO, stored, sse.message("hint")) == {
        "messages": [
            {"id": 8, "event": "order.paid", "data": "a\nb", "stream": "orders"},
            {"id": 9, "event": None, "data": "", "stream": "orders"},
            {"id": None, "event": None, "data": "hint", "stream": "orders"},
        ],
        "cursor": 9,
        "events": [],
        "connectionId": "c0ffee",
        "heartbeat": 15,
        "identity": "a.b.c",
        "streams": [{"name": "orders", "lastId": 9}],
    }


def test_events_of_the_server_say_after_how_many_messages_they_came() -> None:
    found = answered(HELLO, GAP, sse.message("x", id=8), sse.identified("d", [("orders", "d")]))
    assert [(event["event"], event["after"]) for event in found["events"]] == [
        ("pgbus:gap-detected", 0),
        ("pgbus:identity", 1),
    ]
    assert found["events"][0]["data"]["reason"] == "expired"
    assert "retry" not in found


def test_a_farewell_comes_last_and_tells_when_to_come_back() -> None:
    found = answered(HELLO, sse.message("x", id=8), farewell=sse.shutdown("restart", 3.5))
    assert found["events"] == [{"event": "pgbus:shutdown", "data": {"reason": "restart"}, "after": 1}]
    assert found["retry"] == 3500


def test_messages_of_several_streams_have_their_own_ids_and_the_cursor_holds_all() -> None:
    parts = [
        sse.message("x", id=composite_id(1, [5, 8])),
        sse.of_stream(sse.message("hint", event="e"), 1),
        sse.message("y", id=composite_id(0, [9, 8])),
        sse.of_stream(sse.message("first"), 0),
    ]
    found = answered(HELLO, *parts, streams=["a", "b"], cursors=[9, 8])
    assert [(each["stream"], each["id"], each["data"]) for each in found["messages"]] == [
        ("b", 8, "x"),
        ("b", None, "hint"),
        ("a", 9, "y"),
        ("a", None, "first"),
    ]
    assert found["cursor"] == "0~9.8"


def test_only_messages_and_gaps_are_worth_an_answer() -> None:
    polled = Polled()
    assert not polled.add(sse.identified("d", []))
    assert polled.add(sse.message("x", id=1))
    assert polled.add(GAP)
    assert polled.add(GAP + sse.message("x", id=1))


def test_an_answer_is_full_at_a_number_of_bytes() -> None:
    polled = Polled()
    polled.add(sse.message("x" * (FULL // 2), id=1))
    assert not polled.full
    polled.add(sse.message("x" * (FULL // 2), id=2))
    assert polled.full
    polled.answer(["orders"], [2], HELLO)
    assert not polled.full


@pytest.mark.parametrize(
    "reason, status, retry",
    [
        ("overloaded", 503, 7),
        ("unavailable", 503, 7),
        ("restart", 503, 7),
        ("too-many-connections", 429, 7),
        ("expired", 403, None),
        ("revoked", 403, None),
    ],
)
def test_a_poll_without_a_cursor_is_refused_with_a_status(reason: str, status: int, retry: int | None) -> None:
    assert refused(sse.shutdown(reason, 7.2)) == (status, f"not now: {reason}", retry)


_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
_EVENT = st.none() | st.sampled_from(["e", "order.paid", "é", "data", "pgbus", "event: pgbus:x"])


@given(st.lists(st.lists(st.tuples(_EVENT, _TEXT), min_size=1, max_size=4), max_size=4), st.integers(1, 3))
def test_any_message_comes_out_as_it_went_in(sends: list[list[tuple[str | None, str]]], streams: int) -> None:
    names, cursors, parts, expected, last = [f"s{n}" for n in range(streams)], [0] * streams, [], [], 0
    for send in sends:
        part = b""
        for event, data in send:
            last += 1
            index = last % streams
            cursors[index] = last
            part += sse.message(data, event=event, id=last if streams == 1 else composite_id(index, cursors))
            plain = data.replace("\r\n", "\n").replace("\r", "\n")
            expected.append({"id": last, "event": event, "data": plain, "stream": names[index]})
        parts.append(part)
    assert answered(HELLO, *parts, streams=names, cursors=cursors)["messages"] == expected
