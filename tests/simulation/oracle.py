"""The judge: what each client has to get, and what it got.

A client gets exactly the committed messages that it is entitled to after its cursor, in order, once, or is told of a gap. The
oracle knows every commit, and sees each piece of bytes when a worker hands it to a socket.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from math import inf

from .figures import Figures
from .ledger import Message, id_of
from .loop import CLOCK
from .losses import FORGED, Losses
from .seat import Failure, Seat
from .server import Server
from .starts import judge_start
from .whispers import PROMPT, Whispers

CALM_AFTER = 6.0
"""Seconds from the start of a fleet until it has a steward that all rely on."""

UNSEEN_PAGE = 0.2
"""Seconds that a page of messages may take that a client may not see. The client does not notice that it moves on."""

TRY_AGAIN = 2.0
"""Seconds after which a client that was sent away comes back, at most."""

LATE_HEARTBEAT = 1.0
"""How late a heartbeat may be, in seconds."""

RECENT = 2.0
"""Seconds within which messages before another one count as new, so that a client may still be led past them."""


class Oracle:
    """Judges one simulation. Raises :class:`Failure` at once."""

    def __init__(self, server: Server, figures: Figures) -> None:
        self._server = server
        self.figures = figures
        self._next: dict[tuple[str, int], Message] = {}
        self._last: dict[str, int] = {}
        self.losses = Losses(server)
        self.failure: Failure | None = None
        """The first promise that was broken."""
        self.failed_at = 0.0
        self.excused_until = 0.0
        """Until when clients may stay behind, because of a trouble."""
        self.bound = 5.0
        """How long a client may stay behind and idle after that, in seconds."""
        self.heartbeat = 15.0
        """The longest silence towards a client, in seconds."""
        self.write_deadline = 20.0
        """How long a client may read nothing, in seconds."""
        self.ring_messages = 1000
        self.page_size = 500
        """How many messages workers read at once."""
        self.calm_from = CLOCK.now + CALM_AFTER
        """From when nothing disturbs the workers. While there is calm, ephemeral messages arrive."""
        self.troubled_at = 0.0
        """When the last trouble began."""
        self.has_steward = False
        """Whether there are several workers, so that the steward looks for messages that did not ring."""
        self.whispers = Whispers(self)

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

    def went_back(self, lost: list[Message], seats: Iterable[Seat]) -> None:
        """Note what the database has lost, also for the clients whose last message was lost now."""
        for message in lost:
            self.losses.add(message)
            self._next.pop((message.stream, message.id), None)
        for stream in {message.stream for message in lost}:
            history = self._server.stream(stream).history
            self._last[stream] = history[-1].id if history else 0
            self._next.pop((stream, self._last[stream]), None)
        ids = {(message.stream, message.id) for message in lost}
        for seat in seats:
            if seat.position is not None and (seat.stream, seat.position) in ids:
                self._lose(seat, seat.position)

    def _lose(self, seat: Seat, id: int) -> None:
        seat.lose(id, self._until_next(seat.stream, id))

    def _until_next(self, stream: str, id: int) -> float:
        """Return after which time a message must have been committed that has clients told of a loss; or 0 if it needs none."""
        # If its pruning was lost too, a worker that knew of that finds the loss with the first message that follows the loss.
        lost = self.losses.messages[stream, id]
        return lost.lost_at if lost.was_pruned else 0.0

    # what clients get

    def greeted(self, seat: Seat, connection: str, start: int) -> None:
        """A client was told where it starts."""
        seat.connection = connection
        head = self._last.get(seat.stream, 0)
        # If the id of a forged message is then given to a real one, a cursor does not show which of the two a client has.
        lost = self.losses.has(seat.stream, start)
        if start > head and not lost and seat.asked != start:
            raise Failure("lost", f"{seat.rights.name} starts at {start} in {seat.stream}, beyond the head {head}")
        if seat.asked is not None and start not in (seat.asked, 0):
            raise Failure("lost", f"{seat.rights.name} asked for {seat.asked} in {seat.stream} and starts at {start}")
        if seat.position is not None:
            raise Failure("repeated", f"{seat.rights.name} was greeted twice")
        seat.position = start
        seat.lost = start if lost else seat.asked if seat.asked and not start else None
        seat.until_next = self._until_next(seat.stream, start) if lost else 0.0
        seat.since = seat.ready = CLOCK.now
        if not lost and not self.losses.any_forged_in(seat.stream):
            judge_start(seat, start, self._server.stream(seat.stream).history, self.excused_until, self.bound)

    def gap(self, seat: Seat, data: str) -> None:
        """A client was told of a gap."""
        told = json.loads(data)
        reason, requested = told["reason"], told["requestedId"]
        self.figures.gaps += 1
        seat.told = True
        if requested is None or requested < (seat.position or 0) or not self._may_tell(seat, reason, requested):
            raise Failure(
                "gap", f"{seat.rights.name} was told {reason!r} about {requested} in {seat.stream}, without a cause"
            )
        if reason == "ahead":
            seat.position = 0
        # A lost cursor that is below the horizon counts as expired: the client is told, and all that is retained follows.
        seat.lost = None

    def _may_tell(self, seat: Seat, reason: str, requested: int) -> bool:
        """Whether there is a cause for a gap event: once for each lost message, and for each forged one."""
        if reason == "expired":
            return 0 < requested < self._server.stream(seat.stream).highest_horizon
        if reason != "ahead":
            return False
        if self.losses.has(seat.stream, requested) and requested not in seat.requested:
            seat.requested.add(requested)
            return True
        seat.repeats += 1
        return seat.repeats <= self.losses.forged_in(seat.stream)

    def message(self, seat: Seat, id: int, data: str, event: str) -> None:
        """A client was sent a stored message."""
        self.figures.deliveries += 1
        position = seat.position
        if position is None:
            raise Failure("order", f"{seat.rights.name} got {id} of {seat.stream} before its greeting")
        following = self._next.get((seat.stream, position))
        if data == FORGED and (seat.stream, id) in self.losses.messages and id > position:
            # A message that was forged with the id of one that was committed later: the client is to be told, and to get it.
            self._is_sent_lost(seat, position, id)
            return
        if following is None or following.id != id:
            following = self._odd(seat, position, id)
        if following.data != data or (following.event or "") != event:
            raise Failure("order", f"{seat.rights.name} got other data for {id} of {seat.stream}: {event!r} {data!r}")
        if (following.visible_to or following.exclude) and not self.may_see(seat, following):
            raise Failure("forbidden", f"{seat.rights.name} got {id} of {seat.stream}, for {following.visible_to}")
        if self.losses.has(seat.stream, id):
            self._is_sent_lost(seat, position, id)
            return
        if seat.lost is not None:
            self._untold(seat, following)
        seat.position = id
        seat.told = False
        seat.requested.discard(id)  # it was forged before, and may now be lost
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

    def _is_sent_lost(self, seat: Seat, position: int, id: int) -> None:
        """A client was sent a message that the database has lost, or that was forged; after all that came before it."""
        before = self.losses.messages[seat.stream, id].seen_at
        for message in self._server.stream(seat.stream).above(position):
            if message.id < id and message.seen_at <= before:
                self._skipped(seat, position, message, id)
        seat.position = id
        self._lose(seat, id)
        seat.sent_lost.append(id)
        if seat.sent_lost.count(id) <= self.losses.most_heard(seat.stream, id):
            seat.requested.discard(id)  # it was told of its cursor, or of an earlier notification

    def _odd(self, seat: Seat, position: int, id: int) -> Message:
        """Judge the place of a message that is not simply the next one, and return it."""
        name, stream = seat.rights.name, seat.stream
        if id <= position:
            kind = "repeated" if id == position else "order"
            raise Failure(kind, f"{name} got {id} of {stream} after {position}")
        if self.losses.has(stream, id):
            return self.losses.messages[stream, id]
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
        if message.returned_at or not self.is_entitled(seat, message):
            return  # a worker may remember the pruning that the database has lost
        if message.gone and (seat.told or position == 0):
            return
        what = "pruned, without a word" if message.gone else "lost"
        raise Failure("lost", f"{seat.rights.name} did not get {message.id} of {seat.stream}, but {by}: {what}")

    def _untold(self, seat: Seat, following: Message) -> None:
        """A message follows one of a lost timeline, and the client was told nothing."""
        if self.losses.is_usurped(seat.stream, seat.lost or 0):
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

    # entitlement

    def may_see(self, seat: Seat, message: Message) -> bool:
        if message.exclude is not None and message.exclude == seat.connection:
            return False
        return message.visible_to is None or seat.rights.may_see(message.visible_to)

    def is_entitled(self, seat: Seat, message: Message) -> bool:
        """Whether a client had the right to see a message ever since it was committed."""
        if not self.may_see(seat, message):
            return False
        return message.visible_to is None or seat.rights.steady_since(message.visible_to) < message.seen_at

    def _is_due(self, seat: Seat, message: Message) -> bool:
        """Whether a client is to get a message. It need not get one that was pruned for a time."""
        return not message.was_pruned and self.is_entitled(seat, message)

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
            usurped = self.losses.is_usurped(seat.stream, seat.lost)
            since = self._untold_since(seat, seat.lost, usurped)
            self._judge_idle(seat, now - since, f"was not told of the loss of {seat.lost} in {seat.stream}")
            if not usurped:
                return
        self.whispers.look(seat)
        message = self.missing(seat)
        if message is None:
            return
        what = f"lacks {message.id} of {seat.stream}"
        self._judge_idle(seat, now - self._due_since(seat, message, self.excused_until), what)
        if self.has_steward and now - self._due_since(seat, message, self.calm_from) > PROMPT:
            raise Failure("idle", f"{seat.rights.name} {what} since {message.seen_at:.1f}, although there is calm")

    def _untold_since(self, seat: Seat, lost: int, usurped: bool) -> float:
        """Return since when a client is to be told of a loss; infinite if it need not be."""
        if usurped:
            # Not while something disturbs the notification of the real one. What the client gets meanwhile does not count.
            seen_at = self.losses.shows_from(seat.stream, lost, self.ring_messages)
            return max(seat.lost_at, seen_at, seat.ready, self.excused_until) if seen_at > self.calm_from else inf
        since = max(seat.lost_at, seat.since, self.excused_until)
        if not seat.until_next:
            return since
        newer = (message.seen_at for message in self._server.stream(seat.stream).history)
        return max(since, next((seen_at for seen_at in newer if seen_at > seat.until_next), inf))

    def _due_since(self, seat: Seat, message: Message, calm: float) -> float:
        """Return since when a client could have a message, if nothing has disturbed anybody since ``calm``.

        It may first be led past messages that it may not see: from when it last got something, or from the commit if they are new.
        """
        above = self._server.stream(seat.stream).above(seat.position or 0)
        unseen = [each.seen_at for each in above if each.id < message.id]
        new = len(unseen) - bisect_left(unseen, message.seen_at - RECENT)
        pages, new_pages = len(unseen) // self.page_size, new // self.page_size
        steady = seat.rights.steady_since(message.visible_to or "")
        return max(message.seen_at + new_pages * UNSEEN_PAGE, max(seat.since, calm) + pages * UNSEEN_PAGE, steady)

    def _judge_idle(self, seat: Seat, idle: float, what: str) -> None:
        self.figures.worst_idle = max(self.figures.worst_idle, idle)
        if idle > self.bound:
            raise Failure("idle", f"{seat.rights.name} {what}, and has been idle for {idle:.1f} s")

    def waits(self, seat: Seat, since: float) -> None:
        """See how long a client has waited for its greeting."""
        self._judge_idle(seat, CLOCK.now - max(since, self.excused_until), f"was not greeted in {seat.stream}")

    def turned_away(self, name: str, since: float) -> None:
        """See how long all workers have sent a client away before they greeted it."""
        idle = CLOCK.now - max(since, self.excused_until)
        if idle > self.bound + TRY_AGAIN:
            raise Failure("idle", f"{name} was sent away without a greeting, again and again for {idle:.1f} s")

    def silent(self, name: str, since: float) -> None:
        """See how long a client that reads has got no byte, not even a heartbeat."""
        silence = CLOCK.now - max(since, self.excused_until)
        if silence > self.heartbeat + LATE_HEARTBEAT:
            raise Failure("idle", f"{name} got no heartbeat for {silence:.1f} s")
