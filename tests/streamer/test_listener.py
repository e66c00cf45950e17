"""The listener: it hands on payloads in order, notices the end of its session, and opens another one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from types import SimpleNamespace

import gevent
import pytest
from gevent.event import Event
from streamer_parts import FakeClient, added, wait_until

from pgbus_gevent.core.board import Board
from pgbus_gevent.core.events import ListenerDown
from pgbus_gevent.core.ring_budget import RingLimits
from pgbus_gevent.core.stream_log import StreamLog
from pgbus_gevent.core.wakes import CONTROL
from pgbus_gevent.errors import DatabaseUnavailable, Deaf
from pgbus_gevent.streamer import listener
from pgbus_gevent.streamer.listener import Listener
from pgbus_gevent.streamer.turns import breathe


class Session:
    """A session that receives the items that the test puts into ``inbox``: payloads, ``lost``, or an error."""

    def __init__(self, listening: Listening) -> None:
        self.listening = listening
        self.inbox: list[list[str] | str] = []
        self.deaf = False
        self.closed = 0
        self.pings = 0
        self.followed: list[object] = []
        self.interrupts = 0
        self.later: Event | None = None
        """What ``follow`` returns."""
        self.on_follow: Callable[[], object] = lambda: self.listening.on_follow()
        self.on_ping: Callable[[], object] = lambda: None

    def receive(self, timeout: float) -> tuple[list[str], bool]:
        assert not self.closed, "received on a session that was closed"
        if not self.inbox:
            breathe()
            self.listening.now += self.listening.waits
            return [], False
        item = self.inbox.pop(0)
        if item == "lost":
            return [], True
        if isinstance(item, str):
            raise DatabaseUnavailable(item)
        return item, False

    @property
    def cause(self) -> str:
        return "a pooler in transaction mode"

    def follow(self, streams: Collection[str] | None) -> Event | None:
        self.on_follow()
        self.followed.append("all" if streams is None else sorted(streams))
        return self.later

    def narrow(self, streams: Collection[str]) -> None:
        self.followed.append(("only", sorted(streams)))

    def interrupt(self) -> None:
        self.interrupts += 1

    def hears(self) -> bool:
        breathe()
        return not self.deaf

    def ping(self) -> None:
        self.pings += 1
        self.on_ping()

    def close(self) -> None:
        self.closed += 1


class NotedBoard(Board):
    """A board that records, in order, the calls of the listener."""

    def __init__(self, log: list[str]) -> None:
        super().__init__(Event, RingLimits(10, 1000, 10**6))
        self.told = log

    def resync(self) -> None:
        self.told.append(f"up, live={self.listening.is_set()}")
        super().resync()


class Listening:
    """The listener over such sessions. ``log`` has its calls in order. Its pauses are recorded and take no time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.waits = 0.0
        self.slept: list[float] = []
        monkeypatch.setattr(listener, "gevent", SimpleNamespace(sleep=self._sleep))
        self.log: list[str] = []
        self.sessions: list[Session] = []
        self.refusals: list[str] = []
        self.on_follow: Callable[[], object] = breathe
        self.deaf = 0
        self.on_payloads: Callable[[list[str]], object] = lambda payloads: None
        self.board = NotedBoard(self.log)
        self.part = Listener(self, self.board, clock=lambda: self.now)
        monkeypatch.setattr(self.part, "hear", self._payloads)
        self.greenlet = gevent.spawn(self.part.run)

    def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        assert not self.part.live
        breathe()

    def discard_idle(self) -> None:
        self.log.append("down")

    def listen(self) -> Session:
        if self.refusals:
            raise DatabaseUnavailable(self.refusals.pop())
        session = Session(self)
        session.deaf = self.deaf > len(self.sessions)
        self.sessions.append(session)
        return session

    def _payloads(self, payloads: list[str]) -> None:
        self.log += payloads
        self.on_payloads(payloads)

    def live(self) -> Session:
        """Return the session, once it listens."""
        wait_until(lambda: self.part.live)
        return self.sessions[-1]

    def told(self, *expected: str) -> None:
        wait_until(lambda: len(self.log) >= len(expected), f"{self.log} is all that was noted")
        assert self.log == list(expected)


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listening]:
    made = Listening(monkeypatch)
    yield made
    made.greenlet.kill()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_a_log_that_was_opened_while_the_session_was_new_is_looked_at_once_it_is_heard(listening: Listening) -> None:
    listening.board.follow_all = False
    logs: list[StreamLog] = []

    def come() -> None:
        # The first client comes during the LISTEN of a new session, and a reader opens its log before the next LISTEN.
        if not logs:
            logs.append(added(listening.board, FakeClient("orders")).log)
            logs[0].open(head=0, horizon=0, oldest=0, floor=0, rows=[])
        breathe()

    added(listening.board, FakeClient("stock", "stock"))
    listening.on_follow = come
    listening.live()
    wait_until(lambda: logs and logs[0] not in listening.board.unheard)
    assert logs[0] in listening.board.looks


def test_it_hands_on_payloads_in_order(listening: Listening) -> None:
    listening.live().inbox += [["a", "b"], ["c"]]
    listening.told("up, live=True", "a", "b", "c")


def test_missed_messages_are_looked_for_only_once_it_listens(listening: Listening) -> None:
    assert listening.log == []
    listening.told("up, live=True")


def test_lost_notifications_are_made_good_by_looking(listening: Listening, caplog: pytest.LogCaptureFixture) -> None:
    listening.live().inbox += [["a"], "lost", ["b"]]
    listening.told("up, live=True", "a", "up, live=True", "b")
    assert len(warnings(caplog)) == 1
    assert listening.part.live


def test_a_lost_session_is_closed_and_another_opened(listening: Listening, caplog: pytest.LogCaptureFixture) -> None:
    first = listening.live()
    first.inbox += [["a"], "terminated by an administrator"]
    wait_until(lambda: len(listening.sessions) == 2)
    listening.live().inbox += [["b"]]
    listening.told("up, live=True", "a", "down", "up, live=True", "b")
    assert (first.closed, listening.part.reconnects) == (1, 1)
    assert warnings(caplog) == [
        "the session for new messages is lost, opening a new one: terminated by an administrator"
    ]


def test_every_log_is_in_doubt_from_the_loss_of_the_session_on(listening: Listening) -> None:
    session = listening.live()
    board = listening.part._board
    log = added(board, FakeClient()).log
    in_doubt: list[bool] = []
    board.events.subscribe(ListenerDown, lambda lost: in_doubt.append(log.in_doubt))
    session.inbox.append("cut")
    wait_until(lambda: in_doubt)
    assert in_doubt == [True]


def test_it_is_not_live_between_two_sessions(listening: Listening) -> None:
    listening.live()
    listening.refusals = ["refused"] * 10**6
    listening.sessions[0].inbox.append("gone")
    wait_until(lambda: len(listening.slept) > 3)
    assert not listening.part.live
    listening.refusals.clear()
    listening.live()
    assert len(listening.sessions) == 2


def test_while_it_is_refused_it_tries_less_and_less_often(
    listening: Listening, caplog: pytest.LogCaptureFixture
) -> None:
    listening.live()
    listening.refusals = ["refused"] * 20
    listening.sessions[0].inbox.append("gone")
    wait_until(lambda: len(listening.sessions) == 2)
    assert len(listening.slept) == 21
    assert listening.slept[0] <= 0.1
    assert all(1.5 <= pause <= 5.0 for pause in listening.slept[-10:])
    assert len(set(listening.slept)) == 21, "many workers that are refused together must not come back together"
    assert len(warnings(caplog)) == 1


def test_after_it_was_live_the_next_pause_is_short_again(listening: Listening) -> None:
    listening.live()
    listening.refusals = ["refused"] * 10
    listening.sessions[0].inbox.append("gone")
    wait_until(lambda: len(listening.sessions) == 2)
    listening.live().inbox.append("gone")
    wait_until(lambda: len(listening.sessions) == 3)
    assert listening.slept[-1] <= 0.1


def test_a_database_that_is_away_from_the_start_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    listening = Listening(monkeypatch)
    listening.refusals = ["refused"] * 10
    listening.live()
    assert warnings(caplog) == ["the session for new messages is lost, opening a new one: refused"]
    assert listening.log == ["up, live=True"], "nothing that was never up goes down"
    assert listening.part.reconnects == 0
    listening.greenlet.kill()


def test_a_deaf_session_is_not_taken_for_a_live_one(listening: Listening, caplog: pytest.LogCaptureFixture) -> None:
    listening.deaf = 3
    listening.live()
    assert [session.closed for session in listening.sessions] == [1, 1, 1, 0]
    assert listening.log == ["up, live=True"]
    [warning] = warnings(caplog)
    assert "pooler in transaction mode" in warning
    assert "PGBUS_LISTEN_URL" in warning
    assert listening.slept[0] <= 0.1
    assert all(5.0 <= pause <= 20.0 for pause in listening.slept[1:])


def test_a_new_session_that_does_not_hear_is_replaced_at_once(
    listening: Listening, caplog: pytest.LogCaptureFixture
) -> None:
    listening.deaf = 1
    listening.live()
    assert [session.closed for session in listening.sessions] == [1, 0]
    assert len(listening.slept) == 1
    assert listening.slept[0] <= 0.1
    assert warnings(caplog) == []
    assert listening.part.deaf == ""


def test_a_suspicion_does_not_hide_that_the_next_session_cannot_be_had(
    listening: Listening, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    listen = listening.listen

    def listen_once() -> Session:
        session = listen()
        listening.refusals = ["refused"] * (5 if len(listening.sessions) == 1 else 0)
        return session

    monkeypatch.setattr(listening, "listen", listen_once)
    listening.deaf = 1
    listening.live()
    assert warnings(caplog) == ["the session for new messages is lost, opening a new one: refused"]


def test_a_new_session_that_does_not_hear_is_replaced_at_once_after_an_outage_too(listening: Listening) -> None:
    listening.refusals = ["refused"] * 10
    listening.deaf = 1
    listening.live()
    assert listening.slept[9] > 0.5
    assert listening.slept[10] <= 0.1


def test_a_session_that_was_live_and_becomes_deaf_is_not_replaced_for_some_time(listening: Listening) -> None:
    session = listening.live()

    def another_session_answers() -> None:
        raise Deaf("a pooler in transaction mode is in between")

    session.on_ping = another_session_answers
    listening.waits = 1.0
    wait_until(lambda: listening.slept)
    assert 5.0 <= listening.slept[0] <= 20.0


def test_after_a_silence_the_server_is_asked_whether_it_lives(listening: Listening) -> None:
    session = listening.live()
    asked: list[float] = []
    session.on_ping = lambda: asked.append(listening.now)
    listening.waits = 1.0
    wait_until(lambda: len(asked) >= 3)
    assert asked[:3] == [listener.PING_INTERVAL * n for n in (1, 2, 3)]


@pytest.mark.parametrize(("workers", "interval"), [(1, 2.0), (50, 2.5), (75, 3.75), (100, 5.0), (5000, 5.0)])
def test_a_large_fleet_asks_less_often(listening: Listening, workers: int, interval: float) -> None:
    listening.part._board.workers = workers
    assert listening.part.ping_interval == interval


def test_a_server_that_is_heard_from_is_asked_all_the_same(listening: Listening) -> None:
    session = listening.live()
    listening.on_payloads = lambda payloads: setattr(listening, "now", listening.now + 9.0)
    session.inbox += [["a"]] * 20
    wait_until(lambda: len(listening.log) == 21)
    assert session.pings == 20


def test_a_control_notification_has_the_names_asked_for_soon_and_a_flood_of_them_not_more_often(
    listening: Listening,
) -> None:
    session = listening.live()
    asked: list[float] = []
    session.on_ping = lambda: asked.append(listening.now)
    listening.on_payloads = lambda payloads: setattr(listening, "now", round(listening.now + 0.1, 1))
    session.inbox += [[CONTROL]] * 20
    wait_until(lambda: len(listening.log) == 21)
    assert asked == [0.6, 1.2, 1.8]


def test_a_server_that_does_not_answer_is_left(listening: Listening) -> None:
    session = listening.live()

    def silence() -> None:
        raise DatabaseUnavailable("no answer")

    session.on_ping = silence
    listening.waits = 1.0
    wait_until(lambda: len(listening.sessions) == 2)
    assert session.closed == 1
    assert listening.log[:2] == ["up, live=True", "down"]


# following


@pytest.fixture
def following(listening: Listening) -> Listening:
    """A listener that follows only the streams that have clients here."""
    listening.board.follow_all = False
    return listening


def joined(listening: Listening, id: str, stream: str) -> StreamLog:
    """A client comes that is the first of its stream."""
    return added(listening.board, FakeClient(id, stream)).log


def test_a_stream_that_is_heard_later_is_looked_at_then_and_payloads_come_meanwhile(following: Listening) -> None:
    session, board = following.live(), following.board
    session.later = first = Event()
    orders = joined(following, "ada", "orders")
    wait_until(lambda: session.followed == [["orders"]])
    session.later = second = Event()
    stock = joined(following, "bob", "stock")
    wait_until(lambda: session.followed == [["orders"], ["stock"]])
    for log in (orders, stock):
        board.look(log)
    session.inbox.append(["a"])
    following.told("up, live=True", "a")
    assert not board.looks
    first.set()
    wait_until(lambda: orders in board.looks)
    assert (orders in board.unheard, stock in board.unheard, stock in board.looks) == (False, True, False)
    second.set()
    wait_until(lambda: stock in board.looks)
    assert not board.unheard


def test_a_stream_that_is_heard_later_does_not_wait_for_a_session_that_is_lost(following: Listening) -> None:
    session, board = following.live(), following.board
    session.later = Event()
    log = joined(following, "ada", "orders")
    wait_until(lambda: session.followed == [["orders"]])
    assert log not in board.looks
    session.inbox.append("cut")
    wait_until(lambda: log in board.looks)
    wait_until(lambda: len(following.sessions) == 2)
    following.live()
    assert following.sessions[-1].followed == [["orders"]]


def test_it_follows_the_streams_that_have_clients_before_it_is_live(monkeypatch: pytest.MonkeyPatch) -> None:
    listening = Listening(monkeypatch)
    listening.board.follow_all = False
    joined(listening, "1", "orders")
    joined(listening, "2", "stock")
    lives: list[bool] = []
    listening.on_follow = lambda: lives.append(listening.part.live)
    assert listening.live().followed == [["orders", "stock"]]
    assert lives == [False]
    listening.greenlet.kill()


def test_the_first_client_of_a_stream_has_it_followed_at_once_and_then_looked_at(following: Listening) -> None:
    session, board = following.live(), following.board
    interrupts, held = session.interrupts, []
    following.on_follow = lambda: held.append(not board.looks)
    log = joined(following, "1", "orders")
    board.wait(added(board, FakeClient("2", "orders")))
    assert (session.interrupts, list(board.looks)) == (interrupts + 1, [])
    wait_until(lambda: list(board.looks) == [log])
    assert (session.followed[-1], held) == (["orders"], [True])


def test_a_stream_that_comes_during_the_statement_is_followed_by_the_next_one(following: Listening) -> None:
    session, board = following.live(), following.board

    def another() -> None:
        following.on_follow = breathe
        joined(following, "2", "stock")
        breathe()

    following.on_follow = another
    joined(following, "1", "orders")
    wait_until(lambda: not board.unheard)
    assert session.followed[-2:] == [["orders"], ["stock"]]


def test_a_client_that_comes_while_the_first_statement_runs_does_not_wait_for_the_next_wake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listening = Listening(monkeypatch)
    listening.board.follow_all = False
    joined(listening, "1", "orders")
    listening.on_follow = lambda: (setattr(listening, "on_follow", breathe), joined(listening, "2", "stock"))
    session = listening.live()
    monkeypatch.setattr(session, "receive", lambda timeout: pytest.fail("it waited first"))
    wait_until(lambda: session.followed == [["orders"], ["stock"]])
    listening.greenlet.kill()


def test_if_a_stream_cannot_be_followed_its_client_does_not_wait(following: Listening) -> None:
    following.live()
    following.refusals = ["refused"] * 10**6

    def cut() -> None:
        raise DatabaseUnavailable("cut")

    following.on_follow = cut
    log = joined(following, "1", "orders")
    wait_until(lambda: list(following.board.looks) == [log])
    assert not following.part.live
    following.on_follow = breathe
    following.refusals.clear()
    wait_until(lambda: following.part.live)
    assert following.sessions[-1].followed == [["orders"]]


def test_it_follows_all_streams_as_long_as_the_board_says_so(listening: Listening) -> None:
    session, board = listening.live(), listening.board
    joined(listening, "1", "orders")
    wait_until(lambda: not board.unheard)
    assert session.followed == ["all"]
    board.follow_all = False
    joined(listening, "2", "stock")
    wait_until(lambda: not board.unheard)
    assert session.followed == ["all"], "it hears them all until it narrows"
    listening.now += listener.NARROW_SOON
    wait_until(lambda: len(session.followed) == 2)
    listening.now += listener.NARROW_SOON
    joined(listening, "3", "third")
    wait_until(lambda: not board.unheard)
    board.follow_all = True
    wait_until(lambda: len(session.followed) == 4)
    assert session.followed == ["all", ("only", ["orders", "stock"]), ["third"], "all"]


def test_streams_without_clients_are_not_followed_any_more_after_a_minute(following: Listening) -> None:
    session, board = following.live(), following.board
    client = FakeClient("1", "orders")
    added(board, client)
    joined(following, "2", "stock")
    board.leave(client)
    wait_until(lambda: session.followed == [["stock"]])
    following.now += listener.NARROW_INTERVAL - 0.1
    wait_until(lambda: session.pings > 0)
    assert session.followed[1:] == []
    following.now += 0.1
    wait_until(lambda: session.followed[-1] == ("only", ["stock"]))
    pings = session.pings
    following.now += 5.0
    wait_until(lambda: session.pings > pings)
    assert len(session.followed) == 2, "the next time is a minute later"


# the start


class SetTooLate(Event):
    """A flag that is set while a waiter's time ends. gevent then answers that it is not, if the process was held up."""

    def wait(self, timeout: float | None = None) -> bool:  # type: ignore[override]
        gevent.sleep(timeout or 0.0)
        self.set()
        return False


def starting(flag: type[Event] = Event) -> Listener:
    """Return a listener that does not run."""
    return Listener(SimpleNamespace(), Board(flag, RingLimits(10, 1000, 10**6)))  # type: ignore[arg-type]


def test_a_start_without_a_session_says_so_at_its_deadline(caplog: pytest.LogCaptureFixture) -> None:
    starting().await_session(0.02, unless=lambda: False)
    assert warnings(caplog) == ["not listening yet after 0.02 s; still trying"]


def test_a_start_that_has_its_session_just_at_the_deadline_does_not_say_that_it_has_none(
    caplog: pytest.LogCaptureFixture,
) -> None:
    part = starting(SetTooLate)
    part.await_session(0.02, unless=lambda: False)
    assert part.live
    assert warnings(caplog) == []


def test_a_start_that_is_given_up_just_at_the_deadline_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    asked = iter([False, True])
    starting().await_session(0.02, unless=lambda: next(asked))
    assert warnings(caplog) == []


# the end


def test_stopping_it_closes_the_session(listening: Listening) -> None:
    session = listening.live()
    listening.greenlet.kill()
    assert session.closed == 1
    assert not listening.part.live


def test_a_bug_in_a_function_that_it_calls_closes_the_session_too(
    listening: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gevent.get_hub(), "print_exception", lambda *args: None)
    session = listening.live()
    listening.on_payloads = lambda payloads: 1 / 0
    session.inbox.append(["a"])
    wait_until(lambda: listening.greenlet.dead)
    assert session.closed == 1
    assert not listening.part.live
