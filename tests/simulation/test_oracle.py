"""The oracle notices each kind of broken promise, and nothing else."""

from __future__ import annotations

import json
from random import Random

import pytest

from tests.simulation.figures import Figures
from tests.simulation.ledger import Message
from tests.simulation.loop import CLOCK
from tests.simulation.losses import FORGED
from tests.simulation.oracle import Oracle
from tests.simulation.seat import Failure, Seat
from tests.simulation.server import Server


class Client:
    name = "client"

    def __init__(self) -> None:
        self.rights = {"red"}

    def may_see(self, label: str) -> bool:
        return label in self.rights

    def steady_since(self, label: str) -> float:
        return 0.0


class Court:
    """An oracle, a client in one stream, and what is committed there."""

    def __init__(self, asked: int | None = 0) -> None:
        self.server = Server(Random(1), step=0.001, seed=1)
        self.oracle = Oracle(self.server, Figures())
        self.client = Client()
        self.seat = Seat("s", self.client, asked)
        self.head = 0
        self.oracle.greeted(self.seat, "me", asked or 0)

    def commit(self, *ids: int, label: str | None = None, exclude: str | None = None, prev_known: bool = True) -> None:
        for id in ids:
            message = Message("s", str(id), None, label, exclude)
            message.id, message.prev_id, message.seen_at = id, self.head if prev_known else None, CLOCK.now
            self.head = id
            message.rang = True
            self.server.stream("s").history.append(message)
            self.oracle.committed([message])

    def deliver(self, *ids: int) -> None:
        for id in ids:
            self.oracle.message(self.seat, id, str(id), "")

    def lose(self, *ids: int) -> None:
        stream = self.server.stream("s")
        self.oracle.went_back(stream.lose({row.id for row in stream.history} - set(ids), 0), [self.seat])
        self.head = stream.history[-1].id if stream.history else 0

    def tell(self, reason: str, requested: int) -> None:
        self.oracle.gap(self.seat, json.dumps({"stream": "s", "reason": reason, "requestedId": requested}))

    def refuses(self, kind: str, *ids: int) -> None:
        with pytest.raises(Failure) as found:
            self.deliver(*ids)
        assert found.value.kind == kind


def test_messages_in_their_order_are_right() -> None:
    court = Court()
    court.commit(1, 2, 3)
    court.deliver(1, 2, 3)
    assert court.oracle.figures.deliveries == 3
    assert court.oracle.missing(court.seat) is None


def test_a_message_that_is_left_out_is_lost() -> None:
    court = Court()
    court.commit(1, 2, 3)
    court.deliver(1)
    court.refuses("lost", 3)


@pytest.mark.parametrize(("id", "kind"), [(2, "repeated"), (1, "order")])
def test_a_message_that_comes_again_is_wrong(id: int, kind: str) -> None:
    court = Court()
    court.commit(1, 2)
    court.deliver(1, 2)
    court.refuses(kind, id)


def test_a_message_for_others_is_forbidden_and_is_not_missed() -> None:
    court = Court()
    court.commit(1, label="blue")
    court.commit(2, exclude="me")
    court.commit(3, label="red")
    court.deliver(3)
    court.commit(4, label="blue")
    court.refuses("forbidden", 4)


def test_pruned_messages_may_be_left_out_if_the_client_is_told() -> None:
    court = Court()
    court.commit(1, 2, 3)
    court.deliver(1)
    court.server.stream("s").prune(2)
    court.refuses("lost", 3)
    court.tell("expired", 1)
    court.deliver(3)


def test_a_message_whose_pruning_was_lost_may_be_left_out_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    court = Court()
    court.commit(1, 2)
    court.server.stream("s").prune(1)
    monkeypatch.setattr(CLOCK, "now", CLOCK.now + 1.0)
    court.server.stream("s").prune(0)
    court.oracle.cursor(court.seat, 1)
    court.deliver(2)
    monkeypatch.setattr(CLOCK, "now", CLOCK.now + 1.0)
    court.seat = Seat("s", court.client, 0)
    court.oracle.greeted(court.seat, "me", 0)
    court.deliver(1, 2)
    court.seat = Seat("s", court.client, 0)
    court.oracle.greeted(court.seat, "me", 0)
    court.deliver(2)


def test_a_message_that_was_pruned_and_came_back_may_be_lost_untold(monkeypatch: pytest.MonkeyPatch) -> None:
    court = Court()
    court.commit(1, 2)
    court.deliver(1, 2)
    court.server.stream("s").prune(2)
    court.server.stream("s").prune(0)
    court.lose(2)
    monkeypatch.setattr(CLOCK, "now", CLOCK.now + 60.0)
    court.oracle.look(court.seat)
    court.commit(9)
    court.refuses("gap", 9)


def test_a_client_is_told_of_a_loss_and_gets_everything_again() -> None:
    court = Court()
    court.commit(1, 2, 3)
    court.deliver(1, 2, 3)
    court.lose(3)
    court.commit(9)
    court.refuses("gap", 9)
    court.tell("ahead", 3)
    court.deliver(1, 2, 9)


def test_a_gap_without_a_loss_is_wrong() -> None:
    court = Court()
    court.commit(1, 2)
    court.deliver(1, 2)
    for reason in ("ahead", "expired"):
        with pytest.raises(Failure):
            court.tell(reason, 2)


def test_a_cursor_that_was_lost_may_stay_untold_without_a_proof() -> None:
    court = Court()
    court.commit(1, 2)
    court.lose(2)
    court.seat = Seat("s", court.client, 2)
    court.oracle.greeted(court.seat, "me", 2)
    court.commit(9, prev_known=False)
    court.deliver(9)
    assert court.oracle.figures.unproven == 1


def test_a_forged_message_without_a_real_one_must_be_found_out_before_others() -> None:
    court = Court()
    court.commit(1)
    court.deliver(1)
    court.oracle.losses.forged("s", 5)
    court.oracle.message(court.seat, 5, FORGED, "")
    court.commit(9)
    court.refuses("gap", 9)


def test_a_client_that_lacks_a_message_for_long_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    court = Court()
    court.commit(1)
    monkeypatch.setattr(CLOCK, "now", CLOCK.now + 4.0)
    court.oracle.look(court.seat)
    monkeypatch.setattr(CLOCK, "now", CLOCK.now + 2.0)
    with pytest.raises(Failure):
        court.oracle.look(court.seat)


def test_a_client_has_time_for_pages_of_messages_that_it_may_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    court = Court()
    court.oracle.page_size = 10
    for id in range(1, 51):
        court.commit(id, label="blue")
    court.commit(51)
    monkeypatch.setattr(CLOCK, "now", CLOCK.now + 5.9)
    court.oracle.look(court.seat)
    monkeypatch.setattr(CLOCK, "now", CLOCK.now + 0.2)
    with pytest.raises(Failure):
        court.oracle.look(court.seat)


def test_ephemeral_messages_keep_their_order() -> None:
    court = Court()
    for data in ("a", "b"):
        court.oracle.whispers.sent(Message("s", data, None, None, None))
    court.oracle.whispers.judge(court.seat, "b", "")
    with pytest.raises(Failure):
        court.oracle.whispers.judge(court.seat, "a", "")


def test_a_forged_message_is_not_the_real_one_of_the_same_id() -> None:
    court = Court()
    court.commit(5)
    court.deliver(5)
    court.oracle.losses.forged("s", 6)
    court.commit(6, 7)
    court.deliver(6, 7)
    assert court.seat.lost is None


def deceived(monkeypatch: pytest.MonkeyPatch) -> Court:
    """Return a court whose client has message 5, and then a forged message 6."""
    court = Court()
    court.commit(5)
    court.deliver(5)
    monkeypatch.setattr(CLOCK, "now", CLOCK.now + 10.0)
    court.oracle.losses.forged("s", 6)
    court.oracle.message(court.seat, 6, FORGED, "")
    return court


def test_a_client_with_a_forged_message_is_to_be_told_and_to_get_the_real_one(monkeypatch: pytest.MonkeyPatch) -> None:
    court = deceived(monkeypatch)
    court.commit(6, 7)
    court.deliver(7)
    court.oracle.look(court.seat)
    monkeypatch.setattr(CLOCK, "now", CLOCK.now + 6.0)
    with pytest.raises(Failure, match="idle: client was not told of the loss of 6"):
        court.oracle.look(court.seat)
    court.tell("ahead", 7)
    court.deliver(5, 6, 7)
    court.oracle.look(court.seat)


def test_a_cursor_that_is_told_has_nothing_below_it_that_the_client_lacks() -> None:
    court = Court()
    court.commit(5)
    court.commit(6, label="blue")
    court.commit(7)
    court.deliver(5)
    court.oracle.cursor(court.seat, 6)
    with pytest.raises(Failure, match="lost"):
        court.oracle.cursor(court.seat, 7)


def test_a_lost_message_is_judged_as_any_other() -> None:
    court = Court()
    court.commit(1)
    court.commit(2)
    court.lose(2)
    court.refuses("lost", 2)
    court = Court()
    court.commit(1)
    court.commit(2, label="blue")
    court.deliver(1)
    court.lose(2)
    court.refuses("forbidden", 2)


def test_an_event_has_its_name() -> None:
    court = Court()
    court.commit(1)
    with pytest.raises(Failure, match="other data"):
        court.oracle.message(court.seat, 1, "1", "another")


def test_a_client_is_told_once_of_a_loss() -> None:
    court = Court()
    court.commit(1, 2)
    court.deliver(1, 2)
    court.lose(2)
    court.tell("ahead", 2)
    court.deliver(1)
    with pytest.raises(Failure, match="without a cause"):
        court.tell("ahead", 2)


def test_a_client_is_told_no_more_often_than_messages_were_forged() -> None:
    court = Court()
    court.commit(1)
    court.deliver(1)
    court.oracle.losses.forged("s", 2)
    court.commit(2)
    court.deliver(2)
    court.tell("ahead", 2)
    court.deliver(1, 2)
    with pytest.raises(Failure, match="without a cause"):
        court.tell("ahead", 2)


def test_a_client_that_was_told_of_its_forged_cursor_is_told_again_if_its_worker_then_sends_it_the_message() -> None:
    court = Court()
    court.oracle.losses.forged("s", 1000)
    court.seat = Seat("s", court.client, 1000)
    court.oracle.greeted(court.seat, "me", 0)
    court.tell("ahead", 1000)
    for _ in range(court.oracle.losses.most_heard("s", 1000)):
        court.oracle.message(court.seat, 1000, FORGED, "")
        court.tell("ahead", 1000)
        with pytest.raises(Failure, match="without a cause"):
            court.tell("ahead", 1000)
    court.oracle.message(court.seat, 1000, FORGED, "")
    with pytest.raises(Failure, match="without a cause"):
        court.tell("ahead", 1000)


def test_a_client_that_was_told_that_its_lost_cursor_expired_is_not_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    court = Court()
    court.commit(1)
    court.deliver(1)
    court.lose(1)
    court.commit(2)
    court.server.stream("s").prune(2)
    court.tell("expired", 1)
    court.lose(2)
    monkeypatch.setattr(CLOCK, "now", CLOCK.now + 60.0)
    court.oracle.look(court.seat)
    court.commit(3)
    court.deliver(3)
    court.lose(3)
    court.commit(9)
    court.refuses("gap", 9)


@pytest.mark.parametrize(("reason", "requested"), [("invalid-cursor", 3), ("expired", 1)])
def test_a_gap_event_has_a_cause_and_the_cursor_of_its_client(reason: str, requested: int) -> None:
    court = Court()
    court.commit(1, 2, 3)
    court.deliver(1, 2, 3)
    court.server.stream("s").prune(2)
    with pytest.raises(Failure, match="without a cause"):
        court.tell(reason, requested)


def test_a_client_with_a_forged_message_is_told_although_it_gets_others(monkeypatch: pytest.MonkeyPatch) -> None:
    court = deceived(monkeypatch)
    court.commit(6)
    for id in (7, 8, 9):
        monkeypatch.setattr(CLOCK, "now", CLOCK.now + 1.6)
        court.commit(id)
        court.deliver(id)
        court.oracle.look(court.seat)
    monkeypatch.setattr(CLOCK, "now", CLOCK.now + 0.5)
    with pytest.raises(Failure, match="idle: client was not told of the loss of 6"):
        court.oracle.look(court.seat)


def test_a_client_whose_last_message_was_pruned_and_lost_is_told_with_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    court = Court()
    court.commit(1, 2)
    court.deliver(1, 2)
    court.server.stream("s").prune(2)
    court.server.stream("s").prune(0)
    court.lose(2)
    monkeypatch.setattr(CLOCK, "now", CLOCK.now + 60.0)
    court.commit(9)
    court.oracle.look(court.seat)
    monkeypatch.setattr(CLOCK, "now", CLOCK.now + 6.0)
    with pytest.raises(Failure, match="not told of the loss of 2"):
        court.oracle.look(court.seat)


@pytest.mark.parametrize("earlier", [False, True])
def test_a_client_that_starts_at_a_message_that_was_pruned_and_lost_is_told_with_the_one_that_follows_the_loss(
    earlier: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    court = Court()
    court.commit(1, 2)
    court.server.stream("s").prune(2)
    monkeypatch.setattr(CLOCK, "now", CLOCK.now + 1.0)
    court.lose(2)
    monkeypatch.setattr(CLOCK, "now", CLOCK.now + 60.0)
    if earlier:
        court.commit(9)
    court.seat = Seat("s", court.client, None)
    court.oracle.greeted(court.seat, "me", 2)
    if not earlier:
        monkeypatch.setattr(CLOCK, "now", CLOCK.now + 60.0)
        court.oracle.look(court.seat)
        court.commit(9)
    court.oracle.look(court.seat)
    monkeypatch.setattr(CLOCK, "now", CLOCK.now + 6.0)
    with pytest.raises(Failure, match="not told of the loss of 2"):
        court.oracle.look(court.seat)


@pytest.mark.parametrize(("replay", "start", "kind"), [(2, 2, "lost"), (2, 0, "order"), (None, 2, "order")])
def test_a_client_without_a_cursor_starts_where_it_asked(
    replay: int | None, start: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    court = Court()
    court.commit(1, 2, 3)
    monkeypatch.setattr(CLOCK, "now", CLOCK.now + 60.0)
    court.oracle.greeted(Seat("s", court.client, None, replay), "me", 3 - (replay or 0))
    with pytest.raises(Failure) as found:
        court.oracle.greeted(Seat("s", court.client, None, replay), "me", start)
    assert found.value.kind == kind


def test_a_client_that_reads_hears_a_heartbeat_and_is_greeted_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle, began = Court().oracle, CLOCK.now
    monkeypatch.setattr(CLOCK, "now", began + 15.5)
    oracle.silent("client", began)
    oracle.turned_away("client", began + 9.0)
    for judge in (oracle.silent, oracle.turned_away):
        with pytest.raises(Failure, match="idle"):
            judge("client", began - 1.0)
