"""Datastar's events, compared with those of Datastar's own package for Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from datastar_py import ServerSentEventGenerator as Theirs
from datastar_py.consts import ElementPatchMode, ElementPatchNamespace
from support import judged

from pgbus_gevent import datastar
from pgbus_gevent.errors import InvalidArgument

TWO_LINES = "<ul>\n  <li>é</li>\n</ul>"


def said(frame: str) -> tuple[str, list[str]]:
    """Return the event of a frame, and the lines of its data, whose order does not matter but for those of one name."""
    (event,) = judged(frame.encode())
    return event.event, sorted(event.data.split("\n"), key=lambda line: line.partition(" ")[0])


def ours(event: datastar.Event) -> tuple[str, list[str]]:
    lines = "".join(f"data: {line}\n" for line in event["data"].split("\n"))
    return said(f"event: {event['event']}\n{lines}\n")


@pytest.mark.parametrize("mode", datastar.MODES)
def test_a_patch_of_elements_is_as_datastar_writes_it(mode: datastar.Mode) -> None:
    assert ours(datastar.patch_elements(TWO_LINES, selector="#list > li", mode=mode)) == said(
        Theirs.patch_elements(TWO_LINES, "#list > li", ElementPatchMode(mode))
    )


def test_the_options_of_a_patch_are_as_datastar_writes_them() -> None:
    assert ours(datastar.patch_elements("<p id=a></p>")) == said(Theirs.patch_elements("<p id=a></p>"))
    assert ours(datastar.patch_elements("<g/>", selector="svg", namespace="svg", view_transition=True)) == said(
        Theirs.patch_elements("<g/>", "svg", namespace=ElementPatchNamespace.SVG, use_view_transition=True)
    )


def test_a_removal_is_as_datastar_writes_it() -> None:
    assert ours(datastar.remove_elements("#order-7")) == said(Theirs.remove_elements("#order-7"))


def test_a_patch_of_signals_is_as_datastar_writes_it() -> None:
    (name, (line,)), (wanted, (other,)) = (
        ours(datastar.patch_signals({"count": 3, "who": None})),
        said(Theirs.patch_signals({"count": 3, "who": None})),
    )
    assert (name, line.replace(" ", "")) == (wanted, other.replace(" ", ""))
    assert "onlyIfMissing true" in ours(datastar.patch_signals({"a": 1}, only_if_missing=True))[1]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_each_line_of_the_elements_has_its_name(end: str) -> None:
    """The server gives each of these line ends a data field of its own, so a line without a name would be lost."""
    assert datastar.patch_elements(f"<p>a{end}b</p>")["data"] == "elements <p>a\nelements b</p>"


def test_other_separators_stay_in_the_text() -> None:
    assert datastar.patch_elements("<p>a\u2028\x85\x0bb</p>")["data"] == "elements <p>a\u2028\x85\x0bb</p>"


def test_a_line_break_in_a_signal_adds_no_line() -> None:
    assert datastar.patch_signals({"a": "x\ny"})["data"] == 'signals {"a": "x\\ny"}'


REFUSED: dict[str, Callable[[], Any]] = {
    "no selector": lambda: datastar.patch_elements("<p></p>", mode="append"),
    "a mode": lambda: datastar.patch_elements("<p></p>", mode="over"),  # type: ignore[arg-type]
    "a namespace": lambda: datastar.patch_elements("<p></p>", namespace="xml"),  # type: ignore[arg-type]
    "a line break": lambda: datastar.patch_elements("<p></p>", selector="#a\nmode remove"),
    "an empty removal": lambda: datastar.remove_elements(""),
    "not a number": lambda: datastar.patch_signals({"a": float("nan")}),
}


@pytest.mark.parametrize("wrong", REFUSED)
def test_what_datastar_would_refuse_is_refused(wrong: str) -> None:
    with pytest.raises(InvalidArgument):
        REFUSED[wrong]()
