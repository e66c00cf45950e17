"""Payloads of notifications, also forged ones, become wakes."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgbus_gevent.core import sse
from pgbus_gevent.core.frames import encode
from pgbus_gevent.core.wakes import Ephemeral, Moved, NewMessage, Wake, parse
from pgbus_gevent.messages import MAX_ID

MESSAGE = ["message", "orders", 20, 10, 1764000000.25, "paid", "a\r\nb", "admins", "c0ffee"]
EPHEMERAL = ["ephemeral", "orders", 5, "note", "x", "admins", "c0ffee"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values) | st.dictionaries(st.text(), values),
    max_leaves=12,
)
# Payloads that are almost valid find more bugs than random ones.
KINDS = st.sampled_from(["message", "ephemeral", "large", "moved"])
ALMOST = st.builds(lambda kind, rest: [kind, *rest], KINDS, st.lists(JSON, max_size=9))


def check(wake: Wake) -> None:
    """Do with a wake everything that the listener does."""
    if isinstance(wake, NewMessage):
        assert hash(wake.stream) is not None
        assert 0 <= wake.id <= MAX_ID
        assert wake.prev_id is None or wake.prev_id < MAX_ID + 1
        assert wake.created_at is None or math.isfinite(wake.created_at)
        assert encode(wake).data
    elif isinstance(wake, Ephemeral):
        assert hash((wake.stream, wake.number, wake.visible_to, wake.exclude)) is not None
        assert sse.message(wake.data or "", event=wake.event)
    else:
        assert wake.streams is None or all(isinstance(name, str) for name in wake.streams)


def test_a_notification_can_carry_the_whole_message() -> None:
    assert parse(json.dumps(MESSAGE)) == NewMessage(
        "orders", 20, 10, 1764000000.25, "paid", "a\r\nb", "admins", "c0ffee"
    )


def test_a_message_may_have_nothing_but_its_data() -> None:
    wake = parse(json.dumps(["message", "orders", 20, None, 0, None, "", None, None]))
    assert wake == NewMessage("orders", 20, None, 0.0, None, "", None, None)


def test_a_message_may_have_a_trace() -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    wake = parse(json.dumps([*MESSAGE, trace]))
    assert isinstance(wake, NewMessage) and wake.trace == trace


@pytest.mark.parametrize("time", [float("nan"), float("inf"), float("-inf")])
def test_a_time_that_is_none_does_not_count(time: float) -> None:
    wake = parse(changed(MESSAGE, 4, time))
    assert isinstance(wake, NewMessage)
    assert wake.created_at is None


def test_an_ephemeral_message_comes_whole_or_as_a_number() -> None:
    assert parse(json.dumps(EPHEMERAL)) == Ephemeral("orders", 5, "note", "x", "admins", "c0ffee")
    assert parse('["large", "orders", 5]') == Ephemeral("orders", 5, None, None, None, None)


def test_streams_that_moved_are_named_if_they_are_few() -> None:
    assert parse('["moved", "orders", "é"]') == Moved(["orders", "é"])
    assert parse('["moved"]') == Moved(None)


@given(payload=st.text())
def test_any_text_is_a_wake(payload: str) -> None:
    check(parse(payload))


@pytest.mark.slow
@given(value=JSON | ALMOST)
def test_any_json_is_a_wake(value: Any) -> None:
    check(parse(json.dumps(value)))


@pytest.mark.slow
@given(template=st.sampled_from([MESSAGE, EPHEMERAL]), place=st.integers(1, 8), value=JSON)
def test_one_invalid_part_does_no_harm(template: list[Any], place: int, value: Any) -> None:
    changed = list(template)
    changed[place % len(template)] = value
    check(parse(json.dumps(changed)))


def changed(template: list[Any], place: int, value: Any) -> str:
    return json.dumps([*template[:place], value, *template[place + 1 :]])


@pytest.mark.parametrize(
    "payload",
    [
        "",
        "wake up",
        "5",
        "[]",
        '{"message": 1}',
        '"moved"',
        '["moved", 5]',
        '["moved", ""]',
        '["large", "orders"]',
        '["large", "orders", "5"]',
        json.dumps([*MESSAGE, "no trace"]),
        json.dumps([*MESSAGE, None, None]),
        json.dumps(MESSAGE[:-1]),
        changed(MESSAGE, 1, ["orders"]),
        changed(MESSAGE, 1, ""),
        changed(MESSAGE, 1, "a\nb"),
        changed(MESSAGE, 2, "20"),
        changed(MESSAGE, 2, True),
        changed(MESSAGE, 2, 20.0),
        changed(MESSAGE, 2, -20),
        changed(MESSAGE, 2, 2**53),
        changed(MESSAGE, 3, "10"),
        changed(MESSAGE, 4, 10**400),
        changed(MESSAGE, 4, "5"),
        changed(MESSAGE, 4, "NaN"),
        changed(MESSAGE, 4, True),
        changed(MESSAGE, 5, "paid\nid: 7"),
        changed(MESSAGE, 5, "pgbus:shutdown"),
        changed(MESSAGE, 5, 5),
        changed(MESSAGE, 6, None),
        changed(MESSAGE, 6, "\ud800"),
        changed(MESSAGE, 7, ["admins"]),
        changed(MESSAGE, 8, {}),
        changed(EPHEMERAL, 1, {}),
        changed(EPHEMERAL, 2, None),
        changed(EPHEMERAL, 3, "note\r"),
        changed(EPHEMERAL, 4, None),
        "[" * 7000,
        '["moved", ' + "[" * 3000 + "]" * 3001,
        '["message", ' + "9" * 7000 + "]",
    ],
    ids=lambda payload: ascii(payload[:60]),
)
def test_a_payload_that_cannot_be_read_means_that_some_streams_moved(payload: str) -> None:
    assert parse(payload) == Moved(None)
