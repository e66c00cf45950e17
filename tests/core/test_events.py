"""Events reach their handlers, cost nearly nothing without handlers, and a handler that raises does no harm."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from timeit import timeit
from typing import Any

import pytest
from fuzzing.answers import Secretive
from hypothesis import given
from hypothesis import strategies as st

from pgbus_gevent.core import events as events_module
from pgbus_gevent.core.events import KINDS, Broadcast, Events, Gap, Signal, SlowConsumer
from pgbus_gevent.core.stream_counter import StreamCounter
from pgbus_gevent.errors import InvalidArgument


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_event_reaches_the_handlers_of_its_kind_in_the_order_of_subscription() -> None:
    events = Events()
    heard: list[Any] = []
    events.subscribe(Gap, lambda event: heard.append(("first", event)))
    events.subscribe(Gap, lambda event: heard.append(("second", event)))
    events.subscribe(Broadcast, lambda event: heard.append(("other", event)))
    gap = Gap("orders", "expired")
    events.emit(gap)
    events.signal(Gap).emit(gap)
    assert heard == [("first", gap), ("second", gap)] * 2


def test_a_signal_without_handlers_says_so() -> None:
    """A part asks for the handlers before it makes an event."""
    events = Events()
    assert not events.signal(Gap).handlers
    end = events.subscribe(Gap, print)
    assert events.signal(Gap).handlers and not events.signal(Broadcast).handlers
    end()
    end()
    assert not events.signal(Gap).handlers


STEPS = st.lists(st.tuples(st.sampled_from(["subscribe", "unsubscribe", "emit"]), st.integers(0, 5)), max_size=40)


@given(steps=STEPS)
def test_in_any_order_each_handler_gets_the_events_emitted_while_it_is_subscribed(steps: list[tuple[str, int]]) -> None:
    """The same function may subscribe several times, and each subscription ends by itself."""
    events = Events()
    heard: list[int] = []
    handlers = [lambda event, n=n: heard.append(n) for n in range(2)]
    active: list[tuple[int, Callable[[], None]]] = []
    for step, n in steps:
        if step == "subscribe":
            active.append((n % 2, events.subscribe(Gap, handlers[n % 2])))
        elif step == "unsubscribe" and active:
            active.pop(n % len(active))[1]()
        elif step == "emit":
            heard.clear()
            events.emit(Gap("s", "ahead"))
            assert heard == [which for which, _ in active]


def test_handlers_may_come_and_go_while_one_is_called() -> None:
    events = Events()
    heard: list[str] = []
    ends: list[Callable[[], None]] = []

    def once(event: Gap) -> None:
        heard.append("once")
        ends[0]()
        events.subscribe(Gap, lambda event: heard.append("late"))

    ends.append(events.subscribe(Gap, once))
    events.subscribe(Gap, lambda event: heard.append("other"))
    events.emit(Gap("s", "ahead"))
    assert heard == ["once", "other"]
    events.emit(Gap("s", "ahead"))
    assert heard == ["once", "other", "other", "late"]


def test_a_handler_that_raises_is_logged_once_a_minute_and_the_others_are_called(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    events = Events(clock=clock)
    heard: list[Gap] = []

    def broken(event: Gap) -> None:
        raise KeyError("oops")

    events.subscribe(Gap, broken)
    events.subscribe(Gap, heard.append)
    for _ in range(1000):
        events.emit(Gap("s", "ahead"))
        clock.now += 0.1
    assert len(heard) == 1000
    assert [record.args and record.args[3] for record in caplog.records] == [1, 601]  # type: ignore[index]
    assert "broken" in caplog.text and "oops" in caplog.text and "Gap" in caplog.text


def test_each_handler_has_its_own_minute(caplog: pytest.LogCaptureFixture) -> None:
    events = Events(clock=Clock())
    for number in range(3):
        events.subscribe(Gap, lambda event, number=number: {}[number])
    for _ in range(5):
        events.emit(Gap("s", "ahead"))
    assert len(caplog.records) == 3


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_handler_that_wants_to_end_the_process_does_not(
    kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def handler(event: Gap) -> None:
        raise kind

    events = Events()
    events.subscribe(Gap, handler)
    events.emit(Gap("s", "ahead"))
    assert [record.exc_info is not None for record in caplog.records] == [True]


def test_a_signal_alone_works_without_a_clock(caplog: pytest.LogCaptureFixture) -> None:
    signal: Signal[Gap] = Signal()
    signal.emit(Gap("s", "ahead"))
    signal.subscribe(lambda event: 1 / 0)
    signal.emit(Gap("s", "ahead"))
    signal.emit(Gap("s", "ahead"))
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


@pytest.mark.parametrize("kind", ["gap", None, int, [], Gap("s", "ahead")], ids=repr)
def test_an_unknown_kind_is_refused_with_those_that_there_are(kind: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"there are Connected, .*ListenerDown"):
        Events().subscribe(kind, print)


def test_a_handler_that_cannot_be_called_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="function"):
        Events().subscribe(Gap, "print")  # type: ignore[arg-type]


def test_every_event_is_one_of_the_kinds_and_explains_itself() -> None:
    made = {
        one for one in vars(events_module).values() if isinstance(one, type) and issubclass(one, tuple) and one.__doc__
    }
    assert made == set(KINDS)
    for kind in KINDS:
        assert "Alias for" not in (kind.__doc__ or "") and f"{kind.__name__}(" not in (kind.__doc__ or "")
        heard: list[Any] = []
        events = Events()
        events.subscribe(kind, heard.append)
        event = kind(*["x"] * len(kind._fields))
        events.emit(event)
        assert heard == [event]


def test_a_stream_counter_can_be_a_subscriber() -> None:
    """A handler can count everything that the Instance counts itself."""
    events, counter = Events(), StreamCounter()
    events.subscribe(events_module.Connected, lambda event: counter.connected(event.streams))
    events.subscribe(events_module.Disconnected, lambda event: counter.disconnected(event.streams))
    events.subscribe(Broadcast, lambda event: counter.broadcast(event.stream, event.messages))
    events.emit(events_module.Connected("c", ("a", "b"), None))
    events.emit(Broadcast("a", 3))
    assert counter["a"] == (3, 1, 1) and counter.total == (3, 1, 1)
    events.emit(events_module.Disconnected("c", ("a", "b"), None, "client left", 1.0))
    assert counter.streams == {} and counter.total == (3, 0, 1)


def test_without_a_subscriber_an_event_costs_next_to_nothing() -> None:
    """Compared with a call of an empty function, by a wide margin, so that a slow machine does not matter."""
    signal: Signal[SlowConsumer] = Signal()

    def asking() -> None:
        if signal.handlers:
            signal.emit(SlowConsumer("c", ("s",), 1.0))

    # In turns, because the machine may be slow for some milliseconds.
    times = [(timeit(asking, number=2000), timeit(lambda: None, number=2000)) for _ in range(100)]
    asked, nothing = map(min, zip(*times, strict=True))
    assert asked < 4 * nothing


# the documentation


def example() -> dict[str, Any]:
    document = Path(__file__).parents[2] / "docs" / "instrumentation.md"
    names: dict[str, Any] = {}
    exec(document.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0], names)
    return names


def test_the_documented_hook_logs_slow_consumers(caplog: pytest.LogCaptureFixture) -> None:
    events = Events()
    example()["log_slow_consumers"](events)
    events.emit(SlowConsumer("c1", ("orders", "stock"), 30.2))
    assert caplog.messages == ["c1 took nothing of orders, stock for 30 s"]


def test_the_documented_counter_sends_sums() -> None:
    events = Events()
    sent: list[bytes] = []
    statsd = example()["StatsD"](events, sent.append, every=0.0)
    events.emit(Broadcast("orders", 3))
    assert sent == [b"pgbus.messages:3|c"]
    statsd._every = 60.0
    events.emit(events_module.Passed("orders", 1000, 0.004))
    events.emit(events_module.Passed("orders", 1000, 0.004))
    events.emit(events_module.Disconnected("c", ("orders",), None, "client left", 4.0))
    events.emit(events_module.Refused("overloaded"))
    statsd.flush()
    statsd.flush()
    assert sent[1:] == [b"pgbus.deliveries:2000|c\npgbus.disconnects.client-left:1|c\npgbus.refused.overloaded:1|c"]


def test_the_documented_trace_hears_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "shop.live")
    events = Events()
    example()["trace"](events)
    for kind in KINDS:
        events.emit(kind(*["x"] * len(kind._fields)))
    assert [message.split("(")[0] for message in caplog.messages] == [kind.__name__ for kind in KINDS]


def test_a_handler_that_cannot_be_shown_or_whose_error_cannot_does_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    class Odd:
        def __call__(self, event: Gap) -> None:
            raise Secretive

        def __repr__(self) -> str:
            raise SystemExit

    heard: list[Gap] = []
    events = Events()
    events.subscribe(Gap, Odd())
    events.subscribe(Gap, heard.append)
    events.emit(Gap("s", "ahead"))
    assert len(heard) == 1
    assert "a Odd that cannot be shown raised Secretive" in caplog.text
