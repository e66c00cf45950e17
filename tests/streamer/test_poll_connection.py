"""Clients that poll, over a socket and with a greenlet that waits, without the other parts of the streamer."""

from __future__ import annotations

import json
import socket
from time import monotonic
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from raw_http import parse, read_to_end
from streamer_parts import plain, tcp_pair, wait_until

from pgbus_gevent.core import sse
from pgbus_gevent.core.client import Client, Place, StreamRequest, Subscriber
from pgbus_gevent.core.greeting import Greeter
from pgbus_gevent.core.identity import Identities
from pgbus_gevent.core.polled import FULL
from pgbus_gevent.streamer import poll_connection as subject
from pgbus_gevent.streamer.poll_connection import PollBody, PollConnection

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-other: kept\r\nconnection: close\r\n\r\n"


def place(context: Any = None) -> Any:
    """A subscription of a client that has been admitted."""
    subscriber = Subscriber(context=context)
    log = SimpleNamespace(name="orders", head=9)
    return SimpleNamespace(log=log, start=7, cursor=9, lost=None, place=SimpleNamespace(subscriber=subscriber))


class Handler:
    """Ends clients as ``Clients`` does. ``settled`` says whether a client has all that there is."""

    def __init__(self) -> None:
        self.ends: list[str] = []
        self.leavings: list[str] = []
        self.settled = True

    def end(self, client: Client, reason: str) -> None:
        self.ends.append(reason)
        client.reason = reason
        client.finish(sse.shutdown(reason, 7.0), 0.0)

    def settle(self, client: Client) -> bool:
        if self.settled:
            self.end(client, "answered")
        return self.settled

    def gone(self, client: Client, reason: str) -> None:
        self.leavings.append(reason)

    def unblocked(self, client: Client) -> None: ...


class Poll:
    """A poll over a socket, and its client's end of it."""

    def __init__(self, seconds: int = 60, **more: Any) -> None:
        self.handler = Handler()
        ours, self.client = tcp_pair()
        self.subscription = place()
        request = StreamRequest((Place("orders"),), poll=seconds)
        self.poll = PollConnection("c0ffee", request, plain(ours), HEAD, clients=self.handler, **more)

    def greet(self, gaps: bytes = b"") -> None:
        self.poll.subscriptions = (self.subscription,)
        self.poll.greet(Greeter(), gaps, 1.0)

    def answer(self) -> Any:
        answer = parse(read_to_end(self.client))
        assert answer.headers["content-length"] == str(len(answer.body))
        assert (answer.headers["x-other"], answer.headers["connection"]) == ("kept", "close")
        return answer


def test_nothing_is_sent_before_the_answer_and_all_of_one_turn_is_in_it() -> None:
    one = Poll()
    one.greet()
    gevent.sleep(0.01)
    one.poll.send(sse.message("a", id=8), 2.0)
    one.poll.send(sse.message("b", id=9), 2.0)
    one.client.settimeout(0.0)
    with pytest.raises(BlockingIOError):
        one.client.recv(1)
    answer = one.answer()
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    found = json.loads(answer.body)
    assert [each["data"] for each in found["messages"]] == ["a", "b"]
    assert (found["cursor"], found["connectionId"]) == (9, "c0ffee")
    assert (one.handler.ends, one.handler.leavings) == (["answered"], ["finished"])


def test_while_it_waits_it_keeps_nothing_that_only_the_answer_needs() -> None:
    one, other = Poll(), Poll()
    for each in (one, other):
        each.greet()
        each.poll.send(sse.heartbeat(1.0), 16.0)
    assert one.poll.last_sent == 16.0
    assert one.poll._end is None
    assert one.poll._head is other.poll._head
    one.poll.ends_at = monotonic()
    assert one.poll.over() is None  # what the heartbeat calls a second before the end
    assert json.loads(one.answer().body)["connectionId"] == "c0ffee"


def test_the_code_of_a_context_may_wait_and_is_not_run_in_the_event_loop() -> None:
    class Person:
        def __pgbus_identity__(self) -> str:
            gevent.sleep(0.001)
            return "ann"

    identities = Identities(["a secret of the test"])
    one = Poll()
    one.subscription = place(Person())
    one.poll.subscriptions = (one.subscription,)
    one.poll.greet(Greeter(identities), b"", 1.0)
    one.poll.send(sse.message("a", id=8), 2.0)
    found = json.loads(one.answer().body)["identity"]
    assert found == identities.of(one.subscription.place.subscriber)
    assert not found.endswith(".")


def test_a_gap_with_the_greeting_is_answered() -> None:
    one = Poll()
    one.greet(sse.gap_detected("orders", requested=None, oldest=1, last=9, reason="invalid-cursor"))
    assert json.loads(one.answer().body)["events"][0]["data"]["reason"] == "invalid-cursor"


def test_a_loss_that_the_client_was_not_told_of_leaves_its_cursor_as_it_was() -> None:
    one = Poll(seconds=0)
    one.subscription.cursor, one.subscription.lost = 0, 8
    one.greet()
    assert json.loads(one.answer().body)["cursor"] == 8


def test_at_the_end_of_its_time_it_waits_for_reads_that_it_needs() -> None:
    one = Poll(seconds=0)
    one.handler.settled = False
    one.greet()
    gevent.sleep(0.1)
    assert one.handler.ends == []
    one.handler.settled = True
    assert json.loads(one.answer().body)["messages"] == []
    assert one.handler.ends == ["answered"]


def test_a_read_that_does_not_end_is_a_503(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "PATIENCE", 0.05)
    one = Poll(seconds=0)
    one.handler.settled = False
    one.greet()
    answer = one.answer()
    assert (answer.status, answer.line, answer.headers["retry-after"]) == (503, "not now: unavailable", "7")


def test_a_poll_that_was_not_greeted_is_refused_with_a_status() -> None:
    one = Poll()
    one.handler.end(one.poll, "too-many-connections")
    answer = one.answer()
    assert (answer.status, answer.line) == (429, "not now: too-many-connections")


def test_an_answer_that_is_full_takes_no_more_and_does_not_look_slow_afterwards() -> None:
    one = Poll()
    one.greet()
    assert one.poll.blocked_since is None
    one.poll.send(sse.message("x" * FULL, id=9), 5.0)
    assert one.poll.blocked_since == 5.0
    assert len(json.loads(one.answer().body)["messages"][0]["data"]) == FULL
    assert one.poll.blocked_since is None


def test_a_client_that_does_not_read_its_answer_is_blocked_until_it_does() -> None:
    one = Poll(send_buffer=65536)
    one.client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    one.greet()
    one.poll.send(sse.message("x" * 2_000_000, id=9), 5.0)
    wait_until(lambda: one.handler.ends == ["answered"])
    assert one.poll.blocked_since is not None and one.handler.leavings == []
    assert len(json.loads(one.answer().body)["messages"][0]["data"]) == 2_000_000
    assert one.handler.leavings == ["finished"]


@pytest.mark.parametrize("how", ["leaves", "abort"])
def test_no_timer_is_left_of_a_client_that_is_gone(how: str) -> None:
    one = Poll(seconds=1)
    one.greet()
    if how == "abort":
        one.poll.abort()
    else:
        one.client.close()
        wait_until(lambda: one.handler.leavings == ["client left"])
    assert one.poll._end is not None and one.poll._end._timer is None
    one.client.close()


def test_a_message_just_before_another_end_does_not_end_it_twice() -> None:
    one = Poll()
    one.greet()
    one.poll.send(sse.message("a", id=9), 2.0)
    one.handler.end(one.poll, "restart")
    found = json.loads(one.answer().body)
    assert [each["data"] for each in found["messages"]] == ["a"]
    assert (found["events"][0]["data"], found["retry"]) == ({"reason": "restart"}, 7000)
    assert one.handler.ends == ["restart"]


# with a greenlet


def body(seconds: int = 60) -> tuple[PollBody, Handler]:
    handler = Handler()
    poll = PollBody("c0ffee", StreamRequest((Place("orders"),), poll=seconds), clients=handler)
    poll.subscriptions = (place(),)
    return poll, handler


def test_the_greenlet_of_a_request_waits_for_the_answer() -> None:
    poll, handler = body()
    waits = gevent.spawn(poll.wait)
    poll.greet(Greeter(), b"", 1.0)
    gevent.sleep(0.01)
    assert not waits.ready()
    poll.send(sse.message("a", id=9), 2.0)
    answer = waits.get(timeout=20)
    assert (answer.status, answer.content_type) == (200, b"application/json")
    assert [each["data"] for each in json.loads(answer.body)["messages"]] == ["a"]
    assert handler.ends == ["answered"] and handler.leavings[0] == "finished"


def test_a_server_that_ends_the_request_ends_the_poll() -> None:
    poll, handler = body()
    waits = gevent.spawn(poll.wait)
    gevent.sleep(0.01)
    waits.kill()
    assert handler.leavings == ["client left"] and (poll._end is None or poll._end._timer is None)


def test_a_poll_to_which_sending_failed_has_no_answer() -> None:
    poll, _ = body()
    waits = gevent.spawn(poll.wait)
    gevent.sleep(0.01)
    poll.abort()
    with pytest.raises(BrokenPipeError):
        waits.get(timeout=20)
