"""Filters: a message is delivered only if its filter surely permits it."""

from __future__ import annotations

import logging
from typing import Any

import gevent
import pytest

from pgbus_gevent.core.filters import Filters
from pgbus_gevent.errors import InvalidArgument


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_a_predicate_is_given_the_context_and_the_stream() -> None:
    asked: list[tuple[Any, str]] = []
    filters = Filters()

    def note(context: Any, stream: str) -> bool:
        asked.append((context, stream))
        return True

    filters.register("admins", note)
    assert filters.permits("admins", {"user": 7}, "orders")
    assert asked == [({"user": 7}, "orders")]


@pytest.mark.parametrize(("answer", "seen"), [(True, True), (1, True), (False, False), (None, False), ("", False)])
def test_the_answer_of_a_predicate_counts_as_true_or_false(answer: Any, seen: bool) -> None:
    filters = Filters()
    filters.register("admins", lambda context, stream: answer)
    assert filters.permits("admins", None, "orders") is seen


def test_nobody_gets_a_message_with_an_unknown_label_and_that_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    filters = Filters()
    assert not filters.permits("admins", None, "orders")
    assert not filters.permits("admins", None, "orders")
    assert warnings(caplog) == ["the filter 'admins' is not registered: messages visible to it are not delivered"]


def test_it_says_so_again_after_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    filters = Filters(lambda: now[0])
    for now[0] in (0.0, 30.0, 59.0, 60.0, 100.0, 120.0):
        filters.permits("nobody", None, "orders")
        filters.permits("others", None, "orders")
    assert caplog.text.count("'nobody' is not registered") == 3
    assert caplog.text.count("'others' is not registered") == 3


def test_nobody_gets_a_message_whose_predicate_raises_and_that_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    filters = Filters()
    filters.register("admins", lambda context, stream: context.is_admin)
    assert not filters.permits("admins", None, "orders")
    assert not filters.permits("admins", None, "orders")
    [warning] = warnings(caplog)
    assert "AttributeError" in warning


def test_nobody_gets_a_message_if_the_truth_of_the_answer_raises() -> None:
    class Undecided:
        def __bool__(self) -> bool:
            raise RuntimeError("neither")

    filters = Filters()
    filters.register("admins", lambda context, stream: Undecided())  # type: ignore[arg-type, return-value]
    assert not filters.permits("admins", None, "orders")


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, BaseException])
def test_a_predicate_that_wants_to_end_the_process_does_not(
    kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def predicate(context: Any, stream: str) -> bool:
        raise kind("x" * 10_000)

    filters = Filters()
    filters.register("admins", predicate)
    assert not filters.permits("admins", None, "orders")
    assert kind.__name__ in caplog.text and len(caplog.text) < 1000


def test_an_exception_that_cannot_be_shown_is_one_too(caplog: pytest.LogCaptureFixture) -> None:
    class Odd(Exception):
        def __repr__(self) -> str:
            raise ValueError

    def predicate(context: Any, stream: str) -> bool:
        raise Odd

    filters = Filters()
    filters.register("admins", predicate)
    assert not filters.permits("admins", None, "orders")
    assert "a Odd that cannot be shown" in caplog.text


def test_labels_are_not_patterns_and_not_folded() -> None:
    filters = Filters()
    filters.register("admins", lambda context, stream: True)
    assert not any(filters.permits(label, None, "orders") for label in ("Admins", "admin", "*", "", "admins "))


def test_a_label_registered_later_is_heard_and_may_complain_again(caplog: pytest.LogCaptureFixture) -> None:
    filters = Filters()
    filters.permits("admins", None, "orders")
    filters.register("admins", lambda context, stream: True)
    assert filters.permits("admins", None, "orders")
    filters.register("admins", lambda context, stream: 1 / 0 > 0)
    filters.permits("admins", None, "orders")
    assert len(warnings(caplog)) == 2


def test_labels_without_end_do_not_fill_the_memory_or_the_log(caplog: pytest.LogCaptureFixture) -> None:
    filters = Filters()
    for n in range(3000):
        assert not filters.permits(f"label-{n}", None, "orders")
    assert len(warnings(caplog)) <= 1000
    assert len(filters._complaints) <= 1000


def test_a_label_that_subscribers_may_hold_needs_no_filter(caplog: pytest.LogCaptureFixture) -> None:
    assert not Filters().permits("user:7", None, "orders", held=True)
    assert warnings(caplog) == []


def test_a_default_decides_about_labels_without_a_filter() -> None:
    filters = Filters(default=lambda context, stream: context == "all")
    filters.register("admins", lambda context, stream: context == "admin")
    assert filters.permits("other", "all", "orders") and not filters.permits("other", "admin", "orders")
    assert filters.permits("admins", "admin", "orders") and not filters.permits("admins", "all", "orders")
    assert filters.decide(["other"]) and not filters.decide([]) and not Filters().decide(["other"])


@pytest.mark.parametrize(("label", "predicate"), [("", bool), ("admins", None), ("admins", "is_admin")])
def test_a_filter_has_a_label_and_a_callable(label: str, predicate: Any) -> None:
    with pytest.raises(InvalidArgument, match="label and a callable"):
        Filters().register(label, predicate)


async def _awaited(context: Any, stream: str) -> bool:
    return False


async def _asynchronous(context: Any, stream: str) -> Any:
    yield False


def _generated(context: Any, stream: str) -> Any:
    yield False


@pytest.mark.parametrize(
    "predicate",
    [
        _awaited,
        _asynchronous,
        _generated,
        lambda context, stream: stream.isupper,
        lambda context, stream: _generated,
        lambda context, stream: gevent.spawn(bool),
    ],
    ids=["async", "async generator", "generator", "method", "function", "greenlet"],
)
def test_nobody_gets_a_message_if_the_filter_was_not_really_asked(
    predicate: Any, caplog: pytest.LogCaptureFixture
) -> None:
    answers: list[Any] = []

    def noted(context: Any, stream: str) -> Any:
        answers.append(predicate(context, stream))
        return answers[-1]

    filters = Filters(unasked=(gevent.Greenlet,))
    filters.register("admins", noted)
    assert not filters.permits("admins", None, "orders")
    assert not filters.permits("admins", None, "orders")
    [warning] = warnings(caplog)
    assert "the filter 'admins' answered a " in warning and "not True or False" in warning
    if predicate is _awaited:
        for each in answers:
            each.close()


def test_an_exception_that_would_end_the_process_when_it_is_shown_does_not() -> None:
    class Odd(Exception):
        def __repr__(self) -> str:
            raise SystemExit

    def predicate(context: Any, stream: str) -> bool:
        raise Odd

    filters = Filters()
    filters.register("admins", predicate)
    assert not filters.permits("admins", None, "orders")
