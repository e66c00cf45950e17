"""Names of streams and events, and signed stream names."""

from __future__ import annotations

import string
import unicodedata
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgbus_gevent.core.names import (
    PublicNames,
    Signer,
    check_data,
    check_event,
    check_name,
    hide_signed,
    looks_signed,
)
from pgbus_gevent.errors import BadToken, InvalidArgument, InvalidEvent, InvalidName, TokenExpired

OLD, NEW = "the secret of last year", "the secret of this year"
NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=60)
CONTROLS = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) == "Cc"]

# Names


@given(name=NAMES)
def test_a_name_is_returned_as_it_is(name: str) -> None:
    assert check_name(name) is name


@pytest.mark.parametrize("name", ["a" * 255, "é" * 127, "🚲" * 63 + "abc", " ", "a b", "a/b?c#d", "\u2028", "../.."])
def test_any_text_of_up_to_255_bytes_is_a_name(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "a" * 256, "é" * 128, "🚲" * 64])
def test_a_name_is_measured_in_bytes_of_utf8(name: str) -> None:
    with pytest.raises(InvalidName, match=f"1 to 255 bytes in UTF-8, this one has {len(name.encode())}"):
        check_name(name)


def test_there_are_65_control_characters_c1_included() -> None:
    assert len(CONTROLS) == 65
    assert {"\0", "\n", "\x1f", "\x7f", "\x80", "\x85", "\x9f"} <= set(CONTROLS)


@pytest.mark.parametrize("control", CONTROLS, ids=ascii)
def test_a_name_has_no_control_characters(control: str) -> None:
    with pytest.raises(InvalidName, match="no control characters"):
        check_name(f"a{control}b")


@pytest.mark.parametrize("name", ["\ud800", "a\udfff", "\udcff"])
def test_a_name_has_no_lone_surrogates(name: str) -> None:
    with pytest.raises(InvalidName, match="surrogate"):
        check_name(name)


@pytest.mark.parametrize("name", [None, 5, b"orders", ["orders"]])
def test_a_name_is_text(name: object) -> None:
    with pytest.raises(InvalidName, match=f"not {type(name).__name__}"):
        check_name(name)  # type: ignore[arg-type]


def test_names_that_look_alike_are_kept_apart() -> None:
    signer = Signer([NEW])
    names = ["a:b", "a_b", "a-b", "A:b", "é", "e\u0301", "ﬁ", "fi", "K", "\u212a", " a", "a"]
    assert [signer.verify(signer.sign(name), 0.0)[0] for name in names] == names
    assert len(set(map(signer.sign, names))) == len(names)


# Events and data


@pytest.mark.parametrize("event", [None, ""])
def test_an_empty_event_is_none(event: str | None) -> None:
    assert check_event(event) is None


@pytest.mark.parametrize("event", ["order.paid", "pgbus", "PGBUS:x", " pgbus:x", "é\u2028", "a:b", "x" * 10_000])
def test_any_one_line_is_an_event(event: str) -> None:
    assert check_event(event) == event


@pytest.mark.parametrize("event", ["a\nb", "a\r", "\r\nid: 5", "a\0", "\ud800", "pgbus:", "pgbus:shutdown"])
def test_an_event_that_would_break_out_of_its_line_or_forge_a_control_frame_is_refused(event: str) -> None:
    with pytest.raises(InvalidEvent):
        check_event(event)


@pytest.mark.parametrize("event", [5, b"paid", ["paid"]])
def test_an_event_is_text(event: object) -> None:
    with pytest.raises(InvalidEvent, match=f"not {type(event).__name__}"):
        check_event(event)  # type: ignore[arg-type]


@pytest.mark.parametrize("data", ["", "a\r\nb", "\u2028", "x" * 10**6])
def test_any_text_is_data(data: str) -> None:
    assert check_data(data) is data


@pytest.mark.parametrize("data", ["a\0b", "\ud800", b"bytes", None, {"a": 1}])
def test_data_that_cannot_be_stored_is_refused(data: object) -> None:
    with pytest.raises(InvalidArgument):
        check_data(data)  # type: ignore[arg-type]


# Public names


@pytest.mark.parametrize("name", ["demo:", "demo:a", "demo:a:b", "news"])
def test_a_name_that_a_pattern_matches_is_public(name: str) -> None:
    assert name in PublicNames(["demo:*", "news"])


@pytest.mark.parametrize("name", ["demo", "Demo:a", "xdemo:a", "news2", "New", ""])
def test_a_name_that_no_pattern_matches_is_not(name: str) -> None:
    assert name not in PublicNames(["demo:*", "news"])


def test_without_patterns_nothing_is_public() -> None:
    assert "" not in PublicNames([])


# Signed names


@given(name=NAMES, expires_at=st.none() | st.floats(1, 1e12) | st.integers(1, 10**12))
def test_a_signed_name_holds_the_name_and_the_expiry(name: str, expires_at: float | None) -> None:
    signer = Signer([OLD, NEW])
    assert signer.verify(signer.sign(name, expires_at), 0.0) == (name, expires_at)


@given(name=NAMES, expires_at=st.none() | st.floats(1, 1e12))
def test_a_signed_name_needs_no_quoting_in_a_url(name: str, expires_at: float | None) -> None:
    token = Signer([NEW]).sign(name, expires_at)
    assert quote(token, safe="") == token
    assert set(token) <= set(string.ascii_letters + string.digits + "-_.")


def test_the_newest_secret_signs() -> None:
    token = Signer([OLD, NEW]).sign("orders")
    assert token == Signer([NEW]).sign("orders")
    with pytest.raises(BadToken):
        Signer([OLD]).verify(token, 0.0)


def test_the_older_secrets_still_verify() -> None:
    assert Signer([OLD, NEW]).verify(Signer([OLD]).sign("orders"), 0.0) == ("orders", None)


def test_a_secret_that_was_taken_away_verifies_no_more() -> None:
    with pytest.raises(BadToken):
        Signer([NEW]).verify(Signer([OLD]).sign("orders"), 0.0)


def test_a_signed_name_is_good_until_its_expiry() -> None:
    signer = Signer([NEW])
    token = signer.sign("orders", 1000.0)
    assert signer.verify(token, 999.9) == ("orders", 1000.0)
    with pytest.raises(TokenExpired) as caught:
        signer.verify(token, 1000.0)
    assert caught.value.expired_at == 1000.0


def test_a_forged_token_that_claims_to_have_expired_is_only_bad() -> None:
    token = Signer(["somebody else's secret"]).sign("orders", 1.0)
    with pytest.raises(BadToken) as caught:
        Signer([NEW]).verify(token, 1000.0)
    assert not isinstance(caught.value, TokenExpired)


@given(data=st.data())
def test_a_token_that_was_changed_anywhere_does_not_verify(data: st.DataObject) -> None:
    signer = Signer([NEW])
    token = signer.sign("orders", 1000.0)
    place = data.draw(st.integers(0, len(token) - 2), "place")  # the last one has bits that base64 does not use
    other = data.draw(st.sampled_from(string.ascii_letters + string.digits + "-_."), "other")
    if other != token[place]:
        with pytest.raises(BadToken):
            signer.verify(token[:place] + other + token[place + 1 :], 0.0)


@given(token=st.text(st.characters(), max_size=80))
def test_any_other_text_is_refused_as_a_bad_token(token: str) -> None:
    with pytest.raises(BadToken):
        Signer([NEW]).verify(token, 0.0)


@pytest.mark.parametrize(
    "content", [[], {}, "orders", 5, None, [5], [None], [""], ["a\nb"], ["a", "soon"], ["a", None]]
)
def test_a_payload_of_another_shape_is_refused_even_with_a_good_signature(content: object) -> None:
    signer = Signer([NEW])
    assert signer._serializer is not None
    with pytest.raises(BadToken):
        signer.verify(str(signer._serializer.dumps(content)), 0.0)


def test_the_error_does_not_tell_the_name() -> None:
    token = Signer([OLD]).sign("payroll")
    with pytest.raises(BadToken) as caught:
        Signer([NEW]).verify(token, 0.0)
    assert "payroll" not in str(caught.value)
    assert token not in str(caught.value)


def test_without_a_secret_nothing_is_signed_and_nothing_verifies() -> None:
    with pytest.raises(InvalidArgument, match="PGBUS_SECRET"):
        Signer([]).sign("orders")
    with pytest.raises(BadToken):
        Signer([]).verify(Signer([NEW]).sign("orders"), 0.0)


def test_a_bad_name_is_not_signed() -> None:
    with pytest.raises(InvalidName):
        Signer([NEW]).sign("a\nb")


@given(name=NAMES, expires_at=st.none() | st.integers(1, 10**12))
def test_a_signed_name_is_recognised_and_hidden_in_a_log(name: str, expires_at: float | None) -> None:
    token = Signer([NEW]).sign(name, expires_at)
    assert looks_signed(token)
    assert hide_signed(f"GET /pgbus/streams/{token}?since=5 HTTP/1.1") == "GET /pgbus/streams/<signed>?since=5 HTTP/1.1"


@pytest.mark.parametrize("text", ["", "orders", "demo:a", "WyJh.b", "GET /pgbus/streams/orders HTTP/1.1"])
def test_plain_names_are_not_taken_for_signed_ones(text: str) -> None:
    assert not looks_signed(text)
    assert hide_signed(text) == text
