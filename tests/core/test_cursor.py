"""Cursors as clients write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgbus_gevent.core.cursor import parse_cursor, parse_replay
from pgbus_gevent.errors import InvalidCursor


@given(value=st.integers(0, 2**53 - 1))
def test_a_number_below_2_to_the_53_is_a_cursor(value: int) -> None:
    assert parse_cursor(str(value)) == parse_replay(str(value)) == value


def test_leading_zeros_are_digits_too() -> None:
    assert parse_cursor("007") == 7


REFUSED = [
    "",
    " ",
    "+5",
    "-1",
    " 5",
    "5 ",
    "5\n",
    "1_0",
    "1.0",
    "1e3",
    "0x5",
    "٣",
    "５",
    "²",
    "five",
    "5\0",
    "None",
    "5,6",
]


@pytest.mark.parametrize("text", [*REFUSED, str(2**53), "9" * 17, "0" * 17, "9" * 10_000])
def test_all_else_is_refused(text: str) -> None:
    with pytest.raises(InvalidCursor, match=r"is not a cursor: it is a number from 0 to 9007199254740991"):
        parse_cursor(text)


@given(text=st.text())
def test_any_text_is_a_cursor_or_refused(text: str) -> None:
    try:
        value = parse_cursor(text)
    except InvalidCursor:
        assert not (text.isascii() and text.isdigit() and len(text) < 16)
    else:
        assert value == int(text) < 2**53


def test_the_error_names_the_parameter_and_shows_the_value_escaped_and_cut() -> None:
    with pytest.raises(InvalidCursor) as caught:
        parse_cursor("é\r\n\x1b[31m" + "x" * 1000, "Last-Event-ID")
    message = str(caught.value)
    assert message.startswith(r"Last-Event-ID='\xe9\r\n\x1b[31mx")
    assert len(message) < 150
    assert message.isprintable()
    with pytest.raises(
        InvalidCursor, match=r"^replay='-1' is not a count of messages: it is a number from 0 to 9007199254740991"
    ):
        parse_replay("-1")
