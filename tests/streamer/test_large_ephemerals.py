"""Ephemeral messages keep their order, even if some have to be fetched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import gevent
import pytest
from gevent.event import Event
from streamer_parts import FakeClient, Table, added, make_board, wait_until

from pgbus_gevent.core import board, sse
from pgbus_gevent.core.ephemeral_buffers import EphemeralBuffer, EphemeralBuffers
from pgbus_gevent.core.frames import Frame
from pgbus_gevent.core.rows import EphemeralRow
from pgbus_gevent.core.wakes import Ephemeral
from pgbus_gevent.streamer.large_ephemerals import LargeEphemerals


class Passing:
    """The part over a table in memory. ``passed`` has the messages that were buffered for sending, with their streams."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.table = Table()
        self.passed: list[tuple[str, Frame]] = []
        self.board = make_board()
        for stream in ("orders", "stock"):
            added(self.board, FakeClient(stream, stream))
        monkeypatch.setattr(self.board.ephemeral_buffers, "add", self._buffer)
        self.part = LargeEphemerals(self.table, self.board)

    def _buffer(self, stream: str, frame: Frame) -> EphemeralBuffer:
        self.passed.append((stream, frame))
        return EphemeralBuffer(EphemeralBuffers(), stream, 0)

    @property
    def data(self) -> list[str]:
        return [frame.data.decode().removeprefix("data: ").removesuffix("\n\n")[:6] for _, frame in self.passed]

    def small(self, data: str, stream: str = "orders") -> None:
        self.board.take_ephemeral(Ephemeral(stream, 0, None, data, None, None))

    def large(self, number: int, stream: str = "orders", *, stored: bool = True) -> None:
        if stored:
            self.table.large[number] = EphemeralRow(stream, None, f"large{number}", None, None)
        self.board.take_ephemeral(Ephemeral(stream, number, None, None, None, None))

    @contextmanager
    def running(self) -> Iterator[gevent.Greenlet[..., None]]:
        greenlet = gevent.spawn(self.part.run)
        try:
            yield greenlet
        finally:
            greenlet.kill()


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> Passing:
    return Passing(monkeypatch)


def test_a_small_one_is_passed_on_at_once(passing: Passing) -> None:
    passing.board.take_ephemeral(Ephemeral("orders", 5, "note", "x", "admins", "c0ffee"))
    assert passing.passed == [("orders", Frame(0, sse.message("x", event="note"), "admins", "c0ffee"))]


def test_a_notification_cannot_name_a_message_of_another_stream(passing: Passing) -> None:
    passing.table.large[5] = EphemeralRow("stock", None, "secret", None, None)
    passing.large(5, "orders", stored=False)
    passing.small("after")
    with passing.running():
        wait_until(lambda: passing.data)
        assert passing.passed == [("orders", Frame(0, sse.message("after"), None, None))]


def test_a_large_one_is_fetched_with_all_that_belongs_to_it(passing: Passing) -> None:
    passing.table.large[5] = EphemeralRow("orders", "note", "x" * 100_000, "admins", "c0ffee")
    with passing.running():
        passing.board.take_ephemeral(Ephemeral("orders", 5, None, None, None, None))
        wait_until(lambda: passing.passed)
    assert passing.passed == [("orders", Frame(0, sse.message("x" * 100_000, event="note"), "admins", "c0ffee"))]


def test_messages_of_streams_without_clients_are_neither_sent_nor_fetched(passing: Passing) -> None:
    with passing.running():
        passing.small("a", "news")
        passing.large(1, "news")
        passing.large(2)
        wait_until(lambda: passing.passed)
    assert passing.data == ["large2"]


def test_messages_behind_a_large_one_wait_for_it(passing: Passing) -> None:
    go = Event()
    passing.table.on_read = go.wait
    with passing.running():
        passing.small("first")
        passing.large(1)
        passing.small("second")
        wait_until(lambda: passing.table.reads)
        passing.small("third")
        passing.large(2)
        passing.small("fourth")
        assert passing.data == ["first"]
        go.set()
        wait_until(lambda: len(passing.passed) == 6)
    assert passing.data == ["first", "large1", "second", "third", "large2", "fourth"]


def test_once_all_are_out_small_ones_go_at_once_again(passing: Passing) -> None:
    with passing.running():
        passing.large(1)
        wait_until(lambda: passing.passed)
        passing.small("a")
        assert passing.data == ["large1", "a"]


def test_large_ones_that_wait_are_fetched_together(passing: Passing) -> None:
    for number in range(50):
        passing.large(number)
    with passing.running():
        wait_until(lambda: len(passing.passed) == 50)
    assert passing.table.reads == ["ephemerals"]


def test_a_message_that_is_already_removed_is_left_out(passing: Passing) -> None:
    passing.large(1, stored=False)
    passing.large(2)
    passing.small("a")
    with passing.running():
        wait_until(lambda: len(passing.passed) == 2)
    assert passing.data == ["large2", "a"]


def test_a_database_that_is_away_costs_the_large_ones_alone(passing: Passing, caplog: pytest.LogCaptureFixture) -> None:
    passing.table.failures = 1
    passing.large(1)
    passing.small("a")
    with passing.running():
        wait_until(lambda: passing.passed)
        passing.large(2)
        wait_until(lambda: len(passing.passed) == 2)
    assert passing.data == ["a", "large2"]
    assert "1 large ephemeral messages are lost" in caplog.text


def test_those_that_wait_are_bounded_and_a_flood_is_one_warning(
    passing: Passing, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(board, "MAX_LARGE", 3)
    for number in range(100):
        passing.large(number)
    assert caplog.text.count("dropping") == 1
    with passing.running():
        wait_until(lambda: len(passing.passed) == 3)
        passing.small("a")
        wait_until(lambda: len(passing.passed) == 4)
    assert passing.data == ["large0", "large1", "large2", "a"]


def test_the_batch_of_a_run_that_died_is_sent_by_the_next_run_in_order(passing: Passing) -> None:
    go = Event()
    passing.table.on_read = go.wait
    with passing.running() as greenlet:
        passing.large(1)
        wait_until(lambda: passing.table.reads)
        greenlet.kill()
    passing.small("a")
    go.set()
    with passing.running():
        wait_until(lambda: len(passing.passed) == 2)
    assert passing.data == ["large1", "a"]
