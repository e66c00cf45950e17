"""The event-stream parser, compared with httpx_sse's, and in corner cases with the text of the WHATWG."""

from __future__ import annotations

from itertools import pairwise
from time import process_time

import pytest
from httpx_sse._decoders import SSEDecoder, SSELineDecoder
from hypothesis import example, given
from hypothesis import strategies as st

from pgbus_gevent.core import sse
from pgbus_gevent.core.sse_parser import ParsedFrame, Parser

LINE_ENDS = st.sampled_from(["\n", "\r", "\r\n"])
VALUES = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12)
NAMES = st.sampled_from(["data", "event", "id", "retry", "", "other", " data", "Data"])
LINES = st.one_of(
    st.just(""),
    st.builds(lambda name, space, value: f"{name}:{space}{value}", NAMES, st.sampled_from(["", " ", "  "]), VALUES),
    st.builds("retry: {}".format, st.integers(0, 10**6)),
    NAMES,
    VALUES,
)
STREAMS = st.lists(st.tuples(LINES, LINE_ENDS), max_size=30).map(lambda lines: "".join(a + b for a, b in lines))


def parse(*pieces: bytes) -> list[ParsedFrame]:
    parser = Parser()
    return [frame for piece in pieces for frame in parser.feed(piece)]


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(places)]


def dispatched(frames: list[ParsedFrame]) -> list[tuple[str, str, str]]:
    """Return event, data and last event id of the frames that a browser would dispatch."""
    found, last_id = [], ""
    for frame in frames:
        last_id = last_id if frame.id is None else frame.id
        if frame.dispatches:
            found.append((frame.event, frame.data, last_id))
    return found


def judged(text: str) -> list[tuple[str, str, str]]:
    """Return the same from httpx_sse, without its frames that have no data, which a browser would not dispatch."""
    decoder, found, has_data = SSEDecoder(), [], False
    for line in SSELineDecoder().decode(text + "\n\n"):
        has_data = has_data or line.partition(":")[0] == "data"
        event = decoder.decode(line)
        if not line:
            if event is not None and has_data:
                found.append((event.event, event.data, event.id))
            has_data = False
    return found


@given(STREAMS, st.lists(st.integers(0, 10**6), max_size=10))
@example("data: a\r\n\r\ndata: b\r\r", [8, 9, 10])
@example("id: 1\ndata\n\n\ndata:\n\n", [3])
def test_it_reads_what_httpx_sse_reads_however_the_bytes_are_cut(text: str, cuts: list[int]) -> None:
    text = text.lstrip("\ufeff")  # httpx_sse leaves the byte order mark to the decoder before it
    assert dispatched(parse(*pieces(text.encode() + b"\n\n", cuts))) == judged(text)


@given(STREAMS, st.lists(st.integers(0, 10**6), max_size=10))
def test_how_the_bytes_are_cut_makes_no_difference(text: str, cuts: list[int]) -> None:
    assert parse(*pieces(text.encode(), cuts)) == parse(text.encode())


@given(
    st.lists(
        st.tuples(
            VALUES.filter(bool), st.text(st.characters(exclude_categories=["Cs"])), st.none() | st.integers(1, 2**53)
        )
    )
)
def test_it_reads_what_our_encoder_writes(messages: list[tuple[str, str, int | None]]) -> None:
    encoded = b"".join(sse.message(data, event=event, id=id) for event, data, id in messages)
    frames = parse(encoded)
    assert [(frame.event, frame.id) for frame in frames] == [
        (event, None if id is None else str(id)) for event, _, id in messages
    ]
    assert [frame.data for frame in frames] == [
        data.replace("\r\n", "\n").replace("\r", "\n") for _, data, _ in messages
    ]


def test_a_byte_order_mark_is_dropped_once_even_in_pieces() -> None:
    mark = b"\xef\xbb\xbf"
    assert parse(b"\xef", b"\xbb", b"\xbfdata: x\n\n")[0].data == "x"
    assert parse(mark + mark + b"data: x\n\n") == []


def test_a_line_that_ends_in_cr_counts_before_more_comes() -> None:
    parser = Parser()
    assert [frame.data for frame in parser.feed(b"data: a\r\r")] == ["a"]
    assert [frame.data for frame in parser.feed(b"\ndata: b\n\n")] == ["b"]


def test_bytes_that_are_no_utf_8_become_replacement_characters() -> None:
    assert parse(b"data: \xff\xe2\x82\n\n")[0].data == "\ufffd\ufffd"
    assert parse("data: €\n\n".encode()[:8], "data: €\n\n".encode()[8:])[0].data == "€"


def test_only_its_own_id_line_gives_a_frame_an_id() -> None:
    first, second, third = parse(b"id: 7\ndata: a\n\ndata: b\n\nid\ndata: c\n\n")
    assert (first.id, second.id, third.id) == ("7", None, "")


def test_an_id_with_nul_is_passed_over() -> None:
    assert parse(b"id: 7\nid: 8\0\ndata: x\n\n")[0].id == "7"


@pytest.mark.parametrize("value", ["", "1.5", "-1", "+1", "1_0", " 2", "１", "9" * 5000])
def test_retry_is_digits_alone(value: str) -> None:
    assert parse(f"retry: 5\nretry: {value}\n\n".encode())[0].retry == 5


def test_comments_and_retry_are_shown_and_dispatch_nothing() -> None:
    assert parse(b": one\n:two\n\n", b"retry: 10\n\n") == [
        ParsedFrame(comment="one\ntwo"),
        ParsedFrame(retry=10),
    ]


def test_blank_lines_and_unknown_fields_are_no_frames() -> None:
    assert parse(b"\n\n\nfoo: bar\n\ndatax: y\n\n") == []


def test_empty_data_dispatches_and_no_data_does_not() -> None:
    empty, none = parse(b"event: a\ndata:\n\nevent: b\n\n")
    assert (empty.event, empty.data, empty.dispatches) == ("a", "", True)
    assert (none.event, none.dispatches) == ("b", False)


def test_an_unfinished_frame_at_the_end_is_dropped() -> None:
    assert parse(b"data: a\n\ndata: b\n") == [ParsedFrame(data="a", dispatches=True)]


def test_a_long_line_in_many_pieces_takes_time_in_proportion_to_its_length() -> None:
    parser = Parser()
    parser.feed(b"data: ")
    began = process_time()
    for _ in range(20_000):
        assert parser.feed(b"x" * 200) == []
    assert len(parser.feed(b"\n\n")[0].data) == 4_000_000
    assert process_time() - began < 5
