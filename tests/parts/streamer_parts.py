"""Shared parts of the streamer's tests: a client without a socket, a database in memory, and the parts on one board."""

from __future__ import annotations

import _socket
import socket
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from time import monotonic
from types import SimpleNamespace
from typing import Any, NamedTuple

import gevent
from gevent.event import Event
from httpx_sse._decoders import SSEDecoder, SSELineDecoder

from pgbus_gevent.core.board import Board
from pgbus_gevent.core.client import Client, Place, StreamRequest, Subscriber, Subscription
from pgbus_gevent.core.events import Events
from pgbus_gevent.core.filters import Filters
from pgbus_gevent.core.ring_budget import RingLimits
from pgbus_gevent.core.rows import EphemeralRow, Opening, OpenQuestion, PageRows, Row, TailRow
from pgbus_gevent.core.stream_log import StreamLog
from pgbus_gevent.core.wakes import Ephemeral, NewMessage
from pgbus_gevent.errors import DatabaseUnavailable
from pgbus_gevent.streamer.dispatcher import StreamEventDispatcher
from pgbus_gevent.streamer.reader import Reader


def wait_until(condition: Callable[[], Any], what: str = "", timeout: float = 20.0) -> None:
    """Yield until ``condition`` is true. Fail if that takes longer than ``timeout`` seconds."""
    deadline = monotonic() + timeout
    while not condition():
        assert monotonic() < deadline, what or "the condition did not become true in time"
        gevent.sleep(0.0005)


def plain(sock: socket.socket) -> Any:
    """Return a plain non-blocking socket, not one of gevent's, as a server hands it over."""
    found = _socket.socket(sock.family, sock.type, sock.proto, sock.detach())
    found.setblocking(False)
    return found


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a TCP connection: ours, and the client's."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
    return accepted, client


class Received(NamedTuple):
    """An event, as httpx-sse's parser understands it."""

    id: str
    event: str
    data: str


def parse(stream: bytes | bytearray) -> list[Received]:
    """Return the events of a stream, parsed by httpx-sse. ``id`` is the last id seen, as the WHATWG demands."""
    decoder = SSEDecoder()
    lines = SSELineDecoder().decode(bytes(stream).decode()) if stream else []
    events = [event for event in map(decoder.decode, lines) if event is not None]
    return [Received(event.id, event.event, event.data) for event in events if event.event != "message" or event.data]


def one_stream(
    stream: str, *, owner: str | None = None, context: Any = None, expires_at: float | None = None, **place: Any
) -> StreamRequest:
    """Return a request for one stream."""
    subscriber = Subscriber(owner=owner, context=context, expires_at=expires_at)
    return StreamRequest((Place(stream, subscriber=subscriber, **place),))


class FakeClient(Client):
    """A client that keeps the bytes it is sent. While ``jammed``, it takes none, and they wait until :meth:`unblock`."""

    def __init__(
        self,
        id: str = "c0ffee",
        stream: str = "orders",
        *,
        now: float = 0.0,
        on_unblocked: Callable[[FakeClient], None] = lambda client: None,
        **request: Any,
    ) -> None:
        self.stream = stream
        self.request = one_stream(stream, **request)
        super().__init__(id, self.request, now=now)
        self.received = bytearray()
        self.waiting = bytearray()
        self.jammed = False
        self.raises = False
        self.on_send: Callable[[], object] = lambda: None
        self.aborted = False
        self._blocked_since: float | None = None
        self._on_unblocked = on_unblocked

    @property
    def blocked_since(self) -> float | None:
        return self._blocked_since

    @blocked_since.setter
    def blocked_since(self, value: float | None) -> None:
        self._blocked_since = value

    def send(self, data: bytes, now: float) -> None:
        assert self._blocked_since is None, "sent to a client that is blocked"
        assert not self.closed, "sent to a client that is closed"
        if self.raises:
            raise ValueError("a client that breaks")
        self.on_send()
        self.last_sent = now
        if self.jammed:
            self.waiting += data
            self._blocked_since = now
        else:
            self.received += data

    def finish(self, farewell: bytes, now: float) -> None:
        self.received += farewell

    def abort(self) -> None:
        self.aborted = True

    def unblock(self) -> None:
        """Take the bytes that wait, and all bytes from now on."""
        self.jammed = False
        if self._blocked_since is not None:
            self.received += self.waiting
            self.waiting.clear()
            self._blocked_since = None
            self._on_unblocked(self)

    @property
    def subscription(self) -> Subscription | None:
        """The subscription to its one stream, while it is connected."""
        return self.subscriptions[0] if self.subscriptions else None

    @property
    def events(self) -> list[Received]:
        return [event for event in parse(self.received) if event.event or event.data]

    @property
    def messages(self) -> list[Received]:
        return [event for event in self.events if not event.event.startswith("pgbus:")]

    @property
    def ids(self) -> list[int]:
        return [int(message.id) for message in self.messages]

    def controls(self, name: str) -> list[str]:
        return [event.data for event in self.events if event.event == f"pgbus:{name}"]


def added(board: Board, client: FakeClient) -> Subscription:
    """Put a client on a board, and return its one subscription."""
    board.join(client, client.request.places)
    return client.subscriptions[0]


def seat(connection: str, stream: str, member: str | None = None, metadata: Any = None) -> Any:
    """Return the attributes of a subscription that presence reads."""
    subscriber = SimpleNamespace(member=member, context={"presence": metadata})
    return SimpleNamespace(
        log=SimpleNamespace(name=stream),
        client=SimpleNamespace(closed=False),
        lease=connection,
        place=SimpleNamespace(subscriber=subscriber),
        earlier_members=0,
    )


class Noted:
    """A client handler that records the calls of its connections."""

    def __init__(self) -> None:
        self.unblocks: list[Client] = []
        self.leavings: list[tuple[Client, str]] = []

    def unblocked(self, client: Client) -> None:
        self.unblocks.append(client)

    def gone(self, client: Client, reason: str) -> None:
        self.leavings.append((client, reason))


class Table:
    """The table of messages, in memory. It answers as :class:`pgbus_gevent.database.queries.Queries` does.

    ``failures`` is how many of the next reads fail. ``on_read`` is called at the start of each read.
    """

    def __init__(self, *, first_id: int = 10, step: int = 10) -> None:
        self.rows: dict[str, list[Row]] = defaultdict(list)
        self.horizons: dict[str, int] = {}
        self.large: dict[int, EphemeralRow] = {}
        self.reads: list[str] = []
        self.questions: list[OpenQuestion] = []
        self.failures = 0
        self.on_read: Callable[[], object] = lambda: None
        self.forgotten = 0
        self._next_id = first_id
        self._step = step

    def append(self, stream: str, data: str | None = None, **values: Any) -> NewMessage:
        """Store a message, by default with its id as data. Return the wake of its notification."""
        rows = self.rows[stream]
        id, prev_id = self._next_id, self.head(stream)
        self._next_id += self._step
        row = Row(
            id,
            **{"event": None, "visible_to": None, "exclude": None, "prev_id": prev_id, **values},
            data=data or str(id),
        )
        rows.append(row)
        return NewMessage(stream, id, row.prev_id, 0.0, row.event, row.data, row.visible_to, row.exclude)

    def prune(self, stream: str, count: int) -> None:
        """Remove the oldest messages, as pruning does."""
        removed = self.rows[stream][:count]
        if removed:
            del self.rows[stream][:count]
            self.horizons[stream] = removed[-1].id

    def lose(self, stream: str, count: int) -> None:
        """Go back in time: remove the newest messages without a trace. Their ids are not used again."""
        if count:
            del self.rows[stream][-count:]

    def skip(self, ids: int) -> None:
        """Let the ids jump, as they do after a loss."""
        self._next_id += ids

    def delete(self, stream: str, id: int) -> None:
        """Remove one message by hand, without a horizon."""
        self.rows[stream] = [row for row in self.rows[stream] if row.id != id]

    def head(self, stream: str) -> int:
        rows = self.rows[stream]
        return rows[-1].id if rows else self.horizons.get(stream, 0)

    def ids(self, stream: str, above: int = 0) -> list[int]:
        return [row.id for row in self.rows[stream] if row.id > above]

    # the queries of the parts

    def _read(self, kind: str) -> None:
        self.reads.append(kind)
        self.on_read()
        if self.failures:
            self.failures -= 1
            raise DatabaseUnavailable("PostgreSQL is not available, because the test says so")

    def moved(self, heads: dict[str, int], pruned: Collection[str] = ()) -> tuple[int, dict[str, int]]:
        self._read("moved")
        newest = {stream: rows[-1].id if rows else 0 for stream, rows in self.rows.items()}
        found = {stream: newest.get(stream, 0) for stream in heads}
        return max(newest.values(), default=0), {
            stream: now
            for stream, now in found.items()
            if now > heads[stream] or (now < heads[stream] and stream not in pruned)
        }

    def inventory(self, ranges: Sequence[tuple[str, int, int]]) -> list[tuple[int, int, int]]:
        self._read("inventory")
        found = []
        for stream, floor, head in ranges:
            horizon = self.horizons.get(stream, 0)
            ids = [row.id for row in self.rows[stream] if max(floor, horizon) < row.id <= head]
            found.append((horizon, len(ids), sum(ids)))
        return found

    def tail(self, above: int, holes: Sequence[int], streams: Sequence[str] | None, *, limit: int) -> list[TailRow]:
        self._read("tail")
        found = []
        for stream, rows in self.rows.items():
            for row in rows:
                if row.id > above or row.id in holes:
                    data = row.data if streams is None or stream in streams else None
                    found.append(TailRow(row.id, stream, row.prev_id, row.event, data, row.visible_to, row.exclude))
        return sorted(found)[: limit + len(holes)]

    def ephemerals(self, ids: Sequence[int]) -> dict[int, EphemeralRow]:
        self._read("ephemerals")
        return {id: self.large[id] for id in ids if id in self.large}

    def pages(self, after: Sequence[tuple[str, int]], *, limit: int, size: int) -> list[PageRows]:
        self._read("pages")
        return [self._page(stream, cursor, limit, size) for stream, cursor in after]

    def _page(self, stream: str, cursor: int, limit: int, size: int) -> PageRows:
        found = [row for row in self.rows[stream] if row.id > cursor]
        rows = _fitting(found, limit, size)
        # Like the statement, which stops once a message makes the page full.
        full = sum(len(row.data.encode()) for row in rows) >= size
        horizon = self.horizons.get(stream, 0)
        anchor = max((row.id for row in self.rows[stream] if horizon < row.id <= cursor), default=0)
        return PageRows(rows, horizon, full or len(rows) < len(found), anchor, self.forgotten)

    def openings(self, questions: Sequence[OpenQuestion], *, limit: int, size: int) -> list[Opening]:
        self._read("openings")
        self.questions += questions
        return [self._opening(question, limit, size) for question in questions]

    def _opening(self, question: OpenQuestion, limit: int, size: int) -> Opening:
        stored, horizon = self.rows[question.stream], self.horizons.get(question.stream, 0)
        head, replay = self.head(question.stream), question.replay
        start = stored[-replay - 1].id if replay is not None and replay < len(stored) else 0
        oldest = stored[0].id if stored else 0
        if question.cursor is None:
            return Opening(head, horizon, oldest, start, head, [])
        found = [row for row in stored if row.id > question.cursor]
        rows = _fitting(found[::-1], limit, size)[::-1]
        floor = max(question.cursor, horizon)
        if len(rows) < len(found):
            floor = max(floor, found[-len(rows) - 1].id)
        return Opening(head, horizon, oldest, start, floor, rows)


def _fitting(rows: list[Row], limit: int, size: int) -> list[Row]:
    """Return the first rows: at most ``limit``, and none that begins after ``size`` bytes."""
    taken = 0
    fitting = []
    for row in rows[:limit]:
        if taken >= size:
            break
        fitting.append(row)
        taken += len(row.data.encode())
    return fitting


class FakeClients:
    """Stands in for ``Clients``: closes clients to which sending raised, and records them."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def give(self, client: Client, data: bytes, now: float) -> None:
        try:
            client.send(data, now)
        except Exception:
            self.broken(client)

    def broken(self, client: Client) -> None:
        self._parts.errors.append(client)
        self._parts.leave(client, "error")


def make_board(
    *,
    ring_messages: int = 10,
    ring_bytes: int = 10_000,
    ring_budget: int = 1_000_000,
    tick: float = 0.25,
    events: Events | None = None,
) -> Board:
    """Return an empty board, with gevent's events as its flags."""
    return Board(Event, RingLimits(ring_messages, ring_bytes, ring_budget), tick=tick, events=events)


class Parts:
    """A board, a dispatcher and readers over a table, as in an Instance, but without sockets and without the other parts."""

    def __init__(
        self,
        table: Table | None = None,
        *,
        ring_messages: int = 4,
        ring_bytes: int = 10_000,
        ring_budget: int = 1_000_000,
        page_size: int = 3,
        readers: int = 2,
    ) -> None:
        self.table = table or Table()
        self.events = Events()
        self.filters = Filters()
        self.board = make_board(
            ring_messages=ring_messages, ring_bytes=ring_bytes, ring_budget=ring_budget, events=self.events
        )
        self.registry = self.board.registry
        self.budget = self.board.budget
        self.errors: list[Client] = []
        self.broken: list[Client] = []
        """The clients to which sending is meant to fail."""
        self.reader = Reader(self.table, self.board, page_size=page_size, ring_messages=ring_messages)
        self.dispatcher = StreamEventDispatcher(
            self.board,
            FakeClients(self),  # type: ignore[arg-type]
            filters=self.filters,
        )
        self.readers = readers
        self.greenlets: list[gevent.Greenlet[..., None]] = []
        self.clients: list[FakeClient] = []

    def __enter__(self) -> Parts:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        gevent.killall(self.greenlets)
        if exc_info[0] is None:
            assert self.errors == self.broken, "a delivery failed"

    def start(self) -> None:
        self.greenlets = [gevent.spawn(self.dispatcher.run)]
        self.greenlets += [gevent.spawn(self.reader.run) for _ in range(self.readers)]

    def restart(self, which: int) -> None:
        """Kill one of the greenlets while it waits, and start it again."""
        which %= len(self.greenlets)
        self.greenlets[which].kill()
        self.greenlets[which] = gevent.spawn(self.reader.run if which else self.dispatcher.run)

    @property
    def reading(self) -> bool:
        """Return whether the board has work for the readers."""
        return bool(self.board.looks or self.board.behind)

    @property
    def delivering(self) -> bool:
        """Return whether the board has work for the dispatcher."""
        board = self.board
        return bool(board.moved or board.ready or board.pages or board.ephemeral)

    # clients

    def waits(self, client: FakeClient) -> bool:
        """Return whether a client waits for a reader."""
        subscription = client.subscription
        return subscription is not None and subscription in self.board.waiting(subscription.log)

    def client(self, stream: str = "orders", **request: Any) -> FakeClient:
        """Make a client that is not connected yet."""
        client = FakeClient(f"{len(self.clients):024x}", stream, on_unblocked=self._unblocked, **request)
        self.clients.append(client)
        return client

    def connect(self, stream: str = "orders", *, jammed: bool = False, **request: Any) -> FakeClient:
        client = self.client(stream, **request)
        client.jammed = jammed
        self.join(client)
        return client

    def join(self, client: FakeClient) -> Subscription:
        self.board.join(client, client.request.places)
        return client.subscriptions[0]

    def leave(self, client: Client, reason: str = "client left") -> None:
        if self.board.leave(client):
            client.reason = reason

    def _unblocked(self, client: FakeClient) -> None:
        for subscription in client.subscriptions:
            self.board.ready.add(subscription)

    # publishers

    def publish(self, stream: str = "orders", data: str | None = None, *, ring: bool = True, **values: Any) -> int:
        """Append a message, and unless ``ring`` is False, bring its wake."""
        wake = self.table.append(stream, data, **values)
        if ring:
            self.ring(wake)
        return wake.id

    def ring(self, wake: NewMessage) -> None:
        log = self.board.log(wake.stream)
        if log is not None and (not log.is_open or wake.id > log.head):
            self.board.take_next(log, wake)

    def look(self, stream: str = "orders") -> None:
        log = self.board.log(stream)
        if log is not None:
            self.board.looks.add(log)

    def ephemeral(self, data: str, stream: str = "orders", **values: Any) -> None:
        """Have an ephemeral message sent."""
        self.board.buffer_ephemeral(Ephemeral(stream, 0, "note", data, values.get("visible_to"), values.get("exclude")))

    def log(self, stream: str = "orders") -> StreamLog:
        log = self.board.log(stream)
        assert log is not None
        return log
