"""What tests of the streamer's parts share: a client without a socket, a database in memory, and the parts wired together."""

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

from pgbus_gevent.core.board import Board, RingLimits
from pgbus_gevent.core.client import Client, Place, StreamRequest, Subscriber, Subscription
from pgbus_gevent.core.events import Events
from pgbus_gevent.core.filters import Filters
from pgbus_gevent.core.stream_log import StreamLog
from pgbus_gevent.core.wakes import Ephemeral, Ring
from pgbus_gevent.database.rows import EphemeralRow, Opening, OpenQuestion, Page, Row, TailRow
from pgbus_gevent.errors import DatabaseUnavailable
from pgbus_gevent.streamer.dispatcher import StreamEventDispatcher
from pgbus_gevent.streamer.reader import Reader


def wait_until(condition: Callable[[], Any], what: str = "", timeout: float = 5.0) -> None:
    """Give way until ``condition`` holds; fails when it does not in time."""
    deadline = monotonic() + timeout
    while not condition():
        assert monotonic() < deadline, what or "the condition did not come true in time"
        gevent.sleep(0.0005)


def plain(sock: socket.socket) -> Any:
    """A socket that is out of gevent's hands and does not block, as a server gives it."""
    found = _socket.socket(sock.family, sock.type, sock.proto, sock.detach())
    found.setblocking(False)
    return found


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """The two ends of a connection over TCP: ours, and the client's."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
    return accepted, client


class Received(NamedTuple):
    """An event as somebody else's parser understands it."""

    id: str
    event: str
    data: str


def parse(stream: bytes | bytearray) -> list[Received]:
    """The events of a stream, by a parser that is not ours; ``id`` is the last one seen, as the WHATWG says."""
    decoder = SSEDecoder()
    lines = SSELineDecoder().decode(bytes(stream).decode()) if stream else []
    events = [event for event in map(decoder.decode, lines) if event is not None]
    return [Received(event.id, event.event, event.data) for event in events if event.event != "message" or event.data]


def one_stream(
    stream: str, *, owner: str | None = None, context: Any = None, expires_at: float | None = None, **place: Any
) -> StreamRequest:
    """A request for one stream."""
    subscriber = Subscriber(owner=owner, context=context, expires_at=expires_at)
    return StreamRequest((Place(stream, subscriber=subscriber, **place),))


class FakeClient(Client):
    """A client that keeps what it is given. While ``jammed`` it takes nothing: what it is given waits until :meth:`drain`."""

    def __init__(
        self,
        id: str = "c0ffee",
        stream: str = "orders",
        *,
        now: float = 0.0,
        on_drained: Callable[[FakeClient], None] = lambda client: None,
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
        self._on_drained = on_drained

    @property
    def blocked_since(self) -> float | None:
        return self._blocked_since

    @blocked_since.setter
    def blocked_since(self, value: float | None) -> None:
        self._blocked_since = value

    def send(self, data: bytes, now: float) -> None:
        assert self._blocked_since is None, "sent to a client for which something waits"
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

    def drain(self) -> None:
        """Take what waits, and more from now on."""
        self.jammed = False
        if self._blocked_since is not None:
            self.received += self.waiting
            self.waiting.clear()
            self._blocked_since = None
            self._on_drained(self)

    @property
    def subscription(self) -> Subscription | None:
        """Its place in its one stream, while it is connected."""
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
    """The place of a client in its one stream, once it has joined a board."""
    board.join(client, client.request.places)
    return client.subscriptions[0]


def seat(connection: str, stream: str, member: str | None = None, metadata: Any = None) -> Any:
    """As much of a subscription as presence looks at."""
    subscriber = SimpleNamespace(member=member, context={"presence": metadata})
    return SimpleNamespace(
        log=SimpleNamespace(name=stream), lease=connection, place=SimpleNamespace(subscriber=subscriber), lives=0
    )


class Noted:
    """Notes what becomes of its connections."""

    def __init__(self) -> None:
        self.drains: list[Client] = []
        self.leavings: list[tuple[Client, str]] = []

    def drained(self, client: Client) -> None:
        self.drains.append(client)

    def gone(self, client: Client, reason: str) -> None:
        self.leavings.append((client, reason))


class Table:
    """The table of messages, in memory: answers as :class:`pgbus_gevent.database.queries.Queries` does.

    ``failures`` is how many reads are to fail from now on, ``on_read`` is called in each before it looks.
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

    def append(self, stream: str, data: str | None = None, **values: Any) -> Ring:
        """Store a message, by default with its id as data; the wake that its publisher would ring."""
        rows = self.rows[stream]
        id, prev_id = self._next_id, self.head(stream)
        self._next_id += self._step
        row = Row(
            id,
            **{"event": None, "visible_to": None, "exclude": None, "prev_id": prev_id, **values},
            data=data or str(id),
        )
        rows.append(row)
        return Ring(stream, id, row.prev_id, 0.0, row.event, row.data, row.visible_to, row.exclude)

    def prune(self, stream: str, count: int) -> None:
        """Remove the oldest messages, as retention does."""
        removed = self.rows[stream][:count]
        if removed:
            del self.rows[stream][:count]
            self.horizons[stream] = removed[-1].id

    def lose(self, stream: str, count: int) -> None:
        """Go back in time: the newest messages were never there. Their ids are not given again."""
        if count:
            del self.rows[stream][-count:]

    def skip(self, ids: int) -> None:
        """Ids jump, as they do after a loss."""
        self._next_id += ids

    def delete(self, stream: str, id: int) -> None:
        """Remove a message by hand, as if it had never been there."""
        self.rows[stream] = [row for row in self.rows[stream] if row.id != id]

    def head(self, stream: str) -> int:
        rows = self.rows[stream]
        return rows[-1].id if rows else self.horizons.get(stream, 0)

    def ids(self, stream: str, above: int = 0) -> list[int]:
        return [row.id for row in self.rows[stream] if row.id > above]

    # what the parts ask

    def _read(self, kind: str) -> None:
        self.reads.append(kind)
        self.on_read()
        if self.failures:
            self.failures -= 1
            raise DatabaseUnavailable("PostgreSQL is not available: the tests say so")

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

    def pages(self, after: Sequence[tuple[str, int]], *, limit: int, size: int) -> list[Page]:
        self._read("pages")
        return [self._page(stream, cursor, limit, size) for stream, cursor in after]

    def _page(self, stream: str, cursor: int, limit: int, size: int) -> Page:
        found = [row for row in self.rows[stream] if row.id > cursor]
        rows = _fitting(found, limit, size)
        # As cautious as the statement, which does not look behind a message that makes the page full.
        full = sum(len(row.data.encode()) for row in rows) >= size
        horizon = self.horizons.get(stream, 0)
        anchor = max((row.id for row in self.rows[stream] if horizon < row.id <= cursor), default=0)
        return Page(rows, horizon, full or len(rows) < len(found), anchor, self.forgotten)

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
    """The first of them: so many, and none that begins beyond so many bytes."""
    taken = 0
    fitting = []
    for row in rows[:limit]:
        if taken >= size:
            break
        fitting.append(row)
        taken += len(row.data.encode())
    return fitting


class FakeClients:
    """Stands in for the keeper of the clients: closes those whose delivery raised, and writes them down."""

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
    """An empty board, with gevent's events as its flags."""
    return Board(Event, RingLimits(ring_messages, ring_bytes, ring_budget), tick=tick, events=events)


class Parts:
    """A board, a dispatcher and readers over a table, as an Instance has them, without a socket or a clock of their own."""

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
        """Whose deliveries are meant to fail."""
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
        """Kill one of the greenlets wherever it stands, and start it again."""
        which %= len(self.greenlets)
        self.greenlets[which].kill()
        self.greenlets[which] = gevent.spawn(self.reader.run if which else self.dispatcher.run)

    @property
    def reading(self) -> bool:
        """Whether something is left for the readers to do."""
        return bool(self.board.looks or self.board.behind)

    @property
    def delivering(self) -> bool:
        """Whether something is left for the dispatcher to do."""
        board = self.board
        return bool(board.moved or board.ready or board.pages or board.hinted)

    # clients

    def waits(self, client: FakeClient) -> bool:
        """Whether a client waits for a reader."""
        place = client.subscription
        return place is not None and place in self.board.waiting(place.log)

    def client(self, stream: str = "orders", **request: Any) -> FakeClient:
        """One that is not connected yet."""
        client = FakeClient(f"{len(self.clients):024x}", stream, on_drained=self._drained, **request)
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

    def _drained(self, client: FakeClient) -> None:
        for subscription in client.subscriptions:
            self.board.ready.add(subscription)

    # publishers

    def publish(self, stream: str = "orders", data: str | None = None, *, ring: bool = True, **values: Any) -> int:
        """Append a message, and unless told otherwise bring its wake."""
        wake = self.table.append(stream, data, **values)
        if ring:
            self.ring(wake)
        return wake.id

    def ring(self, wake: Ring) -> None:
        log = self.board.log(wake.stream)
        if log is not None and (not log.is_open or wake.id > log.head):
            self.board.take_next(log, wake)

    def look(self, stream: str = "orders") -> None:
        log = self.board.log(stream)
        if log is not None:
            self.board.looks.add(log)

    def hint(self, data: str, stream: str = "orders", **values: Any) -> None:
        """Pass an ephemeral message on."""
        self.board.pass_on(Ephemeral(stream, 0, "hint", data, values.get("visible_to"), values.get("exclude")))

    def log(self, stream: str = "orders") -> StreamLog:
        log = self.board.log(stream)
        assert log is not None
        return log
