"""Frames, read by the parser of httpx-sse."""

from __future__ import annotations

import json
import re

import pytest
from httpx_sse._decoders import SSEDecoder, SSELineDecoder
from httpx_sse._models import ServerSentEvent
from hypothesis import given
from hypothesis import strategies as st

from pgbus_gevent.core import sse

BREAKS = st.sampled_from(
    ["\r\n", "\r", "\n", "\n\r", "\r\r\n", "\u2028", "\u2029", "\x0b", "\x0c", "\x85", "\x1c", ":", " "]
)
TEXT = st.lists(st.one_of(st.text(), BREAKS)).map("".join)
EVENTS = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]))


def decode(stream: bytes, sizes: list[int] | None = None) -> list[ServerSentEvent]:
    """Return the events of a stream that arrives in pieces of these sizes."""
    text = stream.decode()
    pieces = []
    for size in sizes or []:
        pieces.append(text[:size])
        text = text[size:]
    lines, decoder = SSELineDecoder(), SSEDecoder()
    found = [decoder.decode(line) for piece in [*pieces, text] if piece for line in lines.decode(piece)]
    assert lines.flush() == []
    return [event for event in found if event is not None]


def one(stream: bytes) -> ServerSentEvent:
    [event] = decode(stream)
    return event


@given(data=TEXT, event=EVENTS, id=st.none() | st.integers(1, 2**53 - 1), sizes=st.lists(st.integers(1, 20)))
def test_a_message_comes_back_from_a_parser_as_it_was(data: str, event: str, id: int | None, sizes: list[int]) -> None:
    [received] = decode(sse.message(data, event=event, id=id), sizes)
    assert received.data == re.sub("\r\n|\r|\n", "\n", data)
    assert received.event == (event or "message")
    assert received.id == ("" if id is None else str(id))
    assert received.retry is None


@given(first=TEXT, second=TEXT)
def test_a_frame_ends_before_the_next_begins(first: str, second: str) -> None:
    received = decode(sse.message(first, id=1) + sse.message(second, id=2))
    assert [event.id for event in received] == ["1", "2"]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\x85"])
def test_a_separator_that_only_python_takes_for_a_line_break_stays_in_the_line(separator: str) -> None:
    assert sse.message(f"a{separator}b") == f"data: a{separator}b\n\n".encode()


@pytest.mark.parametrize("line_break", ["\r\n", "\r", "\n"])
def test_every_line_of_data_has_its_own_field(line_break: str) -> None:
    assert sse.message(f"a{line_break}b", id=7) == b"data: a\ndata: b\nid: 7\n\n"


def test_a_message_without_an_event_has_no_event_line() -> None:
    assert sse.message("x", event="", id=7) == sse.message("x", id=7) == b"data: x\nid: 7\n\n"


def test_a_message_without_an_id_has_no_id_line() -> None:
    assert sse.message("x", event="note") == b"event: note\ndata: x\n\n"


def test_empty_data_is_still_a_message() -> None:
    assert one(sse.message("", id=7)).data == ""


def test_a_leading_space_of_the_data_is_kept() -> None:
    assert one(sse.message(" x\n  y")).data == " x\n  y"


def test_a_heartbeat_is_a_comment_alone_and_no_event() -> None:
    assert sse.heartbeat(1764000000.9) == b": heartbeat 1764000000\n"
    assert decode(sse.heartbeat(1.0) * 3) == []
    assert one(sse.heartbeat(1.0) + sse.message("x")).data == "x"


def test_retry_is_in_milliseconds() -> None:
    assert sse.retry(1.2345) == b"retry: 1234\n"


@given(value=st.dictionaries(st.text(), st.text() | st.integers() | st.none()), name=st.sampled_from(["a", "gap-x"]))
def test_a_control_frame_is_one_json_line_without_an_id(value: dict[str, object], name: str) -> None:
    frame = sse.control(name, value)
    assert (one(frame).event, json.loads(one(frame).data)) == (f"pgbus:{name}", value)
    assert not re.search(rb"^id", frame, re.MULTILINE)
    assert frame.count(b"\n") == 3


def test_the_frame_of_a_connection_names_it_and_its_streams() -> None:
    opened = [sse.StreamStart("orders", 3, 5, "a..1"), sse.StreamStart("é", 0, 0, "a..2")]
    frame = one(sse.connected("ab12", opened, retry_after=2.0, heartbeat=0.5, identity="a..1"))
    assert (frame.event, frame.retry, frame.id) == ("pgbus:connected", 2000, "0~3.0")
    streams = [{"name": "orders", "lastId": 5}, {"name": "é", "lastId": 0, "identity": "a..2"}]
    assert json.loads(frame.data) == {"connectionId": "ab12", "heartbeat": 0.5, "identity": "a..1", "streams": streams}


def test_the_first_frame_is_one_block_and_its_id_is_the_starting_cursor() -> None:
    assert sse.connected("ab12", [sse.StreamStart("orders", 3, 5)], retry_after=2.0, heartbeat=15.0) == (
        b"retry: 2000\n"
        b": pgbus open stream=orders since=3\n"
        b"event: pgbus:connected\n"
        b'data: {"connectionId":"ab12","heartbeat":15,"identity":null,"streams":[{"name":"orders","lastId":5}]}\n'
        b"id: 3\n\n"
    )


@given(data=TEXT, event=EVENTS, id=st.integers(1, 2**53 - 1))
def test_a_message_readdressed_is_the_same_with_another_id(data: str, event: str, id: int) -> None:
    frame = sse.message(data, event=event, id=id)
    assert sse.readdressed(frame, "1~5.7") == sse.message(data, event=event, id="1~5.7")


def test_the_frame_of_a_gap_names_the_ids_between_which_messages_are_gone() -> None:
    frame = one(sse.gap_detected("orders", requested=5, oldest=90, last=120, reason="expired"))
    assert frame.event == "pgbus:gap-detected"
    told = {"stream": "orders", "requestedId": 5, "oldestId": 90, "lastId": 120, "reason": "expired"}
    assert json.loads(frame.data) == told


def test_the_last_frame_has_the_time_to_come_back_before_it() -> None:
    assert sse.shutdown("revoked") == b'event: pgbus:shutdown\ndata: {"reason":"revoked"}\n\n'
    assert sse.shutdown("restart", 1.5) == b"retry: 1500\n" + sse.shutdown("restart")
