"""Where a client starts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fuzzing.answers import odd
from httpx_sse._decoders import SSEDecoder
from streamer_parts import FakeClient

from pgbus_gevent.core.client import Place, StreamRequest, Subscriber, Subscription, check_subscriber
from pgbus_gevent.core.replay import Admission, admit, missed
from pgbus_gevent.core.ring_budget import RingBudget
from pgbus_gevent.core.rows import Row
from pgbus_gevent.core.stream_log import StreamLog
from pgbus_gevent.errors import InvalidArgument


def make_log(*, opened: bool = True) -> StreamLog:
    """Return a log whose ring has 60, 70 and 80. Only the database has 30, 40 and 50, and lower ids were pruned."""
    log = StreamLog("orders", RingBudget(10**6), max_frames=10, max_bytes=10**6)
    if opened:
        rows = [Row(id, None, "x", None, None) for id in (60, 70, 80)]
        log.open(head=80, horizon=20, oldest=30, floor=50, rows=rows)
    return log


def start(*, opened: bool = True, verified: bool = False, at: int | None = None, **request: Any) -> Admission | None:
    client = FakeClient(**request)
    subscription = Subscription(client, make_log(opened=opened), client.request.places[0])
    subscription.verified = verified
    if at is not None:
        subscription.start = at
    return admit(subscription)


def gap(frame: bytes) -> dict[str, Any]:
    decoder = SSEDecoder()
    [event] = [event for event in map(decoder.decode, frame.decode().split("\n")) if event is not None and event.data]
    assert event.event == "pgbus:gap-detected"
    found: dict[str, Any] = json.loads(event.data)
    return found


@pytest.mark.parametrize(
    ("asked", "cursor"),
    [
        ({}, 80),
        ({"since": 80}, 80),
        ({"since": 79}, 79),
        ({"since": 50}, 50),
        ({"since": 25}, 25),
        ({"since": 1}, 1),
        ({"since": 0}, 0),
        ({"replay": 0}, 80),
        ({"replay": 1}, 70),
        ({"replay": 2}, 60),
        ({"since": 60, "replay": 3}, 60),
    ],
)
def test_a_client_starts_at_the_cursor_that_it_asks_for_without_a_read(asked: dict[str, Any], cursor: int) -> None:
    assert start(**asked) == Admission(cursor, b"")


@pytest.mark.parametrize(
    ("circumstances", "why"),
    [
        ({"opened": False}, "the head is not known"),
        ({"opened": False, "since": 5}, "the head is not known"),
        ({"opened": False, "invalid_cursor": True}, "the head is not known"),
        ({"replay": 4}, "the ring does not reach so far back"),
        ({"replay": 3}, "the ring does not know the id of the message before its first one"),
        ({"since": 81}, "the page may know of a commit that we have not heard of"),
    ],
)
def test_the_database_is_asked_first(circumstances: dict[str, Any], why: str) -> None:
    assert start(**circumstances) is None, why


def test_a_replay_starts_at_the_cursor_that_the_database_found() -> None:
    assert start(replay=5, at=25) == Admission(25, b"")


def test_a_replay_of_more_than_there_is_starts_at_the_oldest() -> None:
    assert start(replay=500, at=0) == Admission(0, b"")


def test_a_cursor_beyond_a_verified_head_is_ahead_and_gets_all_that_is_retained() -> None:
    admission = start(since=81, verified=True)
    assert admission is not None
    assert admission.cursor == 0
    assert gap(admission.gap) == {
        "stream": "orders", "requestedId": 81, "oldestId": 30, "lastId": 80, "reason": "ahead",
    }  # fmt: skip


def test_an_unreadable_cursor_costs_the_gap_but_not_the_live_stream() -> None:
    admission = start(invalid_cursor=True)
    assert admission is not None
    assert admission.cursor == 80
    assert gap(admission.gap) == {
        "stream": "orders", "requestedId": None, "oldestId": 30, "lastId": 80, "reason": "invalid-cursor",
    }  # fmt: skip


def test_a_cursor_on_an_empty_stream_is_ahead_only_once_that_is_sure() -> None:
    log = StreamLog("orders", RingBudget(10), max_frames=1, max_bytes=1)
    log.open(head=0, horizon=0, oldest=0, floor=0, rows=[])
    subscription = Subscription(FakeClient(), log, Place("orders", since=5))
    assert admit(subscription) is None
    subscription.verified = True
    admission = admit(subscription)
    assert admission is not None
    assert gap(admission.gap)["reason"] == "ahead"


def test_the_frame_about_pruned_messages_names_the_oldest_that_is_left() -> None:
    subscription = Subscription(FakeClient(), make_log(), Place("orders"))
    reason, frame = missed(subscription, 5, 20, 30)
    assert reason == "expired"
    assert gap(frame) == {
        "stream": "orders", "requestedId": 5, "oldestId": 30, "lastId": 80, "reason": "expired",
    }  # fmt: skip
    assert missed(subscription, 20, 20, 30) == missed(subscription, 0, 20, 30) == ("", b"")


def test_a_client_that_was_sent_lost_messages_is_told_of_them_and_of_nothing_else() -> None:
    subscription = Subscription(FakeClient(), make_log(), Place("orders"))
    subscription.lost = 90
    reason, frame = missed(subscription, 0, 20, 30)
    assert (reason, gap(frame)["requestedId"], gap(frame)["reason"]) == ("ahead", 90, "ahead")


@pytest.mark.parametrize("labels", [{"a", "user:7"}, ["a", "a", "user:7"], ("user:7", "a"), frozenset(["a", "user:7"])])
def test_the_labels_of_a_subscriber_are_a_frozen_set(labels: Any) -> None:
    assert Subscriber(labels=labels).labels == frozenset({"a", "user:7"})


@pytest.mark.parametrize(
    "labels", ["admins", {""}, {"a\0"}, {7}, {None}, {"\ud800"}, 7, [["a"]], {str(n) for n in range(1001)}]
)
def test_labels_that_are_no_set_of_valid_texts_are_refused(labels: Any) -> None:
    with pytest.raises(InvalidArgument, match="label"):
        Subscriber(labels=labels)


def test_labels_that_were_replaced_are_checked_too() -> None:
    with pytest.raises(InvalidArgument, match="frozenset"):
        check_subscriber(Subscriber()._replace(labels=["a"]))  # type: ignore[arg-type]


def test_a_client_is_open_until_it_has_a_reason_to_end() -> None:
    client = FakeClient()
    assert not client.closed
    client.reason = "restart"
    assert client.closed


def test_a_request_asks_for_new_messages_of_one_stream_unless_it_says_more() -> None:
    assert Place("orders") == ("orders", None, None, False, Subscriber(), False)
    assert Subscriber() == (None, None, None, None, frozenset())
    assert StreamRequest(()) == ((), "", None, None, None, None, False)


def test_a_request_is_of_the_first_owner_and_ends_when_the_first_right_does() -> None:
    subscribers = [Subscriber(), Subscriber("ada", expires_at=9.0), Subscriber("bob", expires_at=7.0)]
    request = StreamRequest(tuple(Place(f"s{n}", subscriber=each) for n, each in enumerate(subscribers)))
    assert (request.owner, request.expires_at) == ("ada", 7.0)
    assert (StreamRequest((Place("a"),)).owner, StreamRequest((Place("a"),)).expires_at) == (None, None)


@pytest.mark.parametrize("hashable", [True, False])
def test_the_values_of_a_subscriber_are_plain_so_that_comparing_them_cannot_raise(hashable: bool) -> None:
    def strange(value: Any) -> Any:
        return odd(value, SystemExit, hashable=hashable)

    labels = frozenset({odd("x", SystemExit, hashable=True)})
    for subscriber in (
        Subscriber(strange("ada"), None, strange("Ada"), strange(7.0), labels),
        check_subscriber(
            Subscriber()._replace(owner=strange("ada"), member=strange("Ada"), expires_at=7, labels=labels)
        ),
    ):
        assert subscriber == ("ada", None, "Ada", 7.0, {"x"})
        assert [type(each) for each in (*subscriber, *subscriber.labels)] == [
            str,
            type(None),
            str,
            float,
            frozenset,
            str,
        ]


def test_a_subclass_of_subscriber_counts_as_the_tuple_that_it_is() -> None:
    class Crooked(Subscriber):
        owner = property(lambda self: 1 / 0)  # type: ignore[assignment]

    checked = check_subscriber(Crooked("ada"))
    assert type(checked) is Subscriber and checked.owner == "ada"
