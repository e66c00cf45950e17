"""The planted faults."""

from __future__ import annotations

from . import Edit, Fault

_DISPATCHER = "pgbus_gevent.streamer.dispatcher:StreamEventDispatcher"
_READER = "pgbus_gevent.streamer.reader:Reader"
_LISTENER = "pgbus_gevent.streamer.listener:Listener"
_LOG = "pgbus_gevent.core.stream_log:StreamLog"
_BOARD = "pgbus_gevent.core.board:Board"

FAULTS = (
    Fault(
        "heads_compared_in_one_direction",
        "A probe looks only for streams whose table has more than the worker, and so finds no loss.",
        (
            Edit(
                "pgbus_gevent.streamer.sweeper:Sweeper._probe",
                "(now < heads[log.name] or now > log.head)",
                "now > log.head",
            ),
        ),
    ),
    Fault(
        "hole_not_asked_again",
        "Ids that were missing when a tail passed them are not asked for again.",
        (
            Edit("pgbus_gevent.core.tail:Tail.holes", "return list(self._holes)", "return []"),
            Edit("pgbus_gevent.core.id_tail:IdTail.question", "for hole in self.holes\n", "for hole in ()\n"),
        ),
    ),
    Fault(
        "cursor_moved_after_the_yield",
        "A cursor moves after other greenlets ran, and not in one step with the bytes.",
        (
            Edit(
                f"{_DISPATCHER}._pass",
                "subscription.cursor = chunk.cursor\n            try:",
                "try:",
            ),
            Edit(
                f"{_DISPATCHER}._pass",
                "        sent += 1\n",
                "        sent += 1\n        yield\n        subscription.cursor = chunk.cursor\n",
            ),
        ),
    ),
    Fault(
        "ring_survives_a_rewind",
        "A log that is taken back keeps the lost messages in its ring.",
        (Edit(f"{_LOG}.rewind", "    self.clear_ring()\n", ""),),
    ),
    Fault(
        "page_served_over_a_gap",
        "A client that reads from below the horizon is not told that messages are gone.",
        (
            Edit(
                f"{_DISPATCHER}._send_page",
                "gap = self._gap(subscription, cursor, content.horizon, content.oldest, content.newest)",
                'gap = b""',
            ),
        ),
    ),
    Fault(
        "ephemeral_overtakes",
        "A small ephemeral message does not wait for a large one that came before it.",
        (
            Edit(
                f"{_BOARD}.take_ephemeral",
                "if message.data is not None and not self.large:",
                "if message.data is not None:",
            ),
        ),
    ),
    Fault(
        "filter_evaluated_late",
        "A filter's new answer counts only from the message after the next one.",
        (
            Edit(
                "pgbus_gevent.core.filters:Filters.permits",
                "answer = predicate(context, stream)",
                "earlier = vars(self).setdefault('earlier', {})\n"
                "        now = predicate(context, stream)\n"
                "        answer, earlier[label, context] = earlier.get((label, context), now), now",
            ),
        ),
    ),
    Fault(
        "prev_id_trusted_in_repeatable_read",
        "A row that is appended in REPEATABLE READ names the newest message that its old snapshot shows as its predecessor.",
        (
            Edit(
                "tests.simulation.database.publishing:append_once",
                "None if transaction.has_one_snapshot else head",
                "head",
            ),
        ),
    ),
    Fault(
        "wake_lost_on_listening_again",
        "After a new LISTEN session, the table is not asked for what was missed.",
        (
            Edit(f"{_LISTENER}._open", "self._board.resync()", "pass"),
            Edit(
                f"{_LISTENER}._heard",
                "if self.live and log.is_open and not log.retired:",
                "if False:",
            ),
        ),
    ),
    Fault(
        "admission_doubled",
        "A client whose cursor has not moved yet is admitted again.",
        (
            Edit(
                f"{_DISPATCHER}._bring",
                "if subscription.cursor is None:",
                "if subscription.cursor is None or subscription.unproven:",
            ),
        ),
    ),
    Fault(
        "ring_served_below_its_floor",
        "A client below the ring is served from it, without the messages that the ring has dropped.",
        (Edit(f"{_LOG}.after", "if cursor < self.floor:", "if not self._ids:"),),
    ),
    Fault(
        "head_believed_before_the_look",
        "A client that knows of a newer message than its worker is told that the message was lost.",
        (
            Edit(f"{_READER}._open", "subscription.verified = current", "subscription.verified = True"),
            Edit(
                "pgbus_gevent.streamer.dispatcher:admit",
                "if subscription.verified else None",
                "if subscription.verified or log.is_open else None",
            ),
        ),
    ),
    Fault(
        "work_lost_with_the_dispatcher",
        "What a dispatcher had taken when it died is not given back.",
        (
            Edit(
                f"{_BOARD}.delivering",
                "for work in (self.moved, self.ready, self.pages, self.ephemeral):",
                "for work in ():",
            ),
        ),
    ),
    Fault(
        "unblocked_in_one_stream",
        "A client of several streams that reads again gets only the first one's messages.",
        (
            Edit(
                "pgbus_gevent.streamer.clients:Clients.unblocked",
                "for subscription in subscriptions:",
                "for subscription in subscriptions[:1]:",
            ),
        ),
    ),
    Fault(
        "flag_not_set_again",
        "An item that was added while a greenlet had it is forgotten.",
        (
            Edit(
                "pgbus_gevent.core.work:Work.done",
                "if self._waiting and (not self._taken or item in self._waiting):",
                "self._waiting.pop(item, None)\n    if False:",
            ),
        ),
    ),
    Fault(
        "cursors_of_other_streams_at_their_heads",
        "The id of a frame on a shared connection names the heads of the other streams, and not what was sent.",
        (
            Edit(
                "pgbus_gevent.core.audience:Audience._of_several",
                "cursors = [each.cursor or 0 for each in subscriptions]",
                "cursors = [each.log.head for each in subscriptions]",
            ),
        ),
    ),
    Fault(
        "next_message_not_checked",
        "A notification's message enters the log although others may lie before it.",
        (Edit(f"{_LOG}.follows", "return self.is_open and prev_id == self.head", "return self.is_open"),),
    ),
    Fault(
        "pruning_believed_for_ever",
        "A worker that knows that a message was pruned does not notice that the database has lost its pruning.",
        (
            Edit(
                f"{_READER}._is_lost",
                "(log.horizon >= head and page.forgotten >= head)",
                "log.horizon >= head",
            ),
        ),
    ),
    Fault(
        "forged_message_believed",
        "The real message with the id of a forged one is taken for the one that is known already.",
        (Edit(f"{_LOG}._differs", "self.doubts += 1", "self.recheck = None"),),
    ),
    Fault(
        "contradiction_lost_during_a_check",
        "A forged message that is found out while the table is asked about another one is forgotten.",
        (
            Edit(
                f"{_READER}._recheck",
                "        above = max(cursor, page.horizon)\n",
                "        log.recheck = None\n        above = max(cursor, page.horizon)\n",
            ),
        ),
    ),
    Fault(
        "check_always_rewinds",
        "A notification that comes twice after a forged one is taken for a loss, although the table has its message.",
        (Edit(f"{_READER}._recheck", "if not agree(frames, page.rows, above=above, up_to=up_to):", "if True:"),),
    ),
    Fault(
        "replay_one_too_few",
        "A client that asks for the last messages gets one less.",
        (Edit(f"{_LOG}.back", "self._ids[-count - 1]", "self._ids[-count]"),),
    ),
    Fault(
        "event_name_dropped",
        "Stored messages come without their event names.",
        (Edit("pgbus_gevent.core.stream_log:encode", "event=row.event", "event=None"),),
    ),
    Fault(
        "heartbeat_not_sent",
        "Quiet connections get no heartbeat.",
        (
            Edit(
                "pgbus_gevent.streamer.heartbeat:Heartbeat._check",
                "if now - client.last_sent >= self._least:",
                "if False:",
            ),
        ),
    ),
    Fault(
        "slow_client_closed_at_once",
        "A client that does not read is sent away at the next check, and not after the deadline.",
        (
            Edit(
                "pgbus_gevent.streamer.heartbeat:Heartbeat._check",
                "due = blocked_since + self._write_deadline",
                "due = blocked_since",
            ),
        ),
    ),
)
