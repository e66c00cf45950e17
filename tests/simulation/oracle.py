"""The judge: what each client has to get, and what it got.

A client gets exactly the committed messages that it is entitled to after its cursor, in order, once, or is told of a gap. The
oracle knows every commit, and sees each piece of bytes when a worker hands it to a socket.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from math import inf

from .figures import Figures
from .ledger import Message, id_of
from .loop import CLOCK
from .seat import Failure, Seat
from .server import Server

CALM_AFTER = 6.0
"""Seconds from the start of a fleet until it has a steward that all rely on."""

PROMPT = 1.2
"""Seconds within which a message arrives while there is calm and a steward: it looks every 0.4 s."""

UNSEEN_PAGE = 0.2
"""Seconds that a page of messages may take that a client may not see. The client does not notice that it moves on."""


FORGED = "forged"
"""The data of a forged message."""

NEAR = 100
"""How far above the newest message an id is that will soon be given to a real one."""


class Oracle:
    """Judges one simulation. Raises :class:`Failure` at once."""

    def __init__(self, server: Server, figures: Figures) -> None:
        self._server = server
        self.figures = figures
        self._next: dict[tuple[str, int], Message] = {}
        self._last: dict[str, int] = {}
        self._lost: dict[tuple[str, int], Message] = {}
        self._ephemerals: dict[str, Message] = {}
        self.failure: Failure | None = None
        """The first promise that was broken."""
        self.failed_at = 0.0
        self.excused_until = 0.0
        """Until when clients may stay behind, because of a trouble."""
        self.bound = 5.0
        """How long a client may stay behind and idle after that, in seconds."""
        self.page_size = 500
        """How many messages workers read at once."""
        self.calm_from = CLOCK.now + CALM_AFTER
        """From when nothing disturbs the workers. While there is calm, ephemeral messages arrive."""
        self.troubled_at = 0.0
        """When the last trouble began."""
        self.has_steward = False
        """Whether there are several workers, so that the steward looks for messages that did not ring."""
        self._whispers: dict[str, list[Message]] = {}

    def fail(self, failure: Failure) -> None:
        """Note that a promise was broken."""
        self.figures.broke(failure.kind)
        if self.failure is None:
            self.failure, self.failed_at = failure, CLOCK.now

    # what happens in the database

    def committed(self, messages: list[Message]) -> None:
        """Note what was committed."""
        for message in messages:
            stream = message.stream
            before = self._last.get(stream, 0)
            if message.id <= before:
                raise Failure("worker", f"the model gave an id that is not the highest: {stream} {message.id}")
            self._next[stream, before] = message
            self._last[stream] = message.id

    def went_back(self, lost: list[Message]) -> None:
        """Note what the database has lost."""
        for message in lost:
            self._lost[message.stream, message.id] = message
            self._next.pop((message.stream, message.id), None)
        for stream in {message.stream for message in lost}:
            history = self._server.stream(stream).history
            self._last[stream] = history[-1].id if history else 0
            self._next.pop((stream, self._last[stream]), None)

    def seat_lost(self, seat: Seat) -> None:
        """Note for a client that the last message that it was sent may have been lost."""
        if seat.position is not None and self._is_lost(seat.stream, seat.position):
            seat.lose(seat.position)
            if self._lost[seat.stream, seat.position].was_pruned:
                # Its pruning was lost too. A worker that knew of that finds the loss with the next message.
                seat.lost_at = inf

    def forged(self, stream: str, id: int) -> None:
        """Note that somebody forges a message. It may be delivered, and is then a message that the database has lost."""
        self._lost[stream, id] = Message(stream, FORGED, None, None, None)

    def _is_lost(self, stream: str, id: int) -> bool:
        """Whether a message was lost or forged, and its id was not given to a real one since."""
        history = self._server.stream(stream).history
        place = bisect_left(history, id, key=id_of)
        return (stream, id) in self._lost and (place == len(history) or history[place].id != id)

    def _is_usurped(self, stream: str, id: int) -> bool:
        """Whether the id of a forged message was then given to a real one."""
        message = self._lost.get((stream, id))
        return message is not None and message.data == FORGED and not self._is_lost(stream, id)

    def _seen_at(self, stream: str, id: int) -> float:
        """Return when a message of the present timeline was committed."""
        history = self._server.stream(stream).history
        return history[bisect_left(history, id, key=id_of)].seen_at

    def _was_forged_among(self, stream: str) -> bool:
        """Whether a message was forged with an id that a real one was given since, or one near it.

        A worker that found that out may take real messages with ids up to the forged one for lost. Its clients get them again.
        """
        end = self._last.get(stream, 0) + NEAR
        return any(name == stream and id < end and self._lost[name, id].data == FORGED for name, id in self._lost)

    def sent_ephemeral(self, message: Message) -> None:
        """Note an ephemeral message. Numbers follow commits."""
        message.id, message.seen_at = len(self._ephemerals) + 1, CLOCK.now
        self._ephemerals[message.data] = message
        self._whispers.setdefault(message.stream, []).append(message)

    # what clients get

    def greeted(self, seat: Seat, connection: str, start: int) -> None:
        """A client was told where it starts."""
        seat.connection = connection
        head = self._last.get(seat.stream, 0)
        # If the id of a forged message is then given to a real one, a cursor does not show which of the two a client has.
        lost = self._is_lost(seat.stream, start)
        if start > head and not lost and seat.asked != start:
            raise Failure("lost", f"{seat.rights.name} starts at {start} in {seat.stream}, beyond the head {head}")
        if seat.asked is not None and start not in (seat.asked, 0):
            raise Failure("lost", f"{seat.rights.name} asked for {seat.asked} in {seat.stream} and starts at {start}")
        if seat.position is not None:
            raise Failure("repeated", f"{seat.rights.name} was greeted twice")
        seat.position = start
        seat.lost = start if lost else seat.asked if seat.asked and not start else None
        if lost and self._lost[seat.stream, start].was_pruned:
            seat.lost_at = inf  # as in seat_lost()
        seat.since = seat.ready = CLOCK.now

    def gap(self, seat: Seat, data: str) -> None:
        """A client was told of a gap."""
        told = json.loads(data)
        reason, requested = told["reason"], told["requestedId"]
        self.figures.gaps += 1
        seat.told = True
        if reason == "ahead":
            if (seat.stream, requested) not in self._lost and not self._was_forged_among(seat.stream):
                raise Failure(
                    "gap", f"{seat.rights.name} was told of a loss of {requested} in {seat.stream} that was none"
                )
            seat.position = 0
        elif reason == "expired" and not 0 < requested < self._server.stream(seat.stream).highest_horizon:
            raise Failure("gap", f"{seat.rights.name} was told that {requested} in {seat.stream} is expired")
        # A lost cursor that is below the horizon counts as expired: the client is told, and all that is retained follows.
        seat.lost = None

    def message(self, seat: Seat, id: int, data: str) -> None:
        """A client was sent a stored message."""
        self.figures.deliveries += 1
        position = seat.position
        if position is None:
            raise Failure("order", f"{seat.rights.name} got {id} of {seat.stream} before its greeting")
        following = self._next.get((seat.stream, position))
        if data == FORGED and (seat.stream, id) in self._lost and id > position:
            # A message that was forged with the id of one that was committed later: the client is to be told, and to get it.
            seat.position = id
            seat.lose(id)
            return
        if following is None or following.id != id:
            following = self._odd(seat, position, id)
            if following is None:
                return
        if following.data != data:
            raise Failure("order", f"{seat.rights.name} got other data for {id} of {seat.stream}: {data!r}")
        if (following.visible_to or following.exclude) and not self._may_see(seat, following):
            raise Failure("forbidden", f"{seat.rights.name} got {id} of {seat.stream}, for {following.visible_to}")
        if seat.lost is not None:
            self._untold(seat, following)
        seat.position = id
        seat.told = False
        seat.since = CLOCK.now

    def cursor(self, seat: Seat, cursor: int) -> None:
        """A client was told a cursor, with which it may come back."""
        position = seat.position
        if position is None or cursor <= position:
            return
        history = self._server.stream(seat.stream).history
        for message in history[bisect_right(history, position, key=id_of) :]:
            if message.id > cursor:
                break
            if self._is_due(seat, message):
                text = f"{seat.rights.name} was told the cursor {cursor} in {seat.stream}, and lacks {message.id}"
                raise Failure("lost", text)

    def _odd(self, seat: Seat, position: int, id: int) -> Message | None:
        """Judge a message that is not simply the next one. Return it if it is to be judged as any other."""
        name, stream = seat.rights.name, seat.stream
        if id <= position:
            kind = "repeated" if id == position else "order"
            raise Failure(kind, f"{name} got {id} of {stream} after {position}")
        if self._is_lost(stream, id):
            seat.position = id
            seat.lose(id)
            return None
        history = self._server.stream(stream).history
        first = bisect_right(history, position, key=id_of)
        for message in history[first:]:
            if message.id == id:
                return message
            if message.id > id:
                break
            self._skipped(seat, position, message, id)
        raise Failure("order", f"{name} got {id} of {stream}, which was never committed")

    def _skipped(self, seat: Seat, position: int, message: Message, by: int) -> None:
        """Judge a message that was left out."""
        if message.returned_at > seat.came_at or not self._is_entitled(seat, message):
            return
        if message.gone and (seat.told or position == 0):
            return
        what = "pruned, without a word" if message.gone else "lost"
        raise Failure("lost", f"{seat.rights.name} did not get {message.id} of {seat.stream}, but {by}: {what}")

    def _untold(self, seat: Seat, following: Message) -> None:
        """A message follows one of a lost timeline, and the client was told nothing."""
        if self._is_usurped(seat.stream, seat.lost or 0):
            return  # the notification of the real one shows it, and may come after a look has found those that follow
        history = self._server.stream(seat.stream).history
        index = bisect_right(history, seat.lost or 0, key=id_of)
        # Only a worker that did not see the loss may need a proof, and it has none if that row names no predecessor.
        if seat.lost != seat.asked or history[index].prev_id or seat.position == 0:
            raise Failure(
                "gap", f"{seat.rights.name} has {seat.lost} of {seat.stream}, which is lost, and was not told"
            )
        self.figures.unproven += 1
        seat.lost = None

    def ephemeral(self, seat: Seat, data: str) -> None:
        """A client was sent an ephemeral message."""
        self.figures.ephemerals += 1
        found = self._ephemerals.get(data)
        if found is None:
            raise Failure("ephemeral", f"{seat.rights.name} got {data!r}, which nobody sent")
        message, number = found, found.id
        if message.stream != seat.stream:
            raise Failure("forbidden", f"{seat.rights.name} got {data!r} of {message.stream} in {seat.stream}")
        if not self._may_see(seat, message):
            raise Failure("forbidden", f"{seat.rights.name} got {data!r}, for {message.visible_to}")
        if number <= seat.heard:
            raise Failure("ephemeral", f"{seat.rights.name} got {data!r} of {seat.stream} after number {seat.heard}")
        for other in self._unheard(seat):
            if other.id < number:
                raise Failure("ephemeral", f"{seat.rights.name} got {data!r} of {seat.stream}, and not {other.data!r}")
        seat.heard = number

    def _unheard(self, seat: Seat) -> Iterator[Message]:
        """Return the ephemeral messages that a client lacks although nothing has disturbed them."""
        whispers = self._whispers.get(seat.stream, ())
        for message in reversed(whispers):
            if message.id <= seat.heard or message.seen_at <= max(seat.ready, self.calm_from, self.troubled_at):
                return
            if self._is_entitled(seat, message):
                yield message

    # entitlement

    def _may_see(self, seat: Seat, message: Message) -> bool:
        if message.exclude is not None and message.exclude == seat.connection:
            return False
        return message.visible_to is None or seat.rights.may_see(message.visible_to)

    def _is_entitled(self, seat: Seat, message: Message) -> bool:
        """Whether a client had the right to see a message ever since it was committed."""
        if not self._may_see(seat, message):
            return False
        return message.visible_to is None or seat.rights.steady_since(message.visible_to) < message.seen_at

    def _is_due(self, seat: Seat, message: Message) -> bool:
        """Whether a client is to get a message. It may have passed one that was pruned for a time."""
        return not message.gone and message.returned_at <= seat.came_at and self._is_entitled(seat, message)

    # idle clients

    def missing(self, seat: Seat) -> Message | None:
        """Return the oldest message that a client lacks."""
        if seat.position is None:
            return None
        position = seat.position
        while (following := self._next.get((seat.stream, position))) is not None:
            if self._is_due(seat, following):
                return following
            position = following.id
        if position and position != self._last.get(seat.stream, 0):
            history = self._server.stream(seat.stream).history
            for message in history[bisect_right(history, position, key=id_of) :]:
                if self._is_due(seat, message):
                    return message
        return None

    def look(self, seat: Seat) -> None:
        """See how long a client has been behind and idle."""
        now = CLOCK.now
        if seat.lost is not None and seat.lost != seat.asked:
            usurped = self._is_usurped(seat.stream, seat.lost)
            if not usurped or self._seen_at(seat.stream, seat.lost) > self.calm_from:
                since = max(seat.lost_at, seat.since, self.excused_until)
                self._judge_idle(seat, now - since, f"was not told of the loss of {seat.lost} in {seat.stream}")
            if not usurped:
                return
        for whisper in self._unheard(seat):
            if now - whisper.seen_at > PROMPT:
                raise Failure("ephemeral", f"{seat.rights.name} did not get {whisper.data!r} of {seat.stream}")
        message = self.missing(seat)
        if message is None:
            return
        since = max(message.seen_at, seat.since, seat.rights.steady_since(message.visible_to or ""))
        since += self._unseen_before(seat, message) // self.page_size * UNSEEN_PAGE
        what = f"lacks {message.id} of {seat.stream}"
        self._judge_idle(seat, now - max(since, self.excused_until), what)
        if self.has_steward and now - max(since, self.calm_from) > PROMPT:
            raise Failure("idle", f"{seat.rights.name} {what} for {now - since:.1f} s, although there is calm")

    def _unseen_before(self, seat: Seat, message: Message) -> int:
        """Count the messages between those that a client has and the first that it lacks."""
        history = self._server.stream(seat.stream).history
        return bisect_left(history, message.id, key=id_of) - bisect_right(history, seat.position or 0, key=id_of)

    def _judge_idle(self, seat: Seat, idle: float, what: str) -> None:
        self.figures.worst_idle = max(self.figures.worst_idle, idle)
        if idle > self.bound:
            raise Failure("idle", f"{seat.rights.name} {what}, and has been idle for {idle:.1f} s")

    def waits(self, seat: Seat, since: float) -> None:
        """See how long a client has waited for its greeting."""
        self._judge_idle(seat, CLOCK.now - max(since, self.excused_until), f"was not greeted in {seat.stream}")
