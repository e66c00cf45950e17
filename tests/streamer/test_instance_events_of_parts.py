"""The instrumentation events of the streamer's parts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from streamer_parts import Parts, make_board, wait_until

from pgbus_gevent.core.events import Gap, ListenerDown, ListenerUp, Passed, Read
from pgbus_gevent.errors import DatabaseUnavailable
from pgbus_gevent.streamer import dispatcher, listener
from pgbus_gevent.streamer.listener import Listener


class Session:
    """Breaks at the second read."""

    looks = 0

    def receive(self, timeout: float) -> tuple[list[str], bool]:
        self.looks += 1
        gevent.sleep(0.001)
        if self.looks > 1:
            raise DatabaseUnavailable("terminated by an administrator")
        return [], True

    def follow(self, streams: object) -> None: ...
    def interrupt(self) -> None: ...

    def hears(self) -> bool:
        return True

    def ping(self) -> None: ...
    def close(self) -> None: ...


def test_the_listener_emits_one_event_when_it_is_up_and_one_when_it_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no event if only notifications were lost, nor if a session cannot be opened again."""
    monkeypatch.setattr(listener, "_PAUSES", (0.01, 0.01))
    sessions: list[Session | None] = [Session(), None, None, Session()]

    def connect() -> Session:
        session = sessions.pop(0) if sessions else None
        if session is None:
            raise DatabaseUnavailable("nobody there")
        return session

    heard: list[Any] = []
    board = make_board()
    for kind in (ListenerUp, ListenerDown):
        board.events.subscribe(kind, heard.append)
    part = Listener(SimpleNamespace(listen=connect, discard_idle=lambda: None), board)
    greenlet = gevent.spawn(part.run)
    wait_until(lambda: len(heard) >= 4, "up, down, up, down")
    greenlet.kill()
    assert heard == [ListenerUp(), ListenerDown("terminated by an administrator")] * 2


def test_each_statement_of_the_readers_emits_an_event_with_its_rows() -> None:
    parts = Parts(page_size=3)
    reads: list[Read] = []
    parts.events.subscribe(Read, reads.append)
    for _ in range(7):
        parts.publish()
    with parts:
        client = parts.connect(since=0)
        wait_until(lambda: len(client.ids) == 7, "all of it")
        for _ in range(2):
            parts.publish(ring=False)
        parts.look()
        wait_until(lambda: len(client.ids) == 9, "the new ones")
        wait_until(lambda: len(reads) == parts.reader.reads, "each read is reported")
    kinds = [read.kind for read in reads]
    assert kinds[0] == "open" and kinds[-1] == "follow" and "page" in kinds
    assert sum(read.rows for read in reads if read.kind == "follow") == 2
    assert all(read.streams == 1 and read.seconds >= 0 for read in reads)


def test_a_pass_emits_one_event_with_the_number_of_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one event, however many slices the pass takes, and even if other streams send in between."""
    monkeypatch.setattr(dispatcher, "SLICE", 3)
    parts = Parts()
    passes: list[Passed] = []
    parts.events.subscribe(Passed, passes.append)
    with parts:
        clients = [parts.connect("orders" if n % 2 else "stock") for n in range(40)]
        wait_until(lambda: all(client.admitted for client in clients), "all are live")
        # Otherwise a pass that began before the messages could bring them to some of the clients.
        wait_until(lambda: not parts.delivering and not parts.reading, "the parts come to rest")
        before = len(passes)
        for stream in ("orders", "stock"):
            parts.publish(stream)
        parts.publish("orders", exclude=clients[1].id)  # one more for the second pass, or in the first one's chunk
        wait_until(lambda: sum(len(client.ids) for client in clients) == 20 + 20 + 19, "all have them")
        wait_until(lambda: len(passes) == parts.dispatcher.passes, "each pass is reported")
    new = passes[before:]
    assert [one.connections for one in new if one.stream == "stock"] == [20]
    assert new[0].connections == 20 and all(one.seconds >= 0 for one in passes)


def test_a_handler_that_raises_loses_no_message() -> None:
    parts = Parts()
    for kind in (Passed, Gap, Read):
        parts.events.subscribe(kind, lambda event: {}[event])
    with parts:
        clients = [parts.connect() for _ in range(5)]
        wait_until(lambda: all(client.admitted for client in clients), "all are live")
        ids = [parts.publish() for _ in range(3)]
        ahead = parts.connect(since=10_000)
        wait_until(lambda: all(client.ids == ids for client in [*clients, ahead]), "all have all")
    assert ahead.controls("gap-detected")


@pytest.mark.parametrize(
    ("request_", "reason"),
    [({"since": 20}, "expired"), ({"since": 10_000}, "ahead"), ({"invalid_cursor": True}, "invalid-cursor")],
    ids=["expired", "ahead", "invalid"],
)
def test_a_gap_emits_an_event_when_the_client_is_told(request_: dict[str, Any], reason: str) -> None:
    parts = Parts()
    gaps: list[Gap] = []
    parts.events.subscribe(Gap, gaps.append)
    for _ in range(20):
        parts.publish()
    parts.table.prune("orders", 15)
    with parts:
        fine = parts.connect(since=0)
        client = parts.connect(**request_)
        wait_until(lambda: client.controls("gap-detected"), "the frame")
        assert reason in client.controls("gap-detected")[0]
        wait_until(lambda: len(fine.ids) == 5, "a client that asks for all messages misses nothing")
    assert gaps == [Gap("orders", reason)]
